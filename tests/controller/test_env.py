"""The environments: what Gymnasium and Stable-Baselines3 ask of them, and the network's laws through them."""

import importlib
import math
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3 import A2C, DDPG
from stable_baselines3.common.env_checker import check_env as check_env_for_stable_baselines

from flower_bfl.controller import AllLocalController, GreedyController, RandomController
from flower_bfl.controller.encoding import decode, observe
from flower_bfl.controller.env import BFLEnv, BFLVectorEnv, BoxActions
from flower_bfl.errors import ConfigError
from flower_bfl.network import Blocks, NetworkConfig, Radio, Tasks, price

SMALL = NetworkConfig(devices=6, edge_servers=2, sub_channels=3)
BATTERY = replace(SMALL, tasks=Tasks(battery=True))
NETWORKS = {
    "table IV": NetworkConfig(),
    "small": SMALL,
    "battery": BATTERY,
    "makespan": replace(SMALL, objective="makespan"),
    "one edge server": NetworkConfig(devices=3, edge_servers=1, sub_channels=1),
    "letter": NetworkConfig(devices=50, radio=Radio(sharing="per_device"), blocks=Blocks(total="race")),
}
STATE = ("data_bits", "work_cycles", "cpu_hz", "energy_slack_j", "gain")

networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
# The same laws for both: one network, and three at once.
both = pytest.mark.parametrize(
    "make", [BFLEnv, lambda *args, **kw: BFLVectorEnv(*args, num_envs=3, **kw)], ids=["one", "vector"]
)


def same(one, other):
    """Equal to the last bit, through dicts and tuples."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def values_of(state):
    return tuple(getattr(state, name).copy() for name in STATE)


def ready(env, seed=0):
    """Reset, and with samples of actions that are the same every time."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    return env


def rollout(env, seed, steps, action_seed=0):
    """What reset and the steps return; the sampled actions depend on `action_seed` alone."""
    env.action_space.seed(action_seed)
    returned = [env.reset(seed=seed)]
    for _ in range(steps):
        returned.append(env.step(env.action_space.sample()))
        if isinstance(env, BFLEnv) and returned[-1][3]:
            returned.append(env.reset())
    return returned


# --- what Gymnasium and Stable-Baselines3 ask of an environment ---------------------------------------------


@networks
def test_gymnasium_has_nothing_to_say_against_it(network):
    check_env(gymnasium.make("flower_bfl/BFL-v0", network=network).unwrapped)


def test_gymnasium_makes_the_vector_form_too():
    env = gymnasium.make_vec("flower_bfl/BFL-v0", num_envs=3, network=SMALL, rounds=7)
    assert type(env.unwrapped) is BFLVectorEnv
    assert env.reset(seed=0)[0].shape == (3, 6, 14)


@networks
def test_stable_baselines_has_nothing_to_say_against_the_boxes(network):
    check_env_for_stable_baselines(BoxActions(BFLEnv(network)))


@pytest.mark.parametrize(
    ("learner", "options", "weights"),
    [(A2C, {}, "action_net.weight"), (DDPG, {"learning_starts": 20, "batch_size": 16}, "actor.mu.0.weight")],
)
def test_stable_baselines_learns_on_the_boxes(learner, options, weights):
    env = BoxActions(BFLEnv(SMALL, rounds=7))
    small = {"net_arch": [16]}
    learnt = learner("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=small, **options)
    before = learnt.policy.state_dict()[weights].clone()
    learnt.learn(30)
    assert learnt.num_timesteps >= 30
    assert not before.equal(learnt.policy.state_dict()[weights])
    action, _ = learnt.predict(np.zeros(6 * 14, dtype=np.float32))
    assert action in learnt.action_space


def test_boxes_are_the_same_rounds_in_another_shape():
    env, boxes = BFLEnv(SMALL), BoxActions(BFLEnv(SMALL))
    observation, _ = env.reset(seed=4)
    flat, _ = boxes.reset(seed=4)
    np.testing.assert_array_equal(flat, observation.ravel())
    numbers = np.tile([1.0, 0.0, -1.0, 1.0, -0.5], 6)
    numbers[5:] *= [-1, 1, 1, 1, 1] * 5  # only the first device offloads, to the last slot
    boxed = boxes.step(numbers.astype(np.float32))
    parameters = np.tile([0.5, 0.0, 1.0, 0.25], (6, 1)).astype(np.float32)
    plain = env.step({"slot": np.array([6, 0, 0, 0, 0, 0]), "parameters": parameters})
    assert same(boxed, (plain[0].ravel(), *plain[1:]))
    assert plain[4]["offloading"] == 1


@both
@networks
def test_spaces_hold_what_is_returned_and_samples_can_be_played(make, network):
    env = make(network, rounds=4)
    for observation, *_ in rollout(env, seed=1, steps=9):
        assert observation in env.observation_space
    vector = BFLVectorEnv(network, num_envs=3)
    assert vector.observation_space.shape == (3, *vector.single_observation_space.shape)


# --- seeds and episodes -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("network", [SMALL, BATTERY], ids=["small", "battery"])
def test_the_same_seed_gives_the_same_rollout_bit_for_bit_and_another_does_not(make, network):
    first = rollout(make(network, rounds=10), 1, 25)
    assert same(tuple(first), tuple(rollout(make(network, rounds=10), 1, 25)))
    other = rollout(make(network, rounds=10), 2, 25)
    assert not any(same(one[0], another[0]) for one, another in zip(first, other, strict=True))


@both
def test_without_a_seed_no_two_environments_are_the_same(make):
    assert not same(make(SMALL).reset()[0], make(SMALL).reset()[0])


@pytest.mark.parametrize("network", [NetworkConfig(), BATTERY], ids=["table IV", "battery"])
def test_a_vector_of_one_is_the_single_environment(network):
    single, vector = ready(BFLEnv(network, rounds=3)), BFLVectorEnv(network, num_envs=1, rounds=3)
    assert same(single.reset(seed=9)[0], vector.reset(seed=9)[0][0])
    for step in range(1, 8):
        action = single.action_space.sample()
        observation, reward, terminated, truncated, info = single.step(action)
        batched = vector.step({name: values[None] for name, values in action.items()})
        assert (reward, terminated, truncated) == tuple(each[0] for each in batched[1:4])
        assert truncated == (step % 3 == 0)
        assert all(batched[4][name] == [value] for name, value in info.items())
        if truncated:
            assert same(observation, batched[4]["final_obs"][0])
            observation, _ = single.reset()
        assert same(observation, batched[0][0])


@both
def test_an_episode_is_cut_off_after_its_rounds_and_never_terminated(make):
    env = make(SMALL, rounds=5)
    for returned in (rollout(env, 3, 5), rollout(env, 3, 5)):
        steps = [each for each in returned if len(each) == 5]
        assert [bool(np.all(each[3])) for each in steps] == [False] * 4 + [True]
        assert not any(np.any(each[2]) for each in steps)


@both
def test_only_a_new_episode_has_new_networks(make):
    # Where nothing fades, gains are those of places and obstacles.
    still = replace(SMALL, radio=Radio(fading_correlation=1.0))
    env = ready(make(still, rounds=2))
    first = env.state.gain
    env.step(env.action_space.sample())
    np.testing.assert_allclose(env.state.gain, first, rtol=1e-5)
    env.step(env.action_space.sample())
    if make is BFLEnv:
        np.testing.assert_allclose(env.state.gain, first, rtol=1e-5)
        env.reset()
    assert not np.isclose(env.state.gain, first, rtol=1e-2, atol=0).all(axis=(-2, -1)).any()


def test_gymnasiums_wrappers_understand_the_ends_of_episodes():
    env = RecordEpisodeStatistics(BFLVectorEnv(SMALL, num_envs=3, rounds=4))
    ready(env)
    rewards, lengths, returns = np.zeros(3), [], []
    for _ in range(12):
        _, reward, _, truncated, info = env.step(env.action_space.sample())
        rewards += reward
        if truncated.any():
            lengths.append(info["episode"]["l"].tolist())
            returns.append(info["episode"]["r"] - rewards)
            rewards[:] = 0
    assert lengths == [[4, 4, 4]] * 3
    np.testing.assert_allclose(returns, 0, atol=1e-12)
    listed = ready(DictInfoToList(BFLVectorEnv(SMALL, num_envs=3, rounds=1)))
    _, _, _, _, infos = listed.step(listed.action_space.sample())
    assert [sorted(each) for each in infos] == [
        sorted([*infos[0]["final_info"], "final_info", "final_obs"])
    ] * 3


@both
def test_playing_without_a_network_is_refused(make):
    env = make(SMALL, rounds=2)
    action = env.action_space.sample()
    for play in (lambda: env.step(action), lambda: env.state):
        with pytest.raises(gymnasium.error.ResetNeeded, match="`reset` must be called"):
            play()


def test_playing_on_after_the_end_is_refused():
    env = ready(BFLEnv(SMALL, rounds=2))
    assert [env.step(env.action_space.sample())[3] for _ in range(2)] == [False, True]
    with pytest.raises(gymnasium.error.ResetNeeded, match="`reset` must be called"):
        env.step(env.action_space.sample())


@both
def test_what_was_handed_out_stays_as_it_was(make):
    env = ready(make(SMALL, rounds=3))
    kept, copies = [], []
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        kept.append((observation, values_of(env.state), env.state))
        copies.append((observation.copy(), values_of(env.state)))
        observation, *_ = env.step(env.action_space.sample())
    for (observation, values, state), copy in zip(kept, copies, strict=True):
        assert same((observation, values), copy)
        assert same(values_of(state), copy[1])


# --- rewards, states, energy --------------------------------------------------------------------------------


@both
@networks
def test_reward_and_info_are_the_price_of_the_decision_that_the_action_means(make, network):
    env = make(network, rounds=10)
    ready(env, 2)
    for _ in range(5):
        action, state = env.action_space.sample(), env.state
        decision = decode(network, state, **action)
        priced = price(network, state, decision)
        observation, reward, _, _, info = env.step(action)
        total_s = priced.learning_s + priced.consensus_s + priced.mining_total_s
        np.testing.assert_array_equal(info["total_s"], total_s)
        np.testing.assert_allclose(reward, np.exp(1 - total_s / (3 * network.devices)) - 1, rtol=1e-12)
        for name in ("learning_s", "consensus_s", "makespan_s"):
            np.testing.assert_array_equal(info[name], getattr(priced, name))
        np.testing.assert_array_equal(info["mining_s"], priced.mining_total_s)
        np.testing.assert_array_equal(info["offloading"], (decision.slot >= 0).sum(axis=-1))
        np.testing.assert_array_equal(observation, observe(network, env.state, decision))


def test_environments_of_a_vector_know_nothing_of_each_other():
    env = ready(BFLVectorEnv(BATTERY, num_envs=3))
    action = env.action_space.sample()
    other = {name: values.copy() for name, values in action.items()}
    other["slot"][1] = 0
    other["parameters"][1] = 1.0
    outcomes = []
    for each in (action, other):
        env.reset(seed=0)
        outcomes.append(env.step(each)[:2])
    for one, two in zip(*outcomes, strict=True):  # observations, then rewards
        assert [not same(*pair) for pair in zip(one, two, strict=True)] == [False, True, False]


@both
@pytest.mark.parametrize(("network", "moved"), [(SMALL, False), (BATTERY, True)], ids=["slack", "battery"])
def test_actions_move_nothing_but_a_battery(make, network, moved):
    states = []
    for action_seed in (0, 1):
        env = make(network)
        rollout(env, 5, 3, action_seed)
        states.append(values_of(env.state))
    differs = [not same(*pair) for pair in zip(*states, strict=True)]
    assert differs == [False, False, False, moved, False]


@both
def test_what_learning_takes_is_missing_from_the_battery(make):
    # Every round brings 5 J, the battery holds 12 J.
    network = replace(SMALL, tasks=Tasks(energy_slack_j=(5, 5), battery=True, battery_capacity_j=12))
    env = make(network)
    ready(env)
    spent_all = []
    for _ in range(20):
        action, before = env.action_space.sample(), env.state
        spent_j = price(network, before, decode(network, before, **action)).learning_j
        env.step(action)
        wanted = np.minimum(before.energy_slack_j - spent_j + 5, 12)
        np.testing.assert_allclose(env.state.energy_slack_j, wanted, rtol=1e-9)
        spent_all.append(spent_j)
    assert np.mean(spent_all) > 0.5


# --- decisions instead of actions ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("controller", ["all-local", "random", "greedy"])
def test_controllers_can_play(make, controller):
    network = NetworkConfig(devices=10, edge_servers=2, sub_channels=3)
    env = make(network, rounds=4)
    player = {
        "all-local": AllLocalController(network),
        "random": RandomController(network, np.random.default_rng(0)),
        "greedy": GreedyController(network),
    }[controller]
    env.reset(seed=0)
    for _ in range(3):
        decision = player.decide(env.state)
        wanted = price(network, env.state, decision)
        observation, reward, _, _, info = env.step_decision(decision)
        np.testing.assert_array_equal(reward, wanted.utility)
        np.testing.assert_array_equal(info["total_s"], wanted.total_s)
        np.testing.assert_array_equal(observation, observe(network, env.state, decision))


@both
def test_an_action_and_its_decision_are_the_same_step(make):
    acting, deciding = ready(make(SMALL, rounds=3)), ready(make(SMALL, rounds=3))
    for _ in range(3):
        action = acting.action_space.sample()
        decision = decode(SMALL, deciding.state, **action)
        assert same(acting.step(action), deciding.step_decision(decision))


@both
def test_an_infeasible_decision_is_refused_by_name(make):
    env = make(SMALL)
    env.reset(seed=0)
    good = AllLocalController(SMALL).decide(env.state)
    with pytest.raises(ConfigError, match=r"`decision` must keep all limits, but \(28f\) device 0: `cpu_hz`"):
        env.step_decision(replace(good, cpu_hz=good.cpu_hz * 10))
    with pytest.raises(ConfigError, match="`decision` must have shape"):
        env.step_decision(AllLocalController(replace(SMALL, devices=3)).decide(make_state(devices=3)))
    env.step_decision(good)


def make_state(**options):
    env = BFLEnv(replace(SMALL, **options))
    env.reset(seed=0)
    return env.state


@pytest.mark.parametrize(("devices", "reference_s"), [(20, 36), (30, 61), (50, 124), (100, 360)])
def test_all_local_takes_as_long_as_in_an_independent_prototype(devices, reference_s):
    # Means over 256 states, the reference rounded to seconds: each has its standard error, and 3 are allowed.
    network = NetworkConfig(devices=devices)
    env = BFLVectorEnv(network, num_envs=256)
    env.reset(seed=0)
    total_s = env.step_decision(AllLocalController(network).decide(env.state))[4]["total_s"]
    error_s = total_s.std() / math.sqrt(256)
    assert error_s < 0.6
    assert abs(total_s.mean() - reference_s) < 0.5 + 3 * math.sqrt(2) * error_s


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BFLEnv, BFLVectorEnv])
@pytest.mark.parametrize("rounds", [0, -1, 1.5, None])
def test_bad_lengths_are_named(kind, rounds):
    with pytest.raises(ConfigError, match=f"`rounds` must be a whole number from 1 .* got {rounds}"):
        kind(SMALL, rounds=rounds)


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, None])
def test_bad_numbers_of_environments_are_named(num_envs):
    with pytest.raises(ConfigError, match=f"`num_envs` must be a whole number from 1 .* got {num_envs}"):
        BFLVectorEnv(SMALL, num_envs=num_envs)


@both
def test_bad_actions_are_named_and_play_nothing(make):
    env = ready(make(SMALL))
    before = values_of(env.state)
    good = env.action_space.sample()
    nan = np.full_like(good["parameters"], np.nan)
    for action, message in (
        ({**good, "parameters": nan}, r"`parameters` must be in \[0, 1\], got nan"),
        ({**good, "slot": good["slot"] + 7}, r"`slot` must be in \[0, 6\]"),
        ({**good, "slot": good["slot"][..., :3]}, r"`slot` must be whole numbers of shape"),
        ({"slot": good["slot"]}, "`action` must have `slot` and `parameters`"),
        (None, "`action` must have `slot` and `parameters`"),
        (good["slot"], "`action` must have `slot` and `parameters`"),
    ):
        with pytest.raises(ConfigError, match=message):
            env.step(action)
    assert same(values_of(env.state), before)
    env.step(good)


def test_bad_boxes_are_named():
    env = BoxActions(BFLEnv(SMALL))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"`numbers` must be in \[-1, 1\], got nan"):
        env.step(np.full(30, np.nan, dtype=np.float32))


def test_without_gymnasium_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "flower_bfl.controller.env")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs the package gymnasium: pip install 'flower-bfl\[contr"
    ):
        importlib.import_module("flower_bfl.controller.env")
