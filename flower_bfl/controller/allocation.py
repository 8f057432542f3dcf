"""Power and bandwidth for given slots, for many assignments of one state at once.

An assignment says which device is in which slot: `in_slot`, shape (K, M·G), -1 for nobody. The rest of a
decision follows: a device without a slot trains itself with all the CPU it may use, and hash rates are equal.

With s = R/b, φ = dlnR/dlnp and ε = dlnR/dlnb, a stationary point of Σ D/R has b ∝ √(D·ε/s) at each edge
server and p = T·φ / Σ_j T_j·φ_j·g_ij/(N0·b_j + I_j), where j are the others on the sub-channel and g_ij is
how strongly device i is heard there. If its energy holds a device back, with λ the multiplier of
that limit, its T counts 1 + λ·p times.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flower_bfl.controller.alone import home_s
from flower_bfl.controller.heuristics import equal_hash_rates
from flower_bfl.network import LOCAL, Decision, NetworkConfig, NetworkState, project
from flower_bfl.network.channel import cross_gains
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Array
from flower_bfl.network.state import check_fit

Slots = NDArray[np.int64]

_SETTLED = 1e-10  # relative change of every cost at which no step is worth its time
_LEAST_SINR = 1e-30  # what is weaker is as good as nothing, and leaves numbers finite
_STEEPEST = 1 - 1e-9  # φ of no signal at all
_TINY = float(np.finfo(np.float64).tiny)
LEAST_SHARE = 1e-9  # of the bandwidth, for slots of nobody: a rate must not be 0
_NORM = 40  # of all paths: what allocations are compared by if only the slowest counts
_SHARPEST = 200.0  # norm that power and bandwidth are set for in the end, from 2 on
_TOLERANCE = 1e-6  # of energy; the decision is made feasible to the last digit in the end


@dataclass(frozen=True)
class Situation:
    """What one state means for learning, whatever is decided."""

    network: NetworkConfig
    state: NetworkState  # one, not a batch
    own_s: Array  # T_loc + T_up of a device that trains itself, (N,)
    edge_s: Array  # C_n/f_m, (N, M)

    @classmethod
    def of(cls, network: NetworkConfig, state: NetworkState) -> Self:
        """Work it out for one state."""
        check_fit(network, state)
        edge_s = state.work_cycles[:, None] / network.edge_speeds_hz
        return cls(network, state, home_s(network, state), edge_s)


@dataclass(frozen=True)
class Allocation:
    """Power and bandwidth of K assignments, and what learning then takes."""

    in_slot: Slots  # (K, M·G)
    power_w: Array  # (K, M, G)
    bandwidth_hz: Array  # (K, M, G)
    cost_s: Array  # Σ over devices or the slowest path, and a charge for energy that is not there, (K,)
    promise: Array  # as cost_s, or a smooth form of the slowest path: lower is better, (K,)
    lacks_energy: NDArray[np.bool_]  # (K,)

    @property
    def learning_s(self) -> Array:
        """Learning latency, (K,); inf where a device lacks the energy to offload."""
        return np.where(self.lacks_energy, np.inf, self.cost_s)

    @property
    def score(self) -> Array:
        """To compare assignments by, (K,); inf where a device lacks the energy to offload."""
        return np.where(self.lacks_energy, np.inf, self.promise)

    def __getitem__(self, which: Any) -> Self:
        """Some of the assignments."""
        return type(self)(**{each.name: getattr(self, each.name)[which] for each in fields(self)})

    def decision(self, situation: Situation) -> Decision:
        """The decision of the first assignment, feasible."""
        network, state = situation.network, situation.state
        taken = np.flatnonzero(self.in_slot[0] >= 0)
        device = self.in_slot[0][taken]
        slot = np.full(network.devices, LOCAL)
        power_w, bandwidth_hz = np.zeros(network.devices), np.zeros(network.devices)
        slot[device] = taken
        power_w[device] = self.power_w[0].ravel()[taken]
        bandwidth_hz[device] = self.bandwidth_hz[0].ravel()[taken]
        hash_rate = equal_hash_rates(network, slot.shape)
        return project(
            network,
            state,
            Decision(slot, power_w, bandwidth_hz, local_cpu_limit_hz(network, state), hash_rate),
        )


@dataclass(frozen=True)
class _Fixed:
    """What stays the same while power and bandwidth of K assignments change."""

    used: NDArray[np.bool_]  # (K, M, G)
    data_bits: Array  # 0 in a free slot, (K, M, G)
    slack_j: Array  # (K, M, G)
    gain: Array  # to the own edge server, 1 in a free slot, (K, M, G)
    cross: Array  # [m', g, m]: of the device in (m', g) at another edge server m, (K, M, G, M)
    others_s: Array  # what each device without a slot takes, 0 for the others, (K, N + 1)
    edge_s: Array  # T_exe of each edge server, (K, M)


@dataclass(frozen=True)
class Link:
    """How good links are, and how power and bandwidth change that; arrays of one shape."""

    per_hz: Array  # s = R/b, bit/s/Hz
    power_slope: Array  # φ = dlnR/dlnp, from 1 for a weak signal to 0
    band_slope: Array  # ε = dlnR/dlnb, from 0 to 1

    @classmethod
    def of(cls, signal_w: Array, thermal_w: Array, interference_w: Array) -> Self:
        """By Shannon's formula (20); thermal_w is N0·b."""
        noise_w = thermal_w + interference_w
        sinr = np.maximum(signal_w / noise_w, _LEAST_SINR)
        log = np.log1p(sinr)
        power_slope = np.minimum(sinr / ((1 + sinr) * log), _STEEPEST)
        return cls(log / np.log(2), power_slope, 1 - power_slope * thermal_w / noise_w)


def allocate(
    situation: Situation, in_slot: Slots, start: tuple[Array, Array] | None = None, steps: int = 60
) -> Allocation:
    """The best of `steps` fixed-point steps from `start`, or from most power and equal shares."""
    network = situation.network
    fixed = _fix(situation, in_slot)
    power_w, bandwidth_hz = start or (np.full(fixed.used.shape, network.radio.power_w[1]), fixed.used * 1.0)
    bandwidth_hz = _share(network, np.where(fixed.used, bandwidth_hz, 0.0))
    shortage = np.zeros_like(power_w)  # λ·p, λ the multiplier of a device's energy
    best: Allocation | None = None
    for step in range(max(1, steps)):
        now = _link(network, fixed, power_w, bandwidth_hz)
        made = _assess(network, fixed, in_slot, power_w, bandwidth_hz, now[1])
        previous, best = best, made if best is None else _better(best, made)
        if previous is not None and _has_settled(previous.promise, made.promise):
            break
        norm = 1.0 if network.objective == "sum" else min(2 * 1.1**step, _SHARPEST)
        power_w, bandwidth_hz, shortage = _step(network, fixed, now, (power_w, bandwidth_hz, shortage), norm)
    assert best is not None
    return best


def _fix(situation: Situation, in_slot: Slots) -> _Fixed:
    network, state = situation.network, situation.state
    count = len(in_slot)
    shape = (count, network.edge_servers, network.sub_channels)
    used = (in_slot >= 0).reshape(shape)
    device = np.where(in_slot >= 0, in_slot, 0).reshape(shape)
    cross = cross_gains(np.broadcast_to(state.gain, (count, *state.gain.shape)), in_slot)
    own = np.einsum("kmgm->kmg", cross)  # a view
    gain = np.where(used, own, 1.0)
    own[...] = 0.0
    own_s = np.repeat(np.append(situation.own_s, 0.0)[None], count, axis=0)
    np.put_along_axis(own_s, in_slot, 0.0, axis=1)  # -1 is the place that was appended
    servers = np.arange(network.edge_servers)[:, None]
    return _Fixed(
        used=used,
        data_bits=np.where(used, state.data_bits[device], 0.0),
        slack_j=np.where(used, state.energy_slack_j[device], np.inf),
        gain=gain,
        cross=cross if network.radio.interference else np.zeros_like(cross),
        others_s=own_s,
        edge_s=np.where(used, situation.edge_s[device, servers], 0.0).sum(axis=-1),
    )


def _link(
    network: NetworkConfig, fixed: _Fixed, power_w: Array, bandwidth_hz: Array
) -> tuple[Link, Array, Array]:
    """The links, T and the noise N0·b + I, at some power and bandwidth."""
    thermal_w = network.radio.noise_w_hz * bandwidth_hz
    interference_w = np.einsum("kagm,kag->kmg", fixed.cross, power_w)
    link = Link.of(power_w * fixed.gain, thermal_w, interference_w)
    return link, fixed.data_bits / (bandwidth_hz * link.per_hz), thermal_w + interference_w


def _assess(
    network: NetworkConfig,
    fixed: _Fixed,
    in_slot: Slots,
    power_w: Array,
    bandwidth_hz: Array,
    offload_s: Array,
) -> Allocation:
    # What a few steps more would mend must not look hopeless: a search would never take them.
    excess = np.maximum(power_w * offload_s / fixed.slack_j - 1 - _TOLERANCE, 0.0)
    charge_s = (excess * offload_s).sum(axis=(1, 2))
    if network.objective == "sum":
        cost_s = offload_s.sum(axis=(1, 2)) + fixed.edge_s.sum(axis=1) + fixed.others_s.sum(axis=1)
        promise = cost_s
    else:
        paths_s = _path_s(fixed, offload_s).reshape(len(in_slot), -1)
        paths_s = np.concatenate([paths_s, fixed.others_s], axis=1)
        cost_s = paths_s.max(axis=1)
        promise = cost_s * ((paths_s / cost_s[:, None]) ** _NORM).sum(axis=1) ** (1 / _NORM)
    lacks = np.asarray((excess > 0).any(axis=(1, 2)))
    return Allocation(in_slot, power_w, bandwidth_hz, cost_s + charge_s, promise + charge_s, lacks)


def _better(one: Allocation, other: Allocation) -> Allocation:
    """The better of two allocations of the same assignments, each for itself."""
    better = (other.cost_s < one.cost_s) & (one.lacks_energy | ~other.lacks_energy)
    better |= one.lacks_energy & ~other.lacks_energy
    if better.all():
        return other
    chosen = {
        each.name: np.where(
            np.reshape(better, (-1, *[1] * (getattr(one, each.name).ndim - 1))),
            getattr(other, each.name),
            getattr(one, each.name),
        )
        for each in fields(one)
    }
    return Allocation(**chosen)


def _has_settled(before: Array, after: Array) -> bool:
    return bool((np.abs(after - before) <= _SETTLED * before).all())


def _step(
    network: NetworkConfig,
    fixed: _Fixed,
    now: tuple[Link, Array, Array],
    at: tuple[Array, Array, Array],
    norm: float,
) -> tuple[Array, Array, Array]:
    """Power, bandwidth and shortage after one step towards the least norm of the paths; 1 is their sum.

    Each T counts as much as it adds to the norm. The sharper the norm, the more a step changes what counts,
    and the shorter it has to be.
    """
    power_w, bandwidth_hz, shortage = at
    link, offload_s, noise_w = now
    counts = np.ones_like(power_w)
    if norm > 1:
        paths_s = _path_s(fixed, offload_s)
        counts = (paths_s / np.maximum(paths_s.max(axis=(1, 2), keepdims=True), _TINY)) ** (norm - 1)
    pace = 2 / (1 + norm)
    least_w, most_w = network.radio.power_w
    gained = counts * offload_s * link.power_slope
    harm = np.einsum(
        "kagm,kmg->kag", fixed.cross, (counts + shortage) * offload_s * link.power_slope / noise_w
    )
    best_w = np.clip(gained / np.maximum(harm, gained / most_w + _TINY), least_w, most_w)
    next_w = power_w * (best_w / power_w) ** (pace / 2)
    allowed_w = within_energy(link, power_w, offload_s, fixed.slack_j)
    is_short = allowed_w < next_w
    next_w = np.maximum(np.minimum(next_w, allowed_w), least_w)
    held_back = (gained - harm * power_w) / (offload_s * (1 - link.power_slope) + _TINY)
    # Half way only: a device would go back and forth between having enough and not.
    shortage = (shortage + np.where(is_short, np.maximum(held_back, 0.0), 0.0)) / 2
    weight = counts + shortage
    best_hz = _share(network, np.sqrt(weight * fixed.data_bits * link.band_slope / link.per_hz))
    if norm > 1:
        next_hz = bandwidth_hz * (best_hz / bandwidth_hz) ** pace
        best_hz = _share(network, np.where(fixed.used, next_hz, 0.0))
    return next_w, best_hz, shortage


def _path_s(fixed: _Fixed, offload_s: Array) -> Array:
    """Until a slot's data are learnt, 0 in a free one; (K, M, G)."""
    return np.where(fixed.used, offload_s + fixed.edge_s[..., None], 0.0)


def within_energy(link: Link, power_w: Array, offload_s: Array, slack_j: Array) -> Array:
    """The power that energy allows, by a Newton step on ln(p·T) = ln E from power_w; arrays of one shape."""
    over = np.maximum(power_w * offload_s, _TINY) / slack_j
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(power_w * over ** (-1 / (1 - np.minimum(link.power_slope, 0.99))))


def _share(network: NetworkConfig, wanted: Array) -> Array:
    """Bandwidths in proportion to `wanted`, (K, M, G), that sum to W at each edge server; or W for each."""
    most_hz = network.radio.bandwidth_hz
    if network.radio.sharing == "per_device":
        return np.full_like(wanted, most_hz)
    shares: Array = wanted / np.maximum(wanted.sum(axis=2, keepdims=True), _TINY)
    return np.asarray(most_hz * np.maximum(shares, LEAST_SHARE))


def marginals(situation: Situation, made: Allocation) -> tuple[Array, Array]:
    """Seconds that a slot's transfer takes longer per hertz less, and per watt heard more; (K, M, G)."""
    fixed = _fix(situation, made.in_slot)
    link, offload_s, noise_w = _link(situation.network, fixed, made.power_w, made.bandwidth_hz)
    return offload_s * link.band_slope / made.bandwidth_hz, offload_s * link.power_slope / noise_w
