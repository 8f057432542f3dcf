"""A round as arrays: what a learned controller sees of a state, and what its numbers mean as a decision."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_bfl.errors import ConfigError
from flower_bfl.network import Decision, NetworkConfig, NetworkState
from flower_bfl.network.channel import by_device, by_slot, occupants
from flower_bfl.network.feasible import project_resources, without_conflicts
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Array, Range
from flower_bfl.network.state import check_fit

Observation = NDArray[np.float32]

COLUMNS = (
    "data_bits",  # D_n, in its range
    "work_cycles",  # C_n, in its range
    "cpu_hz",  # F_n, in its range
    "energy_slack_j",  # E_max - E_gen, in its range, which ends at a battery's capacity
    "last_slot",  # of the round before, (1 + slot) / (M·G); 0 for a device that trained itself, or no round
    "last_hash_rate",  # Ψ_n of the round before, as share of the most; 0 for no round
    "devices",  # N / (N + M·G)
    "hash_budget",  # Ψ_max / N, as share of the most
)  # then the gain to each of the M·G slots in decibels, -170 dB as 0 and -50 dB as 1

PARAMETERS = ("power", "bandwidth", "cpu", "hash")

_GAIN_DB: Range = (-170.0, -50.0)
_LEAST_SHARE = 0.01  # of CPU and bandwidth: what is 0 would take for ever


def observation_shape(network: NetworkConfig) -> tuple[int, int]:
    """(N, columns) of one observation."""
    return network.devices, len(COLUMNS) + network.slots


def observe(network: NetworkConfig, state: NetworkState, last: Decision | None = None) -> Observation:
    """What can be seen before a round, (*batch, N, columns), each a number in [0, 1]; a row is a device.

    `COLUMNS` lists the columns. What lies outside of the network's ranges is clipped. A row does not depend
    on its place: devices in another order give the same rows in that order.
    """
    check_fit(network, state, last)
    tasks, most_hash_rate = network.tasks, network.blocks.hash_rate[1]
    slack_j = (
        tasks.energy_slack_j[0],
        tasks.battery_capacity_j if tasks.battery else tasks.energy_slack_j[1],
    )
    columns = (
        _share(state.data_bits, tasks.data_bits),
        _share(state.work_cycles, tasks.work_cycles),
        _share(state.cpu_hz, tasks.cpu_hz),
        _share(state.energy_slack_j, slack_j),
        0.0 if last is None else (1 + last.slot) / network.slots,
        0.0 if last is None else last.hash_rate / most_hash_rate,
        network.devices / (network.devices + network.slots),
        network.blocks.total_hash_rate / network.devices / most_hash_rate,
    )
    seen = np.empty((*state.batch, *observation_shape(network)), dtype=np.float32)
    for i, column in enumerate(columns):
        seen[..., i] = np.clip(column, 0, 1)
    gain = np.log(state.gain).reshape(*state.data_bits.shape, network.slots)
    gain *= 10 / np.log(10) / (_GAIN_DB[1] - _GAIN_DB[0])
    gain -= _GAIN_DB[0] / (_GAIN_DB[1] - _GAIN_DB[0])
    seen[..., len(COLUMNS) :] = np.clip(gain, 0, 1, out=gain)
    return seen


def decode(network: NetworkConfig, state: NetworkState, slot: ArrayLike, parameters: ArrayLike) -> Decision:
    """The decision that an action stands for, made feasible as by `project`.

    slot: (*batch, N), 0 for a device that trains itself, 1 + s for slot s. parameters: (*batch, N, 4) in
    [0, 1], by `PARAMETERS`: power from the least to the most in dBm; bandwidth as weight among those who
    share an edge server's, or as share of it where each may have all; CPU as share of what the device may
    use; hash rate from the least to the most.

    Raises:
        ConfigError: a shape does not fit, a slot is not there, or a parameter is not in [0, 1].
    """
    check_fit(network, state)
    chosen = _slots(network, state, slot)
    power, bandwidth, cpu, hashes = np.moveaxis(_parameters(state, parameters), -1, 0)
    taken = without_conflicts(network, state, chosen)
    least_dbm, most_dbm = network.radio.power_dbm
    least_hash_rate, most_hash_rate = network.blocks.hash_rate
    return project_resources(
        network,
        state,
        Decision(
            slot=taken,
            power_w=np.exp((least_dbm + (most_dbm - least_dbm) * power - 30) * np.log(10) / 10),
            bandwidth_hz=_bandwidth_hz(network, taken, _LEAST_SHARE + (1 - _LEAST_SHARE) * bandwidth),
            cpu_hz=(_LEAST_SHARE + (1 - _LEAST_SHARE) * cpu) * local_cpu_limit_hz(network, state),
            hash_rate=least_hash_rate + (most_hash_rate - least_hash_rate) * hashes,
        ),
    )


def from_box(network: NetworkConfig, numbers: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Slots and parameters, as `decode` takes them, from numbers in [-1, 1], five a device: (*batch, N·5).

    A device's first number is its choice, the range being cut into 1 + M·G equal parts; then its parameters.

    Raises:
        ConfigError: the shape does not fit, or a number is not in [-1, 1].
    """
    given = _numbers("numbers", numbers)
    if not given.ndim or given.shape[-1] != network.devices * 5:
        raise ConfigError(f"`numbers` must have {network.devices * 5} in a row, got shape {given.shape}")
    _check_between("numbers", given, -1.0, 1.0)
    share = (given.reshape(*given.shape[:-1], network.devices, 5) + 1) / 2
    choices = 1 + network.slots
    slot = np.minimum((share[..., 0] * choices).astype(np.int64), choices - 1)
    return slot, share[..., 1:]


def _share(values: Array, within: Range) -> Array:
    least, most = within
    return (values - least) / (most - least if most > least else 1.0)


def _bandwidth_hz(network: NetworkConfig, slot: NDArray[np.int64], weight: Array) -> Array:
    total_hz = network.radio.bandwidth_hz
    if network.radio.sharing == "per_device":
        return total_hz * weight
    of_server = by_slot(weight, occupants(slot, network.slots), network)
    of_server *= total_hz / np.maximum(of_server.sum(axis=-1, keepdims=True), _LEAST_SHARE)
    return by_device(of_server, slot)


def _slots(network: NetworkConfig, state: NetworkState, slot: ArrayLike) -> NDArray[np.int64]:
    try:
        chosen = np.asarray(slot)
    except ValueError as error:
        raise ConfigError(f"`slot` must be whole numbers, got {slot!r}") from error
    if chosen.dtype.kind not in "iu" or chosen.shape != state.data_bits.shape:
        raise ConfigError(
            f"`slot` must be whole numbers of shape {state.data_bits.shape}, "
            f"got {chosen.dtype} of {chosen.shape}"
        )
    _check_between("slot", chosen, 0, network.slots)
    return chosen.astype(np.int64) - 1


def _parameters(state: NetworkState, parameters: ArrayLike) -> Array:
    given = _numbers("parameters", parameters)
    expected = (*state.data_bits.shape, len(PARAMETERS))
    if given.shape != expected:
        raise ConfigError(f"`parameters` must have shape {expected}, got {given.shape}")
    _check_between("parameters", given, 0.0, 1.0)
    return given


def _numbers(name: str, values: ArrayLike) -> Array:
    try:
        return np.asarray(values).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`{name}` must be an array of numbers, got {values!r}") from error


def _check_between(name: str, values: NDArray[Any], least: float, most: float) -> None:
    good = (values >= least) & (values <= most)  # also False for NaN
    if not good.all():
        raise ConfigError(f"`{name}` must be in [{least:g}, {most:g}], got {values[~good][0]}")
