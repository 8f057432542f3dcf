"""Compromised edge servers: how many are found, who is accused wrongly, and what detection costs.

    python benchmarks/attacks.py [SEEDS=2] [HONEST_ROUNDS=500] [TABLES=found,honest,colluders,cost]

The full budget is `attacks.py 10 10000`. In process, 21,840 parameters as in the paper's network for
Fashion-MNIST, devices that walk at random with heavy-tailed steps:

1. every attack in every place, 3 and 5 edge servers on random graphs, four rounds, the attack in the third;
2. honest rounds with random devices, sample counts, absences, replies' order and graphs: nobody may be
   accused. In the "float32" arithmetic all edge servers but the one that votes add up in float32, each sum in
   an order of its own;
3. as many colluders as there may be, who also accuse an honest one together: the rest must come to the model
   of a run without attacks;
4. the ServerApp's time a round on an EVM chain on disk with and without Replay, in one process, alternating.
   Blocks need no work here, which would be the same with and without it.
"""

import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from federation import Federation, Walkers, flat, initial, shapes_with, table, values
from flwr.serverapp import Grid

from flower_bfl import ConsensusBFL, EvmLedger, MemoryLedger, Mining
from flower_bfl.attacks import (
    ALittleIsEnough,
    Attack,
    Equivocation,
    FalseAccusation,
    Falsification,
    GaussianNoise,
    InnerProduct,
    OldValue,
    Scaling,
    SignFlip,
    Silence,
    Turn,
)
from flower_bfl.defences import Replay
from flower_bfl.defences.replay import rounding_bound
from flower_bfl.types import RoundReport

PARAMETERS = 21_840
ARITHMETICS = ("exact", "float32")
EASY = Mining(difficulty_bits=1)
STEPS = 4  # of consensus
PLACES = {"step 0": 0, "middle": STEPS // 2, "last": STEPS, "model": "model"}
ATTACKED_ROUND = 3

Make = Callable[..., Attack]
ATTACKS: dict[str, Make] = {
    "GaussianNoise 1": lambda **who: GaussianNoise(size=1.0, **who),
    "GaussianNoise 1e-3": lambda **who: GaussianNoise(size=1e-3, **who),
    "GaussianNoise 1e-5": lambda **who: GaussianNoise(size=1e-5, **who),
    "SignFlip": SignFlip,
    "Scaling 10": lambda **who: Scaling(factor=10.0, **who),
    "Scaling 1+1e-5": lambda **who: Scaling(factor=1 + 1e-5, **who),
    "ALittleIsEnough": ALittleIsEnough,
    "InnerProduct": InnerProduct,
    "OldValue": OldValue,
    "Silence": Silence,
    "Equivocation": Equivocation,
    "FalseAccusation": lambda **who: FalseAccusation(accused=0, **who),
}
# Everybody reads the same model, and a little less than one vector's mean is the vector.
NOT_IN_MODELS = ("Equivocation", "FalseAccusation", "ALittleIsEnough")


def reports_of(
    servers: int,
    train: Walkers,
    devices: int,
    rounds: int,
    seed: int,
    parameters: int = PARAMETERS,
    **arguments: Any,
) -> tuple[list[RoundReport], np.ndarray]:
    """A run's rounds and its last model."""
    settings: dict[str, Any] = {"ledger": MemoryLedger(), "mining": EASY, "fraction_evaluate": 0.0}
    strategy = ConsensusBFL(edge_servers=servers, seed=seed, **(settings | arguments))
    start = initial(shapes_with(parameters), seed)
    result = strategy.start(cast(Grid, Federation(devices, train, seed)), start, rounds)
    return strategy.reports[1:], flat(values(result.arrays))


def wrongly(reports: Iterable[RoundReport], guilty: set[int]) -> int:
    """Honest edge servers voted out, or accused by anybody who is honest."""
    return sum(
        one.server not in guilty and (one.voted_out or one.votes > len(guilty))
        for report in reports
        for one in report.accused
    )


# -- 1: every attack in every place ------------------------------------------------------------------------


def found(seeds: int) -> None:
    for arithmetic in ARITHMETICS:
        rows: list[list[object]] = []
        wrong = total = 0
        for name, make in ATTACKS.items():
            cells: list[object] = [name]
            for place in PLACES.values():
                if place == "model" and name in NOT_IN_MODELS:
                    cells.append("-")
                    continue
                hits = tries = 0
                for seed in range(seeds):
                    for servers in (3, 5):
                        hit, mistakes = _tried(make, place, servers, seed, arithmetic)
                        hits, tries, wrong = hits + hit, tries + 1, wrong + mistakes
                total += tries
                cells.append(f"{hits}/{tries}")
            rows.append(cells)
        title = (
            f"1. Found in its own round, Replay({arithmetic!r}); {wrong} false accusations in {total} runs"
        )
        table(title, ["attack", *PLACES], rows)


def _tried(make: Make, place: Any, servers: int, seed: int, arithmetic: Any) -> tuple[bool, int]:
    attacker = 1 + seed % (servers - 1)
    attack = make(server=attacker, rounds={ATTACKED_ROUND}, p2p_step=place)
    reports, _ = reports_of(
        servers, Walkers(seed, 10), 10, 4, seed,
        graph="random", p2p_rounds=STEPS, attacks=[attack], defence=Replay(arithmetic),
        leader=attacker if place == "model" else "random",
    )  # fmt: skip
    named = {one.server for one in reports[ATTACKED_ROUND - 1].accused if one.voted_out}
    return attacker in named, wrongly(reports, {attacker})


# -- 2: nobody is accused who is honest ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OwnOrder(Falsification):
    """No attack: the sum itself, but in float32, and in an order of the edge server's own."""

    seen: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def falsified(self, turn: Turn, rng: np.random.Generator) -> np.ndarray:
        size = turn.honest.size
        if not turn.terms:
            return turn.honest
        weights = np.array([weight for weight, _ in turn.terms], np.float32)
        rows = np.stack([row[0:size] for _, row in turn.terms])
        mixed = rng.permutation(len(weights))
        match rng.integers(3):
            case 0:
                result = np.zeros(size, np.float32)
                for y in mixed:
                    result += weights[y] * rows[y]
            case 1:  # two at a time, any two
                sums = [weights[y] * rows[y] for y in mixed]
                while len(sums) > 1:
                    sums.append(sums.pop(rng.integers(len(sums))) + sums.pop(rng.integers(len(sums))))
                result = sums[0]
            case _:  # as a BLAS does, with fused operations
                result = weights[mixed] @ rows[mixed]
        self.seen["sums"] += 1
        self.seen["other"] += not np.array_equal(result, turn.honest)
        if rng.random() < 0.02:
            off = np.abs(result.astype(np.float64) - turn.honest)
            share = off / np.maximum(rounding_bound(turn.terms, size), np.finfo(float).tiny)
            self.seen["worst, in millionths"] = max(self.seen["worst, in millionths"], int(1e6 * share.max()))
        return result


def honest(rounds: int, rounds_a_run: int = 25) -> None:
    rows: list[list[object]] = []
    seen: Counter[str] = Counter()
    for arithmetic in ARITHMETICS:
        accused = barred = done = 0
        for run in range(-(-rounds // rounds_a_run)):
            some = min(rounds_a_run, rounds - done)
            reports = _honest_run(run, some, arithmetic, arithmetic == "float32", seen)
            accused += sum(len(report.accused) for report in reports)
            barred += sum(len(report.quarantined) for report in reports)
            done += len(reports)
        rows.append([f"Replay({arithmetic!r})", done, accused, barred])
    table("2. Honest rounds", ["", "rounds", "accusations", "barred"], rows)
    print(
        f"  of {seen['sums']:,} float32 sums {seen['other']:,} had other bits than the exact one; of every "
        f"50th, the furthest off was so by {seen['worst, in millionths'] / 1e6:.2f} of what is allowed"
    )
    control = _honest_run(0, 4, "exact", True, Counter(), in_models=False)
    told = sum(bool(report.accused) for report in control)
    print(f"  (control: the same float32 sums before Replay('exact'): accused in {told} of 4 rounds)")


def _honest_run(
    run: int, rounds: int, arithmetic: Any, own_order: bool, seen: Counter[str], in_models: bool = True
) -> list[RoundReport]:
    rng = np.random.default_rng([run, 2])
    servers = int(rng.choice([3, 4, 5, 7]))
    devices = int(rng.integers(servers, 13))
    steps = int(rng.integers(1, 9))
    # Who sums up in float32 counts as compromised, and does not vote: one each round has to.
    others = {m: [k for k in range(1, rounds + 1) if k % servers != m] for m in range(servers)}
    places: tuple[Any, ...] = (*range(steps + 1), *(["model"] if in_models else []))
    attacks = [
        OwnOrder(server=server, p2p_step=place, rounds=own, seen=seen)
        for server, own in others.items()
        for place in places
        if own
    ]
    reports, _ = reports_of(
        servers, Walkers(run, devices, failing=0.1), devices, rounds, run,
        graph=str(rng.choice(["random", "random", "complete", "ring", "line"])),
        mixing=str(rng.choice(["laplacian", "metropolis"])),
        mass=str(rng.choice(["count", "data"])),
        leader=str(rng.choice(["random", "reputation"])),
        learning_rate=float(rng.choice([1.0, 0.01])),
        p2p_rounds=steps, attacks=attacks if own_order else (), defence=Replay(arithmetic),
    )  # fmt: skip
    return reports


# -- 3: colluders -------------------------------------------------------------------------------------------


def colluders(seeds: int) -> None:
    rows = []
    for servers in (3, 4, 5, 7):
        many = (servers - 1) // 2
        furthest, caught, tries, wrong, accused = 0.0, 0, 0, 0, 0
        for seed in range(seeds):
            for graph in ("complete", "random"):
                for what in ("GaussianNoise 1", "SignFlip", "Silence"):
                    for place in (0, 3, "model"):
                        guilty = set(range(1, many + 1))
                        bad = [ATTACKS[what](server=m, rounds={2}, p2p_step=place) for m in sorted(guilty)]
                        bad += [
                            FalseAccusation(server=m, accused=0, rounds={2}, p2p_step=3)
                            for m in sorted(guilty)
                        ]
                        runs = [
                            reports_of(
                                servers, Walkers(seed, 10), 10, 4, seed, 2_000,
                                graph=graph, mixing="metropolis", p2p_rounds=100, attacks=attacks,
                                defence=Replay(), leader=1,
                            )
                            for attacks in (bad, ())
                        ]  # fmt: skip
                        (reports, model), (_, expected) = runs
                        start = flat(values(initial(shapes_with(2_000), seed)))
                        off = np.linalg.norm(model - expected) / np.linalg.norm(expected - start)
                        furthest = max(furthest, float(off))
                        caught += len({m for m in reports[1].quarantined if m in guilty})
                        tries += many
                        wrong += wrongly(reports, guilty)
                        accused += sum(o.server not in guilty for r in reports for o in r.accused)
        rows.append([servers, many, f"{caught}/{tries}", accused, wrong, f"{furthest:.1e}"])
    table(
        "3. Colluders: attack together in round 2, and accuse an honest one",
        [
            "edge servers", "colluders", "found", "accused falsely", "of them barred",
            "honest model: furthest from the one without attacks, over the way since the start",
        ],
        rows,
    )  # fmt: skip


# -- 4: the cost --------------------------------------------------------------------------------------------


def cost(pairs: int, cases: Sequence[tuple[int, int]]) -> None:
    rows = []
    for parameters, rounds in cases:
        _timed(parameters, 3, None), _timed(parameters, 3, Replay())  # warm-up
        times: list[tuple[float, float]] = []
        shares: list[float] = []
        parts: list[tuple[float, float]] = []
        for pair in range(pairs):
            order = (None, Replay()) if pair % 2 == 0 else (Replay(), None)
            timed = {one: _timed(parameters, rounds, one) for one in order}
            off, on = timed[None], timed[Replay()]
            times.append((_median(map(_seconds, off)), _median(map(_seconds, on))))
            parts.append((_median(map(_aggregating, off)), _median(map(_aggregating, on))))
            shares.append(_median(r.defend_seconds / _seconds(r) for r in on))
        ratios = [on / off for off, on in times]
        without, with_it = (_median(side) for side in zip(*times, strict=True))
        before, after = (_median(side) for side in zip(*parts, strict=True))
        rows.append(
            [
                f"{parameters:,}", f"{without * 1e3:.1f}", f"{with_it * 1e3:.1f}",
                f"{_median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                f"{before * 1e3:.1f} -> {after * 1e3:.1f}", f"{_median(shares):.1%}",
            ]
        )  # fmt: skip
    table(
        f"4. An honest round of the ServerApp: 10 devices, 3 edge servers, 5 steps, EVM chain, {pairs} pairs",
        [
            "parameters",
            "without, ms",
            "with Replay, ms",
            "ratio",
            "of it aggregating, ms",
            "share of checking",
        ],
        rows,
    )


def _timed(parameters: int, rounds: int, defence: Replay | None) -> list[RoundReport]:
    with tempfile.TemporaryDirectory() as folder:
        reports, _ = reports_of(
            3, Walkers(0, 10, equal=True), 10, rounds, 0, parameters,
            ledger=EvmLedger(folder), p2p_rounds=5, defence=defence,
        )  # fmt: skip
    return reports[1:]  # the first round registers accounts


def _seconds(report: RoundReport) -> float:
    return report.aggregate_seconds + report.ledger.seconds


def _aggregating(report: RoundReport) -> float:
    return report.aggregate_seconds


def _median(numbers: Iterable[float]) -> float:
    return statistics.median(numbers)


def main(seeds: str = "2", rounds: str = "500", tables: str = "found,honest,colluders,cost") -> None:
    wanted, full = tables.split(","), int(seeds) >= 10
    if "found" in wanted:
        found(int(seeds))
    if "honest" in wanted:
        honest(int(rounds))
    if "colluders" in wanted:
        colluders(max(1, int(seeds) // 2))
    if "cost" in wanted:
        cost(9 if full else 5, [(PARAMETERS, 20 if full else 10), (1_000_000, 6 if full else 4)])


if __name__ == "__main__":
    main(*sys.argv[1:])
