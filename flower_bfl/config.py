"""Settings as frozen dataclasses, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ConfigError

LeaderRule = Literal["random", "reputation"] | int
Mass = Literal["count", "data"]


def check_whole_number(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError unless `value` is an int within bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
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
        if self.link is not None and len(self.link) != 2:
            raise ConfigError(f"`link` of an `Outage` must name two edge servers, got {self.link}")
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
    lost: dict[int, set[int]] = {}
    for outage in outages:
        if any(not 0 <= server < servers for server in outage.servers):
            raise ConfigError(f"`outages` must name edge servers of 0..{servers - 1}, got {outage}")
        if outage.link is not None and not adjacency[outage.link]:
            raise ConfigError(f"`outages` must name links of the graph, got {outage}")
        if outage.server is not None:
            lost.setdefault(outage.round, set()).add(outage.server)
    for server_round, down in lost.items():
        if len(down) == servers:
            raise ConfigError(f"`outages` must leave an edge server up, got none in round {server_round}")


@dataclass(frozen=True)
class Mining:
    """How a round's block is sealed: devices race with their hash rates, and the winner proves its work."""

    hash_rates: float | Sequence[float] = 5e11  # Ψ_n in hashes a second, of all devices or by device index
    work_hashes: float = 5e10  # ħ, hashes that a block takes
    difficulty_bits: int = 12  # of the nonce that is really searched for and checked by the contract

    def __post_init__(self) -> None:
        rates = np.atleast_1d(np.asarray(self.hash_rates, dtype=np.float64))
        if rates.ndim != 1 or not rates.size or not (np.isfinite(rates) & (rates > 0)).all():
            raise ConfigError(f"`hash_rates` must be positive and finite, got {self.hash_rates}")
        if not 0 < self.work_hashes < float("inf"):
            raise ConfigError(f"`work_hashes` must be positive and finite, got {self.work_hashes}")
        check_whole_number("difficulty_bits", self.difficulty_bits, 1, 32)

    def has_rate(self, device: int) -> bool:
        """Whether the device can mine; one that nobody planned for cannot."""
        rates = np.asarray(self.hash_rates)
        return rates.ndim == 0 or device < rates.size

    def rates_of(self, devices: Sequence[int]) -> NDArray[np.float64]:
        """Ψ of some devices, shape (n,); raises ConfigError for a device that has none."""
        rates = np.asarray(self.hash_rates, dtype=np.float64)
        if rates.ndim == 0:
            return np.full(len(devices), float(rates))
        if max(devices) >= rates.size:
            raise ConfigError(f"`hash_rates` must have one for device {max(devices)}, got {rates.size} rates")
        return rates[list(devices)]


@dataclass(frozen=True)
class ContractRules:
    """What the contract checks beyond roles and rounds; fixed when the chain is made."""

    edge_servers: int = 0  # M; 0 where no leader rule and no votes are needed
    leader: LeaderRule | Literal["any"] = "any"  # who may propose a round's model
    difficulty_bits: int = 0  # leading zero bits of a BFL block's hash; 0: blocks need no miner
    quarantine_rounds: int = 10  # for which a server is barred after the round in which it was voted out

    def __post_init__(self) -> None:
        check_whole_number("edge_servers", self.edge_servers, 0, 2**16 - 1)
        check_whole_number("difficulty_bits", self.difficulty_bits, 0, 64)
        check_whole_number("quarantine_rounds", self.quarantine_rounds, 0, 2**31 - 1)
        if self.leader not in ("any", "random", "reputation", *range(self.edge_servers)):
            raise ConfigError(
                "`leader` must be 'any', 'random', 'reputation' or an edge server of "
                f"{range(self.edge_servers)}, got {self.leader!r}"
            )
        if self.leader != "any" and not self.edge_servers:
            raise ConfigError(f"`edge_servers` must be at least 1 for leader {self.leader!r}, got 0")
        if self.leader == "reputation" and not self.difficulty_bits:
            raise ConfigError("`difficulty_bits` must be positive for leader 'reputation', got 0")


@dataclass(frozen=True)
class AutoRounds:
    """As many consensus steps φ_k as a round needs, Corollary 1; `p2p_rounds="auto"` is `AutoRounds()`.

    The smallest number of steps after which no edge server that can lead is further than √(ξ_k/√K) from the
    sum, by λ and by how far the partial aggregates of the round are apart: docs/theory.md.
    """

    tolerance: float = 0.1  # ξ_k / ‖Σ a_m‖²; with `absolute` ξ itself, in units of a squared gradient
    absolute: bool = False
    most: int = 64  # steps that a round takes at most
    rounds: int | None = None  # K; None: as many as `start` is asked for

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < float("inf"):
            raise ConfigError(f"`tolerance` must be positive and finite, got {self.tolerance}")
        object.__setattr__(self, "tolerance", float(self.tolerance))
        check_whole_number("most", self.most, 1, 2**16 - 1)
        if self.rounds is not None:
            check_whole_number("rounds", self.rounds, 1, 2**32 - 2)

    def __str__(self) -> str:
        return f"up to {self.most}"


@dataclass(frozen=True)
class Consensus:
    """How the edge servers agree."""

    edge_servers: int = 3  # M
    p2p_rounds: int | AutoRounds = 5  # φ
    mass: Mass = "count"  # what x_m is divided by: 1/M (the paper's M·x_m) or the data share s_m
    leader: LeaderRule = (
        "random"  # drawn from the last block's hash, the last miner's, or always the given one
    )
    learning_rate: float = 1.0  # η of (6)(7)(12); it cancels, and scales what is recorded

    def __post_init__(self) -> None:
        check_whole_number("edge_servers", self.edge_servers, 1, 2**16 - 1)
        if isinstance(self.p2p_rounds, str):
            raise ConfigError(
                f"`p2p_rounds` must be a whole number, 'auto' or an AutoRounds, got {self.p2p_rounds!r}"
            )
        if not isinstance(self.p2p_rounds, AutoRounds):
            check_whole_number("p2p_rounds", self.p2p_rounds, 0, 2**16 - 1)
        servers = range(self.edge_servers)
        if self.mass not in get_args(Mass):
            raise ConfigError(f"`mass` must be one of {get_args(Mass)}, got {self.mass!r}")
        if self.leader not in ("random", "reputation", *servers):
            raise ConfigError(
                f"`leader` must be 'random', 'reputation' or an edge server of {servers}, got {self.leader!r}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"`learning_rate` must be positive and finite, got {self.learning_rate}")
        object.__setattr__(self, "learning_rate", float(self.learning_rate))  # 1 is recorded as 1.0, too

    @property
    def most_steps(self) -> int:
        """φ, or as many as φ_k may come to in any round."""
        return self.p2p_rounds.most if isinstance(self.p2p_rounds, AutoRounds) else self.p2p_rounds

    def expecting(self, rounds: int) -> "Consensus":
        """With K for those that choose φ_k by it, unless they were given it."""
        auto = self.p2p_rounds
        if not isinstance(auto, AutoRounds) or auto.rounds is not None:
            return self
        return replace(self, p2p_rounds=replace(auto, rounds=max(rounds, 1)))
