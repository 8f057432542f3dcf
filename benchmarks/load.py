"""Hundreds of rounds in one process: memory, handles, threads, pace, and the ledger's size as on paper.

    python benchmarks/load.py [ROUNDS] [DEVICES] [--variant full] [--resume 20 100]

Devices are ClientApps in this process that train by a line of numpy, so that what grows is the server's.
Memory, handles and threads are noted when a round's blocks are on the ledger and nothing is under way. Counts
of transactions and bytes of payloads follow from docs/ledger.md, without the package's help. With --resume,
copies of the ledger as it was after those rounds are gone on with, up to the next round's first message.
"""

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
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
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from flower_bfl import ConsensusBFL, EvmLedger, MemoryLedger, Mining, OnLedger
from flower_bfl.attacks import GaussianNoise
from flower_bfl.chain_adapter import PayloadStore
from flower_bfl.controller import GreedyController
from flower_bfl.defences import Replay, described
from flower_bfl.learning.offloading import Data, offloadable
from flower_bfl.network import NetworkConfig
from flower_bfl.simulation import in_process
from flower_bfl.types import RoundReport

SHAPE = (100, 200)
SERVERS, STEPS = 5, 5  # M and φ
DIFFICULTY = 4  # bits
PIECE = 80_000  # bytes of a payload in one transaction
LIAR = 1  # edge server of the variant "attack"
BAR_KB = 50.0  # of resident memory a round
BAR_ROUNDS = 2.0  # that going on may take
WARM_UP = 50
ENOUGH = 300  # rounds whose slope is held against the bar: caches fill in the first hundred
VARIANTS = ("auto", "full", "memory", "on-ledger", "offloading", "attack")


@dataclass(frozen=True)
class Setting:
    """A run.  variant : one of VARIANTS.  shape : of the model's only array, float32."""

    rounds: int = 500
    devices: int = 50
    variant: str = "auto"
    servers: int = SERVERS
    steps: int = STEPS
    shape: tuple[int, int] = SHAPE
    fsync: bool = True


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


def samples_of(device: int) -> int:
    return 90 + 7 * device


def steps_of(device: int) -> int:
    return 1 + device % 4


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


# -- the ledger on paper: docs/ledger.md ---------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What a run writes: transactions, bytes of payload on the chain and beside it, gas, the chain's file."""

    transactions: int
    calldata_bytes: int
    stored_bytes: int
    gas: float = 0.0
    file_bytes: float = 0.0


def encoded_bytes(
    metadata: Mapping[str, object], arrays: Mapping[str, tuple[str, tuple[int, ...], int]]
) -> int:
    """Length of a payload with this metadata and these arrays: type, shape and bytes of each."""
    members = []
    if metadata:
        told = ",".join(f'"{name}":"{metadata[name]}"' for name in sorted(metadata))
        members.append(f'"__metadata__":{{{told}}}')
    begin = 0
    for name, (dtype, shape, size) in arrays.items():
        sides = ",".join(map(str, shape))
        end = begin + size
        members.append(f'"{name}":{{"dtype":"{dtype}","shape":[{sides}],"data_offsets":[{begin},{end}]}}')
        begin = end
    return 8 + -(-len("{" + ",".join(members) + "}") // 8) * 8 + begin


Groups = Sequence[Sequence[int]]  # devices of each edge server


def opening_sizes(setting: Setting) -> list[int]:
    """Bytes of RULES and of the initial model."""
    rules: dict[str, object] = {"format": "flower-bfl 5", "strategy": "FedAvg"}
    mixing = {}
    if setting.variant != "on-ledger":
        m = setting.servers
        mixing = {"mixing": ("F64", (m, m), 8 * m**2)}
        rules |= {"strategy": "ConsensusBFL", "edge-servers": m, "p2p-rounds": setting.steps}
        rules |= {"mass": "count", "leader": "random", "learning-rate": "1.0"}
    if setting.variant == "attack":
        rules["defences"] = described(Replay()).replace('"', '\\"')
    return [encoded_bytes(rules, mixing), encoded_bytes({"round": 0}, model(setting))]


def round_sizes(
    setting: Setting, k: int, report: RoundReport | None = None, senders: Iterable[int] = ()
) -> list[int]:
    """Bytes of a round's payloads, the seal's too, which has none; `senders` are those of any data so far.

    Who sends data where, and who accuses whom, is the report's; without one, nobody does.
    """
    in_turn = [range(m, setting.devices, setting.servers) for m in range(setting.servers)]
    summed: Groups = in_turn if report is None or not report.server_devices else report.server_devices
    unions: Groups = () if report is None else report.server_data
    accused = () if report is None else report.accused
    barred = set() if report is None else set(report.quarantined)
    arrays, digest = model(setting), "0" * 64
    sent = {device for devices in unions for device in devices}
    sizes = []
    for device in sorted(set(range(setting.devices)) - sent):
        told = {"num-examples": samples_of(device), "num-steps": steps_of(device), "round": k}
        sizes.append(encoded_bytes({"model": digest, **told}, arrays))
    for m, devices in enumerate(unions):
        for device in devices:
            told = {"round": k, "server": m, "num-examples": samples_of(device), "data": digest}
            sizes.append(encoded_bytes(told, {}))
        if devices:
            told = {"num-examples": sum(map(samples_of, devices)), "num-steps": steps_of(setting.devices + m)}
            told |= {"devices": listed(devices), "data": digest, "model": digest, "round": k}
            sizes.append(encoded_bytes(told, arrays))

    def consensus(groups: Groups, steps: Iterable[int], first: int) -> None:
        for step in steps:
            for m in range(setting.servers):
                if m in barred:
                    continue
                told = {"round": k, "step": step, "server": m}
                if step == first:
                    told |= {"devices": listed(groups[m])} | (
                        {"itself": "yes"} if unions and unions[m] else {}
                    )
                sizes.append(encoded_bytes(told, arrays))

    if setting.variant != "on-ledger":
        first = 0
        if accused:  # the others hear the lie, vote, and begin anew
            barred, found = set(), barred
            consensus(in_turn, (0, 1), 0)
            barred, first = found, setting.steps + 1
        for one in accused:
            vote = {"round": k, "server": one.server, "offence": one.offence, "step": one.step}
            sizes += [encoded_bytes(vote | {"found": digest, "expected": digest}, {})] * one.votes
        consensus(summed, range(first, first + setting.steps + 1), first)
    if setting.variant == "offloading":
        numbers, each = ("F64", (), 8), ("F64", (setting.devices,), 8 * setting.devices)
        seen = len(json.dumps({device: [["x", "|u1", [4]]] for device in senders}))
        network = {"rounds": ("I64", (), 8), "spent-j": each, "energy-slack-j": each, "clock-s": numbers}
        network |= {"schemas": ("U8", (seen,), seen)}
        sizes.append(
            encoded_bytes({"round": k}, {f"network/{name}": array for name, array in network.items()})
        )
    return [*sizes, encoded_bytes({"round": k}, arrays), 0]


def model(setting: Setting) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {"w": ("F32", setting.shape, 4 * setting.shape[0] * setting.shape[1])}


def edge_servers(setting: Setting) -> int:
    return 1 if setting.variant == "on-ledger" else setting.servers


def listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def predicted(setting: Setting, reports: Sequence[RoundReport] = ()) -> Size:
    """What a run's ledger comes to; `reports`, from round 0 on, where it depends on decisions and lies."""
    sizes = opening_sizes(setting)
    for k in range(1, setting.rounds + 1):
        seen = {n for report in reports[: k + 1] for devices in report.server_data for n in devices}
        sizes += round_sizes(setting, k, reports[k] if reports else None, seen)
    if setting.variant == "memory":  # no chain, no accounts, and all payloads count as stored
        return Size(len(sizes), 0, sum(sizes))
    whole = setting.variant == "full"
    inline = [size for size in sizes if whole or size <= 24_000]
    pieces = [piece for size in inline if size > PIECE for piece in cut(size)]
    # The contract's creation, the registration of the devices, and that of the servers.
    transactions = 3 + len(sizes) + len(pieces)
    # By digest; calldata at 40.2 gas a byte where it is more than some hundred bytes.
    gas = 2_292_375 + 83_600 * (setting.devices + edge_servers(setting))
    gas += 52_733 * (transactions - 3 - 2 * setting.rounds) + (80_434 + 110_169) * setting.rounds
    gas += sum(40.2 * size - 33_850 for size in [*pieces, *(s for s in inline if s <= PIECE)] if size > 1000)
    return Size(transactions, sum(inline), sum(sizes) - sum(inline), gas, file_bytes(setting))


def cut(size: int) -> list[int]:
    """Bytes of a payload's pieces."""
    return [PIECE] * (size // PIECE) + ([size % PIECE] if size % PIECE else [])


def file_bytes(setting: Setting) -> float:
    """chain.sqlite of a run without lies and offloading, as far as averages tell.

    Every block leaves new nodes: of the tries of its transactions and receipts, and of the paths in those of
    accounts and of the contract's storage to what it changed. Keys are hashes, so they lie anywhere in a
    trie, and branches have as many children as chance gives them.
    """
    servers, devices = edge_servers(setting), setting.devices
    pieces = cut(round_sizes(setting, 1)[0]) if setting.variant == "full" else []
    rows: Counter[tuple[float, float]] = Counter()  # of key and value, in bytes
    accounts, slots = devices + servers + 2, 2 * (devices + servers)

    def node(size: float, count: float = 1) -> None:
        rows[32, size] += count  # type: ignore[assignment]  # expected numbers

    def path(keys: float, changed: int, leaf: float, new: int = 0) -> None:
        """To the changed ones among so many keys; a third of the new ones part with a leaf, which moves."""
        node(leaf, changed + new * 0.36)
        places = 1.0
        while (load := keys / places) > 0.02:
            touched = 1.0 if places == 1 else places * -np.expm1(changed * np.log1p(-1 / places))
            parted = -np.expm1(-load)  # another key is below it
            node(20 + 32 * (1 - 15 * np.expm1(-load / 16) / parted), touched * parted)
            places *= 16

    def block(calls: Sequence[tuple[int, int]], senders: int, changed: int, new: int) -> None:
        """Of calls by bytes of calldata and of logs; changed slots of the contract's storage."""
        for data, logs in calls:
            node(116 + data)  # signature 68, address 21, numbers, path and headings
            node(284 + logs)  # bloom filter 259
            rows[121, 4.5] += 1
        for _ in range(2):
            node(20 + 32 * (1 + -(-len(calls) // 16)))
            node(20 + 32 * min(len(calls), 16), len(calls) / 16)
        rows[32, 710] += 1
        rows[115, 3] += 1
        rows[24, 33] += 1
        path(accounts, senders + 1, 117)
        path(slots, changed, 68, new)

    sent = [(164 + piece, 186) for piece in pieces]
    submitted, proposed, sealed = [*sent, (196, 219)], [*sent, (228, 251)], [(100, 219)]
    for _ in range(setting.rounds):
        for senders in [devices, *[servers] * (0 if setting.variant == "on-ledger" else setting.steps + 1)]:
            new = senders * len(submitted)
            slots += new
            block(submitted * senders, senders, new, new)
        slots += 3 + len(sent)
        block(proposed + sealed, 2, 5 + len(sent), 3 + len(sent))
    # Rows are in the table, in the order in which they came, their keys in an index, seven eighths full.
    lengths, counts = np.array([key + value + 11 for key, value in rows]), np.array([*rows.values()])
    keys = counts @ np.array([key + 10 for key, _ in rows])
    large = lengths > 4096  # on pages of their own, the rest in the table
    lengths[large], own = 300, counts[large] @ np.ceil(lengths[large] / 4092) * 4096
    lost = (counts @ lengths**2) / (counts @ lengths) / 2  # at the end of a page of 4,096 bytes
    return float(own + counts @ lengths / (1 - lost / 4096) + keys / 0.875)


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
