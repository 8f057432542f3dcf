"""Sums over the parameters of several rows whose bits are the same on any machine.

Values are float32 and sums float64, so nothing here can overflow. A sum adds elementwise in an order that
only the number of parameters decides, never a machine's vector width, BLAS or count of processors.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from flower_bfl.types import Floats, Vector

_BLOCK = 1 << 14  # parameters a block: a few dozen rows of float64 stay in the processor's cache


def blocks(size: int) -> Iterator[slice]:
    """Consecutive slices of 0..size."""
    return (slice(low, min(low + _BLOCK, size)) for low in range(0, size, _BLOCK))


def _sum_of_blocks(size: int, terms: Callable[[slice], Floats]) -> Floats:
    """Sums over all parameters of `terms`, which gives (n, c) float64 for c parameters; returns (n,).

    Within a block by halves, over the blocks exactly rounded.
    """
    sums = [_sum_by_halves(terms(part)) for part in blocks(size)]
    return np.array([math.fsum(of_row) for of_row in zip(*sums, strict=True)], np.float64)


def squared_distances(rows: Vector, centre: Floats) -> Floats:
    """‖x_y − centre‖² of rows (n, p) from a centre (p,), shape (n,)."""
    return _sum_of_blocks(centre.size, lambda part: np.square(rows[:, part] - centre[part]))


def _sum_by_halves(terms: Floats) -> Floats:
    """Sum along the last axis, (n, c) to (n,); numpy's own order of a sum may change with its version."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        if terms.shape[1] % 2:
            folded[:, 0] += terms[:, -1]
        terms = folded
    return terms[:, 0]
