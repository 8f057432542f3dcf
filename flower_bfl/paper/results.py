"""What an experiment's runs have given so far: a CSV file that is there whole after every run."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flower_bfl.errors import ConfigError, RunFolderError
from flower_bfl.paper.experiment import Experiment, Settings, Value
from flower_bfl.paper.runs import KINDS, Row

SECONDS = "seconds"  # of wall time, of a whole run
_HERE = ("data-folder", "run-folder")  # settings that say where something is, not what is done


@dataclass(frozen=True)
class Run:
    """One run: the settings in which it differs from others, its seed, and its rows."""

    key: Settings
    seed: int
    rows: tuple[Row, ...]

    def has(self, settings: Settings) -> bool:
        """Whether it is a run with these settings."""
        return all(self.key.get(name) == value for name, value in settings.items())


class Results:
    """The runs of an experiment in a folder: NAME.csv, a row a line, and NAME.json, what they are runs of.

    Raises:
        ConfigError: the folder holds the same experiment with other settings.
        RunFolderError: it cannot be read or written.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.file = folder / f"{experiment.name}.csv"
        self.runs: list[Run] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.file.exists():
                self._check_settings()
                self.runs = list(self._read())
            else:
                _replace(self._record, json.dumps(self._settings(), indent=1) + "\n")
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"`folder` must hold readable results, got {self.file}: {error}") from error

    def missing(self, seeds: int) -> list[dict[str, Value]]:
        """The settings of runs that are still to be made, with their seeds; seed by seed."""
        done = {(run.seed, _name(run.key)) for run in self.runs}
        return [
            {**settings, "seed": seed}
            for seed in range(seeds)
            for settings in self.experiment.runs()
            if (seed, _name(self._key(settings))) not in done
        ]

    def add(self, settings: Settings, rows: Sequence[Row], seconds: float) -> None:
        """Keep a run."""
        whole = tuple({**row, SECONDS: seconds} for row in rows)
        run = Run(self._key(settings), int(settings["seed"]), whole)
        # In one order, whichever run ends first: what is kept can be compared.
        order = {_name(self._key(each)): place for place, each in enumerate(self.experiment.runs())}
        runs = sorted([*self.runs, run], key=lambda run: (run.seed, order.get(_name(run.key), len(order))))
        try:
            _replace(self.file, self._written(runs))
        except OSError as error:
            raise RunFolderError(f"`folder` must be writable, got {self.file}: {error}") from error
        self.runs = runs

    def of(self, settings: Settings) -> list[Run]:
        """The runs with these settings, by seed."""
        return [run for run in self.runs if run.has(settings)]

    @property
    def seconds(self) -> float:
        """Wall time of all runs, one after another."""
        return sum(float(run.rows[0][SECONDS]) for run in self.runs if run.rows)

    @property
    def seeds(self) -> int:
        """How many seeds have all runs."""
        wanted = len(list(self.experiment.runs()))
        counts = [sum(run.seed == seed for run in self.runs) for seed in {run.seed for run in self.runs}]
        return sum(count >= wanted for count in counts)

    # --- the files ------------------------------------------------------------------------------------------

    @property
    def _record(self) -> Path:
        return self.file.with_suffix(".json")

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*self.experiment.varied, "seed", *KINDS[self.experiment.run].columns, SECONDS)

    def _key(self, settings: Settings) -> dict[str, Value]:
        return {name: settings[name] for name in self.experiment.varied}

    def _settings(self) -> dict[str, Value]:
        return {name: value for name, value in self.experiment.settings.items() if name not in _HERE}

    def _check_settings(self) -> None:
        held = json.loads(self._record.read_text(encoding="utf-8"))
        for name, value in {**held, **self._settings()}.items():
            if held.get(name) != self._settings().get(name):
                raise ConfigError(
                    f"`folder` must hold runs with {name} = {self._settings().get(name)!r} or none, got "
                    f"{self.file} with {held.get(name, value)!r}"
                )

    def _written(self, runs: Sequence[Run]) -> str:
        lines = [",".join(self._columns)]
        for run in runs:
            for row in run.rows:
                cells: Mapping[str, Value] = {**run.key, "seed": run.seed, **row}
                lines.append(",".join(_text(cells.get(name, "")) for name in self._columns))
        return "\n".join(lines) + "\n"

    def _read(self) -> Iterator[Run]:
        kinds = {name: type(value) for settings in self.experiment.runs() for name, value in settings.items()}
        found: dict[tuple[int, str], Run] = {}
        with self.file.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                key = {name: _value(line.pop(name), kinds[name]) for name in self.experiment.varied}
                seed = int(line.pop("seed"))
                run = found.setdefault((seed, _name(key)), Run(key, seed, ()))
                row: Row = {name: _number(text) for name, text in line.items()}
                found[seed, _name(key)] = replace(run, rows=(*run.rows, row))
        yield from found.values()


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _name(key: Settings) -> str:
    return json.dumps(key, sort_keys=True)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.7g}"
    return f'"{value}"' if isinstance(value, str) and "," in value else str(value)


def _number(text: str) -> float | str:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return text


def _value(text: str, kind: type[Value]) -> Value:
    return text == "True" if kind is bool else kind(text)
