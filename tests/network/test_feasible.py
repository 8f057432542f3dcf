"""Limits: one decision for each that breaks it alone, and projection as a property."""

from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from drawn import draws
from hypothesis import given, settings
from scipy.special import lambertw

from flower_bfl.controller import AllLocalController
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    LOCAL,
    Blocks,
    Decision,
    NetworkConfig,
    NetworkState,
    Price,
    Radio,
    Tasks,
    Violation,
    draw_states,
    is_feasible,
    price,
    project,
    violations,
)

# Four devices, two edge servers with two sub-channels, 10 MHz, 0.01 to 1 W, 1 to 4 hashes/s of 10 for all.
NETWORK = NetworkConfig(
    devices=4,
    edge_servers=2,
    sub_channels=2,
    radio=Radio(bandwidth_hz=10e6),
    tasks=Tasks(energy_coefficient=1e-27),
    blocks=Blocks(hash_rate=(1.0, 4.0), total_hash_rate=10.0),
)
STATE = NetworkState([8e6] * 4, [1e9] * 4, [1e9, 1e9, 1e9, 1.5e9], [5.0] * 4, np.full((4, 2, 2), 1e-10))
DECISION = Decision(
    slot=[0, 1, 2, LOCAL],
    power_w=[0.1, 0.1, 0.1, 0.0],
    bandwidth_hz=[4e6, 6e6, 10e6, 0.0],
    cpu_hz=[0.0, 0.0, 0.0, 1e9],
    hash_rate=[1.0, 2.0, 3.0, 4.0],
)
PER_DEVICE = replace(NETWORK, radio=replace(NETWORK.radio, sharing="per_device"))


def test_a_decision_that_keeps_all_limits_breaks_none():
    assert violations(NETWORK, STATE, DECISION) == []
    assert is_feasible(NETWORK, STATE, DECISION)


TINY = np.finfo(np.float64).tiny


@pytest.mark.parametrize(
    ("changes", "constraint", "amount", "device", "server", "text"),
    [
        ({"slot": [0, 1, 4, LOCAL]}, "28b", 1, 2, None, r"`slot` must be -1 or one of 0..3, got 4"),
        (
            {"slot": [0, 1, -3, LOCAL], "cpu_hz": [0, 0, 1e9, 1e9]},
            "28b",
            2,
            2,
            None,
            r"`slot` must be -1 or one of 0..3, got -3",
        ),
        (
            {"slot": [0, 0, 2, LOCAL]},
            "28c",
            1,
            1,
            0,
            r"one device, got [0, 1] in sub-channel 0 of edge server 0",
        ),
        (
            {"power_w": [0.1, 0.1, 1.25, 0]},
            "28d",
            0.25,
            2,
            None,
            r"`power_w` must be from 0.01 to 1 W, got 1.25",
        ),
        (
            {"power_w": [0.1, 0.004, 0.1, 0]},
            "28d",
            0.006,
            1,
            None,
            r"`power_w` must be from 0.01 to 1 W, got 0.004",
        ),
        ({"power_w": [0.1, -1, 0.1, 0]}, "28d", 1.01, 1, None, r"got -1"),
        (
            {"bandwidth_hz": [4e6, 0, 10e6, 0]},
            "28e",
            TINY,
            1,
            None,
            r"`bandwidth_hz` must be above 0 and up to 1e+07 Hz, got 0",
        ),
        (
            {"bandwidth_hz": [-4e6, 6e6, 10e6, 0]},
            "28e",
            4e6,
            0,
            None,
            r"above 0 and up to 1e+07 Hz, got -4e+06",
        ),
        (
            {"bandwidth_hz": [5e6, 6e6, 10e6, 0]},
            "28e",
            1e6,
            None,
            0,
            r"bandwidths must sum to at most 1e+07 Hz, got 1.1e+07",
        ),
        (
            {"cpu_hz": [0, 0, 0, 1.75e9]},
            "28f",
            0.25e9,
            3,
            None,
            r"`cpu_hz` must be above 0 and up to 1.5e+09 Hz, got 1.75e+09",
        ),
        (
            {"cpu_hz": [0, 0, 0, 0]},
            "28f",
            TINY,
            3,
            None,
            r"`cpu_hz` must be above 0 and up to 1.5e+09 Hz, got 0",
        ),
        (
            {"hash_rate": [1, 2, 2, 4.5]},
            "28g",
            0.5,
            3,
            None,
            r"`hash_rate` must be from 1 to 4 hashes/s, got 4.5",
        ),
        (
            {"hash_rate": [0.5, 2, 2, 4]},
            "28g",
            0.5,
            0,
            None,
            r"`hash_rate` must be from 1 to 4 hashes/s, got 0.5",
        ),
        (
            {"hash_rate": [3, 4, 2, 4]},
            "28g",
            3,
            None,
            None,
            r"hash rates must sum to at most 10 hashes/s, got 13",
        ),
    ],
)
def test_each_limit_is_named_with_device_and_amount(changes, constraint, amount, device, server, text):
    (found,) = violations(NETWORK, STATE, replace(DECISION, **changes))
    assert (found.constraint, found.device, found.server, found.batch) == (constraint, device, server, ())
    assert found.amount == pytest.approx(amount, rel=1e-6, abs=0)
    assert text in found.rule
    who = "all devices" if server is None else f"edge server {server}"
    who = who if device is None else f"device {device}"
    assert str(found) == f"({constraint}) {who}: {found.rule}"


def test_energy_of_a_device_that_trains_itself():
    # κ f² C = 1e-27 · (1.5e9)² · 1e9 = 2.25 J
    state = replace(STATE, energy_slack_j=[5.0, 5.0, 5.0, 2.0])
    (found,) = violations(NETWORK, state, replace(DECISION, cpu_hz=[0, 0, 0, 1.5e9]))
    assert (found.constraint, found.device, found.amount) == ("28h", 3, pytest.approx(0.25))
    assert found.rule == "learning must take at most 2 J, got 2.25"


def test_energy_of_a_device_that_offloads():
    # 1 W, received as 63 times the noise: log2 64 = 6, so 6 MHz bring 36 Mbit/s; 72 Mbit take 2 s and 2 J.
    noise_w = NETWORK.radio.noise_w_hz * 6e6
    gain = np.full((4, 2, 2), 1e-12)
    gain[1, 0, 1] = 63 * noise_w
    state = replace(STATE, data_bits=[1.0, 72e6, 1.0, 1.0], energy_slack_j=[5.0, 1.5, 5.0, 5.0], gain=gain)
    decision = replace(
        DECISION, slot=[LOCAL, 1, LOCAL, LOCAL], power_w=[0, 1, 0, 0], cpu_hz=[1e9, 0, 1e9, 1e9]
    )
    (found,) = violations(NETWORK, state, decision)
    assert (found.constraint, found.device) == ("28h", 1)
    assert found.amount == pytest.approx(0.5)


def test_a_limit_of_the_sum_holds_for_shared_bandwidth_alone():
    everybody_all = replace(DECISION, bandwidth_hz=[10e6, 10e6, 10e6, 0.0])
    assert is_feasible(PER_DEVICE, STATE, everybody_all)
    (found,) = violations(NETWORK, STATE, everybody_all)
    assert (found.constraint, found.server, found.amount) == ("28e", 0, pytest.approx(10e6))
    (found,) = violations(PER_DEVICE, STATE, replace(DECISION, bandwidth_hz=[4e6, 11e6, 10e6, 0.0]))
    assert (found.constraint, found.device, found.amount) == ("28e", 1, pytest.approx(1e6))


def test_all_violations_are_found_at_once_and_say_which_of_a_batch():
    bad = replace(DECISION, power_w=[0.1, 5.0, 0.1, 0.0], hash_rate=[1.0, 2.0, 3.0, 5.0])
    batch = Decision.stack([DECISION, bad, DECISION, bad], (2, 2))
    states = NetworkState(
        **{
            each.name: np.broadcast_to(
                getattr(STATE, each.name), (2, 2, *getattr(STATE, each.name).shape)
            ).copy()
            for each in fields(NetworkState)
        }
    )
    found = violations(NETWORK, states, batch)
    assert {(one.batch, one.constraint, one.device) for one in found} == {
        (row, constraint, device)
        for row in ((0, 1), (1, 1))
        for constraint, device in (("28d", 1), ("28g", 3), ("28g", None))
    }
    assert not is_feasible(NETWORK, states, batch)


def test_three_in_one_slot():
    found = violations(NETWORK, STATE, replace(DECISION, slot=[2, 2, 2, LOCAL], bandwidth_hz=[1e6] * 4))
    assert [(one.constraint, one.device, one.server, one.amount) for one in found] == [
        ("28c", 1, 1, 2),
        ("28c", 2, 1, 2),
    ]


def test_what_a_device_does_not_use_breaks_no_limit():
    unused = Decision(
        slot=DECISION.slot,
        power_w=[0.1, 0.1, 0.1, 99.0],
        bandwidth_hz=[4e6, 6e6, 10e6, 99e6],
        cpu_hz=[np.inf, 99e9, -1.0, 1e9],
        hash_rate=DECISION.hash_rate,
    )
    assert is_feasible(NETWORK, STATE, unused)
    assert_same(project(NETWORK, STATE, unused), DECISION)


def test_a_decision_that_would_take_for_ever_is_not_called_feasible():
    with pytest.raises(ConfigError, match=r"\(20\): `\w+` must be finite, got .* for device 0"):
        is_feasible(NETWORK, STATE, replace(DECISION, bandwidth_hz=[5e-324, 6e6, 10e6, 0.0]))


def test_a_violation_reads_as_a_sentence():
    assert str(Violation("28g", "must", 1.0)) == "(28g) all devices: must"


# --- projection ---


def assert_same(one, other, rtol=1e-9):
    np.testing.assert_array_equal(one.slot, other.slot)
    for each in fields(Decision)[1:]:
        np.testing.assert_allclose(
            getattr(one, each.name), getattr(other, each.name), rtol=rtol, atol=0, err_msg=each.name
        )


@given(draws())
@settings(max_examples=200)
def test_a_projection_keeps_all_limits_and_has_a_price(drawn):
    state, decision = drawn.state(), drawn.anything()
    made = project(drawn.network, state, decision)
    assert violations(drawn.network, state, made) == []
    priced = price(drawn.network, state, made)
    for each in fields(Price):
        assert np.isfinite(getattr(priced, each.name)).all(), each.name
    assert_same(project(drawn.network, state, made), made, rtol=1e-6)


@given(draws())
@settings(max_examples=200)
def test_a_feasible_decision_is_its_own_projection(drawn):
    state, decision = drawn.state(), drawn.decision()
    state = replace(state, energy_slack_j=price(drawn.network, state, decision).learning_j * 1.000001)
    assert violations(drawn.network, state, decision) == []
    assert_same(project(drawn.network, state, decision), decision)


@given(draws())
@settings(max_examples=50)
def test_a_projection_does_not_depend_on_the_numbers_of_devices(drawn):
    state, decision = drawn.state(), drawn.anything()
    order = drawn.rng.permutation(drawn.network.devices)
    made = project(drawn.network, state, decision).permuted(order)
    assert_same(project(drawn.network, state.permuted(order), decision.permuted(order)), made)


@given(draws())
@settings(max_examples=30)
def test_arguments_are_not_changed(drawn):
    state, decision = drawn.state(), drawn.anything()
    copies = [
        {each.name: getattr(one, each.name).copy() for each in fields(one)} for one in (state, decision)
    ]
    made = project(drawn.network, state, decision)
    with suppress(ConfigError):  # a decision that breaks no limit, and takes for ever
        violations(drawn.network, state, decision)
    price(drawn.network, state, made)
    for one, copy in zip((state, decision), copies, strict=True):
        for name, values in copy.items():
            np.testing.assert_array_equal(getattr(one, name), values)


def test_decisions_in_single_precision_are_projected_into_the_budgets():
    # As a policy network gives them: 30 thirds of a budget in single precision sum to more than the budget.
    rng = np.random.default_rng(0)
    network = replace(NETWORK, devices=30, blocks=Blocks(total_hash_rate=4e12), sub_channels=7)
    state = NetworkState(*(np.full((20, 30), v) for v in (8e6, 1e9, 1e9, 5.0)), np.full((20, 30, 2, 7), 1e-9))
    slot = rng.permuted(np.broadcast_to(np.arange(30) - 16, (20, 30)), axis=1).clip(-1)
    shares = (rng.random((4, 20, 30)) * [[[1.0]], [[1e8]], [[1e9]], [[1e12]]]).astype(np.float32)
    made = project(network, state, Decision(slot, *shares))
    assert violations(network, state, made) == []


def test_a_slot_goes_to_the_better_channel_and_the_others_train_themselves():
    gain = np.full((4, 2, 2), 1e-10)
    gain[2, 0, 0] = 1.1e-10
    gain[3, 1, 0] = 9e-10
    made = project(
        NETWORK, replace(STATE, gain=gain), replace(DECISION, slot=[0, 0, 0, 0], bandwidth_hz=[9e6] * 4)
    )
    assert made.slot.tolist() == [LOCAL, LOCAL, 0, LOCAL]
    # Who has to train itself and got no CPU takes all it may: √(5 J/(1e-27 · 1e9)) is above F.
    np.testing.assert_allclose(made.cpu_hz, [1e9, 1e9, 0, 1e9])
    np.testing.assert_allclose(made.bandwidth_hz, [0, 0, 9e6, 0])


def test_too_much_bandwidth_is_scaled_at_each_edge_server():
    made = project(NETWORK, STATE, replace(DECISION, bandwidth_hz=[10e6, 5e6, 20e6, 0.0]))
    np.testing.assert_allclose(made.bandwidth_hz, [20e6 / 3, 10e6 / 3, 10e6, 0])
    made = project(PER_DEVICE, STATE, replace(DECISION, bandwidth_hz=[10e6, 5e6, 20e6, 0.0]))
    np.testing.assert_allclose(made.bandwidth_hz, [10e6, 5e6, 10e6, 0])


def test_too_many_hashes_are_scaled_above_the_least():
    # 3 + 3 + 2 + 0 above 1 each is 8, where 6 are left: three quarters.
    made = project(NETWORK, STATE, replace(DECISION, hash_rate=[4.0, 9.0, 3.0, 0.5]))
    np.testing.assert_allclose(made.hash_rate, [1 + 2.25, 1 + 2.25, 1 + 1.5, 1])


def test_a_budget_without_anything_left_gives_everybody_the_least():
    network = replace(NETWORK, blocks=replace(NETWORK.blocks, total_hash_rate=4.0))
    made = project(network, STATE, DECISION)
    np.testing.assert_allclose(made.hash_rate, 1)


def test_hash_rates_in_other_units_are_left_alone_as_well():
    # Terahashes: what is left, 0.6, is less than 1.
    blocks = Blocks(hash_rate=(0.1, 0.4), total_hash_rate=1.0, work_hashes=0.05)
    decision = replace(DECISION, hash_rate=[0.1, 0.2, 0.3, 0.4])
    assert_same(project(replace(NETWORK, blocks=blocks), STATE, decision), decision)


def lonely(slack_j, bandwidth_hz=5e6, power_dbm=(10.0, 30.0)):
    """One device, one slot: what projection leaves of 1 W; and the noise relative to the gain."""
    network = NetworkConfig(devices=1, edge_servers=1, sub_channels=1, radio=Radio(power_dbm=power_dbm))
    state = NetworkState([8e6], [1e9], [1e9], [slack_j], np.full((1, 1, 1), 1e-11))
    made = project(network, state, Decision([0], [1.0], [bandwidth_hz], [0.0], [1e12]))
    return network, state, made, network.radio.noise_w_hz * bandwidth_hz / 1e-11


@pytest.mark.parametrize("slack_j", [0.012, 0.03, 0.06, 0.1])
def test_power_is_cut_to_what_the_energy_allows(slack_j):
    # p·D/(b·log2(1 + p/u)) = E; with x = p/u and k = E·b/(D·u·ln 2) that is x = k·ln(1 + x), which Lambert's
    # function solves: x = −k·W₋₁(−e^(−1/k)/k) − 1.
    _, _, made, unit_w = lonely(slack_j, power_dbm=(-30.0, 30.0))
    k = slack_j * 5e6 / (8e6 * unit_w * np.log(2))
    expected_w = unit_w * (-k * lambertw(-np.exp(-1 / k) / k, -1).real - 1)
    assert 1e-6 < expected_w < 1
    assert made.power_w[0] == pytest.approx(expected_w, rel=1e-9)


def test_energy_that_suffices_leaves_the_power_alone():
    network, state, made, _ = lonely(5.0)
    assert made.power_w[0] == 1.0
    assert price(network, state, made).offload_j[0] < 5.0


def test_a_device_that_cannot_send_on_its_energy_trains_itself():
    # The least power is 0.01 W, and D·u·ln 2/b what a bit takes at the very least.
    network, state, made, unit_w = lonely(5e-3)
    assert 8e6 / 5e6 * unit_w * np.log(2) < 5e-3  # with less power it could
    assert made.slot[0] == LOCAL
    assert made.cpu_hz[0] == pytest.approx(np.sqrt(5e-3 / (5e-27 * 1e9)))
    assert is_feasible(network, state, made)


def test_a_decision_without_a_price_does_not_hide_what_others_of_the_batch_spend():
    network = NetworkConfig(devices=6)
    states = draw_states(network, 3, np.random.default_rng(0))
    decision = AllLocalController(network).decide(states)
    decision = replace(decision, cpu_hz=np.minimum(3 * decision.cpu_hz, states.cpu_hz))
    before = [one for one in violations(network, states, decision) if one.constraint == "28h"]
    assert {one.batch for one in before} == {(0,), (1,), (2,)}
    nothing = decision.hash_rate.copy()
    nothing[1, 0] = 0.0
    after = violations(network, states, replace(decision, hash_rate=nothing))
    assert [one for one in after if one.constraint == "28h"] == [one for one in before if one.batch != (1,)]
    assert [(one.constraint, one.device, one.batch) for one in after if one.constraint != "28h"] == [
        ("28g", 0, (1,))
    ]
