"""What runs with controllers share: the network that settings describe, its states, controllers by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from flower_bfl._views import CONTROLLERS
from flower_bfl.controller import Controller
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig, NetworkState, draw_states
from flower_bfl.paper.experiment import Settings
from flower_bfl.paper.runs import NotAvailableError

# Controllers that need no training; ours is the policy that comes with the package.
MARKS: Final = {
    "ours": CONTROLLERS["a2c"],
    "ours-sorted": CONTROLLERS["a2c-sorted"],
    **{name: CONTROLLERS[name] for name in ("near-optimal", "assignment", "greedy", "all-local")},
}
BASELINES: Final = ("a2c-relaxed", "a2c-approximated", "a2c", "ddpg", "actor-critic", "dqn")

_STATES = 2026  # of the seeds of states; nobody trains with them

_NETWORK: dict[str, Callable[[NetworkConfig, Any], NetworkConfig]] = {
    "devices": lambda network, n: replace(network, devices=n),
    "p2p-rounds": lambda network, phi: replace(network, p2p_rounds=phi),
    "max-power-dbm": lambda network, most: replace(
        network, radio=replace(network.radio, power_dbm=(min(10.0, most), most))
    ),
    "bandwidth-mhz": lambda network, w: replace(network, radio=replace(network.radio, bandwidth_hz=1e6 * w)),
    "hash-budget-ths": lambda network, psi: replace(
        network, blocks=replace(network.blocks, total_hash_rate=1e12 * psi)
    ),
}


_NEEDED: Final = ("algorithm", "states", "steps")


def check_settings(settings: Settings, *needed: str) -> None:
    """Raise ConfigError for a setting that means nothing here, and for one that has to be there."""
    for name in (*_NEEDED, *needed):
        if name not in settings:
            raise ConfigError(f"`settings` must have {name}, got {', '.join(settings)}")
    known = (*_NEEDED, *needed, *_NETWORK, "seed")
    for name in settings:
        if name not in known:
            raise ConfigError(f"`settings` may have {', '.join(known)}, got {name!r}")


def network_of(settings: Settings) -> NetworkConfig:
    """The paper's Table IV, and what the settings have otherwise."""
    network = NetworkConfig()
    for name, change in _NETWORK.items():
        if name in settings:
            network = change(network, settings[name])
    return network


def states_of(network: NetworkConfig, settings: Settings) -> NetworkState:
    """What everybody decides on who has the same seed."""
    rng = np.random.default_rng([_STATES, int(settings["seed"])])
    return draw_states(network, int(settings["states"]), rng)


def mark(settings: Settings) -> Controller:
    """A controller that needs no training."""
    rng = np.random.default_rng(int(settings["seed"]))
    return MARKS[str(settings["algorithm"])](network_of(settings), rng)


def check_algorithm(name: object, *trained: str) -> None:
    """Raise ConfigError for an algorithm that there is not, NotAvailableError where it cannot be trained."""
    known = (*MARKS, *BASELINES, *trained)
    if name not in known:
        raise ConfigError(f"`algorithm` must be one of {', '.join(known)}, got {name!r}")
    if name in MARKS:
        return
    try:
        import stable_baselines3  # noqa: F401
    except ModuleNotFoundError as missing:
        raise NotAvailableError(f"this takes {missing.name}: pip install 'flower-bfl[train]'") from None
