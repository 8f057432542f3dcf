"""The folder that a run leaves behind: rounds.jsonl and the global model."""

import json
from pathlib import Path

from flower_bfl.errors import RunFolderError
from flower_bfl.types import RoundReport


class RunFolder:
    """Appends reports and keeps the latest global model; refuses a folder that holds another run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._rounds = self.path / "rounds.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._rounds.open("x").close()
        except FileExistsError as error:
            raise RunFolderError(f"`run_folder` must not hold a run already, got {self.path}") from error
        except OSError as error:
            raise RunFolderError(
                f"`run_folder` must be writable, got {self.path}: {error.strerror}"
            ) from error

    def append(self, report: RoundReport) -> None:
        """Add one line to rounds.jsonl."""
        with self._rounds.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.as_json()) + "\n")

    def save_model(self, payload: bytes) -> None:
        """Replace model.safetensors; a reader sees the old or the new one, never half of it."""
        part = self.path / "model.safetensors.part"
        part.write_bytes(payload)
        part.replace(self.path / "model.safetensors")
