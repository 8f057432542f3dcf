"""What is down in a round: edge servers and links, from which step of the consensus on."""

from collections.abc import Sequence

from flower_bfl.config import Outage
from flower_bfl.network import Mixing, without


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
