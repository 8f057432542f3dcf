"""Fuzz targets: the canonical encoding, records, and the defences that rules name."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
from fuzzed import FuzzedData
from target_registry import DEVICE, MODEL, nothing, structured, target

from flower_bfl.chain_adapter import Role, Sender
from flower_bfl.chain_adapter.encoding import decode, encode
from flower_bfl.chain_adapter.records import (
    DataSet,
    DataUnion,
    Evidence,
    Gradient,
    RunRules,
    consensus_payload,
    model_payload,
    read_consensus,
    read_model,
    read_report,
    report_payload,
)
from flower_bfl.config import AutoRounds, Consensus, Outage
from flower_bfl.defences._described import described, from_description
from flower_bfl.defences.deviation import Deviation
from flower_bfl.defences.robust import CentredClipping, Krum
from flower_bfl.errors import PayloadError
from flower_bfl.types import LeftOut


@cache
def payloads() -> list[bytes]:
    consensus = [Consensus(3, 4), Consensus(2, AutoRounds(0.5, True, 9, 20), "data", 1, 0.1)]
    return [
        encode({"b": np.zeros((2, 0), np.float64), "c": np.array([True, False])}, {"a": "1", "\u00e9": "x"}),
        encode({}),
        model_payload(3, MODEL),
        *(RunRules("ConsensusBFL", each, np.eye(each.edge_servers), ('{"name": "Median"}',), "x").encode()
          for each in consensus),
        RunRules("FedAvg").encode(),
        DataSet(7, bytes(32)).encode(3, 1),
        Gradient(MODEL, 0.1 + 0.2, 5).encode(3, bytes(32)),
        Gradient(MODEL, 3, 5, DataUnion((0, 4), bytes(32))).encode(3, bytes(32)),
        consensus_payload(3, 0, 1, MODEL, [DEVICE, Sender(Role.SERVER, 1)]),
        consensus_payload(3, 1, 1, MODEL),
        report_payload(3, [LeftOut("device 1", "late")], [Outage(3, 1), Outage(2, link=(0, 1), step=2)]),
        Evidence("equivocation", 2, bytes(32), bytes(32), bytes(65)).encode(3, 1),
        Evidence("silence").encode(3, 1),
    ]  # fmt: skip


@target(payloads, PayloadError)
def encoding(payload: bytes) -> None:
    arrays, metadata = decode(payload)
    assert encode(arrays, metadata) == payload


@structured(nothing, PayloadError)
def header(data: FuzzedData) -> None:
    """A header that says something else of its arrays, in the right frame."""
    payload = data.one_of(payloads())
    size = int.from_bytes(payload[:8], "little")
    told = data.changed(json.loads(payload[8 : 8 + size]))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    text = data.mutated(text) if data.whole(1) else text
    text += b" " * (-len(text) % 8)
    encoding(len(text).to_bytes(8, "little") + text + payload[8 + size :])


def _consensus_again(found: Any) -> bytes:
    arrays, members = found
    own = [member.index for member in members if member.role is Role.SERVER]
    return consensus_payload(0, 0, own[0] if own else 0, arrays, members)


@structured(nothing, PayloadError)
def records(data: FuzzedData) -> None:
    """Payloads with other metadata, to every reader: what it understood, written again, is understood alike.

    An audit compares what is written again with what was recorded, so that the other words cannot differ.
    """
    arrays, metadata = decode(data.one_of(payloads()))
    changed = data.changed(metadata)
    said = {name: str(text) for name, text in (changed if isinstance(changed, dict) else metadata).items()}
    if "report" in metadata and data.whole(3):
        said["report"] = json.dumps(data.changed(json.loads(metadata["report"])))
    if not data.whole(7):
        arrays = {"mixing": np.zeros((data.whole(3), data.whole(3)), data.one_of(["f4", "f8", "?", "i1"]))}
    payload = encode(arrays, said)
    for read, write in _READERS.items():
        with suppress(PayloadError):
            found = read(payload)
            again = read(write(found))
            assert repr(again) == repr(found) or isinstance(found, Gradient | RunRules), (
                f"{found} from {said}"
            )


_READERS: dict[Callable[[bytes], Any], Callable[[Any], bytes]] = {
    RunRules.decode: RunRules.encode,
    DataSet.decode: lambda data: data.encode(0, 0),
    Gradient.decode: lambda gradient: gradient.encode(0, bytes(32)),
    Evidence.decode: lambda evidence: evidence.encode(0, 0),
    read_consensus: _consensus_again,
    read_report: lambda found: report_payload(0, *found),
    read_model: lambda model: model_payload(0, model),
}


@target(
    lambda: [described(each).encode() for each in (CentredClipping(), Krum(0.25), Deviation())], PayloadError
)
def defence(text: bytes) -> None:
    told = text.decode(errors="surrogateescape")
    assert described(from_description(told)) == told
