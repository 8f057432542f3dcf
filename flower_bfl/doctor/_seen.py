"""What is seen of a run folder, from one check to the next."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flower_bfl.doctor._chain import Chain

ROUNDS, MODEL = "rounds.jsonl", "model.safetensors"
CHAIN, NODE, PAYLOADS = "chain/chain.sqlite", "chain/chain.json", "chain/payloads"
FILES = (CHAIN, f"{CHAIN}-wal", f"{CHAIN}-shm", NODE, ROUNDS, MODEL, "network.json")
FOLDERS = ("", "chain", PAYLOADS)
NAMED = 3  # files, where there are many


@dataclass
class Seen:
    """What was seen of a run folder so far."""

    folder: Path
    lines: list[bytes] | None = None  # of rounds.jsonl
    model: str | None = None  # digest of model.safetensors
    in_use: bool = False  # a process has locked the folder
    wal: tuple[int, int] | None = None
    chain: "Chain | None" = None
    blockers: list[str] = field(default_factory=list)  # why it cannot go on

    @property
    def told(self) -> list[bytes]:
        """The lines of rounds.jsonl that are whole."""
        return [line for line in self.lines or () if line.endswith(b"\n")]

    @property
    def on_node(self) -> bool:
        """Whether the chain is on a node."""
        return (self.folder / NODE).exists() and not (self.folder / CHAIN).exists()


def wal_of(folder: Path) -> tuple[int, int] | None:
    """Size and time of the WAL; None if there is none, as when the chain was closed."""
    try:
        found = (folder / f"{CHAIN}-wal").stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def entries(folder: Path) -> list[Path]:
    """What is in a folder, if there is one."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def some(names: list[str], one: str, many: str) -> str:
    """A few of many names, and what they do."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} {one if len(names) == 1 else many}"


def count(number: int, one: str, many: str) -> str:
    """As in "1 line" and "2 lines"."""
    return f"{number} {one if number == 1 else many}"


def quoted(path: Path) -> str:
    """For a shell."""
    return shlex.quote(str(path))
