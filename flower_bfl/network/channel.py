"""Channels and rates (20), seen from the slots: slot m·G + g is sub-channel g of edge server m."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_bfl.network.settings import Array, NetworkConfig
from flower_bfl.network.state import Decision, NetworkState

_NEAREST_KM = 0.01  # the path-loss formula has no meaning next to the antenna


def path_gain(network: NetworkConfig, positions_m: Array) -> Array:
    """Mean power gain by distance; positions_m: (*batch, N, 2); returns (*batch, N, M)."""
    difference = positions_m[..., :, None, :] - network.places_m
    distance_km = np.maximum(np.hypot(difference[..., 0], difference[..., 1]) / 1000, _NEAREST_KM)
    radio = network.radio
    loss_db = radio.loss_at_km_db + radio.loss_per_decade_db * np.log10(distance_km)
    return np.asarray(10 ** (-loss_db / 10))


def in_each_row(values: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """values[index] row by row, (*batch, k): `np.take_along_axis`, for indices from 0 on, much faster.

    values: (*batch, n); index: (*batch, k).
    """
    return np.asarray(np.take(values, row_starts(values) + index))


def row_starts(values: NDArray[Any]) -> NDArray[np.int64]:
    """Where each row of (*batch, n) begins if all stand one behind the other, (*batch, 1)."""
    return np.arange(0, values.size, values.shape[-1]).reshape(*values.shape[:-1], 1)


def occupants(slot: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """The device in each slot, (*batch, slots), -1 in a free one; slot: (*batch, N), no slot twice."""
    in_slot = np.full((*slot.shape[:-1], slots + 1), -1)
    # LOCAL = -1 goes to the last place of another row, which is cut off.
    in_slot.reshape(-1)[row_starts(in_slot) + slot] = np.arange(slot.shape[-1])
    return in_slot[..., :-1]


def cross_gains(gain: NDArray[Any], in_slot: NDArray[np.int64]) -> Array:
    """How strongly each edge server hears the device in each slot, on that slot's sub-channel.

    gain: (*batch, N, M, G); in_slot: (*batch, M·G), -1 for nobody, who is not heard; returns
    (*batch, M, G, M): [m', g, m] is h of the device in slot (m', g) to edge server m on g.
    """
    *batch, devices, servers, channels = gain.shape
    occupant = in_slot.reshape(*batch, servers, channels, 1)
    here = np.arange(servers) * channels + np.arange(channels)[:, None]  # (g, m)'s place in a device's row
    index = np.where(occupant >= 0, occupant, 0) * (servers * channels) + here
    flat = gain.reshape(*batch, devices * servers * channels)
    heard = in_each_row(flat, index.reshape(*batch, -1)).reshape(index.shape)
    return np.where(occupant >= 0, heard, 0.0).astype(np.float64, copy=False)


@dataclass(frozen=True)
class Links:
    """The wireless links in use, by slot."""

    signal_w: Array  # received, (*batch, M, G), 0 in a free slot
    interference_w: Array  # I, from the other edge servers' devices on the sub-channel, (*batch, M, G)

    def rate_bps(self, bandwidth_hz: Array, noise_w_hz: float) -> Array:
        """R = b·log2(1 + S/(N0·b + I)) (20), bits/s; bandwidth_hz: (*batch, M, G); 0 where it is 0."""
        noise = noise_w_hz * bandwidth_hz + self.interference_w
        in_use = bandwidth_hz > 0
        sinr = self.signal_w / np.where(in_use, noise, 1.0)
        return np.where(in_use, bandwidth_hz * np.log1p(sinr) / np.log(2), 0.0)


def links(network: NetworkConfig, cross: Array, power_w: Array) -> Links:
    """What is heard; cross as `cross_gains` gives it, power_w: (*batch, M, G) by slot."""
    heard = power_w[..., None] * cross
    own = np.einsum("...mgm->...mg", heard)  # a view of the diagonal
    signal = own.copy()
    own[...] = 0.0
    interference = (
        heard.sum(axis=-3).swapaxes(-1, -2) if network.radio.interference else np.zeros_like(signal)
    )
    return Links(signal, interference)


def by_slot(values: Array, in_slot: NDArray[np.int64], network: NetworkConfig) -> Array:
    """Values of devices (*batch, N) in their slots, (*batch, M, G); 0 in a free slot."""
    taken = in_each_row(values, np.where(in_slot >= 0, in_slot, 0))
    shape = (*in_slot.shape[:-1], network.edge_servers, network.sub_channels)
    return np.where(in_slot >= 0, taken, 0.0).reshape(shape)


def by_device(values: Array, slot: NDArray[np.int64]) -> Array:
    """Values of slots (*batch, M, G) at their devices, (*batch, N); 0 for a device without one."""
    flat = values.reshape(*slot.shape[:-1], -1)
    return np.where(slot >= 0, in_each_row(flat, np.where(slot >= 0, slot, 0)), 0.0)


def offload_rate_bps(network: NetworkConfig, state: NetworkState, decision: Decision) -> Array:
    """R_n (20) in bits/s, (*batch, N); 0 for a device that keeps its data."""
    in_slot = occupants(decision.slot, network.slots)
    heard = links(network, cross_gains(state.gain, in_slot), by_slot(decision.power_w, in_slot, network))
    rate = heard.rate_bps(by_slot(decision.bandwidth_hz, in_slot, network), network.radio.noise_w_hz)
    return by_device(rate, decision.slot)


def upload_rate_bps(network: NetworkConfig, state: NetworkState) -> Array:
    """Rate of a model's upload (23) in bits/s, (*batch, N): best channel, most power, W·M/N, alone."""
    radio = network.radio
    bandwidth_hz = radio.bandwidth_hz * min(1.0, network.edge_servers / network.devices)
    # A maximum of whole arrays is much faster than one of each short row.
    best = state.gain.reshape(-1, network.slots).T.copy().max(axis=0).reshape(state.data_bits.shape)
    best = best.astype(np.float64)
    snr = radio.power_w[1] * best / (radio.noise_w_hz * bandwidth_hz)
    return np.asarray(bandwidth_hz * np.log1p(snr) / np.log(2))
