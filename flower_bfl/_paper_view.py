"""The paper's experiments on a terminal: a bar while they run, then what was measured beside the claims."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from flower_bfl.paper.claims import verdicts
from flower_bfl.paper.experiment import Experiment
from flower_bfl.paper.results import Results
from flower_bfl.paper.runner import Progress, run_missing
from flower_bfl.paper.runs import NotAvailableError


def chosen(
    experiment: Experiment,
    version: Literal["quick", "full"] | None,
    data_folder: Path | None,
    images: Path | None,
) -> Experiment:
    """The experiment in a version, with data from where the user has them; ConfigError for a missing file."""
    if version is not None:
        experiment = experiment.version(version)
    if images is not None and experiment.settings.get("dataset") == "svhn":
        return experiment.with_images(images.expanduser().absolute())
    if data_folder is not None and "dataset" in experiment.settings:
        return experiment.with_settings(**{"data-folder": str(data_folder.expanduser().absolute())})
    return experiment


def run_experiment(experiment: Experiment, seeds: int, jobs: int, folder: Path) -> bool:
    """Make the runs that are missing, and print what comes out; whether it could be run."""
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
def _bar(name: str) -> Iterator[Progress]:
    """A bar on standard error that counts runs."""
    columns = (
        TextColumn(f"{name}, runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _print(results: Results, console: Console) -> None:
    """What was measured beside what the paper says, and where it is."""
    for verdict in verdicts(results):
        console.print(str(verdict), markup=False)
    files = [results.file]
    try:
        from flower_bfl.paper.picture import draw

        files.append(draw(results))
    except ModuleNotFoundError as missing:
        console.print(f"No picture: this takes {missing.name}, pip install 'flower-bfl[plots]'", markup=False)
    console.print(
        f"{', '.join(map(str, files))}: {len(results.told)} runs, {results.seconds:.0f} s in all",
        markup=False,
    )


def compare_with_flower(experiment: Experiment) -> None:
    """Say whether the first run comes to the same models under Flower; status 1 if it does not."""
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
