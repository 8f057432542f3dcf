"""Attacks on the protocol itself: saying nothing, saying different things, accusing the honest."""

from dataclasses import dataclass

import numpy as np

from flower_bfl.attacks.base import Attack, Falsification, Turn
from flower_bfl.attacks.vectors import GaussianNoise
from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.types import Vector


@dataclass(frozen=True, kw_only=True)
class ServersOnly(Attack):
    """An attack that devices cannot make."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is None:
            raise ConfigError(f"`{type(self).__name__}` must be of a `server`, got devices {self.devices}")
        if self.p2p_step == "training":
            raise ConfigError(f"`p2p_step` of {type(self).__name__} must be no 'training', got it")


@dataclass(frozen=True, kw_only=True)
class Silence(ServersOnly):
    """Publishes nothing from a step on; as a leader, no "model"."""


@dataclass(frozen=True, kw_only=True)
class Equivocation(ServersOnly, Falsification):
    """Records the honest state and sends another one, noisy by `size`, to every second neighbour."""

    size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p2p_step == "model":
            raise ConfigError("`p2p_step` of Equivocation must be a step, got 'model': everybody reads that")

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """What the others get."""
        return GaussianNoise(server=self.server, size=self.size).falsified(turn, rng)


@dataclass(frozen=True, kw_only=True)
class FalseAccusation(ServersOnly):
    """Votes against an honest edge server, with evidence that does not hold."""

    accused: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_number("accused of FalseAccusation", self.accused, 0, 2**16 - 1)
        if self.accused == self.server:
            raise ConfigError(f"`accused` of FalseAccusation must be another edge server, got {self.accused}")
        if self.p2p_step == "model":
            raise ConfigError("`p2p_step` of FalseAccusation must be a step, got 'model'")
