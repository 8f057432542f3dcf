"""Malicious devices: whom Deviation suspects, and how accurate the model is under it and under robust rules.

    python benchmarks/poisoned_devices.py [DATA=digits] [SEEDS=1] [--malicious 20,40] [--devices 10]
        [--out FOLDER]

DATA is "digits" or the folder of Fashion-MNIST; the full budget is `--malicious 10,20,30,40` with 3 seeds or
more. Devices train in this process, on IID data and on 2 labels a device; a share of them, drawn by the seed,
is malicious in every round.

Beside each other, on the same data, batches and attackers: our 3 edge servers without a defence, with
`Deviation()`, with robust rules at the edge servers; byzfl's aggregators, of all devices' updates at one
server; Flower's own robust strategies. Theirs know how many are malicious; Bulyan takes at most (n − 3) / 4
for granted. At an edge server a rule sees 3 or 4 of 10 devices, so that trimming, Krum and MultiKrum assume a
third malicious (more than the true share, up to 30 %). Of so few the trimmed mean is the median. byzfl's
centred clipping gets the median length of the round's updates as its τ; its own default of 100 clips nothing
here.

Runs whose row is in FOLDER/poisoned_devices.csv are not run again.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import byzfl  # type: ignore[import-untyped]
import numpy as np
from federation import (
    Arrays,
    Exam,
    Federation,
    Metrics,
    Train,
    Training,
    add_rows,
    flat,
    named,
    record,
    rows_of,
    shapes_of,
    table,
    values,
)
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum

from flower_bfl import ConsensusBFL
from flower_bfl import defences as ours
from flower_bfl.attacks import (
    ALittleIsEnough,
    Falsification,
    GaussianNoise,
    InnerProduct,
    Scaling,
    SignFlip,
    Turn,
)
from flower_bfl.attacks.data import Backdoor, LabelFlip
from flower_bfl.learning.data import Dataset, load
from flower_bfl.learning.models import build
from flower_bfl.learning.partition import partition

PARTITIONS = ("iid", "labels")
ATTACKS: dict[str, Callable[[set[int]], Any]] = {
    "none": lambda who: None,
    "SignFlip": lambda who: SignFlip(devices=who),
    "GaussianNoise 1": lambda who: GaussianNoise(devices=who, size=1.0),
    "Scaling 5": lambda who: Scaling(devices=who, factor=5.0),
    "ALittleIsEnough": lambda who: ALittleIsEnough(devices=who),
    "InnerProduct": lambda who: InnerProduct(devices=who),
    "LabelFlip": lambda who: LabelFlip(devices=who),
    "Backdoor": lambda who: Backdoor(devices=who),
}
COLUMNS = (
    "data", "partition", "devices", "malicious", "attack", "method", "seed",
    "accuracy", "backdoor", "detected", "false_alarms",
)  # fmt: skip
DEVIATION = "Deviation"
LAST = 5  # rounds whose accuracies are averaged: on few labels each they go up and down


@dataclass(frozen=True)
class Setting:
    """How long training takes."""

    name: str
    rounds: int
    steps: int
    learning_rate: float


DIGITS = Setting("digits", rounds=20, steps=5, learning_rate=0.01)
FASHION = Setting("fashion-mnist", rounds=40, steps=10, learning_rate=0.001)


# -- methods ------------------------------------------------------------------------------------------------


class AtOneServer(FedAvg):
    """byzfl's aggregators instead of FedAvg's mean, of the updates w_y − w_k."""

    def __init__(self, aggregator: Any) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._aggregator = aggregator
        self._before: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._before = values(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        before = flat(self._before)
        updates = (
            np.stack([flat(values(reply.content.array_records["arrays"])) for reply in replies]) - before
        )
        if isinstance(self._aggregator, byzfl.CenteredClipping):
            self._aggregator.tau = float(np.median(np.linalg.norm(updates, axis=1)))
        after = (before + self._aggregator(updates)).astype(np.float32)
        return record(named(after, shapes_of(self._before))), MetricRecord()


def methods(malicious: int, devices: int) -> dict[str, Callable[..., Any]]:
    """What makes a strategy of `attacks` and `seed`; those that are not ours take neither."""
    f, share = malicious, max(0.34, malicious / devices)

    def edge(**arguments: Any) -> Callable[..., Any]:
        return lambda **own: ConsensusBFL(
            edge_servers=3, p2p_rounds=5, leader=0, fraction_evaluate=0.0, **arguments, **own
        )

    rules = {
        "Median": ours.Median(),
        "TrimmedMean": ours.TrimmedMean(share),
        "Krum": ours.Krum(share),
        "MultiKrum": ours.MultiKrum(share),
        "CentredClipping": ours.CentredClipping(),
    }
    return {
        "no defence": edge(),
        DEVIATION: edge(defence=ours.Deviation()),
        **{f"edge {name}": edge(edge_rule=rule) for name, rule in rules.items()},
        "byzfl TrMean": lambda: AtOneServer(byzfl.TrMean(f)),
        "byzfl GeometricMedian": lambda: AtOneServer(byzfl.GeometricMedian()),
        "byzfl MultiKrum": lambda: AtOneServer(byzfl.MultiKrum(f)),
        "byzfl CenteredClipping": lambda: AtOneServer(byzfl.CenteredClipping(L=3)),
        "Flower FedMedian": lambda: FedMedian(fraction_evaluate=0.0),
        "Flower FedTrimmedAvg": lambda: FedTrimmedAvg(fraction_evaluate=0.0, beta=(f + 0.5) / devices),
        "Flower Krum": lambda: Krum(fraction_evaluate=0.0, num_malicious_nodes=f),
        "Flower Bulyan": lambda: Bulyan(
            fraction_evaluate=0.0, num_malicious_nodes=min(f, (devices - 3) // 4)
        ),
    }


def is_ours(method: str) -> bool:
    return not method.startswith(("byzfl", "Flower"))


def falsifying(train: Train, attack: Falsification, seed: int) -> Train:
    """Devices that know each other's updates and send what the attack makes of them."""

    def trained(server_round: int, sent: Mapping[int, Arrays]) -> Mapping[int, tuple[Arrays, Metrics] | None]:
        replies = {device: reply for device, reply in train(server_round, sent).items() if reply}
        gradients = {device: flat(sent[device]) - flat(arrays) for device, (arrays, _) in replies.items()}
        everybody = np.stack(list(gradients.values()))
        for device in sorted(attack.devices):
            turn = Turn(server_round, gradients[device], everybody)
            false = attack.falsified(turn, np.random.default_rng([seed, server_round, device]))
            after = named(flat(sent[device]) - false, shapes_of(sent[device]))
            replies[device] = (after, replies[device][1])
        return replies

    return trained


# -- runs ---------------------------------------------------------------------------------------------------


class Bench:
    """One seed, partition, share of malicious devices and attack; then any method."""

    def __init__(
        self, data: Dataset, setting: Setting, kind: str, devices: int, malicious: int, attack: str, seed: int
    ) -> None:
        parts = partition(data.train_labels, devices, kind, seed=seed)  # type: ignore[arg-type]
        rng = np.random.default_rng([seed, 3])
        self.malicious = set(map(int, rng.permutation(devices)[:malicious])) if attack != "none" else set()
        self._attack = ATTACKS[attack](self.malicious)
        samples: list[tuple[Any, Any]] = [
            (data.train_images[part], data.train_labels[part]) for part in parts
        ]
        if isinstance(self._attack, LabelFlip | Backdoor):
            samples = [
                self._attack.poison(*own, device=device, server_round=1)  # the same in every round
                for device, own in enumerate(samples)
            ]
        self._setting, self._devices, self._seed = setting, devices, seed
        self._train = Training(
            setting.name, samples, seed=seed, steps=setting.steps, learning_rate=setting.learning_rate
        )
        self._exam, self._labels = Exam(setting.name, data.test_images), data.test_labels
        door = self._attack if isinstance(self._attack, Backdoor) else Backdoor(devices={0})
        self._others = self._labels != door.target
        self._target = door.target
        self._stamped = Exam(setting.name, door.stamp(data.test_images[self._others]))

    def run(self, make: Callable[..., Any], own: bool) -> dict[str, object]:
        """Accuracy, and share of stamped images taken for the target, at the end; who was suspected."""
        attack = self._attack if isinstance(self._attack, Falsification) else None
        train: Train = self._train
        if own:
            strategy = make(attacks=[attack] if attack else [], seed=self._seed)
        else:
            strategy = make()
            train = falsifying(train, attack, self._seed) if attack else train
        net = build(self._setting.name, self._seed)
        start = record({name: weight.numpy().copy() for name, weight in net.state_dict().items()})
        rounds, grid = self._setting.rounds, cast(Grid, Federation(self._devices, train, self._seed))
        accuracies: list[float] = []
        opened: list[float] = []

        def evaluate(server_round: int, arrays: ArrayRecord) -> None:
            if server_round > rounds - LAST:
                model = values(arrays)
                accuracies.append(self._exam.accuracy(model, self._labels))
                opened.append(float((self._stamped.classes(model) == self._target).mean()))

        strategy.start(grid, start, rounds, evaluate_fn=evaluate)
        found: dict[str, object] = {
            "accuracy": f"{statistics.mean(accuracies):.4f}",
            "backdoor": f"{statistics.mean(opened):.4f}",
            "detected": "",
            "false_alarms": "",
        }
        if own:
            found |= self._suspicions(strategy)
        return found

    def _suspicions(self, strategy: ConsensusBFL) -> dict[str, str]:
        rounds = [{one.who for one in report.suspected} for report in strategy.reports[1:]]
        guilty = {f"device {n}" for n in self.malicious}
        honest = {f"device {n}" for n in range(self._devices)} - guilty
        assert set().union(*rounds) <= guilty | honest
        hits, alarms = (
            [len(who & names) / len(names) for who in rounds] if names else [] for names in (guilty, honest)
        )
        return {
            "detected": f"{statistics.mean(hits):.4f}" if hits else "",
            "false_alarms": f"{statistics.mean(alarms):.4f}",
        }


def run_all(
    data: Dataset, setting: Setting, devices: int, percents: Sequence[int], seeds: int, file: Path | None
) -> list[dict[str, Any]]:
    rows = [] if file is None else rows_of(file)
    done = {key(row) for row in rows}
    for seed in range(seeds):
        for kind in PARTITIONS:
            for percent in percents:
                malicious = round(percent / 100 * devices)
                began, fresh = perf_counter(), 0
                for attack in ATTACKS:
                    case = (setting.name, kind, devices, percent, attack)
                    missing = [
                        (method, make)
                        for method, make in methods(malicious, devices).items()
                        if tuple(map(str, (*case, method, seed))) not in done
                    ]
                    if not missing:
                        continue
                    bench = Bench(data, setting, kind, devices, malicious, attack, seed)
                    for method, make in missing:
                        found = bench.run(make, is_ours(method))
                        row = dict(zip(COLUMNS, map(str, (*case, method, seed)), strict=False)) | found
                        if file is not None:
                            add_rows(file, COLUMNS, [row])
                        rows.append(row)
                        fresh += 1
                if fresh:
                    seconds = perf_counter() - began
                    print(f"seed {seed}, {kind}, {percent} %: {fresh} runs, {seconds:.0f} s", flush=True)
    return rows


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in COLUMNS[:7])


# -- tables -------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]], setting: Setting, devices: int) -> None:
    mine = [row for row in rows if (row["data"], row["devices"]) == (setting.name, str(devices))]
    percents = sorted({int(row["malicious"]) for row in mine})
    seeds = len({row["seed"] for row in mine})
    about = f"{setting.name}, {devices} devices, {setting.rounds} rounds, last {LAST} averaged, {seeds} seeds"
    for kind in PARTITIONS:
        own = [row for row in mine if row["partition"] == kind]

        def mean(column: str, *wanted: str, own: Sequence[Mapping[str, Any]] = own) -> str:
            numbers = [
                100 * float(row[column])
                for row in own
                if (row["malicious"], row["attack"], row["method"]) == wanted and row[column] != ""
            ]
            return f"{statistics.mean(numbers):.1f}" if numbers else "-"

        lines: list[list[object]] = []
        for percent in percents:
            for method in methods(0, devices):
                cells = [mean("accuracy", str(percent), attack, method) for attack in ATTACKS]
                door = mean("backdoor", str(percent), "Backdoor", method)
                lines.append([f"{percent} %  {method}", *cells, door])
        table(f"{kind}: test accuracy in %; {about}", ["malicious", *ATTACKS, "backdoor opens"], lines)
        table(
            f"{kind}: {DEVIATION}, malicious devices suspected / honest ones suspected, % of all; {about}",
            ["attack", *(f"{percent} %" for percent in percents)],
            [
                [
                    attack,
                    *(
                        " / ".join(
                            mean(column, str(percent), attack, DEVIATION)
                            for column in ("detected", "false_alarms")
                        )
                        for percent in percents
                    ),
                ]
                for attack in ATTACKS
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("seeds", nargs="?", type=int, default=1)
    parser.add_argument("--malicious", default="20,40", help="per cent")
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    setting = DIGITS if arguments.data == DIGITS.name else FASHION
    if setting is FASHION and not (Path(arguments.data) / "FashionMNIST").is_dir():
        print(f"not run: no Fashion-MNIST in {arguments.data}")
        return
    data = load(setting.name, None if setting is DIGITS else Path(arguments.data))  # type: ignore[arg-type]
    file = None
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        file = arguments.out / "poisoned_devices.csv"
    percents = [int(percent) for percent in arguments.malicious.split(",")]
    gc.freeze()  # Flower's Krum and Bulyan collect garbage for each reply: a second each with torch loaded
    rows = run_all(data, setting, arguments.devices, percents, arguments.seeds, file)
    summarise(rows, setting, arguments.devices)


if __name__ == "__main__":
    main()
