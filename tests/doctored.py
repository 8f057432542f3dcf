"""What tests of the doctor share: runs, whole and killed, what is found of them, and a quick installation."""

import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from flower_bfl import ConsensusBFL, EvmLedger, Mining
from flower_bfl.doctor import Finding, _installation, check_run_folder

STRATEGIES = Path(__file__).parent / "strategies"
ROUNDS = 3
PHASES = 5  # of a round: gradients, three states, the model
SETTINGS = {"edge_servers": 3, "p2p_rounds": 2, "mining": Mining(difficulty_bits=2), "wait_for_nodes_s": 0.2}

MORTAL = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {strategies!r}]
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
from doctored import EvmLedger, go

class Mortal(EvmLedger):
    left = {phases}
    def record(self, entries):
        receipt = super().record(entries)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return receipt

go({folder!r}, 3, make=Mortal)
"""


def go(folder, rounds: int, make: Callable = EvmLedger, **settings) -> None:
    """A run, or the rest of one; its payloads are in files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STRATEGIES)
        from federation import Federation, initial, walker

    folder = Path(folder)
    ledger = make(folder / "chain", payloads="digest")
    strategy = ConsensusBFL(ledger=ledger, run_folder=folder, fraction_evaluate=0.0, **SETTINGS | settings)
    devices = [walker(n, named=True) for n in range(4)]
    strategy.start(Federation(devices), initial(), num_rounds=rounds)
    ledger.close()


def killed(folder: Path, phases: int) -> Path:
    """A run whose process died with SIGKILL once it had recorded so many phases."""
    tests = str(Path(__file__).parent)
    script = MORTAL.format(tests=tests, strategies=str(STRATEGIES), phases=phases, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    return folder


def everything(folder: Path) -> dict[str, tuple[object, ...]]:
    """Names, contents and times of all files."""
    return {
        str(path): (
            path.lstat().st_mtime_ns,
            str(path.readlink()) if path.is_symlink() else "",
            sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
        if folder.exists()
    }


def look(folder: Path, **options) -> dict[str, Finding]:
    """The findings by what was looked at, with nothing changed."""
    before = everything(folder)
    found = list(check_run_folder(folder, **options))
    assert everything(folder) == before
    names = [finding.what for finding in found]
    assert len(set(names)) == len(names)
    return {finding.what: finding for finding in found}


def wrong(found: dict[str, Finding]) -> set[str]:
    return {what for what, finding in found.items() if finding.state == "wrong"}


@pytest.fixture(name="quick")
def quick_fixture(monkeypatch) -> None:
    """Everything loads, at once."""
    monkeypatch.setattr(_installation, "try_out", lambda names: dict.fromkeys(names))
