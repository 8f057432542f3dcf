"""A round with a controller: who is there, what is decided, whose data go where, what comes back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_bfl.chain_adapter.base import Entry
from flower_bfl.config import check_whole_number
from flower_bfl.controller.base import Controller
from flower_bfl.errors import ConfigError, ReplyError
from flower_bfl.network import NetworkConfig
from flower_bfl.strategies._fleet import Fleet, RollCall
from flower_bfl.strategies._offloading import (
    DataLink,
    Fetched,
    Offloaded,
    by_server,
    edge_message,
    union_of,
    warn_kept,
)
from flower_bfl.strategies._plan import Plan, Planner
from flower_bfl.strategies._replies import Contribution, screen
from flower_bfl.strategies._roster import Roster
from flower_bfl.types import LeftOut, RoundReport

ScreenData = Callable[[int, Mapping[int, Offloaded]], Mapping[int, str]]


@dataclass(frozen=True, eq=False)
class Field:
    """A round as it was decided and got under way."""

    plan: Plan | None = None  # None: nobody is there that the network knows
    sets: Mapping[int, Offloaded] = field(default_factory=dict)  # by device
    kept_local: Sequence[LeftOut] = ()
    left_out: Sequence[LeftOut] = ()
    report_seconds: float = 0.0
    offload_seconds: float = 0.0

    def entries(self, server_round: int) -> list[Entry]:
        """What the ledger keeps of the data that were sent."""
        return [one.entry(server_round, device) for device, one in self.sets.items()]

    def miners(self) -> dict[int, int]:
        """Devices that sent their data and whose keys this process has, with their edge servers."""
        return {device: one.server for device, one in self.sets.items() if not one.signature}

    def noted(self, report: RoundReport, clock_s: float) -> RoundReport:
        """The report with what was decided; `clock_s` is the simulated time at the end of the round."""
        report = replace(
            report,
            kept_local=tuple(self.kept_local),
            simulated_seconds=clock_s,
            report_seconds=self.report_seconds,
            offload_seconds=self.offload_seconds,
        )
        if (plan := self.plan) is None:
            return report
        return replace(
            report,
            fallback=plan.fallback,
            latency_s=plan.latency_s(),
            energy_j=plan.energy_j(),
            decide_seconds=plan.decide_seconds,
        )


class Controlled:
    """Puts a controller's decisions into a strategy's rounds, one after the other."""

    def __init__(
        self,
        controller: Controller,
        network: NetworkConfig | None,
        edge_servers: int,
        most_bytes: int,
        timeout_s: float,
        seed: int,
    ) -> None:
        network = network or getattr(controller, "network", None)
        if not isinstance(network, NetworkConfig):
            raise ConfigError(f"`network` must be a NetworkConfig, or the controller's own, got {network!r}")
        if network.edge_servers != edge_servers:
            raise ConfigError(
                f"`network` must have as many edge servers as `edge_servers`, {edge_servers}, "
                f"got {network.edge_servers}"
            )
        if not isinstance(controller, Controller):
            raise ConfigError(f"`controller` must have a method `decide`, got {controller!r:.80}")
        check_whole_number("most_offloaded_bytes", most_bytes, 1, 2**31 - 1)
        if not timeout_s > 0:
            raise ConfigError(f"`exchange_timeout_s` must be positive, got {timeout_s}")
        self.name = type(controller).__name__
        self.expected = network.devices + edge_servers
        self.called = False  # whether anybody was asked who it is
        self._planner = Planner(controller, network, seed)
        self._most_bytes = most_bytes
        self._roll_call = RollCall(edge_servers, timeout_s)
        self._link = DataLink(most_bytes, timeout_s)
        self._fleet = Fleet()
        self.field = Field()
        self.clock_s = 0.0  # simulated seconds so far

    def call(self, server_round: int, nodes: Sequence[int], grid: Grid, roster: Roster) -> list[int]:
        """The nodes of devices that are there."""
        began, self.called = perf_counter(), True
        self._fleet = self._roll_call.take(server_round, nodes, grid)
        roster.introduce({index: device.node for index, device in self._fleet.devices.items()})
        self.field = Field(left_out=self._fleet.left_out, report_seconds=perf_counter() - began)
        return self._fleet.device_nodes

    def devices_of(self, grid: Grid) -> list[int]:
        """The nodes that are there and are no edge servers."""
        servers = {*self._fleet.servers.values()}
        return [node for node in grid.get_node_ids() if node not in servers]

    def open(
        self,
        server_round: int,
        messages: Sequence[Message],
        config_key: str,
        grid: Grid,
        roster: Roster,
        screen_data: ScreenData,
    ) -> list[Message]:
        """Decide, fetch data, and address everybody's message; `messages` are the sampled devices'."""
        by_node = {message.metadata.dst_node_id: message for message in messages}
        node_of = self._indexed(by_node, roster)
        if not node_of:
            return list(messages)
        plan = self._planner.decide(
            [*node_of],
            {index: device for index, device in self._fleet.devices.items() if index in node_of},
            self._fleet.servers.keys(),
            self._most_bytes,
        )
        config = messages[0].content.config_records[config_key]
        configs = {device: ConfigRecord({**config, **plan.settings(device)}) for device in node_of}
        began = perf_counter()
        fetched = self._link.fetch(server_round, plan.offloading, node_of, configs, grid, screen_data)
        plan = self._kept(server_round, plan, fetched)
        self.field = Field(
            plan=plan,
            sets=fetched.sets,
            kept_local=fetched.refused,
            left_out=[*self._fleet.left_out, *fetched.silent],
            report_seconds=self.field.report_seconds,
            offload_seconds=perf_counter() - began,
        )
        self.clock_s += float(plan.price.total_s)
        roster.settle(plan.homes)
        busy = {node_of[device] for device in (*fetched.sets, *fetched.gone)}
        known = {node: device for device, node in node_of.items()}
        addressed = [
            self._own(message, config_key, plan.settings(known[node]) if node in known else {})
            for node, message in by_node.items()
            if node not in busy
        ]
        return addressed + self._edge_messages(messages[0], config_key)

    def receive(
        self,
        replies: Iterable[Message],
        read: Callable[[Message], Contribution],
    ) -> tuple[list[Message], dict[int, Contribution], list[LeftOut]]:
        """The devices' own replies, what edge servers made of the data they got, and what was lost."""
        server_of = {self._fleet.servers[server]: server for server in by_server(self.field.sets)}
        replies = list(replies)
        own = [reply for reply in replies if reply.metadata.src_node_id not in server_of]
        trained: dict[int, Contribution] = {}
        lost = dict.fromkeys(sorted(server_of.values()), "no reply in time")
        for reply in replies:
            if (server := server_of.get(reply.metadata.src_node_id)) is None:
                continue
            usable, refused = screen([reply], partial(self._edge_contribution, server, read))
            if usable:
                trained[server] = usable[0]
                del lost[server]
            else:
                lost[server] = refused[0].reason
        left_out = [*self.field.left_out]
        left_out += [LeftOut(f"edge server {server}", reason) for server, reason in lost.items()]
        for server in lost:
            left_out += self.data_lost(server)
        return own, dict(sorted(trained.items())), left_out

    def data_lost(self, server: int) -> list[LeftOut]:
        """The devices whose data an edge server had and that are in nothing now."""
        reason = f"edge server {server} did not train on its data"
        return [
            LeftOut(f"device {device}", reason)
            for device, one in self.field.sets.items()
            if one.server == server
        ]

    # -- private ------------------------------------------------------------------------------------------

    def _indexed(self, by_node: Mapping[int, Message], roster: Roster) -> dict[int, int]:
        """Nodes of the sampled devices that are in the network, by index.

        A node that does not say who it is has no index before its first update; until then it takes any row
        of the network that is free.
        """
        known = {index: node for node in by_node if (index := roster.device(node)) is not None}
        taken = {*known, *self._fleet.devices}
        free = [index for index in range(self._planner.network.devices) if index not in taken]
        strangers = sorted(node for node in by_node if roster.device(node) is None)
        known |= dict(zip(free, strangers, strict=False))
        return {index: node for index, node in sorted(known.items()) if index < self._planner.network.devices}

    def _kept(self, server_round: int, plan: Plan, fetched: Fetched) -> Plan:
        """The plan without the data that did not come."""
        warn_kept(server_round, fetched.refused)
        kept = [device for device in plan.offloading if device not in fetched.sets]
        plan = plan.keeping(kept)
        self._planner.charge(plan)
        return plan

    def _own(self, message: Message, config_key: str, settings: Mapping[str, bool | int | float]) -> Message:
        """A message with settings of its own: the others share one config."""
        content = RecordDict(dict(message.content))
        content[config_key] = ConfigRecord({**content.config_records[config_key], **settings})
        metadata = message.metadata
        return Message(content, metadata.dst_node_id, metadata.message_type)

    def _edge_messages(self, like: Message, config_key: str) -> list[Message]:
        config = like.content.config_records[config_key]
        speeds = self._planner.network.edge_speeds_hz
        return [
            edge_message(
                like.content,
                ConfigRecord({**config, "edge-server": server, "cpu-hz": float(speeds[server])}),
                self._fleet.servers[server],
                sets,
            )
            for server, sets in by_server(self.field.sets).items()
        ]

    def _edge_contribution(
        self, server: int, read: Callable[[Message], Contribution], reply: Message
    ) -> Contribution:
        union, samples = union_of(by_server(self.field.sets)[server])
        own = read(reply)
        if own.samples != samples:
            raise ReplyError(
                f"an edge server must train on all {samples:g} samples sent, got {own.samples:g}"
            )
        return replace(own, reported_device=None, signature=b"", address=b"", union=union)
