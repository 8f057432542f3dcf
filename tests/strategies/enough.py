"""How many consensus steps are enough, in plain loops, from what is on a ledger."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import fsum, sqrt

import numpy as np

from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, decode

Weights = list[list[float]]


def laplacian(links: Iterable[tuple[int, int]], servers: int) -> Weights:
    """I − d·L with d = 0.9/M."""
    weights = [[0.0] * servers for _ in range(servers)]
    for a, b in links:
        weights[a][b] = weights[b][a] = 0.9 / servers
    for m in range(servers):
        weights[m][m] = 1 - sum(weights[m])
    return weights


def metropolis(links: Iterable[tuple[int, int]], servers: int) -> Weights:
    links = list(links)
    degree = [sum(m in link for link in links) for m in range(servers)]
    weights = [[0.0] * servers for _ in range(servers)]
    for a, b in links:
        weights[a][b] = weights[b][a] = 1 / (1 + max(degree[a], degree[b]))
    for m in range(servers):
        weights[m][m] = 1 - sum(weights[m])
    return weights


def largest_eigenvalue(weights: Weights, up: Sequence[int]) -> float:
    """λ of those that are up."""
    rest = np.array([[weights[a][b] for b in up] for a in up]) - 1 / len(up)
    return max((abs(value) for value in np.linalg.eigvalsh(rest)), default=0.0)


def gradients_of(entries: Sequence[Entry], k: int) -> dict[Sender, tuple[list[float], float, int]]:
    """g_y, D_y and e_y of a round, as recorded."""
    found = {}
    for entry in entries:
        if (entry.kind, entry.round) == (Kind.GRADIENT, k):
            arrays, said = decode(entry.payload)
            flat = [float(x) for array in arrays.values() for x in array.ravel()]
            found[entry.sender] = flat, float(said["num-examples"]), int(said["num-steps"])
    return found


def sums_of(
    entries: Sequence[Entry], k: int, first: int = 0
) -> tuple[dict[int, list[float]], dict[int, float]]:
    """a_m of (8) and the share of the data of every edge server that has an x^(0) in step `first`."""
    gradients = gradients_of(entries, k)
    homes: dict[int, list[Sender]] = {}
    for entry in entries:
        if (entry.kind, entry.round, entry.step) == (Kind.CONSENSUS, k, first):
            said = decode(entry.payload)[1]
            homes[entry.sender.index] = [Sender(Role.DEVICE, int(n)) for n in said["devices"].split()]
    total = fsum(gradients[y][1] for members in homes.values() for y in members)
    sums, shares = {}, {}
    for m, members in homes.items():
        size = len(next(iter(gradients.values()))[0])
        held = [fsum(gradients[y][1] / (total * gradients[y][2]) * gradients[y][0][i] for y in members)
                for i in range(size)]  # fmt: skip
        sums[m], shares[m] = held, fsum(gradients[y][1] for y in members) / total
    return sums, shares


def enough(
    sums: Mapping[int, Sequence[float]],
    shares: Mapping[int, float],
    weights: Sequence[Weights],
    *,
    rounds: int,
    tolerance: float = 0.1,
    absolute: bool = False,
    gone: Sequence[Collection[int]] = (),
) -> tuple[int, float]:
    """φ_k and √(ξ_k/√K). `shares` is s before the first step, `weights` Λ of each step that there may be.

    `gone` has who is down in every step, if anybody is.
    """
    size = len(next(iter(sums.values())))
    whole = [fsum(held[i] for held in sums.values()) for i in range(size)]
    xi = tolerance if absolute else tolerance * fsum(x * x for x in whole)
    target = xi / sqrt(rounds)
    apart = fsum((held[i] - shares[m] * whole[i]) ** 2 for m, held in sums.items() for i in range(size))
    servers = len(weights[0])
    mass, left = [shares.get(m, 0.0) for m in range(servers)], 1.0
    for step in range(len(weights) + 1):
        down = gone[step] if step < len(gone) else gone[-1] if gone else ()
        least = min(mass[m] for m in range(servers) if m not in down and mass[m] > 0)
        if step == len(weights) or left**2 * apart / least**2 <= target:
            return step, sqrt(target)
        left *= largest_eigenvalue(weights[step], [m for m in range(servers) if m not in down])
        mass = [sum(weights[step][m][o] * mass[o] for o in range(servers)) for m in range(servers)]
    raise AssertionError
