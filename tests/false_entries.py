"""Entries that are not what they should be, and the finding that they make of a run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from coincurve import PrivateKey
from eth_hash.auto import keccak
from hypothesis import strategies as st
from toy_run import KEYS, Change

from flower_bfl.audit import AuditReport
from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, PayloadStore, Sender, decode, encode
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.config import ContractRules

Place = tuple[Kind, int, Sender, int]
"""Kind, round, sender and step of an entry."""


def name_of(sender: Sender, key: bytes | None = None) -> str:
    """Role, index and address, worked out from the key."""
    public = PrivateKey(key or KEYS(sender)).public_key.format(compressed=False)
    return f"{sender} (0x{keccak(public[1:])[12:].hex()})"


def place_of(folder: Path, kind: Kind, server_round: int, sender: Sender, step: int) -> tuple[int, int]:
    """Block and transaction of an entry; there must be one."""
    store = PayloadStore(folder / "chain" / "payloads")
    (place,) = [
        (at.block, at.transaction)
        for at in EvmLedger(folder / "chain", store=store, read_only=True).recorded()
        if (at.entry.kind, at.entry.round, at.entry.sender, at.entry.step)
        == (kind, server_round, sender, step)
    ]
    return place


def assert_names(report: AuditReport, folder: Path, place: Place, rule: str) -> None:
    finding = report.finding
    assert finding is not None
    assert rule in finding.rule
    assert (finding.block, finding.transaction) == place_of(folder, place[0], place[1], place[2], place[3])
    assert finding.account == name_of(place[2])
    assert finding.expected != finding.found
    assert report.verdict == "something does not follow from what was signed"


# -- what is recorded in place of an entry -------------------------------------------------------------------


def changing(kind: Kind, server_round: int, sender: Sender, step: int, new: Change) -> Change:
    """Record something else in place of one entry."""
    wanted = (kind, server_round, sender, step)

    def change(entry: Entry) -> Entry | list[Entry]:
        return new(entry) if (entry.kind, entry.round, entry.sender, entry.step) == wanted else entry

    return change


def with_arrays(entry: Entry, change) -> Entry:
    arrays, metadata = decode(entry.payload)
    return replace(entry, payload=encode({n: np.array(a) for n, a in change(arrays).items()}, metadata))


def with_metadata(**values: str | None):
    """Other metadata; None takes it away."""

    def change(entry: Entry) -> Entry:
        arrays, metadata = decode(entry.payload)
        new = metadata | {name.replace("_", "-"): value for name, value in values.items()}
        return replace(entry, payload=encode(arrays, {n: v for n, v in new.items() if v is not None}))

    return change


def nudged(entry: Entry) -> Entry:
    """The smallest change there is, to one value."""
    return with_arrays(entry, lambda arrays: arrays | {"b": np.nextafter(arrays["b"], np.float32(9))})


def not_finite(entry: Entry) -> Entry:
    return with_arrays(entry, lambda arrays: arrays | {"b": arrays["b"] * np.float32(np.inf)})


def junk(entry: Entry) -> Entry:
    return replace(entry, payload=b"junk")


def gone(_entry: Entry) -> list[Entry]:
    return []


def with_fields(**fields):
    return lambda entry: replace(entry, **fields)


def also(**fields):
    return lambda entry: [entry, replace(entry, **fields)]


# -- any payload at all --------------------------------------------------------------------------------------


class Replayed:
    """A ledger of entries that nothing has checked."""

    block_number = 99

    def __init__(self, rules: ContractRules, entries: list[Recorded]) -> None:
        self.rules, self._entries = rules, entries

    def recorded(self) -> Iterator[Recorded]:
        yield from self._entries


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "round", "devices", "num-examples", "num-steps", "report", "mixing", "w", "dtype", "shape", "down",
    "data", "itself", "server",
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, payload: bytes) -> bytes:
    """Another payload in place of one: other bytes, another header, other metadata."""
    size = int.from_bytes(payload[:8], "little")
    how = draw(st.sampled_from(["byte", "header", "field", "metadata"]))
    if how == "byte" or size == 0:
        place = draw(st.integers(0, max(len(payload) - 1, 0)))
        return payload[:place] + bytes([draw(st.integers(0, 255))]) + payload[place + 1 :]
    header = json.loads(payload[8 : 8 + size])
    if how == "header":
        header = draw(json_values)
    elif how == "field":
        name = draw(st.sampled_from(sorted(header)))
        if name != "__metadata__":
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            header[name][field] = draw(json_values | st.lists(st.integers(-(2**70), 2**70), max_size=3))
    else:
        said = header.setdefault("__metadata__", {})
        name = draw(st.sampled_from(sorted({*said, *NAMES})))
        report = st.fixed_dictionaries(
            {"left_out": json_values, "down": st.lists(st.fixed_dictionaries({
                "round": st.just(2) | json_values, "server": json_values, "link": json_values,
                "step": json_values})) | json_values})  # fmt: skip
        said[name] = draw(st.text(max_size=12) | st.integers().map(str) | report.map(json.dumps))
        header["__metadata__"] = dict(sorted(said.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]
