"""The paper's Fig. 12: Fashion-MNIST, and noise by one edge server in rounds 20 and 60.

    python benchmarks/attacked_training.py DATA_FOLDER [--seeds 1] [--rounds 80] [--out FOLDER] [--calibrate]

10 devices, 3 edge servers, the package's network (21,840 parameters), Adam, batches of 25, 10 local steps, 5
consensus steps, the attack at step 3; IID, and 2 labels a device. In this process: devices train in one
batch, and what one run has trained from the same model in the same round another run takes over.

- ours: `ConsensusBFL` on a ledger with `Replay()`;
- consensus without blockchain: the same without ledger and defence;
- BFL without consensus: a random leader's own aggregate is the model (p2p_rounds=0), no defence. Here the
  attacked edge server is the one that leads; in two of three cases the attack would have no effect at all;
- traditional FL: one aggregator, whose model is attacked.

The paper's attack is w ← w + v, v ~ ϖ·N(0, I), of one ϖ that it does not give. Here ϖ is the same in all
schemes: an edge server that is attacked before there is a model, in its sum or state x, adds what moves the
model w − η·τ·x/s that it would make of it by v. ϖ = 0.05 is where traditional FL drops by about the paper's
16.7 points (`--calibrate` prints the table; IID, unattacked models of rounds 20 and 60, ten draws each). Ours
is run with a tenth and with ten times as much, too.

Runs whose rows are in FOLDER/attacked_training.csv are not run again.
"""

import argparse
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from federation import (
    Exam,
    Federation,
    Training,
    add_rows,
    mean_and_interval,
    record,
    rows_of,
    table,
    values,
)
from flwr.app import ArrayRecord

from flower_bfl import ConsensusBFL, IndependentServers, MemoryLedger, Mining
from flower_bfl.attacks import Falsification, Turn
from flower_bfl.defences import Replay
from flower_bfl.learning.data import Dataset, load
from flower_bfl.learning.models import build
from flower_bfl.learning.partition import partition

NAME: Final = "fashion-mnist"
DEVICES, SERVERS, STEPS, ATTACKED_STEP = 10, 3, 5, 3
LOCAL_STEPS = 10
ATTACKED_ROUNDS = (20, 60)
AFTERWARDS = 10
NOISE = 0.05  # ϖ
OTHER_NOISES = (0.005, 0.5)
PARTITIONS = ("iid", "labels")
OURS, CONSENSUS = "ours", "consensus without blockchain"
ALONE, TRADITIONAL = "BFL without consensus", "traditional FL"
PAPER = {OURS: 2.67, CONSENSUS: 5.6, ALONE: 6.8, TRADITIONAL: 16.7}  # points
COLUMNS = ("partition", "seed", "scheme", "noise", "round", "accuracy", "found")
DROP_BAR, RECOVERY_BAR = 0.5, 0.2  # points

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelNoise(Falsification):
    """Gaussian noise of standard deviation `noise` in every weight of the model that follows.

    gain: how far the model moves with what is attacked, η·τ/s.
    """

    noise: float
    gain: float = 1.0

    def falsified(self, turn: Turn, rng: np.random.Generator) -> np.ndarray:
        noise = self.noise / self.gain * rng.standard_normal(turn.honest.size)
        return np.asarray(turn.honest + noise, np.float32)


@dataclass(frozen=True)
class Run:
    partition: str
    seed: int
    scheme: str
    noise: float  # 0: unattacked

    @property
    def key(self) -> tuple[str, ...]:
        return self.partition, str(self.seed), self.scheme, str(self.noise)


class Bench:
    """One seed and partition: its data, and the runs on it."""

    def __init__(self, data: Dataset, kind: str, seed: int, rounds: int) -> None:
        parts = partition(data.train_labels, DEVICES, kind, seed=seed)  # type: ignore[arg-type]
        samples = [(data.train_images[part], data.train_labels[part]) for part in parts]
        self._seed, self._rounds, self._labels = seed, rounds, data.test_labels
        self._shares = np.array([len(part) for part in parts]) / sum(map(len, parts))
        self._train = Training(NAME, samples, seed=seed, steps=LOCAL_STEPS, remember=True)
        self._exam = Exam(NAME, data.test_images)

    def run(self, scheme: str, noise: float) -> tuple[dict[int, float], dict[int, int]]:
        """Accuracy by round, and how many attackers were found."""
        strategy = self._strategy(scheme, noise)
        accuracies: dict[int, float] = {}

        def evaluate(server_round: int, arrays: ArrayRecord) -> None:
            if server_round in evaluated(self._rounds):
                accuracies[server_round] = self._exam.accuracy(values(arrays), self._labels)

        model = {name: weight.numpy().copy() for name, weight in build(NAME, self._seed).state_dict().items()}
        devices = Federation(DEVICES, self._train, self._seed)
        strategy.start(devices, record(model), self._rounds, evaluate_fn=evaluate)
        return accuracies, {r.round: r.true_positives or 0 for r in strategy.reports}

    def _strategy(self, scheme: str, noise: float) -> Any:
        # An attack that never comes: with and without attacks, rounds then go the same way to the last bit.
        rounds = ATTACKED_ROUNDS if noise else (self._rounds + 1,)
        common: dict[str, Any] = {"seed": self._seed, "fraction_evaluate": 0.0}
        attack = ModelNoise(server=1, rounds=rounds, noise=noise or 1.0)
        if scheme == TRADITIONAL:
            attack = replace(attack, server=0, p2p_step="model")
            return IndependentServers(edge_servers=1, attacks=[attack], **common)
        common |= {"edge_servers": SERVERS, "p2p_rounds": STEPS, "leader": 0}
        if scheme == ALONE:
            common |= {"p2p_rounds": 0, "leader": "random"}
            attacks = [self._in_aggregate(attack, server_round) for server_round in rounds]
            return ConsensusBFL(attacks=attacks, **common)
        attack = replace(attack, p2p_step=ATTACKED_STEP, gain=LOCAL_STEPS * SERVERS)
        if scheme == OURS:
            common |= {"ledger": MemoryLedger(), "mining": Mining(difficulty_bits=1), "defence": Replay()}
        return ConsensusBFL(attacks=[attack], **common)

    def _in_aggregate(self, attack: ModelNoise, server_round: int) -> ModelNoise:
        """In the partial aggregate of the edge server that leads."""
        strategy = ConsensusBFL(edge_servers=SERVERS, p2p_rounds=0, seed=self._seed)
        leader, _ = next(strategy._leaders(server_round, range(SERVERS)))
        gain = LOCAL_STEPS / self._shares[leader::SERVERS].sum()
        return replace(attack, server=leader, rounds=(server_round,), gain=gain)


def evaluated(rounds: int) -> set[int]:
    """Rounds after which the model is tested."""
    near = {k + offset for k in ATTACKED_ROUNDS for offset in (-2, -1, 0, 1, 2, 3, 4, AFTERWARDS)}
    return {k for k in near | {rounds, *range(5, rounds, 5)} if k <= rounds}


def wanted(seeds: Iterable[int]) -> list[Run]:
    runs = []
    for seed in seeds:
        for kind in PARTITIONS:
            runs += [Run(kind, seed, scheme, noise) for scheme in PAPER for noise in (0.0, NOISE)]
            if seed == 0:
                runs += [Run(kind, seed, OURS, noise) for noise in OTHER_NOISES]
    return runs


def run_all(data: Dataset, seeds: Iterable[int], schemes: str, rounds: int, file: Path) -> list[Row]:
    rows = rows_of(file)
    done = {(r["partition"], r["seed"], r["scheme"], r["noise"]) for r in rows if int(r["round"]) == rounds}
    current: tuple[str, int] | None = None
    for run in wanted(seeds):
        if run.key in done or not run.scheme.startswith(tuple(schemes.split(","))):
            continue
        if current != (run.partition, run.seed):
            current, bench = (run.partition, run.seed), Bench(data, run.partition, run.seed, rounds)
        began = perf_counter()
        accuracies, found = bench.run(run.scheme, run.noise)
        new = [
            dict(zip(COLUMNS, (*run.key, str(k), f"{accuracy:.4f}", str(found.get(k, 0))), strict=True))
            for k, accuracy in sorted(accuracies.items())
        ]
        add_rows(file, COLUMNS, new)  # a whole run: one that was stopped begins again
        rows += new
        print(f"{run}: {accuracies[rounds]:.2%}, {perf_counter() - began:.0f} s", flush=True)
    return rows


# -- what comes of it ---------------------------------------------------------------------------------------


Curve = dict[int, float]


def curves_of(rows: Iterable[Row], kind: str) -> dict[tuple[str, float, int], Curve]:
    """Accuracy in percent by round, of each scheme, noise and seed."""
    curves: dict[tuple[str, float, int], Curve] = {}
    for row in rows:
        if row["partition"] == kind:
            key = (row["scheme"], float(row["noise"]), int(row["seed"]))
            curves.setdefault(key, {})[int(row["round"])] = 100 * float(row["accuracy"])
    return curves


def summarise(rows: Sequence[Row], rounds: int) -> None:
    attacked = [k for k in ATTACKED_ROUNDS if k <= rounds]
    for kind in PARTITIONS:
        curves = curves_of(rows, kind)
        lines = []
        for scheme, noise in [*((s, NOISE) for s in PAPER), *((OURS, noise) for noise in OTHER_NOISES)]:
            seeds = [seed for one, other, seed in curves if (one, other) == (scheme, noise)]
            pairs = [(curves[scheme, noise, s], curves[scheme, 0.0, s]) for s in seeds]
            if not pairs:
                continue
            later = [k + AFTERWARDS for k in attacked if k + AFTERWARDS <= rounds]
            figures = [
                [_mean(own[k - 1] - own[k] for k in attacked) for own, _ in pairs],
                [_mean(other[k - 1] - other[k] for k in attacked) for _, other in pairs],
                [_mean(own[k] - other[k] for k in attacked) for own, other in pairs],
                [_mean(own[k] - other[k] for k in later) for own, other in pairs],
                [own[rounds] for own, _ in pairs],
            ]
            found = sum(
                int(row["found"]) for row in rows
                if (row["partition"], row["scheme"], row["noise"]) == (kind, scheme, str(noise))
                and int(row["round"]) in attacked
            )  # fmt: skip
            name = scheme if noise == NOISE else f"{scheme}, ϖ = {noise}"
            told = f"{found}/{len(pairs) * len(attacked)}" if scheme == OURS else "-"
            lines.append([name, *map(_with_interval, figures), told, PAPER[scheme] if noise == NOISE else ""])
        table(
            f"{kind}: Fashion-MNIST, ϖ = {NOISE}, rounds {attacked}, {_seeds(curves)} seeds; points, "
            "mean ± 95 % interval over seeds",
            [
                "", "drop at the attack", "unattacked then", "attacked - unattacked", f"{AFTERWARDS} later",
                f"accuracy in {rounds}", "found", "paper's drop",
            ],
            lines,
        )  # fmt: skip
    print(f"bars for ours: drop at most {DROP_BAR} points, {AFTERWARDS} later within {RECOVERY_BAR}")


def _seeds(curves: Collection[tuple[str, float, int]]) -> int:
    return len({seed for *_, seed in curves})


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return statistics.mean(found) if found else float("nan")


def _with_interval(numbers: Sequence[float]) -> str:
    mean, width = mean_and_interval(numbers)
    return f"{mean:+.2f} ± {width:.2f}" if len(numbers) > 1 else f"{mean:+.2f}"


def draw(rows: Sequence[Row], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PARTITIONS), figsize=(12, 4.5), sharey=False)
    for axis, kind in zip(axes, PARTITIONS, strict=True):
        curves = curves_of(rows, kind)
        for number, scheme in enumerate(PAPER):
            for noise, style in ((NOISE, "-"), (0.0, ":")):
                some = [curve for (one, other, _), curve in curves.items() if (one, other) == (scheme, noise)]
                if not some:
                    continue
                rounds = sorted(set.intersection(*map(set, some)))
                mean = [statistics.mean(curve[k] for curve in some) for k in rounds]
                label = f"{scheme}, {len(some)} {'seeds' if len(some) > 1 else 'seed'}" if noise else None
                axis.plot(rounds, mean, style, color=f"C{number}", label=label, lw=1.5 if noise else 1)
        for k in ATTACKED_ROUNDS:
            axis.axvline(k, color="0.7", lw=0.8, zorder=0)
        title = {"iid": "IID", "labels": "2 labels a device"}[kind]
        axis.set(title=title, xlabel="round", ylabel="test accuracy, %")
    axes[0].legend(loc="lower right", title="dotted: unattacked")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def calibrate(data: Dataset, rounds: Sequence[int] = ATTACKED_ROUNDS, draws: int = 10) -> None:
    """How far noise of different sizes takes the accuracy of traditional FL down."""
    bench = Bench(data, "iid", 0, max(rounds))
    kept: dict[int, dict[str, np.ndarray]] = {}

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        if server_round in rounds:
            kept[server_round] = values(arrays)

    model = {name: weight.numpy().copy() for name, weight in build(NAME, 0).state_dict().items()}
    strategy = bench._strategy(TRADITIONAL, 0.0)
    strategy.start(Federation(DEVICES, bench._train, 0), record(model), max(rounds), evaluate_fn=keep)
    rng = np.random.default_rng(0)
    lines: list[list[object]] = []
    for noise in (0.005, 0.01, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.07, 0.1):
        drops = []
        for arrays in kept.values():
            honest = bench._exam.accuracy(arrays, data.test_labels)
            for _ in range(draws):
                false = {
                    name: (array + noise * rng.standard_normal(array.shape)).astype(np.float32)
                    for name, array in arrays.items()
                }
                drops.append(100 * (honest - bench._exam.accuracy(false, data.test_labels)))
        lines.append([noise, f"{statistics.mean(drops):.2f}", f"{min(drops):.1f} to {max(drops):.1f}"])
    table("Traditional FL, unattacked, then noise", ["ϖ", "drop, points", "spread"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="for several processes, each with its --out"
    )
    parser.add_argument("--schemes", default="", help="how their names begin, such as ours,traditional")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/attacked_training"))
    parser.add_argument("--calibrate", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.data_folder / "FashionMNIST").is_dir():
        print(f"not run: no Fashion-MNIST in {arguments.data_folder}")
        return
    data = load(NAME, arguments.data_folder)
    if arguments.calibrate:
        calibrate(data)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.first_seed, arguments.seeds)
    file = arguments.out / "attacked_training.csv"
    rows = run_all(data, seeds, arguments.schemes, arguments.rounds, file)
    summarise(rows, arguments.rounds)
    draw(rows, arguments.out / "attacked_training.png")


if __name__ == "__main__":
    main()
