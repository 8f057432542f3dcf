"""Rules that combine what several devices sent, of which some may be malicious, into one vector.

Rows are finite float32, (n, p); `share` says how many of them may be malicious: f = ⌊share·n⌋. The order of
the rows does not matter, but where two are equally good: then the lower one is taken. The same rows give
the same bits on any machine (see `_blocks`), so that somebody else can recompute a run from its ledger.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.defences._blocks import blocks, squared_distances
from flower_bfl.errors import ConfigError
from flower_bfl.types import Floats, Vector


@dataclass(frozen=True)
class Median:
    """The median of each coordinate, Yin et al., "Byzantine-Robust Distributed Learning", 2018.

    It lies within the range of the honest values while fewer than half of the rows are malicious. Of one
    row it is that row, of two their mean.
    """

    def combine(self, rows: Vector) -> Vector:
        """Combine rows (n, p) into (p,)."""
        return _rounded(coordinate_median(rows))


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without its f lowest and f highest values, Yin et al., 2018.

    It lies within the range of the honest values while at most f rows are malicious. Where ⌊share·n⌋ is 0,
    as it always is for one row or two, it is the plain mean.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _check_share(self.share)

    def combine(self, rows: Vector) -> Vector:
        """Combine rows (n, p) into (p,)."""
        f = assumed_malicious(self.share, len(rows))
        return _rounded(_trimmed_mean(rows, f))


@dataclass(frozen=True)
class Krum:
    """The row with the smallest sum of squared distances to its n − f − 2 nearest others.

    From Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017, who
    prove it for n > 2f + 2. Where n is smaller the rule goes on, without that promise, and looks at one
    nearest row at least. Of one row or two it is the first.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _check_share(self.share)

    def combine(self, rows: Vector) -> Vector:
        """Combine rows (n, p) into (p,): one of them, unchanged."""
        f = assumed_malicious(self.share, len(rows))
        chosen: Vector = rows[_krum_order(rows, f)[0]].copy()
        return chosen


@dataclass(frozen=True)
class MultiKrum:
    """The mean of the n − f rows that Krum likes best, Blanchard et al., 2017; small n as in `Krum`.

    Where ⌊share·n⌋ is 0 it is the plain mean.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _check_share(self.share)

    def combine(self, rows: Vector) -> Vector:
        """Combine rows (n, p) into (p,)."""
        f = assumed_malicious(self.share, len(rows))
        best = _krum_order(rows, f)[: len(rows) - f]
        return _rounded(_trimmed_mean(rows[best], 0))


@dataclass(frozen=True)
class CentredClipping:
    """v ← v + mean of clip(x_y − v), where no difference is longer than τ, repeated `steps` times.

    From Karimireddy et al., "Learning from History for Byzantine Robust Optimization", 2021. They start
    from the last round's result and take τ as a constant. Here each round stands for itself, so v starts at
    the median of each coordinate; and τ = radius · (median distance of the rows from there), since how long
    gradients are differs by orders of magnitude between models, optimizers and rounds.

    However far f < n/2 malicious rows are, a step moves the result by at most f/n·τ on their behalf. One
    row is its own result, and two have their mean.

    Args:
        radius: in median distances; small stays near the median, large comes to the mean.
        steps: how often v is moved.
    """

    radius: float = 1.0
    steps: int = 3

    def __post_init__(self) -> None:
        if not _is_number(self.radius) or not 0 < self.radius <= 1e6:
            raise ConfigError(f"`radius` must be a number above 0 and at most 1e6, got {self.radius!r}")
        check_whole_number("steps", self.steps, 1, 1000)

    def combine(self, rows: Vector) -> Vector:
        """Combine rows (n, p) into (p,)."""
        centre = coordinate_median(rows)
        distances = np.sqrt(squared_distances(rows, centre))
        limit = self.radius * float(np.median(distances))  # τ
        for _ in range(self.steps):
            factors = np.ones(len(rows))
            far = distances > limit
            factors[far] = limit / distances[far]
            for part in blocks(centre.size):
                differences = factors[:, None] * (rows[:, part] - centre[part])
                differences.sort(axis=0)  # makes the sum independent of the order of the rows
                centre[part] += _sum_in_order(differences) / len(rows)
            distances = np.sqrt(squared_distances(rows, centre))
        return _rounded(centre)


def assumed_malicious(share: float, rows: int) -> int:
    """Give f = ⌊share·n⌋ of the decimal as it is written: 0.29 of 100 is 29, though 0.29 * 100 < 29."""
    return math.floor(Fraction(repr(float(share))) * rows)


def coordinate_median(rows: Vector) -> Floats:
    """Median of each coordinate of rows (n, p), shape (p,), float64 so that the middle of two is exact."""
    median = np.empty(rows.shape[1])
    for part in blocks(median.size):
        ordered = np.sort(rows[:, part], axis=0).astype(np.float64)
        median[part] = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2
    return median


def _trimmed_mean(rows: Vector, f: int) -> Floats:
    mean = np.empty(rows.shape[1])
    for part in blocks(mean.size):
        kept = np.sort(rows[:, part], axis=0)[f : len(rows) - f].astype(np.float64)
        mean[part] = _sum_in_order(kept) / len(kept)
    return mean


def _sum_in_order(values: Floats) -> Floats:
    """Sum of rows (n, c) one after the other, shape (c,)."""
    total = np.zeros(values.shape[1])
    for row in values:
        total += row
    return total


def _krum_order(rows: Vector, f: int) -> NDArray[np.int64]:
    """Rows by Krum's score, the best first; of equals the lowest first."""
    nearest = max(1, len(rows) - f - 2)
    apart = _squared_distances_of_pairs(rows)
    scores = [math.fsum(sorted(np.delete(of_row, y))[:nearest]) for y, of_row in enumerate(apart)]
    return np.argsort(scores, kind="stable")


def _squared_distances_of_pairs(rows: Vector) -> Floats:
    """‖x_i − x_j‖², (n, n). Not from products x_i·x_j: for near rows their difference has no digits left."""
    n = len(rows)
    pairs = np.zeros((n, n))
    for i in range(n - 1):
        pairs[i, i + 1 :] = squared_distances(rows[i + 1 :], rows[i].astype(np.float64))
    return pairs + pairs.T


def _rounded(values: Floats) -> Vector:
    # A sort may leave −0 or 0 in the middle, as the machine likes; adding 0 makes both 0.
    return (values + 0.0).astype(np.float32)


def _check_share(share: float) -> None:
    if not _is_number(share) or not 0 <= share < 0.5:
        raise ConfigError(f"`share` must be a number from 0 to below 0.5, got {share!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
