"""Who gets which slot: optimal assignment at prices of bandwidth and interference, until they settle."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from flower_bfl.controller.allocation import (
    LEAST_SHARE,
    Allocation,
    Link,
    Situation,
    Slots,
    allocate,
    marginals,
    within_energy,
)
from flower_bfl.network import NetworkConfig
from flower_bfl.network.settings import Array

_NEARLY = 1.1  # enough energy, as far as so few looks tell
_LEAST_PRICE = 1e-30
_LOOKS = 3  # at power and bandwidth of a possible link: each depends on the other


@dataclass(frozen=True)
class Prices:
    """What a slot costs those who do not have it."""

    bandwidth_s_hz: Array  # seconds that others lose per hertz, (M,)
    interference_w: Array  # what the device in each slot would hear, by device, (N, M, G)
    harm_s_w: Array  # seconds that others lose per watt sent, by device and slot, (N, M, G)


def assign(costs_s: Array) -> Slots:
    """The cheapest matching of devices and slots; costs_s: (N, M·G), above 0 is worse than none; (M·G,)."""
    in_slot = np.full(costs_s.shape[1], -1)
    worth = np.where(costs_s < 0, costs_s, 0.0)
    device, slot = linear_sum_assignment(worth)
    chosen = worth[device, slot] < 0
    in_slot[slot[chosen]] = device[chosen]
    return in_slot


def link_costs(situation: Situation, prices: Prices) -> Array:
    """T_off + T_exe + what others lose - what the device would take itself; (N, M·G), seconds."""
    network, state = situation.network, situation.state
    radio = network.radio
    least_w, most_w = radio.power_w
    data_bits = state.data_bits[:, None, None]
    gain = state.gain.astype(np.float64)
    slack_j = state.energy_slack_j[:, None, None]
    price_s_hz = prices.bandwidth_s_hz[:, None]
    power_w = np.full(gain.shape, most_w)
    bandwidth_hz = np.full(gain.shape, radio.bandwidth_hz / network.sub_channels)
    for look in range(_LOOKS + 1):
        link = Link.of(power_w * gain, radio.noise_w_hz * bandwidth_hz, prices.interference_w)
        offload_s = data_bits / (bandwidth_hz * link.per_hz)
        if look == _LOOKS:
            break
        gained = offload_s * link.power_slope
        allowed_w = within_energy(link, power_w, offload_s, slack_j)
        wanted_w = gained / np.maximum(prices.harm_s_w, gained / most_w)
        power_w = np.clip(np.minimum(wanted_w, allowed_w), least_w, most_w)
        wanted_hz = np.sqrt(data_bits * link.band_slope / (link.per_hz * price_s_hz))
        bandwidth_hz = np.clip(wanted_hz, LEAST_SHARE * radio.bandwidth_hz, radio.bandwidth_hz)
    charged_s = power_w * prices.harm_s_w + bandwidth_hz * price_s_hz
    costs_s = offload_s + situation.edge_s[..., None] + charged_s - situation.own_s[:, None, None]
    costs_s[power_w * offload_s > _NEARLY * slack_j] = np.inf
    return np.reshape(costs_s, (network.devices, network.slots))


def first_prices(situation: Situation) -> Prices:
    """Before anybody is assigned: a server's bandwidth costs what its median device would pay for W/G."""
    network, state = situation.network, situation.state
    radio = network.radio
    share_hz = radio.bandwidth_hz / network.sub_channels
    best = state.gain.max(axis=2).astype(np.float64)
    link = Link.of(
        radio.power_w[1] * best, np.full(best.shape, radio.noise_w_hz * share_hz), np.zeros(best.shape)
    )
    offload_s = state.data_bits[:, None] / (share_hz * link.per_hz)
    nothing = np.zeros(state.gain.shape)
    return Prices(_bandwidth_prices(network, np.median(offload_s, axis=0) / share_hz), nothing, nothing)


def prices_of(situation: Situation, made: Allocation, before: Prices) -> Prices:
    """What the first assignment of `made` charges; a server without devices halves its price."""
    network, gain = situation.network, situation.state.gain.astype(np.float64)
    in_slot = made.in_slot[0].reshape(network.edge_servers, network.sub_channels)
    holds = in_slot == np.arange(network.devices)[:, None, None]  # (N, M, G)
    per_hz, per_w = (each[0] for each in marginals(situation, made))
    users = (in_slot >= 0).sum(axis=1)
    mean = per_hz.sum(axis=1) / np.maximum(users, 1)
    bandwidth_s_hz = _bandwidth_prices(network, np.where(users > 0, mean, before.bandwidth_s_hz / 2))
    if not network.radio.interference:
        return Prices(bandwidth_s_hz, before.interference_w, before.harm_s_w)
    # A device neither hears nor harms itself when it moves to another server on its sub-channel.
    sent_w = (holds * made.power_w[0]).sum(axis=1, keepdims=True)  # (N, 1, G)
    heard_w = np.where(holds, 0.0, sent_w * gain)
    harm = np.where(holds, 0.0, per_w * gain)
    return Prices(
        bandwidth_s_hz,
        interference_w=heard_w.sum(axis=0) - heard_w,
        harm_s_w=harm.sum(axis=1, keepdims=True) - harm,
    )


def _bandwidth_prices(network: NetworkConfig, price_s_hz: Array) -> Array:
    """Next to nothing where everybody may have all of W."""
    prices: Array = price_s_hz if network.radio.sharing == "shared" else np.zeros_like(price_s_hz)
    return np.asarray(np.maximum(prices, _LEAST_PRICE))


def assign_at_prices(situation: Situation, iterations: int = 8) -> Allocation:
    """The best assignment on the way to prices that settle; (1, M·G)."""
    prices = first_prices(situation)
    best: Allocation | None = None
    seen: set[bytes] = set()
    for _ in range(iterations):
        in_slot = assign(link_costs(situation, prices))
        if in_slot.tobytes() in seen:
            break
        seen.add(in_slot.tobytes())
        made = allocate(situation, in_slot[None], steps=30)
        best = made if best is None or made.score[0] < best.score[0] else best
        prices = prices_of(situation, made, prices)
    assert best is not None
    return best
