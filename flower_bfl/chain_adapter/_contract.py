"""The FlowerBFL contract's calls, answers and errors as bytes.

The ABI is written out by hand for these few functions: a general codec copies large payloads several times.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from eth_hash.auto import keccak

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender

PIECE_BYTES = 80_000
"""Size of all pieces of a payload but the last."""

_SPEC: dict[str, Any] = json.loads((files(__package__) / "contracts" / "FlowerBFL.json").read_text())
BYTECODE = bytes.fromhex(_SPEC["bytecode"][2:])


def _signature(item: dict[str, Any]) -> bytes:
    return f"{item['name']}({','.join(field['type'] for field in item['inputs'])})".encode()


_FUNCTIONS = {
    item["name"]: keccak(_signature(item))[:4] for item in _SPEC["abi"] if item["type"] == "function"
}
_ERRORS = {keccak(_signature(item))[:4]: item for item in _SPEC["abi"] if item["type"] == "error"}


@dataclass(frozen=True)
class Call:
    """What the calldata of one `submit`, `publish` or `piece` says; a payload kept elsewhere is empty."""

    function: str
    kind: Kind | None = None
    round: int = 0
    step: int = 0
    index: int = 0
    digest: bytes = b""
    payload: bytes = b""
    timestamp_s: int = 0
    nonce: int = 0


def _word(value: int) -> bytes:
    return value.to_bytes(32)


def _tail(data: bytes) -> tuple[bytes, bytes, bytes]:
    return _word(len(data)), data, bytes(-len(data) % 32)


def register(accounts: dict[Sender, bytes]) -> bytes:
    """Calldata that registers accounts (20 bytes each) of one role."""
    count, role = len(accounts), next(iter(accounts)).role
    return b"".join([
        _FUNCTIONS["register"], _word(96), _word(role), _word(96 + 32 * (count + 1)),
        _word(count), *(bytes(12) + address for address in accounts.values()),
        _word(count), *(_word(sender.index) for sender in accounts),
    ])  # fmt: skip


def submit(entry: Entry, digest: bytes, payload: bytes) -> bytes:
    """Calldata of an entry that is not a model; `payload` is empty if it is kept elsewhere."""
    head = (_word(entry.kind), _word(entry.round), _word(entry.step), digest, _word(160))
    return b"".join([_FUNCTIONS["submit"], *head, *_tail(payload)])


def publish(entry: Entry, digest: bytes, payload: bytes, timestamp_s: int, nonce: int = 0) -> bytes:
    """Calldata of a model; `payload` is empty if it is kept elsewhere."""
    head = (_word(entry.round), _word(timestamp_s), _word(nonce), digest, _word(160))
    return b"".join([_FUNCTIONS["publish"], *head, *_tail(payload)])


def piece(digest: bytes, index: int, data: bytes) -> bytes:
    """Calldata of one piece of the payload with this digest."""
    return b"".join([_FUNCTIONS["piece"], digest, _word(index), _word(96), *_tail(data)])


def view(function: str, *words: int | bytes) -> bytes:
    """Calldata of a view whose arguments are one word each."""
    arguments = (_word(word) if isinstance(word, int) else word.rjust(32, b"\0") for word in words)
    return b"".join([_FUNCTIONS[function], *arguments])


def read_call(data: bytes) -> Call | None:
    """What calldata of `submit`, `publish` or `piece` says; None for anything else."""
    name = next((name for name in ("submit", "publish", "piece") if data[:4] == _FUNCTIONS[name]), None)
    if name is None:
        return None
    words = [int.from_bytes(data[start : start + 32]) for start in range(4, 4 + 160, 32)]
    at = 4 + words[2 if name == "piece" else 4]
    payload = data[at + 32 : at + 32 + int.from_bytes(data[at : at + 32])]
    if name == "piece":
        return Call(name, index=words[1], digest=data[4:36], payload=payload)
    digest = data[100:132]
    if name == "submit":
        return Call(name, Kind(words[0]), words[1], words[2], digest=digest, payload=payload)
    return Call(
        name, Kind.MODEL, words[0], digest=digest, payload=payload, timestamp_s=words[1], nonce=words[2]
    )


def read_register(data: bytes) -> dict[bytes, Sender]:
    """Accounts (20 bytes each) that calldata of `register` names; none if it is not such calldata."""
    if data[:4] != _FUNCTIONS["register"]:
        return {}
    words = [data[start : start + 32] for start in range(4, len(data), 32)]
    role, count = Role(int.from_bytes(words[1])), int.from_bytes(words[3])
    indices = words[5 + count : 5 + 2 * count]
    return {
        address[12:]: Sender(role, int.from_bytes(index))
        for address, index in zip(words[4 : 4 + count], indices, strict=True)
    }


def read_error(output: bytes) -> str:
    """Name and arguments of the error that a call reverted with: ``WrongRound (expected 2, got 5)``."""
    error = _ERRORS.get(output[:4])
    if error is None:
        return f"revert without a known reason (0x{output[:36].hex()})"
    values = (int.from_bytes(output[start : start + 32]) for start in range(4, len(output), 32))
    arguments = [
        f"{field['name']} {value:#042x}" if field["type"] == "address" else f"{field['name']} {value}"
        for field, value in zip(error["inputs"], values, strict=True)
    ]
    return f"{error['name']} ({', '.join(arguments)})" if arguments else str(error["name"])
