"""A round with a controller: who is there, what is decided, whose data go where, what comes back."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from logging import WARNING
from time import perf_counter
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry
from flower_bfl.config import check_whole_number
from flower_bfl.controller.base import Controller
from flower_bfl.errors import ConfigError, PayloadError, ReplyError
from flower_bfl.network import NetworkConfig
from flower_bfl.strategies._fleet import Fleet, RollCall
from flower_bfl.strategies._journal import logger
from flower_bfl.strategies._offloading import (
    DataLink,
    Offloaded,
    ScreenData,
    by_server,
    edge_message,
    union_of,
)
from flower_bfl.strategies._plan import Plan, Planner, Settings
from flower_bfl.strategies._replies import Contribution, screen
from flower_bfl.strategies._roster import Roster
from flower_bfl.types import LeftOut, RoundReport

Wait = Callable[[Callable[[], list[int]], int], list[int]]
"""Returns what a function gives once there are so many, or time is up."""


@dataclass(frozen=True, eq=False)
class DecidedRound:
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

    def metrics(self, clock_s: float) -> dict[str, float]:
        """For the round's metrics."""
        if self.plan is None:
            return {}
        return {
            "offloaded": len(self.sets),
            "kept-local": len(self.kept_local),
            "latency-s": float(self.plan.price.total_s),
            "simulated-seconds": clock_s,
            "controller-fallback": int(bool(self.plan.fallback)),
        }

    def noted(self, report: RoundReport, clock_s: float) -> RoundReport:
        """The report with what was decided; `clock_s` is the simulated time at the end of the round."""
        signed = [device for device, one in self.sets.items() if one.signature]
        report = replace(
            report,
            signed_devices=tuple(sorted({*report.signed_devices, *signed})),
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
    """Puts a controller's decisions into a strategy's rounds, one after the other.

    Parameters
    ----------
    controller, network, edge_servers, p2p_rounds, most_bytes, timeout_s, seed : see `ConsensusBFL`.
    key : of the config in messages.
    roster : learns who the devices are, and where they belong.
    screen_data : devices whose data sets are not signed as they have to be, and why.
    """

    def __init__(
        self,
        controller: Controller,
        network: NetworkConfig | None,
        *,
        edge_servers: int,
        p2p_rounds: int,
        most_bytes: int,
        timeout_s: float,
        seed: int,
        key: str,
        roster: Roster,
        screen_data: ScreenData,
    ) -> None:
        network = replace(_checked_network(controller, network, edge_servers), p2p_rounds=p2p_rounds)
        check_whole_number("most_offloaded_bytes", most_bytes, 1, 2**31 - 1)
        if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not timeout_s > 0:
            raise ConfigError(f"`exchange_timeout_s` must be a positive number, got {timeout_s!r}")
        self.name = type(controller).__name__
        self._expected = network.devices + edge_servers
        self._gathered = False  # whether a round began before
        self._goes_on = False  # with a run that was broken off
        self._planner = Planner(controller, network, seed)
        self._roll_call = RollCall(edge_servers, key, timeout_s)
        self._link = DataLink(most_bytes, key, timeout_s, screen_data)
        self._most_bytes = most_bytes
        self._key = key
        self._roster = roster
        self._fleet = Fleet()
        self.now = DecidedRound()
        self.clock_s = 0.0  # simulated seconds so far

    def places(self) -> dict[str, object]:
        """Where edge servers and devices are, see `Planner.places`."""
        return self._planner.places()

    def memory(self) -> dict[str, NDArray[Any]]:
        """What is needed to go on with the next round, by name."""
        own = {"clock-s": np.array(self.clock_s), "schemas": self._link.memory()}
        return self._planner.memory() | own

    def restore(self, memory: Mapping[str, NDArray[Any]], server_round: int) -> None:
        """Go on from what `memory` gave after a round; raises PayloadError."""
        try:
            self._planner.restore(memory, server_round)
            self.clock_s = float(memory["clock-s"])
            self._link.restore(memory["schemas"])
            self._goes_on = True
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise PayloadError(f"a STATE payload must be of a network: {error!r}") from error

    def gather(
        self, server_round: int, config: ConfigRecord, grid: Grid, wanted: Mapping[str, int], wait: Wait
    ) -> list[int]:
        """The nodes of devices that report, or none if they are fewer than the largest number in `wanted`.

        Devices whose reports cannot be used are worth waiting for in the first round only. If they are too
        few then, the run ends: there may be something wrong with all of them.
        """
        argument, needed = max(wanted.items(), key=lambda item: item[1])
        first, self._gathered = not self._gathered, True
        call = partial(self._call, ConfigRecord({**config, "server-round": server_round}), grid)
        wait(lambda: list(grid.get_node_ids()), self._expected if first else needed)
        devices = wait(call, needed) if first else call()
        if len(devices) >= needed:
            return devices
        if first and not self._goes_on:
            why = "".join(f"; {one.who}: {one.reason}" for one in self._fleet.left_out[:1])
            raise ConfigError(
                f"`{argument}` must be at most the number of devices that report, "
                f"got {needed} with {len(devices)}{why}"
            )
        logger.log(
            WARNING, "round %d: nobody trains, %d devices of %d report", server_round, len(devices), needed
        )
        return []

    def devices_of(self, grid: Grid) -> list[int]:
        """The nodes that are there and known to be devices."""
        return [node for node in grid.get_node_ids() if self._roll_call.is_device(node)]

    def open(
        self, server_round: int, messages: Sequence[Message], grid: Grid, away: Collection[int] = ()
    ) -> list[Message]:
        """Decide, fetch data, and address everybody's message; `messages` are the sampled devices'.

        Nobody sends anything to edge servers that are away.
        """
        by_node = {message.metadata.dst_node_id: message for message in messages}
        node_of = self._indexed(by_node)
        if not node_of:
            return list(messages)

        # 1. What the controller decides for those who are there.
        fleet = self._fleet
        there = [server for server in fleet.servers if server not in away]
        plan = self._planner.decide([*node_of], fleet.devices, there, self._most_bytes)
        if plan.fallback:
            logger.log(WARNING, "round %d: %s", server_round, plan.fallback)

        # 2. The data sets come; who does not send what it should trains itself.
        began, config = perf_counter(), messages[0].content.config_records[self._key]
        wanted, told = plan.offloading, plan.settings()
        configs = {node_of[device]: ConfigRecord({**config, **told[device]}) for device in wanted}
        fetched = self._link.fetch(server_round, wanted, node_of, configs, grid)
        plan = self._planner.carried_out(plan, wanted.keys() - fetched.sets.keys())
        self._roster.settle(plan.homes)
        self.clock_s += float(plan.price.total_s)
        self.now = DecidedRound(
            plan=plan,
            sets={device: one.sent() for device, one in fetched.sets.items()},
            kept_local=fetched.refused,
            left_out=[*fleet.left_out, *fetched.silent],
            report_seconds=self.now.report_seconds,
            offload_seconds=perf_counter() - began,
        )

        # 3. Everybody is told what concerns it.
        busy = {node_of[device] for device in (*fetched.sets, *fetched.gone)}
        settings = {node_of[device]: each for device, each in self._at_home(plan).items()}
        own = [
            self._with(message, settings.get(node, {}))
            for node, message in by_node.items()
            if node not in busy
        ]
        return own + self._edge_messages(messages[0], fetched.sets)

    def receive(
        self,
        replies: Iterable[Message],
        read: Callable[[Message], Contribution],
    ) -> tuple[list[Message], dict[int, Contribution], list[LeftOut]]:
        """The devices' own replies, what edge servers made of the data they got, and what was lost."""
        server_of = {self._fleet.servers[server]: server for server in by_server(self.now.sets)}
        own: list[Message] = []
        trained: dict[int, Contribution] = {}
        lost = dict.fromkeys(sorted(server_of.values()), "no reply in time")
        for reply in replies:
            if (server := server_of.get(reply.metadata.src_node_id)) is None:
                own.append(reply)
                continue
            usable, refused = screen([reply], partial(self._edge_contribution, server, read))
            if usable:
                trained[server] = usable[0]
                del lost[server]
            else:
                lost[server] = refused[0].reason
        left_out = [*self.now.left_out]
        for server, reason in lost.items():
            left_out += self.lost(server, reason)
        return own, dict(sorted(trained.items())), left_out

    def lost(self, server: int, reason: str) -> list[LeftOut]:
        """An edge server that is left out, and the devices whose data it had."""
        gone = f"edge server {server} had its data and was left out"
        theirs = [device for device, one in self.now.sets.items() if one.server == server]
        return [
            LeftOut(f"edge server {server}", reason),
            *(LeftOut(f"device {device}", gone) for device in theirs),
        ]

    # -- private ------------------------------------------------------------------------------------------

    def _call(self, config: ConfigRecord, grid: Grid) -> list[int]:
        """The nodes of devices that answer; `config` is the round's."""
        began = perf_counter()
        self._fleet = self._roll_call.take(grid.get_node_ids(), config, grid)
        self._roster.introduce({index: device.node for index, device in self._fleet.devices.items()})
        self.now = DecidedRound(left_out=self._fleet.left_out, report_seconds=perf_counter() - began)
        return self._fleet.device_nodes

    def _indexed(self, by_node: Mapping[int, Message]) -> dict[int, int]:
        """Nodes of the sampled devices that are in the network, by index.

        A node that does not say who it is has no index before its first update; until then it takes any row
        of the network that is free.
        """
        device = self._roster.device
        known = {index: node for node in by_node if (index := device(node)) is not None}
        strangers = sorted(node for node in by_node if device(node) is None)
        known |= zip(self._roster.free(), strangers, strict=False)
        return {index: node for index, node in sorted(known.items()) if index < self._planner.network.devices}

    def _at_home(self, plan: Plan) -> dict[int, Settings]:
        """Everybody's settings; who trains itself belongs to the edge server that the roster says."""
        told = plan.settings()
        for device, each in told.items():
            if not each["offload"] and (home := self._roster.server(device)) is not None:
                each["edge-server"] = home
        return told

    def _with(self, message: Message, settings: Mapping[str, Any]) -> Message:
        """A message with settings of its own: the others share one config."""
        config = ConfigRecord({**message.content.config_records[self._key], **settings})
        content, metadata = RecordDict({**message.content, self._key: config}), message.metadata
        return Message(content, dst_node_id=metadata.dst_node_id, message_type=metadata.message_type)

    def _edge_messages(self, like: Message, sets: Mapping[int, Offloaded]) -> list[Message]:
        messages = []
        for server, theirs in by_server(sets).items():
            speed_hz = float(self._planner.network.edge_speeds_hz[server])
            own = {"edge-server": server, "cpu-hz": speed_hz, "devices": sorted(theirs)}
            messages.append(edge_message(self._with(like, own), self._fleet.servers[server], theirs))
        return messages

    def _edge_contribution(
        self, server: int, read: Callable[[Message], Contribution], reply: Message
    ) -> Contribution:
        union, samples = union_of(by_server(self.now.sets)[server])
        own = read(reply)
        if own.samples != samples:
            raise ReplyError(
                f"an edge server must train on all {samples:g} samples sent, got {own.samples:g}"
            )
        return replace(own, reported_device=None, signature=b"", address=b"", union=union)


def _checked_network(
    controller: Controller, network: NetworkConfig | None, edge_servers: int
) -> NetworkConfig:
    """The network to decide in; raises ConfigError if controller, network and edge servers do not fit."""
    if isinstance(controller, type) or not callable(getattr(controller, "decide", None)):
        raise ConfigError(f"`controller` must be an object with a method `decide`, got {controller!r:.80}")
    own = getattr(controller, "network", None)
    network = own if network is None else network
    if not isinstance(network, NetworkConfig):
        raise ConfigError(f"`network` must be a NetworkConfig, or the controller's own, got {network!r:.80}")
    if network.edge_servers != edge_servers:
        raise ConfigError(
            f"`network` must have as many edge servers as `edge_servers`, {edge_servers}, "
            f"got {network.edge_servers}"
        )
    if isinstance(own, NetworkConfig) and (own.edge_servers, own.sub_channels) != (
        edge_servers,
        network.sub_channels,
    ):
        raise ConfigError(
            f"`network` must have the controller's edge servers and sub-channels, {own.edge_servers} of "
            f"{own.sub_channels}, got {edge_servers} of {network.sub_channels}"
        )
    return network
