"""States and decisions: shapes, indexing, and what is refused."""

from dataclasses import fields, replace

import numpy as np
import pytest

from flower_bfl.errors import ConfigError, InfeasibleError
from flower_bfl.network import LOCAL, Decision, NetworkConfig, NetworkState, draw_states
from flower_bfl.network.state import check_fit

NETWORK = NetworkConfig(devices=4, edge_servers=3, sub_channels=2)


def state_of(batch=(), **changes):
    rng = np.random.default_rng(1)
    numbers = {each.name: rng.uniform(1, 2, (*batch, 4)) for each in fields(NetworkState)}
    return NetworkState(**(numbers | {"gain": rng.uniform(1, 2, (*batch, 4, 3, 2))} | changes))


def decision_of(batch=(), **changes):
    rng = np.random.default_rng(2)
    numbers = {each.name: rng.uniform(1, 2, (*batch, 4)) for each in fields(Decision)}
    return Decision(**(numbers | {"slot": rng.integers(-1, 6, (*batch, 4))} | changes))


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_the_batch_is_whatever_comes_before_the_devices(batch):
    state = state_of(batch)
    assert (state.batch, state.devices) == (batch, 4)
    check_fit(NETWORK, state, decision_of(batch))


@pytest.mark.parametrize("index", [1, -1, (1, 0), slice(1, 3), np.array([2, 0]), (slice(None), 1), (..., 1)])
@pytest.mark.parametrize("make", [state_of, decision_of])
def test_a_batch_is_indexed_as_an_array_of_its_shape(make, index):
    batch = make((3, 2))
    some = batch[index]
    for row, source in np.ndenumerate(np.arange(6).reshape(3, 2)[index]):
        for each in fields(batch):
            values = getattr(batch, each.name)[divmod(int(source), 2)]
            np.testing.assert_array_equal(getattr(some, each.name)[row], values)


@pytest.mark.parametrize("make", [state_of, decision_of])
def test_an_index_does_not_reach_into_the_devices(make):
    with pytest.raises(IndexError):
        make((3,))[:, 0]


def test_one_state_has_nothing_to_index():
    with pytest.raises(ConfigError, match="`state` must be a batch to be indexed, got one state"):
        state_of()[0]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("make", [state_of, decision_of])
def test_devices_change_places(make, batch):
    one, order = make(batch), [2, 0, 3, 1]
    moved = one.permuted(order)
    for each in fields(one):
        values, there = getattr(one, each.name), getattr(moved, each.name)
        for place, device in enumerate(order):
            at = (slice(None),) * len(batch)
            np.testing.assert_array_equal(there[(*at, place)], values[(*at, device)])


def test_single_decisions_are_stacked_in_order():
    batch = decision_of((2, 3))
    again = Decision.stack([batch[row] for row in np.ndindex(2, 3)], (2, 3))
    for each in fields(Decision):
        np.testing.assert_array_equal(getattr(again, each.name), getattr(batch, each.name))


def test_a_decision_says_who_offloads():
    assert decision_of(slot=[LOCAL, 0, 5, LOCAL]).offloads.tolist() == [False, True, True, False]


def test_gains_stay_in_single_precision_and_nothing_else_does():
    single = {
        each.name: np.ones((4, 3, 2) if each.name == "gain" else 4, np.float32)
        for each in fields(NetworkState)
    }
    state = NetworkState(**single)
    assert {each.name for each in fields(state) if getattr(state, each.name).dtype == np.float32} == {"gain"}
    # Thirds in single precision sum to more than their budget allows.
    assert decision_of(hash_rate=np.ones(4, np.float32)).hash_rate.dtype == np.float64


def test_arguments_are_taken_without_a_copy_and_lists_will_do():
    gain = np.ones((2, 1, 1), np.float32)
    state = NetworkState([1, 2], [1, 2], [1, 2], [1, 2], gain)
    assert state.gain is gain
    assert state.data_bits.dtype == np.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_bits": [1.0] * 3}, r"`data_bits` must have shape \(4,\), got \(3,\)"),
        ({"cpu_hz": np.ones((2, 4))}, r"`cpu_hz` must have shape \(4,\), got \(2, 4\)"),
        ({"gain": np.ones((4, 3))}, r"`gain` must have shape \(\*batch, devices, .* got \(4, 3\)"),
        ({"gain": np.ones((4, 3, 0))}, r"`gain` must have shape .* at least one of each, got \(4, 3, 0\)"),
        ({"gain": np.ones((0, 3, 2))}, r"`gain` must have shape .* at least one of each, got \(0, 3, 2\)"),
        (
            {"gain": np.where(np.arange(24).reshape(4, 3, 2) == 13, np.nan, 1.0)},
            r"`gain` must be positive and finite, got nan for device 2",
        ),
        (
            {"gain": np.where(np.arange(24).reshape(4, 3, 2) == 6, 0.0, 1.0)},
            r"`gain` must be positive and finite, got 0.0 for device 1",
        ),
        ({"gain": np.full((4, 3, 2), -1e-9)}, r"`gain` must be positive and finite, got -1e-09 for device 0"),
        ({"data_bits": [1, 2, 0, 4]}, r"`data_bits` must be positive and finite, got 0.0 for device 2"),
        (
            {"work_cycles": [1, np.inf, 1, 1]},
            r"`work_cycles` must be positive and finite, got inf for device 1",
        ),
        ({"cpu_hz": [1, 1, 1, -2]}, r"`cpu_hz` must be positive and finite, got -2.0 for device 3"),
        ({"cpu_hz": ["1", "1", "1", "1"]}, r"`cpu_hz` must be an array of numbers, got <U1 of \(4,\)"),
        ({"cpu_hz": [True] * 4}, r"`cpu_hz` must be an array of numbers, got bool of \(4,\)"),
        ({"cpu_hz": [1, None, 1, 1]}, r"`cpu_hz` must be an array of numbers, got object"),
        ({"cpu_hz": [[1], [1, 2], [1], [1]]}, r"`cpu_hz` must be an array of numbers, got \[\[1\], \[1, 2\]"),
        (
            {"energy_slack_j": [1, np.nan, 1, 1]},
            r"`energy_slack_j` must be positive and finite, got nan for device 1",
        ),
    ],
)
def test_bad_states_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        state_of(**changes)


@pytest.mark.parametrize("slack_j", [0.0, -3.0])
def test_a_device_without_energy_for_learning_is_infeasible(slack_j):
    message = rf"\(28h\): `energy_slack_j` must leave something for learning, got {slack_j} for device 2"
    with pytest.raises(InfeasibleError, match=message):
        state_of(energy_slack_j=[1, 1, slack_j, 1])


def test_a_bad_value_is_found_in_a_batch():
    values = np.ones((2, 3, 4))
    values[1, 2, 3] = -5
    with pytest.raises(ConfigError, match=r"`data_bits` .* got -5.0 for device 3"):
        state_of((2, 3), data_bits=values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": [0.0, 1.0, 2.0, 3.0]}, r"`slot` must be an array of whole numbers, got float64 of \(4,\)"),
        ({"slot": [True] * 4}, r"`slot` must be an array of whole numbers, got bool of \(4,\)"),
        ({"slot": 3}, r"`slot` must be an array of whole numbers, got int64 of \(\)"),
        ({"slot": []}, r"`slot` must be an array of whole numbers, got float64 of \(0,\)"),
        ({"power_w": [1.0] * 3}, r"`power_w` must have shape \(4,\), got \(3,\)"),
        ({"cpu_hz": [1.0, np.nan, 1.0, 1.0]}, r"`cpu_hz` must be a number, got nan for device 1"),
        ({"hash_rate": ["a"] * 4}, r"`hash_rate` must be an array of numbers, got <U1"),
    ],
)
def test_bad_decisions_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        decision_of(**changes)


def test_a_state_or_decision_of_another_network_is_refused():
    state = state_of()
    with pytest.raises(ConfigError, match=r"`state` must have .* \(4, 3, 1\), got \(4, 3, 2\)"):
        check_fit(replace(NETWORK, sub_channels=1), state)
    with pytest.raises(ConfigError, match=r"`decision` must have shape \(4,\) like the state, got \(3, 4\)"):
        check_fit(NETWORK, state, decision_of((3,)))


def test_no_networks_cannot_be_drawn():
    for count in (0, -1, 1.5):
        with pytest.raises(ConfigError, match=rf"`count` must be a whole number from 1 .* got {count}"):
            draw_states(NETWORK, count, np.random.default_rng(0))
