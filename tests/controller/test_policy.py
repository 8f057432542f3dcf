"""Policies in numpy: against the networks in PyTorch, brute force, and the laws of chance."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flower_bfl.controller.actors import PaperActor, SharedActor
from flower_bfl.controller.encoding import observe
from flower_bfl.controller.placement import CANDIDATES, FEATURES, OUTLOOK, Placement, turn_order
from flower_bfl.controller.policy import NEVER, PaperPolicy, SharedPolicy, _assigned, _pick, make_policy
from flower_bfl.errors import ConfigError
from flower_bfl.network import LOCAL, NetworkConfig, Radio, draw_states

seeds = st.integers(0, 2**32)
SMALL = NetworkConfig(devices=6, edge_servers=3, sub_channels=2)
NETWORKS = {
    "small": SMALL,
    "more devices than slots": NetworkConfig(devices=9, edge_servers=2, sub_channels=2),
    "fewer devices than slots": NetworkConfig(devices=3, edge_servers=2, sub_channels=3),
    "one slot": NetworkConfig(devices=4, edge_servers=1, sub_channels=1),
    "bandwidth for each": replace(SMALL, radio=Radio(sharing="per_device")),
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
both = pytest.mark.parametrize("architecture", ["shared", "paper"])


def actor_of(architecture, network, seed=0, spread=1.0):
    """A network in PyTorch with random weights, shifted so that it likes home as much as any slot."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        actor = SharedActor() if architecture == "shared" else PaperActor(network)
        for values in actor.parameters():
            values += spread * torch.randn_like(values) / max(values.shape[-1], 4) ** 0.5
        inputs = make_policy(architecture, weights_of(actor)).play(network, states_of(network, 50)).inputs
        if architecture == "shared":
            scores = actor.pair(torch.from_numpy(inputs["features"]))[..., 0]
            actor.pair[-1].bias[0] -= scores.amax(-1).median()
        else:
            actor.choose[-1].bias -= actor.choose(torch.from_numpy(inputs["seen"])).median(0).values
    return actor


def weights_of(actor):
    return {name: values.detach().numpy().copy() for name, values in actor.state_dict().items()}


def policy_of(architecture, network, seed=0, spread=1.0):
    return make_policy(architecture, weights_of(actor_of(architecture, network, seed, spread)))


def states_of(network, rows, seed=0):
    return draw_states(network, rows, np.random.default_rng(seed))


def seen_by(actor, play):
    """What the network in PyTorch makes of what a play recorded."""
    with torch.no_grad():
        return actor(**{name: torch.from_numpy(values) for name, values in play.inputs.items()})


def check_slots(network, slot):
    """Each slot is there, and for one device alone."""
    assert slot.dtype == np.int64
    assert slot.min() >= LOCAL and slot.max() < network.slots
    for row in slot.reshape(-1, network.devices):
        assert np.unique(row[row >= 0]).size == np.count_nonzero(row >= 0)


# --- choices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_choices_are_drawn_by_softmax(dtype):
    rng, count = np.random.default_rng(0), 40_000
    score = np.array([0.5, -1.0, 2.0, NEVER, 0.0, 1.0, NEVER], dtype)
    chance = np.exp(score.astype(np.float64)) / np.exp(score.astype(np.float64)).sum()
    drawn = _pick(np.tile(score, (count, 1)), rng.random(count, dtype=np.float32))
    found = np.bincount(drawn, minlength=7)
    assert found[3] == found[6] == 0
    possible = chance > 0
    assert stats.chisquare(found[possible], count * chance[possible]).pvalue > 0.01


def test_the_whole_of_0_to_1_stands_for_choices_that_are_allowed():
    # Rows have scores of their own; what is masked is first, in between and last.
    rng = np.random.default_rng(1)
    score = rng.normal(0, 5, (2000, 6)).astype(np.float32)
    allowed = rng.random(score.shape) < 0.5
    allowed[np.arange(2000), rng.integers(6, size=2000)] = True
    score[~allowed] = NEVER
    for number in (0.0, 1e-45, 0.5, 1 - 2**-24):
        picked = _pick(score, np.full(2000, number, np.float32))
        assert allowed[np.arange(2000), picked].all()
    chance = np.exp(score - score.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    uniform = rng.random(2000, dtype=np.float32)
    below = np.array([row[:i].sum() for row, i in zip(chance, _pick(score, uniform), strict=True)])
    at = chance[np.arange(2000), _pick(score, uniform)]
    assert (below <= uniform + 1e-5).all() and (uniform <= below + at + 1e-5).all()


def test_without_chance_the_best_is_chosen():
    score = np.array([[0.0, 2.0, 1.0], [0.0, NEVER, -1.0], [-1.0, -3.0, -0.5]])
    assert _pick(score, None).tolist() == [1, 0, 2]


@settings(max_examples=80, derandomize=True)
@given(seeds, st.integers(1, 3), st.integers(1, 4))
def test_an_assignment_is_the_best_of_all(seed, devices, slots):
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 1, (devices, slots))
    score[rng.random(score.shape) < 0.2] = NEVER
    chosen = _assigned(score)
    check_slots(NetworkConfig(devices=devices, edge_servers=slots, sub_channels=1), chosen)

    def worth(slots_of):
        taken = [slot for slot in slots_of if slot >= 0]
        if len(set(taken)) < len(taken):
            return -np.inf
        return sum(score[device, slot] for device, slot in enumerate(slots_of) if slot >= 0)

    best = max(worth(each) for each in itertools.product(range(LOCAL, slots), repeat=devices))
    assert worth(chosen) == pytest.approx(best)


def test_nobody_is_assigned_to_what_is_worse_than_home():
    assert _assigned(np.array([[-1.0, NEVER], [-0.1, -2.0]])).tolist() == [LOCAL, LOCAL]
    assert _assigned(np.array([[-1.0, 0.2], [-0.1, 3.0]])).tolist() == [LOCAL, 1]


# --- the same numbers as in PyTorch -------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seed", range(3))
@every_network
def test_the_best_choices_and_means_are_those_of_the_network_in_pytorch(architecture, network, seed):
    actor = actor_of(architecture, network, seed)
    play = make_policy(architecture, weights_of(actor)).play(network, states_of(network, 8, seed))
    made = seen_by(actor, play)
    chance = made.log_chance.numpy()
    chosen = np.take_along_axis(chance, play.choice[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, chance.max(axis=-1), atol=1e-5)
    mean = np.broadcast_to(made.mean.numpy(), (*chance.shape, 4))
    mean = np.take_along_axis(mean, play.choice[..., None, None], axis=2)[:, :, 0]
    used = made.used.numpy()[play.choice] > 0
    np.testing.assert_allclose(play.drawn[used], mean[used], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_log_chances_of_the_shared_policy_are_those_of_the_network_in_pytorch(seed):
    actor = actor_of("shared", SMALL, seed, spread=2.0)
    policy = make_policy("shared", weights_of(actor))
    play = policy.play(SMALL, states_of(SMALL, 8, seed), np.random.default_rng(seed))
    made = seen_by(actor, play)
    for row, turn in np.ndindex(8, 6):
        score = np.full(1 + CANDIDATES, NEVER)
        score[0] = 0.0  # training at home
        for k in np.flatnonzero(play.inputs["allowed"][row, turn]):
            score[1 + k] = perceptron(policy.weights, "pair", play.inputs["features"][row, turn, k])[0]
        expected = score - np.logaddexp.reduce(score)
        np.testing.assert_allclose(made.log_chance[row, turn], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_log_chances_and_means_of_the_papers_policy_are_those_of_the_network_in_pytorch(seed):
    actor = actor_of("paper", SMALL, seed)
    policy = make_policy("paper", weights_of(actor))
    play = policy.play(SMALL, states_of(SMALL, 8, seed), np.random.default_rng(seed))
    made = seen_by(actor, play)
    for row in range(8):
        seen = play.inputs["seen"][row]
        score = perceptron(policy.weights, "choose", seen).reshape(6, 7)
        score = np.where(play.inputs["allowed"][row], score, NEVER)
        expected = score - np.logaddexp.reduce(score, axis=1, keepdims=True)
        np.testing.assert_allclose(made.log_chance[row], expected, rtol=1e-5, atol=1e-5)
        mean = (1 + np.tanh(perceptron(policy.weights, "allocate", seen))) / 2
        np.testing.assert_allclose(made.mean[row, :, 0], mean.reshape(6, 4), atol=1e-5)


def perceptron(weights, name, x):
    """Two hidden layers, from the definition, in double precision."""
    x = np.asarray(x, np.float64)
    for layer in (0, 2, 4):
        weight, bias = (weights[f"{name}.{layer}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        x = np.array([row @ x + b for row, b in zip(weight, bias, strict=True)])
        x = np.tanh(x) if layer < 4 else x
    return x


@both
@every_network
def test_what_was_drawn_is_likely_and_never_masked(architecture, network):
    actor = actor_of(architecture, network)
    policy = make_policy(architecture, weights_of(actor))
    play = policy.play(network, states_of(network, 50), np.random.default_rng(0))
    made = seen_by(actor, play)
    likelihood = made.log_likelihood(torch.from_numpy(play.choice), torch.from_numpy(play.drawn))
    assert likelihood.shape == (50, network.devices)
    assert likelihood.isfinite().all() and likelihood.min() > -100
    allowed = play.inputs["allowed"]
    if architecture == "shared":  # home comes first, and is always allowed
        allowed = np.concatenate([np.ones_like(allowed[..., :1]), allowed], axis=-1)
    assert np.take_along_axis(allowed, play.choice[..., None], axis=-1).all()


@both
def test_choices_and_numbers_are_drawn_as_the_network_in_pytorch_says(architecture):
    actor = actor_of(architecture, SMALL, spread=0.5)
    policy = make_policy(architecture, weights_of(actor))
    play = policy.play(SMALL, states_of(SMALL, 1500), np.random.default_rng(1))
    made = seen_by(actor, play)
    log_chance = made.log_chance.numpy().astype(np.float64)
    chance = np.exp(log_chance)
    # ln π of what was drawn has the mean -H, and a variance that is known, too.
    mean = (chance * log_chance).sum(axis=-1)
    spread = (chance * log_chance**2).sum(axis=-1) - mean**2
    drawn = np.take_along_axis(log_chance, play.choice[..., None], axis=-1)[..., 0]
    assert abs((drawn - mean).sum()) < 3 * np.sqrt(spread.sum())
    # So have the numbers: errors in units of their deviation are standard normal.
    means = np.broadcast_to(made.mean.numpy(), (*chance.shape, 4))
    means = np.take_along_axis(means, play.choice[..., None, None], axis=2)[:, :, 0]
    used = made.used.numpy()[play.choice] > 0
    error = ((play.drawn - means) / np.exp(policy.weights["log_std"]))[used]
    assert stats.kstest(error, "norm").pvalue > 0.01
    for number in range(4):
        of_one = ((play.drawn - means) / np.exp(policy.weights["log_std"]))[..., number][used[..., number]]
        assert of_one.std() == pytest.approx(1.0, abs=0.05) and abs(of_one.mean()) < 0.1


# --- plays --------------------------------------------------------------------------------------------------


@both
@every_network
def test_a_play_has_its_shapes_and_no_slot_twice(architecture, network):
    policy = policy_of(architecture, network)
    rows, devices = 20, network.devices
    for rng in (None, np.random.default_rng(0)):
        for decoding in ("ordered", "sorted", "assignment"):
            play = policy.play(network, states_of(network, rows), rng, decoding)
            assert play.slot.shape == play.choice.shape == (rows, devices)
            assert play.parameters.shape == play.drawn.shape == (rows, devices, 4)
            assert (play.parameters >= 0).all() and (play.parameters <= 1).all()
            assert play.drawn.dtype == play.outlook.dtype == np.float32
            assert np.isfinite(play.outlook).all()
            check_slots(network, play.slot)
            assert 0 < (play.slot >= 0).mean() < 1
            assert (play.slot >= 0).sum(axis=1).tolist() == (play.choice > 0).sum(axis=1).tolist()
    if architecture == "shared":
        assert play.outlook.shape == (rows, devices, len(OUTLOOK))
        assert play.inputs["features"].shape == (
            rows,
            devices,
            min(CANDIDATES, network.slots),
            len(FEATURES),
        )
    else:
        np.testing.assert_array_equal(play.outlook[:, 0], play.inputs["seen"])


@both
def test_the_same_seed_gives_the_same_play_and_another_another(architecture):
    policy, states = policy_of(architecture, SMALL), states_of(SMALL, 10)
    plays = [policy.play(SMALL, states, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for name in ("choice", "drawn", "slot", "parameters", "outlook"):
        np.testing.assert_array_equal(getattr(plays[0], name), getattr(plays[1], name))
    assert (plays[0].choice != plays[2].choice).any()
    assert (plays[0].drawn != plays[2].drawn).all(axis=-1).any()
    without = [policy.play(SMALL, states) for _ in range(2)]
    np.testing.assert_array_equal(without[0].slot, without[1].slot)
    np.testing.assert_array_equal(without[0].parameters, without[1].parameters)


@both
def test_playing_changes_no_weights_and_no_state(architecture):
    weights = weights_of(actor_of(architecture, SMALL))
    before = {name: values.copy() for name, values in weights.items()}
    states = states_of(SMALL, 4)
    gain, data_bits = states.gain.copy(), states.data_bits.copy()
    policy = make_policy(architecture, weights)
    policy.play(SMALL, states, np.random.default_rng(0))
    policy.proposals(SMALL, states)
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    np.testing.assert_array_equal(states.gain, gain)
    np.testing.assert_array_equal(states.data_bits, data_bits)


def test_slots_and_parameters_of_a_play_are_those_of_its_turns():
    policy, states = policy_of("shared", SMALL), states_of(SMALL, 10)
    play = policy.play(SMALL, states, None, "ordered")  # turns are devices, then
    np.testing.assert_array_equal(play.parameters, np.clip(play.drawn, 0, 1).astype(np.float64))
    np.testing.assert_array_equal(play.slot >= 0, play.choice > 0)
    np.testing.assert_allclose(
        play.drawn[..., 2:], np.broadcast_to(policy.weights["own"], (10, 6, 2)), rtol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_turn_sees_who_was_placed_for_good_before_it_with_the_power_that_was_chosen(seed):
    # The same round again, step by step: a placement in which each turn takes what the play says.
    policy, states = policy_of("shared", SMALL, seed), states_of(SMALL, 4, seed)
    play = policy.play(SMALL, states, np.random.default_rng(seed), "ordered")
    placement = Placement(SMALL, states, np.tile(np.arange(6), (4, 1)))
    placement.place_tentatively()
    placement.begin()
    for turn in range(6):
        offers = placement.offers(turn)
        np.testing.assert_allclose(offers.features, play.inputs["features"][:, turn], atol=1e-4)
        np.testing.assert_array_equal(offers.allowed, play.inputs["allowed"][:, turn])
        np.testing.assert_allclose(offers.outlook, play.outlook[:, turn], atol=1e-4)
        dbm = 10 + 20 * play.parameters[:, turn, 0]  # Table IV: 10 to 30 dBm
        placement.settle(turn, play.slot[:, turn], (10 ** (dbm / 10) / 1000).astype(np.float32))


@settings(max_examples=15, derandomize=True)
@given(seeds, st.sampled_from(["small", "more devices than slots", "bandwidth for each"]))
def test_the_numbers_of_devices_do_not_matter_to_the_shared_policy(seed, name):
    network, rng = NETWORKS[name], np.random.default_rng(seed)
    weights = {
        key: values.astype(np.float64)
        for key, values in weights_of(actor_of("shared", network, seed % 1000)).items()
    }
    policy = make_policy("shared", weights)
    states, order = draw_states(network, 3, rng), rng.permutation(network.devices)
    moved = states.permuted(order)
    play, other = policy.play(network, states), policy.play(network, moved)
    np.testing.assert_array_equal(other.slot, play.slot[:, order])
    np.testing.assert_allclose(other.parameters, play.parameters[:, order], rtol=1e-6)
    for one, two in zip(policy.proposals(network, states), policy.proposals(network, moved), strict=True):
        np.testing.assert_array_equal(two[0], one[0][:, order])


@both
def test_who_has_the_first_number_has_the_first_turn_if_turns_are_ordered(architecture):
    network = NETWORKS["one slot"]
    policy, states = policy_of(architecture, network, seed=1), states_of(network, 60)
    if architecture == "paper":  # the best of two masks: the slot goes to the first who likes it
        play = policy.play(network, states, None, "ordered")
        score = np.stack([perceptron(policy.weights, "choose", seen) for seen in play.inputs["seen"]])
        score = score.reshape(60, 4, 2)
        likes = score[..., 1] > score[..., 0]
        first = np.where(likes.any(axis=1), likes.argmax(axis=1), LOCAL)
        surest = np.where(likes.any(axis=1), (score[..., 1] - score[..., 0]).argmax(axis=1), LOCAL)
        assert (first != surest).any()
        for decoding, expected in (("ordered", first), ("sorted", surest)):
            slot = policy.play(network, states, None, decoding).slot
            np.testing.assert_array_equal(np.where((slot == 0).any(1), slot.argmax(1), LOCAL), expected)
        return
    moved = states.permuted([3, 2, 1, 0])
    slots = [
        [policy.play(network, each, None, decoding).slot for each in (states, moved)]
        for decoding in ("ordered", "sorted")
    ]
    assert (slots[0][1] != slots[0][0][:, ::-1]).any()
    np.testing.assert_array_equal(slots[1][1], slots[1][0][:, ::-1])


def test_turns_vary_while_learning():
    policy, states = policy_of("shared", SMALL), states_of(SMALL, 200)
    first = [
        policy.play(SMALL, states, rng).inputs["features"][:, 0, 0, FEATURES.index("own_s")]
        for rng in (None, np.random.default_rng(0), np.random.default_rng(1))
    ]
    share = (first[1] != first[2]).mean()
    assert 0.02 < share < 0.9  # somewhat
    ordered = policy.play(SMALL, states, np.random.default_rng(0), "ordered")
    own_s = ordered.inputs["features"][:, 0, 0, FEATURES.index("own_s")]
    np.testing.assert_array_equal(
        own_s, policy.play(SMALL, states, None, "ordered").inputs["features"][:, 0, 0, 0]
    )


# --- proposals ----------------------------------------------------------------------------------------------


@both
@every_network
def test_proposals_have_no_conflicts_and_begin_with_the_turns(architecture, network):
    policy, states = policy_of(architecture, network), states_of(network, 8)
    proposals = policy.proposals(network, states)
    assert len(proposals) == (6 if architecture == "shared" else 2)
    for slot, parameters in proposals:
        assert slot.shape == (8, network.devices) and parameters.shape == (8, network.devices, 4)
        assert (parameters >= 0).all() and (parameters <= 1).all()
        check_slots(network, slot)
    play = policy.play(network, states, None, "sorted")
    np.testing.assert_array_equal(proposals[0][0], play.slot)
    np.testing.assert_array_equal(proposals[0][1], play.parameters)


def test_the_papers_second_proposal_is_the_best_matching_of_its_scores():
    network = NetworkConfig(devices=3, edge_servers=3, sub_channels=1)
    policy, states = policy_of("paper", network), states_of(network, 20)
    play = policy.play(network, states)
    slots = policy.proposals(network, states)[1][0]
    for row in range(20):
        score = perceptron(policy.weights, "choose", play.inputs["seen"][row]).reshape(3, 4)
        possible = [
            each
            for each in itertools.product(range(4), repeat=3)
            if len({choice for choice in each if choice}) == sum(choice > 0 for choice in each)
        ]
        best = max(
            possible, key=lambda each, score=score: sum(score[n, choice] for n, choice in enumerate(each))
        )
        assert (slots[row] + 1).tolist() == list(best)


@pytest.mark.parametrize("seed", range(2))
def test_an_assignment_scores_all_pairs_as_late_turns_with_everybody_else_where_they_are(seed):
    policy, states = policy_of("shared", SMALL, seed), states_of(SMALL, 2, seed)
    order = np.array([[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]])
    placement = Placement(SMALL, states, order)
    placement.place_tentatively()
    before = placement.slot.copy(), placement.power_w.copy()
    found = policy._score_all(placement)
    np.testing.assert_array_equal(placement.slot, before[0])
    np.testing.assert_array_equal(placement.power_w, before[1])
    late = {"to_come": 0.0, "open": 0.2, "bumped_s": 0.0, "is_held": 0.0}
    for turn in range(6):
        fresh = Placement(SMALL, states, order)
        for other in range(6):
            if other != turn:
                fresh.put(other, before[0][:, other], before[1][:, other])
        offers = fresh.offers(turn, SMALL.slots)
        for row, k in np.ndindex(2, SMALL.slots):
            features = dict(zip(FEATURES, offers.features[row, k], strict=True)) | late
            expected = perceptron(policy.weights, "pair", list(features.values()))[0]
            assert found[row, turn, offers.slot[row, k]] == pytest.approx(expected, rel=1e-3, abs=1e-3)


@every_network
def test_later_proposals_are_turns_after_the_best_matching_of_scores_so_far(network):
    policy, states = policy_of("shared", network), states_of(network, 4)
    proposals = policy.proposals(network, states)
    order = turn_order(network, states)

    def afresh(slot, power_w):
        placement = Placement(network, states, order)
        for turn in range(network.devices):
            placement.put(turn, slot[:, turn], power_w[:, turn])
        return placement

    placement = Placement(network, states, order)
    placement.place_tentatively()
    policy._pass(placement, None)
    score = None
    for slot, parameters in proposals[1:]:
        scored = policy._score_all(afresh(placement.slot, placement.power_w))
        score = scored if score is None else (score + scored) / 2
        assigned = np.stack([_assigned(one) for one in score])
        placement = afresh(assigned, np.full(order.shape, network.radio.power_w[1], np.float32))
        play = policy._pass(placement, None)
        np.testing.assert_array_equal(play.slot, slot)
        np.testing.assert_allclose(play.parameters, parameters, atol=1e-4)


# --- what does not fit --------------------------------------------------------------------------------------


def test_weights_of_no_policy_are_refused():
    weights = weights_of(actor_of("shared", SMALL))
    with pytest.raises(ConfigError, match=r"`architecture` must be one of \('shared', 'paper'\), got 'deep'"):
        make_policy("deep", weights)
    with pytest.raises(ConfigError, match=r"`weights` must be .* for 'paper', not so .*'own'"):
        make_policy("paper", weights)
    with pytest.raises(ConfigError, match=r"`weights` must be .* for 'shared', not so \['own'\]"):
        make_policy("shared", {name: values for name, values in weights.items() if name != "own"})
    with pytest.raises(ConfigError, match=r"not so \['more'\]"):
        make_policy("shared", weights | {"more": np.zeros(1)})
    with pytest.raises(ConfigError, match=f"`weights` must be for {len(FEATURES)} features of a pair, got 7"):
        make_policy("shared", weights | {"pair.0.weight": np.zeros((32, 7), np.float32)})


@pytest.mark.parametrize(
    "other",
    [
        replace(SMALL, devices=7),
        replace(SMALL, devices=5),
        replace(SMALL, sub_channels=3),
        NetworkConfig(devices=7, edge_servers=2, sub_channels=2),  # as many numbers in an observation
    ],
)
def test_the_papers_policy_knows_one_number_of_devices_and_slots(other):
    policy = policy_of("paper", SMALL)
    for act in (policy.play, policy.proposals):
        with pytest.raises(ConfigError, match="as many devices and slots as the policy was trained for"):
            act(other, states_of(other, 2))


def test_policies_are_of_their_architecture():
    assert isinstance(policy_of("shared", SMALL), SharedPolicy)
    assert isinstance(policy_of("paper", SMALL), PaperPolicy)
    seen = policy_of("paper", SMALL).play(SMALL, states_of(SMALL, 2)).inputs["seen"]
    np.testing.assert_array_equal(seen, observe(SMALL, states_of(SMALL, 2)).reshape(2, -1))
