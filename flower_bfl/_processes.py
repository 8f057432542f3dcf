"""Find the processes that descend from ours, whatever they did since, and end them.

A process is found by a marker in the environment that it inherited. That survives what groups, sessions and
parents do not: daemons that start sessions of their own and parents that end before their children.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_GRACE_S = 3.0  # between SIGTERM and SIGKILL
_GIVE_UP_S = 10.0  # a process that is still there then hangs in the kernel


@dataclass(frozen=True)
class Process:
    """A process that runs; the start time tells it from a later one that is given the same number."""

    pid: int
    parent: int
    group: int
    started: str


def end_processes(marker: str) -> None:
    """End every process that has `marker` in its environment, and their children: SIGTERM, then SIGKILL.

    The SuperLink and the SuperExec start sessions of their own, so that no one group or session holds them
    all. The environment finds them, but not those of Ray's that write a title over theirs: these are
    children of a marked process or, their parent gone, still in the group that a marked process leads.
    """
    start = time.monotonic()
    asked: set[int] = set()
    known: set[Process] = set()
    while time.monotonic() < start + _GIVE_UP_S:
        known = family(marker, known)
        if not known:
            return
        for process in known:
            if time.monotonic() > start + _GRACE_S:
                _send(process.pid, signal.SIGKILL)
            elif process.pid not in asked:
                _send(process.pid, signal.SIGTERM)
                asked.add(process.pid)
        time.sleep(0.1)


def family(marker: str, known: set[Process]) -> set[Process]:
    """Those of `known` that still run, those marked, the groups that these lead, and all descendants."""
    running = _running_processes()
    identities = {(process.pid, process.started) for process in known}
    members = {process.pid for process in running if (process.pid, process.started) in identities}
    members |= _marked(marker, running)
    members |= {process.pid for process in running if process.group in members}
    while children := {process.pid for process in running if process.parent in members} - members:
        members |= children
    return {process for process in running if process.pid in members and process.pid != os.getpid()}


def _running_processes() -> list[Process]:
    """Every process, without those that have ended and only wait for their parents to ask."""
    if not Path("/proc/self/stat").exists():  # macOS; lstart is five words, as in Sat Nov 22 15:49:00 2025
        rows = (line.split(maxsplit=4) for line in _ps("-ax", "-o", "stat=,pid=,ppid=,pgid=,lstart="))
        return [Process(int(row[1]), int(row[2]), int(row[3]), row[4]) for row in rows if row[0][0] != "Z"]
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has just ended
            continue
        # proc(5): pid (name) state ppid pgrp ... starttime is field 22; the name may hold blanks, brackets
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in "ZX":
            processes.append(Process(int(entry.name), int(fields[1]), int(fields[2]), fields[19]))
    return processes


def _marked(marker: str, running: list[Process]) -> set[int]:
    """Numbers of the processes that have `marker` in the environment they were started with."""
    if not Path("/proc/self/environ").exists():
        lines = _ps("-ax", "-E", "-ww", "-o", "pid=,command=")
        return {int(line.split(maxsplit=1)[0]) for line in lines if f"{marker}=" in line}
    marked = set()
    for process in running:
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:  # it has just ended, or is somebody else's
            continue
        if f"{marker}=".encode() in environment:
            marked.add(process.pid)
    return marked


def _ps(*options: str) -> list[str]:
    done = subprocess.run(["ps", *options], capture_output=True, encoding="utf-8", errors="replace")
    return [line for line in done.stdout.splitlines() if line.strip()]


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended by itself
        os.kill(pid, number)


# --- signals ------------------------------------------------------------------------------------------

_Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that `finally` blocks run; only where nobody else did."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    unused = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    with _handled(unused, leave):
        yield


@contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not stop the clean-up after the first; it takes seconds."""
    with _handled([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], signal.SIG_IGN):
        yield


@contextmanager
def _handled(numbers: list[signal.Signals], handler: _Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows it there only
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
