"""What a controller sees before a round, and what it decides.

Both are batched: `*batch` stands for any leading shape, also none. There are N devices and M edge servers
with G sub-channels each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_bfl.errors import ConfigError, InfeasibleError
from flower_bfl.network.settings import Array, NetworkConfig

LOCAL = -1  # in place of a slot: the device trains on its own data itself


@dataclass(frozen=True)
class NetworkState:
    """One round's data, work, CPU, energy and channels; or a batch of them.

    Raises:
        ConfigError: a shape does not fit, or a value is not positive and finite.
        InfeasibleError: a device has no energy left for learning (28h).
    """

    data_bits: Array  # D_n, (*batch, N)
    work_cycles: Array  # C_n, cycles for the whole local task, (*batch, N)
    cpu_hz: Array  # F_n, what the device can give, (*batch, N)
    energy_slack_j: Array  # E_max - E_gen, what mining leaves for learning, (*batch, N)
    gain: NDArray[Any]  # h_nmg, power gain of the channel, (*batch, N, M, G), float32 or float64

    def __post_init__(self) -> None:
        for each in fields(self):
            values = _floats(each.name, getattr(self, each.name), float32=each.name == "gain")
            object.__setattr__(self, each.name, values)
        if self.gain.ndim < 3 or 0 in self.gain.shape:
            raise ConfigError(
                "`gain` must have shape (*batch, devices, edge servers, sub-channels), at least one of each, "
                f"got {self.gain.shape}"
            )
        for each in fields(self):
            values = getattr(self, each.name)
            if each.name != "gain" and values.shape != self.gain.shape[:-2]:
                raise ConfigError(f"`{each.name}` must have shape {self.gain.shape[:-2]}, got {values.shape}")
            self._check_values(each.name, values)

    def _check_values(self, name: str, values: Array) -> None:
        good = values > 0  # also False for NaN
        if good.all() and values.max() < np.inf:
            return
        at = tuple(int(i) for i in np.argwhere(~(good & np.isfinite(values)))[0])
        value, device = values[at], at[-3 if name == "gain" else -1]
        if name == "energy_slack_j" and np.isfinite(value):
            raise InfeasibleError(
                f"(28h): `energy_slack_j` must leave something for learning, got {value} for device {device}"
            )
        raise ConfigError(f"`{name}` must be positive and finite, got {value} for device {device}")

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading shape, () for one state."""
        return self.gain.shape[:-3]

    @property
    def devices(self) -> int:
        """N."""
        return int(self.gain.shape[-3])

    def __getitem__(self, index: Any) -> Self:
        """Some of a batch, indexed as an array of that shape."""
        if not self.batch:
            raise ConfigError("`state` must be a batch to be indexed, got one state")
        return type(self)(
            **{each.name: _picked(getattr(self, each.name), self.batch, index) for each in fields(self)}
        )

    def permuted(self, order: ArrayLike) -> Self:
        """The same with the devices in another order: place i gets device order[i]."""
        order = np.asarray(order)
        return type(self)(
            **{
                each.name: np.take(getattr(self, each.name), order, axis=-3 if each.name == "gain" else -1)
                for each in fields(self)
            }
        )


@dataclass(frozen=True)
class Decision:
    """Who offloads where, with what; or a batch of decisions. What a device does not use is 0.

    Raises:
        ConfigError: a shape does not fit, a slot is no integer, or a value is not a number.
    """

    slot: NDArray[np.int64]  # m·G + g of edge server m and sub-channel g, or LOCAL = -1; (*batch, N)
    power_w: Array  # p_n, of an offloading device, (*batch, N)
    bandwidth_hz: Array  # b_n, of an offloading device, (*batch, N)
    cpu_hz: Array  # f_n, of a device that trains itself, (*batch, N)
    hash_rate: Array  # Ψ_n, hashes a second, (*batch, N)

    def __post_init__(self) -> None:
        slot = np.asarray(self.slot)
        if slot.dtype.kind not in "iu" or not slot.ndim:
            raise ConfigError(f"`slot` must be an array of whole numbers, got {slot.dtype} of {slot.shape}")
        object.__setattr__(self, "slot", slot.astype(np.int64, copy=False))
        for each in fields(self)[1:]:
            values = _floats(each.name, getattr(self, each.name))
            if values.shape != slot.shape:
                raise ConfigError(f"`{each.name}` must have shape {slot.shape}, got {values.shape}")
            if np.isnan(values).any():
                at = int(np.argwhere(np.isnan(values))[0][-1])
                raise ConfigError(f"`{each.name}` must be a number, got nan for device {at}")
            object.__setattr__(self, each.name, values)

    @property
    def offloads(self) -> NDArray[np.bool_]:
        """Which devices send their data to an edge server, (*batch, N)."""
        return self.slot >= 0

    def __getitem__(self, index: Any) -> Self:
        """Some of a batch, indexed as an array of that shape."""
        batch = self.slot.shape[:-1]
        return type(self)(
            **{each.name: _picked(getattr(self, each.name), batch, index) for each in fields(self)}
        )

    def permuted(self, order: ArrayLike) -> Self:
        """The same with the devices in another order: place i gets device order[i]."""
        order = np.asarray(order)
        return type(self)(**{each.name: getattr(self, each.name)[..., order] for each in fields(self)})

    @classmethod
    def stack(cls, decisions: Sequence["Decision"], batch: tuple[int, ...]) -> "Decision":
        """One batch of shape `batch` of single decisions, in C order."""
        return cls(
            **{
                each.name: np.reshape([getattr(one, each.name) for one in decisions], (*batch, -1))
                for each in fields(cls)
            }
        )


def check_fit(network: NetworkConfig, state: NetworkState, decision: Decision | None = None) -> None:
    """Raise ConfigError unless state (and decision) have the network's devices, servers and sub-channels."""
    expected = (network.devices, network.edge_servers, network.sub_channels)
    if state.gain.shape[-3:] != expected:
        raise ConfigError(
            "`state` must have as many devices, edge servers and sub-channels as the network, "
            f"{expected}, got {state.gain.shape[-3:]}"
        )
    if decision is not None and decision.slot.shape != state.data_bits.shape:
        raise ConfigError(
            f"`decision` must have shape {state.data_bits.shape} like the state, got {decision.slot.shape}"
        )


def _picked(values: NDArray[Any], batch: tuple[int, ...], index: Any) -> NDArray[Any]:
    """values[index], where the index must not reach beyond the batch, nor `...` stand for what is there."""
    rows = np.arange(math.prod(batch)).reshape(batch)[index]
    return np.asarray(values.reshape(-1, *values.shape[len(batch) :])[rows])


def _floats(name: str, value: ArrayLike, *, float32: bool = False) -> NDArray[Any]:
    """As float64, or as it is if it may be float32: sums of many float32 would miss their budgets."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ConfigError(f"`{name}` must be an array of numbers, got {value!r}") from error
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"`{name}` must be an array of numbers, got {array.dtype} of {array.shape}")
    return array if float32 and array.dtype == np.float32 else array.astype(np.float64, copy=False)
