"""The network as Gymnasium environments: one for each way to learn a controller in it.

An action is {"slot": one of 1 + M·G choices for each device, "parameters": (N, 4) in [0, 1]}, read by
`flower_bfl.controller.encoding.decode`; `observe` there makes the observations; the reward is the utility
(31). Actions do not move the state unless `Tasks.battery` is set: two controllers with one seed meet the same
rounds.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.controller.encoding import (
    PARAMETERS,
    Observation,
    decode,
    from_box,
    observation_shape,
    observe,
)
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Price,
    price,
    violations,
)

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector.utils import batch_space
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{__name__} needs the package {missing.name}: pip install 'flower-bfl[control]'", name=missing.name
    ) from missing

Action = dict[str, Any]  # "slot" and "parameters"
Info = dict[str, Any]
Step = tuple[Observation, float, bool, bool, Info]  # reward, terminated, truncated
VectorStep = tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], Info]


class BFLEnv(gymnasium.Env[Observation, Action]):
    """One network over `rounds` rounds; a reset draws a new one.

    `info` has the seconds of a round (`total_s`, `learning_s`, `consensus_s`, `mining_s`, `makespan_s`) and
    how many devices are `offloading`.

    Raises:
        ConfigError: an argument breaks a rule, or an action is not of the action space.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # Gymnasium's

    def __init__(self, network: NetworkConfig | None = None, rounds: int = 200) -> None:
        self.network = network or NetworkConfig()
        self.observation_space = _observation_space(self.network)
        self.action_space = _action_space(self.network)
        self._episode = _Episode(self.network, rounds, ())

    @property
    def state(self) -> NetworkState:
        """The round that is to be decided, for controllers that read states."""
        return self._episode.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """A new network; without a seed, the next one."""
        super().reset(seed=seed)
        return self._episode.begin(self.np_random), {}

    def step(self, action: Action) -> Step:
        """Play a round."""
        return self._step(self._episode.decoded(action))

    def step_decision(self, decision: Decision) -> Step:
        """The same with a decision for `state`, as controllers make it; ConfigError unless it is feasible."""
        self._episode.check(decision)
        return self._step(decision)

    def _step(self, decision: Decision) -> Step:
        observation, reward, info = self._episode.play(decision)
        plain = {name: value.item() for name, value in info.items()}
        return observation, float(reward), False, self._episode.has_ended, plain


class BFLVectorEnv(gymnasium.vector.VectorEnv[Observation, Action, NDArray[Any]]):
    """`num_envs` networks at once, each as in `BFLEnv`, whose shapes follow after `num_envs`.

    All episodes end together, and in that very step new ones begin: `info["final_obs"]` is the last
    observation of the old.
    """

    metadata = {"render_modes": [], "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, network: NetworkConfig | None = None, num_envs: int = 64, rounds: int = 200) -> None:
        check_whole_number("num_envs", num_envs, 1, 2**31 - 1)
        self.network = network or NetworkConfig()
        self.num_envs = num_envs
        self.single_observation_space = _observation_space(self.network)
        self.single_action_space = _action_space(self.network)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episode = _Episode(self.network, rounds, (num_envs,))

    @property
    def state(self) -> NetworkState:
        """The rounds that are to be decided, for controllers that read states."""
        return self._episode.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """New networks; without a seed, the next ones."""
        super().reset(seed=seed)
        return self._episode.begin(self.np_random), {}

    def step(self, actions: Action) -> VectorStep:
        """Play a round of each network."""
        return self._step(self._episode.decoded(actions))

    def step_decision(self, decision: Decision) -> VectorStep:
        """The same with a batch of decisions for `state`; ConfigError unless each is feasible."""
        self._episode.check(decision)
        return self._step(decision)

    def _step(self, decision: Decision) -> VectorStep:
        observation, reward, info = self._episode.play(decision)
        every, ended = np.ones(self.num_envs, dtype=bool), self._episode.has_ended
        if ended:
            final_info = dict(info)
            info |= {"final_obs": observation, "_final_obs": every}
            info |= {"final_info": final_info, "_final_info": every.copy()}
            observation = self._episode.begin(self.np_random)
        return observation, reward, ~every, every & ended, info


class BoxActions(gymnasium.Wrapper[Observation, Any, Observation, Any]):
    """A `BFLEnv` for learners that know boxes only, like Stable-Baselines3's.

    An action is (N·5,) in [-1, 1], five numbers a device: its slot choice, relaxed, and its parameters. An
    observation is the rows one behind the other.
    """

    def __init__(self, env: gymnasium.Env[Observation, Any]) -> None:
        super().__init__(env)
        self._network: NetworkConfig = env.get_wrapper_attr("network")
        rows, columns = observation_shape(self._network)
        self.observation_space = spaces.Box(0.0, 1.0, (rows * columns,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (rows * (1 + len(PARAMETERS)),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """A new network; without a seed, the next one."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation.ravel(), info

    def step(self, action: ArrayLike) -> tuple[Observation, Any, bool, bool, Info]:
        """Play a round."""
        slot, parameters = from_box(self._network, action)
        observation, *rest = self.env.step({"slot": slot, "parameters": parameters})
        return observation.ravel(), *rest  # type: ignore[return-value]


class _Episode:
    """What the environments have in common: networks, in any batch shape, from their drawing to the end."""

    def __init__(self, network: NetworkConfig, rounds: int, batch: tuple[int, ...]) -> None:
        check_whole_number("rounds", rounds, 1, 2**31 - 1)
        self._network = network
        self._rounds = rounds
        self._batch = batch
        self._played = 0
        self._process: NetworkProcess | None = None

    @property
    def state(self) -> NetworkState:
        if self._process is None:
            raise gymnasium.error.ResetNeeded("`reset` must be called first")
        return self._process.state

    @property
    def has_ended(self) -> bool:
        return self._played == self._rounds

    def begin(self, rng: np.random.Generator) -> Observation:
        self._process, self._played = NetworkProcess(self._network, rng, self._batch), 0
        return observe(self._network, self.state)

    def decoded(self, action: Action) -> Decision:
        try:
            slot, parameters = action["slot"], action["parameters"]
        except (TypeError, KeyError, IndexError) as error:
            raise ConfigError(f"`action` must have `slot` and `parameters`, got {action!r}") from error
        return decode(self._network, self.state, slot, parameters)

    def check(self, decision: Decision) -> None:
        for broken in violations(self._network, self.state, decision):
            raise ConfigError(f"`decision` must keep all limits, but {broken}")

    def play(self, decision: Decision) -> tuple[Observation, NDArray[Any], Info]:
        """Observation of the next round; utility and info of this one."""
        if self._process is None or self.has_ended:
            raise gymnasium.error.ResetNeeded(
                "`reset` must be called before the first and after the last round"
            )
        priced = price(self._network, self._process.state, decision)
        self._process.advance(priced.learning_j)
        self._played += 1
        return observe(self._network, self.state, decision), priced.utility, _info(priced, decision)


def _info(priced: Price, decision: Decision) -> Info:
    return {
        "total_s": priced.total_s,
        "learning_s": priced.learning_s,
        "consensus_s": priced.consensus_s,
        "mining_s": priced.mining_total_s,
        "makespan_s": priced.makespan_s,
        "offloading": decision.offloads.sum(axis=-1),
    }


def _observation_space(network: NetworkConfig) -> spaces.Box[np.float32]:
    return spaces.Box(0.0, 1.0, observation_shape(network), np.float32)


def _action_space(network: NetworkConfig) -> spaces.Dict:
    return spaces.Dict(
        {
            "slot": spaces.MultiDiscrete(np.full(network.devices, 1 + network.slots)),
            "parameters": spaces.Box(0.0, 1.0, (network.devices, len(PARAMETERS)), np.float32),
        }
    )


gymnasium.register(
    "flower_bfl/BFL-v0", entry_point=f"{__name__}:BFLEnv", vector_entry_point=f"{__name__}:BFLVectorEnv"
)
