"""The command `flower-bfl paper`; heavy imports stay inside, as in `cli`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from flower_bfl.errors import ConfigError

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
    from flower_bfl._paper_view import chosen, compare_with_flower, run_experiment
    from flower_bfl.paper.experiment import Version, names, read

    if quick and full:
        raise ConfigError("`--quick` and `--full` must not both be given")
    experiments = [read(name) for name in (names() if figures == ["all"] else figures)]
    made = 0
    for experiment in experiments:
        version = experiment.quick if quick else experiment.full if full else Version(seeds=_SEEDS)
        wanted = chosen(experiment, "quick" if quick else "full" if full else None, data_folder, images)
        done = run_experiment(wanted, seeds or version.seeds, jobs or os.cpu_count() or 1, folder)
        made += done
        if flower and done:
            compare_with_flower(wanted)
    if not made:
        raise typer.Exit(1)
