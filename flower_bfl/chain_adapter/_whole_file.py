"""Whether a chain's file holds the rows that the chain implies, with their values, and no unknown ones.

Rows under a hash are headers, transactions, receipts, code and state; they cannot be other than they are.
All others follow from the chain: which block has which number, where a transaction is, and so on.
"""

from collections.abc import Callable, Iterator

from eth.db.schema import SchemaV1
from eth_hash.auto import keccak
from eth_typing import BlockNumber, Hash32

from flower_bfl.chain_adapter._chain import GUARD, EvmChain
from flower_bfl.chain_adapter._rlp import decode, encode, number
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.chain_adapter._trie import read_values
from flower_bfl.errors import LedgerError

_Row = tuple[bytes, bytes, int]  # key, value, block that implies it

_TRANSACTION_ROOT, _GAS_USED, _FIELDS = 4, 10, 15  # of a header

TOTALS = b"flower-bfl:totals"  # number of transactions and gas so far, 8 bytes each; not part of the chain


def totals(transactions: int, gas: int) -> bytes:
    """The value under `TOTALS`."""
    return transactions.to_bytes(8) + gas.to_bytes(8)


def check_whole_file(database: ChainDatabase, progress: Callable[[int, int], object]) -> None:
    """Raise LedgerError for the first thing in the file that is wrong.

    `progress` hears of each block and of the number of the last.
    """
    present = database.check()
    implied = 0
    for key, value, block in _implied_rows(database, progress):
        implied += 1
        found = database.get(key)
        if found != value:
            where = "nothing" if found is None else f"0x{found.hex()}"
            raise LedgerError(
                f"the row {_name(key)} of the chain's file must say what the chain implies",
                block=block,
                expected=f"0x{value.hex()}",
                found=where,
            )
    if present != implied:
        known = {key for key, _, _ in _implied_rows(database, lambda _block, _last: None)}
        unknown = next(key for key in database.other_keys() if key not in known)
        raise LedgerError(
            "the chain's file must hold no row that the chain does not imply",
            expected=f"{implied} rows beside those under their hash",
            found=f"{present}, such as {_name(unknown)}",
        )


def _implied_rows(database: ChainDatabase, progress: Callable[[int, int], object]) -> Iterator[_Row]:
    last = EvmChain(database).last.block_number
    score = transactions = gas = 0
    name = b""
    for height in range(last + 1):
        canonical = SchemaV1.make_block_number_to_hash_lookup_key(BlockNumber(height))
        name, fields = _header(database, canonical, height)
        score += height  # py-evm's, where there is no difficulty
        yield canonical, encode(name), height
        yield SchemaV1.make_block_hash_to_score_lookup_key(Hash32(name)), encode(number(score)), height
        encoded = read_values(database, fields[_TRANSACTION_ROOT])
        for position, transaction in enumerate(encoded):
            key = SchemaV1.make_transaction_hash_to_block_lookup_key(Hash32(keccak(transaction)))
            yield key, encode([number(height), number(position)]), height
        transactions += len(encoded)
        gas += int.from_bytes(fields[_GAS_USED])
        progress(height, last)
    no_gaps = encode([[], (last + 1).to_bytes(32)])
    yield GUARD, name, last
    yield SchemaV1.make_header_chain_gaps_lookup_key(), no_gaps, last
    yield SchemaV1.make_chain_gaps_lookup_key(), no_gaps, last
    yield TOTALS, totals(transactions, gas), last


def _header(database: ChainDatabase, canonical: bytes, height: int) -> tuple[bytes, list[bytes]]:
    """Hash and fields of the block of this number; that the blocks are linked is not checked here."""
    try:
        name = decode(database[canonical])
        fields = decode(database[name]) if isinstance(name, bytes) else b""
    except (KeyError, ValueError) as error:
        raise LedgerError(f"block {height} of the chain's file cannot be found: {error!r}") from error
    if (
        not isinstance(name, bytes)
        or len(name) != 32
        or not isinstance(fields, list)
        or len(fields) < _FIELDS
    ):
        raise LedgerError(
            f"the row of block {height} in the chain's file must lead to a header", block=height
        )
    return name, [field if isinstance(field, bytes) else b"" for field in fields]


def _name(key: bytes) -> str:
    return repr(key.decode(errors="backslashreplace"))
