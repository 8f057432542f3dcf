"""Learning curves: what the library's learners give, in fiftieths."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.controller import GreedyController
from flower_bfl.controller.baselines import BASELINES as KNOWN
from flower_bfl.controller.baselines import train_baseline
from flower_bfl.controller.learner import Learner, TrainingConfig
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig, draw_states, price
from flower_bfl.paper import _control
from flower_bfl.paper._learning_curve import binned, check, run

SETTINGS = {
    "devices": 4, "states": 3, "steps": 2560, "step-scale": 0.0, "critic-learning-rate": 0.0, "seed": 5,
}  # fmt: skip


def plain(points: list[tuple[int, float]], steps: int) -> list[tuple[int, float]]:
    """Part k of 50 holds the steps from above (k − 1)/50 of them to k/50; what lies behind is the last's."""
    rows = []
    for part in range(51):
        low, high = Fraction((part - 1) * steps, 50), Fraction(part * steps, 50)
        inside = [y for x, y in points if (low < x <= high or (part == 50 and x > high)) and math.isfinite(y)]
        if inside:
            rows.append((math.floor(high), sum(inside) / len(inside)))
    return rows


@given(
    points=st.lists(st.tuples(st.integers(1, 3000), st.one_of(st.floats(-9, 9), st.just(math.nan)))),
    steps=st.integers(50, 2500),
)
def test_means_of_fiftieths(points, steps):
    found, expected = binned(points, steps), plain(points, steps)
    assert [x for x, _ in found] == [x for x, _ in expected]
    assert [y for _, y in found] == pytest.approx([y for _, y in expected])


@pytest.mark.parametrize("steps", [640, 2560, 20480, 51200])
def test_a_mark_is_flat_and_has_every_point(steps):
    rows = run({**SETTINGS, "algorithm": "greedy", "steps": steps})
    network = NetworkConfig(devices=4)
    states = draw_states(network, 3, np.random.default_rng([2026, 5]))
    utility = price(network, states, GreedyController(network).decide(states)).utility.mean()
    assert [row["steps"] for row in rows] == [part * steps // 50 for part in range(1, 51)]
    assert {row["utility"] for row in rows} == {float(utility)}


def test_a_baselines_curve_is_what_its_training_says():
    rows = run({**SETTINGS, "algorithm": "a2c-relaxed", "steps": 6400})
    curve = train_baseline("a2c-relaxed", NetworkConfig(devices=4), 6400, 5).curve
    assert [(row["steps"], row["utility"]) for row in rows] == plain(curve.tolist(), 6400)
    assert len(rows) > 2


@pytest.mark.parametrize(
    ("algorithm", "settings", "training"),
    [
        ("shared", {}, {"architecture": "shared"}),
        ("paper", {}, {"architecture": "paper"}),
        ("shared", {"step-scale": 0.3}, {"step_scale": 0.3}),
        ("shared", {"critic-learning-rate": 0.05}, {"critic_learning_rate": 0.05}),
    ],
)
def test_our_curve_is_what_the_learner_says(algorithm, settings, training):
    rows = run({**SETTINGS, "algorithm": algorithm, **settings})
    learner = Learner(NetworkConfig(devices=4), TrainingConfig(steps=2560, seed=5, **training))
    points = []
    while not learner.has_finished:
        made = learner.update()
        points.append((made.steps, made.utility))
    expected = plain(points, 2560)
    assert [row["steps"] for row in rows] == [step for step, _ in expected]
    assert [row["utility"] for row in rows] == pytest.approx([utility for _, utility in expected])
    assert len(rows) > 2


def test_names_are_the_librarys():
    assert set(_control.BASELINES) == set(KNOWN)


def test_settings_are_checked():
    check({**SETTINGS, "algorithm": "paper"})
    with pytest.raises(ConfigError, match=r"`algorithm` must be one of .*shared, paper, got 'best'"):
        check({**SETTINGS, "algorithm": "best"})
    with pytest.raises(ConfigError, match=r"`settings` may have .*got 'critic-rate'"):
        check({**SETTINGS, "algorithm": "paper", "critic-rate": 1.0})
    for name in SETTINGS.keys() - {"devices", "seed"}:
        with pytest.raises(ConfigError, match=f"`settings` must have {name}"):
            check({key: value for key, value in SETTINGS.items() if key != name} | {"algorithm": "paper"})
