"""A federation of devices and edge servers in one process: real messages, real ClientApps, no processes."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.learning.offloading import Data, offloadable
from flower_bfl.network import LOCAL, Decision, NetworkConfig, NetworkState
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Tasks
from flower_bfl.types import DeviceReport

Fault = Callable[
    [Message], Message | RecordDict | None
]  # what comes instead of the app's reply; None: nothing

RATE = 0.05  # of gradient descent
EDGE_STEPS = 7  # of edge server 0; each next one takes one more

UNPLUGGED = "Node Unavailable"  # Flower's reason


class Field:
    """Grid whose nodes run ClientApps, with random ids and replies in random order, as Flower's.

    `faults` are by partition: what a node does instead of answering; with LookupError it answers after all.
    """

    def __init__(
        self,
        apps: list[ClientApp],
        *,
        seed: int = 0,
        configs: Mapping[int, dict] | None = None,
        faults: Mapping[int, Fault] | None = None,
    ) -> None:
        self._random = random.Random(seed)
        ids = self._random.sample(range(1, 10**9), len(apps))
        self.partition_of = {node: place for place, node in enumerate(ids)}
        self._apps = apps
        self._contexts = [
            Context(1, node, self._config(place, configs or {}), RecordDict(), {})
            for node, place in self.partition_of.items()
        ]
        self.faults = dict(faults or {})
        self.sent: list[tuple[int, Message]] = []  # (partition, message), in order
        self.gone: set[int] = set()  # partitions that are not connected

    def _config(self, place: int, configs: Mapping[int, dict]) -> dict:
        return {"partition-id": place, "num-partitions": len(self._apps)} | configs.get(place, {})

    def get_node_ids(self) -> Iterable[int]:
        return [node for node, place in self.partition_of.items() if place not in self.gone]

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        replies = [reply for message in messages if (reply := self._reply(message)) is not None]
        self._random.shuffle(replies)
        return replies

    def _reply(self, message: Message) -> Message | None:
        place = self.partition_of[message.metadata.dst_node_id]
        self.sent.append((place, message))
        # what a node gets is a copy of its own, as if it had come by the network
        content = RecordDict(dict(message.content))
        copy = Message(content, message.metadata.dst_node_id, message.metadata.message_type)
        if place in self.faults:
            try:
                return _from(self.faults[place](copy), message)
            except LookupError:
                pass
        try:
            return _from(self._apps[place](copy, self._contexts[place]), message)
        except Exception as error:
            return Message(Error(code=2, reason=repr(error)), reply_to=message)

    def kinds(self, place: int) -> list[str]:
        """Types of the messages that a partition got, in order."""
        return [message.metadata.message_type for at, message in self.sent if at == place]

    def told(self, kind: str, server_round: int) -> dict[int, ConfigRecord]:
        """Configs of the messages of one type in a round, by partition."""
        return {
            place: message.content["config"]
            for place, message in self.sent
            if message.metadata.message_type == kind
            and message.content["config"]["server-round"] == server_round
        }


def _from(reply: Message | RecordDict | None, message: Message) -> Message | None:
    """The reply as of the original message."""
    if reply is None or isinstance(reply, RecordDict):
        return None if reply is None else Message(reply, reply_to=message)
    if reply.has_error() and reply.error.reason == UNPLUGGED:
        made_up = Message(reply.error, reply_to=message)
        # the SuperLink's own message: from itself to itself, so that it does not say which node is gone
        made_up.metadata.__dict__["_src_node_id"] = made_up.metadata.__dict__["_dst_node_id"] = 1
        return made_up
    return Message(reply.error if reply.has_error() else reply.content, reply_to=message)


def silent(message: Message) -> None:
    """No reply at all."""


def unplugged(message: Message) -> Message:
    """What Flower's SuperLink makes up for a node that has lost its power."""
    return Message(Error(code=5, reason=UNPLUGGED), reply_to=message)


def failing(reason: str = "out of battery", code: int = 2) -> Fault:
    """An error of Flower's in place of a reply; 2: the app raised, 5: the node is not there."""
    return lambda message: Message(Error(code=code, reason=reason), reply_to=message)


def answering(**records: Any) -> Fault:
    """A reply with these records, - for _ in their names."""
    return lambda message: RecordDict({name.replace("_", "-"): record for name, record in records.items()})


def when(kind: str, fault: Fault, *, rounds: Iterable[int] | None = None) -> Fault:
    """The fault for messages of one type only, and in these rounds only."""

    def reply(message: Message) -> Message | RecordDict | None:
        server_round = message.content["config"]["server-round"]
        if message.metadata.message_type != kind or (rounds is not None and server_round not in rounds):
            raise LookupError
        return fault(message)

    return reply


def either(*faults: Fault) -> Fault:
    """The first of some faults that there is."""

    def reply(message: Message) -> Message | RecordDict | None:
        for fault in faults:
            try:
                return fault(message)
            except LookupError:
                continue
        raise LookupError

    return reply


def in_turn(kind: str, faults: Sequence[Fault]) -> Fault:
    """One fault a round, for messages of one type; none once they are through."""

    def reply(message: Message) -> Message | RecordDict | None:
        return when(kind, faults[message.content["config"]["server-round"] - 1])(message)

    return reply


def points(device: int, server_round: int = 0, samples: int | None = None) -> dict[str, np.ndarray]:
    """Samples of a linear relation, other ones for each device."""
    rng = np.random.default_rng([device, server_round])
    x = rng.standard_normal((samples or 12 + 5 * device, 4)).astype(np.float32)
    y = x @ np.arange(1, 5, dtype=np.float32) + device / 10
    return {"x": x, "y": y}


def own_points(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Samples of the device with this context."""
    return points(int(context.node_config["partition-id"]))


def new_points(message: Message, context: Context) -> dict[str, np.ndarray]:
    """The same, with other samples in every round, and another number of them."""
    return arrived(int(context.node_config["partition-id"]), message.content["config"]["server-round"])


def arrived(device: int, server_round: int) -> dict[str, np.ndarray]:
    """What `new_points` gives a device in a round."""
    return points(device, server_round, 5 + (7 * device + 11 * server_round) % 23)


def gradient_descent(
    weights: np.ndarray, data: Mapping[str, np.ndarray], steps: int, rate: float
) -> np.ndarray:
    """Least squares by full gradient steps, float32 in and out."""
    w = weights.astype(np.float64)
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64)
    for _ in range(steps):
        w = w - rate * x.T @ (x @ w - y) / len(y)
    return w.astype(np.float32)


def local_steps(device: int) -> int:
    """e_n."""
    return 2 + device % 3


def fit(message: Message, context: Context, data: Data) -> Message:
    """A few steps of least squares, more of them on an edge server."""
    config = message.content["config"]
    if "devices" in config:
        steps = EDGE_STEPS + int(config["edge-server"])
    else:
        steps = local_steps(int(context.node_config["partition-id"]))
    trained = gradient_descent(message.content["arrays"]["w"].numpy(), data, steps, RATE)
    metrics = {"num-examples": len(data["y"]), "num-steps": steps, "loss": float(np.abs(trained).sum())}
    content = {"arrays": ArrayRecord({"w": Array(trained)}), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def evaluated(message: Message, context: Context) -> Message:
    """A reply to an evaluation."""
    metrics = MetricRecord({"num-examples": 3, "loss": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def least_squares_app(
    data: Callable[[Message, Context], Data] = own_points, *, mods: list | None = None, **offloading: Any
) -> ClientApp:
    """An app whose devices and edge servers fit a line, with step counts of their own."""
    app = ClientApp(mods=mods)
    offloadable(app, data, **offloading)(fit)
    app.evaluate()(evaluated)
    return app


def plain_app(data: Callable[[Message, Context], Data] = own_points, *, named: bool = True) -> ClientApp:
    """The same without offloading; its replies say which device it is, or not."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = fit(message, context, data(message, context))
        if named:
            reply.content["metrics"]["device-index"] = context.node_config["partition-id"]
        return reply

    app.evaluate()(evaluated)
    return app


def start_weights() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(4, np.float32))})


# -- networks and controllers --------------------------------------------------------------------------


def roomy(
    devices: int = 6, edge_servers: int = 2, sub_channels: int | None = None, **other: Any
) -> NetworkConfig:
    """A network in which energy never binds, so that any slots are feasible."""
    tasks = Tasks(energy_slack_j=(1e9, 1e9))
    return NetworkConfig(devices, edge_servers, sub_channels or devices, **{"tasks": tasks} | other)


def decision(network: NetworkConfig, state: NetworkState, servers: Sequence[int | None]) -> Decision:
    """Data of each row go to an edge server, or nowhere; equal shares of everything."""
    slot, used = [], [0] * network.edge_servers
    for server in servers:
        slot.append(LOCAL if server is None else server * network.sub_channels + used[server])
        if server is not None:
            used[server] += 1
    offloads = np.array(slot) != LOCAL
    most = network.blocks.hash_rate[1]
    return Decision(
        slot=np.array(slot),
        power_w=np.where(offloads, network.radio.power_w[1], 0.0),
        bandwidth_hz=np.where(offloads, network.radio.bandwidth_hz / network.sub_channels, 0.0),
        cpu_hz=np.where(offloads, 0.0, local_cpu_limit_hz(network, state)),
        hash_rate=np.full(len(slot), min(most, network.blocks.total_hash_rate / network.devices)),
    )


class Scripted:
    """A controller that decides as it was told, round by round, and in all later ones as in the last.

    An entry has an edge server, or None, for each row of the state.
    """

    def __init__(self, network: NetworkConfig, *script: Sequence[int | None]) -> None:
        self.network = network
        self.seen: list[NetworkState] = []  # shared by copies for fewer devices
        self._script = script

    def decide(self, state: NetworkState) -> Decision:
        servers = self._script[min(len(self.seen), len(self._script) - 1)]
        self.seen.append(state)
        return decision(self.network, state, servers)


class Sending:
    """A controller that has some devices send their data to an edge server each; it knows `numbered` ones."""

    def __init__(self, network: NetworkConfig, servers: Mapping[int, int]) -> None:
        self.network = network
        self._servers = servers

    def decide(self, state: NetworkState) -> Decision:
        devices = np.rint(state.work_cycles - 1e9).astype(int).tolist()
        return decision(self.network, state, [self._servers.get(device) for device in devices])


def numbered(message: Message, context: Context) -> DeviceReport:
    """A report by which `Sending` knows the device."""
    return DeviceReport(work_cycles=1e9 + int(context.node_config["partition-id"]))
