"""The commands `flower-bfl network` and `flower-bfl controller`; heavy imports stay inside, as in `cli`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

network_app = typer.Typer(no_args_is_help=True, help="An edge network: its settings, and what a round costs.")
controller_app = typer.Typer(no_args_is_help=True, help="Resource controllers: who decides how well.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Network = Annotated[Path | None, typer.Argument(metavar="NETWORK.TOML", show_default=False)]
_Devices = Annotated[
    int | None, typer.Option(metavar="N", help="Devices, in place of the file's.", show_default=False)
]
_Servers = Annotated[
    int | None, typer.Option(metavar="M", help="Edge servers, in place of the file's.", show_default=False)
]
_Picture = Annotated[Path, typer.Option(help="Where to draw it.")]
_NoPicture = Annotated[bool, typer.Option("--no-picture", help="Draw nothing.")]


_Only = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Of all-local, random, greedy, assignment, a2c-sorted, a2c and near-optimal, with commas "
        "between; the first and the last are always there, as marks.",
        show_default=False,
    ),
]
_Policies = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Of a trained policy, to compare as well; may be repeated.",
        show_default=False,
    ),
]
_Baselines = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        min=1,
        help="Train the paper's six baselines for so many rounds first, and compare them as well.",
        show_default=False,
    ),
]


def _can_draw() -> bool:
    """Whether matplotlib is there; says what to do if not."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        typer.echo("No picture: this takes matplotlib, pip install 'flower-bfl[plots]'", err=True)
        return False
    return True


@network_app.command()
def show(
    network: _Network = None,
    devices: _Devices = None,
    servers: _Servers = None,
    controller: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Who decides: assignment, near-optimal, a2c, a2c-sorted, greedy, random or all-local.",
        ),
    ] = "assignment",
    seed: Annotated[int, typer.Option(min=0, help="Of the round that is drawn.")] = 0,
    picture: _Picture = Path("network.png"),
    no_picture: _NoPicture = False,
    as_json: Json = False,
) -> None:
    """Draw a round at random, have it decided, and show who offloads where and what that costs.

    The file has what is not as in the paper's Table IV; `flower-bfl network settings` has all.
    """
    from flower_bfl._network_view import price_round, print_round, read_network

    priced = price_round(read_network(network, devices, servers), controller, seed)
    print_round(priced, as_json=as_json)
    if not no_picture and _can_draw():
        from flower_bfl._network_picture import draw_round, save_picture

        save_picture(draw_round(priced), picture)
        typer.echo(f"Picture: {picture}", err=as_json)


@network_app.command()
def settings(network: _Network = None) -> None:
    """Print all settings as TOML: those of the file, and those of the paper's Table IV that it leaves out."""
    from flower_bfl._network_view import read_network

    typer.echo(read_network(network).to_toml(), nl=False)


@controller_app.command("train")
def train_controller(
    network: _Network = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Devices, in place of the file's; several numbers take turns.",
            show_default=False,
        ),
    ] = None,
    servers: _Servers = None,
    steps: Annotated[int, typer.Option(help="Rounds that each seed plays.")] = 300_000,
    seeds: Annotated[int, typer.Option(help="How many policies, with seeds one after another.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first.")] = 0,
    architecture: Annotated[str, typer.Option(help="shared, for any network, or paper, for one.")] = "shared",
    divergence: Annotated[str, typer.Option(help="KL as in (36), exact, or as in (37), paper.")] = "exact",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where it goes, or goes on (default: runs/controller-<time>).", show_default=False),
    ] = None,
) -> None:
    """Train a learned controller; whoever stops it goes on with the same command and its --folder.

    Each seed leaves policy, settings and curve in a folder of its own, for `controller compare --policy` and
    `A2CController.load`, and logs for TensorBoard.
    """
    from flower_bfl._network_view import read_network
    from flower_bfl._training_view import Draw, parse_settings, print_training, train_seeds

    draw: Draw | None = None
    if _can_draw():
        from flower_bfl._training_picture import draw_curves

        draw = draw_curves
    known = read_network(network, None, servers)
    known, wanted = parse_settings(known, devices, steps, seed, architecture, divergence)
    where = folder or Path("runs") / f"controller-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        trained = train_seeds(known, wanted, seeds, where, draw)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped; what was learnt is kept. To go on, add: --folder {where}", err=True)
        raise typer.Exit(130) from None
    print_training(trained, where)


@controller_app.command("compare")
def compare_controllers(
    network: _Network = None,
    devices: _Devices = None,
    servers: _Servers = None,
    states: Annotated[int, typer.Option(min=2, help="How many are drawn; each takes a second or two.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the states; none that anybody trains with.")] = 2026,
    only: _Only = None,
    policy: _Policies = None,
    baselines: _Baselines = None,
    age: Annotated[int, typer.Option(min=0, help="Rounds by which believed gains are old.")] = 0,
    error_db: Annotated[float, typer.Option(help="Standard deviation of the error of believed gains.")] = 0.0,
    picture: _Picture = Path("controllers.png"),
    no_picture: _NoPicture = False,
    as_json: Json = False,
) -> None:
    """Let all controllers decide on the same states, and show what that costs and how long it takes.

    With --age or --error-db, each decides once more, on channel gains that are old or wrong.
    """
    from flower_bfl._comparison_view import (
        comparison_progress,
        load_policies,
        parse_names,
        print_trial,
        run_trial,
        train_baselines,
    )
    from flower_bfl._network_view import read_network

    known = read_network(network, devices, servers)
    names, others = parse_names(only, known), load_policies(policy or [], known)
    with comparison_progress() as progress:
        if baselines is not None:
            others |= train_baselines(known, baselines, progress)
        trial = run_trial(
            known, names, states, seed, age=age, error_db=error_db, others=others, progress=progress
        )
    print_trial(trial, as_json=as_json)
    if not no_picture and _can_draw():
        from flower_bfl._comparison_picture import draw_comparison
        from flower_bfl._network_picture import save_picture

        save_picture(draw_comparison(trial), picture)
        typer.echo(f"Picture: {picture}", err=as_json)
