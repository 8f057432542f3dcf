"""RLP, the encoding of Ethereum's transactions, receipts and trie nodes, for bytes and lists of them."""

from typing import TypeAlias

import rlp  # type: ignore[import-untyped]  # has no type hints

RLPError: type[Exception] = rlp.exceptions.RLPException
Item: TypeAlias = "bytes | list[Item]"

_DEPTH = 64  # lists in lists; a node of a trie may hold some 30 others


def encode(item: Item) -> bytes:
    """Bytes or nested lists of bytes as RLP."""
    try:
        return bytes(rlp.encode(item, infer_serializer=False))
    except RecursionError as error:
        raise ValueError("lists are nested too deeply for RLP") from error


def decode(encoded: bytes) -> Item:
    """What `encode` was given; raises ValueError if it cannot have made these bytes, or for deeper lists.

    Not the library's, which copies all of a list for each item in it.
    """
    item, end = _read(encoded, 0, len(encoded), _DEPTH)
    if end != len(encoded):
        raise ValueError(f"not RLP: {len(encoded) - end} bytes follow")
    return item


def number(value: int) -> bytes:
    """A number as RLP has it: big-endian, as few bytes as possible."""
    return value.to_bytes((value.bit_length() + 7) // 8)


def _read(encoded: bytes, at: int, end: int, depth: int) -> tuple[Item, int]:
    """The item at a place, and where it ends: at `end` at the latest."""
    if at >= end:
        raise ValueError("not RLP: it is cut off")
    first = encoded[at]
    if first < 0x80:
        return encoded[at : at + 1], at + 1
    is_list = first >= 0xC0
    size, start = first - (0xC0 if is_list else 0x80), at + 1
    if size > 55:
        start += size - 55
        digits = encoded[at + 1 : start]
        size = int.from_bytes(digits)
        if size < 56 or not digits[0]:
            raise ValueError("not RLP: a length must be as short as possible")
    if start + size > end:
        raise ValueError("not RLP: it is cut off")
    if not is_list:
        if size == 1 and encoded[start] < 0x80:
            raise ValueError("not RLP: a byte below 0x80 stands for itself")
        return encoded[start : start + size], start + size
    if not depth:
        raise ValueError(f"not RLP: lists are nested more than {_DEPTH} deep")
    items: list[Item] = []
    end = start + size
    while start < end:
        item, start = _read(encoded, start, end, depth - 1)
        items.append(item)
    return items, end
