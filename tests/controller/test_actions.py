"""States as rows of numbers and actions as decisions: worked out by hand, device by device."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.controller.encoding import COLUMNS, decode, from_box, observation_shape, observe
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    LOCAL,
    Blocks,
    Decision,
    NetworkConfig,
    NetworkState,
    Radio,
    Tasks,
    draw_states,
    is_feasible,
    price,
)

SMALL = NetworkConfig(devices=6, edge_servers=2, sub_channels=3)
seeds = st.integers(0, 2**32)


def one_state(network=SMALL, *, slack_j=None, seed=0, count=None):
    drawn = draw_states(network, count or 1, np.random.default_rng(seed))
    if slack_j is not None:
        drawn = replace(drawn, energy_slack_j=np.full(drawn.data_bits.shape, slack_j))
    return drawn if count else drawn[0]


def any_action(network, batch, rng):
    """Crowded slots, and parameters that are often at an end."""
    shape = (*batch, network.devices)
    ends = rng.integers(0, 2, (*shape, 4))
    parameters = np.where(rng.random((*shape, 4)) < 0.3, ends, rng.random((*shape, 4)))
    return rng.integers(0, 1 + network.slots, shape), parameters.astype(np.float32)


def any_decision(network, state, rng):
    return decode(network, state, *any_action(network, state.batch, rng))


# --- observations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("battery", [False, True])
def test_an_observation_is_what_one_gets_by_hand(battery):
    network = replace(SMALL, tasks=Tasks(battery=battery, battery_capacity_j=18.0))
    state = one_state(network)
    last = any_decision(network, state, np.random.default_rng(3))
    assert set(last.slot >= 0) == {True, False}
    seen = observe(network, state, last)
    assert seen.shape == observation_shape(network) == (6, 8 + 6)
    assert seen.dtype == np.float32
    for n in range(6):
        by_hand = {
            "data_bits": (state.data_bits[n] - 4e6) / 12e6,
            "work_cycles": (state.work_cycles[n] - 0.7e9) / 0.4e9,
            "cpu_hz": (state.cpu_hz[n] - 0.2e9) / 1.8e9,
            "energy_slack_j": (state.energy_slack_j[n] - 2) / (16 if battery else 8),
            "last_slot": (last.slot[n] + 1) / 6,
            "last_hash_rate": last.hash_rate[n] / 1e12,
            "devices": 6 / (6 + 6),
            "hash_budget": 1.0,  # 20 TH/s for 6 devices is more than each may have
        }
        assert tuple(by_hand) == COLUMNS
        assert seen[n, :8] == pytest.approx(list(by_hand.values()), abs=1e-6)
        for m in range(2):
            for g in range(3):
                decibels = 10 * math.log10(state.gain[n, m, g])
                wanted = min(max((decibels + 170) / 120, 0.0), 1.0)
                assert seen[n, 8 + m * 3 + g] == pytest.approx(wanted, abs=1e-5)


def test_the_hash_budget_is_seen_where_it_binds():
    network = replace(SMALL, blocks=Blocks(total_hash_rate=1.8e12))
    assert observe(network, one_state(network))[:, COLUMNS.index("hash_budget")] == pytest.approx(0.3)


def test_before_the_first_round_there_is_no_last_one():
    seen = observe(SMALL, one_state())
    assert not seen[:, [COLUMNS.index("last_slot"), COLUMNS.index("last_hash_rate")]].any()


@given(seeds, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=50)
def test_whatever_the_state_every_number_is_from_0_to_1(seed, dtype):
    rng = np.random.default_rng(seed)
    fixed = NetworkConfig(devices=6, edge_servers=2, sub_channels=3, tasks=Tasks(data_bits=(8e6, 8e6)))
    state = NetworkState(
        *(10.0 ** rng.uniform(-300, 300, (4, 3, 6))),
        (10.0 ** rng.uniform(-37, 37, (3, 6, 2, 3))).astype(dtype),
    )
    last = Decision(np.full((3, 6), -1), *np.full((4, 3, 6), np.inf))
    seen = observe(fixed, state, last)
    assert ((seen >= 0) & (seen <= 1)).all()


@given(seeds)
@settings(max_examples=25)
def test_rows_follow_their_devices(seed):
    rng = np.random.default_rng(seed)
    state = one_state(seed=seed, count=4)
    last = any_decision(SMALL, state, rng)
    order = rng.permutation(6)
    seen = observe(SMALL, state.permuted(order), last.permuted(order))
    np.testing.assert_array_equal(seen, observe(SMALL, state, last)[:, order])


def test_a_batch_is_seen_and_decided_as_each_of_it():
    state = one_state(count=5)
    slot, parameters = any_action(SMALL, (5,), np.random.default_rng(1))
    decision = decode(SMALL, state, slot, parameters)
    seen = observe(SMALL, state, decision)
    for i in range(5):
        alone = decode(SMALL, state[i], slot[i], parameters[i])
        np.testing.assert_array_equal(seen[i], observe(SMALL, state[i], alone))
        for name in ("slot", "power_w", "bandwidth_hz", "cpu_hz", "hash_rate"):
            np.testing.assert_array_equal(getattr(decision, name)[i], getattr(alone, name))


def test_a_last_round_of_other_devices_is_refused():
    state = one_state()
    last = any_decision(SMALL, one_state(count=2), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"`decision` must have shape \(6,\) like the state, got \(2, 6\)"):
        observe(SMALL, state, last)


# --- actions ------------------------------------------------------------------------------------------------


def test_an_action_means_what_one_gets_by_hand():
    # Energy is plenty, so that nothing but the numbers counts. Devices 0 and 1 share edge server 0, device 2
    # has edge server 1 for itself, 3 to 5 train themselves.
    state = one_state(slack_j=1e9)
    parameters = np.zeros((6, 4))
    parameters[:3, 0] = 0.0, 0.5, 1.0
    parameters[:3, 1] = 1.0, 0.0, 0.25
    parameters[3:, 2] = 0.0, 0.5, 1.0
    parameters[:, 3] = 0.0, 0.25, 0.5, 1.0, 0.0, 0.0
    decision = decode(SMALL, state, np.array([3, 1, 6, 0, 0, 0]), parameters)
    assert decision.slot.tolist() == [2, 0, 5, LOCAL, LOCAL, LOCAL]
    assert decision.power_w == pytest.approx([0.01, 0.1, 1.0, 0, 0, 0])  # 10, 20 and 30 dBm
    assert decision.bandwidth_hz == pytest.approx([20e6 / 1.01, 20e6 * 0.01 / 1.01, 20e6, 0, 0, 0])
    assert decision.cpu_hz == pytest.approx([0, 0, 0, *(state.cpu_hz[3:] * [0.01, 0.505, 1.0])])
    assert decision.hash_rate == pytest.approx([0.1e12, 0.325e12, 0.55e12, 1e12, 0.1e12, 0.1e12])


def test_the_cpu_is_a_share_of_what_the_energy_allows():
    state = one_state(slack_j=0.1)
    all_hz = np.sqrt(0.1 / (5e-27 * state.work_cycles))  # κ·f²·C = 0.1 J
    for cpu, share in ((1.0, 1.0), (0.5, 0.505)):
        decision = decode(SMALL, state, np.zeros(6, dtype=int), np.full((6, 4), cpu))
        np.testing.assert_allclose(decision.cpu_hz, share * all_hz)


@given(seeds)
@settings(max_examples=25)
def test_power_is_as_near_as_the_energy_allows_and_who_cannot_send_at_all_trains_itself(seed):
    # Without interference each link is for itself: what the least and the chosen power take tells all.
    network = replace(SMALL, radio=Radio(interference=False, sharing="per_device"))
    state = one_state(network, slack_j=0.01, seed=seed, count=50)
    slot, parameters = np.broadcast_to(np.arange(1, 7), (50, 6)), np.full((50, 6, 4), 0.5)
    decision = decode(network, state, slot, parameters)
    everybody = replace(decision, slot=slot - 1, bandwidth_hz=np.full((50, 6), 0.505 * 20e6))

    def energy_j(power_w):
        return price(network, state, replace(everybody, power_w=np.broadcast_to(power_w, (50, 6)))).offload_j

    offloads = decision.slot >= 0
    np.testing.assert_array_equal(offloads, energy_j(0.01) <= 0.01)
    lowered = offloads & (energy_j(0.1) > 0.01)
    np.testing.assert_allclose(energy_j(np.where(lowered, decision.power_w, 0.1))[lowered], 0.01, rtol=1e-9)
    np.testing.assert_allclose(decision.power_w[offloads & ~lowered], 0.1)


def test_hash_rates_share_a_budget_that_does_not_suffice():
    network = replace(SMALL, blocks=Blocks(total_hash_rate=1.8e12))
    parameters = np.zeros((6, 4))
    parameters[:, 3] = [1, 1, 1, 1, 0, 0]
    hash_rate = decode(network, one_state(network), np.zeros(6, dtype=int), parameters).hash_rate
    assert hash_rate == pytest.approx(np.array([0.4, 0.4, 0.4, 0.4, 0.1, 0.1]) * 1e12)


def test_where_each_may_have_all_the_bandwidth_it_is_a_share_of_that():
    network = replace(SMALL, radio=Radio(sharing="per_device"))
    parameters = np.zeros((6, 4))
    parameters[:, 1] = [0, 1, 0.5, 0, 0, 0]
    decision = decode(network, one_state(network, slack_j=1e9), np.array([1, 2, 3, 0, 0, 0]), parameters)
    assert decision.bandwidth_hz == pytest.approx([0.2e6, 20e6, 10.1e6, 0, 0, 0])


@given(seeds)
@settings(max_examples=50)
def test_an_edge_servers_devices_share_all_its_bandwidth_by_weight(seed):
    # Slots are fought for: what the losers would have had must not be left over.
    network = NetworkConfig(devices=20, edge_servers=2, sub_channels=3)
    rng = np.random.default_rng(seed)
    state = one_state(network, slack_j=1e9, seed=seed, count=3)
    slot, parameters = any_action(network, (3,), rng)
    decision = decode(network, state, slot, parameters)
    weight = 0.01 + 0.99 * parameters[..., 1].astype(np.float64)
    for row in range(3):
        for server in range(2):
            here = decision.slot[row] // 3 == server
            assert here.any() == (np.isin(slot[row], 3 * server + np.arange(1, 4))).any()
            if here.any():
                share = weight[row, here] / weight[row, here].sum()
                np.testing.assert_allclose(decision.bandwidth_hz[row, here], share * 20e6)


@given(seeds, st.sampled_from([0.01, 0.3, None]), st.sampled_from(["shared", "per_device"]))
@settings(max_examples=50)
def test_every_action_is_made_feasible_and_has_a_price(seed, slack_j, sharing):
    network = NetworkConfig(devices=9, edge_servers=2, sub_channels=3, radio=Radio(sharing=sharing))
    state = one_state(network, slack_j=slack_j, seed=seed, count=4)
    decision = any_decision(network, state, np.random.default_rng(seed))
    assert is_feasible(network, state, decision)
    assert np.isfinite(price(network, state, decision).utility).all()


@given(seeds)
@settings(max_examples=25)
def test_decisions_follow_their_devices(seed):
    rng = np.random.default_rng(seed)
    state = one_state(seed=seed, count=4)
    slot, parameters = any_action(SMALL, (4,), rng)
    order = rng.permutation(6)
    there = decode(SMALL, state.permuted(order), slot[:, order], parameters[:, order])
    here = decode(SMALL, state, slot, parameters).permuted(order)
    np.testing.assert_array_equal(there.slot, here.slot)
    for name in ("power_w", "bandwidth_hz", "cpu_hz", "hash_rate"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=1e-9)


GOOD_SLOTS = [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ([0, 1, 2, 3, 4, 7], r"`slot` must be in \[0, 6\], got 7"),
        ([0, 1, 2, 3, 4, -1], r"`slot` must be in \[0, 6\], got -1"),
        ([0.0, 1, 2, 3, 4, 5], r"`slot` must be whole numbers of shape \(6,\), got float64 of \(6,\)"),
        ([0, 1], r"`slot` must be whole numbers of shape \(6,\), got int64 of \(2,\)"),
        ([[0] * 6], r"`slot` must be whole numbers of shape \(6,\), got int64 of \(1, 6\)"),
        ([True] * 6, "`slot` must be whole numbers .* got bool"),
        (["local"] * 6, "`slot` must be whole numbers"),
        (None, "`slot` must be whole numbers"),
        ([[0], [1, 2]], "`slot` must be whole numbers"),
    ],
)
def test_bad_slots_are_named(slot, message):
    with pytest.raises(ConfigError, match=message):
        decode(SMALL, one_state(), slot, np.zeros((6, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.1, 1.1])
@pytest.mark.parametrize("at", range(4))
def test_parameters_outside_of_0_to_1_are_named(bad, at):
    parameters = np.full((6, 4), 0.5, dtype=np.float32)
    parameters[2, at] = bad
    with pytest.raises(ConfigError, match=r"`parameters` must be in \[0, 1\], got " + f"{bad:g}"[:4]):
        decode(SMALL, one_state(), GOOD_SLOTS, parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (np.zeros((6, 3)), r"`parameters` must have shape \(6, 4\), got \(6, 3\)"),
        (np.zeros(24), r"`parameters` must have shape \(6, 4\), got \(24,\)"),
        (np.full((6, 4), "half"), "`parameters` must be an array of numbers"),
        (np.full((6, 4), None), "`parameters` must be an array of numbers"),
        (np.full((6, 4), 1j), "`parameters` must be an array of numbers"),
        ([[0.0], [1.0, 2.0]], "`parameters` must be an array of numbers"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ConfigError, match=message):
        decode(SMALL, one_state(), GOOD_SLOTS, parameters)


# --- relaxed actions ----------------------------------------------------------------------------------------


def test_a_relaxed_choice_is_one_of_equal_parts_of_its_range():
    tiny = NetworkConfig(devices=1, edge_servers=1, sub_channels=3)
    middles = np.array([-0.75, -0.25, 0.25, 0.75])
    edges = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])  # each begins a part; the last one is the end
    for numbers, wanted in ((middles, [0, 1, 2, 3]), (edges, [0, 1, 2, 3, 3])):
        rows = np.zeros((len(numbers), 5))
        rows[:, 0] = numbers
        slot, _ = from_box(tiny, rows)
        assert slot.tolist() == [[each] for each in wanted]


def test_relaxed_parameters_are_stretched_and_keep_their_places():
    numbers = np.tile([0.0, -1.0, -0.5, 0.0, 1.0], 6) * np.repeat([1, 1, 1, 1, 1, -1], 5)
    _, parameters = from_box(SMALL, numbers.astype(np.float32))
    assert parameters.tolist() == [[0.0, 0.25, 0.5, 1.0]] * 5 + [[1.0, 0.75, 0.5, 0.0]]
    decode(SMALL, one_state(), *from_box(SMALL, numbers))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.zeros(29), r"`numbers` must have 30 in a row, got shape \(29,\)"),
        (np.zeros((30, 1)), r"`numbers` must have 30 in a row, got shape \(30, 1\)"),
        (0.0, r"`numbers` must have 30 in a row, got shape \(\)"),
        (np.full(30, np.nan), r"`numbers` must be in \[-1, 1\], got nan"),
        (np.full(30, 1.01), r"`numbers` must be in \[-1, 1\], got 1.01"),
        (["x"] * 30, "`numbers` must be an array of numbers"),
    ],
)
def test_bad_relaxed_actions_are_named(numbers, message):
    with pytest.raises(ConfigError, match=message):
        from_box(SMALL, numbers)
