"""Bytes as decisions: what a fuzzer's input makes of something valid."""

from collections.abc import Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

_BLOCKS = [
    b"\0", b"\xff" * 8, b"\xff" * 32, b"9" * 5000, b"[" * 3000, b'{"a":' * 1500, b"a." * 500, b"-1", b"1e999",
    b"0x" + b"f" * 5000, b"NaN", b"null", b"\n", b" ", b'"', b"\\ud800", b"\xc2\x9b31m", b"\xed\xa0\x80",
    b"(" * 300,
]  # fmt: skip
_LEAVES: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 255, 2**16, 2**31, 2**32, 2**53 + 1, 2**60, 2**63, 2**64, 2**256,
    10**400,
    0.5, 1.0, -0.0, 5e-324, 1e100, 1e308, float("inf"), float("-inf"), float("nan"), "", "a", "auto",
    "random",
    "0x", "0x01", "0x 01", "-0x1", "0x" + "f" * 64, "0x" + "f" * 5000, "1_0", " 1", "+1", "01", "-1", "1.5",
    "1e3",
    "nan", "inf", "\u0663", "\ud800", "\x1b[2K", "9" * 5000, "../../secret", "/etc/passwd", "a\nb",
    "__metadata__",
    [], {}, [1, 2], ["a"], [[0, 1], [2, 3]], [None], {"a": 1}, [{"who": 1}], {"": []},
]  # fmt: skip


class FuzzedData:
    """Takes decisions from bytes, zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Up to so many bytes."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def whole(self, most: int) -> int:
        """A whole number from 0 to `most`."""
        return int.from_bytes(self.take((most.bit_length() + 7) // 8)) % (most + 1)

    def one_of(self, choices: Sequence[_T]) -> _T:
        return choices[self.whole(len(choices) - 1)]

    def mutated(self, valid: bytes) -> bytes:
        """Something valid after a few edits, or none."""
        made = bytearray(valid)
        for _ in range(self.whole(6)):
            at, size = self.whole(len(made)), self.whole(7) + 1
            match self.whole(6):
                case 0:
                    new = self.take(size)
                    made[at : at + len(new)] = new
                case 1:
                    del made[at : at + self.whole(200)]
                case 2:
                    made[at:at] = self.take(size)
                case 3:
                    made[at:at] = made[self.whole(len(made)) :][: self.whole(300)]
                case 4:
                    made[at : at + size] = self.one_of(_BLOCKS)
                case 5:
                    made[at:at] = self.one_of(_BLOCKS)
                case _:
                    del made[at:]
        return bytes(made)

    def value(self, depth: int = 2) -> Any:
        """What JSON may hold in place of anything."""
        kind = self.whole(9)
        if kind < 6 or not depth:
            return self.one_of(_LEAVES)
        if kind == 6:
            return self.take(self.whole(12)).decode("latin1")
        if kind == 7:
            return int.from_bytes(self.take(self.whole(9)), signed=True)
        if kind == 8:
            return [self.value(depth - 1) for _ in range(self.whole(3))]
        return {str(self.one_of(_LEAVES))[:20]: self.value(depth - 1) for _ in range(self.whole(3))}

    def changed(self, document: Any, most: int = 4) -> Any:
        """A document after a few changes, or none."""
        for _ in range(self.whole(most)):
            document = self._changed(document)
        return document

    def _changed(self, document: Any) -> Any:
        inner = isinstance(document, dict | list) and document and self.whole(7)
        if not inner:
            return self.value()
        if isinstance(document, dict):
            name = self.one_of(sorted(document, key=str))
            other = {each: value for each, value in document.items() if each != name}
            match self.whole(7):
                case 0:
                    return other
                case 1:
                    return document | {str(self.one_of(_LEAVES))[:40]: self.value()}
                case _:
                    return (
                        {**document, name: self._changed(document[name])}
                        if self.whole(7)
                        else other | {name: 0}
                    )
        place = self.whole(len(document) - 1)
        match self.whole(3):
            case 0:
                return document[:place] + document[place + 1 :]
            case 1:
                return [*document, self.value()]
            case _:
                return [*document[:place], self._changed(document[place]), *document[place + 1 :]]
