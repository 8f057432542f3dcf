"""What is said of controllers is right: cost, how sure that is, time, and what it costs not to know."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from flower_bfl.controller import (
    AllLocalController,
    AssignmentController,
    GreedyController,
    NearOptimalController,
    comparison,
)
from flower_bfl.controller.comparison import (
    Comparison,
    Outcome,
    compare,
    mean_of,
    misestimated,
    ratio_of_means,
    stale_states,
)
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Radio,
    draw_states,
    price,
)

SMALL = NetworkConfig(devices=5, edge_servers=2, sub_channels=2)


def quick(network):
    """A near-optimal mark that takes milliseconds."""
    return NearOptimalController(network, kicks=0)


def made_of(**learning_s) -> Comparison:
    """A comparison of given seconds; 10 s of each total are not learning."""
    outcomes = {}
    for name, seconds in learning_s.items():
        seconds = np.array(seconds, dtype=np.float64)
        outcomes[name.replace("_", "-")] = Outcome(seconds + 10, seconds, 0.0, 0.0)
    return Comparison(SMALL, outcomes)


# --- figures ------------------------------------------------------------------------------------------------


def test_excess_and_gap_closed_are_ratios_of_means():
    made = made_of(all_local=[8, 12], near_optimal=[2, 6], mine=[2, 8])
    assert made.states == 2
    assert made.total_s("mine").value == 15
    assert made.learning_s("mine").value == 5
    assert made.excess("mine").value == pytest.approx(10 / 8 - 1)  # and not the mean of 0 % and 33 %
    assert made.gap_closed("mine").value == pytest.approx(10 / 12)
    # Residuals ±0.5 over 4, and ±1 over 6; 12.706 is Student's quantile of one degree of freedom.
    assert made.excess("mine").half == pytest.approx(12.7062 * 0.5 / 4, rel=1e-5)
    assert made.gap_closed("mine").half == pytest.approx(12.7062 / 6, rel=1e-5)
    assert made.excess("mine").low == made.excess("mine").value - made.excess("mine").half
    assert made.excess("mine").high == made.excess("mine").value + made.excess("mine").half


def test_the_marks_are_what_they_are_for_sure():
    made = made_of(all_local=[8, 12], near_optimal=[2, 6])
    assert (made.excess("near-optimal").value, made.excess("near-optimal").half) == (0, 0)
    assert (made.gap_closed("near-optimal").value, made.gap_closed("near-optimal").half) == (1, 0)
    assert (made.gap_closed("all-local").value, made.gap_closed("all-local").half) == (0, 0)


@pytest.mark.parametrize("near_optimal", [[8, 12], [8 - 1e-13, 12 - 1e-13], [7, 12.9], [9, 13]])
def test_of_no_gain_nothing_can_be_closed(near_optimal):
    made = made_of(all_local=[8, 12], near_optimal=near_optimal, mine=[9, 9])
    assert np.isnan([made.gap_closed("mine").value, made.gap_closed("mine").half]).all()


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(3.0, 2.0, 20)
    peer = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean_of(values).low, mean_of(values).high) == pytest.approx(tuple(peer))


def paired(rng, states: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """What is half as much again as the other in the mean, both from states that are more or less hard."""
    below = np.exp(rng.normal(0.0, 0.3, states))
    return below * (1 + 0.5 * np.exp(rng.normal(-(sigma**2) / 2, sigma, states))), below


def test_the_interval_of_a_ratio_is_near_that_of_a_bootstrap():
    above, below = paired(np.random.default_rng(1), 300, 0.3)
    one = ratio_of_means(above, below)
    peer = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert one.low == pytest.approx(peer.low, abs=0.08 * one.half)
    assert one.high == pytest.approx(peer.high, abs=0.08 * one.half)


@pytest.mark.parametrize(("sigma", "states", "share"), [(0.1, 64, 0.95), (0.1, 8, 0.95), (1.0, 64, 0.90)])
def test_intervals_cover_as_often_as_they_say(sigma, states, share):
    rng = np.random.default_rng(3)
    drawn = [ratio_of_means(*paired(rng, states, sigma)) for _ in range(3000)]
    covered = np.mean([one.low <= 1.5 <= one.high for one in drawn])
    assert covered == pytest.approx(share, abs=0.015)  # 0.004 to 0.006 is the standard error of the share


def test_what_is_hard_for_both_does_not_make_a_ratio_less_sure():
    above, below = paired(np.random.default_rng(4), 64, 0.1)
    shuffled = np.random.default_rng(5).permutation(below)
    assert ratio_of_means(above, below).half < ratio_of_means(above, shuffled).half / 3


# --- compare ------------------------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Decides as another, and keeps what it was shown."""

    inner: object
    seen: list[NetworkState] = field(default_factory=list)

    def decide(self, state):
        self.seen.append(state)
        return self.inner.decide(state)


def test_an_outcome_is_the_price_of_the_decisions():
    states = draw_states(SMALL, 4, np.random.default_rng(0))
    controllers = {"greedy": GreedyController(SMALL), "near-optimal": quick(SMALL)}
    made = compare(SMALL, controllers, states)
    assert list(made.outcomes) == ["all-local", "greedy", "near-optimal"]
    for name, controller in (controllers | {"all-local": AllLocalController(SMALL)}).items():
        cost = price(SMALL, states, controller.decide(states))
        np.testing.assert_allclose(made.outcomes[name].total_s, cost.total_s, rtol=1e-12)
        np.testing.assert_allclose(made.outcomes[name].learning_s, cost.learning_s, rtol=1e-12)
        assert made.outcomes[name].batch_s > 0 and made.outcomes[name].single_s > 0


def test_the_marks_are_there_unless_given():
    tiny = NetworkConfig(devices=2, edge_servers=1, sub_channels=2)
    states = draw_states(tiny, 2, np.random.default_rng(0))
    bare = compare(tiny, {}, states)
    assert list(bare.outcomes) == ["all-local", "near-optimal"]
    best = price(tiny, states, NearOptimalController(tiny).decide(states))
    np.testing.assert_allclose(bare.outcomes["near-optimal"].learning_s, best.learning_s, rtol=1e-9)
    own = Recorder(GreedyController(tiny))
    compare(tiny, {"near-optimal": own, "all-local": own}, states)
    assert len(own.seen) == 2 * (2 + 1)


@dataclass
class Slow:
    """Takes its time, on a clock of its own."""

    clock: list[float]
    call_s: float
    state_s: float
    batches: list[tuple[int, ...]] = field(default_factory=list)

    def decide(self, state):
        self.batches.append(state.batch)
        self.clock[0] += self.call_s + self.state_s * (state.batch or (1,))[0]
        return AllLocalController(SMALL).decide(state)


def test_time_is_told_for_many_states_and_for_one(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(comparison, "perf_counter", lambda: clock[0])
    quick_one, slow = Slow(clock, 0.1, 0.001), Slow(clock, 0.2, 0.6)
    heard = []
    made = compare(
        SMALL,
        {"all-local": quick_one, "near-optimal": slow},
        draw_states(SMALL, 7, np.random.default_rng(0)),
        progress=lambda *call: heard.append(call),
    )
    many, few = made.outcomes["all-local"], made.outcomes["near-optimal"]
    assert (many.single_s, many.batch_s) == pytest.approx((0.101, 0.1 / 7 + 0.001))
    assert quick_one.batches == [()] * 5 + [(7,)]
    # 0.8 s alone: two at once, for somebody waits for the bar to move; that is four calls for seven states.
    assert (few.single_s, few.batch_s) == pytest.approx((0.8, 4 / 7 * 0.2 + 0.6))
    assert slow.batches == [()] * 5 + [(2,), (2,), (2,), (1,)]
    assert heard == [("all-local", 7, 7), *[("near-optimal", done, 7) for done in (2, 4, 6, 7)]]


class Wrong:
    """Wants more CPU than there is."""

    def decide(self, state):
        decision = AllLocalController(SMALL).decide(state)
        return replace(decision, cpu_hz=decision.cpu_hz * np.array([1, 1, 9, 1, 1]))


STATES = draw_states(SMALL, 2, np.random.default_rng(0))
OTHERS = draw_states(SMALL, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (({}, STATES[0]), r"`states` must be a batch .* at least two, got \(\)"),
        (({}, STATES[:1]), r"`states` must be a batch .* at least two, got \(1,\)"),
        (({}, NetworkProcess(SMALL, np.random.default_rng(0), (2, 2)).state), r"`states` .* got \(2, 2\)"),
        (({}, draw_states(NetworkConfig(), 2, np.random.default_rng(0))), "`state` must have as many"),
        (({}, STATES, {"mine": STATES}), r"`beliefs` must be of controllers .*\[\], got 'mine'"),
        (({}, STATES, {"near-optimal": STATES}), "`beliefs` must be .* got 'near-optimal'"),
        (({"mine": Wrong()}, STATES, {"all-local": STATES}), r"`beliefs` must be .*\['mine'\], got 'all-l"),
        (({"mine": Wrong()}, STATES, {"mine": OTHERS}), r"`beliefs` must have .* got \(3, 5, 2, 2\) for 'mi"),
        (
            ({"mine": Wrong()}, STATES),
            r"`controllers` must decide feasibly, got from 'mine': \(28f\) device 2",
        ),
        (
            ({"mine": Wrong()}, STATES, {"mine": STATES}),
            "`controllers` must decide feasibly, got from 'mine'",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(arguments, said):
    controllers, *rest = arguments
    with pytest.raises(ConfigError, match=said):
        compare(SMALL, controllers | {"near-optimal": AllLocalController(SMALL)}, *rest)


# --- beliefs ------------------------------------------------------------------------------------------------


def test_who_believes_decides_on_that_and_pays_for_what_is_true():
    by_age = stale_states(SMALL, 6, (3,), np.random.default_rng(6))
    states, believed = by_age[0], by_age[3]
    mine = Recorder(GreedyController(SMALL))
    made = compare(SMALL, {"mine": mine, "near-optimal": GreedyController(SMALL)}, states, {"mine": believed})
    assert len(mine.seen) == 5 + 1
    np.testing.assert_array_equal(mine.seen[-1].gain, believed.gain)
    cost = price(SMALL, states, GreedyController(SMALL).decide(believed))
    fits = (cost.learning_j <= states.energy_slack_j).all(axis=1)
    assert fits.any()
    np.testing.assert_allclose(made.outcomes["mine"].learning_s[fits], cost.learning_s[fits], rtol=1e-12)
    assert made.excess("mine").value > 0


ONE = NetworkConfig(devices=1, edge_servers=1, sub_channels=1, radio=Radio(bandwidth_hz=1e6))


class Sender:
    """Offloads with 1 W and all the bandwidth."""

    def decide(self, state):
        one = np.ones(state.data_bits.shape)
        hash_rate = AllLocalController(ONE).decide(state).hash_rate
        return Decision(np.zeros(one.shape, dtype=int), one, 1e6 * one, 0 * one, hash_rate)


def lone_state(gain: float) -> NetworkState:
    two = np.ones((2, 1))
    return NetworkState(8e6 * two, 1e9 * two, 1e9 * two, 6.0 * two, gain * np.ones((2, 1, 1, 1)))


def test_who_lacks_the_energy_for_the_true_channel_sends_with_less_power_or_trains_itself():
    believed = lone_state(1e-10)

    def learning_s(true_gain):
        marks = {name: AllLocalController(ONE) for name in ("all-local", "near-optimal")}
        controllers = {"mine": Sender(), **marks}
        return (
            compare(ONE, controllers, lone_state(true_gain), {"mine": believed}).outcomes["mine"].learning_s
        )

    noise_w = 10 ** ((-174 + 1) / 10 - 3) * 1e6

    def rate_bps(power_w, gain):
        return 1e6 * np.log2(1 + power_w * gain / noise_w)

    edge_s = 1e9 / 5e9
    assert learning_s(1e-10) == pytest.approx(8e6 / rate_bps(1.0, 1e-10) + edge_s)
    # At 1 W it would take 8.0 J of 6 J; with the power that takes 6 J, sending is 6 J / p.
    gain = noise_w
    assert 8e6 / rate_bps(1.0, gain) == pytest.approx(8.0)
    power_w = brentq(lambda p: p * 8e6 / rate_bps(p, gain) - 6.0, 0.01, 1.0)
    assert learning_s(gain) == pytest.approx(6.0 / power_w + edge_s)
    # Even 10 mW take too much: C/f, and the upload with 1 W over all the bandwidth.
    gain = noise_w / 10
    assert 0.01 * 8e6 / rate_bps(0.01, gain) > 6.0
    cpu_hz = min(1e9, (6.0 / (5e-27 * 1e9)) ** 0.5)
    assert learning_s(gain) == pytest.approx(1e9 / cpu_hz + 40e3 / rate_bps(1.0, gain))


def test_to_know_the_truth_is_to_decide_as_well_as_one_can():
    rng = np.random.default_rng(8)
    network = NetworkConfig(devices=6, edge_servers=3, sub_channels=3)
    states, mine = draw_states(network, 16, rng), AssignmentController(network)
    errors = (0.0, 3.0, 10.0)
    beliefs = {f"{db} dB": misestimated(states, db, rng) for db in errors}
    marks = {"near-optimal": mine}
    made = compare(network, dict.fromkeys(beliefs, mine) | marks, states, beliefs)
    none, some, much = (made.excess(name).value for name in beliefs)
    assert none == pytest.approx(0.0, abs=1e-9)
    assert 0.01 < some < much


# --- what is believed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ages", [(), (0,), (1,), (2, 5), [5, 1, 0, 2, 2]])
def test_stale_states_have_the_gains_of_rounds_before(ages):
    stepped = NetworkProcess(SMALL, np.random.default_rng(9), (3,))
    history = [stepped.state]
    for _ in range(max(ages, default=0)):
        history.append(stepped.advance())
    by_age = stale_states(SMALL, 3, ages, np.random.default_rng(9))
    assert list(by_age) == sorted({0, *ages})
    for age, state in by_age.items():
        for each in fields(NetworkState):
            source = history[-1 - age] if each.name == "gain" else history[-1]
            np.testing.assert_array_equal(getattr(state, each.name), getattr(source, each.name))


def test_without_age_they_are_the_states_that_are_drawn():
    by_age = stale_states(SMALL, 3, (0,), np.random.default_rng(9))
    drawn = draw_states(SMALL, 3, np.random.default_rng(9))
    np.testing.assert_array_equal(by_age[0].gain, drawn.gain)


def test_old_gains_tell_less_and_less():
    flat = replace(SMALL, radio=Radio(shadowing_db=0.0, loss_per_decade_db=0.0, fading_correlation=0.9))
    by_age = stale_states(flat, 2000, (1, 2, 5), np.random.default_rng(10))
    for age, state in by_age.items():
        found = np.corrcoef(by_age[0].gain.ravel(), state.gain.ravel())[0, 1]
        assert found == pytest.approx(0.81**age, abs=0.02)  # of the power, the square of the amplitude's


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_error_is_normal_in_decibels_and_each_links_own(dtype):
    drawn = draw_states(SMALL, 3000, np.random.default_rng(11))
    state = replace(drawn, gain=drawn.gain.astype(dtype))
    before = state.gain.copy()
    wrong = misestimated(state, 3.0, np.random.default_rng(12))
    assert wrong.gain.dtype == dtype
    np.testing.assert_array_equal(state.gain, before)
    error_db = 10 * np.log10(wrong.gain.astype(np.float64) / state.gain)
    count = error_db.size  # 60,000
    assert error_db.mean() == pytest.approx(0.0, abs=4 * 3 / count**0.5)
    assert error_db.std() == pytest.approx(3.0, abs=4 * 3 / (2 * count) ** 0.5)
    assert stats.kstest(error_db.ravel() / 3, "norm").pvalue > 0.01
    links = error_db.reshape(len(error_db), -1).T  # each device, edge server and sub-channel
    others = np.corrcoef(links)[np.triu_indices(len(links), 1)]
    assert np.abs(others).max() < 5 / len(error_db) ** 0.5
    for each in fields(NetworkState):
        if each.name != "gain":
            np.testing.assert_array_equal(getattr(wrong, each.name), getattr(state, each.name))


def test_without_an_error_nothing_is_wrong_and_with_the_largest_there_is_a_gain_left():
    state = replace(STATES, gain=np.full_like(STATES.gain, 1e-34))
    np.testing.assert_array_equal(misestimated(state, 0.0, np.random.default_rng(0)).gain, state.gain)
    assert (misestimated(state, 100.0, np.random.default_rng(0)).gain > 0).all()


@pytest.mark.parametrize("error_db", [-0.1, 100.1, np.nan, np.inf])
def test_an_error_that_is_none_is_told(error_db):
    with pytest.raises(ConfigError, match="`error_db` must be from 0 to 100 dB, got "):
        misestimated(STATES, error_db, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("count", "ages", "said"), [(0, (1,), "`count`"), (2, (1, -1), "`ages`"), (2, (0.5,), "`ag")]
)
def test_a_count_or_an_age_that_is_none_is_told(count, ages, said):
    with pytest.raises(ConfigError, match=f"{said}.* must be a whole number"):
        stale_states(SMALL, count, ages, np.random.default_rng(0))
