"""kill -9 of the server of a run, anywhere: it goes on from its ledger, and ends with the very same model.

A life is a forked process that runs, or goes on with, a small run on the disk, and kills itself at a place
that was drawn beforehand. Lives follow one another until one reaches the end.
"""

import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from federation import Federation, initial
from field import Field, Scripted, least_squares_app, new_points, roomy, start_weights
from test_resume import ABSENT, DEVICES, LIES, OLD, OUTAGES, QUIET

from flower_bfl import ConsensusBFL, EvmLedger, Mining, OnLedger
from flower_bfl.audit import audit
from flower_bfl.defences import Replay
from flower_bfl.network.settings import Tasks

ROUNDS, MOST_LIVES = 4, 40


def consensus(folder: Path, resume: bool, **settings):
    payloads = settings.pop("payloads", "auto")
    given = {"edge_servers": 4, "graph": "ring", "p2p_rounds": 2, "mining": Mining(difficulty_bits=2)}
    return ConsensusBFL(
        ledger=EvmLedger(folder / "chain", payloads=payloads), run_folder=folder, resume=resume,
        **QUIET | given | settings,
    )  # fmt: skip


def walking(**settings):
    devices = settings.pop("devices", DEVICES)

    def run(folder: Path, resume: bool):
        return consensus(folder, resume, **settings).start(Federation(devices), initial(), ROUNDS)

    return run


def on_ledger(folder: Path, resume: bool):
    from flwr.serverapp.strategy import FedAdam

    ledger = EvmLedger(folder / "chain", payloads="digest")
    strategy = OnLedger(FedAdam(fraction_evaluate=0.0), ledger, run_folder=folder, resume=resume)
    return strategy.start(Federation(DEVICES), initial(), ROUNDS)


def offloading(folder: Path, resume: bool):
    network = roomy(5, 2, tasks=Tasks(energy_slack_j=(0.5, 10.0), battery=True))
    strategy = consensus(
        folder, resume, edge_servers=2, graph="complete", p2p_rounds=1,
        controller=Scripted(network, [0, None, 1, None, 0]),
    )  # fmt: skip
    return strategy.start(Field([least_squares_app(new_points)] * 7), start_weights(), ROUNDS)


RUNS: dict[str, Callable] = {
    "reputation": walking(leader="reputation"),
    "digests": walking(payloads="digest", mining=None),
    "in full": walking(payloads="full", p2p_rounds="auto"),
    "absences": walking(devices=ABSENT, outages=OUTAGES),
    "attacks": walking(attacks=[*LIES, *OLD[1:2]], defence=Replay(), quarantine_rounds=1),
    "offloading": offloading,
    "OnLedger": on_ledger,
}


# -- places to die -------------------------------------------------------------------------------------------


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_an_instant(draw):
    """Whatever it is doing."""
    timer = threading.Timer(draw.uniform(0, 0.6), die)
    timer.daemon = True
    timer.start()


def counted(draw, most, owner, name, wrap=lambda original, *args, **options: die()):
    """Replace a function for its n-th call; `wrap` may do some of the work before it dies."""
    left, original = [draw.randrange(1, most)], getattr(owner, name)

    def mortal(*args, **options):
        left[0] -= 1
        return wrap(original, *args, **options) if left[0] == 0 else original(*args, **options)

    setattr(owner, name, mortal)


def in_a_call(draw):
    """At a line of ours, in any thread."""
    left = [draw.randrange(1, 9_000)]
    ours = os.sep + "flower_bfl" + os.sep

    def profile(frame, event, _):
        if event == "call" and ours in frame.f_code.co_filename:
            left[0] -= 1
            if left[0] == 0:
                die()

    threading.setprofile(profile)
    sys.setprofile(profile)


def in_a_commit(draw):
    """Between two statements of SQLite."""
    from flower_bfl.chain_adapter import _sqlite

    left = [draw.randrange(1, 900)]

    def trace(_):
        left[0] -= 1
        if left[0] == 0:
            die()

    original = _sqlite._connect

    def connect(*args, **options):
        connection = original(*args, **options)
        connection.set_trace_callback(trace)
        return connection

    _sqlite._connect = connect


def in_a_payload(draw):
    """A file of the store is half written, or lacks its name."""

    def halfway(original, store, folder, path, payload):
        if draw.random() < 0.5:
            original(store, folder, path, payload)
        else:
            (folder / f".{path.stem}-0-0").write_bytes(payload[: len(payload) // 2])
        die()

    from flower_bfl.chain_adapter.store import PayloadStore

    counted(draw, 20, PayloadStore, "_write_file", halfway)


def in_a_report(draw):
    """A line of rounds.jsonl is half written."""

    def halfway(original, folder, report):
        size = folder._rounds.stat().st_size
        original(folder, report)
        written = folder._rounds.stat().st_size
        os.truncate(folder._rounds, draw.randrange(size, written + 1))
        die()

    from flower_bfl.strategies._run_folder import RunFolder

    counted(draw, ROUNDS + 1, RunFolder, "append", halfway)


def in_the_model(draw):
    """model.safetensors has a new content, and not yet its name, or the other way round."""

    def around(original, *args):
        if draw.random() < 0.5:
            original(*args)
        die()

    counted(draw, 2 * ROUNDS, Path, "replace", around)


def while_devices_train(draw):
    """The server waits for replies, or has asked a part of the devices."""
    owner = draw.choice([Federation, Field])
    counted(draw, 7 * ROUNDS, owner, "_reply")


def in_the_arithmetic(draw):
    """In the middle of a round's sums."""
    from flower_bfl.strategies import consensus_bfl, on_ledger

    owner, name = draw.choice([(consensus_bfl, "updated_model"), (on_ledger, "gradient_entries")])
    counted(draw, ROUNDS + 1, owner, name)


PLACES = [
    at_an_instant, in_a_call, in_a_commit, in_a_payload, in_a_report, in_the_model, while_devices_train,
    in_the_arithmetic,
]  # fmt: skip


def life(run: Callable, folder: Path, place: Callable | None, seed: int) -> bool:
    """Whether the run came to its end, rather than to that of the process."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(folder.parent / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
            if place is not None:
                place(random.Random(seed))
            run(folder, True)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), (folder.parent / "log").read_text()[-3000:]
    return code == 0


@cache
def undisturbed(name: str, folder: Path) -> bytes:
    """The model that a run ends with."""
    RUNS[name](folder, False)
    return (folder / "model.safetensors").read_bytes()


def rounds_told(folder: Path) -> int:
    file = folder / "rounds.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill(tmp_path: Path, kills: int) -> Counter[str]:
    """So many deaths, spread over runs and places; returns how often each place was deadly."""
    draw, deaths, lives = random.Random(kills), Counter(), 0
    for number in range(10**6):
        name = list(RUNS)[number % len(RUNS)]
        (tmp_path / name).mkdir(exist_ok=True)
        model = undisturbed(name, tmp_path / name / "undisturbed")
        folder, told = tmp_path / name / str(number), 0
        for _ in range(MOST_LIVES):
            place = PLACES[lives % len(PLACES)]
            lives += 1
            if life(RUNS[name], folder, place, draw.randrange(2**32)):
                break
            deaths[place.__name__] += 1
            assert rounds_told(folder) >= told, "a round that was reported is not lost"
            told = rounds_told(folder)
        else:
            assert life(RUNS[name], folder, None, 0)
        assert (folder / "model.safetensors").read_bytes() == model
        report = audit(folder)
        assert report.finding is None, report.finding
        assert report.checked.rounds == ROUNDS
        assert rounds_told(folder) == ROUNDS + 1
        chain = EvmLedger(folder / "chain")
        chain.check_file()
        chain.close()
        if deaths.total() >= kills:
            return deaths
    raise AssertionError


def test_a_run_outlives_its_server(tmp_path):
    deaths = kill(tmp_path, 24)
    assert len(deaths) >= 6


@pytest.mark.slow
def test_two_hundred_deaths(tmp_path):
    deaths = kill(tmp_path, 200)
    assert deaths.total() >= 200
    assert min(deaths[place.__name__] for place in PLACES) >= 5
