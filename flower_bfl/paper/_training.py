"""A run of federated learning: a row for each round after which the model was tested."""

import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from flower_bfl._flwr_run import declared_config, run_app
from flower_bfl.errors import ConfigError, FlowerBFLError
from flower_bfl.paper._in_process import quiet
from flower_bfl.paper.experiment import Settings
from flower_bfl.paper.runs import NotAvailableError
from flower_bfl.report import Round, read_rounds

APP: Final = Path(__file__).parent / "flower_app"
COLUMNS: Final = (
    "round", "accuracy", "loss", "consensus_error", "p2p_rounds", "transactions", "simulated_seconds",
    "found", "falsely_accused",
)  # fmt: skip


def check(settings: Settings) -> None:
    """Raise ConfigError for a wrong setting, NotAvailableError without a data set or a way to download it."""
    from flower_bfl.paper import app

    config = whole(settings)
    with quiet():
        app.make_strategy(config)
    try:
        app.loaded(config["dataset"], config["data-folder"])
    except ConfigError as error:
        raise NotAvailableError(str(error)) from error


def run(settings: Settings) -> list[dict[str, Any]]:
    """Train in this process."""
    return [_row(one) for one in _rounds(settings, run_in_process) if one.get("evaluate")]


def is_same_under_flower(settings: Settings) -> bool:
    """Whether a run comes to the same models, round by round, in this process and in Flower's simulation."""
    here, there = (_rounds(settings, each) for each in (run_in_process, run_under_flower))
    return [one["model_digest"] for one in here] == [one["model_digest"] for one in there]


def _rounds(settings: Settings, run: Callable[[dict[str, Any]], None]) -> list[Round]:
    with tempfile.TemporaryDirectory() as folder:
        run(whole(settings) | {"run-folder": folder})
        return read_rounds(Path(folder))


def run_in_process(config: dict[str, Any]) -> None:
    """One run; rounds.jsonl goes into the run folder."""
    from flower_bfl.paper import app
    from flower_bfl.simulation import simulate

    with quiet():
        simulate(app.server_app, app.client_app, nodes=app.nodes(config), settings=config)


def run_under_flower(config: dict[str, Any], environment: dict[str, str] | None = None) -> None:
    """One run; raises FlowerBFLError if it failed."""
    from flower_bfl.paper import app

    if run_app(APP, config, nodes=app.nodes(config), stream=False, environment=environment):
        raise FlowerBFLError(f"a run under Flower failed, with seed {config['seed']}")


def whole(settings: Settings) -> dict[str, Any]:
    """The app's settings, and its defaults for what is not given."""
    defaults = _defaults()
    for name in settings:
        if name not in defaults:
            raise ConfigError(f"`settings` may have {', '.join(defaults)}, got {name!r}")
    return {**defaults, **settings}


@cache
def _defaults() -> dict[str, Any]:
    return declared_config(APP)


def _row(one: Round) -> dict[str, Any]:
    row = {
        "round": one["round"],
        "accuracy": 100 * one["evaluate"]["accuracy"],
        "loss": one["evaluate"]["loss"],
        "consensus_error": one["consensus_error"],
        "p2p_rounds": one["p2p_rounds"],
        "transactions": one["transactions"],
        "simulated_seconds": one["simulated_seconds"],
        "found": one["true_positives"],
        "falsely_accused": one["false_positives"],
    }
    return {name: math.nan if value is None else value for name, value in row.items()}
