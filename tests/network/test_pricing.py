"""What a decision costs: worked out by hand, and against the slow reference."""

from dataclasses import fields, replace

import numpy as np
import pytest
from drawn import draws
from hypothesis import given, settings
from slow_price import slow_price

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
    price,
)
from flower_bfl.network.pricing import local_cpu_limit_hz, utility

# By hand: three devices, two edge servers of 4 Hz each, one sub-channel, 1 W of noise per hertz.
#
#   device 0 → server 0   3 W · gain 3 = 9 W; noise 1 W/Hz · 2 Hz + device 1's 2 W · 0.5 = 3 W; SINR 3,
#                         log2 4 = 2, R = 2 Hz · 2 = 4 bit/s; 8 bits take 2 s and 3 W · 2 s = 6 J;
#                         4 cycles at 2 Hz take 2 s
#   device 1 → server 1   2 W · 24.5 = 49 W; noise 4 W + device 0's 3 W · 1 = 7 W; SINR 7, log2 8 = 3,
#                         R = 4 · 3 = 12 bit/s; 36 bits take 3 s and 6 J; 6 cycles at 4 Hz take 1.5 s
#   device 2, local       3 cycles at 2 Hz take 1.5 s and 0.5 · 2² · 3 = 6 J; its upload has 4 Hz · 2/3 and
#                         10 W over its best gain 0.8: 8 W / (8/3 W) = 3, R = 8/3 · 2 = 16/3 bit/s;
#                         4 bits take 0.75 s and 7.5 J
#   consensus             2 steps of 4 bits at 10 bit/s: 0.8 s
#   mining                6 hashes at 1, 2, 3 hashes/s: 6, 3, 2 s; spread 0.25 s · (2 + 3 − 1) = 1 s; twice:
#                         14, 8, 6 s; all together 28 s; one race of 6 hashes/s: 2 · (1 + 1) = 4 s
#   learning              (2 + 2) + (3 + 1.5) + (1.5 + 0.75) = 10.75 s; the slowest path is device 1's, 4.5 s
BY_HAND = NetworkConfig(
    devices=3,
    edge_servers=2,
    sub_channels=1,
    edge_cpu_hz=(2.0, 4.0),
    edge_link_bps=10.0,
    p2p_rounds=2,
    model_bits=4.0,
    latency_bound_s=10.0,
    radio=Radio(bandwidth_hz=4.0, noise_dbm_hz=30.0, noise_figure_db=0.0, power_dbm=(0.0, 40.0)),
    tasks=Tasks(energy_coefficient=0.5),
    blocks=Blocks(
        hash_rate=(1.0, 3.0),
        total_hash_rate=6.0,
        work_hashes=6.0,
        energy_per_hash_j=0.5,
        propagation_s=0.25,
        forks=2.0,
    ),
)
STATE = NetworkState(
    data_bits=[8.0, 36.0, 1.0],
    work_cycles=[4.0, 6.0, 3.0],
    cpu_hz=[5.0, 5.0, 5.0],
    energy_slack_j=[7.0, 7.0, 7.0],
    gain=np.array([[3.0, 1.0], [0.5, 24.5], [0.1, 0.8]])[..., None],
)
DECISION = Decision(
    slot=[0, 1, LOCAL],
    power_w=[3.0, 2.0, 0.0],
    bandwidth_hz=[2.0, 4.0, 0.0],
    cpu_hz=[0.0, 0.0, 2.0],
    hash_rate=[1.0, 2.0, 3.0],
)


def by_hand(state=STATE, decision=DECISION, **settings):
    return price(replace(BY_HAND, **settings), state, decision)


def test_a_round_costs_what_it_does_by_hand():
    found = by_hand()
    expected = {
        "rate_bps": [4, 12, 0],
        "offload_s": [2, 3, 0],
        "edge_s": [2, 1.5, 0],
        "local_s": [0, 0, 1.5],
        "upload_s": [0, 0, 0.75],
        "mining_s": [14, 8, 6],
        "offload_j": [6, 6, 0],
        "local_j": [0, 0, 6],
        "upload_j": [0, 0, 7.5],
        "mining_j": [3, 3, 3],
        "server_edge_s": [2, 1.5],
        "path_s": [4, 4.5, 2.25],
        "learning_s": 10.75,
        "consensus_s": 0.8,
        "mining_total_s": 28,
        "utility": np.exp(1 - 39.55 / 30) - 1,
        "learning_j": [6, 6, 6],
        "total_s": 39.55,
        "makespan_s": 4.5 + 0.8 + 28,
    }
    assert expected.keys() == {each.name for each in fields(Price)} | {"learning_j", "total_s", "makespan_s"}
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12, err_msg=name)


def test_without_interference_only_the_noise_counts():
    found = by_hand(radio=replace(BY_HAND.radio, interference=False))
    np.testing.assert_allclose(
        found.rate_bps, [2 * np.log2(1 + 9 / 2), 4 * np.log2(1 + 49 / 4), 0], rtol=1e-12
    )


def test_makespan_is_the_slowest_path():
    found = by_hand(objective="makespan")
    assert found.learning_s == pytest.approx(4.5)
    assert found.total_s == found.makespan_s == pytest.approx(4.5 + 0.8 + 28)
    assert by_hand().makespan_s == pytest.approx(found.total_s)


@pytest.mark.parametrize(("total", "seconds"), [("sum", 28), ("fastest", 6), ("race", 4)])
def test_mining_totals(total, seconds):
    found = by_hand(blocks=replace(BY_HAND.blocks, total=total))
    assert found.mining_total_s == pytest.approx(seconds)
    assert found.total_s == pytest.approx(10.75 + 0.8 + seconds)


def test_an_edge_server_trains_on_all_that_came_and_waits_for_the_last():
    # Both at server 0, on sub-channels 0 and 1: they do not disturb each other. SNR 3 W/1 W at 1 Hz each:
    # 2 bit/s; 4 and 6 bits take 2 and 3 s; then 2 + 4 cycles at 2 Hz take 3 s.
    network = replace(BY_HAND, devices=2, edge_servers=1, sub_channels=2, edge_cpu_hz=2.0)
    state = NetworkState([4.0, 6.0], [2.0, 4.0], [1.0, 1.0], [9.0, 9.0], np.full((2, 1, 2), 3.0))
    decision = Decision([1, 0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0])
    found = price(network, state, decision)
    np.testing.assert_allclose(found.server_edge_s, [3])
    np.testing.assert_allclose(found.edge_s, [1, 2])
    np.testing.assert_allclose(found.path_s, [6, 6])
    assert found.learning_s == pytest.approx(2 + 3 + 3)  # T_exe once, not for each device
    assert price(replace(network, objective="makespan"), state, decision).learning_s == pytest.approx(6)


def test_the_real_size_of_a_model_counts_in_upload_and_consensus():
    # 21,840 parameters of 32 bits, for 5 KB: 698,880 / 40,000 = 17.472 times as long; 5 steps at 50 Mbit/s
    # take 5 · 0.0139776 s.
    def all_local(**settings):
        network = NetworkConfig(devices=2, **settings)
        state = NetworkState([8e6] * 2, [1e9] * 2, [1e9] * 2, [9.0] * 2, np.full((2, 5, 5), 1e-11))
        return price(network, state, Decision([LOCAL] * 2, [0.0] * 2, [0.0] * 2, [1e9] * 2, [1e12] * 2))

    small, real = all_local(), all_local(model_bits=32 * 21_840.0)
    assert small.consensus_s == pytest.approx(5 * 0.0008)
    assert real.consensus_s == pytest.approx(0.069888)
    np.testing.assert_allclose(real.upload_s, small.upload_s * 17.472, rtol=1e-12)
    assert real.learning_s - small.learning_s == pytest.approx(float(small.upload_s.sum()) * 16.472)


def test_an_edge_server_without_neighbours_waits_for_nobody():
    network = replace(BY_HAND, edge_servers=1, edge_cpu_hz=2.0)
    state = replace(STATE, gain=STATE.gain[:, :1])
    decision = replace(DECISION, slot=[0, LOCAL, LOCAL], cpu_hz=[0.0, 1.0, 2.0])
    assert price(network, state, decision).consensus_s == 0


@pytest.mark.parametrize(
    ("devices", "mining_each_s"),
    [
        # Ψ = 20 THash/s shared by N; 3 · (50e9 N / 20e12 + 0.005 · (5 + N − 1))
        (20, 3 * (0.05 + 0.12)),
        (30, 3 * (0.075 + 0.17)),
        (50, 3 * (0.125 + 0.27)),
        (100, 3 * (0.25 + 0.52)),
    ],
)
def test_everybody_local_with_the_numbers_of_table_iv(devices, mining_each_s):
    # 1 Gcycle at 1 GHz takes 1 s and 5e-27 · 1e18 · 1e9 = 5 J. The upload has 20 MHz · 5/N and 1 W over
    # gain h; noise 10^-17.3 mW/Hz; h is chosen for an SNR of 2^10 − 1, so 10 bit/s/Hz: 40 kbit take
    # 4000 s / (100 MHz / N in Hz) = N · 40 µs.
    network = NetworkConfig(devices=devices)
    noise_w = 10**-17.3 * 1e-3 * 20e6 * 5 / devices
    state = NetworkState(
        np.full(devices, 1e7),
        np.full(devices, 1e9),
        np.full(devices, 2e9),
        np.full(devices, 10.0),
        np.full((devices, 5, 5), 1023 * noise_w),
    )
    nothing = np.zeros(devices)
    found = price(
        network,
        state,
        Decision(nothing.astype(int) - 1, nothing, nothing, nothing + 1e9, nothing + 20e12 / devices),
    )
    np.testing.assert_allclose(found.local_s, 1, rtol=1e-12)
    np.testing.assert_allclose(found.local_j, 5, rtol=1e-12)
    np.testing.assert_allclose(found.upload_s, devices * 40e-6, rtol=1e-12)
    np.testing.assert_allclose(found.mining_s, mining_each_s, rtol=1e-12)
    np.testing.assert_allclose(found.mining_j, 2500, rtol=1e-12)  # 5e-8 J · 50e9
    assert found.consensus_s == pytest.approx(5 * 40e3 / 50e6)
    assert found.total_s == pytest.approx(devices * (1 + devices * 40e-6 + mining_each_s) + 0.004)


def test_utility_is_nought_at_the_latency_bound():
    network = NetworkConfig(devices=20)  # τ = 3 s · 20
    np.testing.assert_allclose(
        utility(network, np.array([0.0, 60.0, 120.0, np.inf])),
        [np.e - 1, 0, 1 / np.e - 1, -1],
        rtol=1e-12,
        atol=1e-15,
    )


def test_the_cpu_of_a_device_is_limited_by_itself_or_by_its_energy():
    # √(E/(κC)): 5 J allow √(5 / (5e-27 · 1e9)) = 1 GHz, 20 J twice as much.
    state = NetworkState([1.0] * 3, [1e9] * 3, [2e9, 0.7e9, 2e9], [5.0, 5.0, 20.0], np.ones((3, 1, 1)))
    network = NetworkConfig(devices=3, edge_servers=1, sub_channels=1)
    np.testing.assert_allclose(local_cpu_limit_hz(network, state), [1e9, 0.7e9, 2e9], rtol=1e-12)


def of_one(priced, row):
    return {each.name: np.asarray(getattr(priced, each.name))[row] for each in fields(Price)}


def agrees_with_the_loops(drawn, dtype, tolerance):
    state, decision = drawn.state(dtype), drawn.decision()
    found = price(drawn.network, state, decision)
    for row in np.ndindex(drawn.batch):
        expected = slow_price(
            drawn.network,
            state[row] if drawn.batch else state,
            decision[row] if drawn.batch else decision,
        )
        one = of_one(found, row)
        assert one.keys() == expected.keys()
        for name, value in expected.items():
            # utility is 1 − 1 near T = τ
            np.testing.assert_allclose(one[name], value, rtol=tolerance, atol=1e-15, err_msg=name)


@given(draws())
@settings(max_examples=150)
def test_prices_agree_with_loops_over_devices_servers_and_channels(drawn):
    agrees_with_the_loops(drawn, np.float64, 1e-9)


@given(draws())
@settings(max_examples=50)
def test_prices_agree_with_the_loops_for_gains_in_single_precision(drawn):
    agrees_with_the_loops(drawn, np.float32, 1e-6)


@given(draws())
@settings(max_examples=50)
def test_the_numbers_of_devices_do_not_matter(drawn):
    state, decision = drawn.state(), drawn.decision()
    order = drawn.rng.permutation(drawn.network.devices)
    found, moved = (
        price(drawn.network, state, decision),
        price(drawn.network, state.permuted(order), decision.permuted(order)),
    )
    for name in ("rate_bps", "path_s", "mining_s", "offload_j", "local_j", "upload_s"):
        np.testing.assert_allclose(
            getattr(moved, name), getattr(found, name)[..., order], rtol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(moved.total_s, found.total_s, rtol=1e-12)


def test_what_a_device_does_not_use_costs_nothing():
    unused = np.array([np.inf, 1e300, 7.0])
    offloads = np.array([True, True, False])
    decision = replace(
        DECISION,
        power_w=np.where(offloads, DECISION.power_w, unused),
        bandwidth_hz=np.where(offloads, DECISION.bandwidth_hz, np.inf),
        cpu_hz=np.where(offloads, unused, DECISION.cpu_hz),
    )
    found, expected = by_hand(decision=decision), by_hand()
    for each in fields(Price):
        np.testing.assert_array_equal(getattr(found, each.name), getattr(expected, each.name))


def test_a_channel_that_is_next_to_nothing_is_slow_and_not_infinitely_so():
    # log2(1 + x) is 0 as a float for x < 1e-16; the rate is b·x/ln 2, so 8 bits take 8 · ln 2 · 1e20 / 3 s.
    state = replace(STATE, gain=STATE.gain * [[[1e-20], [1e-20]], [[1], [1]], [[1e-20], [1e-20]]])
    found = by_hand(state)
    x = 3 * 3e-20 / (2 + 1)
    assert found.offload_s[0] == pytest.approx(8 * np.log(2) / (2 * x))
    snr = 10 * 0.8e-20 / (8 / 3)
    assert found.upload_s[2] == pytest.approx(4 * np.log(2) / (8 / 3 * snr))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slot": [0, 0, LOCAL]}, r"\(28c\): `slot` must not be taken twice, got slot 0 of two devices"),
        ({"slot": [0, 2, LOCAL]}, r"\(28b\): `slot` must be -1 or one of 0..1, got 2"),
        ({"slot": [0, -2, LOCAL]}, r"\(28b\): `slot` must be -1 or one of 0..1, got -2"),
        (
            {"power_w": [3.0, 0.0, 0.0]},
            r"\(28d\): `power_w` must be positive and finite .* got 0.0 for device 1",
        ),
        ({"power_w": [3.0, -1.0, 0.0]}, r"\(28d\): `power_w` .* got -1.0 for device 1"),
        ({"power_w": [np.inf, 1.0, 0.0]}, r"\(28d\): `power_w` .* got inf for device 0"),
        ({"bandwidth_hz": [0.0, 4.0, 0.0]}, r"\(28e\): `bandwidth_hz` .* got 0.0 for device 0"),
        ({"bandwidth_hz": [2.0, np.inf, 0.0]}, r"\(28e\): `bandwidth_hz` .* got inf for device 1"),
        ({"cpu_hz": [0.0, 0.0, 0.0]}, r"\(28f\): `cpu_hz` .* got 0.0 for device 2"),
        ({"hash_rate": [1.0, 0.0, 1.0]}, r"\(28g\): `hash_rate` .* got 0.0 for device 1"),
        ({"hash_rate": [1.0, 1.0, -2.0]}, r"\(28g\): `hash_rate` .* got -2.0 for device 2"),
    ],
)
def test_what_has_no_price_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        by_hand(decision=replace(DECISION, **changes))


@pytest.mark.parametrize(
    ("state", "decision", "message"),
    [
        (replace(STATE, gain=np.full((3, 2, 1), 1e-320)), DECISION, r"\(20\).* device 0"),
        (
            replace(STATE, gain=np.full((3, 2, 1), 1e-320)),
            replace(DECISION, slot=[LOCAL] * 3, cpu_hz=[1.0] * 3),
            r"\(23\).* device 0",
        ),
        (STATE, replace(DECISION, cpu_hz=[0.0, 0.0, 5e-324]), r"\(22\).* device 2"),
        (STATE, replace(DECISION, hash_rate=[1.0, 5e-324, 1.0]), r"\(27\).* device 1"),
    ],
)
def test_an_infinite_latency_is_named_and_does_not_get_into_a_mean(state, decision, message):
    with pytest.raises(ConfigError, match=message):
        by_hand(state, decision)
