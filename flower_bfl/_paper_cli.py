"""The command `flower-bfl paper`; heavy imports stay inside, as in `cli`."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flower_bfl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from flower_bfl.paper.experiment import Experiment
    from flower_bfl.paper.results import Results
    from flower_bfl.paper.runner import Progress

_SEEDS = 3


def paper(
    figures: Annotated[
        list[str],
        typer.Argument(
            metavar="FIGURE...", help="fig4 to fig12; auto, cost, robustness, theory or time; or all."
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A small version, in minutes.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="The paper's budget; with 10 seeds unless told.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help=f"Seeds of every run (default: {_SEEDS}).", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at a time, a process each (default: a core each).", show_default=False
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where results go, and go on.")] = Path("runs/paper"),
    data_folder: Annotated[
        Path | None,
        typer.Option(
            help="With the data sets (default: FLOWER_BFL_DATA, else ~/.cache/flower-bfl).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="A set of 32 x 32 colour images of your own, in place of SVHN, and named as what it is.",
            show_default=False,
        ),
    ] = None,
    flower: Annotated[
        bool,
        typer.Option(
            "--flower",
            help="Make each figure's first run under Flower's simulation as well, and compare the models.",
        ),
    ] = False,
) -> None:
    """Run the paper's experiments, and hold what comes out against what it says.

    A FIGURE is fig4 to fig12; auto, cost, robustness, theory or time, which go beyond the paper; or all.

    Each leaves FIGURE.csv with every run, FIGURE.json with its settings and FIGURE.png in the folder. Whoever
    stops it goes on with the same command.
    """
    from flower_bfl.paper.experiment import names, read

    wanted = names() if figures == ["all"] else figures
    experiments = [read(name) for name in wanted]
    made = 0
    for experiment in experiments:
        chosen = _chosen(experiment, quick, full, data_folder, images)
        done = _run(chosen, seeds or _seeds(chosen, quick, full), jobs or os.cpu_count() or 1, folder)
        made += done
        if flower and done:
            _compare_with_flower(chosen)
    if not made:
        raise typer.Exit(1)


def _chosen(
    experiment: "Experiment", quick: bool, full: bool, data_folder: Path | None, images: Path | None
) -> "Experiment":
    if quick and full:
        raise ConfigError("`--quick` and `--full` must not both be given")
    if quick or full:
        experiment = experiment.version("quick" if quick else "full")
    if "dataset" not in experiment.settings:
        return experiment
    if images is not None and experiment.settings["dataset"] == "svhn":
        return experiment.with_images(images.expanduser().absolute())
    if data_folder is not None:
        return experiment.with_settings(**{"data-folder": str(data_folder.expanduser().absolute())})
    return experiment


def _seeds(experiment: "Experiment", quick: bool, full: bool) -> int:
    version = experiment.quick if quick else experiment.full
    return version.seeds if quick or full else _SEEDS


def _run(experiment: "Experiment", seeds: int, jobs: int, folder: Path) -> bool:
    """Whether it could be run."""
    from rich.console import Console

    from flower_bfl.paper.results import Results
    from flower_bfl.paper.runner import run_missing
    from flower_bfl.paper.runs import NotAvailableError

    results = Results(experiment, folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{experiment.name}: {experiment.title}", style="bold", markup=False)
    try:
        with _bar(experiment.name) as progress:
            run_missing(results, seeds, jobs=jobs, progress=progress)
    except NotAvailableError as error:
        console.print(f"not run: {error}", markup=False)
        return False
    except KeyboardInterrupt:
        typer.echo("\nStopped; the runs that had ended are kept, the same command goes on.", err=True)
        raise typer.Exit(130) from None
    _print(results, console)
    return True


@contextmanager
def _bar(name: str) -> "Iterator[Progress]":
    """A bar on standard error that counts runs."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(f"{name}, runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _print(results: "Results", console: "Console") -> None:
    """What was measured beside what the paper says, and where it is."""
    from flower_bfl.paper.claims import verdicts

    for verdict in verdicts(results):
        console.print(str(verdict), markup=False)
    files = [results.file]
    try:
        from flower_bfl.paper.picture import draw

        files.append(draw(results))
    except ModuleNotFoundError as missing:
        console.print(f"No picture: this takes {missing.name}, pip install 'flower-bfl[plots]'", markup=False)
    console.print(
        f"{', '.join(map(str, files))}: {len(results.runs)} runs, {results.seconds:.0f} s in all",
        markup=False,
    )


def _compare_with_flower(experiment: "Experiment") -> None:
    if experiment.run != "training":
        typer.echo(f"{experiment.name} trains no model: nothing to compare with Flower's simulation")
        return
    from flower_bfl.paper._training import is_same_under_flower

    settings = {**next(experiment.runs()), "seed": 0}
    same = is_same_under_flower(settings)
    told = "the same models, bit for bit" if same else "OTHER MODELS"
    typer.echo(
        f"{experiment.name}, first run, {settings['rounds']} rounds, under Flower's simulation: {told}"
    )
    if not same:
        raise typer.Exit(1)
