"""Numbers of runs, and in a word what they say of a claim."""

import math
from pathlib import Path

import numpy as np
import pytest
from hand_made import filled, latency
from scipy.stats import ttest_1samp

from flower_bfl.errors import ConfigError
from flower_bfl.paper.claims import Verdict, estimate, taken, verdicts
from flower_bfl.paper.experiment import Claim, Take

NAN = math.nan
RISES = [{"round": float(k), "s": 10.0 * k, "y": y} for k, y in enumerate([0.0, 4.0, 9.0, 7.0, 10.0])]
FALLS = [{**row, "y": 3 - row["y"]} for row in RISES]


@pytest.mark.parametrize(
    ("take", "rows", "number"),
    [
        (Take(), RISES, 10.0),
        (Take(points=3), RISES, (9 + 7 + 10) / 3),
        (Take(points=99), RISES, 6.0),
        (Take("reach", level=4.0), RISES, 1.0),
        (Take("reach", level=8.0), RISES, 2.0),
        (Take("reach", level=9.5, x="s"), RISES, 40.0),
        (Take("reach", level=11.0), RISES, NAN),
        (Take("reach", level=-1.0), FALLS, 0.0),
        (Take("settle", share=0.9), RISES, 2.0),
        (Take("settle", share=0.95, x="s"), RISES, 40.0),
        (Take("settle", share=0.4), FALLS, 1.0),  # 3 down to -7: -1 is reached at the second
        (Take("settle", share=0.95), FALLS, 4.0),
        (Take("drop", at=(3.0,)), RISES, 2.0),
        (Take("drop", at=(1, 3)), RISES, (-4 + 2) / 2),
        (Take("drop", at=(3, 60)), RISES, 2.0),  # a short version ends before the second attack
        (Take("drop", at=(20, 60)), RISES, NAN),
        (Take("drop", at=(0,)), RISES, NAN),
        (Take("drop", at=()), RISES, NAN),
        (Take("drop", at=(30.0,), x="s"), RISES, NAN),  # there is nothing at 29
        *((Take(what, level=1.0, at=(1,)), [], NAN) for what in ("last", "reach", "settle", "drop")),
    ],
)
def test_one_number_of_a_run(take, rows, number):
    assert taken(take, "y", rows) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize("what", ["last", "settle", "drop"])
def test_a_number_that_is_not_there_is_none(what):
    rows = [{"round": 0.0, "y": NAN}, {"round": 1.0, "y": NAN}]
    assert math.isnan(taken(Take(what, at=(1,)), "y", rows))
    assert math.isnan(taken(Take("reach", level=0), "y", rows))


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, -0.2, 0.9, 1.4], [5.0, 5.0, 5.0]])
def test_intervals_are_students(values):
    told = estimate(values)
    assert told.value == pytest.approx(np.mean(values))
    if np.ptp(values):
        interval = ttest_1samp(values, 0).confidence_interval(0.95)
        assert (told.low, told.high) == pytest.approx((interval.low, interval.high))
    else:
        assert told.half == pytest.approx(0)


def test_one_number_has_no_interval_and_none_no_mean():
    assert estimate([2.0]).value == 2.0 and math.isnan(estimate([2.0]).half)
    assert math.isnan(estimate([]).value) and math.isnan(estimate([]).half)


ABOUT_5, ABOUT_0 = [4.9, 5.0, 5.1], [-1.0, 0.0, 1.0]  # intervals 5 ± 0.25 and 0 ± 2.5
OVER = {"algorithm": "greedy"}


@pytest.mark.parametrize(
    ("numbers", "paper", "expect", "over", "word"),
    [
        # Which way only.
        (ABOUT_5, None, "above", OVER, "borne out"),
        (ABOUT_5, None, "below", OVER, "not borne out"),
        ([-x for x in ABOUT_5], None, "below", OVER, "borne out"),
        ([-x for x in ABOUT_5], None, "above", OVER, "not borne out"),
        (ABOUT_0, None, "above", OVER, "undecided"),
        (ABOUT_0, None, "below", OVER, "undecided"),
        ([0.0, 0.0, 0.0], None, "above", OVER, "not borne out"),
        # With the paper's number.
        (ABOUT_5, 3.0, "above", OVER, "borne out"),
        (ABOUT_5, 5.2, "above", OVER, "borne out"),
        (ABOUT_5, 8.0, "above", OVER, "partly"),
        (ABOUT_0, 2.0, "above", OVER, "undecided"),
        (ABOUT_0, 8.0, "above", OVER, "not borne out"),
        ([-x for x in ABOUT_5], 8.0, "above", OVER, "not borne out"),
        ([-x for x in ABOUT_5], -3.0, "below", OVER, "borne out"),
        ([-x for x in ABOUT_5], -8.0, "below", OVER, "partly"),
        (ABOUT_5, -8.0, "below", OVER, "not borne out"),
        (ABOUT_0, -2.0, "below", OVER, "undecided"),
        # A number by itself, held against the paper's.
        (ABOUT_5, 3.0, "above", None, "borne out"),
        (ABOUT_5, 8.0, "above", None, "not borne out"),
        (ABOUT_5, 5.1, "above", None, "undecided"),
        (ABOUT_5, 8.0, "below", None, "borne out"),
        (ABOUT_5, 3.0, "below", None, "not borne out"),
        (ABOUT_5, 4.9, "below", None, "undecided"),
        (ABOUT_5, None, "above", None, "borne out"),
        # Too little to say.
        ([5.0], 3.0, "above", OVER, "undecided"),
        ([5.0], None, "below", None, "undecided"),
        ([], None, "above", OVER, "undecided"),
    ],
)
def test_in_a_word(numbers, paper, expect, over, word):
    claim = Claim("c", "y", of={}, over=over, paper=paper, expect=expect)
    assert Verdict(claim, estimate(numbers), len(numbers)).word == word


@pytest.mark.parametrize(
    ("entries", "numbers", "line"),
    [
        ({}, ABOUT_5, "who wins: paper above it, measured +5 ± 0.25, 3 seeds: borne out"),
        (
            {"paper": 8.0, "unit": "points"},
            ABOUT_5,
            "who wins: paper +8 points, measured +5 ± 0.25 points, 3 seeds: partly",
        ),
        (
            {"paper": -11, "unit": "%", "expect": "below"},
            [-3.25],
            "who wins: paper −11 %, measured −3.25 %, 1 seed: undecided",
        ),
    ],
)
def test_as_a_line(entries, numbers, line):
    claim = Claim("who wins", "y", of={}, over=OVER, **entries)
    assert str(Verdict(claim, estimate(numbers), len(numbers))) == line


def claimed(tmp_path: Path, totals, **entries):
    claim = {"text": "c", "column": "total_s", "of": {"devices": 3, "algorithm": "all-local"}} | entries
    return verdicts(filled(latency(claim=[claim]), tmp_path, totals))


def test_pairs_are_of_the_same_seed(tmp_path: Path):
    """Seeds differ by 100, ours from theirs by 1, 2 and 3: unpaired, nothing could be told."""
    totals = {(3, "all-local"): [101.0, 202.0, 303.0], (3, "greedy"): [100.0, 200.0, 300.0]}
    (found,) = claimed(tmp_path, totals, over={"devices": 3, "algorithm": "greedy"})
    interval = ttest_1samp([1, 2, 3], 0).confidence_interval()
    assert (found.measured.low, found.measured.high) == pytest.approx(tuple(interval))
    assert (found.measured.value, found.seeds) == (2, 3)


def test_by_how_many_percent(tmp_path: Path):
    totals = {(3, "all-local"): [1.5, 3.0], (3, "greedy"): [1.0, 4.0]}
    (found,) = claimed(tmp_path, totals, over={"devices": 3, "algorithm": "greedy"}, measure="percent")
    assert found.measured.value == pytest.approx((50 - 25) / 2)


def test_seeds_that_one_side_lacks_are_left_out(tmp_path: Path):
    totals = {(3, "all-local"): [1.0, 2.0, NAN, 4.0], (3, "greedy"): [0.0, NAN, 7.0, 1.0]}
    (found,) = claimed(tmp_path, totals, over={"devices": 3, "algorithm": "greedy"})
    assert found.seeds == 2
    assert found.measured.value == (1 + 3) / 2


def test_numbers_that_are_none_are_left_out(tmp_path: Path):
    totals = {(3, "all-local"): [1.0, 2.0, 9.0]}
    (found,) = claimed(tmp_path, totals, take={"what": "reach", "level": 2.0, "x": "total_s"})
    assert (found.measured.value, found.seeds) == (5.5, 2)


def test_no_runs_no_verdict(tmp_path: Path):
    assert claimed(tmp_path, {(5, "all-local"): [1.0]}) == []
    assert claimed(tmp_path, {}, over={"algorithm": "greedy"}) == []


def test_a_claim_of_several_runs_a_seed_is_refused(tmp_path: Path):
    totals = {(3, "all-local"): [1.0], (5, "all-local"): [2.0]}
    with pytest.raises(ConfigError, match=r"one run a seed, got several for .*all-local"):
        claimed(tmp_path, totals, of={"algorithm": "all-local"})
