"""What an attack is: who, in which rounds, and what it puts in place of what should be there."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.types import Terms, Vector

Place = int | Literal["model", "training"]


@dataclass(frozen=True, eq=False)
class Turn:
    """What an attacker knows when its turn comes: everything, as the strongest does."""

    round: int
    honest: Vector  # what it should publish, shape (p,)
    all_honest: Vector  # what everybody should, itself included, shape (n, p)
    before: Vector | None = None  # what it should have published at this place a round before
    model: Vector | None = None  # w_k, where it publishes a model
    terms: Terms = ()  # whose sum the honest value is


@dataclass(frozen=True, kw_only=True)
class Attack:
    """By an edge server or by devices, in some rounds.

    Parameters
    ----------
    server : the edge server that is compromised, or
    devices : the devices that are; what they send is changed where the strategy receives it, as if they had
        known each other's updates. They must not sign with keys of their own.
    rounds : when it acts; None: in every round.
    p2p_step : where an edge server's attack acts: in what it publishes at this step of the consensus (0: its
        partial aggregate), in the global "model", when it is the leader, or in its own "training" on devices'
        data, of which only its word is there.

    Raises ConfigError for an argument that breaks a rule.
    """

    server: int | None = None
    devices: Collection[int] = frozenset()
    rounds: Collection[int] | None = None
    p2p_step: Place = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.devices, Collection) and (self.server is None) == (len(self.devices) == 0):
            raise ConfigError(
                f"`{name}` must name either `server` or `devices`, got {self.server} and {self.devices}"
            )
        if self.server is not None:
            check_whole_number(f"server of {name}", self.server, 0, 2**16 - 1)
        for what, numbers, least in (("devices", self.devices, 0), ("rounds", self.rounds, 1)):
            if numbers is None and what == "rounds":
                continue
            if not isinstance(numbers, Collection) or isinstance(numbers, str | bytes):
                raise ConfigError(
                    f"`{what}` of {name} must be a collection of whole numbers, got {numbers!r}"
                )
            for number in numbers:
                check_whole_number(f"{what} of {name}", number, least, 2**31 - 1)
            object.__setattr__(self, what, frozenset(numbers))
        if self.p2p_step not in ("model", "training"):
            check_whole_number(f"p2p_step of {name}", self.p2p_step, 0, 2**16 - 1)
        if self.server is None and self.p2p_step != 0:
            raise ConfigError(f"`p2p_step` of {name} goes with `server`, got {self.p2p_step!r} of devices")

    def acts(self, server_round: int) -> bool:
        """Whether it acts in a round."""
        return self.rounds is None or server_round in self.rounds

    def __str__(self) -> str:
        if self.server is None:
            return f"{type(self).__name__} by devices {sorted(self.devices)}"
        where = {"model": "the model", "training": "its training"}.get(
            str(self.p2p_step), f"step {self.p2p_step}"
        )
        return f"{type(self).__name__} by edge server {self.server} in {where}"


@dataclass(frozen=True, kw_only=True)
class Falsification(Attack):
    """An attack that publishes another vector than the honest one."""

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """What is published instead, shape (p,)."""
        raise NotImplementedError


def check_size(name: str, value: float, attack: object) -> None:
    """Raise ConfigError unless a size is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"`{name}` of {type(attack).__name__} must be positive and finite, got {value!r}")


def length(vector: Vector) -> float:
    """Euclidean norm."""
    wide = vector.astype(np.float64)
    return float(np.sqrt(wide @ wide))
