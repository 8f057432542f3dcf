"""Runs on quadratic losses: their constants by plain loops, and what a run reports by formulas of its own."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from statistics import variance

import numpy as np
import pytest

from flower_bfl import MemoryLedger
from flower_bfl.chain_adapter import Kind
from flower_bfl.errors import ConfigError
from flower_bfl.paper import _convergence
from flower_bfl.paper.runs import KINDS
from flower_bfl.strategies.convergence import Bound

SETTINGS = {
    "devices": 6, "edge-servers": 3, "graph": "line", "rounds": 8, "limit-at": 4, "steps": "3", "seed": 1,
}  # fmt: skip
PROBLEM = _convergence.quadratic(6, 3)
POINTS = [PROBLEM.start, PROBLEM.best, np.random.default_rng(7).normal(size=20)]


def run(**settings):
    kind = KINDS["convergence"]
    kind.check({**SETTINGS, **settings})
    (row,) = kind.run({**SETTINGS, **settings})
    assert set(row) == set(kind.columns)
    return row


# -- the problem's constants ---------------------------------------------------------------------------------


def local_loss(device, weights):
    """F_y, sample by sample."""
    own = PROBLEM.data[device]
    return sum(float(PROBLEM.curvature @ (weights - sample) ** 2) / 2 for sample in own) / len(own)


def shares():
    total = sum(len(own) for own in PROBLEM.data)
    return [len(own) / total for own in PROBLEM.data]


def loss(weights):
    return sum(share * local_loss(y, weights) for y, share in enumerate(shares()))


def slope(function, weights, width=1e-4):
    """The gradient by central differences, which are exact for a quadratic but for rounding."""
    steps = width * np.eye(len(weights))
    return np.array([(function(weights + step) - function(weights - step)) / (2 * width) for step in steps])


@pytest.mark.parametrize("weights", POINTS)
def test_the_squared_gradient_is_that_of_the_differences_of_losses(weights):
    assert PROBLEM.squared_gradient(weights) == pytest.approx((slope(loss, weights) ** 2).sum(), abs=1e-8)


def test_the_loss_is_least_where_the_problem_says_and_so_much_less_than_at_the_start():
    least = loss(PROBLEM.best)
    assert all(loss(PROBLEM.best + step) > least for step in 1e-3 * np.vstack([np.eye(20), -np.eye(20)]))
    assert PROBLEM.loss().initial_gap == pytest.approx(loss(PROBLEM.start) - least)


@pytest.mark.parametrize("weights", POINTS[1:])
def test_local_gradients_differ_by_zeta_and_no_more(weights):
    """(17), with equality: all losses have the same curvature."""
    gradients = [slope(lambda w, y=y: local_loss(y, w), weights) for y in range(6)]
    apart = sum(share * (each**2).sum() for share, each in zip(shares(), gradients, strict=True))
    constants = PROBLEM.loss()
    whole = PROBLEM.squared_gradient(weights)
    assert apart == pytest.approx(constants.dissimilarity * whole + constants.dissimilarity_offset)


def test_the_gradient_changes_by_beta_at_most_and_along_one_direction_by_just_that():
    before, rng = slope(loss, PROBLEM.start), np.random.default_rng(3)
    ratios = []
    for step in [*np.eye(20), *rng.normal(size=(5, 20))]:
        change = slope(loss, PROBLEM.start + step) - before
        ratios.append(np.linalg.norm(change) / np.linalg.norm(step))
    assert max(ratios) == pytest.approx(PROBLEM.loss().smoothness)


def test_the_variance_of_the_data_is_that_of_the_standard_library():
    found = PROBLEM.round().variance
    for y, own in enumerate(PROBLEM.data):
        assert found[y] == pytest.approx(sum(variance(column) for column in own.T.tolist()))


def test_data_differ_more_between_edge_servers_than_at_one():
    means = [own.mean(axis=0) for own in PROBLEM.data]
    apart = {(i, j): np.linalg.norm(means[i] - means[j]) for i, j in combinations(range(6), 2)}
    same = [far for (i, j), far in apart.items() if PROBLEM.servers[i] == PROBLEM.servers[j]]
    assert len(same) == 3
    assert max(same) < min(far for far in apart.values() if far not in same)


# -- the devices ---------------------------------------------------------------------------------------------


def test_a_step_on_all_data_is_one_down_the_local_loss():
    full = replace(PROBLEM, steps=np.ones(6, int), batch=PROBLEM.samples.astype(int))
    devices = _convergence.Devices(full, 0.3, 0)
    for y in (0, 5):
        expected = full.start - 0.3 * slope(lambda w, y=y: local_loss(y, w), full.start)
        assert devices.trained(y, 1, full.start) == pytest.approx(expected)


@pytest.fixture
def kept(monkeypatch):
    """What a run made: its devices, and its ledger."""
    found = {}

    def keep(name, kind):
        def make(*args):
            found[name] = kind(*args)
            return found[name]

        monkeypatch.setattr(_convergence, kind.__name__, make)

    keep("devices", _convergence.Devices)
    keep("ledger", MemoryLedger)
    return found


def test_one_edge_server_descends_as_the_algorithm_by_hand(kept):
    """(6) to (12) without consensus: w − η τ Σ_y D_y/(D e_y) g_y."""
    row = run(**{"edge-servers": 1, "graph": "complete", "steps": "0", "rounds": 5})
    problem, devices = _convergence.quadratic(6, 1), kept["devices"]
    part = problem.samples / problem.samples.sum()
    weights, squared = problem.start, []
    for k in range(1, 6):
        squared.append(problem.squared_gradient(weights))
        moved = [weights - devices.trained(y, k, weights) for y in range(6)]
        direction = sum(p / e * each for p, e, each in zip(part, problem.steps, moved, strict=True))
        weights = weights - part @ problem.steps * direction
    assert row["measured"] == pytest.approx(np.mean(squared), rel=1e-5)
    assert row["last"] == pytest.approx(problem.squared_gradient(weights), rel=1e-4)
    assert row["consensus"] == 0
    assert devices.divergences(1) == [0] * 5


def test_the_divergence_is_that_of_the_recorded_sums(kept):
    run()
    sums = {}
    for entry in kept["ledger"].entries():
        if entry.kind is Kind.CONSENSUS and entry.step == 0:
            start = 8 + int.from_bytes(entry.payload[:8], "little")
            array = np.frombuffer(entry.payload[start:], np.float32)
            sums.setdefault(entry.round, []).append(array.astype(float))
    told = [max(np.linalg.norm(a - b) for a, b in combinations(sums[k], 2)) for k in range(1, 9)]
    assert kept["devices"].divergences(3) == pytest.approx(told, rel=1e-5)


# -- what a run reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", ["3", "auto", "xi"])
def test_the_bound_holds_and_is_the_sum_of_its_terms(steps):
    row = run(steps=steps)
    assert 0 < row["last"] < row["measured"] < row["bound"]
    assert row["share_of_bound"] == row["measured"] / row["bound"]
    assert sum(row[name] for name in Bound.__dataclass_fields__) == pytest.approx(row["bound"])
    assert row["phi_least"] <= row["phi"] <= row["phi_most"]


@pytest.mark.parametrize("steps", ["0", "3", "auto", "xi"])
def test_transactions_are_those_on_the_ledger_and_of_the_formula(steps, kept):
    """A gradient of each device, x^(0) to x^(φ) of each edge server, the model and its seal."""
    row = run(steps=steps)
    entries = Counter(entry.round for entry in kept["ledger"].entries())
    assert row["transactions"] == sum(entries[k] for k in range(1, 9))
    assert row["transactions"] == pytest.approx(8 * (6 + 3 * (row["phi"] + 1) + 2))


def test_fixed_steps_are_taken_as_told_and_chosen_ones_differ():
    assert [run()[name] for name in ("phi", "phi_least", "phi_most")] == [3, 3, 3]
    assert run(steps="auto")["phi_most"] > 3


def test_more_steps_leave_less_of_term_d():
    few, many = run(steps="3"), run(steps="12")
    # λ of this line is 1 − 0.9/3, and term (d) falls with λ^(2φ); Ξ hardly differs between the runs.
    assert many["consensus"] / few["consensus"] == pytest.approx(0.7**18, rel=0.2)


def test_a_seed_gives_one_row_and_another_one_other_batches():
    assert run() == run()
    assert run(seed=2)["measured"] != run()["measured"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": "many"}, "`steps` must be 'auto', 'xi' or a number, got 'many'"),
        ({"graph": "knot"}, "`graph` must be"),
        ({"rounds": 0}, "`rounds` must be a whole number from 1"),
        ({"limit-at": 9}, "`limit-at` must be a whole number from 1 to 8, got 9"),
    ],
)
def test_settings_that_break_a_rule(wrong, said):
    with pytest.raises(ConfigError, match=said):
        KINDS["convergence"].check({**SETTINGS, **wrong})
