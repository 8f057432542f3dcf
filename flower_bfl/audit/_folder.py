"""A run folder as an audit reads it: nothing in it is changed, and no link is followed out of it."""

import json
import os
from collections.abc import Generator, Iterable
from hashlib import file_digest
from pathlib import Path

from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import digest as digest_of
from flower_bfl.chain_adapter.encoding import shallow
from flower_bfl.chain_adapter.pyevm import EvmLedger
from flower_bfl.chain_adapter.store import read_file
from flower_bfl.errors import LedgerError, PayloadError, RunFolderError

_CHAIN = "chain/chain.sqlite"
_PAYLOADS = "chain/payloads"
_ROUNDS = "rounds.jsonl"
_MODEL = "model.safetensors"
_PARTS = (_CHAIN, f"{_CHAIN}-wal", f"{_CHAIN}-shm", f"{_CHAIN}-journal", _PAYLOADS, _ROUNDS, _MODEL)

_DEPTH = 8  # of the JSON in rounds.jsonl


class AuditedStore:
    """A folder of payloads, laid out as by `PayloadStore`, that remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: set[bytes] = set()

    def __contains__(self, digest: bytes) -> bool:
        return self._path(digest).is_file()

    def read(self, digest: bytes) -> bytes:
        """The payload with this digest; raises PayloadError if it is missing or another one."""
        self._asked.add(digest)
        path = self._path(digest)
        try:
            payload = read_file(path)
        except (OSError, MemoryError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"not readable: {error}"
            message = f"payload file {path.name} is {reason}"
            raise PayloadError(message, expected=digest.hex(), found=reason) from error
        if (found := digest_of(payload)) != digest:
            message = f"payload file {path.name} must have the digest in its name"
            raise PayloadError(message, expected=digest.hex(), found=found.hex())
        return payload

    def write(self, payload: bytes, digest: bytes | None = None) -> bytes:
        """Refused: an audit changes nothing."""
        raise LedgerError("`write` needs a store that may be written, got one that is audited")

    def flush(self) -> None:
        """An audit writes nothing."""

    def discard(self, digests: Iterable[bytes]) -> None:
        """Refused: an audit changes nothing."""
        raise LedgerError("`discard` needs a store that may be written, got one that is audited")

    def unasked(self) -> list[str]:
        """What is in the folder beside the payloads that were asked for."""
        asked = {self._path(digest).name for digest in self._asked}
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.name not in asked)

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.safetensors"


class AuditedFolder:
    """The chain of a run as it is now, and what else its folder says about each round."""

    def __init__(self, path: Path) -> None:
        if not (path / _CHAIN).is_file():
            raise RunFolderError(f"`run_folder` must hold a run with a chain, {_CHAIN}, got {path}")
        for part in _PARTS:
            if not Path(target := os.path.realpath(path / part)).is_relative_to(os.path.realpath(path)):
                raise LedgerError(f"{part} must lie in the run folder", expected="no link", found=target)
        # In the order opposite to that of writing: of a run in progress, the chain is ahead of the rest.
        self._rounds = path / _ROUNDS
        self._size = self._rounds.stat().st_size if self._rounds.is_file() else None
        self._model = _digest_of_file(path / _MODEL)
        self.store = AuditedStore(path / _PAYLOADS)
        self.ledger = EvmLedger(path / "chain", store=self.store, read_only=True)
        self.notes: list[str] = []
        self._lines = self._read_lines()
        self._told = -1  # last round in rounds.jsonl
        self._models_round = -1  # whose model is in the folder
        self._last = (-1, "")  # round on the chain, and its model's digest

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self.ledger.close()

    def check_round(self, server_round: int, model: bytes, at: Recorded) -> None:
        """Compare what the folder says about a round with its model's digest and the entry that ended it."""
        self._last = server_round, model.hex()
        if model.hex() == self._model:
            self._models_round = server_round
        line = next(self._lines, None)
        if line is None:
            return
        self._told = server_round
        known = {"round": server_round, "head": at.bfl_hash.hex(), "model_digest": model.hex()}
        if server_round == 0:
            del known["model_digest"]  # only rounds that trained report it
        for name, expected in known.items():
            if line.get(name) != expected:
                rule = f"{_ROUNDS} must have the chain's {name} of round {server_round}"
                raise LedgerError(rule, block=at.block, expected=str(expected), found=str(line.get(name)))

    def finish(self) -> None:
        """Check what can be told at the chain's end only."""
        last, model = self._last
        if (line := next(self._lines, None)) is not None:
            rule, expected = f"the chain must not end before {_ROUNDS}", f"round {line.get('round')}"
            raise LedgerError(rule, expected=expected, found=f"round {last} as the last")
        if self._size is None:
            self.notes.append(f"no {_ROUNDS}: only a head kept elsewhere shows whether the chain was cut off")
        elif self._told < last:
            self.notes.append(f"{_ROUNDS} ends with round {self._told}, the chain with round {last}")
        if self._model is None and self._told < 1:
            self.notes.append(f"no {_MODEL}")
        elif self._models_round < (last if self._size is None else self._told):
            raise LedgerError(f"{_MODEL} must be the last model", expected=model, found=self._model or "none")
        if extra := self.store.unasked():
            self.notes.append(
                f"{len(extra)} files in {_PAYLOADS} to which nothing refers, such as {_printable(extra[0])}"
            )

    def _read_lines(self) -> Generator[dict[str, object], None, None]:
        left = self._size or 0
        if not left:
            return
        with self._rounds.open("rb") as file:
            while left and (text := file.readline(left)):
                left -= len(text)
                try:
                    line = json.loads(shallow(text, _DEPTH))
                    if not isinstance(line, dict):
                        raise ValueError("not an object")
                except ValueError as error:
                    if not text.endswith(b"\n"):
                        self.notes.append(f"the last line of {_ROUNDS} is cut off")
                        return
                    rule = f"each line of {_ROUNDS} must be a JSON object"
                    raise LedgerError(rule, expected="an object", found=f"{text[:40]!r}: {error}") from error
                yield line


def _digest_of_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _printable(name: str) -> str:
    """A file's name, whatever bytes it is of, such as escape codes."""
    return name if name.isprintable() else ascii(name)
