"""The folder that a run leaves behind: rounds.jsonl, the global model, and the network of a controller."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flower_bfl.errors import RunFolderError
from flower_bfl.types import RoundReport


class RunFolder:
    """Appends reports and keeps the latest global model.

    Refuses a folder that holds a run, unless it is to be gone on with (`resume`).
    """

    def __init__(self, path: Path | str, *, resume: bool = False) -> None:
        self.path = Path(path).absolute()
        self._rounds = self.path / "rounds.jsonl"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if self._rounds.exists() and not resume:
                raise RunFolderError(f"`run_folder` must not hold a run already, got {self.path}")
            self._rounds.touch()

    def go_on(self, last: int) -> list[RoundReport]:
        """The reports up to a round, and an end to all that was written of later ones.

        The line of that round may be missing; raises RunFolderError if one before it is, or cannot be read.
        """
        with self._writing():
            if self._rounds.is_symlink() or not self._rounds.is_file():
                raise RunFolderError(f"{self._rounds} must be a file")
            lines = self._rounds.read_bytes().splitlines(keepends=True)
        reports = [self._read(k, line) for k, line in enumerate(lines[: last + 1]) if line.endswith(b"\n")]
        if len(reports) < last:
            raise RunFolderError(
                f"{self._rounds} must have a line for each round of the run, up to {last - 1} at least, "
                f"got {len(reports)} lines"
            )
        self._replace(self._rounds, b"".join(lines[: len(reports)]))
        return reports

    def append(self, report: RoundReport) -> None:
        """Add one line to rounds.jsonl; raises RunFolderError if it cannot be written.

        It outlasts a power cut, as the round does on the ledger.
        """
        line = json.dumps(_without_nan(report.as_json()), allow_nan=False)
        with self._writing(), self._rounds.open("a", encoding="utf-8") as file:
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

    def _replace(self, file: Path, content: bytes) -> None:
        part = file.with_name(f"{file.name}.part")
        with self._writing():
            with part.open("wb") as writing:
                writing.write(content)
                writing.flush()
                os.fsync(writing.fileno())
            part.replace(file)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"`run_folder` must be writable, got {self.path}: {error.strerror}"
            ) from error


def _without_nan(value: object) -> object:
    """JSON has neither NaN nor infinity; a metric that is one of them becomes null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
