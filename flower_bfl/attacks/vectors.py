"""Attacks that put another vector in place of the honest one: noise, flips, and what hides in the spread.

Sizes are relative to what is attacked, so that an attack means the same for every model.
"""

from dataclasses import dataclass

import numpy as np

from flower_bfl.attacks.base import Falsification, Turn, check_size, length
from flower_bfl.errors import ConfigError
from flower_bfl.types import Vector


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Falsification):
    """Adds Gaussian noise v, the paper's attack; ‖v‖ is `size` times the honest vector's norm."""

    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("size", self.size, self)

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """The honest vector and noise."""
        noise = rng.standard_normal(turn.honest.size)
        scale = self.size * (length(turn.honest) or 1.0) / (np.linalg.norm(noise) or 1.0)
        return (turn.honest + scale * noise).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class SignFlip(Falsification):
    """Publishes −`size` times the honest vector."""

    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("size", self.size, self)

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """The honest vector, turned round."""
        return (-self.size * turn.honest.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Scaling(Falsification):
    """Publishes `factor` times the honest vector."""

    factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("factor", self.factor, self)
        if self.factor == 1:
            raise ConfigError("`factor` of Scaling must not be 1, which changes nothing, got 1")

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """The honest vector, longer or shorter."""
        return (self.factor * turn.honest.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class ALittleIsEnough(Falsification):
    """Publishes the mean of all honest vectors less `z` of their standard deviations, element by element.

    Baruch, Baruch, Goldberg, A little is enough: circumventing defenses for distributed learning, 2019.
    """

    z: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("z", self.z, self)
        if self.p2p_step == "model":
            raise ConfigError("`p2p_step` of ALittleIsEnough must be a step, got 'model': there is only one")

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """What is far off, but within the spread."""
        wide = turn.all_honest.astype(np.float64)
        return np.asarray(wide.mean(axis=0) - self.z * wide.std(axis=0), np.float32)


@dataclass(frozen=True, kw_only=True)
class InnerProduct(Falsification):
    """Publishes −`epsilon` times the mean of all honest vectors: inner-product manipulation.

    Xie, Koyejo, Gupta, Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation, 2019.
    """

    epsilon: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("epsilon", self.epsilon, self)

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """What points the other way."""
        mean = turn.all_honest.astype(np.float64).mean(axis=0)
        return np.asarray(-self.epsilon * mean, np.float32)


@dataclass(frozen=True, kw_only=True)
class OldValue(Falsification):
    """Publishes what was honest a round before: an old gradient, an old state, as a leader the old model."""

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """The old value; zeros where there is none."""
        old = turn.before if turn.model is None else turn.model
        return np.zeros_like(turn.honest) if old is None else old.copy()
