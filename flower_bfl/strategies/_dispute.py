"""What goes into and comes out of a round's consensus, and what edge servers say of each other meanwhile."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flower_bfl.attacks import Falsification, Turn
from flower_bfl.attacks.base import Place
from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender
from flower_bfl.chain_adapter.records import Evidence
from flower_bfl.config import Consensus, Outage
from flower_bfl.defences import Replay
from flower_bfl.defences.replay import same_bits
from flower_bfl.network import Mixing
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import NotFiniteError
from flower_bfl.types import Accusation, Floats, Row, Vector

Phase = tuple[int, Iterable[Entry]]
"""Entries that go into one block, and how many they are."""

Sums = Callable[[Sequence[Row], Trained], Row]
"""The partial aggregates (8) of gradients at their edge servers."""

Sign = Callable[[Sender, int, int, bytes], bytes]
"""Signature by a sender's key of a CONSENSUS entry: of a round, a step, a digest."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What stays the same over the rounds of a run in which edge servers may lie."""

    consensus: Consensus
    mixing: Mixing  # Λ
    adversary: Adversary  # what the compromised do
    replay: Replay | None  # how the others notice
    quarantine_rounds: int  # for which one is barred after it was voted out
    sums: Sums
    weighted: bool  # whether these are weighted sums of the gradients
    sign: Sign


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a round's consensus begins with."""

    round: int
    trained: Trained
    gradients: Sequence[Row]
    suspected: Sequence[int]  # positions of those that do not count
    down: Sequence[Outage]
    before: Vector  # w_k, shape (p,)
    layout: Layout

    @property
    def counted(self) -> Trained:
        """Those that are summed up."""
        return self.trained.without(self.suspected)

    def rows(self, some: Trained) -> list[Row]:
        """The gradients of some of those that trained."""
        row = dict(zip(self.trained.senders, self.gradients, strict=True))
        return [row[sender] for sender in some.senders]

    def located(self, error: NotFiniteError, some: Trained) -> NotFiniteError:
        """The error with positions among all that trained, from those among some of them."""
        return NotFiniteError(self.trained.senders.index(some.senders[y]) for y in error.positions)


@dataclass(frozen=True, eq=False)
class Agreed:
    """What the edge servers hold after the last step of the consensus."""

    trained: Trained  # whose gradients are in it, at the edge servers that summed them up
    states: Mapping[int, Vector]  # x_m^(φ)
    mass: Floats  # s_m, (m,)
    steps: int  # φ_k
    target: float | None  # what the error may be; None for a fixed φ
    error: Callable[[int], tuple[float, float]]  # consensus error of an edge server, and its bound
    fit: Container[int]  # edge servers that can lead


@dataclass(eq=False)
class Dispute:
    """One round: what was published, who was accused by whom, who is barred."""

    setting: Setting
    round: int
    until: dict[int, int]  # first round in which an edge server may act again
    phases: list[Phase] = field(default_factory=list)  # for the ledger
    accused: dict[tuple[int, Evidence], set[int]] = field(default_factory=dict)  # and by whom
    acted: set[int] = field(default_factory=set)  # compromised edge servers that did something
    aside: set[int] = field(default_factory=set)  # who takes no part: barred, or cut off by that
    voted_out: set[int] = field(default_factory=set)  # in this round
    broken_off: int = -1  # the highest step in which a consensus ended
    seconds: float = 0.0  # spent on checking

    @property
    def barred(self) -> set[int]:
        """Edge servers in quarantine."""
        return {server for server, until in self.until.items() if self.round < until}

    @property
    def accusations(self) -> tuple[Accusation, ...]:
        """For the round's report."""
        return tuple(
            Accusation(server, evidence.offence, evidence.step, len(voters), server in self.voted_out)
            for (server, evidence), voters in self.accused.items()
        )

    def record(self, entries: Iterable[Entry], count: int) -> None:
        """Put a phase on its way to the ledger."""
        if count:
            self.phases.append((count, entries))

    def falsified(self, attack: Falsification, turn: Turn, server: int, place: Place) -> Vector:
        """What an edge server publishes in place of something; nobody is guilty of what changes nothing."""
        false = self.setting.adversary.falsify(attack, turn, Sender(Role.SERVER, server), place)
        if not same_bits(false, turn.honest):
            self.acted.add(server)
        return false

    def votes_on(self, accused: Mapping[int, Evidence], servers: Iterable[int]) -> list[Entry]:
        """What those of some edge servers that are honest have to say of who is accused."""
        voters = sorted(set(servers) - self.setting.adversary.servers(self.round))
        votes = (self.vote(each, server, why) for server, why in accused.items() for each in voters)
        return [vote for vote in votes if vote is not None]

    def vote(self, voter: int, accused: int, evidence: Evidence) -> Entry | None:
        """A vote, unless the voter is barred or has voted against this edge server already."""
        by = {one for (server, _), some in self.accused.items() if server == accused for one in some}
        if voter in (accused, *by) or voter in self.barred:
            return None
        self.accused.setdefault((accused, evidence), set()).add(voter)
        if 2 * (len(by) + 1) > self.setting.consensus.edge_servers - 1:
            self.voted_out |= {accused} - self.barred
            self.until[accused] = self.round + self.setting.quarantine_rounds + 1
        payload = evidence.encode(self.round, accused)
        return Entry(Kind.VOTE, self.round, Sender(Role.SERVER, voter), payload, accused)
