"""A round in which edge servers may lie, and watch each other: who publishes what, and who is voted out."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from flower_bfl.attacks import Equivocation, FalseAccusation, Falsification, Silence, Turn
from flower_bfl.attacks.base import Place
from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, digest
from flower_bfl.chain_adapter.records import Evidence, consensus_payload
from flower_bfl.config import Consensus, Outage
from flower_bfl.defences.replay import Replay, Terms
from flower_bfl.network import Mixing, without
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._journal import consensus_entries, model_entry
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._outages import known_from, mixings_without, servers_down, set_aside
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import (
    Floats,
    NotFiniteError,
    Row,
    Vector,
    boost,
    contribution_weights,
    whole,
)
from flower_bfl.strategies.consensus import error_and_bound, initial_mass, mass_after, mix
from flower_bfl.types import Accusation, RoundReport

Arrays = dict[str, np.ndarray]
Sums = Callable[[Sequence[Row], Trained], Row]
"""The partial aggregates (8) of gradients at their edge servers."""

Phase = tuple[int, Iterable[Entry]]
"""Entries that go into one block, and how many they are."""

Sign = Callable[[Sender, int, int, bytes], bytes]
"""Signature by a sender's key of a CONSENSUS entry: of a round, a step, a digest."""


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
    error: Callable[[int], tuple[float, float]]  # consensus error of an edge server, and its bound
    fit: Container[int]  # edge servers that can lead
    phases: Sequence[Phase]  # for the ledger


@dataclass
class Dispute:
    """What came of watching, in one round."""

    until: dict[int, int] = field(default_factory=dict)  # first round in which a server may act again
    phases: list[Phase] = field(default_factory=list)  # for the ledger
    accused: dict[tuple[int, Evidence], set[int]] = field(default_factory=dict)  # and by whom
    acted: set[int] = field(default_factory=set)  # compromised edge servers that did something
    aside: set[int] = field(default_factory=set)
    seconds: float = 0.0

    def barred(self, server_round: int) -> set[int]:
        """Edge servers in quarantine."""
        return {server for server, until in self.until.items() if server_round < until}


class Watched:
    """Edge servers that may be compromised, and a defence or none, over the rounds of a run.

    Parameters
    ----------
    consensus, mixing : how the edge servers agree.
    adversary : what the compromised ones do.
    replay : how the others notice, or None.
    quarantine_rounds : for which one is barred after it was voted out.
    sums : what a_m is made of.
    sign : in an edge server's name.
    """

    def __init__(
        self,
        consensus: Consensus,
        mixing: Mixing,
        adversary: Adversary,
        replay: Replay | None,
        quarantine_rounds: int,
        sums: Sums,
        sign: Sign,
    ) -> None:
        self._consensus = consensus
        self._mixing = mixing
        self._adversary = adversary
        self._replay = replay
        self._quarantine_rounds = quarantine_rounds
        self._sums = sums
        self._sign = sign
        self._until: dict[int, int] = {}
        self._now = Dispute()

    # -- one round ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin a round, or begin it again."""
        self._now = Dispute(dict(self._until))

    def settle(self) -> None:
        """The round is what it is: who was voted out stays out."""
        self._until = {**self._now.until}

    def barred(self, server_round: int) -> set[int]:
        """Edge servers in quarantine when a round begins."""
        return Dispute(self._until).barred(server_round)

    def agree(self, now: Gathered) -> Agreed | None:
        """The consensus (9) of those who are not voted out; None if nobody is left who trained."""
        self.open()
        down, first_step = list(now.down), 0
        while True:
            barred = self._now.barred(now.round)
            self._now.aside = set_aside(self._mixing, barred, down)
            servers = self._consensus.edge_servers
            gone = self._now.aside | servers_down(down, 0)
            if len(gone) == servers:
                return None
            trained = now.counted.moved(gone, servers)
            if not trained.senders:
                return None
            attempt = _Attempt(self, now, trained, down, first_step)
            try:
                for step in range(self._consensus.p2p_rounds + 1):
                    attempt.publish(step)
                    self._let_vote(now.round, attempt.offenders(step), attempt.voters(step))
                    if self._now.barred(now.round) != barred:
                        down = known_from(down, step)
                        break
                else:
                    return attempt.agreed()
            except NotFiniteError as error:
                raise now.located(error, trained) from error
            first_step += self._consensus.p2p_rounds + 1

    def proposed(
        self, now: Gathered, agreed: Agreed, leader: int, passed: int, make: Callable[[], Arrays]
    ) -> Entry | None:
        """The leader's MODEL entry; None if there is none, or if it was voted out for it."""
        model, evidence, layout = make(), None, now.layout
        step = boost(agreed.trained.samples, agreed.trained.steps) * self._consensus.learning_rate
        terms = [(1.0, now.before), (-step / float(agreed.mass[leader]), agreed.states[leader])]
        for attack in self._adversary.acting(now.round, leader, "model"):
            if isinstance(attack, Silence):
                self._now.acted.add(leader)
                evidence = Evidence("no model", passed)
            elif isinstance(attack, Falsification):
                honest = layout.vector(model)[0 : layout.size]
                turn = Turn(now.round, honest, honest[None], model=now.before, terms=terms)
                model = layout.model(self.falsified(attack, turn, leader, "model"), model)
        entry = model_entry(now.round, leader, passed, model)
        began = perf_counter()
        if self._replay is not None and evidence is None:
            expected = make()
            if not self._same_model(model, expected, layout, terms):
                wanted = model_entry(now.round, leader, passed, expected)
                evidence = Evidence("model", passed, digest(entry.payload), digest(wanted.payload))
                self._phase([entry])
        self._now.seconds += perf_counter() - began
        if evidence is None:
            return entry
        voters = set(range(self._consensus.edge_servers)) - self._now.aside
        voters -= self._adversary.servers(now.round)
        if self._replay is not None:
            self._let_vote(now.round, {leader: evidence}, voters)
        if leader in self._now.barred(now.round):
            return None
        return None if evidence.offence == "no model" else entry

    def noted(self, report: RoundReport) -> RoundReport:
        """The report with who was accused by whom, and, where attackers are known, whether rightly."""
        now = self._now
        barred = now.barred(report.round)
        accusations = tuple(
            Accusation(server, evidence.offence, evidence.step, len(voters), server in barred)
            for (server, evidence), voters in now.accused.items()
        )
        report = replace(
            report,
            accused=accusations,
            quarantined=tuple(sorted(barred)),
            cut_off=tuple(sorted(now.aside - barred)),
            defend_seconds=report.defend_seconds + now.seconds,
        )
        if not self._adversary.attacks:
            return report
        guilty = {f"edge server {server}" for server in now.acted}
        told = {f"edge server {one.server}" for one in accusations if one.voted_out}
        present = self._adversary.devices(report.round)
        trained = {n for group in report.server_devices for n in group}
        suspected = {one.who for one in report.suspected}
        guilty |= {f"device {n}" for n in present if n in trained or f"device {n}" in suspected}
        told |= suspected
        active = [attack for attack in self._adversary.attacks if attack.acts(report.round)]
        return replace(
            report,
            attacked=tuple(map(str, active)),
            true_positives=len(told & guilty),
            false_positives=len(told - guilty),
            missed=len(guilty - told),
        )

    @property
    def phases(self) -> list[Phase]:
        """What goes to the ledger of the open round, in order."""
        return self._now.phases

    def out(self, server_round: int, down: Sequence[Outage]) -> set[int]:
        """Edge servers that take no part any more in the open round."""
        return set_aside(self._mixing, self._now.barred(server_round), down)

    # -- what an attempt uses -----------------------------------------------------------------------------

    def falsified(self, attack: Falsification, turn: Turn, server: int, place: Place) -> Vector:
        """What an edge server publishes in place of something; nobody is guilty of what changes nothing."""
        false = self._adversary.falsify(attack, turn, Sender(Role.SERVER, server), place)
        if not np.array_equal(false, turn.honest):
            self._now.acted.add(server)
        return false

    def _phase(self, entries: Iterable[Entry], count: int = 1) -> None:
        self._now.phases.append((count, entries))

    def _same_model(self, found: Arrays, expected: Arrays, layout: Layout, terms: Terms) -> bool:
        assert self._replay is not None
        if any(not np.array_equal(found[name], expected[name]) for name in layout.copied):
            return False
        one, other = (layout.vector(model)[0 : layout.size] for model in (found, expected))
        return self._replay.accepts(one, other, terms)

    def _let_vote(self, server_round: int, accused: Mapping[int, Evidence], voters: Iterable[int]) -> None:
        """Everybody who is honest votes on who is accused."""
        votes: list[Entry] = []
        for server, evidence in accused.items():
            for voter in sorted(voters):
                self.vote(server_round, voter, server, evidence, votes)
        if votes:
            self._phase(votes, len(votes))

    def vote(
        self, server_round: int, voter: int, accused: int, evidence: Evidence, votes: list[Entry]
    ) -> None:
        """One vote, unless the voter is barred or has voted against this server already."""
        barred = self._now.barred(server_round)
        by = {one for (server, _), some in self._now.accused.items() if server == accused for one in some}
        if voter in (accused, *by) or voter in barred:
            return
        payload = evidence.encode(server_round, accused)
        votes.append(Entry(Kind.VOTE, server_round, Sender(Role.SERVER, voter), payload, accused))
        self._now.accused.setdefault((accused, evidence), set()).add(voter)
        if 2 * (len(by) + 1) > self._consensus.edge_servers - 1:
            self._now.until[accused] = server_round + self._quarantine_rounds + 1


class _Attempt:
    """A consensus from x^(0) on, among edge servers that are not set aside."""

    def __init__(
        self, watched: Watched, now: Gathered, trained: Trained, down: Sequence[Outage], first_step: int
    ) -> None:
        self._watched = watched
        self._round = now.round
        self._trained = trained
        self._layout = now.layout
        self._first_step = first_step
        consensus = watched._consensus
        self._rows = now.rows(trained)
        self._down = [*down, *(Outage(now.round, server=server) for server in sorted(watched._now.aside))]
        self._mass = initial_mass(consensus, trained.samples, trained.server_of, servers_down(self._down, 0))
        self._mixings = mixings_without(self._down, watched._mixing, consensus.p2p_rounds)
        self._silent: set[int] = set()
        self._up: list[int] = []
        self._published: list[Vector] = []  # x^(l) as recorded, (m, p) each
        self._sent: dict[int, Vector] = {}  # what equivocators sent to some
        self._lies: list[Entry] = []

    def publish(self, step: int) -> None:
        """Everybody's x^(l), true or not, on its way to the ledger."""
        watched, servers = self._watched, range(self._watched._consensus.edge_servers)
        if step > 0 and self._silent:  # nobody hears of them any more
            self._mixings[step - 1] = without(self._mixings[step - 1], servers=self._silent)
        honest = self._follow(step)
        if watched._replay is None:  # else everybody goes by what is recorded
            self._mislead(step, honest)
        published, self._sent, self._lies = honest.copy(), {}, []
        up = [server for server in servers if server not in servers_down(self._down, max(step - 1, 0))]
        for server in up:
            watched._adversary.remember(Sender(Role.SERVER, server), step, honest[server])
            for attack in watched._adversary.acting(self._round, server, step):
                if isinstance(attack, Silence):
                    watched._now.acted.add(server)
                    self._silent.add(server)
                elif isinstance(attack, FalseAccusation):
                    watched._now.acted.add(server)
                    self._accuse_falsely(step, server, attack, honest)
                elif isinstance(attack, Falsification):
                    terms = self._terms(step, server)
                    turn = Turn(self._round, honest[server], honest[up], terms=terms)
                    false = watched.falsified(attack, turn, server, step)
                    if isinstance(attack, Equivocation):
                        self._sent[server] = false
                    else:
                        published[server] = false
        self._up = [server for server in up if server not in self._silent]
        published[[server for server in servers if server not in self._up]] = 0
        self._published.append(published)
        states = {server: self._layout.arrays(published[server]) for server in self._up}
        members = self._trained if step == 0 else None
        entries = consensus_entries(self._round, self._first_step + step, states, members)
        watched._phase(entries, len(states))

    def offenders(self, step: int) -> dict[int, Evidence]:
        """Who is wrong, as everybody who checks finds out; nobody if nobody checks."""
        watched, ledger_step = self._watched, self._first_step + step
        votes = list(self._lies)
        replay = watched._replay
        if votes:
            watched._phase(votes, len(votes))
        if replay is None:
            return {}
        began = perf_counter()
        found: dict[int, Evidence] = {}
        expected = self._follow(step)
        recorded = self._published[step]
        for server in self._up:
            if not replay.accepts(recorded[server], expected[server], self._terms(step, server)):
                named = (self._named(step, server, each[server]) for each in (recorded, expected))
                found[server] = Evidence("state", ledger_step, *map(digest, named))
        for server, sent in self._sent.items():
            false, true = (digest(self._named(step, server, each)) for each in (sent, recorded[server]))
            if false != true:
                signature = watched._sign(Sender(Role.SERVER, server), self._round, ledger_step, false)
                found[server] = Evidence("equivocation", ledger_step, false, true, signature)
        down = servers_down(self._down, max(step - 1, 0))
        found |= {server: Evidence("silence", ledger_step) for server in self._silent - down}
        found |= {
            vote.sender.index: Evidence("accusation", vote.step, digest(vote.payload)) for vote in votes
        }
        watched._now.seconds += perf_counter() - began
        return dict(sorted(found.items()))

    def voters(self, step: int) -> list[int]:
        """Edge servers that are there and honest."""
        compromised = self._watched._adversary.servers(self._round)
        return [server for server in self._up if server not in compromised]

    def agreed(self) -> Agreed:
        """What everybody holds in the end."""
        mass, states = mass_after(self._mass, self._mixings), self._published[-1]
        down = servers_down(self._down, len(self._mixings)) | self._silent

        def error(server: int) -> tuple[float, float]:
            last = float(mass[server])
            return error_and_bound(self._published[0], states[server], self._mass, last, self._mixings)

        held = {server: states[server] for server in range(len(states)) if server not in down}
        fit = {server for server in held if mass[server] > 0}
        return Agreed(self._trained, held, mass, error, fit, self._watched.phases)

    # -- private ------------------------------------------------------------------------------------------

    def _follow(self, step: int) -> Vector:
        """What follows from what was published before, (m, p): (8) or (9)."""
        servers = self._watched._consensus.edge_servers
        if step == 0:
            return whole(self._watched._sums(self._rows, self._trained), servers, self._layout.size)
        with np.errstate(over="ignore", invalid="ignore"):
            return mix(self._mixings[step - 1], self._published[step - 1]).astype(np.float32)

    def _mislead(self, step: int, follows: Vector) -> None:
        """Every second neighbour of an equivocator mixes in what it was sent."""
        for liar, sent in self._sent.items():
            mixing, heard = self._mixings[step - 1], self._published[step - 1].copy()
            heard[liar] = sent
            for victim in [server for server in np.flatnonzero(mixing[liar]) if server != liar][::2]:
                follows[victim] = mix(mixing[[victim]], heard)[0].astype(np.float32)

    def _terms(self, step: int, server: int) -> Terms:
        """Weights and vectors that an edge server's x^(l) is the sum of."""
        if step == 0:
            weights = contribution_weights(self._trained.samples, self._trained.steps)
            own = np.flatnonzero(self._trained.server_of == server)
            return [(float(weights[y]), self._rows[y]) for y in own]
        mixing, before = self._mixings[step - 1], self._published[step - 1]
        return [(float(mixing[server, other]), before[other]) for other in np.flatnonzero(mixing[server])]

    def _named(self, step: int, server: int, state: Vector) -> bytes:
        members = self._trained.at([server]).senders if step == 0 else None
        arrays = self._layout.arrays(state)
        return consensus_payload(self._round, self._first_step + step, server, arrays, members)

    def _accuse_falsely(self, step: int, server: int, attack: FalseAccusation, honest: Vector) -> None:
        evidence = Evidence(
            "state", self._first_step + step, digest(honest[attack.accused].tobytes()), bytes(32)
        )
        self._watched.vote(self._round, server, attack.accused, evidence, self._lies)
