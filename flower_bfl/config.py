"""Settings as frozen dataclasses, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ConfigError

LeaderRule = Literal["random"] | int
Mass = Literal["count", "data"]


def check_whole_number(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError unless `value` is an int within bounds."""
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"`{name}` must be a whole number from {least} to {most}, got {value!r}")


@dataclass(frozen=True)
class Outage:
    """An edge server, or the link between two, that fails in one round: for what-if runs.

    It is down from consensus step `step` to the end of the round; at step 0 an edge server is down before it
    hears from its devices, and their replies are left out.
    """

    round: int
    server: int | None = None
    link: tuple[int, int] | None = None
    step: int = 0

    def __post_init__(self) -> None:
        if (self.server is None) == (self.link is None):
            raise ConfigError(
                f"`Outage` must name either `server` or `link`, got {self.server} and {self.link}"
            )
        if self.round < 1 or self.step < 0:
            raise ConfigError(
                f"`Outage` must have round >= 1 and step >= 0, got {self.round} and {self.step}"
            )

    @property
    def servers(self) -> tuple[int, ...]:
        """The edge server, or the two ends of the link."""
        return self.link if self.link is not None else (self.server,)  # type: ignore[return-value]

    def __str__(self) -> str:
        what = f"edge server {self.server}" if self.link is None else f"link {self.link[0]}-{self.link[1]}"
        return f"{what} from step {self.step}"


def check_outages(outages: Sequence[Outage], adjacency: NDArray[np.bool_]) -> None:
    """Raise ConfigError unless outages name servers and links of the run and each round keeps a server up."""
    servers = len(adjacency)
    for outage in outages:
        if any(not 0 <= server < servers for server in outage.servers):
            raise ConfigError(f"`outages` must name edge servers of 0..{servers - 1}, got {outage}")
        if outage.link is not None and not adjacency[outage.link]:
            raise ConfigError(f"`outages` must name links of the graph, got {outage}")
        lost = {other.server for other in outages if other.round == outage.round} - {None}
        if len(lost) == servers:
            raise ConfigError(f"`outages` must leave an edge server up, got none in round {outage.round}")


@dataclass(frozen=True)
class Consensus:
    """How the edge servers agree."""

    edge_servers: int = 3  # M
    p2p_rounds: int = 5  # φ
    mass: Mass = "count"  # what x_m is divided by: 1/M (the paper's M·x_m) or the data share s_m
    leader: LeaderRule = "random"  # drawn from the previous block's hash, or always the given edge server
    learning_rate: float = 1.0  # η of (6)(7)(12); it cancels, and scales what is recorded

    def __post_init__(self) -> None:
        check_whole_number("edge_servers", self.edge_servers, 1, 2**16 - 1)
        check_whole_number("p2p_rounds", self.p2p_rounds, 0, 2**16 - 1)
        servers = range(self.edge_servers)
        if self.mass not in get_args(Mass):
            raise ConfigError(f"`mass` must be one of {get_args(Mass)}, got {self.mass!r}")
        if self.leader != "random" and self.leader not in servers:
            raise ConfigError(
                f"`leader` must be 'random' or an edge server of {servers}, got {self.leader!r}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"`learning_rate` must be positive and finite, got {self.learning_rate}")
