"""The command `flower-bfl`. Heavy imports stay inside the commands: `flower-bfl --help` must be quick."""

import json
import re
import sys
import tomllib
from contextlib import closing
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from flower_bfl._network_cli import Json, controller_app, network_app
from flower_bfl._paper_cli import paper
from flower_bfl.errors import ConfigError, FlowerBFLError, RunFolderError

_DEFAULT_NODES = 10
_EXTRAS = {"torch": "train", "gymnasium": "train", "stable_baselines3": "train", "jinja2": "report"}

# --run-config takes what `flwr run` takes: name=value pairs, values with blanks in either quotation mark.
_PAIR = r"""([^\s=]+)=("[^"]*"|'[^']*'|\S+)"""

app = typer.Typer(add_completion=False, no_args_is_help=True)
app.add_typer(network_app, name="network")
app.add_typer(controller_app, name="controller")
app.command()(paper)


def main() -> None:
    """Entry point: an error of ours is one red line, and status 2 for an argument, 1 for the rest."""
    try:
        app()
    except FlowerBFLError as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except ModuleNotFoundError as missing:
        if missing.name not in _EXTRAS:
            raise
        extra = _EXTRAS[missing.name]
        text = f"Error: this takes the package {missing.name}: pip install 'flower-bfl[{extra}]'"
        typer.secho(text, fg=typer.colors.RED, err=True)
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flower-bfl {installed_version('flower-bfl')}")
        raise typer.Exit


@app.callback()
def flower_bfl(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated learning with several edge servers, consensus and an EVM ledger, on Flower."""


@app.command()
def run(
    app: Annotated[Path, typer.Argument(help="Folder of a Flower app, such as examples/quickstart.")],
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings of the app, as in 'num-server-rounds=3 graph=\"ring\"'; may be repeated."
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="Simulated nodes (default: the app's `devices` and `edge-server-nodes`, "
            f"else {_DEFAULT_NODES}).",
            show_default=False,
        ),
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the app writes, if it has the setting `run-folder` (default: runs/<app>-<time>).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Simulate the Flower app in the folder APP, in a private SuperLink that ends with the run.

    An app that declares a setting `run-folder` gets the folder's absolute path as its value, one that
    declares `devices` the number of nodes, less its `edge-server-nodes`. With 'resume="RUN_FOLDER"' an app
    that can goes on with that run, with the settings that it left there.
    """
    from flower_bfl._flwr_run import declared_config, run_app

    defaults = declared_config(app)
    settings = _parse_run_config(run_config or [])
    if settings.get("resume") and "resume" in defaults:
        run_folder = _resumed(str(settings["resume"]), run_folder)
        settings = _left_settings(run_folder) | settings | {"resume": str(run_folder)}
    servers = _count(settings.get("edge-server-nodes", defaults.get("edge-server-nodes")), 0)
    if nodes is None:
        nodes = _count(settings.get("devices", defaults.get("devices")), _DEFAULT_NODES) + servers
    elif "devices" in defaults:
        settings.setdefault("devices", nodes - servers)
    folder = (run_folder or _run_folder_for(app)).expanduser().absolute()
    if run_folder is not None or "run-folder" in defaults:
        settings["run-folder"] = str(folder)
    code = run_app(app, settings, nodes=nodes)
    _print_run_folder(folder)
    if code:
        typer.secho("The run failed; its log is above.", fg=typer.colors.RED, err=True)
        if "resume" in defaults and (folder / "chain").is_dir():
            typer.secho(
                f"To go on with it: flower-bfl run {app} --run-config 'resume=\"{folder}\"'", err=True
            )
        raise typer.Exit(code)


def _resumed(resume: str, run_folder: Path | None) -> Path:
    """The folder of a run that is to go on."""
    folder = Path(resume).expanduser().absolute()
    if run_folder not in (None, folder):
        raise ConfigError(
            f"`run-folder` must be the folder of the run that goes on, {folder}, got {run_folder}"
        )
    if not folder.is_dir():
        raise ConfigError(f"`resume` must be the folder of a run, got {folder}, which is none")
    return folder


def _left_settings(folder: Path) -> dict[str, bool | int | float | str]:
    """The settings that a run was made with, if its app left them."""
    file = folder / "settings.json"
    if file.is_symlink() or not file.is_file():
        return {}
    try:
        left = json.loads(file.read_text(encoding="utf-8"))
        wrong = [name for name, value in left.items() if not isinstance(value, bool | int | float | str)]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{file} must hold a run's settings: {error}") from error
    if wrong:
        raise RunFolderError(
            f"{file} must hold numbers, text and truth values, got {wrong[0]!r} with another"
        )
    return left  # type: ignore[no-any-return]  # checked


def _count(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


_RunFolder = Annotated[
    Path | None, typer.Argument(help="What `flower-bfl run` left behind.", show_default=False)
]
_Rpc = Annotated[
    str | None,
    typer.Option(metavar="URL", help="In place of a run folder: a node with the chain.", show_default=False),
]
_Contract = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="With --rpc: the run's contract.", show_default=False)
]
_Payloads = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="With --rpc: the payloads that are not on the chain.", show_default=False
    ),
]


@app.command()
def audit(
    run_folder: _RunFolder = None,
    rpc: _Rpc = None,
    contract: _Contract = None,
    payloads: _Payloads = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="Head that somebody kept: the run must end with it.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute a run from its ledger alone; status 1 if anything does not follow from what was signed."""
    from flower_bfl._ledger_view import audit_progress, open_node, print_audit
    from flower_bfl.audit import audit as audit_run

    kept = None if head is None else _parse_head(head)
    source = _parse_source(run_folder, rpc, contract, payloads)
    with audit_progress() as progress:
        if isinstance(source, Path):
            report = audit_run(source, head=kept, progress=progress)
        else:
            with closing(open_node(*source)[0]) as chain:
                report = audit_run(chain, head=kept, progress=progress)
    print_audit(report, as_json=as_json)
    if report.finding is not None:
        raise typer.Exit(1)


@app.command()
def ledger(
    run_folder: _RunFolder = None,
    rpc: _Rpc = None,
    contract: _Contract = None,
    payloads: _Payloads = None,
    server_round: Annotated[
        int | None,
        typer.Option("--round", min=0, help="Show the transactions of this round.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a run's ledger: blocks, leaders, miners, gas, or the transactions of one round."""
    from flower_bfl._ledger_view import Browser, open_folder, open_node, print_ledger

    source = _parse_source(run_folder, rpc, contract, payloads)
    chain, store = open_folder(source) if isinstance(source, Path) else open_node(*source)
    with closing(chain):
        print_ledger(Browser(chain, store, server_round), server_round, as_json=as_json)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="What `flower-bfl run` left behind.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write it (default: RUN_FOLDER/report.html).", show_default=False
        ),
    ] = None,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Leave out the audit.")] = False,
) -> None:
    """Make one HTML page about a run, which needs no network; status 1 if its audit finds something."""
    from flower_bfl.report_page import write_page

    path, verdict = write_page(run_folder, output, audited=not no_audit)
    typer.echo(f"{verdict.sentence}\n{path}")
    if verdict.state == "fails":
        raise typer.Exit(1)


@app.command()
def doctor(
    run_folder: Annotated[
        Path | None,
        typer.Argument(help="What a run left behind, to be looked at as well.", show_default=False),
    ] = None,
    with_audit: Annotated[bool, typer.Option("--audit", help="Audit that run, too.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with this installation, or with a run, and what to do; status 1 if anything is."""
    from flower_bfl._doctor_view import print_findings
    from flower_bfl.doctor import check_installation, check_run_folder

    if with_audit and run_folder is None:
        raise ConfigError("`--audit` needs a `RUN_FOLDER`, got none")
    parts = [("Installation", lambda: check_installation(run_folder or Path()))]
    if run_folder is not None:
        parts.append((f"Run {run_folder}", lambda: check_run_folder(run_folder, audited=with_audit)))
    if not print_findings(parts, as_json=as_json):
        raise typer.Exit(1)


def _parse_source(
    run_folder: Path | None, rpc: str | None, contract: str | None, payloads: Path | None
) -> Path | tuple[str, str, Path]:
    """The run folder, or URL, contract's address and payloads of a chain on a node."""
    if run_folder is not None and (rpc, contract, payloads) == (None, None, None):
        return run_folder
    if run_folder is not None or rpc is None or contract is None or payloads is None:
        raise ConfigError(
            "`RUN_FOLDER` must be given, or `--rpc`, `--contract` and `--payloads` in its place"
        )
    return rpc, contract, payloads


def _parse_head(text: str) -> bytes:
    try:
        head = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        head = b""
    if len(head) != 32:
        raise ConfigError(f"`--head` must be 64 hexadecimal digits, got {text!r}")
    return head


def _run_folder_for(app: Path) -> Path:
    return Path("runs") / f"{app.resolve().name}-{datetime.now():%Y%m%d-%H%M%S}"


def _parse_run_config(texts: list[str]) -> dict[str, str | int | float | bool]:
    """Settings by name; a value that is no TOML, such as the word ring, is a string."""
    settings: dict[str, str | int | float | bool] = {}
    for text in texts:
        if rest := re.sub(_PAIR, "", text).strip():
            raise ConfigError(f"`--run-config` must be name=value pairs, got {rest!r} in {text!r}")
        for name, value in re.findall(_PAIR, text):
            settings[name] = _parse_value(value)
    return settings


def _parse_value(text: str) -> str | int | float | bool:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, numbers of thousands of digits, brackets of thousands
        return text.strip("\"'")
    return value if isinstance(value, str | int | float | bool) else text


def _print_run_folder(folder: Path) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    if not folder.is_dir():
        return
    table = Table("file", "size", title=f"Run folder {folder}", title_justify="left")
    payloads = folder / "chain" / "payloads"  # thousands of files
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != payloads):
        table.add_row(str(path.relative_to(folder)), decimal(path.stat().st_size))
    if payloads.is_dir():
        sizes = [path.stat().st_size for path in payloads.iterdir()]
        table.add_row(f"chain/payloads/, {len(sizes)} files", decimal(sum(sizes)))
    console = Console(soft_wrap=True)
    console.print(table)
    if (folder / "rounds.jsonl").exists():
        console.print(f"To read it: flower-bfl report {folder}", highlight=False)
    if (folder / "chain" / "chain.sqlite").exists():
        console.print(f"To check it: flower-bfl audit {folder}", highlight=False)


if __name__ == "__main__":  # python -m flower_bfl.cli, where the command is not on the PATH
    main()
