"""How many steps a round's consensus takes: as many as were asked for, or, p2p_rounds="auto", as are enough.

φ_k goes into what is recorded, so it must be the same number on any machine: all of this runs in float64, one
elementwise operation, exact sum or square root at a time. There is no BLAS, LAPACK, logarithm or power in it,
whose last bits differ. docs/theory.md has the mathematics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flower_bfl.config import AutoRounds, Outage
from flower_bfl.network import Mixing
from flower_bfl.strategies._outages import servers_down
from flower_bfl.strategies.aggregation import each_block
from flower_bfl.strategies.consensus import mass_after
from flower_bfl.types import Floats, Row

_SQUARINGS = 20
_A_HAIR = 1 + 2.0**-30  # more than all rounding on the way to λ
_KNOWN = 256  # matrices whose λ is kept


@dataclass(frozen=True, eq=False)
class Planned:
    """The steps of a round's consensus."""

    mixings: Sequence[Mixing]  # Λ of each step; there are φ_k of them
    target: float | None = None  # √(ξ_k/√K), what the error may be; None: φ was given


def planned(
    p2p_rounds: int | AutoRounds,
    partials: Row,
    size: int,
    mass: Floats,
    mixings: Sequence[Mixing],
    down: Sequence[Outage],
) -> Planned:
    """The first φ_k of the mixing matrices, as many as there are if φ is given.

    partials: a_m as recorded, whose slices are (m, c); size: p; mass: s before the steps, (m,); mixings: Λ of
    as many steps as there may be; down: who is down, or takes no part, from which step on.

    φ_k is the smallest l with (Π_{j<l} λ_j)² ‖a − s·Σa‖_F² / min_m s_m² ≤ ξ_k/√K, over the edge servers m
    that can lead after l steps; λ_j is that of the edge servers up in step j. If there is none, all steps.
    """
    if not isinstance(p2p_rounds, AutoRounds):
        return Planned(mixings)
    assert p2p_rounds.rounds is not None, "known since `start`"
    total, apart = _squares(partials, size, mass)
    xi = p2p_rounds.tolerance * (1.0 if p2p_rounds.absolute else total)
    target = xi / math.sqrt(p2p_rounds.rounds)
    left = 1.0  # of a disagreement
    for step in range(len(mixings)):
        gone = servers_down(down, step)
        least = min((float(s) for m, s in enumerate(mass) if s > 0 and m not in gone), default=0.0)
        if left * left * apart <= target * (least * least):
            return Planned(mixings[:step], math.sqrt(target))
        up = [m for m in range(len(mass)) if m not in gone]
        left *= radius(mixings[step][np.ix_(up, up)])
        mass = mass_after(mass, mixings[step : step + 1])
    return Planned(mixings, math.sqrt(target))


def radius(mixing: Mixing) -> float:
    """λ of a mixing matrix, or up to a millionth more, the same bits on any machine.

    For B = Λ − 11ᵀ/M it is ‖B^n‖_F^(1/n), n = 2^20, by squaring n times over; as B is symmetric, λ is never
    above it, and it is at most λ·M^(1/2n).
    """
    matrix = np.ascontiguousarray(mixing, dtype=np.float64)
    return _radius(len(matrix), matrix.tobytes())


@lru_cache(_KNOWN)
def _radius(servers: int, entries: bytes) -> float:
    centred = np.frombuffer(entries).reshape(servers, servers) - 1 / servers
    power = (centred + centred.T) / 2
    norms: list[float] = []
    for _ in range(_SQUARINGS + 1):
        norm = math.sqrt(math.fsum((power * power).ravel().tolist()))
        if norm == 0.0:
            return 0.0
        norms.append(norm)
        power = _squared(power / norm)
    root = norms.pop()
    while norms:
        root = norms.pop() * math.sqrt(root)
    return root * _A_HAIR


def _squared(matrix: Floats) -> Floats:
    product = np.zeros_like(matrix)
    for column, row in zip(matrix.T, matrix, strict=True):
        product += np.multiply.outer(column, row)
    return product


@np.errstate(all="ignore")  # of states that somebody made up
def _squares(partials: Row, size: int, mass: Floats) -> tuple[float, float]:
    """‖Σ_m a_m‖² and Σ_m ‖a_m − s_m·Σa‖²."""

    def work(part: slice) -> tuple[float, float]:
        rows = partials[part].astype(np.float64)
        total = rows[0].copy()
        for row in rows[1:]:
            total += row
        spreads = (_square(row - share * total) for row, share in zip(rows, mass.tolist(), strict=True))
        return _square(total), math.fsum(spreads)

    totals, spreads = zip(*each_block(size, work), (0.0, 0.0), strict=True)
    return math.fsum(totals), math.fsum(spreads)


def _square(vector: Floats) -> float:
    """‖v‖², folded in half until one number is left: the order of its additions is fixed."""
    terms = vector * vector
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        folded = terms[:half].copy()
        folded[: len(terms) - half] += terms[half:]
        terms = folded
    return float(terms[0])
