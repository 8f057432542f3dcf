"""What was measured beside what the paper says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flower_bfl.controller.comparison import Estimate, mean_of
from flower_bfl.errors import ConfigError
from flower_bfl.paper.experiment import Claim, Settings, Take
from flower_bfl.paper.results import Results
from flower_bfl.paper.runs import Row

Word = Literal["borne out", "partly", "not borne out", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """A claim, and what comes of it.

    In the claimed direction: the claim is borne out if the interval lies above zero and reaches the paper's
    number, if it has one; partly, if it only lies above zero; undecided if it holds zero and the paper's
    number, or zero where there is none, and with one seed; not borne out otherwise. A number by itself is
    held against the paper's alone.
    """

    claim: Claim
    measured: Estimate  # with its 95 % interval over seeds
    seeds: int

    @property
    def word(self) -> Word:
        """In a word."""
        sign = 1 if self.claim.expect == "above" else -1
        if not math.isfinite(self.measured.half):
            return "undecided"
        low, high = sorted((sign * self.measured.low, sign * self.measured.high))
        paper = 0.0 if self.claim.paper is None else sign * self.claim.paper
        if self.claim.over is None:
            low -= paper
            high -= paper
            paper = 0.0
        if low > 0:
            return "borne out" if high >= paper else "partly"
        return "undecided" if high > 0 and high >= paper else "not borne out"

    @property
    def figure(self) -> str:
        """What was measured, with its interval and unit."""
        value, half = self.measured.value, self.measured.half
        spread = f" ± {_short(half)}" if math.isfinite(half) else ""
        return f"{signed(value)}{spread} {self.claim.unit}".rstrip()

    def __str__(self) -> str:
        unit, paper = self.claim.unit, self.claim.paper
        told = f"{self.claim.expect} it" if paper is None else f"{paper:+g} {unit}".rstrip().replace("-", "−")
        what = f"{self.claim.text}: {self.claim.source} {told}, measured {self.figure}"
        return f"{what}, {self.seeds} seed{'s' if self.seeds != 1 else ''}: {self.word}"


def signed(number: float) -> str:
    """With a plus or a minus."""
    return f"{'+' if number >= 0 else '−'}{_short(abs(number))}"


def _short(number: float) -> str:
    """Three digits at most, but no power of ten."""
    return f"{number:.0f}" if number >= 100 else f"{number:.2g}" if number < 1 else f"{number:.3g}"


def verdicts(results: Results) -> list[Verdict]:
    """Of every claim on which there is a run."""
    found = [_verdict(claim, results) for claim in results.experiment.claims]
    return [each for each in found if each.seeds]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % interval by Student's t; none for a single value."""
    if len(values) < 2:
        return Estimate(values[0] if values else math.nan, math.nan)
    return mean_of(np.asarray(values, dtype=np.float64))


def taken(take: Take, column: str, rows: Sequence[Row]) -> float:
    """One number of a run; NaN if it has none."""
    values = [_at(row, column) for row in rows]
    if not values:
        return math.nan
    if take.what in ("reach", "settle"):
        first, last = values[0], values[-1]
        level = take.level if take.what == "reach" else first + take.share * (last - first)
        falls = take.what == "settle" and last < first
        enough = [
            _at(row, take.x)
            for row, value in zip(rows, values, strict=True)
            if (value <= level if falls else value >= level)
        ]
        return min(enough, default=math.nan)
    if take.what == "drop":
        by_x = {_at(row, take.x): value for row, value in zip(rows, values, strict=True)}
        drops = [by_x[x - 1] - by_x[x] for x in take.at if x in by_x and x - 1 in by_x]
        return float(np.mean(drops)) if drops else math.nan
    return float(np.mean(values[-take.points :]))


def _at(row: Row, column: str) -> float:
    return float(row[column])


def _verdict(claim: Claim, results: Results) -> Verdict:
    own = _by_seed(claim, claim.of, results)
    if claim.over is None:
        numbers = [value for _, value in sorted(own.items())]
    else:
        others = _by_seed(claim, claim.over, results)
        both = sorted(own.keys() & others.keys())
        numbers = [_compared(claim, own[seed], others[seed]) for seed in both]
    told = [number for number in numbers if math.isfinite(number)]
    return Verdict(claim, estimate(told), len(told))


def _compared(claim: Claim, own: float, other: float) -> float:
    return own - other if claim.measure == "difference" else 100 * (own / other - 1)


def _by_seed(claim: Claim, settings: Settings, results: Results) -> dict[int, float]:
    found: dict[int, float] = {}
    for run in results.of(settings):
        if run.seed in found:
            raise ConfigError(f"`of` and `over` must mean one run a seed, got several for {dict(settings)}")
        found[run.seed] = taken(claim.take, claim.column, run.rows)
    return found
