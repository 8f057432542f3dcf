"""How a model's named arrays lie in one flat float32 vector."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ReplyError
from flower_bfl.types import Vector

Arrays = Mapping[str, NDArray[np.generic]]

_FLOATING = "f"  # numpy's letter for floating-point dtypes


class FlatView:
    """Arrays laid end to end, shape (p,), copied only where they are read."""

    def __init__(self, parts: Sequence[Vector]) -> None:
        self._parts = parts
        self._ends = list(accumulate(part.size for part in parts))

    def __getitem__(self, part: slice, /) -> Vector:
        first = bisect_right(self._ends, part.start)
        pieces: list[Vector] = []
        for piece, end in zip(self._parts[first:], self._ends[first:], strict=True):
            start = end - piece.size
            if start >= part.stop:
                break
            pieces.append(piece[max(part.start - start, 0) : part.stop - start])
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, np.float32)])


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a model's arrays, in order.

    Floating-point arrays lie one after the other in the vector; the others (a batch norm's counter) cannot be
    moved by gradients and stay outside it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[np.generic]]

    @classmethod
    def of(cls, arrays: Arrays) -> "Layout":
        """Layout of the given arrays."""
        return cls({k: v.shape for k, v in arrays.items()}, {k: v.dtype for k, v in arrays.items()})

    @property
    def trained(self) -> list[str]:
        """Names of the floating-point arrays."""
        return [name for name, dtype in self.dtypes.items() if dtype.kind == _FLOATING]

    @property
    def copied(self) -> list[str]:
        """Names of the other arrays."""
        return [name for name, dtype in self.dtypes.items() if dtype.kind != _FLOATING]

    @property
    def rounded(self) -> list[str]:
        """Names of the arrays whose dtype is finer than the vector's."""
        return [name for name in self.trained if self.dtypes[name].itemsize > 4]

    @property
    def size(self) -> int:
        """Number of parameters p in the vector."""
        return sum(int(np.prod(self.shapes[name])) for name in self.trained)

    @np.errstate(over="ignore")  # what overflows float32 is not finite and seen later
    def vector(self, arrays: Arrays) -> "FlatView":
        """Floating-point arrays read as one float32 vector, without copying them."""
        return FlatView([np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name in self.trained])

    def arrays(self, vector: Vector) -> dict[str, NDArray[np.generic]]:
        """Floating-point arrays as float32 views of a vector."""
        named: dict[str, NDArray[np.generic]] = {}
        start = 0
        for name in self.trained:
            stop = start + int(np.prod(self.shapes[name]))
            named[name] = vector[start:stop].reshape(self.shapes[name])
            start = stop
        return named

    @np.errstate(over="ignore")
    def model(self, vector: Vector, copied: Arrays) -> dict[str, NDArray[np.generic]]:
        """All arrays in order and in their own dtypes: the vector's, and `copied` for the rest."""
        own = self.arrays(vector)
        return {
            name: (own[name] if name in own else copied[name]).astype(dtype, copy=False)
            for name, dtype in self.dtypes.items()
        }

    def check(self, arrays: Arrays) -> None:
        """Raise ReplyError unless `arrays` has this layout."""
        if arrays.keys() != self.shapes.keys():
            missing, extra = self.shapes.keys() - arrays.keys(), arrays.keys() - self.shapes.keys()
            raise ReplyError(
                f"arrays must be the model's, got {sorted(missing)} missing and {sorted(extra)} too many"
            )
        for name, array in arrays.items():
            if array.shape != self.shapes[name]:
                raise ReplyError(f"array {name!r} must have shape {self.shapes[name]}, got {array.shape}")
            dtype = self.dtypes[name]
            if array.dtype != dtype and not array.dtype.kind == dtype.kind == _FLOATING:
                raise ReplyError(f"array {name!r} must have dtype {dtype}, got {array.dtype}")
