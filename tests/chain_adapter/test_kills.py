"""kill -9 at any instant: no phase that was reported is lost, none is there by half, and the run goes on."""

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from makers import KEYS, device, gradient, model

from flower_bfl.chain_adapter import Entry, EvmLedger

LIVES = 20  # of one chain


def phase(k: int) -> list[Entry]:
    """Payloads in calldata and in the store."""
    gradients = [gradient(k, device(n), size=n * 20_000 + 5) for n in range(3)] if k else []
    return [*gradients, model(k)]


def expected(phases: int) -> list[Entry]:
    return [entry for k in range(phases) for entry in phase(k)]


def write(folder: Path, done: int, reports: int, before: Callable[[EvmLedger, int], None]) -> None:
    """What a life does: go on where the chain ends, and report every phase that `record` returned from."""
    ledger = EvmLedger(folder)
    ledger.open(KEYS)
    while True:
        before(ledger, done)
        ledger.record(phase(done))
        done += 1
        os.write(reports, done.to_bytes(4, "big"))


def fork(
    folder: Path, done: int, before: Callable[[EvmLedger, int], None] = lambda ledger, k: None
) -> tuple[int, int]:
    """Start a life; returns its process id and where it reports."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(folder, done, writing, before)
        finally:
            os._exit(1)
    os.close(writing)
    return child, reading


def last_report(reading: int) -> int:
    with os.fdopen(reading, "rb") as pipe:
        reported = pipe.read()
    return int.from_bytes(reported[-4:], "big") if reported else 0


def phases_on(folder: Path) -> int:
    """How many phases the chain has, all of them whole and as they were written."""
    ledger = EvmLedger(folder)
    entries = [recorded.entry for recorded in ledger.recorded()]
    ledger.close()
    phases = 1 + (len(entries) - 1) // 4 if entries else 0
    assert entries == expected(phases), "whole phases, in order"
    return phases


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_it_may_be_killed_at_any_instant(tmp_path, kills):
    """At random instants: from the start of a life, or after its first or second phase."""
    draw = random.Random(1)
    for chain in range(kills // LIVES):
        folder = tmp_path / str(chain)
        present = 0
        for _ in range(LIVES):
            child, reading = fork(folder, present)
            for _ in range(awaited := draw.choice([0, 0, 1, 2])):
                assert len(os.read(reading, 4)) == 4, "the writer must not end by itself"
            time.sleep(draw.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "the writer must not end by itself"
            reported = max(last_report(reading), present + awaited)
            present = phases_on(folder)
            assert present >= reported, "nothing that was reported is lost"
        EvmLedger(folder).check_file()


@pytest.mark.parametrize(
    ("statement", "number"), [("BEGIN", 1), ("INSERT", 1), ("INSERT", 20), ("COMMIT", 1)]
)
def test_a_death_inside_a_commit(tmp_path, statement, number):
    """When SQLite starts on that statement of the third phase: none, some or all of its block is written."""

    def before(ledger: EvmLedger, k: int) -> None:
        if k == 2:
            end_at(ledger._database._connection, statement, number)

    child, reading = fork(tmp_path, 0, before)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert last_report(reading) == 2
    assert phases_on(tmp_path) == 2
    ledger = EvmLedger(tmp_path)
    ledger.check_file()
    ledger.open(KEYS)
    ledger.record(phase(2))
    ledger.close()
    assert phases_on(tmp_path) == 3


def end_at(connection: sqlite3.Connection, start: str, number: int) -> None:
    seen = []

    def trace(statement: str) -> None:
        seen.extend([statement] * statement.startswith(start))
        if len(seen) == number:
            os._exit(9)

    connection.set_trace_callback(trace)
