"""The EVM ledger: determinism, py-evm as judge of its blocks, payloads, clocks, keys and files."""

import itertools
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
from eth.chains.base import Chain
from eth.db.atomic import AtomicDB
from eth.vm.forks.prague import PragueVM
from eth_keys.datatypes import PrivateKey, Signature
from makers import (
    EPOCH_S,
    KEYS,
    MINED,
    OPERATOR,
    device,
    gradient,
    head_of,
    model,
    of_phases,
    payload,
    run_of,
    seal,
    server,
    vote,
)

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, digest, simulated_keys
from flower_bfl.chain_adapter._chain import GUARD
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.chain_adapter.signing import sign
from flower_bfl.errors import ConfigError, LedgerError, PayloadError, RejectedError


def recorded(ledger: EvmLedger, rounds: int = 2, *, mined: bool = False) -> EvmLedger:
    ledger.open(KEYS, MINED if mined else None)
    for phase in run_of(rounds, mined=mined):
        ledger.record(phase)
    return ledger


class JudgeVM(PragueVM):
    extra_data_max_bytes = 97  # room for the seal, which a chain of this form needs


class Judge(Chain):
    """py-evm's own chain, nothing of ours."""

    vm_configuration = ((0, JudgeVM),)
    chain_id = 0xBF1


# ---- one input, one chain


@pytest.mark.parametrize("payloads", ["auto", "full", "digest"])
def test_two_runs_give_the_same_chain_bit_for_bit(tmp_path, payloads):
    runs = [recorded(EvmLedger(folder, payloads=payloads)) for folder in (None, None, tmp_path / "run")]
    assert len({run.block_hash for run in runs}) == 1
    assert len({(run.block_number, run.transactions, run.gas, run.contract_address) for run in runs}) == 1
    runs[-1].close()


def test_a_run_in_two_sittings_gives_the_same_chain(tmp_path):
    whole = recorded(EvmLedger())
    for phase in run_of(2):
        ledger = EvmLedger(tmp_path)
        ledger.open(KEYS)
        ledger.record(phase)
        ledger.close()
    assert EvmLedger(tmp_path).block_hash == whole.block_hash
    assert (EvmLedger(tmp_path).transactions, EvmLedger(tmp_path).gas) == (whole.transactions, whole.gas)


def test_other_keys_give_another_chain_and_the_same_models():
    one, other = recorded(EvmLedger()), EvmLedger()
    other.open(simulated_keys(8))
    for phase in run_of(2):
        other.record(phase)
    assert one.block_hash != other.block_hash
    assert one.head == other.head


# ---- py-evm, unchanged and with all its checks, takes every block


@pytest.mark.parametrize("payloads", ["auto", "full"])
def test_py_evm_imports_every_block(payloads):
    """Signatures, nonces, gas, state, receipts, base fee: all computed again by code that is not ours."""
    ledger = recorded(EvmLedger(payloads=payloads), rounds=3, mined=True)
    ledger.record([gradient(4, device(index), size=170_000 if index == 3 else 5_000) for index in range(18)])
    with pytest.raises(RejectedError):
        ledger.record([gradient(4, device(20)), gradient(4, device(0))])
    new = Entry(Kind.GRADIENT, 4, device(30), b"its own")
    signed = replace(new, signature=sign(KEYS(new.sender), ledger.domain, 2, 4, 0, digest(b"its own")))
    ledger.record([signed, vote(4, 1, 0), model(4, server(1)), seal(4, device(0)), gradient(5, device(0))])

    source = Judge(AtomicDB(ledger._database))
    genesis = source.get_canonical_block_header_by_number(0)
    target = AtomicDB()
    operator = PrivateKey(KEYS(OPERATOR)).public_key.to_canonical_address()
    state = {operator: {"balance": 10**40, "nonce": 0, "code": b"", "storage": {}}}
    fields = ("difficulty", "gas_limit", "timestamp", "base_fee_per_gas", "extra_data")
    judge = Judge.from_genesis(target, {name: getattr(genesis, name) for name in fields}, state)
    assert judge.get_canonical_head().hash == genesis.hash
    blocks = [source.get_canonical_block_by_number(n) for n in range(1, ledger.block_number + 1)]
    for block in blocks:
        judge.import_block(block, perform_validation=True)
    assert judge.get_canonical_head().hash == ledger.block_hash
    assert sum(len(block.transactions) for block in blocks) == ledger.transactions
    assert sum(block.header.gas_used for block in blocks) == ledger.gas
    for block in blocks:
        assert sum(ledger.gas_of(block.number)) == block.header.gas_used


def test_what_was_recorded_is_said_with_its_place():
    ledger = recorded(EvmLedger(), mined=True)
    chain = Judge(AtomicDB(ledger._database))
    heads = []
    for each in ledger.recorded():
        transaction = chain.get_canonical_block_by_number(each.block).transactions[each.transaction]
        assert (each.transaction_hash, each.account) == (transaction.hash, transaction.sender)
        key = PrivateKey(KEYS(each.entry.sender))
        assert each.account == key.public_key.to_canonical_address()
        assert each.digest == sha256(each.entry.payload).digest()
        assert each.calldata_bytes == len(each.entry.payload)
        heads += [each.bfl_hash] * bool(each.bfl_hash)
    entries = of_phases(run_of(2, mined=True))
    assert heads[0] == head_of(entries[:2])
    assert heads[-1] == ledger.head == head_of(entries, MINED.difficulty_bits)
    assert len(heads) == 3


@pytest.mark.parametrize("mined", [False, True])
def test_the_operator_seals_every_block(mined):
    """The signature in the extra data is one of the header without it, by eth_keys and py-evm's own RLP."""
    ledger = recorded(EvmLedger(), mined=mined)
    chain = Judge(AtomicDB(ledger._database))
    for number in range(1, ledger.block_number + 1):
        header = chain.get_canonical_block_header_by_number(number)
        text, signature = header.extra_data[:-65], Signature(header.extra_data[-65:])
        signer = signature.recover_public_key_from_msg_hash(header.copy(extra_data=text).hash)
        assert signer == PrivateKey(KEYS(OPERATOR)).public_key


# ---- where payloads go


@pytest.mark.parametrize(
    ("payloads", "size", "in_calldata"),
    [
        ("auto", 24_000, True), ("auto", 24_001, False), ("full", 24_001, True), ("full", 200_000, True),
        ("digest", 1, False),
    ],
)  # fmt: skip
def test_where_a_payload_goes(tmp_path, payloads, size, in_calldata):
    ledger = EvmLedger(tmp_path, payloads=payloads)
    ledger.open(KEYS)
    receipt = ledger.record([Entry(Kind.GRADIENT, 0, device(0), b"\x07" * size)])
    assert (receipt.calldata_bytes, receipt.stored_bytes) == ((size, 0) if in_calldata else (0, size))
    assert (tmp_path / "payloads").exists() == (not in_calldata)
    pieces = -(-size // 80_000) if size > 80_000 and in_calldata else 0
    assert receipt.transactions == 2 + pieces  # registration, pieces, entry
    ledger.close()


def test_a_run_may_change_its_payload_mode(tmp_path):
    everything = []
    for mode, payloads in enumerate(["auto", "digest", "full"]):
        ledger = EvmLedger(tmp_path, payloads=payloads)
        ledger.open(KEYS)
        for step, size in enumerate([100, 50_000, 170_000], start=10 * mode):
            entry = Entry(Kind.GRADIENT, 0, device(0), b"\x07" * size, step)
            ledger.record([entry])
            everything.append(entry)
        ledger.close()
    assert list(EvmLedger(tmp_path).entries()) == everything


def test_a_lost_or_changed_payload_is_named(tmp_path):
    ledger = recorded(EvmLedger(tmp_path, payloads="digest"))
    stored = sorted((tmp_path / "payloads").iterdir())
    original = stored[0].read_bytes()
    stored[0].write_bytes(original[:-1] + b"!")
    with pytest.raises(
        PayloadError, match=rf"block \d+, transaction \d+: payload .*{stored[0].name} must have digest"
    ):
        list(ledger.entries())
    stored[0].unlink()
    with pytest.raises(
        PayloadError, match=rf"block \d+, transaction \d+: payload file .*{stored[0].name} is missing"
    ):
        list(ledger.entries())
    ledger.close()


def test_a_refused_phase_leaves_no_payload_file(tmp_path):
    ledger = EvmLedger(tmp_path)
    ledger.open(KEYS)
    with pytest.raises(RejectedError):
        ledger.record([gradient(0, device(0), size=30_000), Entry(Kind.CONSENSUS, 0, device(0), b"x")])
    assert not list((tmp_path / "payloads").iterdir())
    ledger.close()


# ---- time


def test_without_a_clock_time_is_logical():
    ledger = recorded(EvmLedger())
    headers = Judge(AtomicDB(ledger._database))
    times = [
        headers.get_canonical_block_header_by_number(n).timestamp for n in range(ledger.block_number + 1)
    ]
    assert times == [EPOCH_S + n for n in range(ledger.block_number + 1)]


def test_a_clock_sets_times_and_may_stand_still_or_go_back():
    """Times of blocks and of BFL blocks rise all the same, as the chain and the contract ask."""
    ticks = iter([5_000_000_000, 5_000_000_000, *[4_000_000_000] * 100])
    ledger = recorded(EvmLedger(clock=lambda: next(ticks)))
    headers = Judge(AtomicDB(ledger._database))
    times = [
        headers.get_canonical_block_header_by_number(n).timestamp for n in range(ledger.block_number + 1)
    ]
    assert times[1] == 5_000_000_000
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert ledger.head != head_of(of_phases(run_of(2)))
    assert len(list(ledger.entries())) == sum(map(len, run_of(2)))


# ---- keys, files, other processes


def test_a_chain_opens_only_with_its_own_operators_keys(tmp_path):
    recorded(EvmLedger(tmp_path)).close()
    ledger = EvmLedger(tmp_path)
    with pytest.raises(LedgerError, match=rf"`keys` must be those of the chain in {tmp_path}"):
        ledger.open(simulated_keys(8))
    with pytest.raises(LedgerError, match="call `open"):
        ledger.record([model(3)])
    ledger.close()


def test_another_key_for_a_registered_device_is_refused(tmp_path):
    recorded(EvmLedger(tmp_path)).close()
    ledger = EvmLedger(tmp_path)
    ledger.open(lambda sender: (KEYS if sender != device(1) else simulated_keys(8))(sender))
    with pytest.raises(RejectedError, match=r"registration refused, IndexTaken \(index 1\): device 1"):
        ledger.record([gradient(3, device(1))])
    ledger.record([gradient(3, device(0))])
    ledger.close()


def test_one_key_for_two_devices_is_refused():
    ledger = EvmLedger()
    ledger.open(lambda sender: KEYS(device(0) if sender == device(1) else sender))
    ledger.record([gradient(0, device(0))])
    with pytest.raises(RejectedError, match=r"registration refused, AlreadyRegistered .*: device 1"):
        ledger.record([gradient(0, device(1))])
    assert list(ledger.entries()) == [gradient(0, device(0))]


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\xff" * 32])
def test_a_void_key(key):
    with pytest.raises(ConfigError, match=r"`keys` must give 32 bytes .* for operator"):
        EvmLedger().open(lambda sender: key)


def test_an_unknown_payload_mode():
    with pytest.raises(
        ConfigError, match=r"`payloads` must be one of \['auto', 'digest', 'full'\], got 'ipfs'"
    ):
        EvmLedger(payloads="ipfs")


def test_reading_makes_no_files(tmp_path):
    ledger = EvmLedger(tmp_path / "none")
    assert ledger.head == bytes(32) and ledger.block_number == 0 and list(ledger.entries()) == []
    assert not (tmp_path / "none").exists()


def test_reading_needs_no_keys(tmp_path):
    recorded(EvmLedger(tmp_path, payloads="digest"), mined=True).close()
    for read_only in (False, True):
        ledger = EvmLedger(tmp_path, read_only=read_only)
        assert list(ledger.entries()) == of_phases(run_of(2, mined=True))
        assert ledger.head == head_of(of_phases(run_of(2, mined=True)), MINED.difficulty_bits)
        assert ledger.rules == MINED
        ledger.close()


def test_a_ledger_that_is_read_only_records_nothing(tmp_path):
    recorded(EvmLedger(tmp_path)).close()
    ledger = EvmLedger(tmp_path, read_only=True)
    with pytest.raises(LedgerError, match="read only"):
        ledger.open(KEYS)
    with pytest.raises(LedgerError, match="call `open"):
        ledger.record([gradient(3, device(0))])
    ledger.close()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        LedgerError, match=f"chain file {tmp_path / 'taken' / 'chain.sqlite'} cannot be opened"
    ):
        EvmLedger(tmp_path / "taken").open(KEYS)


def test_a_file_that_is_no_chain(tmp_path):
    (tmp_path / "chain.sqlite").write_text("not SQLite at all" * 100)
    with pytest.raises(LedgerError, match="file is not a database"):
        EvmLedger(tmp_path).open(KEYS)


def test_payloads_that_cannot_be_stored_leave_the_chain_as_it_was(tmp_path):
    ledger = recorded(EvmLedger(tmp_path))
    before = ledger.block_hash
    (tmp_path / "payloads").write_text("a file where the folder should be")
    with pytest.raises(LedgerError, match=f"payload folder {tmp_path / 'payloads'} cannot be written"):
        ledger.record([gradient(3, device(0), size=30_000), gradient(3, device(7))])
    assert ledger.block_hash == before
    (tmp_path / "payloads").unlink()
    ledger.record([gradient(3, device(0), size=30_000), gradient(3, device(7))])
    assert len(list(ledger.entries())) == sum(map(len, run_of(2))) + 2
    ledger.close()


def test_a_chain_file_that_cannot_be_written_leaves_the_chain_as_it_was(tmp_path):
    ledger = recorded(EvmLedger(tmp_path))
    before = ledger.block_hash
    blocker = sqlite3.connect(tmp_path / "chain.sqlite", isolation_level=None)
    ledger._database._connection.execute("PRAGMA busy_timeout = 50")
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match=r"chain file .* cannot be written: database is locked"):
        ledger.record([gradient(3, device(0), size=30_000)])
    assert ledger.block_hash == before
    assert list((tmp_path / "payloads").iterdir()) == []
    blocker.execute("ROLLBACK")
    blocker.close()
    ledger.record([gradient(3, device(0), size=30_000)])
    ledger.close()


def test_a_chain_extended_by_another_process_is_noticed(tmp_path):
    mine, theirs = recorded(EvmLedger(tmp_path)), EvmLedger(tmp_path)
    theirs.open(KEYS)
    theirs.record([gradient(3, device(0))])
    with pytest.raises(LedgerError, match="extended by another process: open it again"):
        mine.record([gradient(3, device(1))])
    mine.close()
    mine.open(KEYS)
    mine.record([gradient(3, device(1))])
    mine.close()
    theirs.close()
    assert [entry.sender for entry in EvmLedger(tmp_path).entries()][-2:] == [device(0), device(1)]


def test_a_chain_of_another_contract_version_is_not_continued(tmp_path, monkeypatch):
    recorded(EvmLedger(tmp_path)).close()
    monkeypatch.setattr("flower_bfl.chain_adapter._contract.BYTECODE", b"another")
    with pytest.raises(LedgerError, match="not the creation of this version of the FlowerBFL contract"):
        EvmLedger(tmp_path).open(KEYS)


# ---- what the rest of the package relies on


def test_importing_the_package_does_not_load_py_evm():
    code = (
        "import sys, flower_bfl.chain_adapter as c; c.MemoryLedger(); "
        "assert not {'eth', 'rlp', 'coincurve', 'web3'} & set(sys.modules); "
        "c.EvmLedger; assert 'eth' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ})


def test_an_unknown_name_is_an_attribute_error():
    import flower_bfl.chain_adapter

    with pytest.raises(AttributeError, match="no attribute 'EvmLedgers'"):
        _ = flower_bfl.chain_adapter.EvmLedgers


def test_the_database_forgets_what_was_not_committed():
    database = ChainDatabase(None, GUARD)
    database[b"a"] = b"1"
    database.commit()
    database[b"a"] = b"2"
    del database[b"a"]
    assert b"a" not in database
    database.rollback()
    assert database[b"a"] == b"1"
    del database[b"a"]
    database.commit()
    with pytest.raises(KeyError):
        database[b"a"]


def test_a_full_cache_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("flower_bfl.chain_adapter._sqlite._CACHED_VALUES", 40)
    ledger = recorded(EvmLedger(tmp_path))
    assert ledger.block_hash == recorded(EvmLedger()).block_hash
    assert len(ledger._database._committed) < 200
    ledger.close()


def test_payloads_of_entries_are_what_was_encoded():
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([Entry(Kind.GRADIENT, 0, device(0), payload(3, 5000))])
    assert [entry.payload for entry in ledger.entries()] == [payload(3, 5000)]
