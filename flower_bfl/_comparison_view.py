"""Controllers compared on a terminal: a table that fits 80 columns, and JSON for programs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flower_bfl._views import CONTROLLERS, count, finite, size_of
from flower_bfl.controller import A2CController, Controller
from flower_bfl.controller.comparison import (
    ALL_LOCAL,
    NEAR_OPTIMAL,
    Comparison,
    Estimate,
    compare,
    misestimated,
    stale_states,
)
from flower_bfl.controller.comparison import Progress as Hearer
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig

_LEARNED = ("a2c-sorted", "a2c")
_BLIND = (ALL_LOCAL, "random")  # to channels: what they believe makes no difference
_BELIEVES = " *"  # after the name of who decides on what it believes


@dataclass(frozen=True)
class Trial:
    """A comparison, on which states it was made, and what controllers believed of them."""

    comparison: Comparison
    seed: int
    age: int = 0  # of the gains that are believed, in rounds
    error_db: float = 0.0  # of the gains that are believed, standard deviation

    @property
    def title(self) -> str:
        """Which networks and states these are, in a line."""
        network = self.comparison.network
        return f"{size_of(network)}, {self.comparison.states} states, seed {self.seed}"

    @property
    def belief(self) -> str:
        """What is wrong with the gains that are believed; empty if nothing is."""
        stale = f"{count(self.age, 'round')} old" if self.age else ""
        wrong = f"off by {self.error_db:g} dB" if self.error_db else ""
        return ", ".join(part for part in (stale, wrong) if part)


def believes(name: str) -> bool:
    """Whether a row is that of a controller that decides on what it believes."""
    return name.endswith(_BELIEVES)


def controller_of(name: str) -> str:
    """The controller of a row."""
    return name.removesuffix(_BELIEVES)


def parse_names(text: str | None, network: NetworkConfig) -> list[str]:
    """The controllers in a list with commas, or all that know the network; ConfigError for any other.

    Who does not know it is named on standard error.
    """
    if text is None:
        try:
            A2CController.pretrained(network)
        except ConfigError as unknown:
            Console(stderr=True).print(f"Without {', '.join(_LEARNED)}: {unknown}", soft_wrap=True)
            return [name for name in CONTROLLERS if name not in _LEARNED]
        return list(CONTROLLERS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CONTROLLERS:
            raise ConfigError(f"`--only` must be names of {', '.join(CONTROLLERS)}, got {name!r}")
    return names


def load_policies(folders: Sequence[Path], network: NetworkConfig) -> dict[str, Controller]:
    """Trained policies by the ends of their paths, each with assignment and with sorted decoding."""
    found: dict[str, Controller] = {}
    for folder in folders:
        name = "/".join(folder.resolve().parts[-2:])
        found[f"{name}, sorted"] = A2CController.load(folder, network, "sorted")
        found[name] = A2CController.load(folder, network)
    return found


def train_baselines(
    network: NetworkConfig, steps: int, progress: Hearer | None = None
) -> dict[str, Controller]:
    """The paper's baselines, trained in this network for so many rounds each, by name; with seed 0."""
    from flower_bfl.controller.baselines import BASELINES, train_baseline

    def hear(name: str, done: int, utility: float) -> None:
        if progress is not None:
            progress(f"training {name}", min(done, steps), steps)

    return {
        f"{name} (baseline)": train_baseline(name, network, steps, 0, partial(hear, name)).controller
        for name in BASELINES
    }


def run_trial(
    network: NetworkConfig,
    names: Sequence[str],
    states: int,
    seed: int,
    *,
    age: int = 0,
    error_db: float = 0.0,
    others: Mapping[str, Controller] | None = None,
    progress: Hearer | None = None,
) -> Trial:
    """Draw states, and compare controllers and marks on them; with age or error, who looks at gains twice.

    names: of controllers that come with the package; others: more of them, by the names to show.
    Without age the states are `draw_states(network, states, np.random.default_rng(seed))`.
    """
    rng = np.random.default_rng(seed)
    chance, errors = rng.spawn(2)
    shown = dict.fromkeys([ALL_LOCAL, *names, NEAR_OPTIMAL])
    made = {name: CONTROLLERS[name](network, chance) for name in shown}
    last = made.pop(NEAR_OPTIMAL)
    controllers = {**made, **(others or {}), NEAR_OPTIMAL: last}
    by_age = stale_states(network, states, (age,), rng)
    beliefs = {}
    if age or error_db:
        believed = misestimated(by_age[age], error_db, errors)
        looking = [*names, *(others or {})]
        beliefs = {name + _BELIEVES: believed for name in looking if name not in _BLIND}
        controllers |= {name: controllers[controller_of(name)] for name in beliefs}
    return Trial(compare(network, controllers, by_age[0], beliefs, progress), seed, age, error_db)


@contextmanager
def comparison_progress() -> Iterator[Hearer]:
    """Bars on standard error, for `run_trial`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def hear(name: str, done: int, states: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=states)
            bar.update(tasks[name], completed=done)

        yield hear


def print_trial(trial: Trial, *, as_json: bool) -> None:
    """A row for each controller, or all there is as one JSON object."""
    if as_json:
        Console().print_json(data=finite(_as_json(trial)), allow_nan=False)
        return
    console = Console(highlight=False)
    console.print(f"[bold]{trial.title}[/bold]", soft_wrap=True)
    console.print()
    console.print(_table(trial.comparison))
    console.print()
    notes = [
        "Means ± half of the 95 % interval over states, and ms a state to decide.",
        "excess      learning, above near-optimal's",
        "gap closed  of the way from all-local's total to near-optimal's",
    ]
    if any(map(believes, trial.comparison.outcomes)):
        notes.append(f"*           decides on gains that are {trial.belief}")
    for note in notes:
        console.print(f"[dim]{note}[/dim]")


# --- table --------------------------------------------------------------------------------------------------


def _table(comparison: Comparison) -> Table:
    names = list(comparison.outcomes)
    columns = {
        "total\ns": [comparison.total_s(name) for name in names],
        "learning\ns": [comparison.learning_s(name) for name in names],
        "excess\n%": [_percent(comparison.excess(name)) for name in names],
        "gap closed\n%": [_percent(comparison.gap_closed(name)) for name in names],
    }
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("controller", overflow="fold")
    for column in (*columns, "ms,\nmany", "ms,\nalone"):
        table.add_column(column, justify="right", no_wrap=True)
    cells = zip(*(_aligned(estimates) for estimates in columns.values()), strict=True)
    for name, texts in zip(names, cells, strict=True):
        outcome = comparison.outcomes[name]
        table.add_row(name, *texts, _milliseconds(outcome.batch_s), _milliseconds(outcome.single_s))
    return table


def _percent(share: Estimate) -> Estimate:
    return Estimate(100 * share.value, 100 * share.half)


def _aligned(estimates: Sequence[Estimate]) -> list[str]:
    """Values with their intervals, one ± below the other."""
    pairs = [_digits(one) for one in estimates]
    width = max(len(half) for _, half in pairs)
    return [f"{value} {half:<{width}}" for value, half in pairs]


def _digits(one: Estimate) -> tuple[str, str]:
    """As many decimals as there is room for; no interval where a value is known to be what it is."""
    if not math.isfinite(one.value):
        return "–", ""
    largest = max(abs(one.value), one.half)
    decimals = 2 if largest < 100 else 1 if largest < 1000 else 0
    return f"{one.value:z.{decimals}f}", f"±{one.half:.{decimals}f}" if one.half else ""


def _milliseconds(seconds: float) -> str:
    number = 1e3 * seconds
    return format(number, ".2f" if number < 10 else ".1f" if number < 100 else ".0f")


# --- JSON ---------------------------------------------------------------------------------------------------


def _as_json(trial: Trial) -> dict[str, Any]:
    comparison = trial.comparison
    return {
        "settings": comparison.network.to_dict(),
        "states": comparison.states,
        "seed": trial.seed,
        "confidence": 0.95,
        "controllers": [_row_as_json(trial, name) for name in comparison.outcomes],
    }


def _row_as_json(trial: Trial, name: str) -> dict[str, Any]:
    comparison, outcome = trial.comparison, trial.comparison.outcomes[name]
    figures = {
        "total_s": comparison.total_s(name),
        "learning_s": comparison.learning_s(name),
        "excess": comparison.excess(name),
        "gap_closed": comparison.gap_closed(name),
    }
    return {
        "controller": controller_of(name),
        "gain_age": trial.age if believes(name) else 0,
        "gain_error_db": trial.error_db if believes(name) else 0.0,
        **{what: {"mean": one.value, "low": one.low, "high": one.high} for what, one in figures.items()},
        "batch_s": outcome.batch_s,
        "single_s": outcome.single_s,
        "by_state": {"total_s": outcome.total_s.tolist(), "learning_s": outcome.learning_s.tolist()},
    }
