"""Networks drawn at random, and how they change from round to round."""

import numpy as np
from numpy.typing import NDArray

from flower_bfl.network.channel import path_gain
from flower_bfl.network.settings import Array, NetworkConfig
from flower_bfl.network.state import NetworkState


class NetworkProcess:
    """A batch of networks over rounds: devices stay where they are, channels fade, tasks drift.

    Rayleigh fading of each sub-channel is an AR(1) process, data, work and CPU are reflected random walks,
    and the energy slack is drawn anew, or added to what is left if `Tasks.battery` is set.
    """

    state: NetworkState
    positions_m: Array  # from the centre, (*batch, N, 2)

    def __init__(self, network: NetworkConfig, rng: np.random.Generator, batch: tuple[int, ...] = ()) -> None:
        """Draw the first round; `rng` is used for all later ones, too."""
        self.network = network
        self._rng = rng
        by_device = (*batch, network.devices)
        side_m = network.radio.area_m
        self.positions_m = rng.uniform(-side_m / 2, side_m / 2, (*by_device, 2))
        shadowing_db = rng.normal(0.0, network.radio.shadowing_db, (*by_device, network.edge_servers))
        mean_gain = path_gain(network, self.positions_m) * 10 ** (shadowing_db / 10)
        self._mean_gain = mean_gain.astype(np.float32)[..., None]
        # Real and imaginary part; float32 is twice as fast to draw, and finer than any channel is known.
        self._fading = rng.standard_normal(
            (2, *by_device, network.edge_servers, network.sub_channels), dtype=np.float32
        )
        self._fading *= np.float32(np.sqrt(0.5))
        self._fresh = np.empty_like(self._fading)
        self._tasks = rng.random((3, *by_device))
        self.state = self._make_state(self._draw_slack(by_device))

    def advance(self, spent_j: Array | None = None) -> NetworkState:
        """Go to the next round; `spent_j`, (*batch, N), is what learning took of each device's energy."""
        correlation = self.network.radio.fading_correlation
        self._rng.standard_normal(dtype=np.float32, out=self._fresh)
        self._fresh *= np.float32(np.sqrt((1 - correlation**2) / 2))
        self._fading *= np.float32(correlation)
        self._fading += self._fresh
        self._tasks += self.network.tasks.drift * self._rng.standard_normal(self._tasks.shape)
        # Reflected at 0 and 1, however far it went.
        self._tasks = 1 - np.abs(1 - np.abs(self._tasks) % 2)
        slack_j = self._draw_slack(self._tasks.shape[1:])
        if self.network.tasks.battery:
            left_j = self.state.energy_slack_j - (0.0 if spent_j is None else spent_j)
            slack_j = np.minimum(np.maximum(left_j, 0.0) + slack_j, self.network.tasks.battery_capacity_j)
        self.state = self._make_state(slack_j)
        return self.state

    def _draw_slack(self, shape: tuple[int, ...]) -> Array:
        return self._rng.uniform(*self.network.tasks.energy_slack_j, shape)

    def _make_state(self, energy_slack_j: Array) -> NetworkState:
        tasks = self.network.tasks
        ranges = (tasks.data_bits, tasks.work_cycles, tasks.cpu_hz)
        data_bits, work_cycles, cpu_hz = (
            least + (most - least) * u for (least, most), u in zip(ranges, self._tasks, strict=True)
        )
        gain: NDArray[np.float32] = self._fading[0] ** 2
        gain += self._fading[1] ** 2
        gain *= self._mean_gain
        return NetworkState(data_bits, work_cycles, cpu_hz, energy_slack_j, gain)


def draw_states(network: NetworkConfig, count: int, rng: np.random.Generator) -> NetworkState:
    """`count` independent networks, shape (count, N)."""
    return NetworkProcess(network, rng, (count,)).state
