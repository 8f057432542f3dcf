"""From Flower's reply messages to contributions that a round can use."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from flower_bfl.chain_adapter.records import DataUnion
from flower_bfl.errors import ReplyError
from flower_bfl.strategies._layout import Layout
from flower_bfl.types import ADDRESS_KEY, SIGNATURE_KEY, LeftOut

DEVICE_KEY = "device-index"
STEPS_KEY = "num-steps"
LONGEST_REASON = 300  # characters: reasons may quote strangers, and go to the ledger


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one device, or edge server, trained this round."""

    node: int  # Flower's node id, another one in every run
    reported_device: int | None  # the index that the client gives itself, if it does
    samples: float  # D_y
    steps: int  # e_y
    arrays: dict[str, NDArray[np.generic]]  # w_y
    signature: bytes  # of the update by a key of the device's own, 65 bytes; empty if there is none
    address: bytes  # of that key, by the device's own account, 20 bytes
    content: RecordDict  # the whole reply
    union: DataUnion | None = None  # what an edge server trained on


MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]
_T = TypeVar("_T")


def screen(
    replies: Iterable[Message],
    read: Callable[[Message], _T],
    device_of: Callable[[int], int | None] = lambda node: None,
) -> tuple[list[_T], list[LeftOut]]:
    """What `read` makes of the replies, and those that it refuses, with the rule that each breaks.

    Who is refused has the name of the device that its node is known to be, or else that it says it is.
    """
    usable: list[_T] = []
    left_out: list[LeftOut] = []
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise ReplyError(f"the client failed: {reply.error.reason}")
            usable.append(read(reply))
        except ReplyError as error:
            device = device_of(node)
            if device is None and not reply.has_error():
                device = _reported_device(reply.content)
            who = f"node {node}" if device is None else f"device {device}"
            left_out.append(LeftOut(who, str(error)[:LONGEST_REASON]))
    return usable, left_out


class Asked:
    """Messages on their way, and which replies are theirs; keeps no content."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._metadata = {m.metadata.dst_node_id: m.metadata for m in messages}  # ids come when they are sent

    def nodes(self, kind: str) -> set[int]:
        """Who was sent a message of a type."""
        return {node for node, one in self._metadata.items() if one.message_type == kind}

    def replies(self, received: Iterable[Message]) -> list[Message]:
        """The first reply of each node to what it was asked, in the order in which they came.

        Not those that the SuperLink makes up for nodes that are gone (they do not say which), nor replies to
        earlier messages, nor those of nodes that were not asked.
        """
        found: dict[int, Message] = {}
        for reply in received:
            node, to = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
            made_up = reply.has_error() and node == reply.metadata.dst_node_id
            asked = self._metadata.get(node)
            # Whoever wraps a strategy may have sent a copy, whose id nobody here knows.
            if asked is not None and not made_up and asked.message_id in ("", to):
                found.setdefault(node, reply)
        return list(found.values())


def contribution(reply: Message, layout: Layout, weighted_by_key: str) -> Contribution:
    """A reply to a training message; raises ReplyError if a round cannot use it."""
    metrics = weighted_metrics(reply, weighted_by_key)
    device = _reported_device(reply.content)
    if DEVICE_KEY in metrics and device is None:
        raise ReplyError(f"{DEVICE_KEY!r} must be an integer of at least 0, got {metrics[DEVICE_KEY]!r}")
    samples = _weight(metrics, weighted_by_key)
    steps = _whole_number(metrics, STEPS_KEY) if STEPS_KEY in metrics else 1
    if len(reply.content.array_records) != 1:
        raise ReplyError(f"a reply must hold one ArrayRecord, got {len(reply.content.array_records)}")
    arrays = as_arrays(next(iter(reply.content.array_records.values())))
    layout.check(arrays)
    signed = (signed_bytes(reply.content, SIGNATURE_KEY, 65), signed_bytes(reply.content, ADDRESS_KEY, 20))
    return Contribution(reply.metadata.src_node_id, device, samples, steps, arrays, *signed, reply.content)


def evaluation(reply: Message, weighted_by_key: str) -> RecordDict:
    """A reply to an evaluation message; raises ReplyError if a mean over replies cannot use it."""
    weighted_metrics(reply, weighted_by_key)
    return reply.content


def weighted_metrics(reply: Message, weighted_by_key: str) -> MetricRecord:
    """The metrics of a reply; raises ReplyError if a mean over replies cannot use them."""
    if len(reply.content.metric_records) != 1:
        raise ReplyError(f"a reply must hold one MetricRecord, got {len(reply.content.metric_records)}")
    metrics = next(iter(reply.content.metric_records.values()))
    if weighted_by_key not in metrics:
        raise ReplyError(f"the MetricRecord must have the key {weighted_by_key!r}, got {sorted(metrics)}")
    _weight(metrics, weighted_by_key)
    return metrics


def _weight(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    if isinstance(value, list) or not 0 < value <= 2**53:
        raise ReplyError(f"{key!r} must be a positive number of at most 2**53, got {value!r}")
    return float(value)


def _whole_number(metrics: MetricRecord, key: str) -> int:
    value = metrics[key]
    if isinstance(value, list) or not 1 <= value < 2**31 or value != int(value):
        raise ReplyError(f"{key!r} must be a whole number from 1 to 2**31 - 1, got {value!r}")
    return int(value)


def _reported_device(content: RecordDict) -> int | None:
    for metrics in content.metric_records.values():
        value = metrics.get(DEVICE_KEY)
        if isinstance(value, int) and 0 <= value < 2**31:
            return value
    return None


def signed_bytes(content: RecordDict, key: str, size: int) -> bytes:
    """What a reply has under a key, if anything; raises ReplyError unless it is so many bytes."""
    for config in content.config_records.values():
        if key in config:
            value = config[key]
            if not isinstance(value, bytes) or len(value) != size:
                raise ReplyError(f"{key!r} must be {size} bytes, got {value!r:.80}")
            return value
    return b""


def as_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """All arrays of a record; raises ReplyError if one cannot be read."""
    if odd := [name for name, array in record.items() if bytes(array.data[:2]) == b"PK"]:
        raise ReplyError(f"arrays must be numpy arrays, got an archive as {odd[0]!r:.80}")
    try:
        return {name: as_numpy(array) for name, array in record.items()}
    except Exception as error:  # whatever numpy makes of a stranger's bytes
        raise ReplyError(f"arrays must be readable as numpy arrays: {error!r:.200}") from error


def as_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Arrays as Flower sends them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def as_numpy(array: Array) -> NDArray[np.generic]:
    """The array's values, read-only; raises what numpy does for anything else.

    Not Flower's reader: it copies them, which takes as long as averaging them, opens archives, too, and makes
    room for as many as a file says that it has.
    """
    data = array.data
    if array.stype != "numpy.ndarray" or bytes(data[:8]) != b"\x93NUMPY\x01\x00":
        raise ValueError(f"not a numpy.ndarray in the npy format 1.0, but {array.stype!r:.40}, {data[:8]!r}")
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _npy_header(bytes(data[:start]))
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    stream = BytesIO(header)
    npy.read_magic(stream)
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    return shape, fortran, dtype


def averaged(
    contents: Sequence[RecordDict], weighted_by_key: str, average: MetricsAggregation
) -> MetricRecord:
    """The replies' metrics averaged by a Flower aggregation function: what all replies report alike."""
    named = [next(iter(content.metric_records.items())) for content in contents]
    shared = set.intersection(
        *({(key, _length(value)) for key, value in record.items()} for _, record in named)
    )
    if any(len(record) > len(shared) for _, record in named):
        keys = {key for key, _ in shared}
        contents = [
            RecordDict({name: MetricRecord({key: record[key] for key in record if key in keys})})
            for name, record in named
        ]
    metrics = average(list(contents), weighted_by_key)
    return MetricRecord({key: value for key, value in metrics.items() if key != DEVICE_KEY})


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None
