"""Controllers on the same states: what decisions cost, how near to the best that is, how long they take.

Two marks are always there: all-local, where nobody offloads, and near-optimal, which knows all there is to
know. Others may decide on what they believe; what that costs is told by what is true.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np
from scipy.stats import t as student

from flower_bfl.config import check_whole_number
from flower_bfl.controller.base import Controller
from flower_bfl.controller.heuristics import AllLocalController
from flower_bfl.controller.solver import NearOptimalController
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    price,
    project,
    violations,
)
from flower_bfl.network.settings import Array
from flower_bfl.network.state import check_fit

ALL_LOCAL, NEAR_OPTIMAL = "all-local", "near-optimal"

Progress = Callable[[str, int, int], None]
"""Hears which controller decides, for how many states it has, and for how many it will."""

_CONFIDENCE = 0.95
_SINGLES = 5  # states that are also decided alone
_AT_ONCE_S = 2.0  # for longer nobody looks at a progress bar that stands still
_NO_TIME = 1e-9
_NO_GAIN = 1e-9  # of all-local's total
_WORST_DB = 100.0


@dataclass(frozen=True)
class Estimate:
    """A mean or ratio of means, and the half of its 95 % interval; NaN where there is nothing to tell."""

    value: float
    half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half


def mean_of(values: Array) -> Estimate:
    """Mean of independent values, (states,), with Student's interval."""
    return ratio_of_means(values, np.ones_like(values))


def ratio_of_means(above: Array, below: Array) -> Estimate:
    """The ratio r of the means of independent pairs, both (states,), with an interval by the delta method.

    r is off by about mean(above - r·below) / mean(below), and Student's interval of that is taken. Pairs,
    because what is hard for one controller is hard for the other. In simulations this covered as often as BCa
    of scipy.stats.bootstrap, or more often; it needs no draws, and constants are no special case. Where few
    states cost many times what others do, both are too narrow: a lognormal excess with σ = 1 is covered by
    90 % of such intervals over 64 states.
    """
    scale = float(np.mean(below))
    value = float(np.mean(above)) / scale
    residual = (above - value * below) / scale
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(above) - 1))
    return Estimate(value, quantile * float(np.std(residual, ddof=1)) / len(above) ** 0.5)


@dataclass(frozen=True)
class Outcome:
    """What one controller's decisions cost, state by state, and how long they took."""

    total_s: Array  # the objective (28a), (states,)
    learning_s: Array  # (24), (states,)
    batch_s: float  # to decide, a state, many at a time
    single_s: float  # to decide one state alone, median


@dataclass(frozen=True)
class Comparison:
    """The outcomes of controllers on the same states, by name."""

    network: NetworkConfig
    outcomes: Mapping[str, Outcome]

    @property
    def states(self) -> int:
        """How many."""
        return len(self.outcomes[NEAR_OPTIMAL].total_s)

    def total_s(self, name: str) -> Estimate:
        """The objective (28a)."""
        return mean_of(self.outcomes[name].total_s)

    def learning_s(self, name: str) -> Estimate:
        """The part of it that offloading can change."""
        return mean_of(self.outcomes[name].learning_s)

    def excess(self, name: str) -> Estimate:
        """By how much learning takes longer than near-optimal's, as share of that: a ratio of means."""
        ratio = ratio_of_means(self.outcomes[name].learning_s, self.outcomes[NEAR_OPTIMAL].learning_s)
        return replace(ratio, value=ratio.value - 1)

    def gap_closed(self, name: str) -> Estimate:
        """(T_local - T) / (T_local - T_near-optimal) of the totals T, a ratio of means.

        0 is all-local, 1 near-optimal, less than 0 worse than all-local; NaN where near-optimal gains nothing
        over all-local, or too little for so few states to tell.
        """
        local_s = self.outcomes[ALL_LOCAL].total_s
        gained_s = local_s - self.outcomes[NEAR_OPTIMAL].total_s
        if not mean_of(gained_s).low > _NO_GAIN * float(local_s.mean()):
            return Estimate(np.nan, np.nan)
        return ratio_of_means(local_s - self.outcomes[name].total_s, gained_s)


def compare(
    network: NetworkConfig,
    controllers: Mapping[str, Controller],
    states: NetworkState,
    beliefs: Mapping[str, NetworkState] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Let every controller decide on every state, (states,), price that, and time it.

    All-local and near-optimal are added, unless `controllers` has what goes by these names.

    A controller named in `beliefs` decides on the states there. Then `project` with the true ones keeps the
    limit of energy (28h): a device that its true channel would cost more than it has sends with less power,
    or trains itself; all else stays as decided. For that it needs to know its own link and limits only, as
    it does once it begins to send. Rates are those of the true channels, too.

    Raises:
        ConfigError: states do not fit, beliefs name nobody or a mark, or a decision is not feasible.
    """
    check_fit(network, states)
    if len(states.batch) != 1 or states.batch[0] < 2:
        raise ConfigError(f"`states` must be a batch of shape (states,), at least two, got {states.batch}")
    entries: dict[str, Controller] = {ALL_LOCAL: AllLocalController(network), **controllers}
    entries.setdefault(NEAR_OPTIMAL, NearOptimalController(network))
    beliefs = beliefs or {}
    for name, believed in beliefs.items():
        _check_belief(name, believed, entries, states)
    return Comparison(
        network,
        {
            name: _outcome(network, name, controller, states, beliefs.get(name, states), progress)
            for name, controller in entries.items()
        },
    )


def _check_belief(name: str, believed: NetworkState, entries: Collection[str], states: NetworkState) -> None:
    allowed = [each for each in entries if each not in (ALL_LOCAL, NEAR_OPTIMAL)]
    if name not in allowed:
        raise ConfigError(f"`beliefs` must be of controllers other than the marks, {allowed}, got {name!r}")
    if believed.gain.shape != states.gain.shape:
        raise ConfigError(
            f"`beliefs` must have gains of shape {states.gain.shape} like `states`, "
            f"got {believed.gain.shape} for {name!r}"
        )


def _outcome(
    network: NetworkConfig,
    name: str,
    controller: Controller,
    states: NetworkState,
    seen: NetworkState,
    progress: Progress | None,
) -> Outcome:
    count = states.batch[0]
    alone_s = [_timed(controller, seen[row])[1] for row in range(min(_SINGLES, count))]
    single_s = median(alone_s)
    at_once = max(1, int(_AT_ONCE_S / max(single_s, _NO_TIME)))
    spent_s, total_s, learning_s = 0.0, np.empty(count), np.empty(count)
    for first in range(0, count, at_once):
        some = slice(first, first + at_once)
        decision, took_s = _timed(controller, seen[some])
        spent_s += took_s
        broken = violations(network, seen[some], decision)
        if broken:
            raise ConfigError(f"`controllers` must decide feasibly, got from {name!r}: {broken[0]}")
        if seen is not states:
            decision = project(network, states[some], decision)
        priced = price(network, states[some], decision)
        total_s[some], learning_s[some] = priced.total_s, priced.learning_s
        if progress is not None:
            progress(name, min(first + at_once, count), count)
    return Outcome(total_s, learning_s, spent_s / count, single_s)


def _timed(controller: Controller, state: NetworkState) -> tuple[Decision, float]:
    began_s = perf_counter()
    decision = controller.decide(state)
    return decision, perf_counter() - began_s


# --- what is believed ---------------------------------------------------------------------------------------


def stale_states(
    network: NetworkConfig, count: int, ages: Collection[int], rng: np.random.Generator
) -> dict[int, NetworkState]:
    """`count` states by the age of their gains in rounds; at age 0, which is always there, they are true.

    Data, work, CPU and energy are those of the current round at any age. With a battery, nothing was spent
    in the rounds before.
    """
    check_whole_number("count", count, 1, 2**31 - 1)
    for age in ages:
        check_whole_number("ages", age, 0, 2**31 - 1)
    wanted = {0, *ages}
    process = NetworkProcess(network, rng, (count,))
    gains = {max(wanted): process.state.gain}
    for age in reversed(range(max(wanted))):
        gain = process.advance().gain
        if age in wanted:
            gains[age] = gain
    return {age: replace(process.state, gain=gains[age]) for age in sorted(wanted)}


def misestimated(state: NetworkState, error_db: float, rng: np.random.Generator) -> NetworkState:
    """The state with a normal error on each gain in decibels, mean 0, by device, edge server and sub-channel.

    error_db: its standard deviation, from 0 to 100.
    """
    if not 0 <= error_db <= _WORST_DB:
        raise ConfigError(f"`error_db` must be from 0 to {_WORST_DB:g} dB, got {error_db}")
    error = 10 ** (error_db / 10 * rng.standard_normal(state.gain.shape))
    limits = np.finfo(state.gain.dtype)
    gain = np.clip(state.gain * error, limits.tiny, limits.max)
    return replace(state, gain=gain.astype(state.gain.dtype))
