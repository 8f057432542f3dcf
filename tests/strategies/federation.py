"""A federation in a list: real Flower messages, and devices that are functions."""

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

Device = Callable[[int, dict[str, np.ndarray]], RecordDict]


class Federation:
    """Grid whose nodes answer at once, with random ids and in random order, as Flower's do."""

    def __init__(self, devices: Sequence[Device], seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self.nodes = self._random.sample(range(1, 10**9), len(devices))
        self._devices = dict(zip(self.nodes, devices, strict=True))

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        replies = [self._reply(message) for message in messages]
        self._random.shuffle(replies)
        return replies

    def _reply(self, message: Message) -> Message:
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        try:
            content = self._devices[message.metadata.dst_node_id](
                message.content["config"]["server-round"], arrays
            )
        except RuntimeError as error:
            return Message(Error(code=0, reason=str(error)), reply_to=message)
        return Message(content, reply_to=message)


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def values(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def reply(arrays: dict[str, np.ndarray], **metrics: object) -> RecordDict:
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    return RecordDict({"arrays": record(arrays), "metrics": MetricRecord(named)})


def walker(device: int, *, samples: int | None = None, steps: int = 4, named: bool = False) -> Device:
    """A device that moves every array by a random step of its own and of the round."""
    own = {"num_examples": samples or 10 + 7 * device, "num_steps": steps, "loss": 1 / (1 + device)}
    if named:
        own["device-index"] = device

    def train(server_round: int, arrays: dict[str, np.ndarray]) -> RecordDict:
        rng = np.random.default_rng([device, server_round])
        moved = {
            name: (array + 0.1 * rng.standard_normal(array.shape)).astype(array.dtype)
            if np.issubdtype(array.dtype, np.floating)
            else array + device
            for name, array in arrays.items()
        }
        return reply(moved, **own)

    return train


def initial(seed: int = 0) -> ArrayRecord:
    rng = np.random.default_rng(seed)
    shapes = {"layer.weight": (6, 5), "layer.bias": (5,), "head": (5, 3)}
    return record({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


EXACT = {"graph": "complete", "mixing": "metropolis", "p2p_rounds": 1}  # one step of it is the exact mean


def run(strategy, devices, rounds=3, arrays=None, seed=None, **start):
    result = strategy.start(Federation(devices, seed), arrays or initial(), num_rounds=rounds, **start)
    return values(result.arrays)


def assert_models_close(model, expected):
    assert list(model) == list(expected)
    for name in model:
        assert model[name].dtype == expected[name].dtype
        np.testing.assert_allclose(model[name], expected[name], rtol=2e-5, atol=2e-6)


def fednova(devices, rounds):
    """Wang et al., Tackling the objective inconsistency problem in heterogeneous FL, 2020, for vanilla SGD:
    w ← w − τ_eff Σ_i p_i d_i, d_i = (w − w_i)/τ_i, τ_eff = Σ_i p_i τ_i, written out in float64."""
    model = {name: array.astype(float) for name, array in values(initial()).items()}
    for server_round in range(1, rounds + 1):
        sent = {name: array.astype(np.float32) for name, array in model.items()}
        trained = [device(server_round, sent) for device in devices]
        n = np.array([r["metrics"]["num-examples"] for r in trained], float)
        tau = np.array([r["metrics"]["num-steps"] for r in trained], float)
        p = n / n.sum()
        for name in model:
            after = np.array([r["arrays"][name].numpy() for r in trained], float)
            direction = np.tensordot(p / tau, sent[name] - after, axes=1)
            model[name] = sent[name] - (p * tau).sum() * direction
    return {name: array.astype(np.float32) for name, array in model.items()}
