"""Data on their way: devices' data sets fetched for their edge servers, which train on the union (4)."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender
from flower_bfl.chain_adapter.records import DataSet, DataUnion
from flower_bfl.errors import PayloadError, ReplyError
from flower_bfl.strategies._journal import logger
from flower_bfl.strategies._replies import LONGEST_REASON, Asked, as_arrays, signed_bytes
from flower_bfl.types import ADDRESS_KEY, DATA_RECORD, EDGE, OFFLOAD, SIGNATURE_KEY, LeftOut

_GONE = (3, 4, 5, 8)  # Flower's error codes of nodes that are not there, or fell over

Arrays = dict[str, NDArray[np.generic]]
Schema = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]  # of each array: dtype, shape of a row


@dataclass(frozen=True, eq=False)
class Offloaded:
    """A data set that an edge server is to train on."""

    server: int
    arrays: Arrays  # none once they are on their way
    record: DataSet
    signature: bytes = b""  # of the DATA entry by a key of the device's own
    address: bytes = b""

    @property
    def schema(self) -> Schema:
        """What two data sets must have in common to be trained on together."""
        return tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(self.arrays.items()))

    def sent(self) -> "Offloaded":
        """The same without the arrays, which are not kept in memory while edge servers train."""
        return replace(self, arrays={})

    def entry(self, server_round: int, device: int) -> Entry:
        """What the ledger keeps of it: who sent how much to whom, and the digest."""
        payload = self.record.encode(server_round, self.server)
        sender = Sender(Role.DEVICE, device)
        return Entry(Kind.DATA, server_round, sender, payload, self.server, self.signature)


@dataclass(frozen=True, eq=False)
class Fetched:
    """What came of asking devices for their data."""

    sets: Mapping[int, Offloaded]  # by device
    refused: Sequence[LeftOut] = ()  # who has to train alone instead
    silent: Sequence[LeftOut] = ()  # who is not there any more
    gone: frozenset[int] = frozenset()  # the same, by device


ScreenData = Callable[[int, Mapping[int, Offloaded]], Mapping[int, str]]


class DataLink:
    """Fetches data sets, and keeps those that do not fit the others' away from the edge servers.

    Data sets are alike if they have the same arrays. Which these are, most devices decide, each by what it
    sent last.
    """

    def __init__(self, most_bytes: int, key: str, timeout_s: float, screen: ScreenData) -> None:
        self._most_bytes = most_bytes
        self._key = key  # of the config in messages
        self._timeout_s = timeout_s
        self._screen = screen
        self._schemas: dict[int, Schema] = {}  # by device

    def memory(self) -> NDArray[np.uint8]:
        """What is needed to go on with the next round: JSON, as bytes."""
        told = {
            device: [(name, dtype.str, shape) for name, dtype, shape in schema]
            for device, schema in sorted(self._schemas.items())
        }
        return np.frombuffer(json.dumps(told).encode(), np.uint8)

    def restore(self, memory: NDArray[Any]) -> None:
        """Go on from what `memory` gave; raises ValueError or TypeError for anything else."""
        told = json.loads(memory.tobytes())
        if not isinstance(told, dict):
            raise ValueError("schemas must be by device")
        self._schemas = {int(device): tuple(map(_column, rows)) for device, rows in told.items()}

    def fetch(
        self,
        server_round: int,
        wanted: Mapping[int, int],
        nodes: Mapping[int, int],
        configs: Mapping[int, ConfigRecord],
        grid: Grid,
    ) -> Fetched:
        """Data of the devices in `wanted`, which says for which edge server; `configs` are by node."""
        if not wanted:
            return Fetched({})
        device_of = {nodes[device]: device for device in wanted}
        sets: dict[int, Offloaded] = {}
        refused: dict[int, str] = {}
        gone = dict.fromkeys(wanted, "it did not send its data in time")
        messages = [self._question(node, configs[node]) for node in device_of]
        for reply in Asked(messages).replies(grid.send_and_receive(messages, timeout=self._timeout_s)):
            device = device_of[reply.metadata.src_node_id]
            if reply.has_error() and reply.error.code in _GONE:
                gone[device] = f"it did not send its data: {reply.error.reason:.200}"
                continue
            del gone[device]
            try:
                if reply.has_error():
                    raise ReplyError(f"it did not send its data: {reply.error.reason:.200}")
                sets[device] = self._read(reply.content, wanted[device])
            except (ReplyError, PayloadError) as error:
                refused[device] = str(error)
        refused |= self._odd(sets)
        refused |= self._screen(server_round, {n: one for n, one in sets.items() if n not in refused})
        kept = _named(refused)
        for one in kept:
            logger.log(WARNING, "round %d: %s keeps its data: %s", server_round, one.who, one.reason)
        fitting = {n: data for n, data in sorted(sets.items()) if n not in refused}
        return Fetched(fitting, kept, _named(gone), frozenset(gone))

    def _question(self, node: int, config: ConfigRecord) -> Message:
        asked = ConfigRecord({**config, "most-bytes": self._most_bytes})
        return Message(RecordDict({self._key: asked}), dst_node_id=node, message_type=OFFLOAD)

    def _read(self, content: RecordDict, server: int) -> Offloaded:
        """A data set that can be trained on; raises ReplyError or PayloadError."""
        if DATA_RECORD not in content.array_records:
            raise ReplyError(f"its reply must hold the arrays {DATA_RECORD!r}, got {sorted(content)!s:.80}")
        arrays = as_arrays(content.array_records[DATA_RECORD])
        size = sum(array.nbytes for array in arrays.values())
        if size > self._most_bytes:
            raise ReplyError(f"a data set must have at most {self._most_bytes} bytes, got {size}")
        shapes = {name: array.shape for name, array in arrays.items()}
        if len({shape[:1] for shape in shapes.values()}) != 1 or any(
            not a.ndim or not a.size for a in arrays.values()
        ):
            raise ReplyError(f"a data set must be arrays with a row for each sample, got {shapes!s:.200}")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ReplyError(f"array {name!r:.80} of a data set must be finite, got NaN or infinity")
        signed = signed_bytes(content, SIGNATURE_KEY, 65), signed_bytes(content, ADDRESS_KEY, 20)
        return Offloaded(server, arrays, DataSet.of(arrays), *signed)

    def _odd(self, sets: Mapping[int, Offloaded]) -> dict[int, str]:
        """Devices whose data sets are unlike those of most others, and how."""
        self._schemas |= {device: one.schema for device, one in sets.items()}
        counts = Counter(schema for _, schema in sorted(self._schemas.items()))
        [(usual, _)] = counts.most_common(1) or [((), 0)]
        return {
            device: f"data sets must be alike, {_text(usual)}, got {_text(one.schema)}"
            for device, one in sets.items()
            if one.schema != usual
        }


def _column(told: Any) -> tuple[str, np.dtype[np.generic], tuple[int, ...]]:
    name, dtype, shape = told
    return str(name), np.dtype(str(dtype)), tuple(map(int, shape))


def edge_message(like: Message, node: int, sets: Mapping[int, Offloaded]) -> Message:
    """A message to train on the union of data sets, devices in order, and otherwise as another message."""
    ordered = [sets[device].arrays for device in sorted(sets)]
    union = {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
    data = ArrayRecord({name: Array(array) for name, array in union.items()})
    return Message(RecordDict({**like.content, DATA_RECORD: data}), dst_node_id=node, message_type=EDGE)


def by_server(sets: Mapping[int, Offloaded]) -> dict[int, dict[int, Offloaded]]:
    """Data sets by edge server, then by device."""
    grouped: dict[int, dict[int, Offloaded]] = {}
    for device, one in sets.items():
        grouped.setdefault(one.server, {})[device] = one
    return dict(sorted(grouped.items()))


def union_of(sets: Mapping[int, Offloaded]) -> tuple[DataUnion, float]:
    """The record of data sets that are trained on together, and how many samples they have."""
    records = {device: one.record for device, one in sets.items()}
    return DataUnion.of(records), sum(record.samples for record in records.values())


def _named(reasons: Mapping[int, str]) -> list[LeftOut]:
    return [LeftOut(f"device {n}", reason[:LONGEST_REASON]) for n, reason in sorted(reasons.items())]


def _text(schema: Schema) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, dtype, shape in schema)[:200]
