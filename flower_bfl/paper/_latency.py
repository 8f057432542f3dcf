"""What a controller's decisions cost, after training where it has to learn: one row."""

from typing import Any, Final

from flower_bfl.controller import Controller
from flower_bfl.network import price
from flower_bfl.paper._control import MARKS, check_algorithm, check_settings, mark, network_of, states_of
from flower_bfl.paper.experiment import Settings

COLUMNS: Final = ("total_s", "learning_s", "mining_s", "consensus_s", "utility")


def check(settings: Settings) -> None:
    """Raise ConfigError or NotAvailableError if such a run cannot be made here."""
    check_settings(settings)
    network_of(settings)
    check_algorithm(settings["algorithm"])


def run(settings: Settings) -> list[dict[str, Any]]:
    """Means over states, in seconds."""
    network = network_of(settings)
    states = states_of(network, settings)
    controller = mark(settings) if settings["algorithm"] in MARKS else _trained(settings)
    priced = price(network, states, controller.decide(states))
    row = {
        "total_s": priced.total_s,
        "learning_s": priced.learning_s,
        "mining_s": priced.mining_total_s,
        "consensus_s": priced.consensus_s,
        "utility": priced.utility,
    }
    return [{name: float(value.mean()) for name, value in row.items()}]


def _trained(settings: Settings) -> Controller:
    from flower_bfl.controller.baselines import train_baseline

    name, steps, seed = str(settings["algorithm"]), int(settings["steps"]), int(settings["seed"])
    return train_baseline(name, network_of(settings), steps, seed).controller
