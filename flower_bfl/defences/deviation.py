"""Who sent a gradient that stands out: all devices' normalised gradients of one round, judged together.

A z-score with mean and standard deviation is at most √(n−1) for n values, so that "more than 2σ" never
fires for n ≤ 5, and one far value hides another. Scores are therefore standardised by the median and the
median absolute deviation, with a least scale below which nobody stands out; half of the rows can be
anything.
"""

import math
from dataclasses import dataclass

import numpy as np

from flower_bfl.defences._blocks import blocks
from flower_bfl.errors import ConfigError
from flower_bfl.types import Floats, Vector

# A difference that training makes anyway, however close together most rows are: with the threshold 2.5, a
# gradient 25 % longer or shorter than the median one, and a cosine 0.25 below the median one, are never
# suspicious.
_LEAST_EXCESS = 0.1
_LEAST_COSINE = 0.1
_LEAST_CHORD_SHARE = 0.25  # of the median chord
_LEAST_CHORD = 0.01  # chords near 0 are rounding: rows that are all one vector stand out by nothing
_COPY = 0.01  # a chord below it, cosine 0.99995: honest devices with the same two labels come to 0.998

_LARGEST_RATIO = 1e6  # keeps a length of 0, or one among zeros, finite
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Deviation:
    """Suspects the rows that stand out by their length, their direction, or as copies of each other.

    A row's score is the largest of three, each in robust standard deviations from the median of all rows:

    - length: ‖x_y‖ over the median length, too long or too short alike (noise, scaling, a small or large
      inner product manipulation, and A Little Is Enough, whose result is longer than honest gradients when
      these point in many directions);
    - direction: the median of its cosines with the other rows, if too low (sign flip, inner product
      manipulation, in IID data also flipped labels and backdoors);
    - copy: √(2 − 2·cos) to the nearest row, if that is too small and nearly 0 (attackers who send one vector
      all together, as A Little Is Enough and inner product manipulation have it; a little noise hides it).

    Honest devices with few labels each have cosines around 0, so there a wrong direction tells next to
    nothing: a sign flip, flipped labels and a backdoor then mostly go unseen.

    The scores, and so the suspects, have the same bits on any machine.

    Args:
        threshold: scores above it are suspicious.

    Raises:
        ConfigError: the threshold is not a number above 0 and at most 1e6.
    """

    threshold: float = 2.5

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not (number and 0 < self.threshold <= 1e6):
            raise ConfigError(f"`threshold` must be a number above 0 and at most 1e6, got {self.threshold!r}")

    def scores(self, rows: Vector) -> Floats:
        """How far each of the rows (n, p) stands out, shape (n,); zeros for fewer than three rows."""
        n = len(rows)
        if n < 3:
            return np.zeros(n)
        lengths, cosines = lengths_and_cosines(rows)
        of_others = cosines[~np.eye(n, dtype=np.bool_)].reshape(n, n - 1)
        excess = _excess(lengths)
        agreement = np.median(of_others, axis=1)
        chords = np.sqrt(np.maximum(2 - 2 * of_others.max(axis=1), 0))
        least_chord = max(_LEAST_CHORD, _LEAST_CHORD_SHARE * float(np.median(chords)))
        scores: Floats = np.maximum.reduce(
            [
                np.abs(_standardised(excess, _LEAST_EXCESS)),
                -_standardised(agreement, _LEAST_COSINE),
                np.where(chords < _COPY, -_standardised(chords, least_chord), 0.0),
            ]
        )
        return scores

    def suspects(self, rows: Vector) -> tuple[int, ...]:
        """Numbers of the suspicious rows among (n, p), ascending; always fewer than half of them.

        Where more are above the threshold, those with the highest scores are named, of equals the lower row.
        """
        scores = self.scores(rows)
        most = max(0, (len(rows) - 1) // 2)
        highest = np.argsort(-scores, kind="stable")[:most]
        return tuple(sorted(int(y) for y in highest if scores[y] > self.threshold))


def lengths_and_cosines(rows: Vector) -> tuple[Floats, Floats]:
    """‖x_y‖, shape (n,), and the cosine of every two rows, (n, n), which is 0 for a row of zeros.

    Each row is rounded to whole numbers of at most L = ⌊√(2⁵³/p)⌋ (16 bits for a million parameters). All
    products, and every sum of them, are then whole numbers up to 2⁵³, which float64 holds exactly: so a
    matrix product gives the same bits in whatever order a BLAS adds.
    """
    n, size = rows.shape
    levels = float(math.isqrt(2**53 // size))  # L
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
    largest[largest == 0] = 1.0
    products = np.zeros((n, n))
    for part in blocks(size):
        whole = np.rint(rows[:, part] / largest[:, None] * levels)
        products += whole @ whole.T
    norms = np.sqrt(np.diagonal(products))
    lengths = norms / levels * largest
    norms[norms == 0] = 1.0
    return lengths, np.clip(products / norms[:, None] / norms, -1.0, 1.0)


def _excess(lengths: Floats) -> Floats:
    """Give r − 1 for a ratio r ≥ 1 to the median length, 1 − 1/r below: half is as far as twice."""
    median = float(np.median(lengths))
    # Ratios to 0 are ratios to something tiny; only rows that are 0 themselves are then as long as the
    # median.
    ratios = np.divide(lengths, median, out=np.where(lengths > 0, np.inf, 1.0), where=median > 0)
    ratios = np.clip(ratios, 1 / _LARGEST_RATIO, _LARGEST_RATIO)
    return np.where(ratios >= 1, ratios - 1, 1 - 1 / ratios)


def _standardised(values: Floats, least: float) -> Floats:
    """(v − median) / σ, σ from the median absolute deviation, but `least` where that is smaller."""
    off = values - np.median(values)
    scale = max(_MAD_TO_SIGMA * float(np.median(np.abs(off))), least)
    return np.asarray(off / scale, np.float64)
