"""What the paper compares its learner with: other algorithms, on the same networks and budget of steps.

Two are the paper's algorithm on other action spaces: A2C (Mnih et al. 2016) on a relaxed space, where the
choice of a slot is made of continuous numbers, and on an approximated one, where each parameter has Z = 8
levels. Two are other algorithms: DDPG (Lillicrap et al. 2016) on the relaxed space, and DQN on the levels,
which needs a branch for each number of an action (Tavakoli et al. 2018), as the actions of 30 devices are
about 10^150. A2C and DDPG are Stable-Baselines3's. The last two are our learner with the paper's networks,
but without its trust region: A2C, and actor-critic, which has no advantage either.

The first four begin as these libraries begin, that is about uniform: CPU and hash rates in the middle of
their ranges, and no bias to training at home. Hidden layers are the library's, but critics and the DQN have
the 200 and 100 units of the paper's critic. What was set beside that, and why, is said where it is set; it
was tried at 30 devices.
"""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flower_bfl.config import check_whole_number
from flower_bfl.controller.base import Controller
from flower_bfl.controller.encoding import decode, observe
from flower_bfl.errors import ConfigError
from flower_bfl.network import Decision, NetworkConfig, NetworkState
from flower_bfl.network.settings import Array
from flower_bfl.network.state import check_fit

try:
    import torch
    from stable_baselines3 import A2C, DDPG
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.utils import polyak_update, set_random_seed, update_learning_rate
    from torch import Tensor, nn
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{__name__} needs the package {missing.name}: pip install 'flower-bfl[train]'", name=missing.name
    ) from missing

from flower_bfl.controller._sb3_env import Actions, ByDevice, FlatVecEnv, Levels, Relaxed, flat
from flower_bfl.controller.env import BFLVectorEnv
from flower_bfl.controller.learned import A2CController
from flower_bfl.controller.learner import Learner, TrainingConfig

DISCOUNT = 0.0  # γ; decisions do not move the state
LEVELS = 8  # Z

_ENVIRONMENTS = 64
_ROUNDS = 20  # of an episode, after which there are new networks: some thousands in a run
_SECTION = 2048  # steps from one point of a curve to the next
_HIDDEN = [200, 100]


@dataclass(frozen=True)
class Trained:
    """What came out of a training run."""

    controller: Controller  # for networks with as many devices, edge servers and sub-channels; draws nothing
    curve: Array  # (points, 2): steps so far, and mean utility (31) since the point before, noise and all


def train_baseline(
    name: str,
    network: NetworkConfig,
    steps: int,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Learn a controller with one of the paper's other algorithms, see `BASELINES`.

    `steps` are rounds of a network, and what is played at once is played to its end: up to 319 more than
    that. `progress` gets each point of the curve. The same seed gives the same controller, bit for bit on the
    same machine; global generators and PyTorch's number of threads are afterwards what they were before,
    though Stable-Baselines3 seeds Python's, NumPy's and PyTorch's.

    Raises:
        ConfigError: there is no such baseline, or `steps` or `seed` breaks a rule.
    """
    if name not in BASELINES:
        raise ConfigError(f"`name` must be one of {BASELINES}, got {name!r}")
    check_whole_number("steps", steps, 1, 2**31 - 1)
    check_whole_number("seed", seed, 0, 2**31 - 1)
    curve = _Curve(progress)
    with _own_chance(seed):
        controller = _LEARNERS[name](network, steps, seed, curve)
    return Trained(controller, curve.points())


class BaselineController:
    """Decides as a neural network says that was trained for so many devices, edge servers and sub-channels.

    Args:
        network: what the states are states of.
        actions: what the neural network's numbers mean.
        actor: from (B, N·columns), what `_sb3_env.flat` makes of observations, to (B, `actions.outputs`).
    """

    def __init__(self, network: NetworkConfig, actions: Actions, actor: nn.Module) -> None:
        self.network = network
        self._actions = actions
        # In double precision a state is decided alike alone and in a batch.
        self._actor = copy.deepcopy(actor).double().eval()

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch.

        Raises:
            ConfigError: the state has not as many devices, edge servers and sub-channels as the network.
        """
        check_fit(self.network, state)
        seen = flat(observe(self.network, state)).astype(np.float64)
        with torch.no_grad():
            outputs = self._actor(torch.from_numpy(seen.reshape(-1, seen.shape[-1])))
            actions = self._actions.best(outputs).numpy()
        slot, parameters = self._actions.meant(actions.reshape(*state.batch, -1))
        return decode(self.network, state, slot, parameters)


class _Curve:
    """Mean utilities, section by section."""

    def __init__(self, progress: Callable[[int, float], None] | None) -> None:
        self._progress = progress
        self._points: list[tuple[int, float]] = []
        self._steps = 0
        self._open: list[Array] = []

    def add(self, utility: Array) -> None:
        """Utilities of the next steps, any shape."""
        self._steps += utility.size
        self._open.append(utility.ravel())
        if sum(each.size for each in self._open) >= _SECTION:
            self._close()

    def points(self) -> Array:
        """(points, 2), the last one for what is left."""
        if self._open:
            self._close()
        return np.array(self._points, dtype=np.float64).reshape(-1, 2)

    def _close(self) -> None:
        self._points.append((self._steps, float(np.concatenate(self._open).mean())))
        self._open = []
        if self._progress is not None:
            self._progress(*self._points[-1])


@contextmanager
def _own_chance(seed: int) -> Iterator[None]:
    """Seeded global generators and one thread, which is the same on any number of cores, for a while."""
    python, legacy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            set_random_seed(seed)
            torch.set_num_threads(1)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_num_threads(threads)


def _environment(actions: Actions, network: NetworkConfig, curve: _Curve) -> FlatVecEnv:
    return FlatVecEnv(BFLVectorEnv(network, _ENVIRONMENTS, _ROUNDS), actions, curve.add)


# --- A2C ----------------------------------------------------------------------------------------------------


def _a2c(env: FlatVecEnv, seed: int, **of_policy: Any) -> A2C:
    """The library's settings beside what is here.

    Advantages are normalised: utilities change by hundredths once a policy is any good. It learns faster on
    both spaces. Larger batches (16 steps), Adam and other learning rates were no better in the end.
    """
    return A2C(
        "MlpPolicy",
        env,
        gamma=DISCOUNT,
        normalize_advantage=True,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": _HIDDEN}, **of_policy},
        seed=seed,
        device="cpu",
    )


def _a2c_actor(learner: A2C) -> nn.Module:
    return nn.Sequential(learner.policy.mlp_extractor.policy_net, learner.policy.action_net)


def _learn_a2c_relaxed(network: NetworkConfig, steps: int, seed: int, curve: _Curve) -> Controller:
    actions = Relaxed(network)
    # At a standard deviation of 1 a third of all numbers would be clipped.
    learner = _a2c(_environment(actions, network, curve), seed, log_std_init=-0.5)
    learner.learn(steps)
    return BaselineController(network, actions, _a2c_actor(learner))


def _learn_a2c_approximated(network: NetworkConfig, steps: int, seed: int, curve: _Curve) -> Controller:
    actions = Levels(network, LEVELS)
    learner = _a2c(_environment(actions, network, curve), seed)
    learner.policy.action_dist = ByDevice(actions)
    learner.learn(steps)
    return BaselineController(network, actions, _a2c_actor(learner))


# --- DDPG ---------------------------------------------------------------------------------------------------


class _TwoRateDDPG(DDPG):
    """With a learning rate for each network, as the algorithm is published; the library has one for both."""

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        update_learning_rate(self.actor.optimizer, 3e-5)
        update_learning_rate(self.critic.optimizer, 1e-3)


def _learn_ddpg(network: NetworkConfig, steps: int, seed: int, curve: _Curve) -> Controller:
    """The actor is slow, 3e-5, and the noise large, 0.5: else the actor goes where the critic is wrong."""
    actions = Relaxed(network)
    learner = _TwoRateDDPG(
        "MlpPolicy",
        _environment(actions, network, curve),
        gamma=DISCOUNT,
        learning_starts=_warm_up(steps),
        action_noise=NormalActionNoise(np.zeros(actions.outputs), np.full(actions.outputs, 0.5)),
        policy_kwargs={"net_arch": {"pi": [64, 64], "qf": _HIDDEN}},
        seed=seed,
        device="cpu",
        replay_buffer_kwargs=_NO_REASONS,
        **_MEMORY,
    )
    learner.learn(steps)
    return BaselineController(network, actions, learner.policy.actor.mu)


def _warm_up(steps: int) -> int:
    """Steps with random actions before anything is learnt."""
    return min(2000, steps // 10)


# Rounds to learn from. Where γ is 0 nobody asks what comes after a round, nor why an episode ended.
_MEMORY: dict[str, Any] = {"buffer_size": 50_000, "optimize_memory_usage": True}
_NO_REASONS = {"handle_timeout_termination": False}


# --- DQN ----------------------------------------------------------------------------------------------------


class BranchingDQN:
    """Deep Q-learning with a branch for each number of an action (Tavakoli et al. 2018).

    A branch values each value of its number, whatever the others are, and all aim at one target, the mean
    over the branches. A branch is linear on the trunk, without the paper's split in value and advantage.

    Args:
        inputs: numbers of an observation.
        actions: what the branches are for.
        discount: γ.
    """

    def __init__(self, inputs: int, actions: Levels, discount: float = DISCOUNT) -> None:
        wide, narrow = _HIDDEN
        self.network = nn.Sequential(
            nn.Linear(inputs, wide),
            nn.ReLU(),
            nn.Linear(wide, narrow),
            nn.ReLU(),
            nn.Linear(narrow, actions.outputs),
        )
        self.target_network = copy.deepcopy(self.network)
        self._actions = actions
        self._discount = discount
        self._optimiser = torch.optim.Adam(self.network.parameters(), 3e-4)
        sizes = torch.from_numpy(actions.space.nvec)
        self._first = torch.cumsum(sizes, 0) - sizes  # output of each branch

    def best(self, observation: Tensor) -> Tensor:
        """The actions with the largest values; observation: (B, inputs), returns (B, branches)."""
        with torch.no_grad():
            return self._actions.best(self.network(observation))

    def target(self, utility: Tensor, ended: Tensor, after: Tensor) -> Tensor:
        """What the branches aim at, r + γ·mean_d Q⁻_d(s', argmax_a Q_d(s', a)), (B, 1).

        utility, ended (0 or 1): (B, 1); after: observations of the next rounds, (B, inputs).
        """
        if not self._discount:
            return utility
        with torch.no_grad():
            values = self._of(self.target_network(after), self.best(after))
        return utility + self._discount * (1 - ended) * values.mean(dim=1, keepdim=True)

    def learn_from(self, buffer: ReplayBuffer) -> None:
        """A step on 256 rounds drawn from the buffer; the target network follows slowly."""
        rounds = buffer.sample(256)
        target = self.target(rounds.rewards, rounds.dones, rounds.next_observations)
        errors = self._of(self.network(rounds.observations), rounds.actions) - target
        self._optimiser.zero_grad()
        torch.autograd.backward((errors**2).mean())
        self._optimiser.step()
        polyak_update(self.network.parameters(), self.target_network.parameters(), 0.005)

    def _of(self, values: Tensor, actions: Tensor) -> Tensor:
        return values.gather(1, actions.long() + self._first)


def _learn_dqn(network: NetworkConfig, steps: int, seed: int, curve: _Curve) -> Controller:
    """Two updates after each step of all networks; with one, less was learnt in the end.

    Numbers are drawn at random one by one: all of them at first, and from the middle of the budget on one in
    twenty.
    """
    actions = Levels(network, LEVELS)
    env = _environment(actions, network, curve)
    buffer = ReplayBuffer(
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
        n_envs=env.num_envs,
        **_MEMORY,
        **_NO_REASONS,
    )
    rng = np.random.default_rng(seed)
    env.seed(seed)
    seen, played = env.reset(), 0
    learner = BranchingDQN(seen.shape[1], actions)
    while played < steps:
        chance = max(0.05, 1 - 0.95 * played / (0.5 * steps))
        best = learner.best(torch.from_numpy(seen)).numpy()
        chosen = np.where(
            rng.random(best.shape) < chance, rng.integers(0, actions.space.nvec, best.shape), best
        )
        env.step_async(chosen)
        after, utility, ended, infos = env.step_wait()
        buffer.add(seen, after, chosen, utility, ended, infos)
        seen, played = after, played + env.num_envs
        if played >= _warm_up(steps):
            learner.learn_from(buffer)
            learner.learn_from(buffer)
    return BaselineController(network, actions, learner.network)


# --- our own learner, less what the paper adds --------------------------------------------------------------


def _learn_by_gradient(advantage: bool) -> "_Learn":
    """The paper's networks and hybrid actions, with Adam in place of the trust region.

    Without `advantage`, what counts is the return. An update has 64 rounds; the start is biased to home.
    """

    def learn(network: NetworkConfig, steps: int, seed: int, curve: _Curve) -> Controller:
        settings = TrainingConfig(
            steps=steps,
            seed=seed,
            architecture="paper",
            update="gradient",
            advantage=advantage,
            discount=DISCOUNT,
            environments=_ENVIRONMENTS,
            rounds=1,
        )
        learner = Learner(network, settings)
        for made in learner.run():
            curve.add(np.full(settings.steps_an_update, made.utility))
        return A2CController(network, learner.policy, "sorted")

    return learn


_Learn = Callable[[NetworkConfig, int, int, _Curve], Controller]

_LEARNERS: dict[str, _Learn] = {
    "a2c-relaxed": _learn_a2c_relaxed,
    "a2c-approximated": _learn_a2c_approximated,
    "a2c": _learn_by_gradient(advantage=True),
    "ddpg": _learn_ddpg,
    "actor-critic": _learn_by_gradient(advantage=False),
    "dqn": _learn_dqn,
}
BASELINES = tuple(_LEARNERS)
