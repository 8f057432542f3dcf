"""A federation of devices and edge servers in one process: real messages, real ClientApps, no processes."""

import random
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.learning.offloading import Data, offloadable

Fault = Callable[[Message], Message | None]  # a reply in place of the app's; None: no reply at all


class Field:
    """Grid whose nodes run ClientApps, with random ids and replies in random order, as Flower's.

    `faults` are by partition: what a node does instead of answering properly, or None to go on as usual by
    raising LookupError.
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
        self._faults = faults or {}
        self.sent: list[tuple[int, Message]] = []  # (partition, message), in order
        self.gone: set[int] = set()  # partitions that are not connected any more

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
        if place in self._faults:
            try:
                return _from(self._faults[place](copy), message)
            except LookupError:
                pass
        try:
            return _from(self._apps[place](copy, self._contexts[place]), message)
        except Exception as error:
            return Message(Error(code=2, reason=repr(error)), reply_to=message)

    def kinds(self, place: int) -> list[str]:
        """Types of the messages that a partition got, in order."""
        return [message.metadata.message_type for at, message in self.sent if at == place]


def _from(reply: Message | None, message: Message) -> Message | None:
    """The reply as of the original message."""
    if reply is None:
        return None
    return Message(reply.error if reply.has_error() else reply.content, reply_to=message)


def points(device: int, server_round: int = 0, samples: int | None = None) -> dict[str, np.ndarray]:
    """Samples of a linear relation, other ones for each device."""
    rng = np.random.default_rng([device, server_round])
    x = rng.standard_normal((samples or 12 + 5 * device, 4)).astype(np.float32)
    y = x @ np.arange(1, 5, dtype=np.float32) + device / 10
    return {"x": x, "y": y}


def gradient_descent(
    weights: np.ndarray, data: Mapping[str, np.ndarray], steps: int, rate: float
) -> np.ndarray:
    """Least squares by full gradient steps, float32 in and out."""
    w = weights.astype(np.float64)
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64)
    for _ in range(steps):
        w = w - rate * x.T @ (x @ w - y) / len(y)
    return w.astype(np.float32)


def least_squares_app(
    data: Callable[[Message, Context], Data], *, edge_steps: int = 7, mods: list | None = None, **offloading
) -> ClientApp:
    """An app whose devices and edge servers fit a line, with step counts of their own."""
    app = ClientApp(mods=mods)

    @offloadable(app, data, **offloading)
    def train(message: Message, context: Context, data: Data) -> Message:
        config = message.content["config"]
        at_edge = "devices" in config
        steps = edge_steps if at_edge else 2 + int(context.node_config["partition-id"]) % 3
        weights = message.content["arrays"]["w"].numpy()
        trained = gradient_descent(weights, data, steps, 0.05)
        metrics = {"num-examples": len(data["y"]), "num-steps": steps, "loss": float(np.abs(trained).sum())}
        content = {"arrays": ArrayRecord({"w": Array(trained)}), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return app


def own_points(message: Message, context: Context) -> dict[str, np.ndarray]:
    """Samples of the device with this context."""
    return points(int(context.node_config["partition-id"]))


def start_weights() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(4, np.float32))})
