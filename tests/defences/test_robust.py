import math
import statistics
from fractions import Fraction

import byzfl
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flower_bfl.defences import CentredClipping, Krum, Median, MultiKrum, TrimmedMean
from flower_bfl.defences.robust import assumed_malicious
from flower_bfl.errors import ConfigError

LARGEST = float(np.finfo(np.float32).max)
RULES = [Median(), TrimmedMean(), TrimmedMean(0.4), Krum(), Krum(0.4), MultiKrum(0.3), CentredClipping()]

numbers = st.floats(-1e6, 1e6, width=32)
tables = st.tuples(st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda s: arrays(np.float32, s, elements=numbers)
)
seeds = st.integers(0, 2**32 - 1)


def rows_of(n, size, seed=0):
    return np.random.default_rng(seed).standard_normal((n, size), dtype=np.float32)


def with_outliers(n, bad, seed=0, far=1e9):
    """Rows around 0, of which the first `bad` are far away, each in its own direction."""
    rows = rows_of(n, 6, seed)
    rows[:bad] *= np.float32(far)
    return rows


@pytest.mark.parametrize("n", [4, 5, 11, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_rules_give_what_the_byzfl_library_gives(n, seed):
    rows = rows_of(n, 257, seed)
    f = math.floor(0.2 * n)
    wide = rows.astype(np.float64)

    def same(ours, theirs):
        np.testing.assert_allclose(ours.combine(rows), theirs(wide), rtol=1e-6, atol=1e-7)

    same(Median(), byzfl.Median())
    same(TrimmedMean(0.2), byzfl.TrMean(f))
    # byzfl counts n − f − 1 neighbours, the paper n − f − 2: its Krum for f + 1 is the paper's for f.
    if 2 * (f + 1) < n:
        same(Krum(0.2), byzfl.Krum(f + 1))
    theirs = byzfl.CenteredClipping(
        L=3, tau=float(np.median(np.linalg.norm(wide - np.median(wide, 0), axis=1)))
    )
    theirs.m = np.median(wide, axis=0)  # its constructor refuses every starting point
    same(CentredClipping(), theirs)


@pytest.mark.parametrize(("n", "share"), [(7, 0.2), (10, 0.3), (20, 0.4), (5, 0.0), (4, 0.4)])
@pytest.mark.parametrize("seed", range(3))
def test_krum_and_multi_krum_follow_blanchard_et_al_computed_with_fractions(n, share, seed):
    rows = rows_of(n, 5, seed)
    f = {0.2: 1, 0.3: 3, 0.4: 8 if n == 20 else 1, 0.0: 0}[share]
    exact = [[Fraction(float(value)) for value in row] for row in rows]
    scores = []
    for i in range(n):
        apart = [
            sum((a - b) ** 2 for a, b in zip(exact[i], exact[j], strict=True)) for j in range(n) if j != i
        ]
        scores.append(sum(sorted(apart)[: max(1, n - f - 2)]))
    order = sorted(range(n), key=lambda i: (scores[i], i))
    np.testing.assert_array_equal(Krum(share).combine(rows), rows[order[0]])
    mean = [float(sum(exact[i][k] for i in order[: n - f]) / (n - f)) for k in range(5)]
    np.testing.assert_allclose(MultiKrum(share).combine(rows), mean, rtol=1e-6)


@given(tables)
def test_median_and_trimmed_mean_are_those_of_fractions(rows):
    n, f = len(rows), assumed_malicious(0.3, len(rows))
    columns = [sorted(Fraction(float(value)) for value in column) for column in rows.T]
    medians = [np.float32(float(statistics.median(column))) for column in columns]
    np.testing.assert_array_equal(Median().combine(rows), medians)
    for share, trimmed in ((0.3, f), (0.0, 0)):  # with share 0 the plain mean
        means = [float(sum(column[trimmed : n - trimmed]) / (n - 2 * trimmed)) for column in columns]
        found = TrimmedMean(share).combine(rows)
        # float64 sums of at most nine values up to 1e6, then one rounding to float32
        assert (np.abs(found - means) <= np.spacing(np.abs(np.float32(means))) * 0.51 + 1e-9).all()


@pytest.mark.parametrize("rule", RULES)
@given(rows=tables, seed=seeds)
@settings(max_examples=60)
def test_the_result_is_float32_within_the_rows_range_and_leaves_them_alone(rule, rows, seed):
    before = rows.copy()
    result = rule.combine(rows)
    np.testing.assert_array_equal(rows, before)
    assert result.dtype == np.float32 and result.shape == rows.shape[1:]
    slack = 1e-6 * np.abs(rows).max(initial=0)  # clipping adds rounded steps
    slack = slack if isinstance(rule, CentredClipping) else 0
    assert (rows.min(axis=0) - slack <= result).all() and (result <= rows.max(axis=0) + slack).all()


@pytest.mark.parametrize("rule", RULES)
@given(n=st.integers(3, 12), seed=seeds)
@settings(max_examples=40)
def test_the_order_of_the_rows_makes_no_bit_of_difference(rule, n, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 7), dtype=np.float32)
    apart = np.square(rows[:, None] - rows[None]).sum(axis=-1)[np.triu_indices(n, 1)].tolist()
    assume(len(set(apart)) == len(apart))
    if isinstance(rule, Krum | MultiKrum):
        assume(n - assumed_malicious(rule.share, n) - 2 > 1)  # with one neighbour, the nearest two tie
    result, again = rule.combine(rows), rule.combine(rows[rng.permutation(n)])
    np.testing.assert_array_equal(result.view(np.int32), again.view(np.int32))


@pytest.mark.parametrize("n", [5, 10, 13])
@pytest.mark.parametrize("far", [1e3, -1e9, 1e30])
def test_up_to_f_bad_rows_cannot_pull_the_result_out_of_the_honest_range(n, far):
    for share in (0.2, 0.4):
        f = assumed_malicious(share, n)
        rows = with_outliers(n, f, far=far)
        low, high = rows[f:].min(axis=0), rows[f:].max(axis=0)
        for rule in (Median(), TrimmedMean(share)):
            result = rule.combine(rows)
            assert (low <= result).all() and (result <= high).all()
        if n > 2 * f + 2:  # Krum's condition
            assert any(np.array_equal(Krum(share).combine(rows), row) for row in rows[f:])
            result = MultiKrum(share).combine(rows)
            np.testing.assert_allclose(result, rows[f:].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("far", [1e3, 1e9, 1e30])
def test_bad_rows_move_clipping_by_their_share_of_the_radius_a_step_however_far_they_are(far):
    rows = with_outliers(10, 3, far=far)
    wide = rows.astype(np.float64)
    median = np.median(wide, axis=0)
    distances = np.linalg.norm(wide - median, axis=1)
    for radius in (0.5, 1.0, 2.0):
        limit = radius * np.median(distances)
        honest = (wide - median)[3:] * np.minimum(1, limit / distances[3:])[:, None]
        expected = median + honest.sum(axis=0) / 10
        result = CentredClipping(radius, steps=1).combine(rows)
        assert np.linalg.norm(result - expected) <= 3 / 10 * limit * (1 + 1e-6)
        assert np.linalg.norm(result - median) <= limit * (1 + 1e-6)


def test_clipping_adds_up_in_the_same_order_whatever_that_of_the_rows():
    column = np.array([1e20, 1, -1e20, 1, 1e20, -1e20, 3], np.float32)  # float64 sums depend on the order
    results = {CentredClipping(1e6, 1).combine(np.roll(column, k)[:, None])[0].item() for k in range(7)}
    assert len(results) == 1


def test_a_large_radius_gives_the_mean_and_a_small_one_the_median():
    rows = rows_of(7, 50)
    np.testing.assert_allclose(CentredClipping(1e6).combine(rows), rows.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(CentredClipping(1e-6).combine(rows), np.median(rows, axis=0), atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_few_rows_give_a_sensible_answer(rule):
    one, two = rows_of(1, 4), rows_of(2, 4)
    np.testing.assert_array_equal(rule.combine(one), one[0])
    result = rule.combine(two)
    if isinstance(rule, Krum):
        np.testing.assert_array_equal(result, two[0])
    else:
        np.testing.assert_allclose(result, two.mean(axis=0), rtol=1e-6)


def test_krum_with_too_few_rows_for_its_promise_takes_one_of_the_nearest_two():
    rows = np.array([[9.0], [1.0], [5.0], [1.5]], np.float32)  # f = 1: 4 − 1 − 2 = 1 neighbour
    np.testing.assert_array_equal(Krum(0.4).combine(rows), [1.0])
    np.testing.assert_array_equal(Krum(0.4).combine(rows[[0, 1, 3]]), [1.0])  # none left: still one


@pytest.mark.parametrize("rule", RULES)
def test_equal_rows_give_that_row_and_equal_scores_the_lowest(rule):
    np.testing.assert_array_equal(rule.combine(np.full((5, 3), 7, np.float32)), [7, 7, 7])
    assert Krum().combine(np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)) == [1.0]


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_numbers_do_not_overflow(rule):
    rows = np.full((5, 3), LARGEST, np.float32)
    np.testing.assert_array_equal(rule.combine(rows), rows[0])
    rows[2:] *= -1  # differences of twice the largest number
    assert np.isfinite(rule.combine(rows)).all()


@pytest.mark.parametrize("rule", RULES)
def test_no_zero_has_a_sign_which_a_sort_may_choose(rule):
    zeros = np.array([[0.0], [-0.0], [0.0], [-0.0], [-0.0]], np.float32)
    for rows in (zeros, zeros[::-1], -zeros):
        if not isinstance(rule, Krum):  # which returns a row as it is
            assert not np.signbit(rule.combine(rows)).any()


@pytest.mark.parametrize("rule", RULES)
def test_vectors_of_several_blocks_are_combined_like_their_parts(rule):
    """Also that distances add up over blocks: the last block alone decides who is near."""
    rows = np.tile(rows_of(1, 40_000), (6, 1))
    rows[:, -3:] = np.arange(18, dtype=np.float32).reshape(6, 3) ** 2
    result = rule.combine(rows)
    np.testing.assert_allclose(result[:-3], rows[0, :-3], rtol=1e-6)
    np.testing.assert_allclose(result[-3:], rule.combine(rows[:, -3:]), rtol=1e-6)


@pytest.mark.parametrize(
    ("share", "rows", "f"),
    [(0.2, 5, 1), (0.2, 4, 0), (0.3, 10, 3), (0.29, 100, 29), (0.1, 30, 3), (0.49, 1, 0), (0.49, 100, 49)],
)
def test_f_is_the_share_of_the_rows_as_it_is_written(share, rows, f):
    assert assumed_malicious(share, rows) == f


@pytest.mark.parametrize("kind", [TrimmedMean, Krum, MultiKrum])
@pytest.mark.parametrize("share", [-0.1, 0.5, math.nan, math.inf, True, "0.2", None, 10**400])
def test_a_bad_share_is_refused(kind, share):
    with pytest.raises(ConfigError, match=r"`share` must be a number from 0 to below 0\.5, got"):
        kind(share)


@pytest.mark.parametrize("radius", [0, -1.0, math.nan, math.inf, False, "1", 10**400])
def test_a_bad_radius_is_refused(radius):
    with pytest.raises(ConfigError, match="`radius` must be a number above 0 and at most 1e6, got"):
        CentredClipping(radius)


@pytest.mark.parametrize("steps", [0, 1.0, True, 1001])
def test_a_bad_number_of_steps_is_refused(steps):
    with pytest.raises(ConfigError, match="`steps` must be a whole number from 1 to 1000, got"):
        CentredClipping(steps=steps)
