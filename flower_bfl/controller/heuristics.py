"""Controllers that need neither search nor training: the marks that others are measured against."""

import numpy as np

from flower_bfl.controller.alone import Alone, nominal_bandwidth_hz
from flower_bfl.network import LOCAL, Decision, NetworkConfig, NetworkState, project
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Array
from flower_bfl.network.state import check_fit

_LEAST_SHARE = 0.01  # of CPU and bandwidth: the mean of 1/u has no end for a uniform u


def equal_hash_rates(network: NetworkConfig, shape: tuple[int, ...]) -> Array:
    """The hash rates that make mining fastest, (*batch, N): equal shares, by convexity of Σ ħ/Ψ (27).

    The race wants the largest sum, which this is as well. With `total="fastest"` only the fastest device
    counts, and the first one takes all that the others leave.
    """
    least, most = network.blocks.hash_rate
    budget = network.blocks.total_hash_rate
    shares = np.full(network.devices, min(most, budget / network.devices))
    if network.blocks.total == "fastest":
        shares[:] = least
        shares[0] = min(most, budget - least * (network.devices - 1))
    return np.broadcast_to(shares, shape).copy()


class AllLocalController:
    """Nobody offloads; every device gives all the CPU it can."""

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
        check_fit(self.network, state)
        nothing = np.zeros(state.data_bits.shape)
        return Decision(
            slot=np.full(nothing.shape, LOCAL),
            power_w=nothing,
            bandwidth_hz=nothing,
            cpu_hz=local_cpu_limit_hz(self.network, state),
            hash_rate=equal_hash_rates(self.network, nothing.shape),
        )


class RandomController:
    """Every device picks local or any slot, and any resources, all uniform; then conflicts are resolved.

    CPU and bandwidth are at least a hundredth of the most.
    """

    def __init__(self, network: NetworkConfig, rng: np.random.Generator) -> None:
        self.network = network
        self._rng = rng

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
        network, shape = self.network, state.data_bits.shape
        slot = self._rng.integers(LOCAL, network.slots, shape)
        power, hashes = self._rng.random((2, *shape))
        bandwidth, cpu = self._rng.uniform(_LEAST_SHARE, 1.0, (2, *shape))
        (least_w, most_w), (least_hash, most_hash) = network.radio.power_w, network.blocks.hash_rate
        return project(
            network,
            state,
            Decision(
                slot=slot,
                power_w=least_w + (most_w - least_w) * power,
                bandwidth_hz=bandwidth * network.radio.bandwidth_hz,
                cpu_hz=cpu * local_cpu_limit_hz(network, state),
                hash_rate=least_hash + (most_hash - least_hash) * hashes,
            ),
        )


class GreedyController:
    """The device that would gain most takes its best free slot, and so on, as long as anybody gains.

    A device's gain is estimated with most power, W/G of bandwidth and nobody else on the sub-channel.
    """

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
        network, shape = self.network, state.data_bits.shape
        saved_s = Alone.of(network, state).saved_s
        slot = np.full(shape, LOCAL)
        for row in np.ndindex(shape[:-1]):
            saved = saved_s[row].reshape(network.devices, network.slots).copy()
            while saved.max() > 0:
                device, taken = np.unravel_index(saved.argmax(), saved.shape)
                slot[(*row, device)] = taken
                saved[device, :] = saved[:, taken] = -np.inf
        return project(
            network,
            state,
            Decision(
                slot=slot,
                power_w=np.full(shape, network.radio.power_w[1]),
                bandwidth_hz=np.full(shape, nominal_bandwidth_hz(network)),
                cpu_hz=local_cpu_limit_hz(network, state),
                hash_rate=equal_hash_rates(network, shape),
            ),
        )
