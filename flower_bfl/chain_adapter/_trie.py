"""Merkle Patricia tries of a block's transactions and receipts, built in one go from the whole list."""

from collections.abc import Iterator, Mapping, Sequence

from eth_hash.auto import keccak
from trie.constants import BLANK_NODE_HASH
from trie.hexary import HexaryTrie

from flower_bfl.chain_adapter._rlp import Item, decode, encode, number
from flower_bfl.errors import LedgerError

_LONGEST_PATH = 18  # nibbles of a position, an RLP number of eight bytes at most

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
    """The values under positions 0, 1, ... of a stored trie; raises LedgerError if it holds anything else.

    Walking it reads each node once; looking the positions up reads the upper ones again for each.
    """
    found = {} if root == BLANK_NODE_HASH else dict(_leaves(database, root, b"", set()))
    values = [found.pop(_nibbles(encode(number(position))), b"") for position in range(len(found))]
    if not all(values):
        raise LedgerError(
            f"the trie 0x{root.hex()} must hold values at 0, 1, 2, ... only",
            expected=f"positions 0 to {len(values) - 1}",
            found=f"{len(found)} other ones",
        )
    return values


def read_value(database: Mapping[bytes, bytes], root: bytes, position: int) -> bytes:
    """The value under one position, empty if there is none; raises MissingTrieNode if a node is missing."""
    return bytes(HexaryTrie(database, root)[encode(number(position))])


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


def _leaves(
    database: Mapping[bytes, bytes], node: Item, path: bytes, seen: set[bytes]
) -> Iterator[tuple[bytes, bytes]]:
    """Path in nibbles and value of everything below a node, which is given as its hash or in full.

    No two nodes of a list's trie are equal; one that comes twice would unfold for ever.
    """
    if isinstance(node, bytes):
        name = node
        if name in seen:
            raise LedgerError(f"the trie's node 0x{name.hex()} must be there once, found it again")
        seen.add(name)
        try:
            node = decode(database[name])
        except (KeyError, ValueError) as error:
            raise LedgerError(f"the trie's node 0x{name.hex()} is missing or none: {error}") from error
    if len(path) <= _LONGEST_PATH and isinstance(node, list):
        match node:
            case [bytes(compact), below] if compact:
                own = _nibbles(compact)[2 - (compact[0] >> 4 & 1) :]
                if compact[0] >> 5 == 0 and own:
                    yield from _leaves(database, below, path + own, seen)
                    return
                if compact[0] >> 5 == 1 and isinstance(below, bytes):
                    yield path + own, below
                    return
            case [*children, bytes(value)] if len(children) == 16:
                for nibble, child in enumerate(children):
                    if child:
                        yield from _leaves(database, child, path + bytes([nibble]), seen)
                if value:
                    yield path, value
                return
    raise LedgerError(f"the trie's node at {path.hex()} is none of a list's")


def _nibbles(key: bytes) -> bytes:
    return bytes(nibble for byte in key for nibble in (byte >> 4, byte & 15))


def _path(nibbles: bytes, *, leaf: bool) -> bytes:
    flag = 2 * leaf + len(nibbles) % 2
    whole = bytes([flag]) + nibbles if len(nibbles) % 2 else bytes([flag, 0]) + nibbles
    return bytes(high << 4 | low for high, low in zip(whole[::2], whole[1::2], strict=True))
