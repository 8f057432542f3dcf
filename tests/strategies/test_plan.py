"""Decisions made safe: feasible whatever the controller does and whoever is there, and priced as they are."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from field import Scripted, decision, roomy
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl._views import CONTROLLERS
from flower_bfl.controller import AllLocalController, AssignmentController, GreedyController, RandomController
from flower_bfl.controller.base import for_devices
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Price,
    draw_states,
    price,
    violations,
)
from flower_bfl.network.pricing import local_cpu_limit_hz
from flower_bfl.network.settings import Blocks, Radio, Tasks
from flower_bfl.strategies._fleet import Reported
from flower_bfl.strategies._plan import Planner
from flower_bfl.types import DeviceReport

MOST_BYTES = 10**6


def reported(devices, **told):
    return {n: Reported(node=100 + n, data_bytes=10**5, told=DeviceReport(**told)) for n in devices}


def decide(planner, devices, servers, told=None):
    told = reported(devices) if told is None else told
    return planner.decide(devices, told, servers, MOST_BYTES)


def equal(one, other, kind):
    """Two values of one dataclass, bit for bit."""
    for each in fields(kind):
        np.testing.assert_array_equal(getattr(one, each.name), getattr(other, each.name), err_msg=each.name)


class Recording:
    """Remembers what it was shown and decided."""

    def __init__(self, controller):
        self.controller, self.network = controller, controller.network
        self.shown, self.decided = [], []

    def decide(self, state):
        self.shown.append(state)
        self.decided.append(for_devices(self.controller, state.devices).decide(state))
        return self.decided[-1]


class Wild:
    """Decides anything."""

    def __init__(self, network, seed):
        self.network, self._rng = network, np.random.default_rng(seed)

    def decide(self, state):
        def some(scale):
            values = (
                scale * 10 ** self._rng.uniform(-3, 3, state.devices) * self._rng.choice([1, 1, 1, 0, -1])
            )
            return np.where(self._rng.random(state.devices) < 0.1, np.inf, values)

        slot = self._rng.integers(-3, self.network.slots + 3, state.devices)
        return Decision(slot, some(1.0), some(20e6), some(1e9), some(1e12))


KINDS = {
    "all-local": lambda network, seed: AllLocalController(network),
    "random": lambda network, seed: RandomController(network, np.random.default_rng(seed)),
    "greedy": lambda network, seed: GreedyController(network),
    "assignment": lambda network, seed: AssignmentController(network),
    "wild": Wild,
}


@st.composite
def networks(draw):
    devices = draw(st.integers(1, 6))
    return NetworkConfig(
        devices,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        objective=draw(st.sampled_from(["sum", "makespan"])),
        radio=Radio(sharing=draw(st.sampled_from(["shared", "per_device"]))),
        tasks=Tasks(
            battery=draw(st.booleans()), energy_slack_j=draw(st.sampled_from([(2.0, 10.0), (1e-4, 0.1)]))
        ),
        blocks=Blocks(
            total=draw(st.sampled_from(["sum", "fastest", "race"])),
            total_hash_rate=draw(st.sampled_from([20e12, devices * 1.5e11])),
        ),
    )


def reports(network):
    """What a device may say of itself: anything within the limits of a report."""
    number = st.none() | st.floats(1e-3, 1e18)
    gains = st.none() | st.lists(
        st.floats(-250, 0), min_size=network.edge_servers, max_size=network.edge_servers
    )
    told = st.builds(DeviceReport, st.booleans(), number, number, number, gains)
    return st.builds(Reported, st.just(1), st.integers(1, 2 * MOST_BYTES) | st.just(2**53), told)


@settings(max_examples=100)
@given(data=st.data())
def test_what_is_carried_out_is_feasible_whoever_is_there(data):
    network = data.draw(networks())
    controller = KINDS[data.draw(st.sampled_from(list(KINDS)))](network, data.draw(st.integers(0, 99)))
    planner = Planner(controller, network, seed=data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(1, 3))):
        devices = data.draw(st.sets(st.integers(0, network.devices - 1), min_size=1))
        told = {n: data.draw(reports(network)) for n in data.draw(st.sets(st.sampled_from(sorted(devices))))}
        servers = data.draw(st.sets(st.integers(0, network.edge_servers - 1)))
        plan = planner.decide(sorted(devices, reverse=True), told, servers, MOST_BYTES)
        consent = {n for n, one in told.items() if one.told.may_offload and one.data_bytes <= MOST_BYTES}
        kept = data.draw(st.sets(st.sampled_from(sorted(devices))))
        for made in (plan, planner.carried_out(plan, kept)):
            assert violations(made.network, made.state, made.decision) == []
            equal(made.price, price(made.network, made.state, made.decision), Price)
            assert made.devices == tuple(sorted(devices)) and made.network.devices == len(devices)
            assert made.offloading.keys() <= consent and {*made.offloading.values()} <= servers
            budget = network.blocks.total_hash_rate * (1 + 1e-9)
            assert sum(made.hash_rates.values()) <= budget
        assert not made.offloading.keys() & kept


@settings(max_examples=40)
@given(network=networks(), kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 99))
def test_a_feasible_decision_is_taken_as_it_is_when_nothing_is_missing(network, kind, seed):
    controller = Recording(KINDS[kind](network, seed))
    planner = Planner(controller, network, seed)
    devices = range(network.devices)
    plan = decide(planner, devices, range(network.edge_servers))
    (shown,), (decided,) = controller.shown, controller.decided
    equal(plan.state, shown, NetworkState)
    if violations(network, shown, decided):
        assert kind == "wild" and plan.fallback
    else:
        assert plan.fallback == ""
        equal(plan.decision, decided, Decision)
        assert planner.carried_out(plan, []) is plan


def test_a_feasible_decision_is_not_rounded():
    """It may be above a limit by what sums of floats are."""
    network = roomy(4, 2)
    slightly = 1 + 5e-10

    class Bold(Scripted):
        def decide(self, state):
            own = super().decide(state)
            return replace(own, power_w=own.power_w * slightly, hash_rate=own.hash_rate * slightly)

    controller = Recording(Bold(network, [0, 0, 1, None]))
    plan = decide(Planner(controller, network, 0), range(4), [0, 1])
    assert plan.decision.power_w.max() > 1 and not plan.fallback
    equal(plan.decision, controller.decided[0], Decision)


# -- who is there ----------------------------------------------------------------------------------------


def test_the_controller_sees_those_who_may_offload_and_no_links_to_who_is_away():
    network = roomy(6, 3)
    controller = Scripted(network, [0, None, 2])
    planner = Planner(controller, network, seed=1)
    told = reported([0, 1, 2, 4, 5])
    told[1] = replace(told[1], told=DeviceReport(may_offload=False))
    told[5] = replace(told[5], data_bytes=MOST_BYTES + 1)
    plan = decide(planner, range(6), [0, 2], told)
    (shown,) = controller.seen
    rows = [0, 2, 4]
    for name in ("data_bits", "work_cycles", "cpu_hz", "energy_slack_j"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(plan.state, name)[rows])
    np.testing.assert_array_equal(shown.gain[:, [0, 2]], plan.state.gain[rows][:, [0, 2]])
    assert (shown.gain[:, 1] < 1e-24).all() and (plan.state.gain[:, 1] > 1e-24).all()
    assert plan.offloading == {0: 0, 4: 2} and plan.fallback == ""


def test_data_for_who_is_away_stay_where_they_are_and_the_plan_says_so():
    network = roomy(6, 3)
    plan = decide(Planner(Scripted(network, [None, 0, 0, 1, 1, 2]), network, seed=1), range(6), [1, 2])
    assert plan.offloading == {3: 1, 4: 1, 5: 2}
    why = "edge server 0 is not there, got device 1's data for it"
    assert plan.fallback == f"the controller's decision was not feasible: {why}"


def test_no_amount_of_energy_sends_data_to_who_is_away():
    network = roomy(3, 3)
    told = reported(range(3), energy_slack_j=1e18)
    plan = decide(Planner(Scripted(network, [0, 0, 1]), network, seed=1), range(3), [1, 2], told)
    assert plan.offloading == {2: 1} and "edge server 0 is not there" in plan.fallback


def test_a_data_set_may_be_as_large_as_is_allowed():
    network = roomy(2, 2)
    told = {n: Reported(1, size) for n, size in ((0, MOST_BYTES), (1, MOST_BYTES + 1))}
    assert decide(Planner(Scripted(network, [1]), network, 0), range(2), [0, 1], told).offloading == {0: 1}


@pytest.mark.parametrize("servers", [[], [0, 1]])
@pytest.mark.parametrize("may_offload", [False, True])
def test_the_controller_is_not_asked_if_nobody_may_offload(servers, may_offload):
    network = roomy(4, 2)
    controller = Scripted(network, [0, 0, 1, 1])
    plan = decide(
        Planner(controller, network, 0), range(4), servers, reported(range(4), may_offload=may_offload)
    )
    assert bool(controller.seen) == bool(servers and may_offload) == bool(plan.offloading)
    assert plan.fallback == ""


def test_those_who_are_not_asked_train_with_all_they_have():
    network = NetworkConfig(4, 2, 2)
    plan = decide(Planner(AssignmentController(network), network, 0), range(4), [0, 1], {})
    np.testing.assert_array_equal(plan.decision.cpu_hz, local_cpu_limit_hz(plan.network, plan.state))
    np.testing.assert_array_equal(plan.decision.hash_rate, 1e12)


@pytest.mark.parametrize(("devices", "expected"), [(10, 1e12), (20, 1e12), (40, 5e11)])
def test_the_hash_budget_is_shared_by_all_and_used_up(devices, expected):
    """Equal rates, as large as each may have and the budget allows, whoever the controller decided for."""
    network = roomy(devices, 2, 40)
    plan = decide(
        Planner(AllLocalController(network), network, 0),
        range(devices),
        [0, 1],
        reported(range(devices // 2)),
    )
    np.testing.assert_allclose(plan.decision.hash_rate, expected)


def test_hash_rates_that_the_controller_made_unequal_stay_so():
    network = roomy(6, 2)
    rates = np.array([1e11, 2e11, 6e11])

    class Unequal(Scripted):
        def decide(self, state):
            return replace(super().decide(state), hash_rate=rates)

    plan = decide(Planner(Unequal(network, [0, 1, None]), network, 0), range(6), [0, 1], reported(range(3)))
    np.testing.assert_allclose(plan.decision.hash_rate, [*rates, *[rates.mean()] * 3])


# -- what goes wrong -------------------------------------------------------------------------------------


class Failing:
    def __init__(self, network):
        self.network = network

    def decide(self, state):
        raise RuntimeError("x" * 10**5)


def test_a_failing_controller_leaves_everybody_alone():
    network = NetworkConfig(4, 2, 2)
    plan = decide(Planner(Failing(network), network, 0), range(4), [0, 1])
    assert plan.fallback.startswith("the controller failed: RuntimeError('xxx") and len(plan.fallback) < 300
    assert not plan.offloading and (plan.decision.cpu_hz > 0).all()


def test_a_controller_that_writes_into_its_state_changes_its_own_copy_only():
    network = NetworkConfig(4, 2, 2)

    class Writing(AllLocalController):
        def decide(self, state):
            own = super().decide(state)
            for each in fields(state):
                getattr(state, each.name)[:] = 1e9
            return replace(own, cpu_hz=own.cpu_hz * 1.5)

    plain = decide(Planner(AllLocalController(network), network, 3), range(4), [0, 1])
    plan = decide(Planner(Writing(network), network, 3), range(4), [0, 1])
    equal(plan.state, plain.state, NetworkState)
    assert "(28f) device 0" in plan.fallback
    assert violations(plan.network, plan.state, plan.decision) == []


def test_a_fallback_names_devices_by_their_own_numbers():
    network = roomy(4, 2)

    class Weak(Scripted):
        def decide(self, state):
            return replace(super().decide(state), power_w=np.array([1.0, 0.0]))

    planner = Planner(Weak(network, [0, 1]), network, 0)
    plan = decide(planner, [0, 1, 3], [0, 1], reported([1, 3]))
    assert plan.fallback.endswith(
        "(28d) device 1: `power_w` must be from 0.01 to 1 W, got 0; its device 1 is device 3"
    )


# -- time and energy -------------------------------------------------------------------------------------


def test_a_plan_tells_seconds_and_joules_by_phase():
    network = roomy(4, 2)
    plan = decide(Planner(Scripted(network, [0, 1, None, 1]), network, 0), range(4), [0, 1])
    seconds, joules, priced = plan.latency_s(), plan.energy_j(), plan.price
    for name in ("offload", "edge", "local", "upload"):
        assert seconds[name] == pytest.approx(getattr(priced, f"{name}_s").sum()) and seconds[name] > 0
    assert (seconds["consensus"], seconds["mining"]) == (priced.consensus_s, priced.mining_total_s)
    assert (seconds["total"], seconds["makespan"]) == (priced.total_s, priced.makespan_s)
    assert seconds["total"] > seconds["makespan"]
    assert joules["mining"] == pytest.approx(4 * network.blocks.energy_j)
    for name in ("offload", "local", "upload"):
        assert joules[name] == pytest.approx(getattr(priced, f"{name}_j").sum())


def test_settings_are_the_decision_by_device():
    network = roomy(5, 2)
    plan = decide(Planner(Scripted(network, [1, None, 1]), network, 0), [0, 2, 4], [0, 1])
    own, told = plan.decision, plan.settings()
    home = int(plan.state.gain[1].max(axis=-1).argmax())
    sent = {"offload": True, "edge-server": 1, "power-w": 1.0, "bandwidth-hz": 4e6, "hash-rate": 1e12}
    assert told == {
        0: sent | {"sub-channel": 0},
        2: {"offload": False, "edge-server": home, "cpu-hz": own.cpu_hz[1], "hash-rate": 1e12},
        4: sent | {"sub-channel": 1},
    }
    for each in told.values():
        assert {type(value) for value in each.values()} <= {bool, int, float}  # what a message may hold
    assert plan.homes == {0: 1, 2: home, 4: 1}


def test_a_device_that_keeps_its_data_after_all_trains_with_all_it_has_and_the_others_as_before():
    network = roomy(4, 2)
    planner = Planner(Scripted(network, [0, 0, 1, None]), network, 0)
    plan = decide(planner, range(4), [0, 1])
    kept = planner.carried_out(plan, [1])
    assert kept.offloading == {0: 0, 2: 1}
    assert kept.decision.cpu_hz[1] == local_cpu_limit_hz(kept.network, kept.state)[1]
    for each in fields(Decision):
        before, after = getattr(plan.decision, each.name), getattr(kept.decision, each.name)
        np.testing.assert_allclose(after[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize("battery", [False, True])
def test_what_a_round_takes_is_charged_to_those_who_took_part(battery):
    """The same network, advanced by hand with what each plan says it takes."""
    network = NetworkConfig(5, 2, 2, tasks=Tasks(battery=battery))
    planner = Planner(AssignmentController(network), network, seed=7)
    by_hand = NetworkProcess(network, np.random.default_rng([7, 20]))
    for k, (devices, kept) in enumerate(
        [([0, 1, 2, 3, 4], []), ([1, 3], []), ([0, 2, 4], [2]), ([0, 1], [0, 1])]
    ):
        plan = planner.decide(devices, reported(devices), [0, 1], MOST_BYTES)
        state = by_hand.state
        np.testing.assert_array_equal(
            plan.state.energy_slack_j, state.energy_slack_j[devices], err_msg=str(k)
        )
        np.testing.assert_array_equal(plan.state.gain, state.gain[devices])
        plan = planner.carried_out(plan, kept)
        spent = np.zeros(5)
        spent[devices] = plan.price.offload_j + plan.price.local_j
        assert (spent[devices] > 0).all()
        by_hand.advance(spent)


# -- controllers for fewer devices -----------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_decides_for_fewer_devices_as_one_made_for_them(name):
    network = NetworkConfig(5, 2, 1)
    controller = CONTROLLERS[name](network, np.random.default_rng(0))
    for devices in (1, 3, 5):
        fewer = replace(network, devices=devices)
        state = draw_states(fewer, 1, np.random.default_rng(devices))[0]
        fitting = for_devices(CONTROLLERS[name](network, np.random.default_rng(0)), devices)
        made_for_them = CONTROLLERS[name](fewer, np.random.default_rng(0))
        equal(fitting.decide(state), made_for_them.decide(state), Decision)
        assert for_devices(controller, devices).network == fewer
        assert controller.network == network


def test_a_controller_without_a_network_is_taken_as_it_is():
    class Plain:
        def decide(self, state):
            return decision(roomy(state.devices, 2), state, [None] * state.devices)

    plain = Plain()
    assert for_devices(plain, 3) is plain
    plan = decide(Planner(plain, roomy(6, 2), 0), range(6), [0, 1], reported([1, 2]))
    assert plan.fallback == "" and not plan.offloading


def test_a_frozen_controller_can_be_made_to_fit():
    @dataclass(frozen=True)
    class Frozen:
        network: NetworkConfig

        def decide(self, state):
            return AllLocalController(self.network).decide(state)

    network = roomy(6, 2)
    plan = decide(Planner(Frozen(network), network, 0), range(6), [0, 1], reported([1, 2]))
    assert plan.fallback == ""
