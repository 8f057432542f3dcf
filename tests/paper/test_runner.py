"""Runs side by side: what is missing is made, whatever happens in between."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest
from hand_made import filled, latency, without_seconds

from flower_bfl._processes import end_processes, family
from flower_bfl.errors import ConfigError, FlowerBFLError
from flower_bfl.paper import app, runner
from flower_bfl.paper.experiment import parsed
from flower_bfl.paper.results import Results
from flower_bfl.paper.runner import run_missing
from flower_bfl.paper.runs import NotAvailableError

SEEDS = 2
LONG = {"states": 20_000}  # of near-optimal with 60 devices: hours


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = Results(latency(), tmp_path_factory.mktemp("undisturbed"))
    run_missing(results, SEEDS, jobs=2)
    return results


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(runner, "ProcessPoolExecutor", refuse)


def test_one_at_a_time_is_the_same(undisturbed: Results, tmp_path: Path):
    heard = []
    results = Results(latency(), tmp_path)
    run_missing(results, SEEDS, jobs=1, progress=lambda done, of: heard.append((done, of)))
    assert without_seconds(results.file) == without_seconds(undisturbed.file)
    assert heard == [(done, 8) for done in range(9)]
    assert results.seeds == SEEDS and results.missing(SEEDS) == []


def test_only_what_is_missing_is_made(tmp_path: Path):
    results = filled(latency(), tmp_path, {(3, "greedy"): [-1.0], (5, "all-local"): [-2.0, -3.0]})
    heard = []
    run_missing(results, 1, jobs=1, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(2, 4), (3, 4), (4, 4)]
    totals = {(*run.key.values(), run.seed): run.rows[0]["total_s"] for run in results.runs}
    kept = {(3, "greedy", 0): -1.0, (5, "all-local", 0): -2.0, (5, "all-local", 1): -3.0}
    assert kept.items() <= totals.items()
    assert min(totals[each] for each in totals.keys() - kept.keys()) > 0 and len(totals) == 5


def test_nothing_missing_no_process(undisturbed: Results, no_processes: None):
    heard = []
    run_missing(undisturbed, SEEDS, progress=lambda done, of: heard.append((done, of)))
    assert heard == [(8, 8)]


def test_fewer_threads_and_no_telemetry_end_with_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    seen = []

    def note(done: int, of: int) -> None:
        seen.append([os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "MKL")])

    run_missing(Results(latency({"devices": [3]}), tmp_path), 1, jobs=1, progress=note)
    assert seen == [["7", None], ["1", "1"]]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_a_run_that_raises_leaves_the_others(tmp_path: Path):
    """Another run is under way by then, and is kept; a third one is not begun."""
    grid = {"devices": [20], "states": [-1, 3, 4], "algorithm": ["near-optimal"]}
    results = Results(latency(grid), tmp_path)
    with pytest.raises(ValueError, match="-1"):
        run_missing(results, 1, jobs=2)
    assert [run.key["states"] for run in results.runs] == [3]
    assert Results(results.experiment, tmp_path).runs == results.runs


@pytest.mark.timeout(60)
def test_who_listens_may_stop_it(tmp_path: Path):
    """As when a disk is full: nobody waits hours for a run that cannot be kept."""
    grid = {"devices": [60], "algorithm": ["all-local", "near-optimal"]}
    results = Results(latency(grid, settings=LONG), tmp_path)

    def stop(done: int, of: int) -> None:
        if done:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as stopped:  # kept: its frames must not keep the pool
        run_missing(results, 1, jobs=2, progress=stop)
    assert multiprocessing.active_children() == []
    assert stopped.tb is not None
    assert len(results.runs) == 1


def test_a_process_that_is_killed_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the kernel does when memory is short."""
    marker = f"FLOWER_BFL_TEST_{uuid4().hex}"
    monkeypatch.setenv(marker, "1")

    def kill() -> None:
        while not (workers := family(marker, set())):
            time.sleep(0.1)
        time.sleep(1)
        for worker in workers:
            if b"spawn_main" in Path(f"/proc/{worker.pid}/cmdline").read_bytes():
                os.kill(worker.pid, signal.SIGKILL)

    Thread(target=kill, daemon=True).start()
    results = Results(latency({"devices": [60], "algorithm": ["near-optimal"]}, settings=LONG), tmp_path)
    with pytest.raises(FlowerBFLError, match="ended from outside"):
        run_missing(results, 1, jobs=1)


@pytest.mark.usefixtures("no_processes")
def test_what_cannot_be_run_is_told_before_a_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def missing(*_: object) -> None:
        raise ConfigError("`folder` must hold SVHN's files")

    monkeypatch.setattr(app, "load", missing)
    app.loaded.cache_clear()
    settings = {"dataset": "svhn", "rounds": 1}
    content = {
        "title": "t",
        "run": "training",
        "settings": settings,
        "grid": [{"vary": {"scheme": ["ours"]}}],
    }
    results = Results(parsed("svhn", content), tmp_path)
    with pytest.raises(NotAvailableError, match="SVHN's files"):
        run_missing(results, 1)
    assert not results.file.exists()


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwith-mhz": 3.0}, "`settings` may have .*got 'bandwith-mhz'"),
        ({"algorithm": "ours-unsorted"}, "`algorithm` must be one of .*got 'ours-unsorted'"),
    ],
)
def test_wrong_settings_are_told_before_a_process_starts(settings, message, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        run_missing(Results(latency({"devices": [3]}, settings=settings), tmp_path), 1)


# --- in a process that is stopped ---------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
from hand_made import latency
from flower_bfl.paper.results import Results
from flower_bfl.paper.runner import run_missing

if __name__ == "__main__":
    grid, settings = json.loads(sys.argv[2])
    results = Results(latency(*grid, settings=settings), Path(sys.argv[1]))
    run_missing(results, 2, jobs=2, progress=lambda done, of: print(done, flush=True))
"""


class Script:
    """An experiment in a process of its own, whose children can be counted."""

    def __init__(self, folder: Path, *grid: dict[str, list], **settings: object) -> None:
        self.marker = f"FLOWER_BFL_TEST_{uuid4().hex}"
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        script = folder / "script.py"
        script.write_text(SCRIPT)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), json.dumps([grid, settings])],
            env={**os.environ, self.marker: "1", "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A job in a shell's background ignores interrupts, and so does all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait_for(self, done: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if int(line) >= done:
                return
        raise AssertionError(self.process.stderr.read() if self.process.stderr else "")

    def wait_for_workers(self, count: int) -> None:
        """Until so many have begun: all but the process itself and multiprocessing's resource tracker."""
        deadline = time.monotonic() + 60
        while len(family(self.marker, set())) < count + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def left(self, within_s: float) -> int:
        deadline = time.monotonic() + within_s
        while (count := len(family(self.marker, set()))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return count


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[list[Script]]:
    begun: list[Script] = []
    yield begun
    for script in begun:
        end_processes(script.marker)
        script.process.communicate()


def test_killed_and_begun_again_it_comes_to_the_same(undisturbed: Results, scripts: list, tmp_path: Path):
    scripts.append(Script(tmp_path))
    scripts[0].wait_for(2)
    scripts[0].process.kill()
    assert scripts[0].left(within_s=10) == 0, "processes of a pool outlive their parent"
    kept = len(Results(latency(), tmp_path).runs)
    assert 2 <= kept <= 8
    run_missing(Results(latency(), tmp_path), SEEDS, jobs=2)
    assert without_seconds(tmp_path / "tiny.csv") == without_seconds(undisturbed.file)


@pytest.mark.parametrize("who", ["the process", "all, as by Ctrl-C"])
def test_an_interrupt_ends_all_within_seconds(who, scripts: list, tmp_path: Path):
    grid = {"devices": [3, 60], "algorithm": ["near-optimal"]}
    scripts.append(script := Script(tmp_path, grid, **LONG))
    script.wait_for(0)
    script.wait_for_workers(2)
    time.sleep(1.5)
    began = time.monotonic()
    (os.kill if who == "the process" else os.killpg)(script.process.pid, signal.SIGINT)
    _, errors = script.process.communicate(timeout=30)
    assert time.monotonic() - began < 8
    assert script.left(within_s=2) == 0
    assert script.process.returncode not in (0, None)
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
