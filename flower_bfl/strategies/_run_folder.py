"""The folder that a run leaves behind: rounds.jsonl, the global model, and the network of a controller."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from logging import WARNING, getLogger
from pathlib import Path
from weakref import finalize

from flower_bfl.errors import RunFolderError
from flower_bfl.types import RoundReport

logger = getLogger("flwr")


class RunFolder:
    """Appends reports and keeps the latest global model, for one process at a time.

    Refuses a folder that holds a run, unless it is to be gone on with (`resume`), and one with links: what is
    written goes into this folder and nowhere else.
    """

    def __init__(self, path: Path | str, *, resume: bool = False) -> None:
        self.path = Path(path).absolute()
        self._rounds = self.path / "rounds.jsonl"
        self._before = self.path / "rounds-before.jsonl"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if self._rounds.exists() and not resume:
                raise RunFolderError(f"`run_folder` must not hold a run already, got {self.path}")
            self._refuse_links()
            self._lock = os.open(self.path, os.O_RDONLY)
            self.close = finalize(self, os.close, self._lock)  # which ends the lock
            try:
                flock(self._lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    f"`run_folder` must be one process's at a time, got {self.path}, where a run goes on"
                ) from None
            self._rounds.touch()

    def check_new(self) -> None:
        """Raise RunFolderError if there are reports already, although the ledger has no run."""
        with self._writing():
            if b"\n" in self._rounds.read_bytes():
                raise RunFolderError(
                    f"`ledger` must be that of the run in {self.path}, got one without a run"
                )

    def go_on(self, last: int) -> list[RoundReport]:
        """The reports up to a round, and an end to all that was written of later ones.

        The line of that round may be missing; raises RunFolderError if one before it is, or cannot be read.
        Lines of later rounds are kept beside the file, for a ledger should not lose rounds.
        """
        with self._writing():
            lines = self._rounds.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        reports = [self._read(k, line) for k, line in enumerate(whole[: last + 1])]
        if len(reports) < last:
            raise RunFolderError(
                f"{self._rounds} must have a line for each round of the run, up to {last - 1} at least, "
                f"got {len(reports)} lines; without a `run_folder` the run goes on from its ledger alone"
            )
        if len(whole) > last + 1:
            logger.log(
                WARNING, "the ledger ends with round %d, %s with round %d: the latter is kept as %s",
                last, self._rounds, len(whole) - 1, self._before,
            )  # fmt: skip
            self._replace(self._before, b"".join(lines))
        self._replace(self._rounds, b"".join(whole[: len(reports)]))
        return reports

    def append(self, report: RoundReport) -> None:
        """Add one line to rounds.jsonl; raises RunFolderError if it cannot be written.

        It outlasts a power cut, as the round does on the ledger.
        """
        line = json.dumps(_without_nan(report.as_json()), allow_nan=False)
        with self._writing(), open(self._rounds, "a", encoding="utf-8", opener=_own) as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def save_model(self, payload: bytes) -> None:
        """Replace model.safetensors; a reader sees the old or the new one, never half of it."""
        self._replace(self.path / "model.safetensors", payload)

    def save_network(self, network: Mapping[str, object]) -> None:
        """Write network.json: where edge servers and devices are."""
        self._replace(self.path / "network.json", json.dumps(network).encode() + b"\n")

    def _read(self, k: int, line: bytes) -> RoundReport:
        try:
            report = RoundReport.from_json(json.loads(line))
            if report.round != k:
                raise ValueError(f"it is of round {report.round!r:.40}")
            metrics = (report.train, report.evaluate, report.evaluate_devices)
            if not all(isinstance(each, dict) for each in metrics):
                raise ValueError("its metrics must have names")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunFolderError(f"line {k + 1} of {self._rounds} must be round {k}'s: {error}") from error
        return report

    def _refuse_links(self) -> None:
        """Raise RunFolderError if something in the folder is elsewhere, or no file."""
        folders = [folder for folder in (self.path, self.path / "chain") if folder.is_dir()]
        for each in (each for folder in folders for each in folder.iterdir()):
            if each.is_symlink() or not (each.is_file() or each.is_dir()):
                raise RunFolderError(f"`run_folder` must hold files and folders of its own, got {each}")

    def _replace(self, file: Path, content: bytes) -> None:
        part = file.with_name(f"{file.name}.part")
        with self._writing():
            part.unlink(missing_ok=True)
            with open(part, "xb", opener=_own) as writing:
                writing.write(content)
                writing.flush()
                os.fsync(writing.fileno())
            part.replace(file)
            os.fsync(self._lock)  # which is the folder's

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"`run_folder` must be writable, got {self.path}: {error.strerror}"
            ) from error


def _own(name: str, flags: int) -> int:
    """Open a file, but not through a link."""
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)


def _without_nan(value: object) -> object:
    """JSON has neither NaN nor infinity; a metric that is one of them becomes null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
