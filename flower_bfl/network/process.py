"""Networks drawn at random, and how they change from round to round."""

import numpy as np

from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.network.channel import path_gain
from flower_bfl.network.settings import Array, NetworkConfig
from flower_bfl.network.state import NetworkState

_GAINS = (1e-25, 1.0)  # nothing is weaker than no link at all, and no link amplifies
_DEEPEST_FADE = np.float32(1e-9)  # a gain of 0 is none; float32 draws an exponential of 0 now and then


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
        mean_gain = np.clip(path_gain(network, self.positions_m) * 10 ** (shadowing_db / 10), *_GAINS)
        self._mean_gain = mean_gain.astype(np.float32)[..., None]
        # |h|² of Rayleigh fading; float32 is faster, and finer than any channel is known.
        by_slot = (*by_device, network.edge_servers, network.sub_channels)
        self._fading = np.maximum(rng.standard_exponential(by_slot, dtype=np.float32), _DEEPEST_FADE)
        self._scratch = np.empty((3, *by_slot), dtype=np.float32)
        self._tasks = rng.random((3, *by_device))
        self.state = self._make_state(self._draw_slack(by_device))

    def advance(self, spent_j: Array | None = None) -> NetworkState:
        """Go to the next round; `spent_j`, (*batch, N), is what learning took of each device's energy.

        Raises:
            ConfigError: `spent_j` has another shape, or is negative or not a number somewhere.
        """
        _check_spent(spent_j, self.state)
        self._fade()
        self._tasks += self.network.tasks.drift * self._rng.standard_normal(self._tasks.shape)
        # Reflected at 0 and 1, however far it went: how far it is from the nearest even number.
        self._tasks = np.abs(self._tasks - 2 * np.rint(self._tasks / 2))
        slack_j = self._draw_slack(self._tasks.shape[1:])
        if self.network.tasks.battery:
            left_j = self.state.energy_slack_j - (0.0 if spent_j is None else spent_j)
            slack_j = np.minimum(np.maximum(left_j, 0.0) + slack_j, self.network.tasks.battery_capacity_j)
        self.state = self._make_state(slack_j)
        return self.state

    def _fade(self) -> None:
        """|ρ·h + w|², where w is complex normal with E|w|² = 1 - ρ².

        The angle from h to w is uniform and all that the power takes of either's phase: h needs none.
        """
        correlation = np.float32(self.network.radio.fading_correlation)
        fresh, cosine, across = self._scratch  # fresh: |w|²
        self._rng.standard_exponential(dtype=np.float32, out=fresh)
        self._rng.random(dtype=np.float32, out=cosine)
        fresh *= 1 - correlation**2
        cosine *= np.float32(np.pi)
        np.cos(cosine, out=cosine)
        # |w|²·sin², then the part of w along h, added to that of h; in place, for memory is the bottleneck.
        np.square(cosine, out=across)
        np.subtract(1, across, out=across)
        across *= fresh
        cosine *= np.sqrt(fresh, out=fresh)
        np.sqrt(self._fading, out=self._fading)
        self._fading *= correlation
        self._fading += cosine
        np.square(self._fading, out=self._fading)
        self._fading += across
        np.maximum(self._fading, _DEEPEST_FADE, out=self._fading)

    def _draw_slack(self, shape: tuple[int, ...]) -> Array:
        return self._rng.uniform(*self.network.tasks.energy_slack_j, shape)

    def _make_state(self, energy_slack_j: Array) -> NetworkState:
        tasks = self.network.tasks
        ranges = (tasks.data_bits, tasks.work_cycles, tasks.cpu_hz)
        data_bits, work_cycles, cpu_hz = (
            least + (most - least) * u for (least, most), u in zip(ranges, self._tasks, strict=True)
        )
        gain = self._fading * self._mean_gain
        return NetworkState(data_bits, work_cycles, cpu_hz, energy_slack_j, gain)


def draw_states(network: NetworkConfig, count: int, rng: np.random.Generator) -> NetworkState:
    """`count` independent networks, shape (count, N)."""
    check_whole_number("count", count, 1, 2**31 - 1)
    return NetworkProcess(network, rng, (count,)).state


def _check_spent(spent_j: Array | None, state: NetworkState) -> None:
    spent = np.zeros_like(state.energy_slack_j) if spent_j is None else np.asarray(spent_j)
    if spent.shape != state.energy_slack_j.shape:
        raise ConfigError(f"`spent_j` must have shape {state.energy_slack_j.shape}, got {spent.shape}")
    wrong = ~(spent >= 0)  # also NaN
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise ConfigError(f"`spent_j` must not be negative, got {spent[at]} for device {at[-1]}")
