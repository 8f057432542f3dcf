"""Make the runs of an experiment that are not there yet, several at a time, each in a process of its own."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from threading import Thread
from time import perf_counter
from typing import Any

from flower_bfl.errors import FlowerBFLError
from flower_bfl.paper.experiment import Settings, Value
from flower_bfl.paper.results import Results
from flower_bfl.paper.runs import KINDS, Row

Progress = Callable[[int, int], None]
"""Hears how many of how many runs are there."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_NO_TELEMETRY = {"FLWR_TELEMETRY_ENABLED": "0"}


def run_missing(results: Results, seeds: int, *, jobs: int = 2, progress: Progress | None = None) -> None:
    """Make what is missing of so many seeds, and keep each run as it ends.

    Whoever stops it, by Ctrl-C or kill, loses the runs that were under way, and no other.

    Raises:
        ConfigError: a setting breaks a rule.
        NotAvailableError: a run cannot be made here, for lack of a data set, say.
        FlowerBFLError: the process of a run was ended from outside.
        Exception: what a run raised. No other is begun then, but those under way go on to their end, and are
            kept.
    """
    tasks = results.missing(seeds)
    kind = results.experiment.run
    total = seeds * len(list(results.experiment.runs()))
    hear = progress or (lambda done, of: None)
    hear(total - len(tasks), total)
    for each in results.experiment.runs() if tasks else ():
        KINDS[kind].check(each)
    with closing(_made(kind, tasks, jobs)) as made:
        for done, (settings, (rows, seconds)) in enumerate(made, start=1):
            results.add(settings, rows, seconds)
            hear(total - len(tasks) + done, total)


def _made(
    kind: str, tasks: list[dict[str, Value]], jobs: int
) -> Generator[tuple[Settings, tuple[list[Row], float]]]:
    if not tasks:
        return
    waiting = iter(tasks)
    running: dict[Future[Any], Settings] = {}
    failed: BaseException | None = None
    with _environment(), _pool(jobs) as pool:
        while True:
            while not failed and len(running) < jobs and (settings := next(waiting, None)) is not None:
                running[pool.submit(_timed, kind, settings)] = settings
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made = running.pop(future)
                if error := future.exception():
                    failed = failed or error
                else:
                    yield made, future.result()
        if failed:
            raise failed


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once if anything is raised here, and with this process, whatever ends it."""
    others = multiprocessing.active_children()
    # Spawned: a fork would inherit the threads of PyTorch and Flower in the middle of whatever they do.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise FlowerBFLError(
            "the process of a run was ended from outside, for want of memory perhaps"
        ) from error
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it: a pool's processes wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a process of the pool"
    parent.join()
    os._exit(1)


def _timed(kind: str, settings: Settings) -> tuple[list[Row], float]:
    began = perf_counter()
    rows = KINDS[kind].run(settings)
    return rows, perf_counter() - began


@contextmanager
def _environment() -> Iterator[None]:
    """For the processes: one thread each, which changes no result and is faster for several of them."""
    before = {name: os.environ.get(name) for name in (*_ONE_THREAD, *_NO_TELEMETRY)}
    os.environ.update({**_ONE_THREAD, **_NO_TELEMETRY})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
