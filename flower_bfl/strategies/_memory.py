"""What a Flower strategy keeps in its attributes from one round to the next, as arrays with names."""

import json
from collections.abc import Callable, Mapping
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import encode
from flower_bfl.errors import PayloadError
from flower_bfl.strategies._journal import logger
from flower_bfl.strategies._replies import as_numpy

Arrays = dict[str, NDArray[Any]]


class Memory:
    """The attributes of a strategy, and of those that it wraps, that change over a run.

    Momentum and second moments are such, or a privacy accountant's account. What is of a kind that has no
    arrays is named in a warning, once. Names of arrays say the attribute and what it is made of: "m_t dict
    layer.weight".
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._at_first, self._others = _attributes(strategy)
        self._told: set[str] = set()

    def changed(self) -> Arrays:
        """What is not as it was at first; an attribute as a whole."""
        now, others = _attributes(self._strategy)
        for name, value in others.items():
            if value != self._others.get(name, value) and name not in self._told:
                self._told.add(name)
                logger.log(
                    WARNING, "what `%s.%s` keeps is not on the ledger: a run that goes on begins without it",
                    type(self._strategy).__name__, name,
                )  # fmt: skip
        before = self._at_first
        different = {
            name.split(" ")[0]
            for name in {*now, *before}
            if name not in now or name not in before or not _same(now[name], before[name])
        }
        return {name: array for name, array in now.items() if name.split(" ")[0] in different}

    def restore(self, kept: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `changed` gave; raises PayloadError for anything that the strategy has not."""
        parts: dict[tuple[str, str], Arrays] = {}
        for name, array in kept.items():
            attribute, kind, own = [*name.split(" ", 2), "", ""][:3]
            parts.setdefault((attribute, kind), {})[own] = array
        for (attribute, kind), arrays in parts.items():
            try:
                *outer, last = attribute.split(".")
                owner: Any = self._strategy
                for each in outer:
                    owner = vars(owner)[each]
                if not isinstance(owner, Strategy):
                    raise TypeError(f"no strategy is at {attribute!r:.80}")
                _set(owner, last, kind, arrays)
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                whose = type(self._strategy).__name__
                raise PayloadError(f"a STATE payload must be of {whose}: {error!r}") from error


def _set(owner: Strategy, name: str, kind: str, arrays: Arrays) -> None:
    if kind == "state":
        vars(owner)[name].load_state_dict(json.loads(arrays[""].tobytes()))
        return
    is_code = callable(getattr(type(owner), name, None)) or isinstance(vars(owner).get(name), Strategy)
    if not name.isidentifier() or name.startswith("__") or is_code or callable(vars(owner).get(name)):
        raise ValueError(f"{name!r:.80} is no attribute with a state")
    setattr(owner, name, _MADE_OF[kind](arrays))


def _attributes(strategy: Strategy) -> tuple[Arrays, dict[str, str]]:
    """Attributes as arrays, and those that cannot be, as text; of a strategy and of those inside it."""
    kept: Arrays = {}
    others: dict[str, str] = {}
    waiting, seen = [("", strategy)], {id(strategy)}
    for where, owner in waiting:
        for name, value in vars(owner).items():
            if isinstance(value, Strategy):
                if id(value) not in seen:
                    seen.add(id(value))
                    waiting.append((f"{where}{name}.", value))
            elif (arrays := _arrays(value)) is not None:
                kept |= {f"{where}{name} {of}": array for of, array in arrays.items()}
            elif isinstance(value, dict | list | tuple | set | int | complex):
                others[where + name] = repr(value)
    return kept, others


def _arrays(value: Any) -> Arrays | None:
    """A value as arrays, by what it is made of; None if it is of another kind."""
    if value is None:
        found: Arrays = {"none": np.zeros(0)}
    elif isinstance(value, bool | int | float):
        found = {"number": np.array(value)}
    elif isinstance(value, np.generic):
        found = {"scalar": np.array(value)}
    elif isinstance(value, bytes):
        found = {"bytes": np.frombuffer(value, np.uint8)}
    elif isinstance(value, np.ndarray):
        found = {"array": value}
    elif isinstance(value, ArrayRecord):
        found = {f"record {own}": as_numpy(array) for own, array in value.items()}
    elif isinstance(value, dict) and _all_arrays(value.values()) and all(type(own) is str for own in value):
        found = {f"dict {own}": np.asarray(array) for own, array in value.items()}
    elif isinstance(value, list) and _all_arrays(value):
        found = {f"list {place}": np.asarray(array) for place, array in enumerate(value)}
    elif callable(getattr(value, "load_state_dict", None)):
        found = {"state": np.frombuffer(json.dumps(value.state_dict()).encode(), np.uint8)}
    else:
        return None
    try:
        encode(found)
    except PayloadError:  # such as an int of more than 64 bits
        return None
    return found


def _all_arrays(values: Any) -> bool:
    values = list(values)
    return bool(values) and all(isinstance(value, np.ndarray | np.generic) for value in values)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes() and one.shape == other.shape


_MADE_OF: Mapping[str, Callable[[Arrays], object]] = {
    "none": lambda arrays: None,
    "number": lambda arrays: arrays[""].item(),
    "scalar": lambda arrays: arrays[""][()],
    "bytes": lambda arrays: arrays[""].tobytes(),
    "array": lambda arrays: arrays[""].copy(),  # decoded ones are read-only
    "record": lambda arrays: ArrayRecord({name: Array(array) for name, array in arrays.items()}),
    "dict": lambda arrays: {name: array.copy() for name, array in arrays.items()},
    "list": lambda arrays: [arrays[str(place)].copy() for place in range(len(arrays))],
}
