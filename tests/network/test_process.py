"""How networks are drawn and how they change: distributions with scipy, energy by hand."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig, NetworkProcess, NetworkState, Radio, Tasks, draw_states
from flower_bfl.network.channel import path_gain

# No shadowing: what is left of a gain is path loss and fading.
PLAIN = NetworkConfig(
    devices=20, edge_servers=2, sub_channels=3, radio=Radio(shadowing_db=0.0), tasks=Tasks(drift=0.3)
)


def process_of(network=PLAIN, batch=(50,), seed=5):
    return NetworkProcess(network, np.random.default_rng(seed), batch)


def fading_of(process):
    return process.state.gain / path_gain(process.network, process.positions_m)[..., None]


def fits(values, distribution):
    """Kolmogorov and Smirnov's test; the seeds are fixed, so it fails once and for all or never."""
    assert stats.kstest(np.ravel(values), distribution).pvalue > 1e-3


def uniform(pair):
    return stats.uniform(pair[0], pair[1] - pair[0]).cdf


@pytest.mark.parametrize("rounds", [0, 200])
def test_tasks_are_uniform_in_their_ranges_and_stay_so(rounds):
    process = process_of()
    for _ in range(rounds):
        process.advance()
    tasks = PLAIN.tasks
    for name in ("data_bits", "work_cycles", "cpu_hz", "energy_slack_j"):
        fits(getattr(process.state, name), uniform(getattr(tasks, name)))


@pytest.mark.parametrize("rounds", [0, 30])
def test_fading_power_is_exponential_with_mean_one_and_stays_so(rounds):
    process = process_of()
    for _ in range(rounds):
        process.advance()
    fits(fading_of(process), stats.expon.cdf)


@pytest.mark.parametrize("correlation", [0.9, 0.5, 0.0])
def test_fading_is_an_autoregression_of_the_complex_amplitude(correlation):
    # For h' = ρh + w, complex normal, the correlation of |h|² is ρ² after one round and ρ⁴ after two.
    network = replace(PLAIN, radio=replace(PLAIN.radio, fading_correlation=correlation))
    process = process_of(network, batch=(1000,))
    power = [fading_of(process).ravel()]
    for _ in range(2):
        process.advance()
        power.append(fading_of(process).ravel())
    assert np.corrcoef(power[0], power[1])[0, 1] == pytest.approx(correlation**2, abs=0.02)
    assert np.corrcoef(power[0], power[2])[0, 1] == pytest.approx(correlation**4, abs=0.02)


def test_the_next_fading_given_this_one_is_that_of_a_normal_step():
    # Given |h|² = 1, 2|h'|²/(1 − ρ²) is noncentral χ²: 2 degrees of freedom, noncentrality 2ρ²/(1 − ρ²).
    process = process_of(batch=(4000,))
    before = fading_of(process)
    process.advance()
    near_one = (before > 0.98) & (before < 1.02)
    rho2 = PLAIN.radio.fading_correlation**2
    assert near_one.sum() > 3000
    fits(2 * fading_of(process)[near_one] / (1 - rho2), stats.ncx2(2, 2 * rho2 / (1 - rho2)).cdf)


def test_without_change_nothing_fades():
    still = replace(PLAIN, radio=replace(PLAIN.radio, fading_correlation=1.0), tasks=Tasks(drift=0.0))
    process = process_of(still)
    before = process.state
    after = process.advance()
    np.testing.assert_allclose(after.gain, before.gain, rtol=1e-5)
    for name in ("data_bits", "work_cycles", "cpu_hz"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-12)


def test_sub_channels_and_edge_servers_fade_for_themselves():
    by_slot = fading_of(process_of(batch=(500,))).reshape(-1, 6)
    np.testing.assert_allclose(np.corrcoef(by_slot.T), np.eye(6), atol=0.05)


def test_shadowing_is_normal_with_8_db_and_one_for_all_sub_channels_and_rounds():
    # The mean over many sub-channels is free of fading, to 1/√4000 = 1.6 % or 0.07 dB.
    network = NetworkConfig(devices=40, edge_servers=5, sub_channels=4000)
    process = process_of(network, batch=())

    def shadowing_db():
        return 10 * np.log10(fading_of(process).mean(axis=-1))

    first = shadowing_db()
    fits(first, stats.norm(0, 8).cdf)
    process.advance()
    np.testing.assert_allclose(shadowing_db(), first, atol=0.4)


def test_devices_are_anywhere_in_the_square_and_stay_there():
    network = replace(PLAIN, radio=replace(PLAIN.radio, area_m=600.0))
    process = process_of(network)
    places = process.positions_m.copy()
    assert places.shape == (50, 20, 2)
    for axis in range(2):
        fits(places[..., axis], uniform((-300, 300)))
    process.advance()
    np.testing.assert_array_equal(process.positions_m, places)


def test_a_task_changes_by_a_tenth_of_its_range_a_round():
    network = replace(PLAIN, tasks=Tasks())
    process = process_of(network, batch=(500,))
    before = process.state
    after = process.advance()
    for name in ("data_bits", "work_cycles", "cpu_hz"):
        least, most = getattr(network.tasks, name)
        was, now = ((getattr(one, name) - least) / (most - least) for one in (before, after))
        inside = (was > 0.4) & (was < 0.6)  # too far from the ends to be reflected
        fits((now - was)[inside], stats.norm(0, 0.1).cdf)


def test_a_walk_is_reflected_however_far_it_goes():
    process = process_of(replace(PLAIN, tasks=Tasks(drift=50.0)))
    for _ in range(5):
        state = process.advance()
        for name in ("data_bits", "work_cycles", "cpu_hz"):
            fits(getattr(state, name), uniform(getattr(PLAIN.tasks, name)))


def states_of(seed, batch=(2,), rounds=3):
    process = process_of(batch=batch, seed=seed)
    return [process.state, *(process.advance() for _ in range(rounds))]


def test_the_same_seed_gives_the_same_states():
    for one, same, other in zip(states_of(1), states_of(1), states_of(2), strict=True):
        for each in fields(NetworkState):
            values = getattr(one, each.name)
            np.testing.assert_array_equal(values, getattr(same, each.name))
            assert (values != getattr(other, each.name)).any()


def test_states_handed_out_are_not_changed_by_later_rounds():
    process = process_of(batch=(2,))
    states = [process.state]
    copies = []
    for _ in range(4):
        copies.append({each.name: getattr(states[-1], each.name).copy() for each in fields(NetworkState)})
        states.append(process.advance())
    for state, copy in zip(states, copies, strict=False):
        for name, values in copy.items():
            np.testing.assert_array_equal(getattr(state, name), values)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_shapes(batch):
    for state in states_of(0, batch, rounds=1):
        assert state.batch == batch
        assert state.gain.shape == (*batch, 20, 2, 3)
        assert state.gain.dtype == np.float32


def test_drawn_states_are_first_rounds():
    drawn = draw_states(PLAIN, 50, np.random.default_rng(5))
    for each in fields(NetworkState):
        np.testing.assert_array_equal(getattr(drawn, each.name), getattr(process_of().state, each.name))


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_of_networks_is_a_whole_number(count):
    with pytest.raises(ConfigError, match=f"`count` must be a whole number from 1 .* got {count}"):
        draw_states(PLAIN, count, np.random.default_rng(0))


def test_with_a_battery_what_is_left_is_there_in_the_next_round_up_to_its_capacity():
    # Every round brings 5 J, the battery holds 12 J.
    tasks = Tasks(energy_slack_j=(5.0, 5.0), battery=True, battery_capacity_j=12.0)
    process = process_of(replace(PLAIN, devices=4, tasks=tasks), batch=())
    np.testing.assert_allclose(process.state.energy_slack_j, [5, 5, 5, 5])
    process.advance(np.array([0.0, 3.0, 5.0, 9.0]))  # what is spent beyond 5 J is not owed
    np.testing.assert_allclose(process.state.energy_slack_j, [10, 7, 5, 5])
    process.advance(np.array([0.0, 1.0, 5.0, 0.0]))
    np.testing.assert_allclose(process.state.energy_slack_j, [12, 11, 5, 10])
    process.advance()
    np.testing.assert_allclose(process.state.energy_slack_j, [12, 12, 10, 12])


def test_without_a_battery_nothing_is_carried_over():
    network = replace(PLAIN, devices=4, tasks=Tasks(energy_slack_j=(5.0, 5.0)))
    process = process_of(network, batch=())
    process.advance(np.zeros(4))
    np.testing.assert_allclose(process.state.energy_slack_j, [5, 5, 5, 5])


@pytest.mark.parametrize(
    ("spent_j", "message"),
    [
        (np.zeros(3), r"`spent_j` must have shape \(4,\), got \(3,\)"),
        (1.0, r"`spent_j` must have shape \(4,\), got \(\)"),
        ([0.0, -1.0, 0.0, 0.0], r"`spent_j` must not be negative, got -1.0 for device 1"),
        (np.array([0.0, 0.0, np.nan, 0.0]), r"`spent_j` must not be negative, got nan for device 2"),
    ],
)
@pytest.mark.parametrize("battery", [True, False])
def test_bad_spending_is_named(spent_j, message, battery):
    process = process_of(replace(PLAIN, devices=4, tasks=Tasks(battery=battery)), batch=())
    with pytest.raises(ConfigError, match=message):
        process.advance(spent_j)


@pytest.mark.parametrize(("loss_db", "mean_gain"), [(900.0, 1e-25), (-900.0, 1.0)])
def test_no_link_is_weaker_than_none_or_amplifies(loss_db, mean_gain):
    # In single precision a gain of 10^-90 would be 0, and the latency infinite.
    network = replace(PLAIN, radio=Radio(loss_at_km_db=loss_db, shadowing_db=0.0))
    gain = draw_states(network, 50, np.random.default_rng(5)).gain.astype(np.float64)
    fits(gain / mean_gain, stats.expon.cdf)
