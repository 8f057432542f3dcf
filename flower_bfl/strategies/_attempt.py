"""One consensus from x^(0) on, in which edge servers may publish what does not follow, and others check."""

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from flower_bfl.attacks import Equivocation, FalseAccusation, Falsification, Silence, Turn
from flower_bfl.chain_adapter.base import Entry, Role, Sender, digest
from flower_bfl.chain_adapter.records import Evidence, consensus_payload
from flower_bfl.config import Outage
from flower_bfl.defences import Replay
from flower_bfl.defences.replay import same_bits
from flower_bfl.network import without
from flower_bfl.strategies._dispute import Agreed, Dispute, Gathered
from flower_bfl.strategies._enough_steps import planned
from flower_bfl.strategies._journal import consensus_entries
from flower_bfl.strategies._outages import mixing_of_the_rest, mixings_without, servers_down
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import Known, each_block, terms_of_sum, whole
from flower_bfl.strategies.consensus import (
    Mixed,
    error_and_bound,
    initial_mass,
    mass_after,
    mix,
    terms_of_mix,
)
from flower_bfl.types import Row, Terms, Vector


class Attempt:
    """The steps of a consensus among the edge servers that are not set aside.

    Parameters
    ----------
    dispute : the round so far.
    now : what the round began with.
    trained : whose gradients are summed up, at edge servers that take part.
    down : the round's outages.
    first_step : number of x^(0) on the ledger.
    """

    def __init__(
        self, dispute: Dispute, now: Gathered, trained: Trained, down: Sequence[Outage], first_step: int
    ) -> None:
        self._dispute = dispute
        self._setting = setting = dispute.setting
        self._trained = trained
        self._layout = now.layout
        self._first_step = first_step
        self._rows = now.rows(trained)
        self._down_by_itself = down
        self._sums = setting.sums(self._rows, trained)
        self._down = [*down, *(Outage(now.round, server=server) for server in sorted(dispute.aside))]
        gone = servers_down(self._down, 0)
        self._mass = initial_mass(setting.consensus, trained.samples, trained.server_of, gone)
        mixing = mixing_of_the_rest(setting.mixing, dispute.aside)
        self._mixings = mixings_without(self._down, mixing, setting.consensus.most_steps)
        self._target: float | None = None
        self._up: list[int] = []  # who publishes in the current step
        self._silent: set[int] = set()
        self._published: list[Vector] = []  # x^(l) as recorded, (m, p) each
        self._sent: dict[int, Vector] = {}  # what equivocators sent to some in place of it
        self._lies: list[Entry] = []  # false votes of the current step

    def steps(self) -> Iterator[int]:
        """0, 1, …, φ_k, which is known once x^(0) is published."""
        yield 0
        start, size = Known(self._published[0]), self._layout.size
        rounds = self._setting.consensus.p2p_rounds
        plan = planned(rounds, start, size, self._mass, self._mixings, self._down)
        self._mixings, self._target = list(plan.mixings), plan.target
        yield from range(1, len(plan.mixings) + 1)

    def publish(self, step: int) -> None:
        """Everybody's x^(l), true or not, on its way to the ledger."""
        dispute, adversary = self._dispute, self._setting.adversary
        servers = range(self._setting.consensus.edge_servers)
        if step > 0 and self._silent:  # nobody hears of them any more
            self._mixings[step - 1] = without(self._mixings[step - 1], servers=self._silent)
        honest = whole(self._follows(step), len(servers), self._layout.size)
        if self._setting.replay is None:  # else everybody goes by what is recorded
            self._mislead(step, honest)
        published, self._sent, self._lies = honest, {}, []
        down = servers_down(self._down, max(step - 1, 0))
        up = [server for server in servers if server not in down]
        for server in up:
            adversary.remember(Sender(Role.SERVER, server), step, honest[server])
            for attack in adversary.acting(dispute.round, server, step):
                if isinstance(attack, Silence):
                    dispute.acted.add(server)
                    self._silent.add(server)
                elif isinstance(attack, FalseAccusation):
                    self._accuse_falsely(step, attack, honest)
                elif isinstance(attack, Falsification):
                    turn = Turn(dispute.round, honest[server], honest[up], terms=self._terms(step, server))
                    false = dispute.falsified(attack, turn, server, step)
                    if isinstance(attack, Equivocation):
                        self._sent[server] = false
                    else:
                        published = published.copy() if published is honest else published
                        published[server] = false
        self._up = [server for server in up if server not in self._silent]
        if gone := [server for server in servers if server not in self._up]:
            published = published.copy()
            published[gone] = 0
        self._published.append(published)
        states = {server: self._layout.arrays(published[server]) for server in self._up}
        members = self._trained if step == 0 else None
        ledger_step = self._first_step + step
        dispute.record(consensus_entries(dispute.round, ledger_step, states, members), len(states))
        dispute.record(self._lies, len(self._lies))

    def let_vote(self, step: int) -> None:
        """The honest check what was published, and vote on who is wrong."""
        if self._setting.replay is None:
            return
        began = perf_counter()
        accused = self._offenders(step, self._setting.replay)
        self._dispute.seconds += perf_counter() - began
        down = servers_down(self._down_by_itself, max(step - 1, 0))
        servers = set(range(self._setting.consensus.edge_servers)) - down - self._silent
        votes = self._dispute.votes_on(accused, servers)  # who is cut off can read, too
        self._dispute.record(votes, len(votes))

    def agreed(self) -> Agreed:
        """What everybody holds in the end."""
        mass, states = mass_after(self._mass, self._mixings), self._published[-1]
        steps = len(self._mixings)
        down = servers_down(self._down, steps) | self._silent

        def error(server: int) -> tuple[float, float]:
            start, last = self._published[0], float(mass[server])
            return error_and_bound(start, states[server], self._mass, last, self._mixings)

        held = {server: states[server] for server in range(len(states)) if server not in down}
        fit = {server for server in held if mass[server] > 0}
        return Agreed(self._trained, held, mass, steps, self._target, error, fit)

    # -- what is found ------------------------------------------------------------------------------------

    def _offenders(self, step: int, replay: Replay) -> dict[int, Evidence]:
        """Who is wrong, and the evidence."""
        recorded, ledger_step = self._published[step], self._first_step + step
        found: dict[int, Evidence] = {}
        for server in self._differing(step):
            part = slice(0, self._layout.size)
            expected = self._follows(step)[part][server]
            if not replay.accepts(recorded[server], expected, self._terms(step, server)):
                named = (self._named(step, server, each) for each in (recorded[server], expected))
                found[server] = Evidence("state", ledger_step, *map(digest, named))
        for server, sent in self._sent.items():
            false, true = (digest(self._named(step, server, each)) for each in (sent, recorded[server]))
            if false != true:
                sender = Sender(Role.SERVER, server)
                signature = self._setting.sign(sender, self._dispute.round, ledger_step, false)
                found[server] = Evidence("equivocation", ledger_step, false, true, signature)
        down = servers_down(self._down, max(step - 1, 0))
        found |= {server: Evidence("silence", ledger_step) for server in self._silent - down}
        for vote in self._lies:
            found[vote.sender.index] = Evidence("accusation", vote.step, digest(vote.payload))
        return dict(sorted(found.items()))

    def _differing(self, step: int) -> list[int]:
        """Edge servers whose recorded states are not, bit for bit, what follows."""
        recorded, follows = self._published[step], self._follows(step)

        def work(part: slice) -> set[int]:
            expected = follows[part]
            return {m for m in self._up if not same_bits(recorded[m, part], expected[m])}

        return sorted(set().union(*each_block(self._layout.size, work)))

    # -- what follows -------------------------------------------------------------------------------------

    def _follows(self, step: int) -> Row:
        """What follows from what was published before, (m, p), worked out where it is read: (8) or (9)."""
        if step == 0:
            return self._sums
        return Mixed(self._mixings[step - 1], self._published[step - 1])

    def _terms(self, step: int, server: int) -> Terms:
        """Weights and vectors that an edge server's x^(l) is the sum of; none if it is no sum."""
        if step > 0:
            return terms_of_mix(self._mixings[step - 1], self._published[step - 1], server)
        if not self._setting.weighted:
            return ()
        trained = self._trained
        return terms_of_sum(self._rows, trained.samples, trained.steps, trained.server_of, server)

    def _mislead(self, step: int, follows: Vector) -> None:
        """Every second neighbour of an equivocator mixes in what it was sent."""
        for liar, sent in self._sent.items():
            mixing, heard = self._mixings[step - 1], self._published[step - 1].copy()
            heard[liar] = sent
            for victim in [server for server in np.flatnonzero(mixing[liar]) if server != liar][::2]:
                follows[victim] = mix(mixing[[victim]], heard)[0].astype(np.float32)

    def _named(self, step: int, server: int, state: Vector) -> bytes:
        members = self._trained.at([server]).senders if step == 0 else None
        arrays = self._layout.arrays(state)
        ledger_step = self._first_step + step
        return consensus_payload(self._dispute.round, ledger_step, server, arrays, members)

    def _accuse_falsely(self, step: int, attack: FalseAccusation, honest: Vector) -> None:
        assert attack.server is not None
        made_up = digest(honest[attack.accused].tobytes()), bytes(32)
        evidence = Evidence("state", self._first_step + step, *made_up)
        vote = self._dispute.vote(attack.server, attack.accused, evidence)
        if vote is not None:  # else it has voted against it before
            self._dispute.acted.add(attack.server)
            self._lies.append(vote)
