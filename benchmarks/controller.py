"""The learned controller, on one core: rounds a second while it learns, and what a decision takes.

Learning: ours against TRPO of sb3-contrib in the same environment, as its users would set it up: boxes, 64
environments one after another, 16 rounds each an update, all else as it comes. Updates are included, and
both play the same number of rounds in turn; the medians count, also of the ratios.
"""

import os
import statistics
from collections.abc import Callable
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is there

import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.vec_env import DummyVecEnv

from flower_bfl.controller import A2CController, AssignmentController
from flower_bfl.controller.env import BFLEnv, BoxActions
from flower_bfl.controller.learner import Learner, TrainingConfig
from flower_bfl.network import NetworkConfig, draw_states, price

ENVIRONMENTS, UPDATES, PAIRS = 64, 4, 5
AT_LEAST, TIMES = 1200, 2.0  # steps a second, and as many as theirs
STATES, DEVICES, MOST_MS = 256, 100, 1.0


def ours(network: NetworkConfig) -> Callable[[], float]:
    learner = Learner(network, TrainingConfig())

    def steps_a_second() -> float:
        started = perf_counter()
        for _ in range(UPDATES):
            learner.update()
        return UPDATES * learner.settings.steps_an_update / (perf_counter() - started)

    return steps_a_second


def theirs(network: NetworkConfig) -> Callable[[], float]:
    env = DummyVecEnv([lambda: BoxActions(BFLEnv(network)) for _ in range(ENVIRONMENTS)])
    rounds = 1024 // ENVIRONMENTS
    model = TRPO("MlpPolicy", env, n_steps=rounds, gamma=0.0, seed=0, device="cpu")

    def steps_a_second() -> float:
        started = perf_counter()
        model.learn(UPDATES * ENVIRONMENTS * rounds)
        return UPDATES * ENVIRONMENTS * rounds / (perf_counter() - started)

    return steps_a_second


def time_learning() -> None:
    network = NetworkConfig()
    one, other = ours(network), theirs(network)
    one(), other()  # warm-up
    pairs = [(one(), other()) for _ in range(PAIRS)]
    our_rate, their_rate = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"learning, {network.devices} devices, {PAIRS} turns of {UPDATES} updates of 1,024 rounds")
    print(
        f"  ours {our_rate:,.0f} steps/s (bar: {AT_LEAST:,}), TRPO of sb3-contrib {their_rate:,.0f}", end=""
    )
    print(f" steps/s, ratio {ratio:.2f} (bar: {TIMES:g})")


def time_decisions() -> None:
    network = NetworkConfig(devices=DEVICES)
    states = draw_states(network, STATES, np.random.default_rng(0))
    solver, some = AssignmentController(network), 8
    solved_ms, solved_s = [], []
    for i in range(some):
        started = perf_counter()
        decision = solver.decide(states[i])
        solved_ms.append(1e3 * (perf_counter() - started))
        solved_s.append(float(price(network, states[i], decision).learning_s))
    print(f"a decision, {DEVICES} devices; the solver alone takes {statistics.median(solved_ms):.0f} ms")
    for decoding in ("sorted", "assignment"):
        controller = A2CController.pretrained(network, decoding)
        controller.decide(states)
        took_ms = []
        for _ in range(PAIRS):
            started = perf_counter()
            decision = controller.decide(states)
            took_ms.append(1e3 * (perf_counter() - started) / STATES)
        learning_s = price(network, states, decision).learning_s[:some]
        bar = f" (bar: {MOST_MS:g})" if decoding == "sorted" else ""
        print(f"  {decoding}, {STATES} states: {statistics.median(took_ms):.2f} ms a state{bar}", end="")
        print(f", learning {learning_s.mean() / statistics.mean(solved_s) - 1:+.1%} of the solver's")


def main() -> None:
    torch.set_num_threads(1)
    time_learning()
    time_decisions()


if __name__ == "__main__":
    main()
