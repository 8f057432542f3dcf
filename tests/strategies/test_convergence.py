"""Theorem 1 and Corollary 1: against calculations by hand, in their limits, and against what they bound."""

from dataclasses import replace
from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flower_bfl.errors import ConfigError
from flower_bfl.network import edge_graph, laplacian_mixing, spectral_radius
from flower_bfl.strategies.convergence import (
    LossConstants,
    RoundConstants,
    bound,
    consensus_steps,
    gradient_divergence,
    largest_scale,
    step_size,
    step_size_limit,
)

LOSS = LossConstants(smoothness=2.0, initial_gap=3.0, dissimilarity=1.5, dissimilarity_offset=0.7)
FIRST = RoundConstants(
    samples=[20, 30, 50], steps=[1, 4, 2], batch=[5, 30, 10], variance=[2.0, 1.0, 0.5],
    variability=[1.0, 2.0, 3.0], servers=4, radius=0.6, p2p_rounds=3, divergence=1.3, drift=9.0,
)  # fmt: skip
SECOND = replace(FIRST, samples=[10, 30, 60], steps=[2, 2, 3], batch=[5, 10, 60], p2p_rounds=1, drift=0.2)


def by_hand(rounds, scale, weight):
    """(13), term by term, in plain loops; `weight` M/2 (M−1) for a leader that is drawn."""
    count, beta = len(rounds), 2.0
    e_avg, e_hat, e_max, per_device = [], [], [], []
    for now in rounds:
        total = sum(now.samples)
        e_avg.append(sum(now.steps) / len(now.steps))
        e_hat.append(sum(d * e for d, e in zip(now.samples, now.steps, strict=True)) / total)
        e_max.append(max(now.steps))
        per_device.append([
            (d / total, e, (1 - b / d) * v / b * t * t)
            for d, e, b, v, t in zip(
                now.samples, now.steps, now.batch, now.variance, now.variability, strict=True
            )
        ])  # fmt: skip
    uneven = max(e_hat) / min(e_hat) * sqrt(max(e_avg) / min(e_avg))
    factor = 8 * sqrt(max(e_avg)) / (scale * min(e_hat) * sqrt(count))
    b = sum(share * (e - 1) * noise for each in per_device for share, e, noise in each)
    c = sum(0.7 * e * (e - 1) for e in e_max)
    d = sum(weight * now.radius ** (2 * now.p2p_rounds) * now.divergence**2 for now in rounds)
    e = sum((share / sqrt(e)) ** 2 * noise for each in per_device for share, e, noise in each)
    local = 80 * beta**2 * scale**2 / (count**2 * min(e_avg))
    return {
        "initial": factor * 3.0,
        "drift": factor * sum(now.drift for now in rounds[1:]),
        "local_noise": uneven * local * b,
        "heterogeneity": uneven * local * c,
        "consensus": uneven * 12 * d / count,
        "noise": uneven * 16 * beta * scale * max(e_hat) / (count * sqrt(count) * sqrt(min(e_avg))) * e,
    }


# -- the terms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["drawn", "any"])
@pytest.mark.parametrize("rounds", [[FIRST], [FIRST, FIRST], [FIRST, SECOND, SECOND]])
def test_the_bound_is_what_plain_loops_give(rounds, leader):
    scale = largest_scale(LOSS, rounds) / 2
    found = bound(LOSS, rounds, scale, leader=leader)
    expected = by_hand(rounds, scale, 4 * 3 / 2 * (4 if leader == "any" else 1))
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name
    assert found.total == pytest.approx(sum(expected.values()))


def test_rounds_that_are_alike_weigh_nothing_differently():
    """Then (13) is the paper's, but for its M in (d): 12 · M(M−1)/2 in place of 24 M, the same for M = 5."""
    now = replace(FIRST, servers=5)
    found = bound(LOSS, [now] * 4, 0.01)
    assert found.consensus == pytest.approx(24 * 5 * 0.6**6 * 1.3**2)


def test_the_step_size_is_the_smaller_of_two_limits():
    e_max, tau = 4, (20 * 1 + 30 * 4 + 50 * 2) / 100
    first, second = 1 / 4 * sqrt(1 / ((4 * 1.5 + 1) * e_max * (e_max - 1))), 1 / (2 * 2.0 * tau)
    assert step_size_limit(LOSS, FIRST) == pytest.approx(min(first, second)) == pytest.approx(first)
    one = replace(FIRST, steps=[1, 1, 1])
    assert step_size_limit(LOSS, one) == pytest.approx(1 / 4)
    assert step_size(0.5, 100, FIRST) == pytest.approx(0.5 / sqrt(100 * 7 / 3))


def test_the_largest_scale_is_the_limit_in_some_round_and_above_it_in_none():
    rounds = [FIRST, SECOND] * 5
    scale = largest_scale(LOSS, rounds)
    ratios = [step_size(scale, 10, now) / step_size_limit(LOSS, now) for now in rounds]
    assert max(ratios) == pytest.approx(1)
    bound(LOSS, rounds, scale)
    with pytest.raises(ConfigError, match=r"`scale` must keep η of round \d in \(0, "):
        bound(LOSS, rounds, scale * 1.001)


# -- limits --------------------------------------------------------------------------------------------------


def test_one_step_of_sgd_leaves_nothing_of_the_local_models_moving_apart():
    found = bound(LOSS, [replace(FIRST, steps=[1, 1, 1])] * 3, 0.05)
    assert (found.local_noise, found.heterogeneity) == (0, 0)
    assert found.noise > 0 and found.consensus > 0


def test_full_batches_have_no_noise():
    found = bound(LOSS, [replace(FIRST, batch=FIRST.samples)] * 3, 0.05)
    assert (found.local_noise, found.noise) == (0, 0)
    assert found.heterogeneity > 0


def test_of_equal_losses_and_equal_data_only_the_way_down_is_left():
    same = LossConstants(2.0, 3.0)
    now = RoundConstants([30.0, 30.0], [3, 3], [30, 30], servers=2, radius=0.5, p2p_rounds=0, divergence=0.0)
    found = bound(same, [now] * 9, 0.05)
    assert found.total == found.initial == pytest.approx(8 * sqrt(3) / (0.05 * 3 * 3) * 3.0)


def test_many_steps_of_consensus_leave_nothing_of_its_error():
    assert bound(LOSS, [replace(FIRST, p2p_rounds=5000)] * 3, 0.05).consensus == 0
    assert bound(LOSS, [replace(FIRST, radius=0.0)] * 3, 0.05).consensus == 0
    assert bound(LOSS, [replace(FIRST, servers=1)] * 3, 0.05).consensus == 0


def test_with_a_choice_of_phi_by_corollary_1_the_bound_goes_down_as_one_over_the_root_of_k():
    """(16): all terms but those in 1/K are constants over √K, so √K times the bound does not grow."""
    totals = []
    for count in (10**2, 10**4):
        phi = consensus_steps(0.6, 1.3, 4, count, xi=0.3)
        rounds = [replace(FIRST, p2p_rounds=phi, drift=0.0)] * count
        found = bound(LOSS, rounds, 0.05)
        assert found.consensus <= 24 * 0.3 / sqrt(count)
        totals.append(sqrt(count) * found.total)
    assert totals[1] <= 1.01 * totals[0]  # φ is a whole number


# -- what makes it worse -------------------------------------------------------------------------------------

positive = st.floats(0.01, 100)


@given(positive, positive, st.floats(1, 10), st.floats(0, 10), st.integers(1, 30), st.integers(0, 9))
def test_monotone(beta, gap, zeta1, zeta2, count, phi):
    loss = LossConstants(beta, gap, zeta1, zeta2)
    now = replace(FIRST, p2p_rounds=phi)
    scale = largest_scale(loss, [now] * count) / 4

    def total(loss=loss, **changed):
        return bound(loss, [replace(now, **changed)] * count, scale).total

    here = total()
    slack = here * (1 + 1e-12)
    assert total(p2p_rounds=phi + 1) <= slack
    assert here <= total(radius=0.7) * (1 + 1e-12)
    assert here <= total(divergence=1.4) * (1 + 1e-12)
    assert here <= total(variance=[2.5, 1.0, 0.6]) * (1 + 1e-12)
    assert here <= total(variability=[1.0, 2.5, 3.0]) * (1 + 1e-12)
    assert here <= total(servers=5) * (1 + 1e-12)
    assert total(batch=[6, 30, 11]) <= slack
    assert here <= total(loss=replace(loss, initial_gap=2 * gap)) * (1 + 1e-12)
    assert here <= total(loss=replace(loss, dissimilarity_offset=zeta2 + 1)) * (1 + 1e-12)
    assert here <= bound(loss, [now] * count, scale, leader="any").total * (1 + 1e-12)
    limit = step_size_limit(loss, now)
    assert limit >= step_size_limit(replace(loss, smoothness=2 * beta), now)
    assert limit >= step_size_limit(replace(loss, dissimilarity=zeta1 + 1), now)
    assert limit >= step_size_limit(loss, replace(now, steps=[1, 5, 2]))


# -- Corollary 1 ---------------------------------------------------------------------------------------------


@given(
    st.floats(0.01, 0.99), positive, st.integers(2, 12), st.integers(1, 1000), st.floats(1e-6, 10),
    st.sampled_from(["drawn", "any"]),
)  # fmt: skip
def test_the_steps_are_the_logarithm_rounded_up(radius, divergence, servers, rounds, xi, leader):
    weight = (servers if leader == "drawn" else servers**2) * (servers - 1) / 4
    ratio = xi / (sqrt(rounds) * divergence**2 * weight)
    by_logarithm = max(np.log(ratio) / np.log(radius), 0) / 2
    assume(abs(by_logarithm - round(by_logarithm)) > 1e-9)
    found = consensus_steps(radius, divergence, servers, rounds, xi, leader=leader)
    assert found == int(np.ceil(by_logarithm))


def test_the_steps_in_their_limits():
    assert consensus_steps(0.0, 1.0, 3, 100, 1e-9) == 1
    assert consensus_steps(0.9, 0.0, 3, 100, 1e-9) == 0
    assert consensus_steps(1.0, 1e-6, 3, 100, 1.0) == 0
    assert consensus_steps(0.5, 1.0, 1, 100, 1e-9) == 0
    with pytest.raises(ConfigError, match=r"`radius` must be in \[0, 1\) for edge servers to agree, got 1.0"):
        consensus_steps(1.0, 1.0, 3, 100, 1e-9)


def test_the_divergence_is_the_largest_distance():
    rows = np.random.default_rng(0).standard_normal((5, 7))
    largest = 0.0
    for one in rows:
        for other in rows:
            largest = max(largest, sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True))))
    assert gradient_divergence(rows) == pytest.approx(largest)
    assert gradient_divergence(rows[:1]) == 0


# -- what is bounded -----------------------------------------------------------------------------------------


@given(
    st.sampled_from(["complete", "ring", "line", "star"]),
    st.integers(2, 9),
    st.integers(0, 6),
    st.integers(0, 99),
)
@settings(max_examples=100)
def test_term_d_bounds_the_error_of_the_sum(graph, servers, steps, seed):
    rng = np.random.default_rng(seed)
    sums = rng.standard_normal((servers, 6)) * rng.uniform(0, 3, (servers, 1))
    mixing = laplacian_mixing(edge_graph(graph, servers))
    states = np.linalg.matrix_power(mixing, steps) @ sums
    errors = ((servers * states - sums.sum(axis=0)) ** 2).sum(axis=1)
    now = RoundConstants(
        [1], [1], [1], servers=servers, radius=spectral_radius(mixing), p2p_rounds=steps,
        divergence=gradient_divergence(sums),
    )  # fmt: skip
    found = {leader: bound(LOSS, [now], 0.01, leader=leader).consensus for leader in ("drawn", "any")}
    assert 12 * errors.mean() <= found["drawn"] * (1 + 1e-9) + 1e-12
    assert 12 * errors.max() <= found["any"] * (1 + 1e-9) + 1e-12


def test_the_papers_weight_of_term_d_is_too_small_from_six_edge_servers_on():
    """Partial aggregates that are as far from each other as they can be, before any step."""
    for servers, enough in ((4, True), (5, True), (6, False), (9, False)):
        sums = np.eye(servers)
        divergence = gradient_divergence(sums)
        error = ((servers * sums - sums.sum(axis=0)) ** 2).sum(axis=1).mean()
        assert (12 * error <= 24 * servers * divergence**2 * (1 + 1e-12)) == enough
        now = RoundConstants([1], [1], [1], servers=servers, radius=1.0, divergence=divergence)
        assert bound(LOSS, [now], 0.01).consensus == pytest.approx(12 * error)


def test_mini_batch_noise_is_at_most_what_the_terms_take_it_for():
    """Simple random sampling without replacement, all batches: the variance of the mean, times Θ²."""
    from itertools import combinations

    data = np.random.default_rng(0).standard_normal((6, 2))
    whole = data.mean(axis=0)
    off = [((data[list(batch)].mean(axis=0) - whole) ** 2).sum() for batch in combinations(range(6), 2)]
    now = RoundConstants([6], [1], [2], variance=data.var(axis=0, ddof=1).sum(), variability=1.0)
    assert np.mean(off) == pytest.approx(now.noise[0])


def test_a_run_by_hand_stays_below_the_bound():
    """Quadratic losses, two devices at each of three edge servers on a line; the leader is drawn."""
    rng = np.random.default_rng(5)
    homes = np.repeat(3 * rng.standard_normal((3, 4)), 2, axis=0)
    data = [home + rng.standard_normal((20 + 5 * y, 4)) for y, home in enumerate(homes)]
    samples, steps, batch = [len(own) for own in data], [1, 2, 3, 4, 2, 3], [5] * 6
    share = np.array(samples) / sum(samples)
    best = share @ [own.mean(axis=0) for own in data]
    start = best + 3
    apart = sum(s * ((own.mean(axis=0) - best) ** 2).sum() for s, own in zip(share, data, strict=True))
    loss = LossConstants(1.0, float(((start - best) ** 2).sum() / 2), 1.0, float(apart))
    mixing = laplacian_mixing(edge_graph("line", 3))
    variance = [own.var(axis=0, ddof=1).sum() for own in data]
    base = RoundConstants(
        samples, steps, batch, variance, 1.0, servers=3, radius=spectral_radius(mixing), p2p_rounds=2
    )
    count = 50
    eta = step_size(scale := largest_scale(loss, [base] * count), count, base)
    w, squared, rounds = start.copy(), [], []
    for _ in range(count):
        squared.append(((w - best) ** 2).sum())
        sums = np.zeros((3, 4))
        for y, own in enumerate(data):
            local = w.copy()
            for _ in range(steps[y]):
                local -= eta * (local - own[rng.choice(len(own), batch[y], replace=False)].mean(axis=0))
            sums[y // 2] += share[y] / steps[y] * (w - local) / eta
        rounds.append(replace(base, divergence=gradient_divergence(sums)))
        held = np.linalg.matrix_power(mixing, 2) @ sums
        w -= eta * float(share @ steps) * 3 * held[rng.integers(3)]
    assert np.mean(squared) <= bound(loss, rounds, scale).total


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LossConstants(0, 1), "`smoothness` must be positive and finite, got 0"),
        (lambda: LossConstants(1, -1), "`initial_gap` must be at least 0 and finite, got -1"),
        (lambda: LossConstants(1, 1, 0.9), "`dissimilarity` must be at least 1 and finite, got 0.9"),
        (
            lambda: LossConstants(1, 1, 1, inf),
            "`dissimilarity_offset` must be at least 0 and finite, got inf",
        ),
        (lambda: replace(FIRST, samples=[]), "`samples` must have shape"),
        (lambda: replace(FIRST, steps=[1, 2]), r"`steps` must have shape \(3,\), got \(2,\)"),
        (lambda: replace(FIRST, steps=[0, 1, 1]), "`steps` must be finite and at least 1, got"),
        (lambda: replace(FIRST, variance=[-1, 0, 0]), "`variance` must be finite and at least 0, got"),
        (lambda: replace(FIRST, batch=[21, 30, 10]), "`batch` must be at most `samples`, got"),
        (lambda: replace(FIRST, servers=0), "`servers` must be a whole number from 1"),
        (lambda: replace(FIRST, p2p_rounds=-1), "`p2p_rounds` must be a whole number from 0"),
        (lambda: replace(FIRST, radius=1.1), r"`radius` must be in \[0, 1\], got 1.1"),
        (lambda: replace(FIRST, divergence=-1.0), "`divergence` must be at least 0 and finite, got -1"),
        (lambda: bound(LOSS, [], 0.1), "`rounds` must be at least one, got none"),
        (lambda: bound(LOSS, [FIRST], 0.0), "`scale` must keep"),
        (lambda: consensus_steps(0.5, 1.0, 3, 10, 0.0), "`xi` must be positive, got 0"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
