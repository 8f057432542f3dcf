"""Payloads that are right, if not to the bit: in a run whose edge servers may add up in any order."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flower_bfl.chain_adapter.base import decode
from flower_bfl.chain_adapter.records import NamedArrays
from flower_bfl.defences import Replay
from flower_bfl.errors import PayloadError
from flower_bfl.strategies._layout import Layout
from flower_bfl.types import Terms


@dataclass(frozen=True, eq=False)
class Rounding:
    """What the run's arithmetic allows beside the exact payload."""

    replay: Replay
    layout: Layout

    def accepted(self, found: bytes, expected: bytes, terms: Callable[[], Terms]) -> NamedArrays | None:
        """The arrays of a payload that is no more than rounding away from the expected one, else None.

        `terms` gives what its floating-point arrays are the sum of; all else must be the same.
        """
        if self.replay.arithmetic == "exact":
            return None
        wanted, says = decode(expected)
        try:
            arrays, said = decode(found)
        except PayloadError:
            return None
        if said != says or _kinds(arrays) != _kinds(wanted):
            return None
        copied = [name for name in self.layout.copied if name in wanted]
        if any(not np.array_equal(arrays[name], wanted[name]) for name in copied):
            return None
        one, other = (self.layout.vector(each)[0 : self.layout.size] for each in (arrays, wanted))
        return arrays if self.replay.accepts(one, other, terms()) else None


def _kinds(arrays: NamedArrays) -> list[tuple[str, np.dtype[np.generic], tuple[int, ...]]]:
    """Names, types and shapes, in order."""
    return [(name, array.dtype, array.shape) for name, array in arrays.items()]
