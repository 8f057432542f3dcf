"""Power cuts and full disks: what a ledger refers to is there, and what it refuses leaves nothing behind."""

import os
import shutil
from pathlib import Path

import pytest
from makers import KEYS, device, gradient, model

from flower_bfl.chain_adapter import EvmLedger
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.errors import LedgerError


def phase(k: int, size: int = 30_000) -> list:
    gradients = [gradient(k, device(n), size=size + n) for n in range(3)] if k else []
    return [*gradients, model(k)]


def test_the_disk_has_the_payloads_before_the_chain_refers_to_them(tmp_path, monkeypatch):
    """And the names of the files, too: those of the folder."""
    told: list[str] = []
    commit = ChainDatabase.commit

    def committing(database: ChainDatabase) -> None:
        told.append("commit")
        commit(database)

    monkeypatch.setattr(os, "fsync", lambda file: told.append(Path(f"/proc/self/fd/{file}").readlink().name))
    monkeypatch.setattr(ChainDatabase, "commit", committing)
    ledger = EvmLedger(tmp_path)
    ledger.open(KEYS)
    ledger.record(phase(0))
    del told[:]
    ledger.record(phase(1))
    files = {file.name for file in (tmp_path / "payloads").iterdir()}
    assert len(files) == 3
    assert [*sorted(told[:3]), *told[3:]] == [*sorted(files), "payloads", tmp_path.name, "commit"]


@pytest.mark.parametrize(("fsync", "level"), [(True, 2), (False, 1)])
def test_the_disk_has_a_block_when_it_is_recorded(tmp_path, fsync, level):
    """SQLite's FULL: its WAL is flushed with each commit; NORMAL: now and then."""
    ledger = EvmLedger(tmp_path, fsync=fsync)
    ledger.open(KEYS)
    assert ledger._database._connection.execute("PRAGMA synchronous").fetchone() == (level,)


def cut(folder: Path, to: Path, size: int | None) -> None:
    """The folder after a power cut that took all of the WAL behind its first `size` bytes."""
    shutil.copytree(folder, to)
    wal = to / "chain.sqlite-wal"
    (to / "chain.sqlite-shm").unlink(missing_ok=True)
    if size is not None:
        os.truncate(wal, size)


def test_whatever_a_power_cut_takes_of_the_log_a_whole_chain_is_left(tmp_path):
    """A chain of fewer rounds, that goes on; payloads of the lost ones are there already."""
    folder = tmp_path / "chain"
    ledger = EvmLedger(folder, fsync=False)
    ledger.open(KEYS)
    sizes = []
    for k in range(4):
        ledger.record(phase(k))
        sizes.append((folder / "chain.sqlite-wal").stat().st_size)
    heights = []
    for number, size in enumerate([0, 100, *sizes, sizes[1] + 5_000, sizes[2] - 1]):
        to = tmp_path / str(number)
        cut(folder, to, size)
        left = EvmLedger(to)
        entries = list(left.entries())
        heights.append(len({entry.round for entry in entries}))
        assert entries == [entry for k in range(heights[-1]) for entry in phase(k)]
        left.open(KEYS)
        left.record(phase(heights[-1]))
        left.close()
        assert list(EvmLedger(to).entries()) == [entry for k in range(heights[-1] + 1) for entry in phase(k)]
    assert heights == [0, 0, 1, 2, 3, 4, 2, 2]


def test_a_full_disk_ends_a_phase_and_not_the_chain(small_disk):
    """Nothing of the phase is there; once there is room, it is recorded after all."""
    ledger = EvmLedger(small_disk / "chain")
    ledger.open(KEYS)
    ledger.record(phase(0))
    ballast, k = small_disk / "ballast", 1
    ballast.write_bytes(bytes(800_000))
    with pytest.raises(LedgerError, match=r"(No space left on device|disk is full)"):
        while True:
            ledger.record(phase(k, 60_000))
            k += 1
    done = [entry for j in range(k) for entry in phase(j, 60_000)]
    assert k > 1
    assert list(ledger.entries()) == done
    ballast.unlink()
    ledger.record(phase(k, 60_000))
    ledger.close()
    ledger = EvmLedger(small_disk / "chain")
    assert list(ledger.entries()) == [*done, *phase(k, 60_000)]
    ledger.check_file()
    ledger.close()


@pytest.mark.parametrize("beside", ["a WAL and its index", "a WAL", "nothing"])
def test_reading_a_chain_that_was_broken_off_leaves_no_trace(tmp_path, beside):
    """Not even in SQLite's files, also those of a process that was killed."""
    folder = tmp_path / "chain"
    writer = EvmLedger(folder)
    writer.open(KEYS)
    for k in range(2):
        writer.record(phase(k))
    if beside == "nothing":
        writer.close()
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    if beside == "a WAL":
        (left / "chain.sqlite-shm").unlink()
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in left.glob("chain*")}
    assert len(before) == {"a WAL and its index": 3, "a WAL": 2, "nothing": 1}[beside]
    reader = EvmLedger(left, read_only=True)
    assert list(reader.entries()) == [entry for k in range(2) for entry in phase(k)]
    reader.close()
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in left.glob("chain*")} == before
