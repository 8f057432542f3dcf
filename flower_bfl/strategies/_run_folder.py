"""The folder that a run leaves behind: rounds.jsonl, the global model, and the network of a controller."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flower_bfl.errors import RunFolderError
from flower_bfl.types import RoundReport


class RunFolder:
    """Appends reports and keeps the latest global model; refuses a folder that holds another run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._rounds = self.path / "rounds.jsonl"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if self._rounds.exists():
                raise RunFolderError(f"`run_folder` must not hold a run already, got {self.path}")
            self._rounds.touch()

    def append(self, report: RoundReport) -> None:
        """Add one line to rounds.jsonl; raises RunFolderError if it cannot be written."""
        line = json.dumps(_without_nan(report.as_json()), allow_nan=False)
        with self._writing(), self._rounds.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save_model(self, payload: bytes) -> None:
        """Replace model.safetensors; a reader sees the old or the new one, never half of it."""
        part = self.path / "model.safetensors.part"
        with self._writing():
            part.write_bytes(payload)
            part.replace(self.path / "model.safetensors")

    def save_network(self, network: Mapping[str, object]) -> None:
        """Write network.json: where edge servers and devices are."""
        with self._writing():
            (self.path / "network.json").write_text(json.dumps(network) + "\n", encoding="utf-8")

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
