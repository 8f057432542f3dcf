"""What no decision can beat: a lower bound on the learning latency of a state.

Interference and energy limits are left out, so that every link is as good as it can be. For the sum, the
bandwidth of each edge server is sold at a price, and what remains is an assignment problem, solved exactly;
its value less the price of all bandwidth is below the optimum whatever the prices are (Lagrangian duality).
"""

import numpy as np

from flower_bfl.controller.allocation import LEAST_SHARE, Link, Situation
from flower_bfl.controller.assignment import assign, first_prices
from flower_bfl.network.settings import Array

_PRICE_STEPS = 60
_PATIENCE = 4  # steps without a better bound, after which they are halved
_LOOKS = 8  # at the best share of bandwidth at a price


def lower_bound_s(situation: Situation, reached_s: float) -> float:
    """A bound on (24) or on the slowest path; `reached_s`, what some decision takes, scales the steps."""
    network = situation.network
    if network.objective == "makespan":
        return _makespan_bound_s(situation)
    own_s = float(situation.own_s.sum())
    # With all of W for everybody: the optimum of "per_device", and below that of "shared".
    alone_s, _ = _offload_s(situation, np.ones(situation.state.gain.shape))
    bound_s, _ = _matched(alone_s + _edge_less_own_s(situation))
    if network.radio.sharing == "shared":
        bound_s = max(bound_s, _dual_bound_s(situation, reached_s - own_s))
    # Differences of long times are known to some last digits only; a sum of positive times is always right.
    lost_s = 4 * network.devices * np.finfo(np.float64).eps * own_s
    return float(max(own_s + bound_s - lost_s, _least_s(situation, alone_s).sum()))


def _dual_bound_s(situation: Situation, reached_s: float) -> float:
    """The best value of the dual on the way of subgradient steps (Polyak's length)."""
    price_s = first_prices(situation).bandwidth_s_hz * situation.network.radio.bandwidth_hz  # of all of W
    edge_less_own_s = _edge_less_own_s(situation)
    best, relaxation, stalled = -np.inf, 1.0, 0
    for _ in range(_PRICE_STEPS):
        least_s, share = _cheapest(situation, price_s)
        matched_s, used = _matched(least_s + edge_less_own_s)
        bound_s = matched_s - float(price_s.sum())
        stalled = 0 if bound_s > best else stalled + 1
        best = max(best, bound_s)
        if stalled == _PATIENCE:
            relaxation, stalled = relaxation / 2, 0
        over = (share * used).sum(axis=(0, 2)) - 1.0  # what is wanted of each server beyond all of W, (M,)
        if not over.any():
            break
        price_s = np.maximum(price_s + relaxation * (reached_s - bound_s) / (over @ over) * over, 1e-6)
    return best


def _edge_less_own_s(situation: Situation) -> Array:
    return (situation.edge_s - situation.own_s[:, None])[..., None]


def _offload_s(situation: Situation, share: Array) -> tuple[Array, Array]:
    """T_off at most power and nobody else with a share of W, and its relative slope ε; (N, M, G) each."""
    radio = situation.network.radio
    gain = situation.state.gain.astype(np.float64)
    bandwidth_hz = radio.bandwidth_hz * share
    link = Link.of(radio.power_w[1] * gain, radio.noise_w_hz * bandwidth_hz, np.zeros(gain.shape))
    return situation.state.data_bits[:, None, None] / (bandwidth_hz * link.per_hz), link.band_slope


def _cheapest(situation: Situation, price_s: Array) -> tuple[Array, Array]:
    """Not more than the least of T_off + price·share over shares, and about where it is; (N, M, G) each.

    T_off is convex in the share, so its tangent is below it and makes up for where the search stopped short.
    """
    price_s = price_s[:, None]
    share = np.full(situation.state.gain.shape, 1 / situation.network.sub_channels)
    for _ in range(_LOOKS):
        offload_s, slope = _offload_s(situation, share)
        share = np.clip(np.sqrt(offload_s * share * slope / price_s), LEAST_SHARE, 1.0)
    offload_s, slope = _offload_s(situation, share)
    tangent = price_s - offload_s * slope / share
    return offload_s + price_s * share - np.maximum(tangent * share, -tangent * (1 - share)), share


def _matched(costs_s: Array) -> tuple[float, Array]:
    """Value of the cheapest matching, and who is in it; costs_s and result (N, M, G)."""
    flat = costs_s.reshape(len(costs_s), -1)
    in_slot = assign(flat)
    slot = np.flatnonzero(in_slot >= 0)
    used = np.zeros(flat.shape)
    used[in_slot[slot], slot] = 1.0
    return float(flat[in_slot[slot], slot].sum()), used.reshape(costs_s.shape)


def _makespan_bound_s(situation: Situation) -> float:
    """No device is faster than alone, and at most M·G of them can leave their work to others."""
    alone_s, _ = _offload_s(situation, np.ones(situation.state.gain.shape))
    bound_s = float(_least_s(situation, alone_s).max())
    slots = situation.network.slots
    if len(situation.own_s) > slots:
        bound_s = max(bound_s, float(np.sort(situation.own_s)[-1 - slots]))
    return bound_s


def _least_s(situation: Situation, alone_s: Array) -> Array:
    """What each device takes at its best place if nobody else is there, (N,)."""
    return np.asarray(np.minimum(situation.own_s, (alone_s + situation.edge_s[..., None]).min(axis=(1, 2))))
