"""How an algorithm learns to decide: a row for each fiftieth of its steps, with the mean utility (31) in it.

Utilities are those of training, exploration and all. Controllers that need no training have theirs all along.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from flower_bfl.network import price
from flower_bfl.paper._control import (
    BASELINES,
    MARKS,
    check_algorithm,
    check_settings,
    mark,
    network_of,
    states_of,
)
from flower_bfl.paper.experiment import Settings

COLUMNS: Final = ("steps", "utility")

# Our algorithm with networks that fit any number of devices, and with the paper's.
_OWN: Final = {"shared": "shared", "paper": "paper"}
_POINTS: Final = 50


def check(settings: Settings) -> None:
    """Raise ConfigError or NotAvailableError if such a run cannot be made here."""
    check_settings(settings, "step-scale", "critic-learning-rate")
    network_of(settings)
    check_algorithm(settings["algorithm"], *_OWN)


def run(settings: Settings) -> list[dict[str, Any]]:
    """The curve."""
    name, steps = str(settings["algorithm"]), int(settings["steps"])
    if name in MARKS:
        network, states = network_of(settings), states_of(network_of(settings), settings)
        utility = float(price(network, states, mark(settings).decide(states)).utility.mean())
        points = [(part * steps // _POINTS, utility) for part in range(1, _POINTS + 1)]
    else:
        points = binned(_baseline(name, settings) if name in BASELINES else _own(name, settings), steps)
    return [{"steps": step, "utility": utility} for step, utility in points]


def binned(points: Sequence[tuple[float, float]], steps: int) -> list[tuple[int, float]]:
    """Means of the second numbers where the first lie in the same fiftieth; its end."""
    parts: dict[int, list[float]] = {}
    for step, value in points:
        if np.isfinite(value):
            parts.setdefault(min(_POINTS, int(np.ceil(step * _POINTS / steps))), []).append(value)
    return [(part * steps // _POINTS, float(np.mean(values))) for part, values in sorted(parts.items())]


def _baseline(name: str, settings: Settings) -> list[tuple[float, float]]:
    from flower_bfl.controller.baselines import train_baseline

    curve = train_baseline(name, network_of(settings), int(settings["steps"]), int(settings["seed"])).curve
    return [(float(step), float(utility)) for step, utility in curve]


def _own(name: str, settings: Settings) -> list[tuple[float, float]]:
    import torch

    from flower_bfl.controller.learner import Learner, TrainingConfig

    torch.set_num_threads(1)
    training = TrainingConfig(
        steps=int(settings["steps"]),
        seed=int(settings["seed"]),
        architecture=_OWN[name],  # type: ignore[arg-type]
    )
    if scale := settings["step-scale"]:
        training = replace(training, step_scale=float(scale))
    if rate := settings["critic-learning-rate"]:
        training = replace(training, critic_learning_rate=float(rate))
    learner = Learner(network_of(settings), training)
    curve = []
    while not learner.has_finished:
        made = learner.update()
        curve.append((float(made.steps), made.utility))
    return curve
