"""RLP, the encoding of Ethereum's transactions, receipts and trie nodes, for bytes and lists of them."""

from typing import TypeAlias

import rlp  # type: ignore[import-untyped]  # has no type hints

RLPError: type[Exception] = rlp.exceptions.RLPException
Item: TypeAlias = "bytes | list[Item]"


def encode(item: Item) -> bytes:
    """Bytes or nested lists of bytes as RLP."""
    try:
        return bytes(rlp.encode(item, infer_serializer=False))
    except RecursionError as error:
        raise ValueError("lists are nested too deeply for RLP") from error


def decode(encoded: bytes) -> Item:
    """What `encode` was given; raises ValueError if it cannot have made these bytes."""
    try:
        item: Item = rlp.decode(encoded)
    except (RLPError, RecursionError) as error:
        raise ValueError(f"not RLP: {error}") from error
    return item


def number(value: int) -> bytes:
    """A number as RLP has it: big-endian, as few bytes as possible."""
    return value.to_bytes((value.bit_length() + 7) // 8)
