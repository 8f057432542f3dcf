"""What an experiment's runs have given so far: a CSV file that is there whole after every run."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from flower_bfl.errors import ConfigError, FlowerBFLError, RunFolderError
from flower_bfl.paper.experiment import Experiment, Settings, Value
from flower_bfl.paper.runs import KINDS, Row

SECONDS = "seconds"  # of wall time, of a whole run
_WHOLE = 1e15  # whole numbers below it are written as such
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
        except FlowerBFLError:
            raise
        except (OSError, ValueError, csv.Error) as error:
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
        whole = tuple(
            {name: _kept(value) for name, value in {**row, SECONDS: seconds}.items()} for row in rows
        )
        run = Run(self._key(settings), int(settings["seed"]), whole)
        # In one order, whichever run ends first: what is kept can be compared.
        order = {_name(self._key(each)): place for place, each in enumerate(self.experiment.runs())}
        runs = sorted([*self.runs, run], key=lambda run: (run.seed, order.get(_name(run.key), len(order))))
        try:
            _replace(self.file, self._written(runs))
        except OSError as error:
            raise RunFolderError(f"`folder` must be writable, got {self.file}: {error}") from error
        self.runs = runs

    @property
    def told(self) -> list[Run]:
        """The runs that pictures and claims are made of: those of whole seeds, once there is one."""
        whole = self._whole
        return [run for run in self.runs if not whole or run.seed in whole]

    def of(self, settings: Settings) -> list[Run]:
        """Those of them with these settings, by seed."""
        return [run for run in self.told if run.has(settings)]

    @property
    def seconds(self) -> float:
        """Wall time of the runs that are told of, one after another."""
        return sum(float(run.rows[0][SECONDS]) for run in self.told if run.rows)

    @property
    def seeds(self) -> int:
        """How many seeds have all runs."""
        return len(self._whole)

    @property
    def _whole(self) -> set[int]:
        made = {(run.seed, _name(run.key)) for run in self.runs}
        wanted = [_name(self._key(settings)) for settings in self.experiment.runs()]
        seeds = {run.seed for run in self.runs}
        return {seed for seed in seeds if all((seed, name) in made for name in wanted)}

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
        held: Any = json.loads(self._record.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError(f"{self._record} is no JSON object")
        wanted = self._settings()
        for name in {**held, **wanted}:
            if held.get(name) != wanted.get(name):
                raise ConfigError(
                    f"`folder` must hold runs with {name} = {wanted.get(name)!r} or none, got {self.file} "
                    f"with {held.get(name)!r}"
                )

    def _written(self, runs: Sequence[Run]) -> str:
        text = StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(self._columns)
        for run in runs:
            for row in run.rows:
                cells: Mapping[str, Value] = {**run.key, "seed": run.seed, **row}
                lines.writerow([_text(cells.get(name, "")) for name in self._columns])
        return text.getvalue()

    def _read(self) -> Iterator[Run]:
        keys = _Keys(self.experiment)
        found: dict[tuple[int, str], tuple[dict[str, Value], list[Row]]] = {}
        for line in self._lines():
            key = {name: keys.value(name, line.pop(name)) for name in self.experiment.varied}
            seed = int(line.pop("seed"))
            _, rows = found.setdefault((seed, _name(key)), (key, []))
            rows.append({name: _number(text) for name, text in line.items()})
        for (seed, _), (key, rows) in found.items():
            yield Run(key, seed, tuple(rows))

    def _lines(self) -> Iterator[dict[str, str]]:
        with self.file.open(newline="", encoding="utf-8") as stream:
            text = stream.read()
        if not text.endswith("\n"):
            raise ValueError("its last line was cut off")
        lines = csv.reader(StringIO(text, newline=""), strict=True)
        if (columns := next(lines)) != [*self._columns]:
            raise ValueError(f"its columns are {', '.join(columns)}, not {', '.join(self._columns)}")
        for line in lines:
            if len(line) != len(columns):
                raise ValueError(f"line {lines.line_num} has {len(line)} cells, not {len(columns)}")
            yield dict(zip(columns, line, strict=True))


class _Keys:
    """Settings by their text: 1 and 1.0, which one experiment may both have, look alike in a file."""

    def __init__(self, experiment: Experiment) -> None:
        self._known: dict[str, dict[str, Value]] = {name: {} for name in experiment.varied}
        for settings in experiment.runs():
            for name, known in self._known.items():
                known[_text(settings[name])] = settings[name]

    def value(self, name: str, text: str) -> Value:
        """What the experiment has for it; of a run that it no longer has, the text."""
        return self._known[name].get(text, text)


def _replace(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _name(key: Settings) -> str:
    return json.dumps(key, sort_keys=True)


def _kept(value: float | str) -> float | str:
    """As the file has it: seven digits, but of whole numbers all."""
    if isinstance(value, str):
        return value
    return float(value) if float(value).is_integer() else float(f"{value:.7g}")


def _text(value: Value) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if value.is_integer() and abs(value) < _WHOLE else repr(float(value))


def _number(text: str) -> float | str:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return text
