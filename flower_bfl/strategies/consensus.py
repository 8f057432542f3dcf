"""Peer-to-peer consensus between edge servers: equations (9) and (10) as pure functions.

Every estimate of the sum Σ_m a_m is x_m / s_m, where the mass s went through the same steps as x. A mass of
1/M each gives the paper's M·x_m; a mass of D_m / D gives ratio consensus (Kempe, Dobra, Gehrke, Gossip-based
computation of aggregate information, 2003), where each server's estimate starts as its own weighted mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_bfl.network import Mixing, spectral_radius
from flower_bfl.strategies.aggregation import Floats, Vector, each_block


@dataclass(frozen=True, eq=False)
class Agreement:
    """What one edge server holds after the steps of a round."""

    server: int
    state: Vector  # x_m^(φ), shape (p,)
    mass: float  # s_m after the same steps
    error: float  # ‖x_m/s_m − Σa‖
    bound: float  # which the error cannot exceed
    states: NDArray[np.float32] | None  # x^(l) of every server and step, (φ+1, m, p), if anybody looks


def agree(
    partials: Vector, initial_mass: Floats, mixings: Sequence[Mixing], server: int, *, keep_states: bool
) -> Agreement:
    """φ steps of consensus on the partial aggregates (m, p), seen from one server."""
    states = reach_consensus(partials, mixings) if keep_states else None
    state = state_after(partials, mixings, server) if states is None else states[-1, server]
    mass = float(mass_after(initial_mass, mixings)[server])
    error = consensus_error(partials, state, mass)
    bound = consensus_error_bound(partials, initial_mass, mixings, mass)
    return Agreement(server, state, mass, error, bound, states)


def reach_consensus(partials: Vector, mixings: Sequence[Mixing]) -> NDArray[np.float32]:
    """x^(l+1) = Λ x^(l) from x^(0) = a, eq. (9); one matrix a step, all the same unless something fails.

    partials: (m, p). Returns every state, (φ+1, m, p), each rounded to the float32 that servers exchange.
    """
    states = np.empty((len(mixings) + 1, *partials.shape), np.float32)
    states[0] = partials

    def work(part: slice) -> None:
        for step, mixing in enumerate(mixings):
            states[step + 1, :, part] = mix(mixing, states[step, :, part].astype(np.float64))

    each_block(partials.shape[1], work)
    return states


def state_after(partials: Vector, mixings: Sequence[Mixing], server: int) -> Vector:
    """x_m^(φ) of one server, shape (p,), when nobody looks at the steps between: one row of Λ^φ."""
    row = np.eye(len(partials))[server]
    for mixing in reversed(mixings):
        row = row @ mixing
    state = np.empty(partials.shape[1], np.float32)

    def work(part: slice) -> None:
        state[part] = mix(row[None, :], partials[:, part].astype(np.float64))[0]

    each_block(state.size, work)
    return state


def mix(mixing: Floats, values: Floats) -> Floats:
    """Λ·x in one fixed order of operations, unlike a BLAS product. (k, m), (m, p) -> (k, p)."""
    mixed = np.empty((len(mixing), values.shape[1]))
    for row, weights in zip(mixed, mixing, strict=True):
        linked = np.flatnonzero(weights)
        np.multiply(values[linked[0]], weights[linked[0]], out=row)
        for other in linked[1:]:
            row += weights[other] * values[other]
    return mixed


def mass_after(mass: Floats, mixings: Sequence[Mixing]) -> Floats:
    """The mass s after the same steps, shape (m,), float64."""
    for mixing in mixings:
        mass = mix(mixing, mass[:, None])[:, 0]
    return mass


def consensus_error(partials: Vector, state: Vector, mass: float) -> float:
    """‖x/s − Σ_m a_m‖ of one server's state x, shape (p,): c_m of eq. (10)."""

    def work(part: slice) -> float:
        miss = state[part] / mass - partials[:, part].sum(axis=0, dtype=np.float64)
        return float(miss @ miss)

    return math.sqrt(sum(each_block(state.size, work)))


def consensus_error_bound(
    partials: Vector, initial_mass: Floats, mixings: Sequence[Mixing], mass: float
) -> float:
    """λ^φ ‖a − s·Σa‖_F / s_m, which no server's error exceeds; with s = 1/M it is M·λ^φ ‖a − mean‖_F.

    `initial_mass` (m,) is s before, `mass` the server's own s after the steps.
    """

    def work(part: slice) -> float:
        values = partials[:, part].astype(np.float64)
        values -= initial_mass[:, None] * values.sum(axis=0)
        return float(np.vdot(values, values))

    distance = math.sqrt(sum(each_block(partials.shape[1], work)))
    return math.prod(spectral_radius(mixing) for mixing in mixings) * distance / mass
