"""The paper's baselines: what every controller must do, and whether they learn what is there to be learnt."""

import functools
import importlib
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

from flower_bfl.controller import Controller, baselines
from flower_bfl.controller._sb3_env import ByDevice, FlatVecEnv, Levels, Relaxed, flat
from flower_bfl.controller.baselines import BASELINES, BranchingDQN, train_baseline
from flower_bfl.controller.encoding import COLUMNS
from flower_bfl.controller.env import BFLVectorEnv
from flower_bfl.errors import ConfigError
from flower_bfl.network import Decision, NetworkConfig, Radio, Tasks, draw_states, price, violations
from flower_bfl.network.process import NetworkProcess

SMALL = NetworkConfig(devices=6, edge_servers=3, sub_channels=2)
NETWORKS = {
    "small": SMALL,
    "one of everything": NetworkConfig(devices=1, edge_servers=1, sub_channels=1),
    "more devices than slots": NetworkConfig(devices=9, edge_servers=2, sub_channels=2),
    "letter, slowest path": replace(SMALL, objective="makespan", radio=Radio(sharing="per_device")),
    "battery": replace(SMALL, tasks=Tasks(energy_slack_j=(1e-3, 0.1), battery=True)),
}
TINY = NetworkConfig(devices=3, edge_servers=2, sub_channels=1)

every_baseline = pytest.mark.parametrize("name", BASELINES)
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture(autouse=True)
def one_thread():
    """Beside other work, two threads take ten times as long for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed=0):
    return np.random.default_rng(seed)


@functools.cache
def trained(name, network, steps=1, seed=0):
    """As little as can be: what a controller must do, it must do however little it has learnt."""
    return train_baseline(name, network, steps, seed)


def utility(network, controller):
    states = draw_states(network, 256, rng(1))
    return float(price(network, states, controller.decide(states)).utility.mean())


def assert_same(one, other, rtol=0.0):
    for name in ("slot", "power_w", "bandwidth_hz", "cpu_hz", "hash_rate"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, err_msg=name)


# --- controllers --------------------------------------------------------------------------------------------


@every_network
@every_baseline
def test_decisions_are_feasible_and_have_the_shape_of_the_state(name, network):
    controller = trained(name, network).controller
    assert isinstance(controller, Controller)
    for batch in ((), (5,), (2, 3), (1, 1, 1)):
        state = NetworkProcess(network, rng(1), batch).state
        decision = controller.decide(state)
        assert decision.slot.shape == (*batch, network.devices)
        assert violations(network, state, decision) == []


@every_baseline
def test_a_state_is_decided_alike_at_any_time_and_in_any_batch(name):
    states, controller = draw_states(SMALL, 6, rng(2)), trained(name, SMALL).controller
    decision = controller.decide(states)
    np.random.seed(3)  # whoever draws from there does not draw the same
    assert_same(controller.decide(states), decision)
    single = Decision.stack([controller.decide(states[row]) for row in range(6)], (6,))
    assert_same(single, decision, rtol=1e-9)


@every_baseline
def test_a_state_of_another_network_is_refused(name):
    controller = trained(name, SMALL).controller
    for other in (replace(SMALL, devices=7), replace(SMALL, edge_servers=2, sub_channels=3)):
        with pytest.raises(ConfigError, match="`state` must have as many devices, edge servers"):
            controller.decide(draw_states(other, 2, rng()))


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps"),
    [("a2c-relaxed", 8_000), ("a2c-approximated", 8_000), ("ddpg", 40_000), ("dqn", 8_000)],
)
def test_learning_makes_it_better(name, steps):
    """Random decisions are worth -0.2 here, and all-local ones 0.6."""
    before = utility(TINY, trained(name, TINY).controller)
    after = train_baseline(name, TINY, steps, seed=0)
    assert utility(TINY, after.controller) > max(before, 0.0) + 0.3
    assert after.curve[-1, 1] > after.curve[0, 1] + 0.3


@every_baseline
def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    states = draw_states(TINY, 50, rng(4))
    results = []
    for seed in (7, 7, 8):
        random.seed(seed + len(results))  # what others drew before does not matter
        np.random.seed(len(results))
        torch.manual_seed(len(results))
        results.append(train_baseline(name, TINY, 1_200, seed))
    first, same, other = results
    np.testing.assert_array_equal(same.curve, first.curve)
    assert_same(same.controller.decide(states), first.controller.decide(states))
    assert not np.array_equal(other.curve, first.curve)


@every_baseline
def test_global_generators_and_threads_are_left_as_they_were(name):
    drawn = []
    torch.set_num_threads(2)
    for train in (lambda: None, lambda: train_baseline(name, TINY, 200, seed=1)):
        for seed_it in (random.seed, np.random.seed, torch.manual_seed):
            seed_it(5)
        train()
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert torch.get_num_threads() == 2


@every_baseline
def test_the_curve_is_the_mean_utility_of_what_was_played(name, monkeypatch):
    played = []

    class Recorded(BFLVectorEnv):
        def step(self, actions):
            made = super().step(actions)
            played.append(made[1])
            return made

    monkeypatch.setattr(baselines, "BFLVectorEnv", Recorded)
    monkeypatch.setattr("flower_bfl.controller.learner.BFLVectorEnv", Recorded)
    told = []
    curve = train_baseline(name, TINY, 2_500, seed=0, progress=lambda *point: told.append(point)).curve
    np.testing.assert_array_equal(curve, told)
    utilities = np.concatenate(played)
    assert 2_500 <= curve[-1, 0] == utilities.size <= 2_820
    assert 2_048 <= curve[0, 0] < 2_500
    parts = np.split(utilities, curve[:-1, 0].astype(int))
    np.testing.assert_allclose(curve[:, 1], [part.mean() for part in parts], rtol=1e-9)


def test_an_exception_of_progress_ends_the_training_and_leaves_nothing_behind():
    def stop(steps, mean):
        raise KeyboardInterrupt

    before = np.random.get_state()[1].copy()
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        train_baseline("a2c-relaxed", TINY, 5_000, seed=0, progress=stop)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.get_num_threads() == 2


# --- actions ------------------------------------------------------------------------------------------------

TWO = NetworkConfig(devices=2, edge_servers=1, sub_channels=2)  # three choices


def test_the_largest_of_the_relaxed_numbers_is_chosen():
    actions = Relaxed(TWO)
    numbers = np.array([[0.1, 0.3, -1, -1, 0, 1, 0.5], [0, -0.2, 0.9, 0.2, 0.4, -0.6, -1]], dtype=np.float32)
    slot, parameters = actions.meant(numbers.ravel())
    np.testing.assert_array_equal(slot, [1, 2])
    np.testing.assert_allclose(parameters, [[0, 0.5, 1, 0.75], [0.6, 0.7, 0.2, 0]], rtol=1e-6)
    assert actions.space.shape == (14,) and numbers.ravel() in actions.space
    slot, parameters = actions.meant(np.zeros((4, 3, 14)))
    assert slot.shape == (4, 3, 2) and parameters.shape == (4, 3, 2, 4)
    np.testing.assert_array_equal(actions.best(torch.tensor([[3.0, -0.5, -7.0]])), [[1.0, -0.5, -1.0]])


def test_levels_are_equal_steps():
    actions = Levels(TWO, levels=3)
    np.testing.assert_array_equal(actions.space.nvec, [3, 3, 3, 3, 3] * 2)
    slot, parameters = actions.meant(np.array([2, 0, 1, 2, 0, 0, 2, 2, 1, 1]))
    np.testing.assert_array_equal(slot, [2, 0])
    np.testing.assert_array_equal(parameters, [[0, 0.5, 1, 0], [1, 1, 0.5, 0.5]])
    eight = Levels(TWO, levels=8)
    assert eight.outputs == 2 * (3 + 4 * 8)
    outputs = torch.zeros(1, 70)
    for place in (2, 3 + 7, 3 + 8 + 1, 35 + 1, 35 + 3 + 24 + 5):
        outputs[0, place] = 1.0
    np.testing.assert_array_equal(eight.best(outputs), [[2, 7, 1, 0, 0, 1, 0, 0, 0, 5]])


def test_the_distribution_over_levels_is_the_librarys():
    actions = Levels(SMALL, levels=4)
    torch.manual_seed(0)
    logits = torch.randn(5, actions.outputs)
    ours = ByDevice(actions).proba_distribution(logits)
    theirs = MultiCategoricalDistribution(actions.space.nvec.tolist()).proba_distribution(logits)
    chosen = torch.from_numpy(np.stack([actions.space.sample() for _ in range(5)]))
    torch.testing.assert_close(ours.log_prob(chosen), theirs.log_prob(chosen))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode())


def test_the_distribution_over_levels_draws_as_it_says():
    actions = Levels(TWO, levels=3)
    torch.manual_seed(0)
    logits = torch.randn(1, actions.outputs)
    drawn = ByDevice(actions).proba_distribution(logits.expand(40_000, -1)).sample()
    assert drawn.shape == (40_000, 10)
    wanted = logits.reshape(10, 3).softmax(-1)
    found = torch.nn.functional.one_hot(drawn, 3).float().mean(0)
    assert (found - wanted).abs().max() < 5 * 0.5 / np.sqrt(40_000)  # five standard errors at most
    # Numbers of an action are independent: so are the first two of a device.
    both = ((drawn[:, 0] == 0) & (drawn[:, 1] == 0)).float().mean()
    assert abs(both - wanted[0, 0] * wanted[1, 0]) < 5 * 0.5 / np.sqrt(40_000)


# --- environment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [Relaxed(SMALL), Levels(SMALL, 8)], ids=["relaxed", "levels"])
def test_the_flat_environment_plays_the_rounds_of_the_vector_environment(actions):
    plain, watched = BFLVectorEnv(SMALL, num_envs=3, rounds=4), []
    env = FlatVecEnv(BFLVectorEnv(SMALL, num_envs=3, rounds=4), actions, watched.append)
    env.seed(9)
    seen, (wanted, _) = env.reset(), plain.reset(seed=9)
    actions.space.seed(0)
    for step in range(1, 10):
        assert seen.shape == (3, 6 * 14) and seen.dtype == np.float32
        assert all(row in env.observation_space for row in seen)
        np.testing.assert_array_equal(seen, flat(wanted))
        chosen = np.stack([actions.space.sample() for _ in range(3)])
        action = dict(zip(("slot", "parameters"), actions.meant(chosen), strict=True))
        wanted, utilities, _, truncated, info = plain.step(action)
        seen, reward, ended, infos = env.step(chosen)
        np.testing.assert_array_equal(reward, utilities.astype(np.float32))
        np.testing.assert_array_equal(watched[-1], utilities)
        np.testing.assert_array_equal(ended, truncated)
        assert ended.tolist() == [step % 4 == 0] * 3
        if not ended.any():
            assert infos == [{}] * 3
            continue
        for own, last in zip(infos, info["final_obs"], strict=True):
            assert own["TimeLimit.truncated"] is True
            np.testing.assert_array_equal(own["terminal_observation"], flat(last))
            assert own["terminal_observation"] in env.observation_space


def test_what_the_round_before_was_decided_is_not_seen():
    env = BFLVectorEnv(SMALL, num_envs=2)
    env.reset(seed=0)
    env.action_space.seed(0)
    observation = env.step(env.action_space.sample())[0]
    rows = flat(observation).reshape(2, 6, 14)
    hidden = [COLUMNS.index("last_slot"), COLUMNS.index("last_hash_rate")]
    assert observation[..., hidden].any() and not rows[..., hidden].any()
    shown = np.delete(np.arange(14), hidden)
    np.testing.assert_array_equal(rows[..., shown], observation[..., shown])


def test_the_librarys_wrappers_understand_the_ends_of_episodes():
    env = VecMonitor(VecCheckNan(FlatVecEnv(BFLVectorEnv(SMALL, 3, rounds=4), Relaxed(SMALL))))
    env.seed(0)
    env.reset()
    total, episodes = np.zeros(3), []
    for _ in range(8):
        _, reward, ended, infos = env.step(np.zeros((3, *env.action_space.shape), dtype=np.float32))
        total += reward
        if ended.any():
            episodes += [(own["episode"]["l"], own["episode"]["r"]) for own in infos]
            np.testing.assert_allclose([r for _, r in episodes[-3:]], total, atol=1e-5)
            total[:] = 0
    assert [length for length, _ in episodes] == [4] * 6
    assert env.get_attr("network") == [SMALL] * 3 and env.env_is_wrapped(VecMonitor) == [False] * 3


def test_what_single_networks_do_not_have_is_not_offered():
    env = FlatVecEnv(BFLVectorEnv(SMALL, 3), Relaxed(SMALL))
    with pytest.raises(NotImplementedError):
        env.set_attr("network", TINY)
    with pytest.raises(NotImplementedError):
        env.env_method("reset")
    assert len(env.get_attr("network", indices=[0, 2])) == 2
    env.close()


# --- the branching DQN --------------------------------------------------------------------------------------


def constant(network, values):
    """Let a neural network give the same values whatever it sees."""
    last = network[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.as_tensor(values))


def test_the_target_is_the_mean_over_branches_of_what_the_target_network_thinks_of_the_best_values():
    """One device that trains itself or offloads, two levels: five branches of two values each.

    The learning network likes the second, first, second, first, first value best; the target network gives
    these 1, 2, 3, 4, 5, in the mean 3, and 100 to the others. With γ = 0.5 the target is r + 0.5·3, and r
    where the episode ended.
    """
    one = NetworkConfig(devices=1, edge_servers=1, sub_channels=1)
    learner = BranchingDQN(4, Levels(one, levels=2), discount=0.5)
    constant(learner.network, [0.0, 1.0, 1.0, 0.0, -2.0, -1.0, 0.5, 0.4, 0.0, -1.0])
    constant(learner.target_network, [100.0, 1.0, 2.0, 100.0, 100.0, 3.0, 4.0, 100.0, 5.0, 100.0])
    after = torch.rand(3, 4)
    np.testing.assert_array_equal(learner.best(after), [[1, 0, 1, 0, 0]] * 3)
    utility, ended = torch.tensor([[0.25], [-1.0], [0.25]]), torch.tensor([[0.0], [0.0], [1.0]])
    np.testing.assert_allclose(learner.target(utility, ended, after), [[1.75], [0.5], [0.25]])
    assert torch.equal(BranchingDQN(4, Levels(one, 2)).target(utility, ended, after), utility)


def test_the_target_network_follows_slowly():
    torch.manual_seed(0)
    learner = BranchingDQN(1, Levels(TINY, 2))
    constant(learner.network, 1.0)
    constant(learner.target_network, 0.0)
    learner.learn_from(one_number_buffer(Levels(TINY, 2), lambda chosen: 1.0, 10))
    moved, now = (each[-1].bias.detach() for each in (learner.target_network, learner.network))
    torch.testing.assert_close(moved, 0.005 * now)


def one_number_buffer(actions, worth, rounds):
    """Random actions and what they are worth; what is seen is always 0."""
    nothing = np.zeros((1, 1), dtype=np.float32)
    buffer = ReplayBuffer(rounds, spaces.Box(0.0, 1.0, (1,), np.float32), actions.space, device="cpu")
    actions.space.seed(0)
    for _ in range(rounds):
        chosen = actions.space.sample()[None]
        buffer.add(nothing, nothing, chosen, np.array([worth(chosen[0])]), np.array([False]), [{}])
    return buffer


def test_each_branch_learns_the_mean_utility_of_its_values():
    """Utility is what one number alone is worth: its branch tells the values apart, the others do not."""
    torch.manual_seed(0)
    np.random.seed(0)
    actions = Levels(NetworkConfig(devices=2, edge_servers=1, sub_channels=1), levels=3)
    learner = BranchingDQN(1, actions)
    worth = np.array([-0.5, 0.1, 0.4])  # of the second device's power
    buffer = one_number_buffer(actions, lambda chosen: worth[chosen[6]], 2000)
    for _ in range(500):
        learner.learn_from(buffer)
    values = learner.network(torch.zeros(1, 1))[0].detach().numpy()
    np.testing.assert_allclose(values[14 + 2 : 14 + 5], worth, atol=0.05)
    others = np.delete(values, np.arange(14 + 2, 14 + 5))
    np.testing.assert_allclose(others, worth.mean(), atol=0.1)


# --- bad input ----------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match=r"`name` must be one of \('a2c-relaxed', .*'dqn'\), got 'ppo'"):
        train_baseline("ppo", TINY, 100, 0)
    for steps in (0, 1.5, None):
        with pytest.raises(ConfigError, match=f"`steps` must be a whole number from 1 .* got {steps}"):
            train_baseline("dqn", TINY, steps, 0)
    for seed in (-1, 0.5, None):
        with pytest.raises(ConfigError, match=f"`seed` must be a whole number from 0 .* got {seed}"):
            train_baseline("dqn", TINY, 100, seed)


@pytest.mark.parametrize("module", ["baselines", "_sb3_env"])
def test_without_stable_baselines_one_is_told_what_to_install(module, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("stable_baselines3")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"flower_bfl.controller.{module}")
    needed = rf"{module} needs the package stable_baselines3.*: pip install 'flower-bfl\[train\]'"
    with pytest.raises(ModuleNotFoundError, match=needed):
        importlib.import_module(f"flower_bfl.controller.{module}")


def test_controllers_load_no_baselines():
    asked = "import sys, flower_bfl.controller; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "stable_baselines3", "flower_bfl.controller.baselines"} & set(loaded.split())
