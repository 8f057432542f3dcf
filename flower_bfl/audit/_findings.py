"""The errors of an audit: a recorded entry that does not follow from the others, and how it differs."""

from collections.abc import Callable
from typing import TypeVar

from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.encoding import decode, digest
from flower_bfl.errors import LedgerError, PayloadError

_T = TypeVar("_T")


def account(at: Recorded) -> str:
    """Who signed an entry: its role, index and address."""
    return f"{at.entry.sender} (0x{at.account.hex()})"


def wrong(at: Recorded, rule: str, expected: str, found: str) -> LedgerError:
    """The error for an entry that breaks a rule."""
    return LedgerError(
        rule,
        block=at.block,
        transaction=at.transaction,
        account=account(at),
        expected=expected,
        found=found,
    )


def decoded(at: Recorded, read: Callable[[bytes], _T]) -> _T:
    """What `read` makes of the entry's payload; raises LedgerError where it raises PayloadError."""
    try:
        return read(at.entry.payload)
    except PayloadError as error:
        rule = f"a {at.entry.kind.name} payload must be in its format"
        raise wrong(at, rule, "the format in docs/ledger.md", str(error)) from error


def differs(at: Recorded, rule: str, expected: bytes) -> LedgerError:
    """The error for an entry whose payload should have been another one."""
    found = f"digest {at.digest.hex()} ({_difference(expected, at.entry.payload)})"
    return wrong(at, rule, f"digest {digest(expected).hex()}", found)


def _difference(expected: bytes, found: bytes) -> str:
    """What is different in a payload, in words."""
    wanted, said = decode(expected)
    try:
        arrays, says = decode(found)
    except PayloadError:
        return "not a canonical encoding"
    if says != said:
        names = sorted(name for name in {*said, *says} if said.get(name) != says.get(name))
        return ", ".join(f"{name} {says.get(name)!r} for {said.get(name)!r}" for name in names)
    for name, array in arrays.items():
        other = wanted.get(name)
        if other is None or (other.shape, other.dtype) != (array.shape, array.dtype):
            return f"array {name!r}, {array.dtype} {array.shape}, does not belong there"
        if off := int((array != other).sum()):
            return f"{off} of {array.size} values of {name!r} differ"
    return "other arrays, or their order"
