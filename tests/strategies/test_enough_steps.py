"""φ_k of p2p_rounds="auto": the right number, and the same one on any machine."""

from math import fsum, sqrt

import numpy as np
import pytest
from enough import enough, laplacian
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl import AutoRounds, Outage
from flower_bfl.network import edge_graph, laplacian_mixing, metropolis_mixing, spectral_radius
from flower_bfl.strategies._enough_steps import planned, radius
from flower_bfl.strategies._outages import mixings_without
from flower_bfl.strategies.aggregation import Known
from flower_bfl.strategies.consensus import error_and_bound, reach_consensus

GRAPHS = ["complete", "ring", "line", "star", "random"]


def links_of(adjacency):
    return [(int(a), int(b)) for a, b in np.argwhere(adjacency) if a < b]


def chosen(rows, mass, mixing, auto, down=()):
    mixings = mixings_without(down, mixing, auto.most)
    return planned(auto, Known(rows), rows.shape[1], mass, mixings, down)


# -- λ -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(GRAPHS), st.integers(1, 12), st.integers(0, 99), st.booleans())
@settings(max_examples=150)
def test_lambda_is_never_too_small_and_hardly_too_large(name, servers, seed, metropolis):
    adjacency = edge_graph(name, servers, seed=seed)
    mixing = metropolis_mixing(adjacency) if metropolis else laplacian_mixing(adjacency)
    exact = spectral_radius(mixing)
    assert exact <= radius(mixing) + 1e-15
    assert radius(mixing) <= exact * (1 + 2e-6) + 1e-15


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_of_what_agrees_at_once_it_is_zero(servers):
    assert radius(np.full((servers, servers), 1 / servers)) == 0.0


def test_of_two_that_do_not_hear_of_each_other_it_is_one():
    assert radius(np.eye(2)) == pytest.approx(1, abs=1e-6)
    assert radius(np.eye(2)) >= 1


def radius_in_python(weights):
    """The same operations with Python's own numbers: what any IEEE machine gives."""
    n = len(weights)
    centred = [[weights[a][b] - 1 / n for b in range(n)] for a in range(n)]
    power = [[(centred[a][b] + centred[b][a]) / 2 for b in range(n)] for a in range(n)]
    norms = []
    for _ in range(21):
        norms.append(sqrt(fsum(x * x for row in power for x in row)))
        power = [[x / norms[-1] for x in row] for row in power]
        square = [[0.0] * n for _ in range(n)]
        for c in range(n):
            for a in range(n):
                for b in range(n):
                    square[a][b] += power[a][c] * power[c][b]
        power = square
    root = norms.pop()
    for norm in reversed(norms):
        root = norm * sqrt(root)
    return root * (1 + 2.0**-30)


@pytest.mark.parametrize(("name", "servers"), [("line", 3), ("ring", 5), ("star", 6), ("random", 9)])
def test_lambda_is_the_same_bits_as_pythons(name, servers):
    mixing = laplacian_mixing(edge_graph(name, servers, seed=3))
    assert radius(mixing) == radius_in_python(mixing.tolist())


# -- φ -------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(GRAPHS), st.integers(1, 7), st.integers(0, 999), st.booleans(),
    st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 50.0]), st.booleans(), st.integers(1, 400),
)  # fmt: skip
@settings(max_examples=200)
def test_it_is_the_number_that_plain_loops_give_and_it_is_enough(
    name, servers, seed, by_data, tolerance, absolute, rounds
):
    rng = np.random.default_rng(seed)
    adjacency = edge_graph(name, servers, seed=seed)
    rows = (rng.standard_normal((servers, 9)) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    mass = rng.dirichlet(np.ones(servers)) if by_data else np.full(servers, 1 / servers)
    auto = AutoRounds(tolerance, absolute, 40, rounds)
    plan = chosen(rows, mass, laplacian_mixing(adjacency), auto)
    phi, target = enough(
        dict(enumerate(rows.tolist())), dict(enumerate(mass.tolist())),
        [laplacian(links_of(adjacency), servers)] * 40, rounds=rounds, tolerance=tolerance, absolute=absolute,
    )  # fmt: skip
    assert len(plan.mixings) == phi
    assert plan.target == pytest.approx(target)
    if phi < 40:
        last, after = reach_consensus(rows, plan.mixings)[-1], mass.copy()
        for mixing in plan.mixings:
            after = mixing @ after
        for server in range(servers):
            error, within = error_and_bound(rows, last[server], mass, float(after[server]), plan.mixings)
            assert within <= plan.target * (1 + 1e-9)
            assert error <= plan.target + 1e-6 * (phi + 1) * np.abs(rows).sum() / after[server]


def test_no_step_is_left_out_or_too_many():
    """With one step fewer the bound is above the target, whatever the tolerance."""
    rows = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
    mixing, mass = laplacian_mixing(edge_graph("ring", 5)), np.full(5, 0.2)
    seen = set()
    for tolerance in 10.0 ** np.arange(-8, 4):
        plan = chosen(rows, mass, mixing, AutoRounds(tolerance, rounds=9))
        before = plan.mixings[:-1]
        seen.add(len(plan.mixings))
        if plan.mixings and len(plan.mixings) < 64:
            assert error_and_bound(rows, rows[0], mass, 0.2, before)[1] > plan.target
    assert 0 in seen and len(seen) > 8


def test_those_who_agree_take_no_step():
    same = np.tile(np.random.default_rng(0).standard_normal(8), (4, 1)).astype(np.float32)
    for mixing in (laplacian_mixing(edge_graph("line", 4)), np.eye(4)):
        assert len(chosen(same, np.full(4, 0.25), mixing, AutoRounds(1e-9, rounds=1)).mixings) == 0
    nothing = np.zeros((4, 8), np.float32)
    assert len(chosen(nothing, np.full(4, 0.25), np.eye(4), AutoRounds(rounds=1)).mixings) == 0


def test_exact_consensus_takes_one_step():
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    mixing = metropolis_mixing(edge_graph("complete", 6))
    assert len(chosen(rows, np.full(6, 1 / 6), mixing, AutoRounds(1e-20, rounds=1)).mixings) == 1


def test_what_cannot_agree_takes_all_steps_that_it_may():
    rows = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    plan = chosen(rows, np.full(4, 0.25), np.eye(4), AutoRounds(most=7, rounds=1))
    assert len(plan.mixings) == 7
    rows[0, 0] = np.inf
    mixing = laplacian_mixing(edge_graph("line", 4))
    assert len(chosen(rows, np.full(4, 0.25), mixing, AutoRounds(most=7, rounds=1)).mixings) == 7


def test_a_server_that_was_never_there_does_not_count():
    """The rest is complete, and exact: one step. With the absent one's row λ would be 1."""
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    rows[2] = 0
    mass = np.array([0.25, 0.25, 0, 0.25, 0.25])
    exact = np.full((5, 5), 0.25)
    exact[2], exact[:, 2], exact[2, 2] = 0, 0, 1
    plan = chosen(rows, mass, exact, AutoRounds(1e-12, rounds=1), [Outage(1, server=2)])
    assert len(plan.mixings) == 1
    assert error_and_bound(rows, rows[0], mass, 0.25, plan.mixings)[1] < 1e-9


def test_a_link_that_fails_on_the_way_takes_more_steps():
    rows = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    mixing, auto = laplacian_mixing(edge_graph("ring", 4)), AutoRounds(1e-4, rounds=1)
    down = [Outage(1, link=(0, 1), step=2)]
    whole = len(chosen(rows, np.full(4, 0.25), mixing, auto).mixings)
    broken = len(chosen(rows, np.full(4, 0.25), mixing, auto, down).mixings)
    ring = [(0, 1), (1, 2), (2, 3), (0, 3)]
    cut = laplacian(ring, 4)
    for a in (0, 1):
        cut[a][a] += cut[a][1 - a]
        cut[a][1 - a] = 0.0
    weights = [laplacian(ring, 4)] * 2 + [cut] * 62
    args = dict(enumerate(rows.tolist())), dict.fromkeys(range(4), 0.25)
    assert enough(*args, weights, rounds=1, tolerance=1e-4)[0] == broken > whole


def test_a_given_number_is_taken_as_it_is():
    mixings = [np.eye(2)] * 3
    plan = planned(3, Known(np.ones((2, 4), np.float32)), 4, np.full(2, 0.5), mixings, [])
    assert plan.mixings is mixings and plan.target is None


def squares_in_python(rows, mass):
    """The order of additions that docs/ledger.md gives, with Python's own numbers."""

    def folded(terms):
        while len(terms) > 1:
            half = (len(terms) + 1) // 2
            terms = [x + terms[half + i] if half + i < len(terms) else x for i, x in enumerate(terms[:half])]
        return terms[0]

    total = list(rows[0])
    for row in rows[1:]:
        total = [a + b for a, b in zip(total, row, strict=True)]
    spreads = [folded([(x - s * t) * (x - s * t) for x, t in zip(row, total, strict=True)])
               for row, s in zip(rows, mass, strict=True)]  # fmt: skip
    return folded([t * t for t in total]), fsum(spreads)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_sums_are_the_same_bits_as_pythons(size):
    from flower_bfl.strategies._enough_steps import _squares

    rows = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    mass = np.array([0.2, 0.3, 0.5])
    wanted = squares_in_python(rows.astype(float).tolist(), mass.tolist())
    assert _squares(Known(rows), size, mass) == wanted


def test_sums_over_many_blocks_are_those_of_the_blocks():
    from flower_bfl.strategies._enough_steps import _squares

    size = 5 * 65_536 + 3
    rows = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)
    mass = np.array([0.5, 0.5])
    parts = [_squares(Known(rows[:, low : low + 65_536]), min(65_536, size - low), mass)
             for low in range(0, size, 65_536)]  # fmt: skip
    assert _squares(Known(rows), size, mass) == tuple(map(fsum, zip(*parts, strict=True)))
