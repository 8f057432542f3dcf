"""A chain's file in the hands of somebody who does not have the operator's key: damaged, or made to fit."""

import random
import sqlite3

import pytest
import rlp
from eth.chains.base import Chain
from eth.db.atomic import AtomicDB
from eth.db.schema import SchemaV1
from eth.vm.forks.prague import PragueVM
from eth_keys.datatypes import PrivateKey
from makers import KEYS, MINED, device, head_of, of_phases, run_of
from trie import HexaryTrie

from flower_bfl.chain_adapter import EvmLedger
from flower_bfl.chain_adapter._chain import GUARD
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.errors import FlowerBFLError, LedgerError

PHASES = run_of(2, mined=True)
EVERYTHING = of_phases(PHASES)
HEAD = head_of(EVERYTHING, MINED.difficulty_bits)


@pytest.fixture
def folder(tmp_path):
    ledger = EvmLedger(tmp_path)
    ledger.open(KEYS, MINED)
    for phase in PHASES:
        ledger.record(phase)
    ledger.close()
    return tmp_path


@pytest.fixture
def file(folder):
    file = sqlite3.connect(folder / "chain.sqlite", isolation_level=None)
    yield file
    file.close()


class Plain(Chain):
    vm_configuration = ((0, PragueVM),)
    chain_id = 0xBF1


def headers_of(folder):
    database = ChainDatabase(folder / "chain.sqlite", GUARD)
    chain = Plain(AtomicDB(database))
    last = chain.get_canonical_head().block_number
    headers = [chain.get_canonical_block_header_by_number(number) for number in range(last + 1)]
    database.close()
    return headers


def put(file, key: bytes, value: bytes) -> None:
    file.execute("INSERT OR REPLACE INTO chain VALUES (?, ?)", (key, value))


def make_fit(file, headers, number: int) -> None:
    """Write headers from `number` on, each under its own new hash and linked to the one before."""
    score = sum(range(number))
    for place in range(number, len(headers)):
        parent = headers[place - 1].hash if place > number else headers[place].parent_hash
        headers[place] = header = headers[place].copy(parent_hash=parent)
        score += place
        put(file, header.hash, rlp.encode(header))
        put(file, SchemaV1.make_block_number_to_hash_lookup_key(place), rlp.encode(header.hash))
        put(file, SchemaV1.make_block_hash_to_score_lookup_key(header.hash), rlp.encode(score))
    put(file, GUARD, headers[-1].hash)


def other(value):
    return value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]


def found_out(folder) -> LedgerError:
    ledger = EvmLedger(folder, read_only=True)
    try:
        with pytest.raises(LedgerError) as caught:
            list(ledger.entries())
    finally:
        ledger.close()
    return caught.value


def test_a_made_up_rewriting_that_changes_nothing_is_taken(folder, file):
    """Else the tests below would show that the file is broken, not that the change is noticed."""
    make_fit(file, headers_of(folder), 1)
    assert list(EvmLedger(folder).entries()) == EVERYTHING


@pytest.mark.parametrize("number", [1, 4, -1])
def test_every_field_of_every_header_is_under_the_operators_seal(folder, file, number):
    headers = headers_of(folder)
    number %= len(headers)
    fields = [name for name in headers[number]._meta.field_names if name != "parent_hash"]
    assert len(fields) == 20
    for field in fields:
        forged = list(headers)
        forged[number] = headers[number].copy(**{field: other(getattr(headers[number], field))})
        make_fit(file, forged, number)
        assert forged[-1].hash != headers[-1].hash
        error = found_out(folder)
        assert error.block == number or (field, error.block) == ("state_root", None), field
    make_fit(file, list(headers), number)
    assert list(EvmLedger(folder).entries()) == EVERYTHING


@pytest.mark.parametrize("field", ["state_root", "transaction_root", "receipt_root", "timestamp"])
def test_what_another_block_holds_does_not_fit_under_the_seal(folder, file, field):
    """Roots that lead to something, unlike those above."""
    headers = headers_of(folder)
    headers[-1] = headers[-1].copy(**{field: getattr(headers[-2], field)})
    make_fit(file, headers, len(headers) - 1)
    assert found_out(folder).block == len(headers) - 1


def test_a_transaction_is_not_taken_out(folder, file):
    headers = headers_of(folder)
    kept = {}
    trie = HexaryTrie(kept)
    database = ChainDatabase(folder / "chain.sqlite", GUARD)
    old = HexaryTrie(database, headers[-1].transaction_root)
    trie[rlp.encode(0)] = old[rlp.encode(0)]
    assert old[rlp.encode(1)]
    database.close()
    for key, value in kept.items():
        put(file, key, value)
    headers[-1] = headers[-1].copy(transaction_root=trie.root_hash)
    make_fit(file, headers, len(headers) - 1)
    error = found_out(folder)
    assert error.block == len(headers) - 1 and "sealed by the operator" in str(error)


def test_nobody_else_seals(folder, file):
    """Device 0, or nobody at all."""
    headers = headers_of(folder)
    text = headers[-1].extra_data[:32]
    bare = headers[-1].copy(extra_data=text, timestamp=headers[-1].timestamp + 5)
    device_0 = PrivateKey(KEYS(device(0)))
    for seal, what in (
        (device_0.sign_msg_hash(bare.hash).to_bytes(), f"found {device_0.public_key.to_address()}"),
        (b"", "is not sealed"), (bytes(65), "is not sealed"), (bytes(64), "is not sealed"),
    ):  # fmt: skip
        headers[-1] = bare.copy(extra_data=text + seal)
        make_fit(file, headers, len(headers) - 1)
        error = found_out(folder)
        assert error.block == len(headers) - 1 and what in str(error)


def test_another_genesis_needs_other_seals(folder, file):
    headers = headers_of(folder)
    headers[0] = headers[0].copy(timestamp=headers[0].timestamp + 1)
    make_fit(file, headers, 0)
    assert found_out(folder).block == 1


def test_blocks_that_are_not_linked_are_named(folder, file):
    headers = headers_of(folder)
    put(file, SchemaV1.make_block_number_to_hash_lookup_key(4), rlp.encode(headers[3].hash))
    error = found_out(folder)
    assert error.block == 4
    assert headers[3].hash.hex() in error.expected and headers[2].hash.hex() in error.found


def test_no_damage_goes_unnoticed_or_crashes(folder, file):
    """In every fourth row one bit changes: what is read is the same, or an error of ours is raised."""
    draw = random.Random(1)
    rows = file.execute("SELECT key, value FROM chain WHERE length(value) > 0 ORDER BY key").fetchall()
    noticed = 0
    for key, value in rows[::4] + [row for row in rows if len(row[1]) > 2000 or row[0] == GUARD]:
        damaged = bytearray(value)
        damaged[draw.randrange(len(value))] ^= 1 << draw.randrange(8)
        put(file, key, bytes(damaged))
        ledger = EvmLedger(folder)
        try:
            assert list(ledger.entries()) == EVERYTHING
            assert ledger.head == HEAD
        except FlowerBFLError:
            noticed += 1
        ledger.close()
        put(file, key, value)
    assert noticed >= 10
    assert list(EvmLedger(folder).entries()) == EVERYTHING


def test_missing_state_is_an_error_of_ours(folder, file):
    code = file.execute("DELETE FROM chain WHERE length(value) > 4000 AND length(key) = 32")
    assert code.rowcount > 0
    with pytest.raises(LedgerError):
        EvmLedger(folder).open(KEYS)
