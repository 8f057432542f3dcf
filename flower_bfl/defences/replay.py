"""Exact detection: what an edge server publishes must follow from what is recorded."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from flower_bfl.errors import ConfigError
from flower_bfl.types import Floats, Terms, Vector

Arithmetic = Literal["exact", "float32"]

_UNIT = 2.0**-24  # u, float32's unit roundoff
_TINY = 2.0**-149  # float32's smallest positive number
_WEIGHT_OPERATIONS = 8  # more than any weight of (8), (9) and (12) takes


@dataclass(frozen=True)
class Replay:
    """Edge servers recompute each other's sums (8), states (9), models (10)-(12), and vote out who is wrong.

    There is no threshold to tune. With the arithmetic "exact", sums are those of docs/ledger.md, in float64
    and in order, and a single bit tells. With "float32", edge servers may add up in float32 and in any order:
    who is further off than any such sum can be is wrong.

    Raises ConfigError for another arithmetic.
    """

    arithmetic: Arithmetic = "exact"

    def __post_init__(self) -> None:
        if self.arithmetic not in get_args(Arithmetic):
            raise ConfigError(
                f"`arithmetic` of Replay must be one of {get_args(Arithmetic)}, got {self.arithmetic!r}"
            )

    def accepts(self, found: Vector, expected: Vector, terms: Terms) -> bool:
        """Whether a vector, (p,), is what these terms sum up to; `expected` is their exact sum's float32."""
        if same_bits(found, expected):
            return True
        if self.arithmetic == "exact" or found.shape != expected.shape or not terms:
            return False
        off = np.abs(found.astype(np.float64) - expected)
        return bool((off <= rounding_bound(terms, expected.size)).all())


def same_bits(found: Vector, expected: Vector) -> bool:
    """Whether two vectors are the same to the last bit, the sign of a zero included."""
    one, other = (np.ascontiguousarray(each, dtype=np.float32).view(np.uint32) for each in (found, expected))
    return np.array_equal(one, other)


@np.errstate(over="ignore", invalid="ignore")
def rounding_bound(terms: Terms, size: int) -> Floats:
    """How far a float32 sum of weighted vectors, in any order, can be from the exact one's float32, (p,).

    γ_j·Σ|w·v|, where γ_j = j·u / (1 − j·u) and j counts the operations that any term passes: Higham, Accuracy
    and stability of numerical algorithms, section 3.1.
    """
    operations = (len(terms) + _WEIGHT_OPERATIONS) * _UNIT
    total = np.zeros(size)
    for weight, row in terms:
        total += abs(weight) * np.abs(row[0:size].astype(np.float64))
    return np.asarray((operations / (1 - operations) + _UNIT) * total + (len(terms) + 1) * _TINY)
