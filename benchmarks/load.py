"""Hundreds of rounds in one process: memory, handles, threads, pace, and the ledger's size as on paper.

    python benchmarks/load.py [ROUNDS] [DEVICES] [--variant full] [--resume 20 100]

Devices are ClientApps in this process that train by a line of numpy, so that what grows is the server's.
Memory, handles and threads are noted when a round's blocks are on the ledger and nothing is under way. Counts
of transactions and bytes of payloads are held against load_on_paper.py. With --resume, copies of the ledger
as it was after those rounds are gone on with, up to the next round's first message.
"""

import argparse
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result
from load_on_paper import VARIANTS, Setting, predicted, samples_of, steps_of
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from flower_bfl import ConsensusBFL, EvmLedger, MemoryLedger, Mining, OnLedger
from flower_bfl.attacks import GaussianNoise
from flower_bfl.chain_adapter import PayloadStore
from flower_bfl.controller import GreedyController
from flower_bfl.defences import Replay
from flower_bfl.learning.offloading import Data, offloadable
from flower_bfl.network import NetworkConfig
from flower_bfl.simulation import in_process

DIFFICULTY = 4  # bits
LIAR = 1  # edge server of the variant "attack"
BAR_KB = 50.0  # of resident memory a round
BAR_ROUNDS = 2.0  # that going on may take
WARM_UP = 50
ENOUGH = 300  # rounds whose slope is held against the bar: caches fill in the first hundred


@dataclass(frozen=True)
class Sample:
    """The process after a round."""

    seconds: float
    cpu_seconds: float
    resident: int  # bytes
    handles: int
    threads: int


def sample() -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    handles, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))  # noqa: PTH208
    return Sample(perf_counter(), process_time(), pages * resource.getpagesize(), handles, threads)


# -- the run -----------------------------------------------------------------------------------------------


def client_app() -> ClientApp:
    """Devices that move the model a little, each its own way, or send their data to edge servers that do."""
    app = ClientApp()

    @offloadable(app, data_of)
    def train(message: Message, context: Context, data: Data) -> Message:
        who, samples = int(context.node_config["partition-id"]), len(data["x"])
        metrics = {"num-examples": samples, "num-steps": steps_of(who), "loss": 1 / (1 + who)}
        if message.metadata.message_type == "train":
            metrics["device-index"] = who
        (name, array), *_ = message.content["arrays"].items()
        arrays = ArrayRecord({name: Array(trained(array.numpy(), who))})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def data_of(message: Message, context: Context) -> Data:
    device = int(context.node_config["partition-id"])
    return {"x": np.full((samples_of(device), 4), device % 256, np.uint8)}


def trained(weights: np.ndarray, device: int) -> np.ndarray:
    aim = np.cos(np.arange(weights.size, dtype=np.float32) * (1 + device / 64)).reshape(weights.shape)
    return weights + np.float32(0.05) * (aim - weights)


def make(setting: Setting, ledger: EvmLedger | MemoryLedger, folder: Path, **own: Any) -> Any:
    mining = Mining(difficulty_bits=DIFFICULTY)
    if setting.variant == "on-ledger":
        return OnLedger(FedAvg(fraction_evaluate=0.0), ledger, mining=mining, run_folder=folder, **own)
    if setting.variant == "offloading":
        network = NetworkConfig(setting.devices, setting.servers)
        own |= {"controller": GreedyController(network)}
    if setting.variant == "attack":
        own |= {"attacks": GaussianNoise(server=LIAR, size=0.1, p2p_step=1), "defence": Replay()}
    return ConsensusBFL(
        edge_servers=setting.servers, graph="ring", p2p_rounds=setting.steps, ledger=ledger, mining=mining,
        run_folder=folder, fraction_evaluate=0.0, **own,
    )  # fmt: skip


def nodes(setting: Setting) -> int:
    return setting.devices + (setting.servers if setting.variant == "offloading" else 0)


def ledger_of(setting: Setting, folder: Path) -> EvmLedger | MemoryLedger:
    if setting.variant == "memory":
        return MemoryLedger()
    where: Literal["full", "auto"] = "full" if setting.variant == "full" else "auto"
    return EvmLedger(folder, payloads=where, fsync=setting.fsync)


def initial(setting: Setting) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(setting.shape, np.float32))})


@dataclass(frozen=True, eq=False)
class Done:
    """A run that is over, and what was noted after each of its rounds, while nothing was under way."""

    strategy: Any
    ledger: Any
    result: Result
    noted: list[Any]


def run(setting: Setting, folder: Path, note: Callable[[int], Any]) -> Done:
    """All rounds; `note` hears of each."""
    ledger = ledger_of(setting, folder / "chain")
    strategy = make(setting, ledger, folder)
    journal, noted = strategy._journal, []
    finish = journal.finish

    def finished() -> None:
        known = len(strategy.reports)
        finish()
        if len(strategy.reports) > known:
            noted.append(note(known))

    journal.finish = finished
    with in_process(client_app(), nodes(setting)) as grid:
        result = strategy.start(grid=grid, initial_arrays=initial(setting), num_rounds=setting.rounds)
    return Done(strategy, ledger, result, noted)


# -- going on ----------------------------------------------------------------------------------------------


class FirstMessage(BaseException):
    """The next round has begun."""


class Refusing:
    """A grid whose first message ends the run."""

    def __init__(self, grid: Any) -> None:
        self.get_node_ids = grid.get_node_ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        assert list(messages)
        raise FirstMessage


def keep(folder: Path, copy: Path) -> None:
    """A copy of a ledger at rest, but for its payloads, and of its run folder."""
    (copy / "chain").mkdir(parents=True)
    chain = [str(folder / "chain" / f"chain.sqlite{suffix}") for suffix in ("", "-wal")]
    # By another process: one that closes a file of SQLite's drops the locks that it has on it.
    subprocess.run(["cp", *chain, str(copy / "chain")], check=True)
    shutil.copy(folder / "rounds.jsonl", copy)


def resume(setting: Setting, folder: Path, copy: Path) -> tuple[float, float]:
    """Seconds until the first message of the next round of a copy goes out, by the clock and of the CPU."""
    with in_process(client_app(), nodes(setting)) as grid:
        began, used = perf_counter(), process_time()
        store = PayloadStore(folder / "chain" / "payloads")
        ledger = EvmLedger(
            copy / "chain", payloads="full" if setting.variant == "full" else "auto", store=store
        )
        strategy = make(setting, ledger, copy, resume=True)
        try:
            strategy.start(
                grid=Refusing(grid), initial_arrays=initial(setting), num_rounds=setting.rounds + 1
            )
        except FirstMessage:
            return perf_counter() - began, process_time() - used
        finally:
            ledger.close()
    raise AssertionError("no message was sent")


# -- memory ------------------------------------------------------------------------------------------------


def slope(values: ArrayLike, parts: int = 10) -> tuple[float, float]:
    """By least squares, per step, and half the width of its 95 % interval.

    Neighbours are alike, so the interval is that of the means of ten parts, one after the other.
    """
    y = np.asarray(values, float)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    found = float(x @ y / (x @ x))
    at, means = (np.array([part.mean() for part in np.array_split(each, parts)]) for each in (x, y))
    at -= at.mean()
    rest = means - means.mean() - (at @ means / (at @ at)) * at
    return found, float(student_t.ppf(0.975, parts - 2) * np.sqrt(rest @ rest / (parts - 2) / (at @ at)))


# -- the table -----------------------------------------------------------------------------------------------


def deep_bytes(value: object, seen: set[int] | None = None) -> int:
    """Memory of a value and of all that it is made of, each object once."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type):
        return 0
    seen.add(id(value))
    parts: Iterable[object] = ()
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts = value
    own = getattr(value, "__dict__", {})
    return sys.getsizeof(value) + sum(deep_bytes(each, seen) for each in (*parts, *([own] if own else ())))


def tenths(values: Sequence[float]) -> tuple[float, float, float]:
    """Medians of the first and last tenth, and their ratio."""
    few = max(len(values) // 10, 3)
    first, last = statistics.median(values[:few]), statistics.median(values[-few:])
    return first, last, last / first


def show(setting: Setting, folder: Path, done: Done) -> bool:
    """Print what a run came to; whether it is within the bars."""
    strategy, ledger, noted = done.strategy, done.ledger, done.noted
    rounds, warm_up = setting.rounds, min(WARM_UP, setting.rounds // 3)
    print(
        f"{setting.variant}: {rounds} rounds, {setting.devices} devices, {setting.servers} edge servers, "
        f"p2p_rounds {setting.steps}, {setting.shape[0] * setting.shape[1]:,} parameters"
    )
    for name, of in (("seconds", "seconds"), ("CPU seconds", "cpu_seconds")):
        spans = [getattr(b, of) - getattr(a, of) for a, b in pairwise(noted[1:])]
        first, last, ratio = tenths(spans)
        print(f"  {name} a round: {first:.3f} at first, {last:.3f} at last, ratio {ratio:.2f}")
    resident = np.array([each.resident / 1024 for each in noted])
    growth, width = slope(resident[warm_up:])
    first, last = resident[warm_up] / 1024, resident[-1] / 1024
    print(f"  resident memory: {first:.1f} MiB after round {warm_up}, {last:.1f} MiB after the last")
    print(f"  its slope from round {warm_up} on: {growth:.1f} ± {width:.1f} KB a round (bar {BAR_KB:g})")
    kept = {"reports": strategy.reports, "Flower's Result": done.result}
    told = ", ".join(f"{name} {deep_bytes(value) / rounds / 1024:.1f}" for name, value in kept.items())
    print(f"  of which are kept, KB a round: {told}")
    flat = True
    for name in ("handles", "threads"):
        counts = [getattr(each, name) for each in noted[warm_up:]]
        flat &= max(counts) == min(counts)
        print(f"  {name}: {min(counts)} to {max(counts)}")
    size, costs = predicted(setting, strategy.reports), [report.ledger for report in strategy.reports]
    found = {
        "transactions": getattr(ledger, "transactions", sum(cost.transactions for cost in costs)),
        "calldata_bytes": sum(cost.calldata_bytes for cost in costs),
        "stored_bytes": sum(cost.stored_bytes for cost in costs),
    }
    exact = True
    for name, measured in found.items():
        exact &= measured == getattr(size, name)
        print(f"  {name.replace('_', ' ')}: predicted {getattr(size, name):,}, measured {measured:,}")
    if setting.variant != "memory":
        store = folder / "chain" / "payloads"
        files = [file.stat().st_size for file in store.iterdir()] if store.exists() else []
        exact &= sum(files) == size.stored_bytes
        print(f"  payloads beside the chain: {len(files):,} files, {sum(files):,} bytes")
        approximate("gas", size.gas, ledger.gas)
        ledger.close()
        if setting.variant not in ("offloading", "attack"):
            file = (folder / "chain" / "chain.sqlite").stat().st_size
            approximate("chain.sqlite, bytes", size.file_bytes, file)
    judged = rounds >= ENOUGH and setting.variant != "memory"
    return exact and flat and not (judged and growth >= BAR_KB)


def approximate(name: str, expected: float, found: float) -> None:
    print(f"  {name}: predicted {expected:,.0f}, measured {found:,} ({found / expected - 1:+.1%})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=500)
    parser.add_argument("devices", type=int, nargs="?", default=50)
    parser.add_argument("--variant", choices=VARIANTS, default="auto")
    parser.add_argument("--resume", type=int, nargs="*", default=[], metavar="ROUND")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = Setting(arguments.rounds, arguments.devices, arguments.variant)
    with tempfile.TemporaryDirectory() as name:
        folder, copies = Path(name) / "run", {k: Path(name) / f"after-{k}" for k in arguments.resume}

        def note(server_round: int) -> Sample:
            if server_round in copies:
                keep(folder, copies[server_round])
            return sample()

        done = run(setting, folder, note)
        good, noted = show(setting, folder, done), done.noted
        seconds = statistics.median(b.seconds - a.seconds for a, b in pairwise(noted[1:]))
        cpu = statistics.median(b.cpu_seconds - a.cpu_seconds for a, b in pairwise(noted[1:]))
        for k, copy in copies.items():
            took, used = resume(setting, folder, copy)
            good &= used / cpu < BAR_ROUNDS
            print(
                f"  going on after round {k}: {took:.2f} s, {took / seconds:.1f} rounds; CPU {used:.2f} s, "
                f"{used / cpu:.1f} rounds (bar {BAR_ROUNDS:g})"
            )
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
