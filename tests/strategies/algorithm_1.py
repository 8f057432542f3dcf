"""The paper's Algorithm 1 in one process and in float64, to be read beside it.

It imports nothing of the package. Numbers in comments are the algorithm's lines, numbers in brackets the
paper's equations. The model is that of least squares: F(w; D) = Σ (x·w − y)² / 2|D|.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Data = tuple[np.ndarray, np.ndarray]  # x of shape (samples, p), y of shape (samples,)
Links = set[tuple[int, int]]


@dataclass(frozen=True)
class Round:
    """What differs from round to round."""

    data: Sequence[Data | None]  # D_n of each MD; None: it takes no part
    offloads_to: Sequence[int | None]  # the ES m with x_{n,m,g} = 1; None: the MD trains itself
    homes: Sequence[int]  # the ES that gets the gradient of an MD that trains itself
    leader: int


@dataclass(frozen=True)
class Constants:
    """What stays the same."""

    local_steps: Sequence[int]  # e_n
    edge_steps: Sequence[int]  # e_m
    learning_rate: float  # η
    mixing: np.ndarray  # Λ, shape (M, M)
    consensus_rounds: int  # φ
    mass: str = "count"  # what x_m is divided by: 1/M of (10), or ratio consensus's share of the data


def algorithm_1(w: np.ndarray, rounds: Sequence[Round], constants: Constants) -> list[np.ndarray]:
    """w^(1), w^(2), … from w^(0)."""
    eta, servers = constants.learning_rate, len(constants.mixing)
    w = w.astype(np.float64)
    models = []
    for k in rounds:  # 3
        trained = []  # (m, D_y, e_y, g_y) of everyone that trained
        arrived: list[list[Data]] = [[] for _ in range(servers)]
        for n, data in enumerate(k.data):  # 4, 5
            if data is None:
                continue
            m = k.offloads_to[n]
            if m is not None:  # 6
                arrived[m].append(data)  # 7
            else:
                g = cumulative_gradient(w, data, constants.local_steps[n], eta)  # 9 to 13: (5), (7)
                trained.append((k.homes[n], len(data[1]), constants.local_steps[n], g))  # 14
        for m in range(servers):  # 17
            if arrived[m]:
                union = tuple(np.concatenate(parts) for parts in zip(*arrived[m], strict=True))
                g = cumulative_gradient(w, union, constants.edge_steps[m], eta)  # 18 to 21: (4), (6)
                trained.append((m, len(union[1]), constants.edge_steps[m], g))

        total = sum(samples for _, samples, _, _ in trained)  # D
        a, share = np.zeros((servers, len(w))), np.zeros(servers)
        for m, samples, steps, g in trained:  # 23: (8)
            a[m] += samples / (total * steps) * g
            share[m] += samples / total

        x = a  # 24
        mass = share if constants.mass == "data" else np.full(servers, 1 / servers)
        for _ in range(constants.consensus_rounds):  # 25
            x, mass = mixed(constants.mixing, x), mixed(constants.mixing, mass)  # 26 to 32: (9)

        leader = k.leader
        while mass[leader] <= 0:  # it knows nothing of the sum: the next one leads
            leader = (leader + 1) % servers
        estimate = x[leader] / mass[leader]  # 33: (10), M·x for the mass 1/M
        tau = sum(samples * steps for _, samples, steps, _ in trained) / total  # 34: (11)
        w = w - eta * tau * estimate  # 35: (12)
        models.append(w)
    return models


def cumulative_gradient(w: np.ndarray, data: Data, steps: int, eta: float) -> np.ndarray:
    """Σ_e ∇F(w^(e−1)), which is (w^(0) − w^(e)) / η: (4) to (7)."""
    x, y = (part.astype(np.float64) for part in data)
    summed = np.zeros_like(w)
    for _ in range(steps):
        gradient = x.T @ (x @ w - y) / len(y)
        w = w - eta * gradient
        summed = summed + gradient
    return summed


def mixed(mixing: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x^(l+1) of every ES from its own and its neighbours' x^(l)."""
    after = np.zeros_like(x)
    for m in range(len(x)):
        for neighbour in range(len(x)):
            after[m] += mixing[m, neighbour] * x[neighbour]
    return after


def links_of(graph: str | Links, servers: int) -> Links:
    """Pairs of ESs, each once."""
    every = range(servers)
    if graph == "complete":
        return {(m, other) for m in every for other in every if m < other}
    if graph == "line":
        return {(m, m + 1) for m in every[:-1]}
    if graph == "ring":
        return {tuple(sorted((m, (m + 1) % servers))) for m in every if servers > 1}
    if graph == "star":
        return {(0, m) for m in every[1:]}
    return graph


def laplacian_weights(links: Links, servers: int, d: float) -> np.ndarray:
    """Λ = I − d·L."""
    weights = np.eye(servers)
    for m, other in links:
        for here, there in ((m, other), (other, m)):
            weights[here, there] += d
            weights[here, here] -= d
    return weights


def metropolis_weights(links: Links, servers: int) -> np.ndarray:
    """Λ_ij = 1 / (1 + the larger of both degrees), and what is left on the diagonal."""
    degree = [sum(m in link for link in links) for m in range(servers)]
    weights = np.eye(servers)
    for m, other in links:
        share = 1 / (1 + max(degree[m], degree[other]))
        for here, there in ((m, other), (other, m)):
            weights[here, there] += share
            weights[here, here] -= share
    return weights
