"""Merkle Patricia tries of a block's transactions and receipts, built in one go from the whole list."""

from collections.abc import Mapping, Sequence

from eth_hash.auto import keccak
from trie.hexary import HexaryTrie

from flower_bfl.chain_adapter._rlp import Item, encode, number

_Items = list[tuple[bytes, bytes]]  # nibbles (a byte each) and value


def root_and_nodes(values: Sequence[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """Root hash and nodes by hash of the trie that holds `values` under their RLP-encoded positions.

    Knowing all values at once, each node is hashed once; inserting them one by one hashes each branch anew.
    """
    nodes: dict[bytes, bytes] = {}
    items = sorted((_nibbles(encode(number(position))), value) for position, value in enumerate(values))
    encoded = encode(_node(items, 0, nodes))
    root = keccak(encoded)
    nodes[root] = encoded
    return root, nodes


def read_values(database: Mapping[bytes, bytes], root: bytes) -> list[bytes]:
    """The values under positions 0, 1, ... of a stored trie; raises MissingTrieNode if a node is missing."""
    trie = HexaryTrie(database, root)
    values: list[bytes] = []
    while value := trie[encode(number(len(values)))]:
        values.append(value)
    return values


def _node(items: _Items, depth: int, nodes: dict[bytes, bytes]) -> Item:
    """The node for items that agree in their first `depth` nibbles; adds the nodes below it to `nodes`."""
    if not items:
        return b""
    first, last = items[0][0], items[-1][0]
    if len(items) == 1:
        return [_path(first[depth:], leaf=True), items[0][1]]
    shared = depth
    while first[shared] == last[shared]:  # sorted: what the outer two share, all share
        shared += 1
    if shared > depth:
        return [_path(first[depth:shared], leaf=False), _reference(items, shared, nodes)]
    children: list[Item] = [b""] * 17  # no key is the start of another, so the 17th place stays empty
    for nibble in range(16):
        below = [item for item in items if item[0][depth] == nibble]
        if below:
            children[nibble] = _reference(below, depth + 1, nodes)
    return children


def _reference(items: _Items, depth: int, nodes: dict[bytes, bytes]) -> Item:
    node = _node(items, depth, nodes)
    encoded = encode(node)
    if len(encoded) < 32:
        return node
    name = keccak(encoded)
    nodes[name] = encoded
    return name


def _nibbles(key: bytes) -> bytes:
    return bytes(nibble for byte in key for nibble in (byte >> 4, byte & 15))


def _path(nibbles: bytes, *, leaf: bool) -> bytes:
    flag = 2 * leaf + len(nibbles) % 2
    whole = bytes([flag]) + nibbles if len(nibbles) % 2 else bytes([flag, 0]) + nibbles
    return bytes(high << 4 | low for high, low in zip(whole[::2], whole[1::2], strict=True))
