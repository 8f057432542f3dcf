"""The chain's keys and values: in memory, and in one SQLite file if there is one."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from eth.db.backends.base import BaseDB
from eth_hash.auto import keccak

from flower_bfl.errors import LedgerError

_HASH_BYTES = 32  # keys of this length, and no others, are the hash of their value
_CACHED_VALUES = 10_000  # some 5 MB; most of it is old state, and what is asked for again costs little
_CACHED_BYTES = 1024  # trie nodes are smaller; what is larger is a transaction's and hardly read again

# Not WITHOUT ROWID: with values of this size that takes five times as long.
_TABLE = "CREATE TABLE chain (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
_TROUBLES = (sqlite3.Error, UnicodeDecodeError)  # the second for what a damaged file gives as text
_SCHEMA = [("table", "chain", "chain", _TABLE), ("index", "sqlite_autoindex_chain_1", "chain", None)]


class ChainDatabase(BaseDB):
    """Keys and values with a `commit` that writes all changes since the last one, or none of them.

    What is read from a file is checked: headers, transactions, code and state are kept under their hash.

    With a file, one commit is one SQLite transaction, in a WAL. A killed process loses nothing that was
    committed, nor does a power cut with `fsync`; without, that may take the last commits, but leaves a whole
    chain.

    Parameters
    ----------
    path
        the SQLite file, made if missing (its folder too); None keeps all in memory.
    guard
        key whose value changes with every commit: if it changed in the file, another process wrote there.
    fsync
        wait for the disk with each commit.
    read_only
        change nothing in the file, and read it as it is now, whatever another process adds meanwhile.
    """

    def __init__(
        self, path: Path | None, guard: bytes, *, fsync: bool = True, read_only: bool = False
    ) -> None:
        self._path = path
        self._guard = guard
        self._committed: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            self._connection = _connect_to_read(path) if read_only else _connect(path, fsync)
            self._seen = None if read_only else self._fetch(guard)

    def __getitem__(self, key: bytes) -> bytes:
        if key in self._pending:
            value = self._pending[key]
        else:
            value = self._committed.get(key)
            if value is None and self._connection is not None:
                value = self._fetch(key)
                if value is not None and len(value) <= _CACHED_BYTES:
                    if len(self._committed) > _CACHED_VALUES:
                        self._committed = {}
                    self._committed[key] = value
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._pending[key] = value

    def __delitem__(self, key: bytes) -> None:
        self[key]
        self._pending[key] = None

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]  # py-evm asks for bytes only
        except KeyError:
            return False
        return True

    def commit(self) -> None:
        """Keep the changes; raises LedgerError, keeping none, if the file cannot take them."""
        if self._connection is not None:
            self._write(self._connection)
            if len(self._committed) > _CACHED_VALUES:
                self._committed = {}
        for key, value in self._pending.items():
            if value is None:
                self._committed.pop(key, None)
            elif self._connection is None or len(value) <= _CACHED_BYTES:
                self._committed[key] = value
        self._pending = {}

    def rollback(self) -> None:
        """Forget the changes since the last commit."""
        self._pending = {}

    def check(self) -> int:
        """Check the whole file: SQLite's structure, the table, and each value that is kept under its hash.

        Returns the number of rows under other keys; raises LedgerError for what is wrong.
        """
        assert self._connection is not None, "what is in memory cannot be damaged"
        others = 0
        try:
            schema = self._connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
            if (found := schema.fetchall()) != _SCHEMA:
                raise self._damaged("must hold one table and its index", str(_SCHEMA), str(found))
            for (verdict,) in self._connection.execute("PRAGMA integrity_check(1)"):
                if verdict != "ok":
                    raise self._damaged("must pass SQLite's integrity check", "ok", verdict)
            for key, value in self._connection.execute("SELECT key, value FROM chain NOT INDEXED"):
                if type(key) is not bytes or type(value) is not bytes:
                    raise self._damaged("must hold bytes only", "bytes", f"{key!r}: {value!r}")
                if len(key) != _HASH_BYTES:
                    others += 1
                elif (name := keccak(value)) != key:
                    raise self._damaged("must keep each value under its hash", key.hex(), name.hex())
        except _TROUBLES as error:
            raise self._damaged("must be readable by SQLite", "a database", str(error)) from error
        return others

    def other_keys(self) -> Iterator[bytes]:
        """The keys of the rows that are not kept under their hash."""
        assert self._connection is not None
        rows = self._connection.execute("SELECT key FROM chain WHERE length(key) != ?", (_HASH_BYTES,))
        return (key for (key,) in rows)

    def close(self) -> None:
        """Close the file; in memory there is nothing to close."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._committed = {}

    def _fetch(self, key: bytes) -> bytes | None:
        assert self._connection is not None
        try:
            row = self._connection.execute("SELECT value FROM chain WHERE key = ?", (key,)).fetchone()
        except _TROUBLES as error:
            raise LedgerError(f"chain file {self._path} cannot be read: {error}") from error
        if row is None:
            return None
        value: bytes = row[0]
        if not isinstance(value, bytes) or (len(key) == _HASH_BYTES and keccak(value) != key):
            raise LedgerError(
                f"chain file {self._path} is damaged: {key.hex()} is not the hash of what is there"
            )
        return value

    def _damaged(self, rule: str, expected: str, found: str) -> LedgerError:
        message = f"chain file {self._path} {rule}, expected {expected}, found {found}"
        return LedgerError(message, expected=expected, found=found)

    def _write(self, connection: sqlite3.Connection) -> None:
        changed = [(key, value) for key, value in self._pending.items() if value is not None]
        deleted = [(key,) for key, value in self._pending.items() if value is None]
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if self._fetch(self._guard) != self._seen:
                    raise LedgerError(
                        f"chain file {self._path} was extended by another process: open it again"
                    )
                connection.executemany("INSERT OR REPLACE INTO chain VALUES (?, ?)", changed)
                connection.executemany("DELETE FROM chain WHERE key = ?", deleted)
        except _TROUBLES as error:
            raise LedgerError(f"chain file {self._path} cannot be written: {error}") from error
        self._seen = self._pending.get(self._guard, self._seen)


def _connect(path: Path, fsync: bool) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
            connection.execute(_TABLE.replace("TABLE", "TABLE IF NOT EXISTS"))
        except BaseException:
            connection.close()
            raise
    except (OSError, *_TROUBLES) as error:
        raise LedgerError(f"chain file {path} cannot be opened: {error}") from error
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """The file as it is now, with nothing beside it changed: not even the -shm that SQLite has with a WAL."""
    wal, shared = (path.with_name(path.name + end).exists() for end in ("-wal", "-shm"))
    mode = "immutable=1"  # without a WAL nobody has it open to write
    if wal:  # without a -shm nobody has it open at all, and no lock is needed
        mode = "readonly_shm=1" if shared else "vfs=unix-none"
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&{mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            if wal and not shared:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # its index in this process
            connection.execute("BEGIN")
        except BaseException:
            connection.close()
            raise
    except _TROUBLES as error:
        raise LedgerError(f"chain file {path} cannot be opened: {error}") from error
    return connection
