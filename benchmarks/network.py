"""The network: steps a second of the environments, and what a decision of the solvers takes, on one core.

Environments: actions are drawn beforehand. What counts is reading and projecting them, prices, observations,
and drawing new networks at the ends of episodes. The vectorised form and a loop over a single environment run
in turn, an episode each; the medians count, also of the ratios.
"""

import os
import statistics
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is there

import numpy as np

from flower_bfl.controller import AllLocalController, AssignmentController, NearOptimalController
from flower_bfl.controller.env import BFLEnv, BFLVectorEnv
from flower_bfl.network import NetworkConfig, NetworkState, draw_states, price

BATCH, ROUNDS, PAIRS = 256, 200, 7
BARS = {30: 40_000, 100: 12_000}  # steps a second by number of devices
STATES = 16  # for the solvers


def vectorised_steps_a_second(env: BFLVectorEnv, actions: list[dict[str, np.ndarray]]) -> float:
    started = perf_counter()
    for step in range(ROUNDS):
        env.step(actions[step % len(actions)])
    return BATCH * ROUNDS / (perf_counter() - started)


def single_steps_a_second(env: BFLEnv, actions: list[dict[str, np.ndarray]]) -> float:
    started = perf_counter()
    for step in range(ROUNDS):
        env.step(actions[step % len(actions)])
    env.reset()
    return ROUNDS / (perf_counter() - started)


def time_environments(devices: int, bar: int) -> None:
    network = NetworkConfig(devices=devices)
    vector, single = BFLVectorEnv(network, BATCH, ROUNDS), BFLEnv(network, ROUNDS)
    for env in (vector, single):
        env.reset(seed=0)
        env.action_space.seed(0)
    many, few = ([env.action_space.sample() for _ in range(20)] for env in (vector, single))
    vectorised_steps_a_second(vector, many), single_steps_a_second(single, few)  # warm-up
    pairs = [
        (vectorised_steps_a_second(vector, many), single_steps_a_second(single, few)) for _ in range(PAIRS)
    ]
    together, alone = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"environments, {devices} devices, 5 x 5 slots, {BATCH} networks, {PAIRS} episodes of {ROUNDS} rounds"
    )
    print(f"  {together:,.0f} steps/s (bar: {bar:,}), one at a time {alone:,.0f} steps/s, ratio {ratio:.0f}")


def learning_and_seconds(
    controller: AllLocalController | AssignmentController | NearOptimalController, states: NetworkState
) -> tuple[float, float]:
    """Mean learning latency of the decisions, and the median of what one takes."""
    seconds, learning = [], []
    for i in range(STATES):
        started = perf_counter()
        decision = controller.decide(states[i])
        seconds.append(perf_counter() - started)
        learning.append(float(price(controller.network, states[i], decision).learning_s))
    return statistics.mean(learning), statistics.median(seconds)


def time_solvers(devices: int) -> None:
    network = NetworkConfig(devices=devices)
    states = draw_states(network, STATES, np.random.default_rng(0))
    local, _ = learning_and_seconds(AllLocalController(network), states)
    fast, fast_s = learning_and_seconds(AssignmentController(network), states)
    near, near_s = learning_and_seconds(NearOptimalController(network), states)
    print(f"solvers, {devices} devices, {STATES} networks: a decision and its learning latency")
    print(f"  assignment {1000 * fast_s:.0f} ms (bar at 100 devices: 90)", end="")
    print(f", near-optimal {near_s:.2f} s (bar at 30: 2), ratio {near_s / fast_s:.0f}")
    print(f"  over near-optimal: assignment {fast / near - 1:+.2%} (bar at 100: +3 %)", end="")
    print(f", all-local {local / near - 1:+.0%}")


def main() -> None:
    for devices, bar in BARS.items():
        time_environments(devices, bar)
        time_solvers(devices)


if __name__ == "__main__":
    main()
