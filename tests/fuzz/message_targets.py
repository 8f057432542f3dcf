"""Fuzz targets: Flower's messages, those of clients to the server and the other way round."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from fuzzed import FuzzedData
from target_registry import DEVICE, KEYS, MODEL, image_archive, nothing, structured, target

from flower_bfl.errors import FlowerBFLError, ReplyError
from flower_bfl.learning.offloading import offloadable
from flower_bfl.learning.signing import sign_updates
from flower_bfl.strategies._fleet import RollCall
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._offloading import DataLink
from flower_bfl.strategies._replies import as_numpy, averaged, contribution, evaluation, screen
from flower_bfl.types import DATA_RECORD, EDGE, OFFLOAD, OWN_RECORD


def _npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


@cache
def _arrays() -> list[bytes]:
    return [
        _npy(np.ones((2, 3), np.float32)), _npy(np.array(4)), _npy(np.asfortranarray(np.ones((2, 2), ">f8"))),
        _npy(np.zeros(0, "U3")), image_archive(np.savez),
    ]  # fmt: skip


@target(_arrays, Exception)  # any, and no other than numpy's: `as_arrays` turns them into a ReplyError
def array(content: bytes) -> None:
    found = as_numpy(Array("float32", (), "numpy.ndarray", content))
    assert found.nbytes <= len(content) and not found.dtype.hasobject


def _metrics(data: FuzzedData) -> MetricRecord:
    metrics = {"num-examples": 4, "num-steps": 2, "device-index": 1, "loss": 0.5}
    for _ in range(data.whole(3)):
        name = data.one_of([*metrics, "other"])
        value = data.one_of(
            [0, -1, 2**31, 2**53 + 1, 2**63 - 1, 0.5, float("nan"), float("inf"), 1e308, [], [1, 2], [0.5]]
        )
        metrics[name] = value  # type: ignore[assignment]
    return MetricRecord({name: value for name, value in metrics.items() if data.whole(15)})


def _config(data: FuzzedData, right: Mapping[str, Any]) -> ConfigRecord:
    """A record with other values, of the kinds that Flower has."""
    values = dict(right)
    for _ in range(data.whole(3)):
        name = data.one_of([*values, "failed", "gain-db", "flower-bfl-signature", "x"])
        odd = [
            0,
            -1,
            2**31,
            2**53 + 1,
            2**63 - 1,
            -(2**63),
            0.5,
            float("nan"),
            float("inf"),
            True,
            False,
            "",
            "device",
        ]
        odd += [
            "edge-server",
            "\x1b[2K",
            b"",
            bytes(20),
            bytes(65),
            [1, 2],
            [0.5, -3.0],
            ["a"],
            [b""],
            [True],
            "f" * 40,
        ]
        values[name] = data.one_of(odd)
    return ConfigRecord({name: value for name, value in values.items() if data.whole(15)})


def _array(data: FuzzedData, right: np.ndarray) -> Array:
    content = data.mutated(_npy(right)) if data.whole(3) == 3 else _npy(right)
    return Array(
        str(right.dtype), right.shape, "torch.x" if data.whole(31) == 31 else "numpy.ndarray", content
    )


def _model(data: FuzzedData, right: Mapping[str, np.ndarray] = MODEL) -> ArrayRecord:
    named = {name: _array(data, each) for name, each in right.items() if data.whole(31) != 31}
    if data.whole(15) == 15:
        named["odd"] = Array(np.array(data.one_of([True, 1j, "text", np.datetime64(1, "s"), np.float16(1)])))
    return ArrayRecord(named)


def message_from(content: RecordDict, node: int = 5, kind: str = "train") -> Message:
    message = Message(content, node, kind)
    message.metadata.__dict__["_src_node_id"] = node
    return message


@structured(nothing, ReplyError)
def reply(data: FuzzedData) -> None:
    content = RecordDict({"arrays": _model(data), "metrics": _metrics(data)})
    if data.whole(3) == 3:
        content["own"] = _config(data, {"flower-bfl-signature": bytes(65), "flower-bfl-address": bytes(20)})
    message = message_from(content)
    layout = Layout.of(MODEL)
    usable, left_out = screen([message], lambda reply: contribution(reply, layout, "num-examples"))
    assert len(usable) + len(left_out) == 1
    for one in usable:
        layout.vector(one.arrays)[0:6]
        other = RecordDict({"metrics": _metrics(data)})
        with suppress(ReplyError):
            both = [one.content, evaluation(message_from(other), "num-examples")]
            averaged(both, "num-examples", aggregate_metricrecords)


class _Grid:
    """Nodes that say anything, some twice, and some who were not asked."""

    def __init__(self, data: FuzzedData, answer: Callable[[FuzzedData], RecordDict]) -> None:
        self._data, self._answer = data, answer

    def send_and_receive(self, messages: Any, timeout: float | None = None) -> list[Message]:
        nodes = [message.metadata.dst_node_id for message in messages]
        replies = [message_from(self._answer(self._data), node) for node in nodes if self._data.whole(7)]
        for _ in range(self._data.whole(2)):
            replies.append(message_from(self._answer(self._data), self._data.one_of([*nodes, 99])))
        if self._data.whole(7) == 7:
            asked = Message(RecordDict(), self._data.one_of([*nodes, 99]), "query")
            error = Message(Error(self._data.whole(9), "x"), reply_to=asked)
            error.metadata.__dict__["_src_node_id"] = self._data.one_of([*nodes, 99])
            replies.append(error)
        return replies


@structured(nothing)
def roll_call(data: FuzzedData) -> None:
    device = {"role": "device", "index": 1, "may-offload": True, "num-examples": 4, "data-bytes": 99}
    device |= {"work-cycles": 1e9, "cpu-hz": 1e9, "gain-db": [-90.0, -100.0]}
    server = {"role": "edge-server", "index": 1}
    call = RollCall(2, "config", 1.0)

    def answer(data: FuzzedData) -> RecordDict:
        return RecordDict(
            {data.one_of([OWN_RECORD, OWN_RECORD, "x"]): _config(data, data.one_of([device, server]))}
        )

    for _ in range(2):
        fleet = call.take([1, 2, 3], ConfigRecord(), _Grid(data, answer))
        assert {*fleet.device_nodes, *fleet.servers.values()} <= {1, 2, 3}
        for one in fleet.left_out:
            one.reason.encode()


@structured(nothing)
def offloaded_data(data: FuzzedData) -> None:
    samples = {"x": np.ones((3, 2), np.float32), "y": np.arange(3)}
    link = DataLink(200, "config", 1.0, lambda server_round, sets: {})

    def answer(data: FuzzedData) -> RecordDict:
        return RecordDict({DATA_RECORD if data.whole(15) else "x": _model(data, samples)})

    wanted = {device: device % 2 for device in range(1 + data.whole(2))}
    nodes = {device: 10 + device for device in range(5)}
    configs = {node: ConfigRecord() for node in nodes.values()}
    with _silent():
        fetched = link.fetch(1, wanted, nodes, configs, _Grid(data, answer))
    assert fetched.sets.keys() <= wanted.keys()
    assert all(sum(each.nbytes for each in one.arrays.values()) <= 200 for one in fetched.sets.values())


@structured(nothing, FlowerBFLError)
def asked_client(data: FuzzedData) -> None:
    """What a device and an edge server make of a server's messages."""
    samples = {"x": np.ones((3, 2), np.float32), "y": np.arange(3)}
    app = ClientApp(mods=[sign_updates(KEYS(DEVICE))])

    @offloadable(app, lambda message, context: samples)
    def train(message: Message, context: Context, given: Any) -> Message:
        metrics = MetricRecord({"num-examples": len(given), "num-steps": 1})
        return Message(RecordDict({"arrays": ArrayRecord(_right()), "metrics": metrics}), reply_to=message)

    told = {"server-round": 1, "edge-server": 0, "edge-servers": 2, "most-bytes": 10**6, "ledger-chain-id": 1}
    told |= {"ledger-contract": "ab" * 20, "ledger-learning-rate": 1.0}
    kind = data.one_of(["train", EDGE, OFFLOAD, "query.report"])
    content = RecordDict({"arrays": _model(data), "config": _config(data, told)})
    if kind == EDGE and data.whole(15):
        content[DATA_RECORD] = _model(data, samples)
    context = Context(1, 5, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    with _silent():
        app(message_from(content, kind=kind), context)


@contextmanager
def _silent() -> Iterator[None]:
    logger = getLogger("flwr")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


@cache
def _right() -> dict[str, Array]:
    return {name: Array(each) for name, each in MODEL.items()}
