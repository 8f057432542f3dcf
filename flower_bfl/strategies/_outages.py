"""What is down in a round: edge servers and links, from which step of the consensus on."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse.csgraph import connected_components

from flower_bfl.config import Outage
from flower_bfl.network import Mixing, metropolis_mixing, without


def down_in(outages: Sequence[Outage], server_round: int) -> list[Outage]:
    """The outages of one round."""
    return [outage for outage in outages if outage.round == server_round]


def servers_down(down: Sequence[Outage], step: int) -> set[int]:
    """Edge servers that are down in a step."""
    return {outage.server for outage in down if outage.server is not None and outage.step <= step}


def mixings_without(down: Sequence[Outage], mixing: Mixing, steps: int) -> list[Mixing]:
    """Λ of each step, over the edge servers and links that are left."""
    return [
        without(
            mixing,
            servers=servers_down(down, step),
            links=[outage.link for outage in down if outage.link is not None and outage.step <= step],
        )
        for step in range(steps)
    ]


def set_aside(mixing: Mixing, barred: Collection[int], down: Sequence[Outage]) -> set[int]:
    """Edge servers in quarantine, and those cut off by it from the largest part that hangs together.

    Of parts of one size the one with the lowest index counts. Without a quarantine nobody is cut off: what
    outages leave in parts stays in parts.
    """
    if not barred:
        return set()
    gone = {*barred, *servers_down(down, 0)}
    left = mixings_without(down, without(mixing, servers=barred), 1)[0]
    _, part = connected_components(left != 0, directed=False)
    up = np.array([server for server in range(len(mixing)) if server not in gone], dtype=np.int64)
    if not up.size:
        return set(barred)
    largest = np.bincount(part[up]).argmax()
    return {*barred, *(int(server) for server in up if part[server] != largest)}


def mixing_of_the_rest(mixing: Mixing, aside: Collection[int]) -> Mixing:
    """Λ of a consensus in which some edge servers take no part: Metropolis weights on the links of the rest.

    Rows of those set aside are those of the identity. With its old weights the rest would be slow to agree.
    """
    if not aside:
        return mixing
    linked = without(mixing, servers=aside) != 0
    np.fill_diagonal(linked, False)
    rest = metropolis_mixing(linked)
    np.fill_diagonal(rest, [1 - math.fsum(row[links]) for row, links in zip(rest, linked, strict=True)])
    return rest


def known_from(down: Sequence[Outage], step: int) -> list[Outage]:
    """The outages, for a consensus that begins anew after a step: what has failed stays down."""
    return [replace(outage, step=0) if outage.step <= step else outage for outage in down]
