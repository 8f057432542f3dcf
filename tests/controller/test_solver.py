"""The solvers against exhaustive search, a general optimiser, bounds, and what must never hurt."""

from dataclasses import replace

import numpy as np
import pytest
from exhaustive import all_assignments, best_of_all, free_search
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.controller import (
    AllLocalController,
    AssignmentController,
    GreedyController,
    NearOptimalController,
    bound,
)
from flower_bfl.controller.allocation import Situation, allocate
from flower_bfl.controller.bound import lower_bound_s
from flower_bfl.errors import ConfigError
from flower_bfl.network import Blocks, NetworkConfig, Radio, Tasks, draw_states, is_feasible, price
from flower_bfl.network.channel import occupants

TINY = NetworkConfig(devices=5, edge_servers=3, sub_channels=2)


def rng(seed=0):
    return np.random.default_rng(seed)


def learning_s(network, state, decision):
    return float(price(network, state, decision).learning_s)


# --- the optimum --------------------------------------------------------------------------------------------


def test_all_assignments_are_all():
    # Σ_k C(5, k)·6!/(6 - k)!: k of 5 devices in k of 6 slots
    assert len(all_assignments(5, 6)) == 1 + 30 + 300 + 1200 + 1800 + 720
    assert len(np.unique(all_assignments(3, 2), axis=0)) == 1 + 6 + 6


@pytest.mark.parametrize("number", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_near_optimal_finds_what_exhaustive_search_finds(number):
    """Agreement to 0.01 %, and a lower bound that is one."""
    states = draw_states(TINY, number, rng(1))
    solver = NearOptimalController(TINY, kicks=10)
    for i in range(number):
        best_s = best_of_all(TINY, states[i], steps=60)
        found = solver.solve(states[i])
        assert float(found.price.learning_s) == pytest.approx(best_s, rel=1e-4)
        assert found.learning_bound_s <= best_s * (1 + 1e-9)
        assert found.lower_bound_s <= found.latency_s * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_near_optimal_finds_it_with_more_devices_than_slots(seed):
    network = NetworkConfig(devices=7, edge_servers=3, sub_channels=2)
    state = draw_states(network, 1, rng(seed))[0]
    found_s = learning_s(network, state, NearOptimalController(network).decide(state))
    assert found_s == pytest.approx(best_of_all(network, state, steps=60), rel=1e-4)


@pytest.mark.parametrize("number", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "network",
    [
        replace(TINY, radio=Radio(sharing="per_device")),
        replace(TINY, radio=Radio(interference=False)),
        replace(TINY, edge_cpu_hz=(1e9, 5e9, 20e9)),
    ],
    ids=["per device", "no interference", "unequal servers"],
)
def test_near_optimal_finds_the_optimum_of_other_networks(network, number):
    states = draw_states(network, number, rng(2))
    for i in range(number):
        found = NearOptimalController(network).solve(states[i])
        best_s = best_of_all(network, states[i], steps=60)
        assert float(found.price.learning_s) == pytest.approx(best_s, rel=1e-4)
        assert found.learning_bound_s <= best_s * (1 + 1e-9)


def test_little_energy_is_no_obstacle():
    """It holds most devices back here."""
    network = replace(TINY, tasks=Tasks(energy_slack_j=(0.02, 0.2)))
    states = draw_states(network, 6, rng(2))
    for i in range(6):
        found = NearOptimalController(network).solve(states[i])
        best_s = best_of_all(network, states[i], steps=60)
        # Power has several stationary points then, and the search may come to a better one.
        assert 0.9 * best_s < float(found.price.learning_s) <= best_s * 1.02
        assert found.learning_bound_s <= float(found.price.learning_s)


@pytest.mark.parametrize("number", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_slowest_path_is_within_two_per_cent_of_exhaustive_search(number):
    network = replace(TINY, objective="makespan")
    states = draw_states(network, number, rng(1))
    for i in range(number):
        found = NearOptimalController(network).solve(states[i])
        best_s = best_of_all(network, states[i], steps=100)
        assert float(found.price.learning_s) <= best_s * 1.02
        assert found.learning_bound_s <= best_s * (1 + 1e-9)


# --- power and bandwidth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("objective", "most_slack_j", "within"),
    [("sum", 10.0, 1e-6), ("sum", 0.3, 3e-3), ("makespan", 10.0, 5e-3), ("makespan", 0.3, 3e-2)],
)
def test_allocation_is_as_good_as_a_general_optimiser_from_many_starts(
    objective, most_slack_j, within, number
):
    network = replace(
        TINY, objective=objective, tasks=Tasks(energy_slack_j=(most_slack_j / 10, most_slack_j))
    )
    draws = rng(3)
    states = draw_states(network, number, draws)
    for i in range(number):
        slot = NearOptimalController(network, kicks=5).decide(states[i]).slot
        made = allocate(Situation.of(network, states[i]), occupants(slot, network.slots)[None], steps=300)
        other_s = free_search(network, states[i], slot, draws)
        assert made.learning_s[0] <= other_s * (1 + within)
        # and it is not better by breaking a rule
        decision = made.decision(Situation.of(network, states[i]))
        assert is_feasible(network, states[i], decision)
        assert learning_s(network, states[i], decision) == pytest.approx(made.learning_s[0], rel=1e-6)


@pytest.mark.parametrize("objective", ["sum", "makespan"])
def test_the_bound_is_one_where_slots_are_few(objective):
    """With more devices than slots, some have to train themselves."""
    network = NetworkConfig(devices=7, edge_servers=1, sub_channels=2, objective=objective)
    states = draw_states(network, 20, rng(11))
    for i in range(20):
        found = NearOptimalController(network, kicks=3).solve(states[i])
        assert 0 < found.learning_bound_s <= float(found.price.learning_s) * (1 + 1e-12)
        assert found.gap >= -1e-12


@pytest.mark.parametrize("model_bits", [1e16, 1e25])
def test_the_bound_is_one_where_times_are_long(model_bits):
    """Differences of long times have few digits left."""
    network = NetworkConfig(devices=4, edge_servers=2, sub_channels=2, model_bits=model_bits)
    states = draw_states(network, 20, rng(0))
    for i in range(20):
        found = AssignmentController(network).solve(states[i])
        assert 0 < found.learning_bound_s <= float(found.price.learning_s)


@pytest.mark.parametrize("objective", ["sum", "makespan"])
def test_no_solver_is_worse_than_a_simpler_one(objective):
    """Hardly any energy: the search alone was at times left behind by greedy."""
    network = NetworkConfig(
        devices=12,
        edge_servers=3,
        sub_channels=2,
        objective=objective,
        tasks=Tasks(energy_slack_j=(1e-3, 0.1)),
    )
    for seed in (18, 23, 29):
        state = draw_states(network, 1, rng(seed))[0]
        simple = [GreedyController(network), AllLocalController(network)]
        simple_s = min(learning_s(network, state, each.decide(state)) for each in simple)
        fast_s = learning_s(network, state, AssignmentController(network).decide(state))
        near_s = learning_s(network, state, NearOptimalController(network, kicks=5).decide(state))
        assert near_s <= fast_s <= simple_s


@pytest.mark.parametrize("looks", [0, 1, 8])
def test_a_link_at_a_price_is_never_dearer_than_its_best_share(monkeypatch, looks):
    """On a fine grid of shares; the bound holds however short the search for the best one was."""
    monkeypatch.setattr(bound, "_LOOKS", looks)
    situation = Situation.of(TINY, draw_states(TINY, 1, rng(12))[0])
    price_s = np.array([1e-3, 0.3, 10.0])
    least_s, _ = bound._cheapest(situation, price_s)
    grid_s = [
        bound._offload_s(situation, np.full(least_s.shape, share))[0] + price_s[:, None] * share
        for share in np.geomspace(1e-4, 1.0, 2000)
    ]
    assert (least_s <= np.min(grid_s, axis=0) * (1 + 1e-12)).all()
    if looks == 8:
        np.testing.assert_allclose(least_s, np.min(grid_s, axis=0), rtol=1e-4)


def test_two_equal_devices_of_one_server_share_equally():
    """By symmetry b = W/2; p is the most, for nobody else hears it: T = D/((W/2)·log2(1 + pg/(N0·W/2)))."""
    network = NetworkConfig(devices=2, edge_servers=1, sub_channels=2)
    state = draw_states(network, 1, rng())[0]
    gain = 7 * network.radio.noise_w_hz * 10e6 / 1.0  # SINR 7 at 1 W in 10 MHz: 3 bit/s/Hz
    state = replace(state, data_bits=np.full(2, 30e6), gain=np.full((2, 1, 2), gain))
    made = allocate(Situation.of(network, state), np.array([[0, 1]]))
    np.testing.assert_allclose(made.bandwidth_hz, 10e6)
    np.testing.assert_allclose(made.power_w, 1.0)
    edge_s = state.work_cycles.sum() / 5e9
    assert made.learning_s[0] == pytest.approx(2 * 30e6 / (10e6 * 3) + edge_s)


# --- larger networks ----------------------------------------------------------------------------------------


def test_each_controller_is_better_than_the_one_before():
    network = NetworkConfig(devices=30)
    states = draw_states(network, 8, rng(4))
    controllers = [
        AllLocalController(network),
        GreedyController(network),
        AssignmentController(network),
        NearOptimalController(network, kicks=10),
    ]
    latencies = [price(network, states, each.decide(states)).learning_s for each in controllers]
    assert (latencies[2] <= latencies[0]).all() and (latencies[3] <= latencies[2]).all()
    means = [each.mean() for each in latencies]
    assert means[0] > means[1] > means[2] > means[3]
    assert means[2] < 1.03 * means[3]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "near_optimal_s"), [(20, 19.9), (30, 39.5), (50, 93.2), (100, 321.0)])
def test_near_optimal_gives_the_reference_figures(devices, near_optimal_s):
    """Means over 256 other states by an independent prototype; ours over 64.

    Within 1.5 % beside the sampling errors: at 50 and 100 devices the reference's own figures (total,
    learning part, all-local's excess over it) agree with one another no better.
    """
    network = NetworkConfig(devices=devices)
    states = draw_states(network, 64, rng(5))
    total_s = price(network, states, NearOptimalController(network, kicks=20).decide(states)).total_s
    error_s = total_s.std() * np.sqrt(1 / 64 + 1 / 256)
    assert abs(total_s.mean() - near_optimal_s) < 3 * error_s + 0.015 * near_optimal_s


@pytest.mark.parametrize(("devices", "excess"), [(20, 1.60), (30, 1.20), (50, 0.86), (100, 0.50)])
def test_offloading_saves_what_the_reference_says(devices, excess):
    """All-local learning over near-optimal learning; the assignment solver is about a per cent above that."""
    network = NetworkConfig(devices=devices)
    states = draw_states(network, 24, rng(6))
    local_s = price(network, states, AllLocalController(network).decide(states)).learning_s
    found_s = price(network, states, AssignmentController(network).decide(states)).learning_s
    ratio = local_s / found_s
    assert local_s.sum() / found_s.sum() - 1 == pytest.approx(
        excess, abs=3 * ratio.std() / np.sqrt(24) + 0.03
    )


def test_the_bound_is_tight_without_interference_and_sharing():
    """Then the problem is the assignment problem, which the bound solves exactly."""
    network = NetworkConfig(devices=12, radio=Radio(sharing="per_device", interference=False))
    states = draw_states(network, 4, rng(7))
    for i in range(4):
        assert NearOptimalController(network, kicks=20).solve(states[i]).gap == pytest.approx(0.0, abs=1e-6)


def test_the_bound_is_close_without_interference():
    """What is left is that the bandwidth is shared by whole devices: some tenths of a per cent."""
    network = NetworkConfig(devices=30, radio=Radio(interference=False))
    states = draw_states(network, 4, rng(8))
    for i in range(4):
        assert 0 <= NearOptimalController(network, kicks=5).solve(states[i]).gap < 0.02


# --- what must never make it worse --------------------------------------------------------------------------

SMALL = NetworkConfig(devices=4, edge_servers=2, sub_channels=2, blocks=Blocks(total_hash_rate=2e12))


def optimum_s(network, state):
    """Total latency at the best of all assignments, with the best hash rates."""
    best_s = best_of_all(network, state, steps=100)
    mining = price(network, state, AllLocalController(network).decide(state))
    return best_s + float(mining.consensus_s + mining.mining_total_s)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(1.0, 3.0), st.sampled_from(["sum", "makespan"]))
def test_more_of_anything_never_worsens_the_optimum(seed, factor, objective):
    network = replace(SMALL, objective=objective)
    state = draw_states(network, 1, rng(seed))[0]
    before_s = optimum_s(network, state)
    # The allocation for the slowest path is within a per cent of its optimum.
    most_s = before_s * (1 + 1e-6) if objective == "sum" else before_s * 1.01
    radio, blocks = network.radio, network.blocks
    more = {
        "bandwidth": replace(network, radio=replace(radio, bandwidth_hz=factor * radio.bandwidth_hz)),
        "power": replace(network, radio=replace(radio, power_dbm=(10.0, 30.0 + 10 * np.log10(factor)))),
        "edge CPU": replace(network, edge_cpu_hz=factor * 5e9),
        "hashes": replace(network, blocks=replace(blocks, hash_rate=(0.1e12, factor * 1e12))),
        "hash budget": replace(network, blocks=Blocks(total_hash_rate=factor * 2e12)),
        "no interference": replace(network, radio=replace(radio, interference=False)),
    }
    for what, richer in more.items():
        assert optimum_s(richer, state) <= most_s, what
    faster = replace(state, cpu_hz=factor * state.cpu_hz, energy_slack_j=factor * state.energy_slack_j)
    assert optimum_s(network, faster) <= most_s


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.permutations(range(8)), st.sampled_from(["sum", "makespan"]))
def test_the_numbers_of_devices_do_not_matter(seed, order, objective):
    network = NetworkConfig(devices=8, edge_servers=2, sub_channels=3, objective=objective)
    state = draw_states(network, 1, rng(seed))[0]
    for controller in (AssignmentController(network), NearOptimalController(network, kicks=3)):
        decision, other = controller.decide(state), controller.decide(state.permuted(order))
        np.testing.assert_array_equal(other.slot, decision.slot[order])
        np.testing.assert_allclose(other.power_w, decision.power_w[order])
        np.testing.assert_allclose(other.bandwidth_hz, decision.bandwidth_hz[order])


# --- bad input ----------------------------------------------------------------------------------------------


def test_a_batch_is_decided_but_not_solved():
    states = draw_states(TINY, 3, rng())
    controller = AssignmentController(TINY)
    together = controller.decide(states)
    for i in range(3):
        np.testing.assert_array_equal(together.slot[i], controller.decide(states[i]).slot)
    with pytest.raises(ConfigError, match=r"`state` must be one state, got a batch of shape \(3,\)"):
        controller.solve(states)


def test_kicks_are_counted():
    with pytest.raises(ConfigError, match=r"`kicks` must be a whole number from 0 .* got -1"):
        NearOptimalController(TINY, kicks=-1)


@pytest.mark.parametrize("objective", ["sum", "makespan"])
@pytest.mark.parametrize(
    "radio",
    [
        Radio(area_m=1e6),
        Radio(loss_at_km_db=300.0),
        Radio(shadowing_db=100.0),
        Radio(noise_dbm_hz=100.0),
        Radio(power_dbm=(-100.0, 100.0)),
    ],
)
def test_links_that_are_none_leave_everybody_local_without_a_warning(radio, objective):
    network = NetworkConfig(devices=12, radio=radio, objective=objective)
    states = draw_states(network, 2, rng())
    local_s = price(network, states, AllLocalController(network).decide(states)).learning_s
    greedy_s = price(network, states, GreedyController(network).decide(states)).learning_s
    assert np.isfinite(greedy_s).all()
    for controller in (AssignmentController(network), NearOptimalController(network, kicks=2)):
        decision = controller.decide(states)
        assert is_feasible(network, states, decision)
        assert (price(network, states, decision).learning_s <= local_s).all()
        assert np.isfinite(controller.solve(states[0]).learning_bound_s)


def test_the_bound_is_one_however_far_the_answer_is():
    state = draw_states(TINY, 1, rng(9))[0]
    situation = Situation.of(TINY, state)
    best_s = best_of_all(TINY, state, steps=60)
    for reached_s in (best_s, 1.5 * best_s, 10 * best_s):
        assert lower_bound_s(situation, reached_s) <= best_s * (1 + 1e-9)
