"""One byte altered anywhere in what a run left behind: the audit finds it, or the byte has no meaning.

That a byte has no meaning is shown twice. A full dump of the database, by table scan, by index and by looking
up each key, is the same as before; and SQLite's file format says that nothing is kept in that byte.
"""

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rlp
from eth_hash.auto import keccak
from toy_run import Toy

from flower_bfl.audit import audit

SERVERS = np.array([[0.6, 0.4], [0.4, 0.6]])
RUNS = {"payloads in calldata": "auto", "payloads in files": "digest"}


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Path]]:
    """Two runs, in memory where there is such a place: they are altered there, a byte at a time."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        folders = {name: Path(path) / name for name in RUNS}
        for name, folder in folders.items():
            toy = Toy(devices=3, steps=1, mixing=SERVERS, payloads=RUNS[name])
            toy.own_keys, toy.offloads = (1, 2), {2: 0}
            toy.record(folder)
            assert audit(folder).finding is None
        yield folders


class Altered:
    """A file in which, for as long as the block lasts, one byte is another one."""

    def __init__(self, path: Path, offset: int, flip: int) -> None:
        self._path, self._offset, self._flip = path, offset, flip

    def _write(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._offset)
            (byte,) = file.read(1)
            file.seek(self._offset)
            file.write(bytes([byte ^ self._flip]))

    def __enter__(self) -> None:
        self._write()

    def __exit__(self, *_error: object) -> None:
        self._write()


# -- the database as a file ----------------------------------------------------------------------------------


def dump(path: Path) -> tuple[object, ...]:
    """Everything that is in a database: its schema, and its rows by table scan, by index and by key."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = bytes
    try:
        rows = connection.execute(
            "SELECT rowid, typeof(key), key, typeof(value), value FROM chain NOT INDEXED"
        ).fetchall()
        index = connection.execute(
            "SELECT key, rowid FROM chain INDEXED BY sqlite_autoindex_chain_1 ORDER BY key"
        ).fetchall()
        by_key = [
            connection.execute("SELECT rowid, value FROM chain WHERE key = ?", (row[2],)).fetchall()
            for row in rows
        ]
        return connection.execute("SELECT * FROM sqlite_master").fetchall(), rows, index, by_key
    finally:
        connection.close()


HEADER_FIELDS = {
    "format version, to write": range(18, 19),
    "format version, to read": range(19, 20),
    "change counter": range(24, 28),
    "schema cookie": range(40, 44),
    "schema format": range(44, 48),  # of features that this schema does not use
    "cache size": range(48, 52),
    "text encoding": range(56, 60),  # of which there is none in the rows
    "user version": range(60, 64),
    "application id": range(68, 72),
    "reserved": range(72, 92),
    "change counter of the size": range(92, 96),
    "SQLite's version": range(96, 100),
}


class FileFormat:
    """Which bytes of a database hold nothing, by https://www.sqlite.org/fileformat2.html.

    For databases such as this: without auto-vacuum and without bytes reserved at the pages' ends.
    """

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._page = int.from_bytes(self._data[16:18], "big")
        self._used = bytearray(len(self._data))
        self._name = ["free page"] * (len(self._data) // self._page)
        self._use(0, 100)
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
        roots = [row[0] for row in connection.execute("SELECT rootpage FROM sqlite_master")]
        connection.close()
        for root in (1, *roots):
            self._read_tree(root)
        self._read_free_pages(self._number(32, 4))

    def meaningless(self, offset: int) -> str | None:
        """What an offset is, if nothing is kept there."""
        if offset < 100:
            return next((name for name, place in HEADER_FIELDS.items() if offset in place), None)
        return None if self._used[offset] else self._name[offset // self._page]

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for _ in range(8):
            byte, at = self._data[at], at + 1
            value = value << 7 | byte & 127
            if byte < 128:
                return value, at
        return value << 8 | self._data[at], at + 1

    def _use(self, start: int, stop: int) -> None:
        self._used[start:stop] = bytes([1]) * (stop - start)

    def _read_tree(self, page: int) -> None:
        base = (page - 1) * self._page
        at = base + (100 if page == 1 else 0)
        kind, free, cells = self._data[at], self._number(at + 1, 2), self._number(at + 3, 2)
        pointers = at + (8 if kind in (10, 13) else 12)
        self._name[page - 1] = f"unused space of {'an index' if kind in (2, 10) else 'a table'} page"
        self._use(at, pointers + 2 * cells)
        while free:
            self._use(base + free, base + free + 4)
            free = self._number(base + free, 2)
        for place in range(cells):
            self._read_cell(base + self._number(pointers + 2 * place, 2), kind)
        if kind in (2, 5):
            self._read_tree(self._number(at + 8, 4))

    def _read_cell(self, start: int, kind: int) -> None:
        at = start
        if kind in (2, 5):
            self._read_tree(self._number(at, 4))
            at += 4
        payload, at = self._varint(at)
        if kind == 5:  # which was the row's number
            return self._use(start, at)
        if kind == 13:
            _, at = self._varint(at)
        least = (self._page - 12) * 32 // 255 - 23
        most = self._page - 35 if kind == 13 else (self._page - 12) * 64 // 255 - 23
        here = payload
        if payload > most:
            here = least + (payload - least) % (self._page - 4)
            here = here if here <= most else least
            self._read_overflow(self._number(at + here, 4), payload - here)
            at += 4
        self._use(start, at + here)
        return None

    def _read_overflow(self, page: int, left: int) -> None:
        while page:
            base = (page - 1) * self._page
            self._name[page - 1] = "rest of an overflow page"
            self._use(base, base + 4 + min(left, self._page - 4))
            page, left = self._number(base, 4), left - (self._page - 4)

    def _read_free_pages(self, trunk: int) -> None:
        while trunk:
            base = (trunk - 1) * self._page
            self._use(base, base + 8 + 4 * self._number(base + 4, 4))
            trunk = self._number(base, 4)


def alter_database(folder: Path, offsets: list[int], seed: int) -> Counter[str]:
    """Alter bytes of the database, one at a time; returns what the bytes were that no one can notice."""
    path, rng = folder / "chain" / "chain.sqlite", random.Random(seed)
    before, contents, layout = path.read_bytes(), dump(path), FileFormat(path)
    unnoticed: Counter[str] = Counter()
    for offset in offsets:
        flip = rng.randint(1, 255)
        with Altered(path, offset, flip):
            if audit(folder).finding is not None:
                continue
            name = layout.meaningless(offset)
            assert name is not None, f"byte {offset}, flipped by {flip}, must be found"
            assert dump(path) == contents, f"byte {offset} ({name}), flipped by {flip}, must be found"
            unnoticed[name] += 1
    assert path.read_bytes() == before
    return unnoticed


@pytest.mark.parametrize("name", RUNS)
def test_every_byte_of_the_files_header(name, runs):
    unnoticed = alter_database(runs[name], list(range(100)), seed=1)
    assert unnoticed.keys() <= HEADER_FIELDS.keys()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("number", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_byte_of_the_file(number, name, runs):
    size = (runs[name] / "chain" / "chain.sqlite").stat().st_size
    offsets = random.Random(2).choices(range(size), k=number)
    unnoticed = alter_database(runs[name], offsets, seed=3)
    assert sum(unnoticed.values()) < number / 2


# -- the rows of the database: headers, transactions, receipts, state, and where things are ------------------


class AlteredRows:
    """A database in which SQL has changed something; it is as before after the block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "chain" / "chain.sqlite"
        self._before = self._path.read_bytes()
        self._connection = sqlite3.connect(self._path, isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_error: object) -> None:
        self._connection.close()
        self._path.write_bytes(self._before)


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ rng.randint(1, 255)]) + data[at + 1 :]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("number", [200, pytest.param(5_000, marks=pytest.mark.slow)])
def test_any_byte_of_a_row(number, name, runs):
    """The file is one that SQLite could have written; every byte of every row has a meaning."""
    rng, path = random.Random(4), runs[name] / "chain" / "chain.sqlite"
    rows = dump(path)[1]
    for _ in range(number):
        row, _, key, _, value = rng.choice(rows)
        column = rng.choice(["key", "value"]) if value else "key"
        new = flipped(key if column == "key" else value, rng)
        with AlteredRows(runs[name]) as connection:
            connection.execute(f"UPDATE OR REPLACE chain SET {column} = ? WHERE rowid = ?", (new, row))
            assert audit(runs[name]).finding is not None, (column, key, value, new)


@pytest.mark.parametrize("number", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_any_byte_of_the_last_header_with_all_that_refers_to_it_made_to_fit(number, runs):
    """No hash tells: only the operator's seal, which nobody else can make."""
    folder = runs["payloads in calldata"]
    rng, path = random.Random(5), folder / "chain" / "chain.sqlite"
    rows = {row[2]: row[4] for row in dump(path)[1]}
    head = rows[b"v1:canonical_head_hash"]
    (number_key,) = (key for key, value in rows.items() if value == rlp.encode(head))
    rules = Counter[str]()
    for _ in range(number):
        header = flipped(rows[head], rng)
        new = keccak(header)
        with AlteredRows(folder) as connection:
            change = "UPDATE chain SET key = ?, value = ? WHERE key = ?"
            connection.execute(change, (new, header, head))
            connection.execute(change, (number_key, rlp.encode(new), number_key))
            connection.execute(change, (b"v1:canonical_head_hash", new, b"v1:canonical_head_hash"))
            score = f"block-hash-to-score:{head!r}".encode()
            connection.execute(change, (f"block-hash-to-score:{new!r}".encode(), rows[score], score))
            finding = audit(folder).finding
        assert finding is not None, header
        rules["seal" if "seal" in finding.rule else "other"] += 1
    assert rules["seal"] > number / 4


# -- payload files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_any_byte_of_a_payload_file(number, runs):
    folder = runs["payloads in files"]
    rng, files = random.Random(6), sorted((folder / "chain" / "payloads").iterdir())
    for _ in range(number):
        file = rng.choice(files)
        with Altered(file, rng.randrange(file.stat().st_size), rng.randint(1, 255)):
            finding = audit(folder).finding
            assert finding is not None and finding.expected == file.name.split(".")[0]
            assert finding.block is not None and finding.transaction is not None and finding.account


def test_any_cut_of_a_file(runs, tmp_path):
    """At the end of the chain, and of a payload."""
    folder = Path(shutil.copytree(runs["payloads in files"], tmp_path / "run"))
    payload = next((folder / "chain" / "payloads").iterdir())
    for path, lengths in (
        (payload, (0, 1, 100)),
        (folder / "chain" / "chain.sqlite", (0, 100, 4096, 50_000)),
    ):
        whole = path.read_bytes()
        for length in lengths:
            path.write_bytes(whole[:length])
            assert audit(folder).finding is not None
        path.write_bytes(whole)
    assert audit(folder).finding is None
