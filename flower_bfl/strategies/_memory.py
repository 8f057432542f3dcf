"""What a Flower strategy keeps in its attributes from one round to the next, as arrays with names."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from flower_bfl.errors import PayloadError
from flower_bfl.strategies._replies import as_numpy

Arrays = dict[str, NDArray[Any]]

_NUMBERS = (bool, int, float)


def memory_of(strategy: Strategy) -> Arrays:
    """Numbers, bytes and arrays among a strategy's attributes, and those of strategies that it wraps.

    Momentum and second moments are such; what is of another kind is not kept. Names say the attribute, and
    what it is made of: "m_t dict layer.weight".
    """
    kept: Arrays = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            kept |= {f"{name}.{own}": array for own, array in memory_of(value).items()}
        elif isinstance(value, _NUMBERS):
            kept[f"{name} number"] = np.array(value)
        elif isinstance(value, bytes):
            kept[f"{name} bytes"] = np.frombuffer(value, np.uint8)
        elif isinstance(value, np.ndarray):
            kept[f"{name} array"] = value
        elif isinstance(value, ArrayRecord):
            kept |= {f"{name} record {own}": as_numpy(array) for own, array in value.items()}
        elif isinstance(value, dict) and _all_arrays(value.values()):
            kept |= {f"{name} dict {own}": np.asarray(array) for own, array in value.items()}
        elif isinstance(value, list) and _all_arrays(value):
            kept |= {f"{name} list {place}": np.asarray(array) for place, array in enumerate(value)}
    return kept


def changed(now: Arrays, before: Arrays) -> Arrays:
    """What of `memory_of` is not as it was before; an attribute as a whole."""
    different = {
        name.split(" ")[0]
        for name in {*now, *before}
        if name not in now or name not in before or not np.array_equal(now[name], before[name])
    }
    return {name: array for name, array in now.items() if name.split(" ")[0] in different}


def restore(strategy: Strategy, kept: Mapping[str, NDArray[Any]]) -> None:
    """Set the attributes that `memory_of` named; raises PayloadError for any that the strategy has not."""
    parts: dict[tuple[str, str], Arrays] = {}
    for name, array in kept.items():
        attribute, kind, own = [*name.split(" ", 2), "", ""][:3]
        parts.setdefault((attribute, kind), {})[own] = array
    for (attribute, kind), arrays in parts.items():
        *outer, last = attribute.split(".")
        owner: Any = strategy
        try:
            for each in outer:
                owner = vars(owner)[each]
            vars(owner)[last]  # no other than those that it made itself
            setattr(owner, last, _MADE_OF[kind](arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise PayloadError(f"a STATE payload must be of {type(strategy).__name__}: {error!r}") from error


def _all_arrays(values: Any) -> bool:
    values = list(values)
    return bool(values) and all(isinstance(value, np.ndarray | np.generic) for value in values)


_MADE_OF: Mapping[str, Callable[[Arrays], object]] = {
    "number": lambda arrays: arrays[""].item(),
    "bytes": lambda arrays: arrays[""].tobytes(),
    "array": lambda arrays: arrays[""],
    "record": lambda arrays: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
    "dict": lambda arrays: dict(arrays),
    "list": lambda arrays: [arrays[str(place)] for place in range(len(arrays))],
}
