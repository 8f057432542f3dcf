"""Theorem 1 on a problem whose constants are known, and p2p_rounds="auto" beside fixed numbers of steps.

Ten devices with quadratic losses, other data at every edge server, five edge servers, mini-batch SGD, the
real ConsensusBFL. Measured: the mean of ‖∇F(w_k)‖² over K rounds, and what (13) says of it; then steps,
transactions and the result by φ on three graphs; then the same on 8x8 digits with two labels a device. "auto"
goes by the size of the round's gradient, "xi" by ξ = 0.1 ‖∇F(w_0)‖², the same in every round.

    python benchmarks/convergence.py --out runs/convergence
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from federation import (
    Arrays,
    Exam,
    Federation,
    Metrics,
    Training,
    add_rows,
    mean_and_interval,
    record,
    table,
    values,
)
from flwr.app import ArrayRecord

from flower_bfl import AutoRounds, ConsensusBFL, MemoryLedger, Mining
from flower_bfl.network import edge_graph, mixing_matrix, spectral_radius
from flower_bfl.strategies.convergence import (
    Bound,
    LossConstants,
    RoundConstants,
    bound,
    gradient_divergence,
    largest_scale,
    step_size,
)

Steps = int | str
ROUNDS = (25, 50, 100, 200, 400)
CHOICES: tuple[Steps, ...] = ("auto", 5, 10, 15, 20)
SHARE = 0.1  # of ‖∇F(w_0)‖², as ξ
TERMS = [term.name for term in fields(Bound)]


# -- the problem ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Quadratic:
    """f(w, d) = ½ (w − d)ᵀ A (w − d), A = diag(curvature): β = Θ = its largest, ζ1 = 1, F* known."""

    curvature: np.ndarray  # (p,)
    data: Sequence[np.ndarray]  # of each device, (D_y, p)
    steps: np.ndarray  # e_y
    batch: np.ndarray  # B_y
    start: np.ndarray  # w_0

    @property
    def samples(self) -> np.ndarray:
        return np.array([len(own) for own in self.data], float)

    @property
    def means(self) -> np.ndarray:
        return np.stack([own.mean(axis=0) for own in self.data])

    @property
    def best(self) -> np.ndarray:
        return self.samples @ self.means / self.samples.sum()

    def squared_gradient(self, weights: np.ndarray) -> float:
        """‖∇F(w)‖²."""
        gradient = self.curvature * (weights - self.best)
        return float(gradient @ gradient)

    def loss(self) -> LossConstants:
        """β, ζ1, ζ2 for the shares D_y/D, the only coefficients in the proof, and F(w_0) − F*."""
        away, apart = self.start - self.best, self.curvature * (self.means - self.best)
        zeta2 = float(self.samples / self.samples.sum() @ (apart**2).sum(axis=1))
        gap = float(away @ (self.curvature * away)) / 2
        return LossConstants(float(self.curvature.max()), gap, 1.0, zeta2)

    def round(self, **agreement: Any) -> RoundConstants:
        variance = np.array([own.var(axis=0, ddof=1).sum() for own in self.data])
        theta = float(self.curvature.max())
        return RoundConstants(self.samples, self.steps, self.batch, variance, theta, **agreement)


def quadratic(devices: int, servers: int, seed: int = 0, parameters: int = 20) -> Quadratic:
    """Other data at every edge server, data sets, batches and numbers of steps of several sizes."""
    rng = np.random.default_rng(seed)
    homes = rng.standard_normal((servers, parameters))
    data = [
        homes[y % servers] + 0.5 * rng.standard_normal(parameters) + rng.standard_normal((size, parameters))
        for y, size in enumerate(rng.integers(40, 200, devices))
    ]
    steps, batch = rng.integers(1, 6, devices), rng.integers(5, 21, devices)
    return Quadratic(np.linspace(0.2, 1.0, parameters), data, steps, batch, np.full(parameters, 2.0))


class Descent:
    """Devices that take mini-batch SGD steps on a quadratic, and note what it comes to."""

    def __init__(self, problem: Quadratic, learning_rate: float, servers: int, seed: int) -> None:
        self._problem, self._rate, self._servers, self._seed = problem, learning_rate, servers, seed
        self.squared: list[float] = []  # ‖∇F(w_k)‖²
        self.divergence: list[float] = []  # Ξ_k

    def __call__(self, server_round: int, sent: Mapping[int, Arrays]) -> dict[int, tuple[Arrays, Metrics]]:
        problem, replies = self._problem, {}
        before = next(iter(sent.values()))["w"].astype(float)
        self.squared.append(problem.squared_gradient(before))
        sums = np.zeros((self._servers, len(before)))
        for y in sent:
            rng, own, steps = (
                np.random.default_rng([self._seed, y, server_round]),
                problem.data[y],
                problem.steps[y],
            )
            weights = before.copy()
            for _ in range(steps):
                batch = own[rng.choice(len(own), problem.batch[y], replace=False)]
                weights -= self._rate * problem.curvature * (weights - batch.mean(axis=0))
            share = len(own) / problem.samples.sum()
            sums[y % self._servers] += share / steps * (before - weights) / self._rate
            metrics: Metrics = {"num-examples": len(own), "num-steps": int(steps)}
            replies[y] = ({"w": weights.astype(np.float32)}, metrics)
        self.divergence.append(gradient_divergence(sums))
        return replies


@dataclass(frozen=True, eq=False)
class Run:
    squared: list[float]  # ‖∇F(w_k)‖², k = 0..K−1
    divergence: list[float]  # Ξ_k
    steps: list[int]  # φ_k
    last: float  # ‖∇F(w_K)‖²
    transactions: int  # of all rounds, if recorded


def run(
    problem: Quadratic, servers: int, graph: str, rounds: int, steps: Steps, rate: float, seed: int,
    *, recorded: bool = False,
) -> Run:  # fmt: skip
    devices, xi = len(problem.data), SHARE * problem.squared_gradient(problem.start)
    descent = Descent(problem, rate, servers, seed)
    strategy = ConsensusBFL(
        edge_servers=servers, graph=graph, learning_rate=rate, seed=seed,
        p2p_rounds=AutoRounds(xi, absolute=True) if steps == "xi" else steps,
        fraction_evaluate=0.0, association=[y % servers for y in range(devices)],
        ledger=MemoryLedger() if recorded else None, mining=Mining(difficulty_bits=1),
    )  # fmt: skip
    start = record({"w": problem.start.astype(np.float32)})
    result = strategy.start(Federation(devices, descent, seed), start, rounds)
    reports = strategy.reports[1:]
    return Run(
        descent.squared,
        descent.divergence,
        [report.p2p_rounds for report in reports],
        problem.squared_gradient(values(result.arrays)["w"].astype(float)),
        sum(report.ledger.transactions for report in reports),
    )


def transactions_of(devices: int, servers: int, steps: Sequence[int]) -> int:
    """By formula: everybody's gradient, x^(0) to x^(φ) of every edge server, the model and its seal."""
    return sum(devices + servers * (taken + 1) + 2 for taken in steps)


# -- measured against the bound ------------------------------------------------------------------------------


def against_the_bound(
    problem: Quadratic, servers: int, graph: str, steps: Steps, seeds: int, choices: Sequence[int] = ROUNDS
) -> list[dict[str, object]]:
    """A row for every K: measured mean and interval, (13) and its terms (means over seeds)."""
    loss = problem.loss()
    radius = spectral_radius(mixing_matrix("laplacian", edge_graph(graph, servers)))
    scale = largest_scale(loss, [problem.round()] * min(choices))  # for the smallest K: the same for all
    rows: list[dict[str, object]] = []
    for rounds in choices:
        rate = step_size(scale, rounds, problem.round())
        runs = [run(problem, servers, graph, rounds, steps, rate, seed) for seed in range(seeds)]
        bounds = [bound(loss, _constants(problem, servers, radius, one), scale) for one in runs]
        mean, half = mean_and_interval([float(np.mean(one.squared)) for one in runs])
        terms = {name: float(np.mean([getattr(each, name) for each in bounds])) for name in TERMS}
        total = float(np.mean([each.total for each in bounds]))
        phi = float(np.mean([one.steps for one in runs]))
        kind = {"graph": graph, "steps": str(steps), "K": rounds, "step_size": rate}
        measured = {"measured": mean, "interval": half, "bound": total, "phi": phi}
        rows.append(kind | measured | terms)
    return rows


def _constants(problem: Quadratic, servers: int, radius: float, one: Run) -> list[RoundConstants]:
    return [
        problem.round(servers=servers, radius=radius, p2p_rounds=phi, divergence=xi)
        for phi, xi in zip(one.steps, one.divergence, strict=True)
    ]


# -- auto beside fixed numbers of steps ----------------------------------------------------------------------


def by_steps(
    problem: Quadratic, servers: int, graph: str, rounds: int, seeds: int
) -> list[dict[str, object]]:
    """A row for every φ: the gradient at the end, over the run, steps and transactions."""
    rate = step_size(largest_scale(problem.loss(), [problem.round()] * rounds), rounds, problem.round())
    rows: list[dict[str, object]] = []
    for steps in ("auto", "xi", *CHOICES[1:]):
        runs = [run(problem, servers, graph, rounds, steps, rate, s, recorded=s == 0) for s in range(seeds)]
        assert runs[0].transactions == transactions_of(len(problem.data), servers, runs[0].steps)
        last, last_half = mean_and_interval([one.last for one in runs])
        mean, half = mean_and_interval([float(np.mean(one.squared)) for one in runs])
        rows.append(
            {"what": "quadratic", "graph": graph, "K": rounds, "steps": str(steps)}
            | {"result": last, "result_interval": last_half, "over_the_run": mean, "over_interval": half}
            | _steps_taken([one.steps for one in runs], len(problem.data), servers)
        )
    return rows


def _steps_taken(steps: Sequence[Sequence[int]], devices: int, servers: int) -> dict[str, object]:
    """Over the seeds: mean, least and most φ_k, transactions a run."""
    every = [phi for one in steps for phi in one]
    transactions = float(np.mean([transactions_of(devices, servers, one) for one in steps]))
    taken = {"phi": float(np.mean(every)), "least": min(every), "most": max(every)}
    return taken | {"transactions": transactions}


def digits_by_steps(
    servers: int, graph: str, rounds: int, seeds: int, choices: Sequence[Steps] = CHOICES, devices: int = 10
) -> list[dict[str, object]]:
    """The same for a network on 8x8 digits, two labels a device: accuracy at the end, and its mean."""
    found: dict[Steps, list[tuple[float, float, list[int]]]] = {steps: [] for steps in choices}
    for seed in range(seeds):
        parts, exam, labels, start = _digits(devices, seed)
        training = Training("digits", parts, seed=seed, steps=5, learning_rate=0.01)
        for steps in choices:
            strategy = ConsensusBFL(
                edge_servers=servers, graph=graph, p2p_rounds=steps, seed=seed, fraction_evaluate=0.0,
                association=[y % servers for y in range(devices)],
            )  # fmt: skip
            reached: list[float] = []
            strategy.start(
                Federation(devices, training, seed), record(start), rounds,
                evaluate_fn=partial(_note, exam, labels, reached),
            )  # fmt: skip
            taken = [report.p2p_rounds for report in strategy.reports[1:]]
            found[steps].append((reached[-1], float(np.mean(reached[1:])), taken))
    rows: list[dict[str, object]] = []
    for steps, runs in found.items():
        last, mean = (mean_and_interval([one[place] for one in runs]) for place in (0, 1))
        rows.append(
            {"what": "digits", "graph": graph, "K": rounds, "steps": str(steps)}
            | {
                "result": last[0],
                "result_interval": last[1],
                "over_the_run": mean[0],
                "over_interval": mean[1],
            }
            | _steps_taken([one[2] for one in runs], devices, servers)
        )
    return rows


def _note(exam: Exam, labels: np.ndarray, reached: list[float], _: int, arrays: ArrayRecord) -> None:
    reached.append(exam.accuracy(values(arrays), labels))


@cache
def _digits(devices: int, seed: int) -> tuple[Any, Exam, np.ndarray, Arrays]:
    from flower_bfl.learning.data import load
    from flower_bfl.learning.models import build
    from flower_bfl.learning.partition import partition

    data = load("digits")
    parts = partition(data.train_labels, devices, "labels", seed=seed, labels_per_device=2)
    start = {name: tensor.numpy() for name, tensor in build("digits", seed).state_dict().items()}
    own = [(data.train_images[part], data.train_labels[part]) for part in parts]
    return own, Exam("digits", data.test_images), data.test_labels, start


# -- what is written and printed -----------------------------------------------------------------------------


def draw(bounds: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys((row["graph"], row["steps"]) for row in bounds))
    figure, grid = plt.subplots(2, 2, figsize=(11, 8))
    axes = list(grid.flat)
    low = min(float(row[name]) for row in bounds for name in ("measured", *TERMS) if row[name]) / 2
    for axis, (graph, steps) in zip(axes, kinds, strict=False):
        rows = [row for row in bounds if (row["graph"], row["steps"]) == (graph, steps)]
        x = [row["K"] for row in rows]
        measured, half = ([row[name] for row in rows] for name in ("measured", "interval"))
        axis.errorbar(x, measured, half, color="k", marker="o", label="measured", capsize=3)
        axis.plot(x, [row["bound"] for row in rows], "k--", label="(13)")
        for name in (name for name in TERMS if any(row[name] for row in rows)):
            axis.plot(x, [row[name] for row in rows], ".-", linewidth=1, label=name.replace("_", " "))
        axis.set(xscale="log", yscale="log", xlabel="rounds K", title=f"{graph}, φ = {steps}")
        axis.set(ylabel="mean ‖∇F‖² over the run", ylim=(low, 200))
        axis.set_xticks(x, list(map(str, x)))
        axis.minorticks_off()
    axes[0].legend(fontsize=7, ncols=2)
    for graph in dict.fromkeys(row["graph"] for row in compared if row["what"] == "quadratic"):
        rows = [row for row in compared if (row["graph"], row["what"]) == (graph, "quadratic")]
        x, y, half = ([row[name] for row in rows] for name in ("phi", "result", "result_interval"))
        points = axes[-1].errorbar(x, y, half, fmt="o", capsize=3, label=graph)
        for row in rows[:2]:  # those that choose for themselves
            at, colour = (row["phi"], row["result"]), points[0].get_color()
            axes[-1].annotate(row["steps"], at, (4, 4), textcoords="offset points", color=colour)
    axes[-1].set(xlabel="steps a round", ylabel="‖∇F‖² after the last round", yscale="log")
    axes[-1].set_title("chosen beside fixed φ")
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def show(bounds: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> None:
    names = ["K", "graph", "steps", "phi", "measured", "interval", "bound", *TERMS]
    table("Mean ‖∇F‖² over K rounds, and (13)", names, [_cells(row, names) for row in bounds])
    names = ["what", "graph", "K", "steps", "result", "result_interval", "over_the_run", "over_interval"]
    names += ["phi", "least", "most", "transactions"]
    table(
        "By steps a round; result: ‖∇F‖² or accuracy at the end",
        names,
        [_cells(row, names) for row in compared],
    )
    for what, graph in dict.fromkeys((row["what"], row["graph"]) for row in compared):
        rows = [row for row in compared if (row["what"], row["graph"]) == (what, graph)]
        fixed = [row for row in rows if row["steps"].isdigit()]
        for one in (row for row in rows if row not in fixed):
            told = [
                f"{one['transactions'] / row['transactions'] - 1:+.0%} of φ={row['steps']}" for row in fixed
            ]
            print(f"  {what}, {graph}, {one['steps']}: transactions {', '.join(told)}")


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[object]:
    return [f"{row[name]:.3g}" if isinstance(row[name], float) else row[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the picture")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    servers, seeds = 5, given.seeds
    problem = quadratic(10, servers)
    bounds = [
        row
        for steps in (5, "auto", "xi")
        for row in against_the_bound(problem, servers, "ring", steps, seeds)
    ]
    compared = [
        row for graph in ("complete", "ring", "line") for row in by_steps(problem, servers, graph, 100, seeds)
    ]
    compared += digits_by_steps(3, "line", 20, seeds)
    for name, rows in (("bound.csv", bounds), ("steps.csv", compared)):
        (given.out / name).unlink(missing_ok=True)
        add_rows(given.out / name, list(rows[0]), rows)
    draw(bounds, compared, given.out / "convergence.png")
    show(bounds, compared)
    broken = [row for row in bounds if row["measured"] - row["interval"] > row["bound"]]
    raise SystemExit(f"the bound does not hold: {broken}" if broken else 0)


if __name__ == "__main__":
    main()
