"""The parameterised A2C of section IV, in batches: policy π_d(a|s)·π_c(c|s,a), a trust region, a critic.

An update plays rounds of fresh networks, estimates advantages with the critic (29) by GAE (Schulman et al.
2016), and changes the actor by a natural-gradient step within a trust region (35)-(38) (TRPO, Schulman et
al. 2015), or by a plain gradient step for the baselines. Everything that an update draws follows from the
seed and its number: whoever stops and goes on later gets the same policy, bit for bit on the same machine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.controller.encoding import observation_shape
from flower_bfl.controller.env import BFLVectorEnv
from flower_bfl.controller.placement import OUTLOOK
from flower_bfl.controller.policy import Architecture, Play, Policy, make_policy
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import NetworkConfig

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{__name__} needs the package {missing.name}: pip install 'flower-bfl[train]'", name=missing.name
    ) from missing

from flower_bfl.controller.actors import Critic, Hybrid, PaperActor, Rule, SharedActor, divergence
from flower_bfl.controller.trust_region import trust_region_step

Update = Literal["trpo", "gradient"]

_CURVATURE = 16  # a sixteenth of an update's rounds measures it
_ROUNDS_A_LESSON = 64  # rounds for each step of the critic
_TURNS_A_LESSON = 2048  # that such a step looks at
_MOST_FAILURES = 10  # updates in a row without one usable reward


# --- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingConfig:
    """How to learn; the policy in the package has the defaults, but more steps and four numbers of devices.

    Raises:
        ConfigError: a field breaks a rule.
    """

    steps: int = 300_000  # rounds that are played in all
    seed: int = 0
    architecture: Architecture = "shared"
    devices: tuple[int, ...] = ()  # numbers of devices, one an update in turn; () is the network's
    update: Update = "trpo"
    advantage: bool = True  # False: actor-critic, the return itself in place of (29)
    divergence: Rule = "exact"  # of parameters: Σ_a π(a)·KL_c(a) (36), or -ln π(a)·KL_c(a) (37)
    max_divergence: float = 0.1  # ε_KL, of all devices together; the paper has 0.01
    step_scale: float = 1.0  # γ_a of (38), where the line search begins
    learning_rate: float = 1e-3  # of the actor, for "gradient"
    critic_learning_rate: float = 3e-3  # γ_c of (40), for Adam
    discount: float = 0.0  # γ; decisions do not move the state, unless there are batteries
    trace: float = 0.95  # λ of GAE
    environments: int = 256
    rounds: int = 4  # of each environment an update

    def __post_init__(self) -> None:
        for name in ("steps", "environments", "rounds"):
            check_whole_number(name, getattr(self, name), 1, 2**31 - 1)
        check_whole_number("seed", self.seed, 0, 2**31 - 1)
        for name, choices in (("architecture", Architecture), ("update", Update), ("divergence", Rule)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"`{name}` must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be in [0, 1], got {getattr(self, name)}")
        for name in ("max_divergence", "step_scale", "learning_rate", "critic_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` must be positive and finite, got {getattr(self, name)}")
        for count in self.devices:
            check_whole_number("devices", count, 1, 2**16 - 1)
        if len(set(self.devices)) > 1 and self.architecture == "paper":
            raise ConfigError(f"`devices` must be one number for the paper's networks, got {self.devices}")

    @property
    def steps_an_update(self) -> int:
        """Rounds that an update is made from."""
        return self.environments * self.rounds

    @property
    def updates(self) -> int:
        """How many there are in all."""
        return -(-self.steps // self.steps_an_update)


def advantages(
    reward: NDArray[Any], value: NDArray[Any], discount: NDArray[Any], trace: float
) -> NDArray[Any]:
    """GAE along the first axis, of length T; value: (T + 1, ...); discount[t] is that of value[t + 1]."""
    result = np.zeros_like(reward)
    later: Any = 0.0
    for t in reversed(range(len(reward))):
        surprise = reward[t] + discount[t] * value[t + 1] - value[t]
        later = result[t] = surprise + discount[t] * trace * later
    return result


# --- learning -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """One update: how it went."""

    steps: int  # rounds so far
    utility: float  # mean (31) of the rounds, as drawn, noise and all
    learning_s: float  # their mean learning latency, of `devices` devices
    devices: int
    offloading: float  # mean number of devices
    divergence: float  # of the step; 0 if there was none
    explained: float  # share of the rewards' variance that the critic knew before
    skipped: int  # rounds without a finite reward, left out


@dataclass(frozen=True)
class _Batch:
    inputs: dict[str, Tensor]
    choice: Tensor  # (B, N)
    drawn: Tensor  # (B, N, 4)
    weight: Tensor  # of ln π of each device's turn, (B, N) or (B, 1)


class Learner:
    """Learns a policy in `network`, an update at a time.

    Raises:
        ConfigError: network or settings break a rule.
        TrainingError: ten updates in a row have no finite reward.
    """

    def __init__(self, network: NetworkConfig, settings: TrainingConfig | None = None) -> None:
        self.settings = settings or TrainingConfig()
        self.networks = [replace(network, devices=count) for count in self.settings.devices] or [network]
        self.network = self.networks[0]
        self.update_count = 0
        self._failures = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.actor, self.critic = self._make()
        self.optimisers = {
            "critic_steps": torch.optim.Adam(self.critic.parameters(), self.settings.critic_learning_rate)
        }
        if self.settings.update == "gradient":
            actor_steps = torch.optim.Adam(self.actor.parameters(), self.settings.learning_rate)
            self.optimisers["actor_steps"] = actor_steps
        self._envs: dict[int, BFLVectorEnv] = {}

    def _make(self) -> tuple[SharedActor | PaperActor, Critic]:
        if self.settings.architecture == "shared":
            return SharedActor(), Critic(len(OUTLOOK), (64, 64), corrects_first=True)
        rows, columns = observation_shape(self.network)
        return PaperActor(self.network), Critic(rows * columns, (200, 100), corrects_first=False)

    @property
    def steps(self) -> int:
        """Rounds played so far."""
        return self.update_count * self.settings.steps_an_update

    @property
    def has_finished(self) -> bool:
        """Whether the budget is spent."""
        return self.update_count >= self.settings.updates

    @property
    def policy(self) -> Policy:
        """What has been learnt so far; its weights go on changing with the learner's."""
        weights = {name: values.detach().numpy() for name, values in self.actor.state_dict().items()}
        return make_policy(self.settings.architecture, weights)

    def run(self) -> Iterator[Progress]:
        """Update until the budget is spent."""
        while not self.has_finished:
            yield self.update()

    def update(self) -> Progress:
        """Play rounds and learn from them."""
        rng = np.random.default_rng([self.settings.seed, self.update_count])
        network = self.networks[self.update_count % len(self.networks)]
        plays, rewards, info = self._play(network, rng)
        outlook = torch.from_numpy(np.stack([play.outlook for play in plays]))  # (R, E, turns, any)
        if not self.update_count and self.settings.architecture == "shared":
            self.critic.fit_scale(outlook)
        good = np.isfinite(rewards)
        self.update_count += 1
        progress = Progress(
            steps=self.steps,
            utility=float(rewards[good].mean()) if good.any() else math.nan,
            learning_s=float(info["learning_s"]),
            devices=network.devices,
            offloading=float(info["offloading"]),
            divergence=0.0,
            explained=0.0,
            skipped=int((~good).sum()),
        )
        self._failures = 0 if good.any() else self._failures + 1
        if self._failures >= _MOST_FAILURES:
            raise TrainingError(f"`reward` must be finite, got none in {_MOST_FAILURES} updates in a row")
        if not good.any():
            return progress
        weight, explained = self._judge(outlook, rewards, good, rng)
        apart = self._improve(_batch(plays, weight, good), rng)
        return replace(progress, divergence=apart, explained=explained)

    def _play(
        self, network: NetworkConfig, rng: np.random.Generator
    ) -> tuple[list[Play], NDArray[Any], dict[str, Any]]:
        """Rounds of fresh networks: what was played, and the rewards (R, E)."""
        settings, policy = self.settings, self.policy
        if network.devices not in self._envs:
            # An episode that goes on a round longer: its end would draw networks that nobody plays in.
            self._envs[network.devices] = BFLVectorEnv(network, settings.environments, settings.rounds + 1)
        env = self._envs[network.devices]
        env.reset(seed=int(rng.integers(2**31)))
        plays, rewards = [], []
        seconds: list[float] = []
        offloading: list[float] = []
        for _ in range(settings.rounds):
            play = policy.play(network, env.state, rng)
            _, reward, _, _, info = env.step({"slot": play.slot + 1, "parameters": play.parameters})
            plays.append(play)
            rewards.append(reward)
            seconds.append(info["learning_s"].mean())
            offloading.append(info["offloading"].mean())
        return plays, np.stack(rewards), {"learning_s": np.mean(seconds), "offloading": np.mean(offloading)}

    def _judge(
        self, outlook: Tensor, rewards: NDArray[Any], good: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[Any], float]:
        """What each turn's ln π counts, (R, E, turns); then the critic learns from the returns."""
        rounds, environments, turns = outlook.shape[:3]
        settings = self.settings
        with torch.no_grad():
            value = self.critic(outlook).numpy().astype(np.float64)
        known = 1 - np.var(rewards[good] - value[:, :, 0][good]) / max(np.var(rewards[good]), 1e-12)
        reward, discount = np.zeros(value.shape), np.ones(value.shape)
        # A round without a reward says nothing: it ends what is known of its network's rounds.
        reward[..., -1] = np.where(good, rewards, value[..., -1])
        discount[..., -1] = np.where(good, settings.discount, 0.0)
        by_time = (
            np.swapaxes(each, 1, 2).reshape(rounds * turns, environments)
            for each in (reward, discount, value)
        )
        reward, discount, value = by_time
        after = np.concatenate([value, np.zeros((1, environments))])  # the last round is taken for an end
        gained = advantages(reward, after, discount, settings.trace)
        goal = np.swapaxes((gained + value).reshape(rounds, turns, environments), 1, 2)
        gained = np.swapaxes(gained.reshape(rounds, turns, environments), 1, 2)
        self._teach_critic(outlook[good], torch.from_numpy(goal[good]).float(), rng)
        if not settings.advantage:
            return goal / (goal[good].std() + 1e-8), float(known)
        return (gained - gained[good].mean()) / (gained[good].std() + 1e-8), float(known)

    def _teach_critic(self, outlook: Tensor, goal: Tensor, rng: np.random.Generator) -> None:
        outlook, goal = outlook.reshape(-1, outlook.shape[-1]), goal.reshape(-1)
        for _ in range(max(1, self.settings.steps_an_update // _ROUNDS_A_LESSON)):
            some = torch.from_numpy(rng.integers(len(goal), size=min(_TURNS_A_LESSON, 4 * len(goal))))
            self.optimisers["critic_steps"].zero_grad()
            torch.autograd.backward(nn.functional.mse_loss(self.critic(outlook[some]), goal[some]))
            self.optimisers["critic_steps"].step()

    def _improve(self, batch: _Batch, rng: np.random.Generator) -> float:
        now: Hybrid = self.actor(**batch.inputs)
        likelihood = now.log_likelihood(batch.choice, batch.drawn)
        old, was = now.detach(), likelihood.detach()

        def weighed(likelihood: Tensor) -> Tensor:
            # The paper's networks choose for all devices at once; else each turn counts for itself.
            ratio = torch.exp(likelihood - was) if batch.weight.shape[1] > 1 else _joint(likelihood - was)
            return (ratio * batch.weight).sum(-1).mean()

        def surrogate() -> Tensor:
            made: Hybrid = self.actor(**batch.inputs)
            return weighed(made.log_likelihood(batch.choice, batch.drawn))

        if self.settings.update == "gradient":
            self.optimisers["actor_steps"].zero_grad()
            torch.autograd.backward(-weighed(likelihood))
            self.optimisers["actor_steps"].step()
            with torch.no_grad():
                return float(divergence(old, self.actor(**batch.inputs)).mean())
        # Some of the rounds tell the curvature well enough.
        share = max(1, len(batch.choice) // _CURVATURE)
        some = torch.from_numpy(rng.permutation(len(batch.choice))[:share])
        inputs, choice = {name: each[some] for name, each in batch.inputs.items()}, batch.choice[some]
        old = Hybrid(old.log_chance[some], old.mean[some], old.log_std.clone(), old.used)

        def distance() -> Tensor:
            return divergence(old, self.actor(**inputs), self.settings.divergence, choice).mean()

        settings = self.settings
        return trust_region_step(
            list(self.actor.parameters()),
            weighed(likelihood),
            surrogate,
            distance,
            settings.max_divergence,
            settings.step_scale,
        )


def _joint(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.sum(-1, keepdim=True))


def _batch(plays: list[Play], weight: NDArray[Any], good: NDArray[np.bool_]) -> _Batch:
    def joined(values: list[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.stack(values)[good])

    return _Batch(
        inputs={name: joined([play.inputs[name] for play in plays]) for name in plays[0].inputs},
        choice=joined([play.choice for play in plays]),
        drawn=joined([play.drawn for play in plays]),
        weight=torch.from_numpy(weight[good]).float(),
    )
