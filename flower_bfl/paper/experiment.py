"""An experiment as data: which runs it takes, what is drawn of them, and what the paper says comes out.

Each is a TOML file in the folder experiments. Its tables are the dataclasses below.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from hashlib import file_digest
from itertools import product
from pathlib import Path
from typing import Any, Literal

from flower_bfl.errors import ConfigError

Value = bool | int | float | str
Settings = Mapping[str, Value]

_MOST_RUNS = 10_000  # of an experiment

FOLDER = Path(__file__).parent / "experiments"


@dataclass(frozen=True)
class Grid:
    """Runs with every combination of some settings."""

    vary: Mapping[str, list[Value]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a curve for each value of a setting, the mean over seeds with its 95 % interval."""

    title: str
    x: str  # a column or a setting
    y: str  # a column
    curves: str  # a setting
    where: Settings = field(default_factory=dict)  # settings that its runs have
    only: tuple[Value, ...] = ()  # of the values, if not all
    dashed: str = ""  # a second column, drawn dashed in the same colours
    log: str = ""  # "x", "y" or "xy"


@dataclass(frozen=True)
class Take:
    """One number of a run.

    - "last": the mean of a column's last `points` values;
    - "reach": the least value of the column `x` at which the column is at least `level`; none if it never is;
    - "settle": the same, with the level at `share` of the way from the column's first value to its last;
    - "drop": how much the column falls from the x before to the one in `at`, mean over those that it has.
    """

    what: Literal["last", "reach", "settle", "drop"] = "last"
    points: int = 1
    level: float = 0.0
    share: float = 0.95
    x: str = "round"
    at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What the paper, or its `source`, says of some runs, or of some over others with the same seed."""

    text: str
    column: str
    of: Settings
    over: Settings | None = None
    take: Take = field(default_factory=Take)
    measure: Literal["difference", "percent"] = "difference"  # of minus over, or by how many percent above it
    paper: float | None = None  # the paper's number; None: it only says which way
    expect: Literal["above", "below"] = "above"  # which way, from zero or from the paper's number
    unit: str = ""
    source: str = "paper"  # who says so


@dataclass(frozen=True)
class Version:
    """What a smaller or larger version has otherwise."""

    seeds: int = 10
    settings: Settings = field(default_factory=dict)
    vary: Mapping[str, list[Value]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Runs of one kind, what is drawn of them, and the claims that they are held against."""

    name: str
    title: str
    run: str  # the kind of run, see `flower_bfl.paper.runs`
    grids: tuple[Grid, ...]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...] = ()
    settings: Settings = field(default_factory=dict)
    quick: Version = field(default_factory=Version)
    full: Version = field(default_factory=Version)
    labels: Mapping[str, str] = field(default_factory=dict)  # of values and columns, in the picture
    columns: int = 2  # of panels
    note: str = ""  # for the reader of the picture

    @property
    def varied(self) -> tuple[str, ...]:
        """Settings in which runs differ, in order."""
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.vary))

    def runs(self) -> Iterator[dict[str, Value]]:
        """The settings of every run, without its seed."""
        for grid in self.grids:
            for values in product(*grid.vary.values()):
                yield {**self.settings, **dict(zip(grid.vary, values, strict=True))}

    def version(self, name: Literal["quick", "full"]) -> "Experiment":
        """The small version, or the one with the paper's budget; under its own name where runs differ."""
        version: Version = getattr(self, name)
        if not version.settings and not version.vary:
            return self
        grids = tuple(
            replace(grid, vary={each: version.vary.get(each, own) for each, own in grid.vary.items()})
            for grid in self.grids
        )
        settings = {**self.settings, **version.settings}
        return replace(self, name=f"{self.name}-{name}", settings=settings, grids=grids)

    def with_images(self, file: Path) -> "Experiment":
        """The same on a data set of one's own, under its name; what the paper claims is of another."""
        return replace(
            self.with_settings(**{"dataset": "file", "data-folder": str(file)}),
            name=f"{self.name}-{file.stem}-{_digest(file)}",
            title=f"{self.title}, but with the images of {file.name}",
            claims=(),
        )

    def with_settings(self, **settings: Value) -> "Experiment":
        """The same with other settings for all runs."""
        return replace(self, settings={**self.settings, **settings})


def _digest(file: Path) -> str:
    """Of the content: another file of that name is another data set."""
    try:
        with file.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()[:8]
    except OSError as error:
        raise ConfigError(f"`images` must be a readable file, got {file} ({error})") from error


def names() -> list[str]:
    """All experiments: the paper's figures by number, then those beyond it."""
    found = [path.stem for path in FOLDER.glob("*.toml")]
    return sorted(found, key=lambda name: (not name.startswith("fig"), len(name), name))


@cache
def read(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"`figure` must be one of {', '.join(names())} or all, got {name!r}")
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return parsed(name, content)


def parsed(name: str, content: Mapping[str, Any]) -> Experiment:
    """An experiment from what its TOML file says.

    Raises:
        ConfigError: a table has an entry that there is not, or lacks one; a setting in which some runs differ
            is not set for the others; a run is there twice; or a version varies what no grid does.
    """
    try:
        return _parsed(name, content)
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"`content` of {name} must have tables of settings: {error!r:.300}") from error


def _parsed(name: str, content: Mapping[str, Any]) -> Experiment:
    tables = dict(content)
    experiment: Experiment = _made(
        Experiment,
        {
            **tables,
            "name": name,
            "grids": tuple(_made(Grid, each) for each in tables.pop("grid", [])),
            "panels": tuple(_made(Panel, each) for each in tables.pop("panel", [])),
            "claims": tuple(_claim(each) for each in tables.pop("claim", [])),
            "quick": _made(Version, tables.pop("quick", {})),
            "full": _made(Version, tables.pop("full", {})),
        },
        without=("grid", "panel", "claim"),
    )
    for version in (experiment.quick, experiment.full):
        for each in version.vary:
            if each not in experiment.varied:
                raise ConfigError(f"`vary` of a version of {name} must be of a grid's settings, got {each!r}")
    for one in (experiment, experiment.version("quick"), experiment.version("full")):
        _check_runs(one)
    return experiment


def _check_runs(experiment: Experiment) -> None:
    runs = sum(math.prod(map(len, grid.vary.values())) for grid in experiment.grids)
    if runs > _MOST_RUNS:
        raise ConfigError(f"`grid` of {experiment.name} must give at most {_MOST_RUNS} runs, got {runs}")
    seen: set[tuple[Value, ...]] = set()
    for settings in experiment.runs():
        for each in experiment.varied:
            if each not in settings:
                raise ConfigError(
                    f"`settings` of {experiment.name} must have {each}, which not every grid varies"
                )
        key = tuple(settings[each] for each in experiment.varied)
        if key in seen:
            raise ConfigError(f"`grid` of {experiment.name} must give each run once, got {key} again")
        seen.add(key)


def _claim(content: Mapping[str, Any]) -> Claim:
    take = dict(content.get("take", {}))
    take["at"] = tuple(take.get("at", ()))
    claim: Claim = _made(Claim, {**content, "take": _made(Take, take)})
    return claim


def _made(kind: type[Any], content: Mapping[str, Any], without: tuple[str, ...] = ()) -> Any:
    entries = {name: value for name, value in content.items() if name not in without}
    known = [each.name for each in fields(kind)]
    for name in entries:
        if name not in known:
            raise ConfigError(f"`{kind.__name__}` may have {', '.join(known)}, got {name!r}")
    try:
        return kind(**entries)
    except TypeError as error:
        raise ConfigError(f"`{kind.__name__}` lacks an entry: {error}") from None
