"""The controller that a policy makes: batches, decodings, and policies that do not fit."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from flower_bfl.controller import A2CController, AllLocalController, GreedyController
from flower_bfl.controller.actors import PaperActor, SharedActor
from flower_bfl.controller.checkpoint import Checkpoint, save_checkpoint
from flower_bfl.controller.encoding import decode
from flower_bfl.controller.learned import pretrained_record
from flower_bfl.controller.policy import make_policy
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    Radio,
    Tasks,
    draw_states,
    price,
    violations,
)

SMALL = NetworkConfig(devices=8, edge_servers=3, sub_channels=2)
DECODINGS = ("ordered", "sorted", "assignment")


def weights_of(actor):
    return {name: values.detach().numpy().copy() for name, values in actor.state_dict().items()}


def random_shared():
    """As learning begins, but for its bias to training at home: it offloads about as many as it does not."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        actor = SharedActor()
        actor.pair[-1].weight *= 10
        actor.pair[-1].bias[0] = 0.0
    return weights_of(actor)


def random_paper(network):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        actor = PaperActor(network)
        actor.choose[-1].weight *= 10
        actor.choose[-1].bias[:] = 0.0
    return weights_of(actor)


POLICIES = {
    "random": make_policy("shared", random_shared()),
    "pretrained": pretrained_record().policy,
    "paper": make_policy("paper", random_paper(SMALL)),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
every_decoding = pytest.mark.parametrize("decoding", DECODINGS)


def states_of(network, rows, seed=0):
    return draw_states(network, rows, np.random.default_rng(seed))


def assert_same(one, other, rtol=0.0):
    for each in fields(Decision):
        np.testing.assert_allclose(
            getattr(one, each.name), getattr(other, each.name), rtol=rtol, atol=0, err_msg=each.name
        )


# --- decisions ----------------------------------------------------------------------------------------------


@every_policy
@every_decoding
def test_any_batch_is_decided_feasibly_and_as_its_states(policy, decoding):
    controller = A2CController(SMALL, policy, decoding)
    for batch in ((), (3,), (2, 2)):
        state = NetworkProcess(SMALL, np.random.default_rng(1), batch).state
        decision = controller.decide(state)
        assert decision.slot.shape == (*batch, 8)
        assert violations(SMALL, state, decision) == []
        for row in np.ndindex(batch):
            if row:
                assert_same(controller.decide(state[row]), decision[row], rtol=1e-6)
    assert decision.offloads.any() and not decision.offloads.all()


@every_policy
@pytest.mark.parametrize("decoding", ["ordered", "sorted"])
def test_turns_are_decided_as_the_policy_plays_them(policy, decoding):
    states = states_of(SMALL, 10)
    play = make_policy(
        policy.architecture, {name: values.astype(np.float64) for name, values in policy.weights.items()}
    ).play(SMALL, states, None, decoding)
    decision = A2CController(SMALL, policy, decoding).decide(states)
    assert_same(decision, decode(SMALL, states, play.slot + 1, play.parameters))


@pytest.mark.parametrize("name", ["random", "paper"])
def test_ordered_and_sorted_turns_differ(name):
    states = states_of(SMALL, 40)
    slots = [A2CController(SMALL, POLICIES[name], each).decide(states).slot for each in ("ordered", "sorted")]
    assert (slots[0] != slots[1]).any()


@every_policy
@pytest.mark.parametrize("objective", ["sum", "makespan"])
def test_an_assignment_is_the_cheapest_proposal_and_never_dearer_than_turns(policy, objective):
    network = replace(SMALL, objective=objective)
    states = states_of(network, 40)
    by_turns, best = (
        price(network, states, A2CController(network, policy, each).decide(states)).total_s
        for each in ("sorted", "assignment")
    )
    assert (best <= by_turns).all()
    assert (best < by_turns * (1 - 1e-3)).any()
    double = {name: values.astype(np.float64) for name, values in policy.weights.items()}
    proposals = make_policy(policy.architecture, double).proposals(network, states)
    totals_s = [
        price(network, states, decode(network, states, slot + 1, numbers)).total_s
        for slot, numbers in proposals
    ]
    np.testing.assert_array_equal(best, np.min(totals_s, axis=0))


@every_decoding
@pytest.mark.parametrize(("devices", "servers", "channels"), [(8, 3, 2), (3, 2, 3), (12, 5, 1)])
def test_without_a_network_a_states_own_numbers_count(decoding, devices, servers, channels):
    network = NetworkConfig(devices=devices, edge_servers=servers, sub_channels=channels)
    controller = A2CController(None, POLICIES["pretrained"], decoding)
    for batch in ((), (4,)):
        state = NetworkProcess(network, np.random.default_rng(2), batch).state
        expected = A2CController(network, POLICIES["pretrained"], decoding).decide(state)
        assert_same(controller.decide(state), expected)


def test_without_a_network_one_controller_decides_for_many():
    controller = A2CController(None, POLICIES["pretrained"])
    for devices in (4, 9):
        network = replace(SMALL, devices=devices)
        states = states_of(network, 3)
        assert violations(network, states, controller.decide(states)) == []


@every_decoding
def test_many_states_are_decided_as_parts_of_them(decoding):
    network = NetworkConfig(devices=3, edge_servers=2, sub_channels=1)
    controller = A2CController(network, POLICIES["random"], decoding)
    states = states_of(network, 600)
    whole = controller.decide(states)
    cuts = [0, 7, 256, 300, 599, 600]
    parts = [controller.decide(states[i:j]) for i, j in itertools.pairwise(cuts)]
    together = Decision(
        **{
            each.name: np.concatenate([getattr(part, each.name) for part in parts])
            for each in fields(Decision)
        }
    )
    assert_same(whole, together, rtol=1e-6)
    assert len(np.unique(whole.slot, axis=0)) > 5


def test_no_more_than_256_states_are_played_at_once(monkeypatch):
    network = NetworkConfig(devices=3, edge_servers=2, sub_channels=1)
    controller, played = A2CController(network, POLICIES["random"], "sorted"), []
    play = controller._policy.play

    def counted(network, state, *rest):
        played.append(len(state.data_bits))
        return play(network, state, *rest)

    monkeypatch.setattr(controller._policy, "play", counted)
    assert controller.decide(states_of(network, 600)).slot.shape == (600, 3)
    assert sum(played) == 600 and max(played) <= 256


def test_the_policy_that_was_given_stays_as_it_is():
    weights = random_shared()
    policy = make_policy("shared", weights)
    A2CController(SMALL, policy).decide(states_of(SMALL, 2))
    assert policy.weights is weights
    assert all(values.dtype == np.float32 for values in weights.values())


@pytest.mark.parametrize("decoding", ["best", "", None])
def test_an_unknown_decoding_is_refused(decoding):
    with pytest.raises(ConfigError, match=r"`decoding` must be one of .*'assignment'.*, got"):
        A2CController(SMALL, POLICIES["random"], decoding)


# --- the policy in the package ------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [10, 30])
def test_the_policy_in_the_package_beats_rules_of_thumb(devices):
    network = NetworkConfig(devices=devices)
    states = states_of(network, 16)
    learnt_s, greedy_s, local_s = (
        price(network, states, controller.decide(states)).learning_s.mean()
        for controller in (
            A2CController.pretrained(network),
            GreedyController(network),
            AllLocalController(network),
        )
    )
    assert learnt_s < 0.8 * greedy_s < local_s


def test_the_policy_in_the_package_comes_with_its_record():
    record = pretrained_record()
    assert record.architecture == "shared" and not record.learner
    assert record.curve[-1]["steps"] == record.steps
    assert record.curve[-1]["utility"] > record.curve[0]["utility"]
    states = states_of(SMALL, 3)
    assert_same(
        A2CController.pretrained(SMALL).decide(states), A2CController(SMALL, record.policy).decide(states)
    )
    assert_same(
        A2CController.pretrained(decoding="sorted").decide(states),
        A2CController(SMALL, record.policy, "sorted").decide(states),
    )


# --- what does not fit --------------------------------------------------------------------------------------


def saved(folder, network, architecture="shared"):
    weights = random_shared() if architecture == "shared" else random_paper(network)
    save_checkpoint(folder, Checkpoint(architecture, network, weights, {"seed": 0}, 100, [], {}))
    return folder


LEARNT = {
    "Table IV": SMALL,
    "makespan": replace(SMALL, objective="makespan"),
    "for each": replace(SMALL, radio=Radio(sharing="per_device")),
    "no interference": replace(SMALL, radio=Radio(interference=False)),
}
NAMES = {"makespan": "objective", "for each": "radio.sharing", "no interference": "radio.interference"}


@pytest.mark.parametrize("learnt", LEARNT)
@pytest.mark.parametrize("asked", LEARNT)
def test_a_shared_policy_decides_only_for_the_kind_of_network_that_it_learnt(tmp_path, learnt, asked):
    folder = saved(tmp_path, LEARNT[learnt])
    other_size = replace(LEARNT[asked], devices=5, edge_servers=2, tasks=Tasks(cpu_hz=(1e8, 1e9)))
    if learnt == asked:
        states = states_of(other_size, 3)
        decision = A2CController.load(folder, other_size).decide(states)
        assert violations(other_size, states, decision) == []
        return
    name = NAMES.get(learnt) or NAMES[asked]
    if learnt in NAMES and asked in NAMES:
        name = min(NAMES[learnt], NAMES[asked])  # the first that differs
    with pytest.raises(
        ConfigError, match=f"`network` must be what the policy was trained for, where {name} is "
    ):
        A2CController.load(folder, other_size)


@pytest.mark.parametrize("learnt", NAMES)
def test_a_policy_for_something_else_than_table_iv_does_not_decide_for_table_iv(tmp_path, learnt):
    folder = saved(tmp_path, LEARNT[learnt])
    with pytest.raises(
        ConfigError, match=f"`network` must be what the policy was trained for, where {NAMES[learnt]} is "
    ):
        A2CController.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 7}, "where devices is 8, got 7"),
        ({"objective": "makespan"}, "where objective is 'sum', got 'makespan'"),
        ({"model_bits": 80e3}, r"where model_bits is 40000.0, got 80000.0"),
        ({"radio": Radio(area_m=500.0)}, "where radio is .*'area_m': 1000.0.*, got .*'area_m': 500.0"),
        ({"server_positions_m": ((0.0, 0.0),) * 3}, "where server_positions_m is None, got"),
    ],
)
def test_the_papers_policy_decides_only_for_the_network_that_it_learnt(tmp_path, change, message):
    folder = saved(tmp_path, SMALL, "paper")
    with pytest.raises(ConfigError, match=message):
        A2CController.load(folder, replace(SMALL, **change))
    states = states_of(SMALL, 3)
    assert_same(
        A2CController.load(folder).decide(states), A2CController.load(str(folder), SMALL).decide(states)
    )


def test_the_papers_policy_without_a_network_decides_for_its_own(tmp_path):
    # Half the power, which Table IV's network would not keep to.
    network = replace(SMALL, radio=Radio(power_dbm=(10.0, 20.0)))
    states = states_of(network, 10)
    decision = A2CController.load(saved(tmp_path, network, "paper")).decide(states)
    assert violations(network, states, decision) == [] and decision.offloads.any()
    with pytest.raises(ConfigError, match="`state` must have as many devices"):
        A2CController.load(tmp_path).decide(states_of(replace(SMALL, devices=7), 2))


def test_a_folder_without_a_policy_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"there is no policy to be read in .*nowhere"):
        A2CController.load(tmp_path / "nowhere", SMALL)


def test_the_decoding_of_a_policy_that_is_loaded_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="`decoding` must be one of"):
        A2CController.load(saved(tmp_path, SMALL), SMALL, "best")
    assert A2CController.load(tmp_path, SMALL, "sorted").decoding == "sorted"
