"""A content-addressed store of payloads: the name of a payload is its SHA-256."""

import os
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from flower_bfl.chain_adapter.base import digest as digest_of
from flower_bfl.errors import LedgerError, PayloadError

# A link in place of a payload is not followed, and a pipe not waited for. Windows has neither flag.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


_FLUSHERS = 16


def _flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_file(path: Path) -> bytes:
    """The content of a file; raises OSError for anything but a regular one, such as a link to one."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        return file.read()


class Payloads(Protocol):
    """Somewhere to keep payloads under their digest: a folder, or IPFS behind the same few methods."""

    def __contains__(self, digest: bytes) -> bool:
        """Whether the payload is there; need not look into it."""

    def write(self, payload: bytes, digest: bytes | None = None) -> bytes:
        """Keep a payload and return its digest; raises LedgerError if it cannot be kept."""

    def flush(self) -> None:
        """Make sure that what was written outlasts a power cut; raises LedgerError if it does not.

        A ledger calls it before it refers to a payload.
        """

    def read(self, digest: bytes) -> bytes:
        """The payload with this digest; raises PayloadError if it is missing or another one."""

    def discard(self, digests: Iterable[bytes]) -> None:
        """Forget payloads that nothing refers to; missing ones are passed over."""


class PayloadStore:
    """Payloads as files ``<digest in hex>.safetensors`` in one folder, or in memory.

    A file appears under its name only when it is whole (written beside it, then renamed), so a killed process
    leaves no half payload under a digest.

    Parameters
    ----------
    folder
        made if missing, at the first write; None keeps payloads in memory.
    fsync
        whether `flush` waits for the disk. Without that, a power cut may cost payloads to which a chain
        refers already; that is noticed when they are read, by their digest.
    """

    def __init__(self, folder: Path | str | None = None, *, fsync: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self._fsync = fsync
        self._written: list[Path] = []  # since the last flush
        self._flushed = False  # ever
        self._memory: dict[bytes, bytes] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._memory if self.folder is None else self._path(self.folder, digest).exists()

    def write(self, payload: bytes, digest: bytes | None = None) -> bytes:
        """Keep a payload and return its digest; pass `digest` if it was computed already.

        A file that has it already is not written again. Raises LedgerError if the folder cannot be written.
        """
        name = digest_of(payload) if digest is None else digest
        if self.folder is None:
            self._memory[name] = payload
        else:
            try:
                self._write_file(self.folder, self._path(self.folder, name), payload)
            except OSError as error:
                raise LedgerError(f"payload folder {self.folder} cannot be written: {error}") from error
        return name

    def flush(self) -> None:
        """Wait until the disk has what was written; side by side, which takes a tenth of one by one."""
        written = list(self._written)
        if self.folder is not None and written and self._fsync:
            try:
                with ThreadPoolExecutor(min(_FLUSHERS, len(written))) as pool:
                    list(pool.map(_flush, written))
                _flush(self.folder)
                if not self._flushed:
                    _flush(self.folder.parent)  # which has the name of a new folder
            except OSError as error:
                raise LedgerError(f"payload folder {self.folder} cannot be written: {error}") from error
            self._flushed = True
        self._written.clear()

    def read(self, digest: bytes) -> bytes:
        """The payload with this digest; raises PayloadError if it is missing or not what it should be."""
        if self.folder is None:
            if digest not in self._memory:
                raise PayloadError(f"payload {digest.hex()} is missing from the store in memory")
            payload, place = self._memory[digest], "in memory"
        else:
            path = self._path(self.folder, digest)
            try:
                payload, place = read_file(path), str(path)
            except FileNotFoundError as error:
                raise PayloadError(
                    f"payload file {path} is missing", expected=digest.hex(), found="nothing"
                ) from error
            except (OSError, MemoryError) as error:
                raise PayloadError(f"payload file {path} cannot be read: {error}") from error
        found = digest_of(payload)
        if found != digest:
            raise PayloadError(
                f"payload {place} must have digest {digest.hex()}, found {found.hex()}",
                expected=digest.hex(),
                found=found.hex(),
            )
        return payload

    def discard(self, digests: Iterable[bytes]) -> None:
        """Forget payloads whose entries were not recorded after all; missing ones are passed over."""
        for digest in digests:
            self._memory.pop(digest, None)
            if self.folder is not None:
                path = self._path(self.folder, digest)
                self._written = [each for each in self._written if each != path]
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, digest: bytes) -> Path:
        return folder / f"{digest.hex()}.safetensors"

    def _write_file(self, folder: Path, path: Path, payload: bytes) -> None:
        self._written.append(path)
        with suppress(OSError):
            if path.stat().st_size == len(payload) and read_file(path) == payload:
                return  # the size alone may be all that a power cut has left of it
        folder.mkdir(parents=True, exist_ok=True)
        # Not `tempfile`, whose files only their owner may read: an auditor may be somebody else.
        temporary = folder / f".{path.stem}-{os.getpid()}-{threading.get_ident()}"
        try:
            with temporary.open("wb", buffering=0) as file:
                rest = memoryview(payload)
                while rest:  # an unbuffered write may take a part only
                    rest = rest[file.write(rest) :]
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
