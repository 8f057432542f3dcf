"""Tiny networks solved by trying everything: the oracle of the solvers."""

from itertools import combinations, permutations

import numpy as np
from scipy.optimize import minimize

from flower_bfl.controller.allocation import Situation, allocate
from flower_bfl.network import LOCAL, Decision
from flower_bfl.network.pricing import local_cpu_limit_hz, price


def all_assignments(devices, slots):
    """Every way to put some of the devices into different slots, (K, slots), -1 in a free one."""
    rows = []
    for count in range(min(devices, slots) + 1):
        for who in combinations(range(devices), count):
            for where in permutations(range(slots), count):
                row = [-1] * slots
                for device, slot in zip(who, where, strict=True):
                    row[slot] = device
                rows.append(row)
    return np.array(rows)


def best_of_all(network, state, steps=200):
    """The least learning latency over all assignments, each with its own allocation.

    Where energy binds, and for the slowest path, an allocation may stop short of its optimum.
    """
    situation = Situation.of(network, state)
    candidates = all_assignments(network.devices, network.slots)
    best = np.inf
    for part in np.array_split(candidates, max(1, len(candidates) // 5000)):
        best = min(best, allocate(situation, part, steps=steps).learning_s.min())
    return float(best)


def free_search(network, state, slot, rng, starts=6):
    """The least learning latency for given slots by a general solver over ln p and bandwidth shares."""
    offloads = np.flatnonzero(slot >= 0)
    server = slot[offloads] // network.sub_channels
    low, high = np.log(network.radio.power_w)
    count = len(offloads)

    def decision(x):
        power_w, bandwidth_hz = np.zeros(len(slot)), np.zeros(len(slot))
        power_w[offloads] = np.exp(x[:count])
        share = np.exp(x[count:])
        sums = np.array([share[server == m].sum() for m in server])
        bandwidth_hz[offloads] = network.radio.bandwidth_hz * share / sums
        cpu_hz = np.where(slot == LOCAL, local_cpu_limit_hz(network, state), 0.0)
        return Decision(slot, power_w, bandwidth_hz, cpu_hz, np.full(len(slot), network.blocks.hash_rate[0]))

    def learning_s(x):
        return float(price(network, state, decision(x)).learning_s)

    def energy_left(x):
        used_j = price(network, state, decision(x)).learning_j[offloads]
        return np.log(state.energy_slack_j[offloads] / used_j)

    best = np.inf
    for _ in range(starts):
        start = np.concatenate([rng.uniform(low, high, count), rng.normal(0, 1, count)])
        found = minimize(
            learning_s,
            start,
            method="SLSQP",
            bounds=[(low, high)] * count + [(-12, 12)] * count,
            constraints={"type": "ineq", "fun": energy_left},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        if energy_left(found.x).min() > -1e-6:
            best = min(best, float(found.fun))
    return best
