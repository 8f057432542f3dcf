"""What every controller must do, on networks of every kind; a new one is a line in CONTROLLERS."""

from dataclasses import fields, replace

import numpy as np
import pytest

from flower_bfl.controller import (
    A2CController,
    AllLocalController,
    AssignmentController,
    Controller,
    GreedyController,
    NearOptimalController,
    RandomController,
)
from flower_bfl.controller.learned import pretrained_record
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Blocks,
    Decision,
    NetworkConfig,
    NetworkProcess,
    Radio,
    Tasks,
    draw_states,
    price,
    violations,
)

LEARNT = pretrained_record().policy  # also where it has learnt another objective, or another way to share

CONTROLLERS = {
    "all-local": AllLocalController,
    "greedy": GreedyController,
    "random": lambda network: RandomController(network, np.random.default_rng(3)),
    "assignment": AssignmentController,
    "near-optimal": lambda network: NearOptimalController(network, kicks=1),
    "a2c sorted": lambda network: A2CController(network, LEARNT, "sorted"),
    "a2c assignment": lambda network: A2CController(network, LEARNT, "assignment"),
}
BY_CHANCE = {"random"}  # by the draw, and not by the state alone

SMALL = NetworkConfig(devices=6, edge_servers=3, sub_channels=2)
NETWORKS = {
    "small": SMALL,
    "one of everything": NetworkConfig(devices=1, edge_servers=1, sub_channels=1),
    "one device": replace(SMALL, devices=1),
    "one edge server": replace(SMALL, edge_servers=1),
    "one sub-channel": replace(SMALL, sub_channels=1),
    "more devices than slots": NetworkConfig(devices=9, edge_servers=2, sub_channels=2),
    "fewer devices than slots": NetworkConfig(devices=3, edge_servers=2, sub_channels=3),
    "unequal edge servers": replace(SMALL, edge_cpu_hz=(1e9, 5e9, 20e9)),
    "bandwidth for each": replace(SMALL, radio=Radio(sharing="per_device")),
    "no interference": replace(SMALL, radio=Radio(interference=False)),
    "one power": replace(SMALL, radio=Radio(power_dbm=(20.0, 20.0))),
    "makespan": replace(SMALL, objective="makespan"),
    "makespan, bandwidth for each": replace(SMALL, objective="makespan", radio=Radio(sharing="per_device")),
    "fastest": replace(SMALL, blocks=Blocks(total="fastest")),
    "race": replace(SMALL, blocks=Blocks(total="race")),
    "no hash to spare": replace(SMALL, blocks=Blocks(total_hash_rate=0.6e12)),
    "hardly any energy": replace(SMALL, tasks=Tasks(energy_slack_j=(1e-3, 0.1))),
    "large model": replace(SMALL, model_bits=1e9),
    "nobody gains": replace(SMALL, edge_cpu_hz=1e6),
    "channels that are next to nothing": replace(SMALL, radio=Radio(loss_at_km_db=240.0)),
}

every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
every_controller = pytest.mark.parametrize("name", CONTROLLERS)


def assert_same(one, other):
    np.testing.assert_array_equal(one.slot, other.slot)
    for each in fields(Decision)[1:]:
        np.testing.assert_allclose(
            getattr(one, each.name), getattr(other, each.name), rtol=1e-6, atol=0, err_msg=each.name
        )


@every_network
@every_controller
def test_decisions_are_feasible_and_have_the_shape_of_the_state(name, network):
    for batch in ((), (3,), (2, 2)):
        state = NetworkProcess(network, np.random.default_rng(1), batch).state
        decision = CONTROLLERS[name](network).decide(state)
        assert decision.slot.shape == (*batch, network.devices)
        assert violations(network, state, decision) == []
        assert np.isfinite(price(network, state, decision).total_s).all()
        offloads = decision.offloads
        assert not decision.cpu_hz[offloads].any()
        assert not decision.power_w[~offloads].any() and not decision.bandwidth_hz[~offloads].any()


@every_network
@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name not in BY_CHANCE])
def test_the_numbers_of_devices_do_not_matter(name, network):
    rng = np.random.default_rng(2)
    states, order = draw_states(network, 2, rng), rng.permutation(network.devices)
    moved = CONTROLLERS[name](network).decide(states.permuted(order))
    there = CONTROLLERS[name](network).decide(states).permuted(order)
    if network.blocks.total == "fastest":  # any one device may be it
        moved, there = (replace(one, hash_rate=np.sort(one.hash_rate)) for one in (moved, there))
    assert_same(moved, there)


@every_network
@pytest.mark.parametrize("name", [name for name in CONTROLLERS if name not in BY_CHANCE])
def test_a_batch_is_decided_as_its_states_one_by_one(name, network):
    controller, states = CONTROLLERS[name](network), draw_states(network, 2, np.random.default_rng(3))
    single = Decision.stack([controller.decide(states[row]) for row in range(2)], (2,))
    assert_same(controller.decide(states), single)


@pytest.mark.parametrize("network", [SMALL, NETWORKS["makespan"]])
@every_controller
def test_the_same_state_and_seed_give_the_same_decision(name, network):
    states = draw_states(network, 2, np.random.default_rng(4))
    first, second = CONTROLLERS[name](network), CONTROLLERS[name](network)
    decision = first.decide(states)
    assert_same(second.decide(states), decision)
    if name not in BY_CHANCE:
        assert_same(first.decide(states), decision)


@every_controller
def test_a_state_is_not_changed(name):
    state = draw_states(SMALL, 2, np.random.default_rng(5))
    copy = {each.name: getattr(state, each.name).copy() for each in fields(state)}
    CONTROLLERS[name](SMALL).decide(state)
    for key, values in copy.items():
        np.testing.assert_array_equal(getattr(state, key), values)


@every_controller
def test_gains_in_double_precision_are_decided_alike(name):
    single = draw_states(SMALL, 2, np.random.default_rng(6))
    double = replace(single, gain=single.gain.astype(np.float64))
    assert_same(CONTROLLERS[name](SMALL).decide(double), CONTROLLERS[name](SMALL).decide(single))


@every_controller
def test_a_state_of_another_network_is_refused(name):
    state = draw_states(SMALL, 2, np.random.default_rng(7))
    for other in (
        replace(SMALL, devices=7),
        replace(SMALL, edge_servers=2),
        replace(SMALL, sub_channels=3),
        replace(SMALL, edge_servers=2, sub_channels=3),  # as many slots
    ):
        with pytest.raises(ConfigError, match="`state` must have as many devices, edge servers"):
            CONTROLLERS[name](other).decide(state)


@every_controller
def test_a_controller_is_one(name):
    assert isinstance(CONTROLLERS[name](SMALL), Controller)
