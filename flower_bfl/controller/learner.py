"""The parameterised A2C of section IV, in batches: policy π_d(a|s)·π_c(c|s,a), a trust region, a critic.

An update plays rounds of fresh networks, estimates advantages with the critic (29) by GAE (Schulman et al.
2016), and changes the actor by a natural-gradient step within a trust region (35)-(38) (TRPO, Schulman et
al. 2015), or by a plain gradient step for the baselines. Everything that an update draws follows from the
seed and its number: whoever stops and goes on later gets the same policy, bit for bit on the same machine.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.controller.encoding import PARAMETERS, observation_shape
from flower_bfl.controller.env import BFLVectorEnv
from flower_bfl.controller.placement import FEATURES, OUTLOOK
from flower_bfl.controller.policy import NEVER, Architecture, Play, Policy, make_policy
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import NetworkConfig

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{__name__} needs the package {missing.name}: pip install 'flower-bfl[train]'", name=missing.name
    ) from missing

Rule = Literal["exact", "paper"]
Update = Literal["trpo", "gradient"]

_USED = ((0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0))  # parameters of training at home, and of offloading
_LOG_2PI = math.log(2 * math.pi)
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


# --- the actor's distribution -------------------------------------------------------------------------------


class Hybrid(NamedTuple):
    """π(a, c | s) of each device: a choice among C, then numbers that are normal given the choice."""

    log_chance: Tensor  # ln π_d(a|s), (..., N, C); very negative for what is not allowed
    mean: Tensor  # of π_c(c|s,a), (..., N, C or 1, 4)
    log_std: Tensor  # (4,)
    used: Tensor  # which numbers a choice takes, 0 or 1, (C, 4)

    def log_likelihood(self, choice: Tensor, numbers: Tensor) -> Tensor:
        """Logarithm of π(a, c | s), (..., N); choice: (..., N), numbers: (..., N, 4)."""
        chance = self.log_chance.gather(-1, choice[..., None])[..., 0]
        mean = self.mean
        if mean.shape[-2] > 1:
            index = choice[..., None, None].expand(*choice.shape, 1, mean.shape[-1])
            mean = mean.gather(-2, index)
        error = (numbers - mean[..., 0, :]) * torch.exp(-self.log_std)
        density = -0.5 * error**2 - self.log_std - 0.5 * _LOG_2PI
        return chance + (self.used[choice] * density).sum(-1)

    def detach(self) -> "Hybrid":
        """The same without gradients."""
        return Hybrid(*(each.detach() for each in self))


def divergence(old: Hybrid, new: Hybrid, rule: Rule = "exact", choice: Tensor | None = None) -> Tensor:
    """KL(old ‖ new) of all devices together, (...); exact given what devices before did.

    "exact" weighs what the parameters of a choice differ with the choice's chance (36). "paper" weighs it
    with -ln π(a) of the choice that was made (37), for which `choice` (..., N) is needed.
    """
    chance = old.log_chance.exp()
    of_choice = (chance * (old.log_chance - new.log_chance)).sum(-1)
    ratio = torch.exp(2 * (old.log_std - new.log_std))
    distance = (old.mean - new.mean) ** 2 * torch.exp(-2 * new.log_std)
    each = 0.5 * (ratio + distance - 1) - (old.log_std - new.log_std)
    of_numbers = (new.used * each).sum(-1)  # (..., N, C)
    if rule == "exact":
        return (of_choice + (chance * of_numbers).sum(-1)).sum(-1)
    if choice is None:
        raise ConfigError("`choice` must be given for the paper's rule (37), got None")
    made = choice[..., None]
    weight = -new.log_chance.gather(-1, made)[..., 0]
    return (of_choice + weight * of_numbers.gather(-1, made)[..., 0]).sum(-1)


# --- networks: the weights of `policy`, under the same names ------------------------------------------------


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Hidden layers with tanh, and a linear one."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))


class SharedActor(nn.Module):
    """Of `SharedPolicy`. It begins with a bias to training at home, most power, CPU and hash rate.

    From a uniform start utilities are near -1 and all alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = perceptron(len(FEATURES), (32, 32), 3)
        self.own = nn.Parameter(torch.tensor([1.0, 1.0]))
        self.log_std = nn.Parameter(torch.tensor([-1.6, -1.6, -2.5, -2.5]))
        _begin_with(self.pair, [-2.0, 0.9, 0.5])

    def forward(self, features: Tensor, allowed: Tensor) -> Hybrid:
        """features: (B, N, K, F), allowed: (B, N, K)."""
        made = self.pair(features)
        score = torch.where(allowed, made[..., 0], torch.tensor(NEVER))
        score = nn.functional.pad(score, (1, 0))
        home = nn.functional.pad(self.own, (2, 0)).expand(*score.shape[:2], 1, -1)
        hash_rate = self.own[1].expand(*made.shape[:3], 1)
        offload = torch.cat([made[..., 1:], torch.zeros_like(hash_rate), hash_rate], dim=-1)
        mean = torch.cat([home, offload], dim=-2)
        return Hybrid(torch.log_softmax(score, -1), mean, self.log_std, _used(score.shape[-1]))


class PaperActor(nn.Module):
    """Of `PaperPolicy`: {64, 32} with softmax for choices, {128, 64} with tanh for parameters."""

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__()
        rows, columns = observation_shape(network)
        self._shape = (rows, 1 + network.slots)
        self.choose = perceptron(rows * columns, (64, 32), rows * (1 + network.slots))
        self.allocate = perceptron(rows * columns, (128, 64), rows * len(PARAMETERS))
        self.log_std = nn.Parameter(torch.full((len(PARAMETERS),), -1.6))
        home = math.log(9 * network.slots)  # nine of ten
        _begin_with(self.choose, [home, *[0.0] * network.slots] * rows)
        _begin_with(self.allocate, [1.0, 0.0, 1.5, 1.5] * rows)

    def forward(self, seen: Tensor, allowed: Tensor) -> Hybrid:
        """seen: (B, N·columns), allowed: (B, N, C)."""
        score = self.choose(seen).reshape(len(seen), *self._shape)
        score = torch.where(allowed, score, torch.tensor(NEVER))
        mean = (1 + torch.tanh(self.allocate(seen))) / 2
        mean = mean.reshape(len(seen), self._shape[0], 1, len(PARAMETERS))
        return Hybrid(torch.log_softmax(score, -1), mean, self.log_std, _used(self._shape[1]))


def _begin_with(layers: nn.Sequential, bias: list[float]) -> None:
    last = cast(nn.Linear, layers[-1])
    with torch.no_grad():
        last.weight *= 0.1
        last.bias.copy_(torch.tensor(bias))


def _used(choices: int) -> Tensor:
    return torch.tensor([_USED[0], *[_USED[1]] * (choices - 1)])


class Critic(nn.Module):
    """V(s) at every turn; what it is given is brought to mean 0 and deviation 1 of the first update."""

    shift: Tensor
    scale: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int], *, corrects_first: bool) -> None:
        super().__init__()
        self.layers = perceptron(inputs, hidden, 1)
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self._corrects_first = corrects_first  # the first input is an estimate already

    def forward(self, outlook: Tensor) -> Tensor:
        """outlook: (..., inputs); returns (...)."""
        value: Tensor = self.layers((outlook - self.shift) / self.scale)[..., 0]
        return value + outlook[..., 0] if self._corrects_first else value

    def fit_scale(self, outlook: Tensor) -> None:
        """Take mean and deviation from these."""
        flat = outlook.reshape(-1, outlook.shape[-1])
        self.shift.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0) + 0.1)


# --- trust region -------------------------------------------------------------------------------------------


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """The x with H·x = target, for H positive definite and given by its product with a vector."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    for _ in range(iterations):
        if size < tolerance:
            break
        image = product(direction)
        length = size / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return x


def fisher_product(
    distance: Tensor, parameters: Sequence[Tensor], damping: float = 0.01
) -> Callable[[Tensor], Tensor]:
    """The map v ↦ (H + damping)·v; H is the Hessian of `distance`, a KL divergence from where it is 0."""
    slope = _flat(torch.autograd.grad(distance, parameters, create_graph=True, allow_unused=True), parameters)

    def product(vector: Tensor) -> Tensor:
        bent = torch.autograd.grad(slope @ vector, parameters, retain_graph=True, allow_unused=True)
        return _flat(bent, parameters) + damping * vector

    return product


def trust_region_step(
    parameters: Sequence[Tensor],
    before: Tensor,
    surrogate: Callable[[], Tensor],
    distance: Callable[[], Tensor],
    max_distance: float,
    step_scale: float = 1.0,
) -> float:
    """Change parameters to raise the surrogate (35), by (38) and a backtracking line search; returns the KL.

    before: what to raise, as it is now, with its graph; surrogate: the same for other parameters; distance:
    the mean KL divergence from the policy as it is now, which must be 0 before the step. A step is taken if
    the surrogate rises by at least a tenth of what its gradient promises (Armijo's condition) and the
    divergence is not above 1.5 times its limit; else seven tenths of it are tried, up to twenty times. If
    none will do, parameters stay as they are: 0.
    """
    gradient = _flat(torch.autograd.grad(before, parameters, allow_unused=True), parameters)
    product = fisher_product(distance(), parameters)
    direction = conjugate_gradient(product, gradient)
    curvature = direction @ gradient  # = direction·H·direction: what is left is orthogonal to the direction
    start = nn.utils.parameters_to_vector(parameters).detach().clone()
    step = direction * torch.sqrt(2 * max_distance / curvature)
    promised, share = float(gradient @ step), step_scale
    if not math.isfinite(promised) or promised <= 0:
        return 0.0
    with torch.no_grad():
        for _ in range(20):
            nn.utils.vector_to_parameters(start + share * step, parameters)
            gained, apart = float(surrogate() - before), float(distance())
            if gained >= 0.1 * share * promised and apart <= 1.5 * max_distance:
                return apart
            share *= 0.7
        nn.utils.vector_to_parameters(start, parameters)
    return 0.0


def _flat(gradients: Iterable[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


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
