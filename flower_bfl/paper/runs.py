"""The kinds of runs: from settings and a seed to rows of numbers. Each is imported when it is needed."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from flower_bfl.errors import FlowerBFLError
from flower_bfl.paper.experiment import Settings

Row = dict[str, float | str]
"""Numbers by column; a run has a row for each round, step or controller."""


class NotAvailableError(FlowerBFLError):
    """A run needs what is not there, such as a data set."""


@dataclass(frozen=True)
class Kind:
    """A kind of run, in a module of its own.

    The module has `COLUMNS`, `run(settings)`, which gives the rows of a run, and `check(settings)`, which
    raises ConfigError for settings that break a rule and NotAvailableError where such a run cannot be made.
    """

    module: str

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row has."""
        return tuple(self._module.COLUMNS)

    def check(self, settings: Settings) -> None:
        """Raise ConfigError or NotAvailableError if such a run cannot be made here."""
        self._module.check(settings)

    def run(self, settings: Settings) -> list[Row]:
        """Make a run; `settings` has its seed."""
        rows: list[Row] = self._module.run(settings)
        return rows

    @property
    def _module(self) -> Any:
        return import_module(f"{__package__}.{self.module}")


KINDS: dict[str, Kind] = {
    "training": Kind("_training"),
    "learning-curve": Kind("_learning_curve"),
    "latency": Kind("_latency"),
    "convergence": Kind("_convergence"),
    "cost": Kind("_cost"),
}
