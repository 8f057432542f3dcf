"""The limits (28b)-(28h): which ones a decision breaks, and a decision near it that keeps them all."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ConfigError
from flower_bfl.network.channel import (
    by_device,
    by_slot,
    cross_gains,
    in_each_row,
    links,
    occupants,
    row_starts,
)
from flower_bfl.network.pricing import local_cpu_limit_hz, price
from flower_bfl.network.settings import Array, NetworkConfig
from flower_bfl.network.state import LOCAL, Decision, NetworkState, check_fit

_TOLERANCE = 1e-9  # relative, for sums of floats
_LEAST_SHARE = 1e-9  # of the most, for what must be positive but may be as small as one likes
_NOTHING = float(np.finfo(np.float64).tiny)
_NEWTON_STEPS = 6


@dataclass(frozen=True)
class Violation:
    """One limit that a decision breaks."""

    constraint: str  # "28b" to "28h"
    rule: str  # what must be, and what is
    amount: float  # by how much, in the unit of what is limited
    device: int | None = None  # None where all devices, or all of an edge server, break it together
    server: int | None = None
    batch: tuple[int, ...] = ()  # which decision of a batch

    def __str__(self) -> str:
        who = "all devices" if self.server is None else f"edge server {self.server}"
        who = who if self.device is None else f"device {self.device}"
        return f"({self.constraint}) {who}: {self.rule}"


def violations(network: NetworkConfig, state: NetworkState, decision: Decision) -> list[Violation]:
    """Every limit of (28b)-(28h) that the decision breaks, with device and amount; none if it is feasible.

    Energy (28h) depends on rates and is looked at only where (28b) to (28g) leave a price to compute.

    Raises:
        ConfigError: shapes do not fit, or the decision breaks no limit and yet takes for ever.
    """
    check_fit(network, state, decision)
    with np.errstate(all="ignore"):  # sums of anything
        found = [
            *_slot_violations(network, decision),
            *_device_violations(network, state, decision),
            *_sum_violations(network, decision),
        ]
    try:
        priced = price(network, state, decision)
    except ConfigError:
        if not found:
            raise
        if not state.batch:
            return found
        # One decision without a price must not hide what the others of the batch spend.
        rows = np.ndindex(state.batch)
        return [
            replace(one, batch=row) for row in rows for one in violations(network, state[row], decision[row])
        ]
    excess_j = priced.learning_j - state.energy_slack_j * (1 + _TOLERANCE)
    found += _each(
        "28h",
        excess_j,
        lambda at: (
            f"learning must take at most {state.energy_slack_j[at]:.4g} J, got {priced.learning_j[at]:.4g}"
        ),
    )
    return found


def is_feasible(network: NetworkConfig, state: NetworkState, decision: Decision) -> bool:
    """Whether the decision, or each of a batch, keeps all limits."""
    return not violations(network, state, decision)


def project(network: NetworkConfig, state: NetworkState, decision: Decision) -> Decision:
    """A feasible decision near the given one.

    A slot that is not there, or that a device with a better channel also wants, becomes local. Power, CPU
    and hash rates are clipped, bandwidths and hash rates scaled to their budgets. An offloading device whose
    energy does not suffice sends with less power, and trains itself if no power is little enough. A device
    that got nothing for its part takes W/G of bandwidth, or all the CPU it may.
    """
    check_fit(network, state, decision)
    slot = without_conflicts(network, state, decision.slot)
    return project_resources(network, state, replace(decision, slot=slot))


def project_resources(network: NetworkConfig, state: NetworkState, decision: Decision) -> Decision:
    """`project` for slots that are all there, and each for one device alone."""
    slot = decision.slot
    power_w = np.clip(decision.power_w, *network.radio.power_w)
    bandwidth_hz = _within_bandwidth(network, slot, decision.bandwidth_hz)
    slot, power_w = _within_energy(network, state, slot, power_w, bandwidth_hz)
    limit_hz = local_cpu_limit_hz(network, state)
    clipped_hz = np.clip(decision.cpu_hz, _LEAST_SHARE * limit_hz, limit_hz)
    cpu_hz = np.where(decision.cpu_hz > 0, clipped_hz, limit_hz)
    offloads = slot >= 0
    return Decision(
        slot=slot,
        power_w=np.where(offloads, power_w, 0.0),
        bandwidth_hz=np.where(offloads, bandwidth_hz, 0.0),
        cpu_hz=np.where(offloads, 0.0, cpu_hz),
        hash_rate=_within_hash_budget(network, decision.hash_rate),
    )


def without_conflicts(
    network: NetworkConfig, state: NetworkState, slot: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The slots, (*batch, N); LOCAL for who wants one that is not there, or that a better channel gets."""
    slot = np.where((slot >= 0) & (slot < network.slots), slot, LOCAL)
    flat_gain = state.gain.reshape(*slot.shape, network.slots)
    own = in_each_row(flat_gain, np.where(slot >= 0, slot, 0)[..., None])[..., 0]
    by_gain = np.argsort(own, axis=-1, kind="stable")
    holder = np.full((*slot.shape[:-1], network.slots + 1), -1)
    holder.reshape(-1)[row_starts(holder) + in_each_row(slot, by_gain)] = by_gain  # the last one stays
    keeps = in_each_row(holder, np.maximum(slot, 0)) == np.arange(slot.shape[-1])
    return np.where(keeps, slot, LOCAL)


# --- checks -------------------------------------------------------------------------------------------------


def _each(constraint: str, excess: Array, rule: Any, **where: Any) -> Iterator[Violation]:
    """A violation for every positive excess; excess: (*batch, N), rule: text by index."""
    for row in np.argwhere(excess > 0):
        at = tuple(int(i) for i in row)
        yield Violation(constraint, rule(at), float(excess[at]), device=at[-1], batch=at[:-1])


def _slot_violations(network: NetworkConfig, decision: Decision) -> Iterator[Violation]:
    slot = decision.slot
    beyond = np.maximum(slot - (network.slots - 1), -1 - slot).astype(np.float64)
    yield from _each(
        "28b", beyond, lambda at: f"`slot` must be -1 or one of 0..{network.slots - 1}, got {slot[at]}"
    )
    for row in np.ndindex(slot.shape[:-1]):
        taken, counts = np.unique(slot[row][slot[row] >= 0], return_counts=True)
        for one, count in zip(taken[counts > 1], counts[counts > 1], strict=True):
            server, channel = divmod(int(one), network.sub_channels)
            who = np.flatnonzero(slot[row] == one).tolist()
            rule = f"a slot must have one device, got {who} in sub-channel {channel} of edge server {server}"
            for device in who[1:]:
                yield Violation("28c", rule, float(count - 1), device, server, row)


def _device_violations(
    network: NetworkConfig, state: NetworkState, decision: Decision
) -> Iterator[Violation]:
    offloads, everybody = decision.offloads, np.ones_like(decision.offloads)
    zero = np.zeros(state.data_bits.shape)
    least_w, most_w = network.radio.power_w
    least_hash, most_hash = network.blocks.hash_rate
    limits: list[tuple[str, str, str, NDArray[np.bool_], Array, Array]] = [
        ("28d", "power_w", "W", offloads, zero + least_w, zero + most_w),
        ("28e", "bandwidth_hz", "Hz", offloads, zero, zero + network.radio.bandwidth_hz),
        ("28f", "cpu_hz", "Hz", ~offloads, zero, state.cpu_hz),
        ("28g", "hash_rate", "hashes/s", everybody, zero + least_hash, zero + most_hash),
    ]
    for constraint, name, unit, who, least, most in limits:
        value = getattr(decision, name)
        below = least * (1 - _TOLERANCE) - value
        below[(least == 0) & (value == 0)] = _NOTHING  # too little, by next to nothing
        excess = np.where(who, np.maximum(below, value - most * (1 + _TOLERANCE)), 0.0)
        for one in _each(constraint, excess, lambda at: ""):
            at = (*one.batch, one.device)
            lower = f"from {least[at]:.4g}" if least[at] > 0 else "above 0 and up"
            rule = f"`{name}` must be {lower} to {most[at]:.4g} {unit}, got {value[at]:.4g}"
            yield replace(one, rule=rule)


def _sum_violations(network: NetworkConfig, decision: Decision) -> Iterator[Violation]:
    total_hz = network.radio.bandwidth_hz
    for row in np.ndindex(decision.slot.shape[:-1]):
        server = decision.slot[row] // network.sub_channels
        for m in range(network.edge_servers):
            used = float(decision.bandwidth_hz[row][server == m].sum())
            if network.radio.sharing == "shared" and used > total_hz * (1 + _TOLERANCE):
                rule = f"bandwidths must sum to at most {total_hz:.4g} Hz, got {used:.4g}"
                yield Violation("28e", rule, used - total_hz, server=m, batch=row)
        hashes, budget = float(decision.hash_rate[row].sum()), network.blocks.total_hash_rate
        if hashes > budget * (1 + _TOLERANCE):
            rule = f"hash rates must sum to at most {budget:.4g} hashes/s, got {hashes:.4g}"
            yield Violation("28g", rule, hashes - budget, batch=row)


# --- projection ---------------------------------------------------------------------------------------------


def _within_bandwidth(network: NetworkConfig, slot: NDArray[np.int64], bandwidth_hz: Array) -> Array:
    most_hz = network.radio.bandwidth_hz
    wanted = np.where(bandwidth_hz > 0, bandwidth_hz, most_hz / network.sub_channels)
    wanted = np.where(slot >= 0, np.clip(wanted, _LEAST_SHARE * most_hz, most_hz), 0.0)
    if network.radio.sharing == "per_device":
        return wanted
    in_slot = occupants(slot, network.slots)
    of_server = by_slot(wanted, in_slot, network)
    of_server /= np.maximum(of_server.sum(axis=-1, keepdims=True) / most_hz, 1.0)
    return by_device(of_server, slot)


def _within_hash_budget(network: NetworkConfig, hash_rate: Array) -> Array:
    least, most = network.blocks.hash_rate
    above: Array = np.clip(hash_rate, least, most) - least
    left = max(network.blocks.total_hash_rate - network.devices * least, _NOTHING)
    return np.asarray(least + above * (left / np.maximum(above.sum(axis=-1, keepdims=True), left)))


def _within_energy(
    network: NetworkConfig, state: NetworkState, slot: NDArray[np.int64], power_w: Array, bandwidth_hz: Array
) -> tuple[NDArray[np.int64], Array]:
    """Slots and powers at which no offloading device spends more than it has.

    Less power always takes less energy (p/R grows with p), and less interference makes it less for the
    others: one pass is enough.
    """
    in_slot = occupants(slot, network.slots)
    power, bandwidth, data_bits, slack_j = (
        by_slot(values, in_slot, network)
        for values in (power_w, bandwidth_hz, state.data_bits, state.energy_slack_j)
    )
    heard = links(network, cross_gains(state.gain, in_slot), power)
    rate_bps = heard.rate_bps(bandwidth, network.radio.noise_w_hz)
    too_much = power * data_bits > slack_j * rate_bps
    if not too_much.any():
        return slot, power_w
    noise_w = network.radio.noise_w_hz * bandwidth[too_much] + heard.interference_w[too_much]
    least_w = network.radio.power_w[0]
    with np.errstate(all="ignore"):  # a signal may be so weak that it is 0
        # p·D = E·b·log2(1 + p/p1), where p1 is the power that is heard as strong as the noise
        unit_w = noise_w * power[too_much] / heard.signal_w[too_much]
        spendable_w = slack_j[too_much] * bandwidth[too_much] / (data_bits[too_much] * np.log(2))
        never = least_w > spendable_w * np.log1p(least_w / unit_w)
        less_w = np.maximum(unit_w * _signal_to_noise(spendable_w / unit_w), least_w)
    power[too_much] = np.where(never, 0.0, less_w)
    power_w = by_device(power, slot)
    return np.where(power_w > 0, slot, LOCAL), power_w


def _signal_to_noise(k: Array) -> Array:
    """The x > 0 with x = k·ln(1 + x): energy grows as x/ln(1 + x), k is what there is; 0 if there is none.

    Newton's method from 2(k - 1), which is below x as ln(1 + x) > 2x/(2 + x). Six steps are exact for any k.
    """
    x = least = 2 * np.maximum(k - 1, 0.0)
    for _ in range(_NEWTON_STEPS):
        slope = np.maximum(1 - k / (1 + x), np.finfo(np.float64).eps)
        x = np.maximum(x - (x - k * np.log1p(x)) / slope, least)
    return x
