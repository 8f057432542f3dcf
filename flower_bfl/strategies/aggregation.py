"""Gradients, partial aggregates, boost and update: equations (6)–(8), (11) and (12) as pure functions.

Models are flat float32 vectors, shape (p,). Sums run in float64, in the order of the devices, one
elementwise operation at a time: the same inputs give the same bits on any machine, whatever BLAS it has,
and that is what lets somebody else recompute a run from its ledger.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from flower_bfl.types import Floats, Row, Terms, Vector

Integers = NDArray[np.int64]

_T = TypeVar("_T")

_BLOCK = 1 << 16  # parameters a block: its float64 sums stay in the processor's cache


def each_block(size: int, work: Callable[[slice], _T]) -> list[_T]:
    """Results of `work` on consecutive slices of 0..size, each small enough for the cache, in order.

    Large vectors use every processor; what a slice gives does not depend on how many there are.
    """
    parts = [slice(low, min(low + _BLOCK, size)) for low in range(0, size, _BLOCK)]
    if len(parts) < 4:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, parts))


class NotFiniteError(Exception):
    """Gradients hold NaN or infinity; `positions` are their places among the round's gradients."""

    def __init__(self, positions: Iterable[int]) -> None:
        super().__init__()
        self.positions = frozenset(positions)


@dataclass(frozen=True, eq=False)
class CumulativeGradient:
    """g_y = (w_k − w_y) / η, eqs. (6)(7), computed where it is read, so that no copy of the model is kept."""

    before: Row  # w_k, shape (p,)
    after: Row  # w_y, shape (p,)
    learning_rate: float = 1.0  # η

    @np.errstate(over="ignore", invalid="ignore")  # whoever adds it up sees that it is not finite
    def __getitem__(self, part: slice, /) -> Vector:
        difference: Vector = self.before[part] - self.after[part]
        return difference if self.learning_rate == 1.0 else difference / np.float32(self.learning_rate)


def contribution_weights(samples: Floats, steps: Integers) -> Floats:
    """D_y / (D·e_y) of eq. (8), shape (n,); D sums over everyone that trained this round."""
    weights: Floats = samples / (math.fsum(samples) * steps)
    return weights


@dataclass(frozen=True, eq=False)
class PartialAggregates:
    """a_m = Σ_{y at m} weights_y · g_y at each of m edge servers, eq. (8), computed where they are read.

    A slice of c parameters is (m, c) float32, zeros for a server with no contribution. Reading one where a
    gradient is not finite raises NotFiniteError.
    """

    gradients: Sequence[Row]  # n rows of p parameters
    weights: Floats  # shape (n,), see `contribution_weights`
    server_of: Integers  # shape (n,)
    servers: int

    def __getitem__(self, part: slice, /) -> Vector:
        partials = np.zeros((self.servers, part.stop - part.start), np.float32)
        total, term = np.empty((2, part.stop - part.start))
        for server in np.unique(self.server_of):  # one at a time: its sum stays in the cache
            total.fill(0.0)
            for y in np.flatnonzero(self.server_of == server).tolist():
                np.copyto(term, self.gradients[y][part])
                term *= self.weights[y]
                total += term
            partials[server] = total
            with np.errstate(invalid="ignore"):  # infinities of both signs
                finite = np.isfinite(total.sum())
            if not finite:
                raise NotFiniteError(self._not_finite(part))
        return partials

    def _not_finite(self, part: slice) -> Iterable[int]:
        return (y for y, gradient in enumerate(self.gradients) if not np.isfinite(gradient[part]).all())


def terms_of_sum(
    gradients: Sequence[Row], samples: Floats, steps: Integers, server_of: Integers, server: int
) -> Terms:
    """What an edge server's a_m of (8) is the sum of."""
    weights = contribution_weights(samples, steps)
    return [(float(weights[y]), gradients[y]) for y in np.flatnonzero(server_of == server).tolist()]


class Combine(Protocol):
    """A rule that makes one vector of several, such as those of `flower_bfl.defences`."""

    def combine(self, rows: Vector) -> Vector:
        """(n, p) -> (p,)."""


def partial_aggregates(
    gradients: Sequence[Row],
    samples: Floats,
    steps: Integers,
    server_of: Integers,
    servers: int,
    rule: Combine | None = None,
    size: int = 0,
) -> Row:
    """a_m of (8) at each of m edge servers; with a rule, a_m = (Σ_{y at m} D_y/D) · rule of the g_y / e_y.

    A rule makes one vector of p = `size` parameters of what an edge server's contributors sent, whatever
    their data sets' sizes. Raises NotFiniteError where it is read, and with a rule at once.
    """
    if rule is None:
        return PartialAggregates(gradients, contribution_weights(samples, steps), server_of, servers)
    partials, shares = np.zeros((servers, size), np.float32), data_shares(samples, server_of, servers)
    rows = normalised(gradients, steps, size)
    for server in np.unique(server_of):
        partials[server] = shares[server] * rule.combine(rows[server_of == server]).astype(np.float64)
    return Known(partials)


def normalised(gradients: Sequence[Row], steps: Integers, size: int) -> Vector:
    """g_y / e_y, (n, p); raises NotFiniteError."""
    rows = np.empty((len(gradients), size), np.float32)
    for row, gradient, taken in zip(rows, gradients, steps, strict=True):
        np.divide(gradient[0:size], np.float32(taken), out=row)
    if odd := np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
        raise NotFiniteError(odd)
    return rows


@dataclass(frozen=True, eq=False)
class Known:
    """Partial aggregates that were worked out before."""

    partials: Vector  # (m, p)

    def __getitem__(self, part: slice, /) -> Vector:
        return self.partials[:, part]


def whole(rows: Row, servers: int, size: int) -> Vector:
    """Every slice of `rows` put together, (servers, size)."""
    result = np.empty((servers, size), np.float32)

    def work(part: slice) -> None:
        result[:, part] = rows[part]

    each_block(size, work)
    return result


def boost(samples: Floats, steps: Integers) -> float:
    """τ = Σ_y D_y e_y / D, eq. (11): the mean number of SGD steps of a sample's gradient."""
    return math.fsum(samples * steps) / math.fsum(samples)


def data_shares(samples: Floats, server_of: Integers, servers: int) -> Floats:
    """s_m = Σ_{y at m} D_y / D, shape (servers,)."""
    held = np.bincount(server_of, weights=samples, minlength=servers)
    return np.asarray(held / math.fsum(samples), dtype=np.float64)


def updated_model(
    model: Vector, state: Vector, mass: float, tau: float, learning_rate: float = 1.0
) -> Vector:
    """w_{k+1} = w_k − η·τ·x/s, eqs. (10)–(12), shape (p,).

    `state` x is the leader's after consensus and `mass` s its share: 1/M gives the paper's M·x.
    """
    result = np.empty_like(model)
    factor = learning_rate * tau / mass

    @np.errstate(over="ignore")
    def work(part: slice) -> None:
        result[part] = model[part] - factor * state[part].astype(np.float64)

    each_block(model.size, work)
    return result


def terms_of_update(
    model: Vector, state: Vector, mass: float, tau: float, learning_rate: float = 1.0
) -> Terms:
    """What `updated_model` is the sum of."""
    return [(1.0, model), (-learning_rate * tau / mass, state)]
