"""Training a controller on a terminal: a bar with live figures a seed, a table at the end, and curves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from flower_bfl.controller.checkpoint import Checkpoint
from flower_bfl.controller.learner import Progress as Update
from flower_bfl.controller.learner import TrainingConfig
from flower_bfl.controller.training import train
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig

_PICTURE_S = 20.0  # between two drawings of the curves
_LAST = 20  # updates that the table's means are over

Draw = Callable[[dict[int, list[dict[str, float]]], Path], None]


def parse_settings(
    network: NetworkConfig, devices: str | None, steps: int, seed: int, architecture: str, divergence: str
) -> tuple[NetworkConfig, TrainingConfig]:
    """The network and how to learn in it, from what was typed; raises ConfigError for what breaks a rule."""
    counts: tuple[int, ...] = ()
    if devices is not None:
        try:
            counts = tuple(int(each) for each in devices.split(","))
        except ValueError as error:
            raise ConfigError(
                f"`--devices` must be whole numbers with commas between, got {devices!r}"
            ) from error
        network = replace(network, devices=counts[0])
    settings = TrainingConfig(
        steps=steps,
        seed=seed,
        architecture=architecture,  # type: ignore[arg-type]  # it checks them
        divergence=divergence,  # type: ignore[arg-type]
        devices=counts if len(counts) > 1 else (),
    )
    return network, settings


def train_seeds(
    network: NetworkConfig, settings: TrainingConfig, seeds: int, folder: Path, draw: Draw | None
) -> list[Checkpoint]:
    """Train `seeds` policies, each in a folder of its own, the first with the seed of the settings.

    Curves are drawn in `curves.png` as they grow, if `draw` is given. Ctrl-C keeps what was learnt: the same
    call goes on from there.
    """
    if seeds < 1:
        raise ConfigError(f"`--seeds` must be at least 1, got {seeds}")
    wanted = [replace(settings, seed=settings.seed + i) for i in range(seeds)]
    curves: dict[int, list[dict[str, float]]] = {}
    done: list[Checkpoint] = []
    with _bars() as bars:
        for one in wanted:
            watch = _Watch(bars, one, network, curves, folder, draw)
            kept = train(network, one, folder / f"seed-{one.seed}", watch)
            curves[one.seed] = kept.curve
            bars.update(watch.task, completed=kept.steps)
            done.append(kept)
    if draw is not None:
        draw(curves, folder)
    return done


def print_training(trained: list[Checkpoint], folder: Path) -> None:
    """What each seed reached, and where it is."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("seed", "steps", "utility", "learning\ns", "offloading\ndevices"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for one in trained:
        rows = [row for row in one.curve[-_LAST:] if "utility" in row]
        means = [sum(row[name] for row in rows) / max(len(rows), 1) for name in _SHOWN]
        table.add_row(
            str(one.training["seed"]),
            f"{one.steps:,}",
            *(f"{each:.3f}" for each in means[:2]),
            f"{means[2]:.1f}",
            str(folder / f"seed-{one.training['seed']}"),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"[dim]means of the last {_LAST} updates, with the noise that learning needs[/dim]")


_SHOWN = ("utility", "learning_s", "offloading")


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars


class _Watch:
    """Moves the bar of one seed, and draws the curves of all now and then."""

    def __init__(
        self,
        bars: Progress,
        settings: TrainingConfig,
        network: NetworkConfig,
        curves: dict[int, list[dict[str, float]]],
        folder: Path,
        draw: Draw | None,
    ) -> None:
        total = settings.updates * settings.steps_an_update
        self.task: TaskID = bars.add_task("", total=total, seed=settings.seed, figures="")
        self._bars = bars
        self._curves = curves
        self._curve = curves.setdefault(settings.seed, [])
        self._folder = folder
        self._draw = draw
        self._drawn_at = monotonic()

    def __call__(self, made: Update) -> None:
        figures = f"utility {made.utility:.3f}  learning {made.learning_s:.1f} s"
        self._bars.update(self.task, completed=made.steps, figures=figures)
        self._curve.append(
            {"steps": made.steps, "utility": made.utility, "learning_s": made.learning_s}
            if made.utility == made.utility
            else {"steps": made.steps}
        )
        if self._draw is not None and monotonic() - self._drawn_at > _PICTURE_S:
            self._draw(self._curves, self._folder)
            self._drawn_at = monotonic()
