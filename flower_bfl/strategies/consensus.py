"""Peer-to-peer consensus between edge servers: equations (9) and (10) as pure functions.

Every estimate of the sum Σ_m a_m is x_m / s_m, where the mass s went through the same steps as x. A mass of
1/M each gives the paper's M·x_m; a mass of D_m / D gives ratio consensus (Kempe, Dobra, Gehrke, Gossip-based
computation of aggregate information, 2003), where each server's estimate starts as its own weighted mean.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from flower_bfl.config import Consensus
from flower_bfl.network import Mixing, spectral_radius
from flower_bfl.strategies.aggregation import Integers, data_shares, each_block
from flower_bfl.types import Floats, Row, Terms, Vector


@dataclass(frozen=True, eq=False)
class Agreement:
    """What one edge server holds after the steps of a round."""

    server: int
    state: Vector  # x_m^(φ), shape (p,)
    mass: float  # s_m after the same steps
    error: float  # ‖x_m/s_m − Σa‖, c_m of eq. (10)
    bound: float  # λ^φ ‖a − s·Σa‖_F / s_m, M·λ^φ ‖a − mean‖_F for s = 1/M: no error but float32's exceeds it
    states: Vector | None  # x^(l) of every step and server, (φ+1, m, p), if somebody looks at them


def agree(
    partials: Row,
    size: int,
    mass: Floats,
    mixings: Sequence[Mixing],
    server: int,
    *,
    states: Vector | None = None,
) -> Agreement:
    """φ steps of consensus, one matrix each, seen from one server.

    partials: a of (8), whose slices are (m, c); size: p; mass: s before the steps, (m,). `states`, of shape
    (φ+1, m, p), is filled with every step. If nobody looks at these, one row of Λ^φ takes their place, which
    agrees to float32's rounding.
    """
    final_mass = float(mass_after(mass, mixings)[server])
    state = np.empty(size, np.float32) if states is None else states[-1, server]
    shortcut = row_after(mixings, len(mass), server)

    def work(part: slice) -> tuple[float, float]:
        start = partials[part]
        if states is None:
            state[part] = mix(shortcut, start)[0]
        else:
            states[:, :, part] = reach_consensus(start, mixings)
        return _squares(start, state[part], mass, final_mass)

    error, bound = _error_and_bound(each_block(size, work), mass, final_mass, mixings)
    return Agreement(server, state, final_mass, error, bound, states)


def error_and_bound(
    partials: Vector, state: Vector, mass: Floats, final_mass: float, mixings: Sequence[Mixing]
) -> tuple[float, float]:
    """`error` and `bound` of an `Agreement`. (m, p), (p,), (m,), s_m after the steps."""
    parts = each_block(state.size, lambda part: _squares(partials[:, part], state[part], mass, final_mass))
    return _error_and_bound(parts, mass, final_mass, mixings)


def _squares(start: Vector, state: Vector, mass: Floats, final_mass: float) -> tuple[float, float]:
    """‖x/s − Σa‖² and ‖a − s·Σa‖² of some parameters."""
    total = start.sum(axis=0, dtype=np.float64)
    miss = state.astype(np.float64) / final_mass - total
    spreads = (row - share * total for row, share in zip(start, mass, strict=True))
    return float(miss @ miss), sum(float(spread @ spread) for spread in spreads)


def _error_and_bound(
    squares: Sequence[tuple[float, float]], mass: Floats, final_mass: float, mixings: Sequence[Mixing]
) -> tuple[float, float]:
    error, distance = (math.sqrt(sum(column)) for column in zip(*squares, (0.0, 0.0), strict=True))
    alone = [m for m in range(len(mass)) if not any(np.count_nonzero(matrix[m]) > 1 for matrix in mixings)]
    part = [m for m in range(len(mass)) if m not in alone or mass[m] > 0]  # others never had a part in it
    contraction = math.prod(spectral_radius(mixing[np.ix_(part, part)]) for mixing in mixings)
    return error, contraction * distance / final_mass


def reach_consensus(partials: Vector, mixings: Sequence[Mixing]) -> Vector:
    """x^(l+1) = Λ x^(l) from x^(0) = a, eq. (9), each rounded to the float32 that servers exchange.

    (m, p) -> (φ+1, m, p).
    """
    states = np.empty((len(mixings) + 1, *partials.shape), np.float32)
    states[0] = partials
    for step, mixing in enumerate(mixings):
        states[step + 1] = mix(mixing, states[step])
    return states


@dataclass(frozen=True, eq=False)
class Mixed:
    """Λ·x where it is read, (m, c), in the float32 that edge servers exchange."""

    mixing: Mixing
    states: Vector  # x, shape (m, p)

    @np.errstate(over="ignore", invalid="ignore")  # of states that somebody made up
    def __getitem__(self, part: slice, /) -> Vector:
        return mix(self.mixing, self.states[:, part]).astype(np.float32)


def terms_of_mix(mixing: Mixing, states: Vector, server: int) -> Terms:
    """What an edge server's row of Λ·x is the sum of."""
    return [(float(mixing[server, m]), states[m]) for m in np.flatnonzero(mixing[server])]


def row_after(mixings: Sequence[Mixing], servers: int, server: int) -> Floats:
    """The server's row of the product of all mixing matrices, (1, m)."""
    row: Floats = np.eye(servers)[[server]]
    for mixing in reversed(mixings):
        row = row @ mixing
    return row


def initial_mass(consensus: Consensus, samples: Floats, server_of: Integers, down: Container[int]) -> Floats:
    """The mass s before the first step, (m,): shares of the data, or equal parts of servers that are up."""
    servers = range(consensus.edge_servers)
    if consensus.mass == "data":
        return data_shares(samples, server_of, consensus.edge_servers)
    up = np.array([server not in down for server in servers])
    return np.asarray(up / up.sum())


def mass_after(mass: Floats, mixings: Sequence[Mixing]) -> Floats:
    """The mass s after the same steps, shape (m,), float64."""
    for mixing in mixings:
        mass = mix(mixing, mass[:, None])[:, 0]
    return mass


def mix(mixing: Floats, values: Vector | Floats) -> Floats:
    """Λ·x in float64, in one fixed order of operations, unlike a BLAS product. (k, m), (m, c) -> (k, c)."""
    mixed = np.empty((len(mixing), values.shape[1]))
    for row, weights in zip(mixed, mixing, strict=True):
        linked = np.flatnonzero(weights)
        np.multiply(values[linked[0]], weights[linked[0]], out=row)
        for other in linked[1:]:
            row += weights[other] * values[other]  # a float64 times float32 is float64
    return mixed
