import math
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.strategies._layout import FlatView, Layout
from flower_bfl.strategies.aggregation import (
    CumulativeGradient,
    NotFiniteError,
    PartialAggregates,
    boost,
    contribution_weights,
    data_shares,
    each_block,
    updated_model,
    whole,
)


def aggregate_at_servers(gradients, weights, server_of, servers, size):
    return whole(PartialAggregates(gradients, weights, server_of, servers), servers, size)


def vectors(count, size, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


def test_partial_aggregates_follow_equation_8_computed_with_fractions():
    samples, steps, server_of = [10, 20, 30], [5, 1, 2], [1, 0, 1]
    gradients = vectors(3, 4)
    total = sum(samples)
    expected = np.zeros((3, 4))
    for parameter in range(4):
        for server in range(3):
            exact = sum(
                Fraction(samples[y], total * steps[y]) * Fraction(float(gradients[y, parameter]))
                for y in range(3)
                if server_of[y] == server
            )
            expected[server, parameter] = np.float32(float(exact))
    weights = contribution_weights(np.array(samples), np.array(steps))
    partials = aggregate_at_servers(gradients, weights, np.array(server_of), 3, 4)
    assert partials.dtype == np.float32
    np.testing.assert_array_equal(partials, expected)  # server 2 has no device: zeros


def test_a_hundred_devices_with_a_million_parameters_lose_no_precision():
    n, size = 100, 1_000_000
    row = vectors(1, size)[0]
    # nearly equal values with alternating signs: a float32 running sum would lose four digits here
    gradients = [row * np.float32(1000 if y % 2 else -1000) + np.float32(y) for y in range(n)]
    weights = contribution_weights(np.arange(1, n + 1), np.full(n, 3))
    partial = aggregate_at_servers(gradients, weights, np.zeros(n, int), 1, size)[0]
    for parameter in range(0, size, 9973):
        exact = math.fsum(weights[y] * float(gradients[y][parameter]) for y in range(n))
        assert abs(float(partial[parameter]) - exact) <= np.spacing(np.float32(abs(exact))) * 0.51


def test_the_result_does_not_depend_on_the_number_of_processors(monkeypatch):
    gradients, weights, server_of = vectors(7, 500_000), np.random.default_rng(1).random(7), np.arange(7) % 3
    results = []
    for processors in (1, 2, 5):
        monkeypatch.setattr(os, "cpu_count", lambda processors=processors: processors)
        results.append(aggregate_at_servers(gradients, weights, server_of, 3, 500_000).tobytes())
    assert results[0] == results[1] == results[2]


def test_gradients_that_are_not_finite_are_named():
    gradients = vectors(4, 6)
    gradients[1, 2], gradients[3, 4] = np.nan, np.inf
    with pytest.raises(NotFiniteError) as caught:
        aggregate_at_servers(gradients, np.ones(4), np.zeros(4, int), 1, 6)
    assert caught.value.positions == {1, 3}


@pytest.mark.parametrize("learning_rate", [1.0, 0.003])
def test_cumulative_gradients_are_differences_over_the_step_size(learning_rate):
    before, after = vectors(2, 50)
    gradient = CumulativeGradient(before, after, learning_rate)
    expected = (before.astype(float) - after) / learning_rate
    np.testing.assert_allclose(gradient[0:50], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[10:20], gradient[0:50][10:20])


def test_boost_and_shares_are_weighted_by_samples():
    samples, steps = np.array([10, 30, 60]), np.array([1, 2, 5])
    assert boost(samples, steps) == pytest.approx((10 + 60 + 300) / 100)
    np.testing.assert_allclose(data_shares(samples, np.array([0, 2, 0]), 4), [0.7, 0, 0.3, 0])


def test_the_update_is_equation_12():
    model, state = vectors(2, 9)
    updated = updated_model(model, state, 1 / 3, 4.0, 0.1)
    np.testing.assert_allclose(updated, model - 0.1 * 4.0 * 3 * state, rtol=1e-6)
    assert updated.dtype == np.float32


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_a_flat_view_reads_like_the_concatenation(sizes, data):
    parts = [
        np.full(size, number, np.float32) + np.arange(size, dtype=np.float32) / 10
        for number, size in enumerate(sizes)
    ]
    whole = np.concatenate(parts)
    start = data.draw(st.integers(0, max(whole.size - 1, 0)))
    stop = data.draw(st.integers(start, whole.size))
    np.testing.assert_array_equal(FlatView(parts)[start:stop], whole[start:stop])


def test_blocks_cover_everything_once_and_in_order():
    for size in (0, 1, 1 << 16, (1 << 18) + 7):
        covered = [
            number for part in each_block(size, lambda part: range(part.start, part.stop)) for number in part
        ]
        assert covered == list(range(size))


def test_a_layout_splits_what_gradients_move_from_what_they_cannot():
    arrays = {
        "w": vectors(2, 3),
        "seen": np.array(7, np.int64),
        "b": np.ones(2, np.float64),
    }
    layout = Layout.of(arrays)
    assert (layout.trained, layout.copied, layout.size) == (["w", "b"], ["seen"], 8)
    model = layout.model(layout.vector(arrays)[0:8] * 2, {"seen": np.array(9)})
    assert list(model) == ["w", "seen", "b"]
    np.testing.assert_array_equal(model["w"], arrays["w"] * 2)
    assert model["b"].dtype == np.float64 and model["seen"] == 9 and model["seen"].dtype == np.int64
