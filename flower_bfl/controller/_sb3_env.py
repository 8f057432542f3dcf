"""The network as Stable-Baselines3 wants it: a row of numbers to see, boxes or levels to act."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flower_bfl.controller.encoding import COLUMNS, PARAMETERS, Observation, observation_shape
from flower_bfl.network import NetworkConfig
from flower_bfl.network.settings import Array

try:
    import torch
    from gymnasium import spaces
    from stable_baselines3.common.distributions import MultiCategoricalDistribution
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
    from torch import Tensor
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{__name__} needs the package {missing.name}: pip install 'flower-bfl[train]'", name=missing.name
    ) from missing

from flower_bfl.controller.env import BFLVectorEnv

Choice = tuple[NDArray[np.int64], Array]  # slots and parameters, as `encoding.decode` takes them
Step = tuple[Observation, NDArray[Any], NDArray[Any], list[dict[str, Any]]]  # utilities, ended

_LAST_ROUND = [COLUMNS.index("last_slot"), COLUMNS.index("last_hash_rate")]


# --- actions ------------------------------------------------------------------------------------------------


class Actions(Protocol):
    """An action space for learners that know none with choices and their parameters."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Of one network's actions."""

    @property
    def outputs(self) -> int:
        """How many numbers a neural network that acts has to give."""

    def best(self, outputs: Tensor) -> Tensor:
        """The actions, (B, numbers of an action), that a network's numbers, (B, outputs), like best."""

    def meant(self, actions: NDArray[Any]) -> Choice:
        """What actions, (*batch, numbers of an action), stand for."""


@dataclass(frozen=True)
class Relaxed:
    """A device's choice as 1 + M·G numbers in [-1, 1], then its parameters; the largest number is chosen.

    The paper takes the softmax of the numbers before it makes a choice of them again, and the largest stays
    the largest. One number a device, as in `encoding.from_box`, would put slots in a row in which neighbours
    have nothing in common: A2C ends with all devices at one end of it, and one offloads (37.9 s of learning
    in the mean of 256 networks of 30 devices, 35.7 s with these, after 300,000 steps).
    """

    network: NetworkConfig

    @property
    def space(self) -> spaces.Box[np.float32]:
        """Of one network's actions, shape (N·(1 + M·G + 4),)."""
        return spaces.Box(-1.0, 1.0, (self.outputs,), np.float32)

    @property
    def outputs(self) -> int:
        """One for each number of an action."""
        return self.network.devices * (1 + self.network.slots + len(PARAMETERS))

    def best(self, outputs: Tensor) -> Tensor:
        """The numbers themselves, within their range."""
        return outputs.clamp(-1.0, 1.0)

    def meant(self, actions: NDArray[Any]) -> Choice:
        """Slots and parameters of (*batch, N·(1 + M·G + 4)) numbers."""
        of_device = actions.reshape(*actions.shape[:-1], self.network.devices, -1)
        scores, numbers = np.split(of_device, [1 + self.network.slots], axis=-1)
        return scores.argmax(axis=-1), (numbers.astype(np.float64) + 1) / 2


@dataclass(frozen=True)
class Levels:
    """A device's choice, then a level of each parameter: equal steps, which for power are steps in dBm.

    The paper's lowest power, 0 for a device that trains itself, is a choice here.
    """

    network: NetworkConfig
    levels: int  # Z

    @property
    def space(self) -> spaces.MultiDiscrete:
        """Of one network's actions, shape (N·5,)."""
        of_device = [1 + self.network.slots] + [self.levels] * len(PARAMETERS)
        return spaces.MultiDiscrete(np.tile(of_device, self.network.devices))

    @property
    def outputs(self) -> int:
        """One for each value of each number of an action."""
        return int(self.space.nvec.sum())

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers for choices, (B, N, 1, 1 + M·G), and for levels, (B, N, 4, Z)."""
        choices = 1 + self.network.slots
        of_device = outputs.reshape(len(outputs), self.network.devices, 1, -1)
        levels = of_device[..., choices:].reshape(*of_device.shape[:2], len(PARAMETERS), self.levels)
        return of_device[..., :choices], levels

    def best(self, outputs: Tensor) -> Tensor:
        """The values whose numbers are largest, (B, N·5)."""
        return torch.cat([each.argmax(-1) for each in self.split(outputs)], dim=-1).flatten(1)

    def meant(self, actions: NDArray[Any]) -> Choice:
        """Slots and parameters of (*batch, N·5) whole numbers."""
        of_device = actions.reshape(*actions.shape[:-1], self.network.devices, 1 + len(PARAMETERS))
        return of_device[..., 0].astype(np.int64), of_device[..., 1:] / (self.levels - 1)


class ByDevice(MultiCategoricalDistribution):
    """The library's distribution over `Levels`, in two pieces rather than one for each of N·5 numbers.

    With 30 devices learning is twice as fast.
    """

    def __init__(self, actions: Levels) -> None:
        super().__init__(actions.space.nvec.tolist())
        self._actions = actions

    def proba_distribution(self, action_logits: Tensor) -> "ByDevice":
        """Set the logits, (B, outputs)."""
        self._log_chance = [each.log_softmax(-1) for each in self._actions.split(action_logits)]
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Logarithm of the chance of whole actions, (B,)."""
        of_device = actions.long().reshape(len(actions), self._actions.network.devices, -1, 1)
        pieces = of_device[:, :, :1], of_device[:, :, 1:]
        each = zip(self._log_chance, pieces, strict=True)
        return torch.cat([one.gather(-1, piece) for one, piece in each], dim=-2).sum((-3, -2, -1))

    def entropy(self) -> Tensor:
        """Of whole actions, (B,)."""
        return torch.stack([-(one.exp() * one).sum((-3, -2, -1)) for one in self._log_chance]).sum(0)

    def sample(self) -> Tensor:
        """Actions, (B, N·5), by the Gumbel-max trick."""
        noisy = [one - torch.empty_like(one).exponential_().log() for one in self._log_chance]
        return torch.cat([one.argmax(-1) for one in noisy], dim=-1).flatten(1)

    def mode(self) -> Tensor:
        """The likeliest actions, (B, N·5)."""
        return torch.cat([one.argmax(-1) for one in self._log_chance], dim=-1).flatten(1)


# --- environment --------------------------------------------------------------------------------------------


def flat(observation: Observation) -> Observation:
    """Rows one behind the other, (*batch, N·columns), without what was decided in the round before.

    A controller is not told that, and it is nothing that a decision should depend on.
    """
    rows = observation.copy()
    rows[..., _LAST_ROUND] = 0.0
    return rows.reshape(*rows.shape[:-2], -1)


class FlatVecEnv(VecEnv):
    """A `BFLVectorEnv` for Stable-Baselines3, with other actions and `flat` observations.

    The first seed of `seed` is that of all networks together. `watch` gets the utilities of each step. The
    dicts that come with a step are empty but at the end of an episode.
    """

    def __init__(
        self, env: BFLVectorEnv, actions: Actions, watch: Callable[[Array], None] | None = None
    ) -> None:
        self._env, self._actions, self._watch = env, actions, watch
        rows, columns = observation_shape(env.network)
        super().__init__(env.num_envs, spaces.Box(0.0, 1.0, (rows * columns,), np.float32), actions.space)

    def reset(self) -> Observation:
        """New networks; (num_envs, N·columns)."""
        observation, _ = self._env.reset(seed=self._seeds[0])
        self._reset_seeds()
        return flat(observation)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take actions, (num_envs, numbers of an action), for the next `step_wait`."""
        self._chosen = actions

    def step_wait(self) -> Step:
        """Play a round of each network; where episodes ended, observations are the first of the next."""
        slot, parameters = self._actions.meant(self._chosen)
        observation, utility, _, ended, info = self._env.step({"slot": slot, "parameters": parameters})
        if self._watch is not None:
            self._watch(utility)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():  # all at once
            for own, last in zip(infos, flat(info["final_obs"]), strict=True):
                own |= {"terminal_observation": last, "TimeLimit.truncated": True}
        return flat(observation), utility.astype(np.float32), ended.copy(), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the environment, as often as networks are asked for."""
        return [getattr(self._env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not offered: networks have no attributes of their own."""
        raise NotImplementedError

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Not offered: networks have no methods of their own."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Never: there are no single environments."""
        return [False for _ in self._get_indices(indices)]
