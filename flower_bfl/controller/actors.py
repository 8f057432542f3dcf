"""The networks that learn, actor and critic, and the distribution of what an actor does."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from flower_bfl.controller.encoding import PARAMETERS, observation_shape
from flower_bfl.controller.placement import FEATURES
from flower_bfl.controller.policy import NEVER
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig

Rule = Literal["exact", "paper"]

_USED = ((0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0))  # parameters of training at home, and of offloading
_LOG_2PI = math.log(2 * math.pi)


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
