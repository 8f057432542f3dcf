"""The chain's keys and values: in memory, and in one SQLite file if there is one."""

import sqlite3
from pathlib import Path

from eth.db.backends.base import BaseDB
from eth_hash.auto import keccak

from flower_bfl.errors import LedgerError

_HASH_BYTES = 32  # keys of this length, and no others, are the hash of their value
_CACHED_VALUES = 100_000  # some 50 MB; most of it is old state
_CACHED_BYTES = 1024  # trie nodes are smaller; what is larger is a transaction's and hardly read again


class ChainDatabase(BaseDB):
    """Keys and values with a `commit` that writes all changes since the last one, or none of them.

    What is read from a file is checked: headers, transactions, code and state are kept under their hash.

    With a file, one commit is one SQLite transaction. The journal is a WAL with ``synchronous=NORMAL``: a
    killed process loses nothing that was committed, a power cut may lose the last commits but leaves a whole
    chain.

    Parameters
    ----------
    path
        the SQLite file, made if missing (its folder too); None keeps all in memory.
    guard
        key whose value changes with every commit: if it changed in the file, another process wrote there.
    """

    def __init__(self, path: Path | None, guard: bytes) -> None:
        self._path = path
        self._guard = guard
        self._committed: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            self._connection = _connect(path)
            self._seen = self._fetch(guard)

    def __getitem__(self, key: bytes) -> bytes:
        if key in self._pending:
            value = self._pending[key]
        else:
            value = self._committed.get(key)
            if value is None and self._connection is not None:
                value = self._fetch(key)
                if value is not None and len(value) <= _CACHED_BYTES:
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
        except sqlite3.Error as error:
            raise LedgerError(f"chain file {self._path} cannot be read: {error}") from error
        if row is None:
            return None
        value: bytes = row[0]
        if len(key) == _HASH_BYTES and keccak(value) != key:
            raise LedgerError(
                f"chain file {self._path} is damaged: {key.hex()} is not the hash of what is there"
            )
        return value

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
        except sqlite3.Error as error:
            raise LedgerError(f"chain file {self._path} cannot be written: {error}") from error
        self._seen = self._pending.get(self._guard, self._seen)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # Not WITHOUT ROWID: with values of this size that takes five times as long.
            connection.execute("CREATE TABLE IF NOT EXISTS chain (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"chain file {path} cannot be opened: {error}") from error
    return connection
