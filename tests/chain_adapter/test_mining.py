"""The mining race against what probability theory says of it."""

import numpy as np
import pytest
from scipy import stats

from flower_bfl.chain_adapter.mining import fork_probability, race
from flower_bfl.config import Mining
from flower_bfl.errors import ConfigError

RATES = np.array([1e11, 2e11, 5e11, 1e12])
RACES = 4000


@pytest.fixture(scope="module")
def races():
    rng = np.random.default_rng(1)
    return [race(RATES, 5e10, 100, rng) for _ in range(RACES)]


def test_devices_win_in_proportion_to_their_hash_rates(races):
    won = np.bincount([each.winner for each in races], minlength=4)
    assert stats.chisquare(won, RACES * RATES / RATES.sum()).pvalue > 1e-3


def test_the_chi_square_test_would_notice_another_rule(races):
    won = np.bincount([each.winner for each in races], minlength=4)
    assert stats.chisquare(won, np.full(4, RACES / 4)).pvalue < 1e-9


def test_forks_are_as_frequent_as_the_paper_says(races):
    """Each block is orphaned with p = 1 − exp(−100/600), independently: the forks are geometric."""
    p = 1 - np.exp(-100 / 600)
    assert fork_probability(100) == pytest.approx(p)
    forks = np.bincount([each.forks for each in races], minlength=4)
    expected = RACES * stats.geom.pmf(np.arange(1, 4), 1 - p)
    observed = [*forks[:3], forks[3:].sum()]
    assert stats.chisquare(observed, [*expected, RACES - expected.sum()]).pvalue > 1e-3


def test_the_fastest_of_exponential_times_is_exponential(races):
    """Without a fork, a race takes ħ/ΣΨ on average, and its length says nothing about the winner."""
    clean = [each.seconds for each in races if each.forks == 0]
    assert stats.kstest(clean, stats.expon(scale=5e10 / RATES.sum()).cdf).pvalue > 1e-3


def test_an_empty_block_is_never_orphaned():
    rng = np.random.default_rng(2)
    assert fork_probability(0) == 0
    assert all(race(RATES, 1.0, 0, rng).forks == 0 for _ in range(100))


def test_the_same_seed_gives_the_same_race():
    assert race(RATES, 5e10, 30, np.random.default_rng(3)) == race(RATES, 5e10, 30, np.random.default_rng(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hash_rates": 0}, "`hash_rates` must be positive and finite, got 0"),
        ({"hash_rates": [1e11, float("nan")]}, "`hash_rates`"),
        ({"hash_rates": []}, "`hash_rates`"),
        ({"work_hashes": -1}, "`work_hashes`"),
        ({"difficulty_bits": 0}, "`difficulty_bits` must be a whole number from 1 to 32, got 0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Mining(**arguments)


def test_rates_by_device():
    mining = Mining(hash_rates=[1e11, 2e11, 3e11])
    np.testing.assert_array_equal(mining.rates_of([2, 0]), [3e11, 1e11])
    with pytest.raises(ConfigError, match="`hash_rates` must have one for device 3, got 3 rates"):
        mining.rates_of([3])
