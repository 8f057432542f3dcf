"""What each device would take if nobody else were there: where heuristics, solver and policies begin."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from flower_bfl.network import NetworkConfig, NetworkState
from flower_bfl.network.channel import upload_rate_bps
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Array
from flower_bfl.network.state import check_fit

_LONGEST_S = 1e6
_WEAKEST = 1e-12  # signal to noise; what is weaker takes so long that it does not matter


def home_s(network: NetworkConfig, state: NetworkState) -> Array:
    """T_loc + T_up of a device that trains itself as fast as it may, (*batch, N)."""
    computing_s = state.work_cycles / local_cpu_limit_hz(network, state)
    return np.asarray(computing_s + network.model_bits / upload_rate_bps(network, state))


def nominal_bandwidth_hz(network: NetworkConfig) -> float:
    """What a device gets if its edge server is full: W/G, or W if each may have all of it."""
    shares = network.sub_channels if network.radio.sharing == "shared" else 1
    return network.radio.bandwidth_hz / shares


@dataclass(frozen=True)
class Alone:
    """Seconds of each device by itself, at most power and nominal bandwidth."""

    home_s: Array  # T_loc + T_up, (*batch, N)
    offload_s: Array  # T_off, (*batch, N, M, G)
    edge_s: Array  # C_n/f_m, (*batch, N, M)

    @classmethod
    def of(cls, network: NetworkConfig, state: NetworkState) -> Self:
        """Work it out; raises ConfigError if the state is of another network."""
        check_fit(network, state)
        share_hz = nominal_bandwidth_hz(network)
        snr = network.radio.power_w[1] / (network.radio.noise_w_hz * share_hz) * state.gain.astype(np.float64)
        data_s = state.data_bits * np.log(2) / share_hz
        offload_s = data_s[..., None, None] / np.log1p(np.maximum(snr, _WEAKEST))
        edge_s = state.work_cycles[..., None] / network.edge_speeds_hz
        return cls(home_s(network, state), np.minimum(offload_s, _LONGEST_S), edge_s)

    @property
    def saved_s(self) -> Array:
        """By offloading, (*batch, N, M, G); below 0 where that takes longer."""
        return np.asarray(self.home_s[..., None, None] - self.offload_s - self.edge_s[..., None])
