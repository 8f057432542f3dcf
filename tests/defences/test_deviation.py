import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.defences import Deviation
from flower_bfl.defences.deviation import lengths_and_cosines
from flower_bfl.errors import ConfigError

SIZE = 500
LARGEST = float(np.finfo(np.float32).max)


def iid_rows(n, seed=0, spread=0.7, size=SIZE):
    """Gradients of devices with like data: a common direction and noise, cosines around 0.67."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(size)
    return (common + spread * rng.standard_normal((n, size))).astype(np.float32)


def slow_scores(rows):
    """The definition, with Python's numbers, one pair at a time."""
    n, rows = len(rows), [[float(value) for value in row] for row in rows]

    def median(values):
        values = sorted(values)
        return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2

    def standardised(values, least):
        centre = median(values)
        scale = max(1.4826 * median([abs(value - centre) for value in values]), least)
        return [(value - centre) / scale for value in values]

    lengths = [math.sqrt(math.fsum(value * value for value in row)) for row in rows]
    cosines = [
        [
            math.fsum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (lengths[i] * lengths[j])
            for j in range(n)
            if j != i
        ]
        for i in range(n)
    ]
    ratios = [length / median(lengths) for length in lengths]
    excess = standardised([r - 1 if r >= 1 else 1 - 1 / r for r in ratios], 0.1)
    agreement = standardised([median(of_row) for of_row in cosines], 0.1)
    chords = [math.sqrt(max(0, 2 - 2 * max(of_row))) for of_row in cosines]
    near = standardised(chords, max(0.01, median(chords) / 4))
    copies = [-value if chord < 0.01 else 0 for value, chord in zip(near, chords, strict=True)]
    return [max(abs(a), -b, c) for a, b, c in zip(excess, agreement, copies, strict=True)]


@given(st.integers(3, 9), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=50)
def test_scores_are_those_of_the_definition(n, seed, attacked):
    rows = iid_rows(n, seed, size=40)
    if attacked:
        rows[0] *= -4
        rows[1] = rows[2]
    # rounding to whole numbers moves a cosine by 1e-14, a score by the root of it at most
    np.testing.assert_allclose(Deviation().scores(rows), slow_scores(rows), rtol=1e-6, atol=1e-5)


def test_a_plain_z_score_never_fires_for_five_values_and_this_one_does():
    """The trap: (x − mean)/std of n values is at most √(n−1), so 2σ is never passed for n <= 5."""
    for far in (10.0, 1e3, 1e9):
        rows = iid_rows(5)
        rows[3] *= np.float32(far)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        plain = (lengths - lengths.mean()) / lengths.std()
        assert abs(plain).max() <= 2 + 1e-9
        assert Deviation().suspects(rows) == (3,)


def noisy(row, mean, deviation, rng):
    return row + 3 * np.linalg.norm(row) / np.sqrt(row.size) * rng.standard_normal(row.size)


ATTACKS = {
    "noise": noisy,
    "sign flip": lambda row, mean, deviation, rng: -row,
    "scaling": lambda row, mean, deviation, rng: 5 * row,
    "zeros": lambda row, mean, deviation, rng: 0 * row,
    "a little is enough": lambda row, mean, deviation, rng: mean - 1.5 * deviation,
    "inner product, short": lambda row, mean, deviation, rng: -0.5 * mean,
    "inner product, long": lambda row, mean, deviation, rng: -2 * mean,
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("bad", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_attacks_on_like_data_are_found_and_nobody_else_is_accused(name, bad, seed):
    rows, rng = iid_rows(10, seed, spread=1.0), np.random.default_rng(seed)
    mean, deviation = rows[bad:].mean(axis=0), rows[bad:].std(axis=0)
    for y in range(bad):
        rows[y] = ATTACKS[name](rows[y], mean, deviation, rng)
    if name == "a little is enough" and bad == 1:
        # Alone it has no copy, and its length is 1.3 honest ones: here it hides.
        assert Deviation().suspects(rows) in ((), (0,))
    else:
        assert Deviation().suspects(rows) == tuple(range(bad))


@pytest.mark.parametrize("n", [3, 4, 5, 20])
def test_honest_rows_are_not_accused(n):
    for seed in range(30):
        assert Deviation().suspects(iid_rows(n, seed)) == ()
        assert Deviation().suspects(iid_rows(n, seed, spread=30)) == ()  # all directions differ


def test_honest_devices_with_the_same_labels_are_no_copies():
    rows = iid_rows(10, spread=3.0)
    rows[1] = rows[0] + 0.1 * rows[2]  # cosine 0.995
    rows[1] *= np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    assert Deviation().suspects(rows) == ()
    rows[1] = rows[0]
    assert Deviation().suspects(rows) == (0, 1)


@pytest.mark.parametrize("n", [3, 4, 5, 10])
@pytest.mark.parametrize("far", [-1, 5, 0, 1e30])
def test_one_far_row_among_identical_others_is_found(n, far):
    rows = np.tile(iid_rows(1), (n, 1))
    assert Deviation().suspects(rows) == ()
    rows[1] *= np.float32(far)
    assert Deviation().suspects(rows) == (1,)


def test_rows_that_differ_by_rounding_or_length_alone_have_no_copies():
    rows = np.tile(iid_rows(1), (6, 1)) * np.linspace(0.95, 1.05, 6, dtype=np.float32)[:, None]
    assert Deviation().suspects(rows) == ()


def test_zeros_do_not_divide_by_zero():
    zeros = np.zeros((5, 4), np.float32)
    np.testing.assert_array_equal(Deviation().scores(zeros), 0)
    zeros[4] = 1e-30
    assert Deviation().suspects(zeros) == (4,)
    half = np.zeros((4, 4), np.float32)
    half[2:] = iid_rows(2, size=4)
    assert np.isfinite(Deviation().scores(half)).all()


def test_the_largest_numbers_do_not_overflow():
    rows = np.full((5, 100_000), LARGEST, np.float32)
    rows[2] *= -1
    assert Deviation().suspects(rows) == (2,)
    rows[2] = np.finfo(np.float32).smallest_subnormal
    assert Deviation().suspects(rows) == (2,)


@pytest.mark.parametrize("n", [1, 2])
def test_nobody_is_suspected_among_fewer_than_three(n):
    rows = iid_rows(n)
    rows[0] *= -100
    assert Deviation().suspects(rows) == ()
    np.testing.assert_array_equal(Deviation().scores(rows), np.zeros(n))


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.01, 3))
@settings(max_examples=100)
def test_suspects_are_fewer_than_half_the_most_suspicious_and_the_same_in_any_order(n, seed, threshold):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((n, 5)) * rng.exponential(size=(n, 1)) ** 3).astype(np.float32)
    defence = Deviation(threshold)
    scores, suspects = defence.scores(rows), defence.suspects(rows)
    assert 2 * len(suspects) < n and list(suspects) == sorted(set(suspects))
    above = np.flatnonzero(scores > threshold)
    assert len(suspects) == min(len(above), (n - 1) // 2)
    left = np.setdiff1d(above, suspects)
    assert not left.size or not suspects or scores[list(suspects)].min() >= scores[left].max()
    order = rng.permutation(n)
    np.testing.assert_array_equal(defence.scores(rows[order]), scores[order])


def test_of_equal_scores_the_lower_rows_are_suspected():
    rows = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]], np.float32) * np.float32([[1], [9], [9], [1]])
    assert Deviation().scores(rows)[1] == Deviation().scores(rows)[2] > 0.1
    assert Deviation(0.1).suspects(rows) == (1,)


def test_lengths_and_cosines_are_right_for_outlying_coordinates_and_several_blocks():
    rows = iid_rows(4, size=70_001)
    rows[:, 0] = [1e4, 3, -1e4, 0]
    rows[3] = 0
    wide = rows.astype(np.float64)
    lengths, cosines = lengths_and_cosines(rows)
    np.testing.assert_allclose(lengths, np.linalg.norm(wide, axis=1), rtol=1e-6)
    expected = wide[:3] @ wide[:3].T / np.outer(lengths[:3], lengths[:3])
    np.testing.assert_allclose(cosines[:3, :3], expected, atol=1e-5)
    np.testing.assert_array_equal(cosines[3], 0)


def test_products_are_whole_numbers_that_float64_holds_exactly():
    """What makes the order of a BLAS irrelevant, shown with Python's whole numbers."""
    rows = iid_rows(3, size=20_000)
    levels = math.isqrt(2**53 // 20_000)
    whole = [
        [round(float(value) / float(abs(row).max()) * levels) for value in row.astype(np.float64)]
        for row in rows
    ]
    products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in whole] for x in whole]
    assert max(map(max, products)) <= 2**53
    norms = [math.sqrt(products[y][y]) for y in range(3)]
    _, cosines = lengths_and_cosines(rows)
    for i in range(3):
        for j in range(3):
            assert cosines[i, j] == min(1.0, products[i][j] / norms[i] / norms[j])


def test_the_bits_do_not_depend_on_the_processor_that_the_blas_is_made_for():
    program = (
        "import numpy as np; from flower_bfl.defences import Deviation, Krum, CentredClipping;"
        "rows = np.random.default_rng(0).standard_normal((9, 50_000), dtype=np.float32);"
        "print(Deviation().scores(rows).tobytes().hex(),"
        " Krum().combine(rows).sum(), CentredClipping().combine(rows).tobytes().hex()[:200])"
    )
    cores = ["Haswell", "Prescott"]  # with and without fused multiply-add
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_CORETYPE": core, "NPY_DISABLE_CPU_FEATURES": features},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for core, features in zip(cores, ["", "AVX2 FMA3"], strict=True)
    }
    assert len(found) == 1


@pytest.mark.parametrize("threshold", [0, -1.0, math.nan, math.inf, True, "2", None, 10**400])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(ConfigError, match="`threshold` must be a number above 0 and at most 1e6, got"):
        Deviation(threshold)
