"""The controllers that neither search nor learn: by hand, and against what another program measured."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flower_bfl.controller import AllLocalController, GreedyController, RandomController
from flower_bfl.controller.heuristics import equal_hash_rates
from flower_bfl.network import LOCAL, Blocks, NetworkConfig, NetworkState, Radio, Tasks, draw_states, price
from flower_bfl.network.pricing import mining_of_all_s


def seconds(network, controller, states):
    return price(network, states, controller.decide(states))


# --- hash rates ---


@pytest.mark.parametrize(
    ("total", "devices", "expected"),
    [
        ("sum", 4, [2.5] * 4),  # 10 hashes/s in equal shares
        ("sum", 2, [4.0, 4.0]),  # the most that one may have
        ("race", 4, [2.5] * 4),
        ("fastest", 4, [4.0, 1.0, 1.0, 1.0]),
        ("fastest", 9, [2.0] + [1.0] * 8),  # what the least of the others leaves
    ],
)
def test_hash_rates_by_hand(total, devices, expected):
    blocks = Blocks(total=total, hash_rate=(1.0, 4.0), total_hash_rate=10.0)
    network = NetworkConfig(devices=devices, blocks=blocks)
    np.testing.assert_allclose(equal_hash_rates(network, (2, devices)), [expected] * 2, rtol=1e-12)


@pytest.mark.parametrize("total", ["sum", "fastest", "race"])
def test_no_other_hash_rates_mine_faster(total):
    rng = np.random.default_rng(0)
    for devices in (4, 5, 9):
        network = NetworkConfig(
            devices=devices, blocks=Blocks(total=total, hash_rate=(1.0, 4.0), total_hash_rate=10.0)
        )
        others = 1 + rng.dirichlet(np.full(devices, 0.5), 20_000) * (10 - devices)
        others = others[(others <= 4).all(axis=1)]
        assert len(others) > 10
        best_s = mining_of_all_s(network.blocks, equal_hash_rates(network, (devices,)), 5)
        assert best_s <= mining_of_all_s(network.blocks, others, 5).min() * (1 + 1e-12)


# --- all local ---


def test_everybody_local_gives_all_the_cpu_that_there_is_energy_for():
    # √(5 J / (5e-27 · 1e9)) = 1 GHz
    state = NetworkState([8e6] * 3, [1e9] * 3, [2e9, 0.5e9, 1e9], [5.0] * 3, np.full((3, 5, 5), 1e-9))
    decision = AllLocalController(NetworkConfig(devices=3)).decide(state)
    assert decision.slot.tolist() == [LOCAL] * 3
    np.testing.assert_allclose(decision.cpu_hz, [1e9, 0.5e9, 1e9], rtol=1e-12)
    np.testing.assert_allclose(decision.hash_rate, 1e12)


@pytest.mark.parametrize(("devices", "total_s"), [(20, 36), (30, 61), (50, 124), (100, 360)])
def test_everybody_local_takes_what_an_independent_prototype_measured(devices, total_s):
    # Its figures are means over 256 states of its own.
    network = NetworkConfig(devices=devices)
    states = draw_states(network, 1024, np.random.default_rng(0))
    measured = seconds(network, AllLocalController(network), states).total_s
    spread = measured.std() * np.sqrt(1 / 256 + 1 / 1024)
    assert measured.mean() == pytest.approx(total_s, abs=3 * spread + 0.5)  # they are rounded


# --- random ---

ALONE = NetworkConfig(
    devices=1, edge_servers=2, sub_channels=3, tasks=Tasks(cpu_hz=(1e9, 1e9), energy_slack_j=(100.0, 100.0))
)


def random_decisions():
    """A device alone, near both edge servers: nothing needs to be put right."""
    count = 20_000
    ones = np.ones((count, 1))
    state = NetworkState(1e6 * ones, 1e9 * ones, 1e9 * ones, 100 * ones, np.full((count, 1, 2, 3), 1e-8))
    return RandomController(ALONE, np.random.default_rng(1)).decide(state)


def test_a_random_choice_is_uniform_over_slots_and_local():
    slot = random_decisions().slot
    counts = np.bincount(slot[:, 0] + 1, minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_resources_are_uniform():
    made = random_decisions()
    offloads = made.offloads
    for values, least, most in (
        (made.power_w[offloads], 0.01, 1.0),
        (made.bandwidth_hz[offloads], 0.2e6, 20e6),
        (made.cpu_hz[~offloads], 0.01e9, 1e9),
        (made.hash_rate, 0.1e12, 1e12),
    ):
        assert stats.kstest(np.ravel(values), stats.uniform(least, most - least).cdf).pvalue > 1e-3


def test_another_seed_is_another_decision():
    network = NetworkConfig()
    states = draw_states(network, 2, np.random.default_rng(0))
    one, other = (RandomController(network, np.random.default_rng(seed)).decide(states) for seed in (1, 2))
    assert (one.slot != other.slot).any()


# --- greedy ---

# One slot's bandwidth is 1 Hz, its noise 1 W, and every device's power 1 W: SNR is the gain. All work is
# 6 cycles: 6 s at a device's 1 Hz, 1 s at an edge server's 6 Hz. Data are 6 bits. With a gain of 1, 3 or 7
# they take 6, 3 or 2 s, so offloading saves 6 − 1 − 6 = −1, 2 or 3 s. The model has next to no bits.
BY_HAND = NetworkConfig(
    devices=3,
    edge_servers=2,
    sub_channels=1,
    edge_cpu_hz=6.0,
    model_bits=1e-9,
    radio=Radio(bandwidth_hz=1.0, noise_dbm_hz=30.0, noise_figure_db=0.0, power_dbm=(30.0, 30.0)),
    tasks=Tasks(energy_coefficient=1e-9),
)


def greedy_slots(gain, network=BY_HAND, slack_j=1e9, cpu_hz=(1.0, 1.0, 1.0)):
    gain = np.asarray(gain, dtype=float).reshape(3, network.edge_servers, network.sub_channels)
    state = NetworkState([6.0] * 3, [6.0] * 3, cpu_hz, [slack_j] * 3, gain)
    return GreedyController(network).decide(state).slot.tolist()


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ([[1, 1], [1, 1], [1, 1]], [LOCAL, LOCAL, LOCAL]),  # nobody gains
        ([[3, 1], [1, 1], [1, 1]], [0, LOCAL, LOCAL]),
        ([[1, 3], [1, 7], [1, 1]], [LOCAL, 1, LOCAL]),  # the slot goes to who gains most
        ([[3, 7], [1, 1], [1, 3]], [1, LOCAL, LOCAL]),  # device 0 takes its best, nobody gains from slot 0
        ([[3, 7], [3.1, 1], [3, 8]], [LOCAL, 0, 1]),
        ([[7, 1], [8, 3], [1, 1]], [LOCAL, 0, LOCAL]),  # device 1 has 3 s there, 0 gains nothing elsewhere
    ],
)
def test_greedy_by_hand(gain, expected):
    assert greedy_slots(gain) == expected


def test_greedy_counts_with_its_share_of_the_bandwidth():
    # Two sub-channels: half a hertz each, half a watt of noise; a gain of 1.5 gives SNR 3 and 1 bit/s:
    # 6 s, no gain. With all bandwidth for each: SNR 1.5, 1.32 bit/s, 4.5 s, half a second saved.
    network = replace(BY_HAND, edge_servers=1, sub_channels=2)
    gain = [[1.5, 1.5], [0.1, 0.1], [0.1, 0.1]]
    assert greedy_slots(gain, network) == [LOCAL] * 3
    for_each = replace(network, radio=replace(network.radio, sharing="per_device"))
    assert greedy_slots(gain, for_each) == [0, LOCAL, LOCAL]


def test_greedy_counts_the_upload_that_is_saved():
    # An upload has 1 Hz · 2/3 and SNR 1 · 1.5: 2/3 · log2(2.5) bit/s. Offloading takes 7 s for 6 s, but the
    # model of 2 bits takes 2.27 s more.
    gain = [[1, 1], [0.1, 0.1], [0.1, 0.1]]
    assert greedy_slots(gain) == [LOCAL] * 3
    assert greedy_slots(gain, replace(BY_HAND, model_bits=2.0))[0] == 0


def test_a_device_with_a_fast_cpu_does_not_gain():
    # 6 cycles at 6 Hz take 1 s as at the edge server.
    assert greedy_slots([[7, 1], [1, 7], [1, 1]], cpu_hz=(6.0, 1.0, 1.0)) == [LOCAL, 1, LOCAL]


def test_greedy_is_better_than_chance_and_better_than_everybody_local():
    network = NetworkConfig()
    states = draw_states(network, 64, np.random.default_rng(0))
    greedy, local, chance = (
        seconds(network, controller, states).learning_s
        for controller in (
            GreedyController(network),
            AllLocalController(network),
            RandomController(network, np.random.default_rng(0)),
        )
    )
    assert greedy.mean() < local.mean() < chance.mean()
