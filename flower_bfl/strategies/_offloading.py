"""Data on their way: devices' data sets fetched for their edge servers, which train on the union (4)."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import WARNING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender
from flower_bfl.chain_adapter.records import DataSet, DataUnion
from flower_bfl.errors import PayloadError, ReplyError
from flower_bfl.strategies._fleet import GONE
from flower_bfl.strategies._journal import logger
from flower_bfl.strategies._replies import ADDRESS_KEY, SIGNATURE_KEY, as_arrays, signed_bytes
from flower_bfl.types import LeftOut

OFFLOAD = "query.offload"
EDGE = "train.edge"
DATA_KEY = "flower-bfl-data"

Arrays = dict[str, NDArray[np.generic]]
Schema = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]  # of each array: dtype, shape of a row


@dataclass(frozen=True, eq=False)
class Offloaded:
    """A data set that an edge server is to train on."""

    server: int
    arrays: Arrays
    record: DataSet
    signature: bytes = b""  # of the DATA entry by a key of the device's own
    address: bytes = b""

    @property
    def schema(self) -> Schema:
        """What two data sets must have in common to be trained on together."""
        return tuple((name, array.dtype, array.shape[1:]) for name, array in self.arrays.items())

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


class DataLink:
    """Fetches data sets, and keeps those that do not fit the others' away from the edge servers.

    Data sets are alike if they have the same arrays; which these are, the first ones decide by majority.
    """

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._schema: Schema | None = None

    def fetch(
        self,
        server_round: int,
        wanted: Mapping[int, int],
        nodes: Mapping[int, int],
        configs: Mapping[int, ConfigRecord],
        grid: Grid,
        screen: Callable[[int, Mapping[int, Offloaded]], Mapping[int, str]],
    ) -> Fetched:
        """Data of the devices in `wanted`, which says for which edge server; `screen` looks at signatures."""
        if not wanted:
            return Fetched({})
        device_of = {nodes[device]: device for device in wanted}
        messages = []
        for device in wanted:
            config = ConfigRecord({**configs[device], "most-bytes": self._most_bytes})
            messages.append(Message(RecordDict({"config": config}), nodes[device], OFFLOAD))
        sets: dict[int, Offloaded] = {}
        refused: dict[int, str] = {}
        gone = dict.fromkeys(wanted, "it did not send its data in time")
        for reply in grid.send_and_receive(messages, timeout=self._timeout_s):
            device = device_of[reply.metadata.src_node_id]
            if reply.has_error() and reply.error.code in GONE:
                gone[device] = f"it did not send its data: {reply.error.reason}"
                continue
            del gone[device]
            try:
                if reply.has_error():
                    raise ReplyError(f"it did not send its data: {reply.error.reason:.200}")
                sets[device] = self._read(reply.content, wanted[device])
            except (ReplyError, PayloadError) as error:
                refused[device] = str(error)
        refused |= self._odd(sets)
        fitting = {device: one for device, one in sets.items() if device not in refused}
        refused |= screen(server_round, fitting)
        fitting = {device: one for device, one in sorted(fitting.items()) if device not in refused}
        return Fetched(fitting, _named(refused), _named(gone), frozenset(gone))

    def _read(self, content: RecordDict, server: int) -> Offloaded:
        if DATA_KEY not in content.array_records:
            raise ReplyError(f"its reply must hold the arrays {DATA_KEY!r}, got {sorted(content)}")
        record = content.array_records[DATA_KEY]
        size = sum(len(array.data) for array in record.values())
        if size > self._most_bytes + 4096 * len(record):  # of headers
            raise ReplyError(f"a data set must have at most {self._most_bytes} bytes, got {size}")
        arrays = as_arrays(record)
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len({*lengths.values()}) != 1 or 0 in lengths.values():
            raise ReplyError(f"a data set must be arrays with a row for each sample, got rows {lengths}")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ReplyError(f"array {name!r} of a data set must be finite, got NaN or infinity")
        signed = signed_bytes(content, SIGNATURE_KEY, 65), signed_bytes(content, ADDRESS_KEY, 20)
        return Offloaded(server, arrays, DataSet.of(arrays), *signed)

    def _odd(self, sets: Mapping[int, Offloaded]) -> dict[int, str]:
        """Devices whose data sets are unlike those of the others, and how."""
        if self._schema is None and sets:
            counts = Counter(one.schema for _, one in sorted(sets.items()))
            self._schema = counts.most_common(1)[0][0]
        return {
            device: f"data sets must be alike, {_text(self._schema)}, got {_text(one.schema)}"
            for device, one in sets.items()
            if self._schema is not None and one.schema != self._schema
        }


def edge_message(
    model: RecordDict, config: ConfigRecord, node: int, sets: Mapping[int, Offloaded]
) -> Message:
    """The message with which an edge server trains on the union of data sets, devices in order."""
    ordered = [sets[device].arrays for device in sorted(sets)]
    union = {name: np.concatenate([arrays[name] for arrays in ordered]) for name in ordered[0]}
    data = ArrayRecord({name: Array(array) for name, array in union.items()})
    own = ConfigRecord({**config, "devices": sorted(sets)})
    content = {name: own if isinstance(value, ConfigRecord) else value for name, value in model.items()}
    return Message(RecordDict({**content, DATA_KEY: data}), node, EDGE)


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


def warn_kept(server_round: int, kept: Iterable[LeftOut]) -> None:
    """Log who was to offload and trains alone."""
    for one in kept:
        logger.log(WARNING, "round %d: %s keeps its data: %s", server_round, one.who, one.reason)


def _named(reasons: Mapping[int, str]) -> list[LeftOut]:
    return [LeftOut(f"device {device}", reason) for device, reason in sorted(reasons.items())]


def _text(schema: Schema | None) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, dtype, shape in schema or ())
