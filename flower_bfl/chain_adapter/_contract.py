"""The FlowerBFL contract's calls, answers and errors as bytes.

The ABI is written out by hand for these few functions: a general codec copies large payloads several times.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from eth_hash.auto import keccak

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, digest
from flower_bfl.config import ContractRules

PIECE_BYTES = 80_000
"""Size of all pieces of a payload but the last."""

_SPEC: dict[str, Any] = json.loads((files(__package__) / "contracts" / "FlowerBFL.json").read_text())
ABI: list[dict[str, Any]] = _SPEC["abi"]
BYTECODE = bytes.fromhex(_SPEC["bytecode"][2:])
_EMPTY = digest(b"")


def _signature(item: dict[str, Any]) -> bytes:
    return f"{item['name']}({','.join(field['type'] for field in item['inputs'])})".encode()


_FUNCTIONS = {
    item["name"]: keccak(_signature(item))[:4] for item in _SPEC["abi"] if item["type"] == "function"
}
_TYPES = {
    item["name"]: [field["type"] for field in item["inputs"]]
    for item in _SPEC["abi"]
    if item["type"] == "function"
}
_ERRORS = {keccak(_signature(item))[:4]: item for item in _SPEC["abi"] if item["type"] == "error"}


_LEADER_RULES: list[object] = ["any", "random", "reputation"]  # by the contract's number; 3 is a fixed one
_FIXED = 3
_CALLS = ("submit", "relay", "propose", "seal", "piece")


@dataclass(frozen=True)
class Call:
    """What the calldata of one call says; a payload kept elsewhere is empty."""

    function: str  # one of submit, relay, propose, seal, piece
    kind: Kind | None = None
    round: int = 0
    step: int = 0
    index: int = 0
    digest: bytes = b""
    payload: bytes = b""
    signature: bytes = b""
    parent: bytes = b""
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


def creation(rules: ContractRules) -> bytes:
    """Calldata that makes the contract."""
    fixed = rules.leader if isinstance(rules.leader, int) else 0
    rule = _FIXED if isinstance(rules.leader, int) else _LEADER_RULES.index(rules.leader)
    numbers = (rules.edge_servers, rule, fixed, rules.difficulty_bits, rules.quarantine_rounds)
    return BYTECODE + b"".join(map(_word, numbers))


def read_creation(data: bytes) -> ContractRules:
    """The rules in calldata that makes the contract; raises ValueError if it makes anything else."""
    words = [int.from_bytes(data[start : start + 32]) for start in range(len(BYTECODE), len(data), 32)]
    if not data.startswith(BYTECODE) or len(data) != len(BYTECODE) + 160 or words[1] > _FIXED:
        raise ValueError("not the creation of this version of the FlowerBFL contract")
    servers, rule, fixed, difficulty_bits, quarantine_rounds = words
    leader: Any = fixed if rule == _FIXED else _LEADER_RULES[rule]
    return ContractRules(servers, leader, difficulty_bits, quarantine_rounds)


def submit(entry: Entry, name: bytes, payload: bytes) -> bytes:
    """Calldata of an entry to `submit`, or `relay` if it is signed; `payload` is empty if kept elsewhere."""
    numbers = (_word(entry.kind), _word(entry.round), _word(entry.step))
    if not entry.signature:
        return b"".join([_FUNCTIONS["submit"], *numbers, name, _word(160), *_tail(payload)])
    tail = _tail(payload)
    offset = 192 + sum(map(len, tail))
    words = (*numbers, name, _word(192), _word(offset))
    return b"".join([_FUNCTIONS["relay"], *words, *tail, *_tail(entry.signature)])


def propose(entry: Entry, name: bytes, payload: bytes, parent: bytes, timestamp_s: int) -> bytes:
    """Calldata of a model; `payload` is empty if it is kept elsewhere."""
    head = (_word(entry.round), _word(entry.step), parent, _word(timestamp_s), name, _word(192))
    return b"".join([_FUNCTIONS["propose"], *head, *_tail(payload)])


def seal(entry: Entry, nonce: int) -> bytes:
    """Calldata of a seal."""
    return b"".join([_FUNCTIONS["seal"], _word(entry.round), _word(entry.step), _word(nonce)])


def piece(name: bytes, index: int, data: bytes) -> bytes:
    """Calldata of one piece of the payload with this digest."""
    return b"".join([_FUNCTIONS["piece"], name, _word(index), _word(96), *_tail(data)])


def view(function: str, *words: int | bytes) -> bytes:
    """Calldata of a view whose arguments are one word each."""
    arguments = (_word(word) if isinstance(word, int) else word.rjust(32, b"\0") for word in words)
    return b"".join([_FUNCTIONS[function], *arguments])


def read_call(data: bytes) -> Call | None:
    """What calldata says; None for a function that no entry needs.

    Raises ValueError for what the contract cannot read.
    """
    name = next((name for name in _CALLS if data[:4] == _FUNCTIONS[name]), None)
    if name is None:
        return None
    types = _TYPES[name]
    words = [data[start : start + 32] for start in range(4, 4 + 32 * len(types), 32)]
    numbers = [int.from_bytes(word) for word in words]
    bits = [int(each.removeprefix("uint")) if each.startswith("uint") else 256 for each in types]
    if len(words[-1]) < 32 or any(number >> most for number, most in zip(numbers, bits, strict=True)):
        raise ValueError(f"not calldata of `{name}`: cut off, or a number is too large")

    def tail(word: int) -> bytes:
        at = 4 + numbers[word]
        size = int.from_bytes(data[at : at + 32])
        if at + 32 + size > len(data):
            raise ValueError("calldata is cut off")
        return data[at + 32 : at + 32 + size]

    if name == "piece":
        return Call(name, index=numbers[1], digest=words[0], payload=tail(2))
    if name == "seal":
        return Call(name, Kind.SEAL, numbers[0], numbers[1], nonce=numbers[2], digest=_EMPTY)
    if name == "propose":
        server_round, step, _, timestamp_s, _, _ = numbers
        return Call(
            name, Kind.MODEL, server_round, step, digest=words[4], payload=tail(5), parent=words[2],
            timestamp_s=timestamp_s,
        )  # fmt: skip
    signature = tail(5) if name == "relay" else b""
    kind, server_round, step = Kind(numbers[0]), numbers[1], numbers[2]
    if kind in (Kind.MODEL, Kind.SEAL):
        raise ValueError(f"WrongKind: {kind.name} to `{name}`")
    return Call(name, kind, server_round, step, 0, words[3], tail(4), signature)


def read_register(data: bytes) -> dict[bytes, Sender] | None:
    """Accounts (20 bytes each) that calldata of `register` names; None if it is not such calldata."""
    if data[:4] != _FUNCTIONS["register"]:
        return None
    words = [data[start : start + 32] for start in range(4, len(data), 32)]
    if len(words) < 4:
        raise ValueError("calldata of `register` is cut off")
    role, count = Role(int.from_bytes(words[1])), int.from_bytes(words[3])
    indices = words[5 + count : 5 + 2 * count]
    accounts = {
        Sender(role, int.from_bytes(index)): address[12:]
        for address, index in zip(words[4 : 4 + count], indices, strict=True)
    }
    usual = 0 < count == len(accounts) and all(sender.index < 2**32 for sender in accounts)
    if not usual or register(accounts) != data:  # the contract read something else
        raise ValueError("not calldata of `register` in its usual form")
    return {address: sender for sender, address in accounts.items()}


def read_error(output: bytes) -> str:
    """Name and arguments of the error that a call reverted with: ``WrongRound (expected 2, got 5)``."""
    error = _ERRORS.get(output[:4])
    if error is None:
        return f"revert without a known reason (0x{output[:36].hex()})"
    values = (output[start : start + 32] for start in range(4, len(output), 32))
    shown = {"address": lambda value: "0x" + value[12:].hex(), "bytes32": lambda value: "0x" + value.hex()}
    arguments = [
        f"{field['name']} {shown.get(field['type'], int.from_bytes)(value)}"
        for field, value in zip(error["inputs"], values, strict=True)
    ]
    return f"{error['name']} ({', '.join(arguments)})" if arguments else str(error["name"])
