"""A consensus of edge servers that nobody doubts: what `Watched` is where somebody may lie."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np

from flower_bfl.chain_adapter.base import Entry
from flower_bfl.chain_adapter.records import NamedArrays
from flower_bfl.config import AutoRounds, Consensus, Outage
from flower_bfl.network import Mixing
from flower_bfl.strategies._dispute import Agreed, Gathered, Phase, Sums
from flower_bfl.strategies._enough_steps import planned
from flower_bfl.strategies._journal import consensus_entries, model_entry
from flower_bfl.strategies._outages import mixings_without, servers_down
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import Known, NotFiniteError, whole
from flower_bfl.strategies.consensus import agree, initial_mass, mass_after
from flower_bfl.types import RoundReport, Row, Vector

Leaders = Callable[[int, Container[int]], Iterator[tuple[int, int]]]
"""Those who can lead a round, in order, and how many are passed over before each."""


class Unwatched:
    """The edge servers over the rounds of a run; only the leader's state is worked out to the end.

    Parameters
    ----------
    consensus, mixing : how they agree.
    sums : what a_m is made of.
    leaders : who leads a round.
    recording : whether every step goes to a ledger.
    """

    def __init__(
        self, consensus: Consensus, mixing: Mixing, sums: Sums, leaders: Leaders, *, recording: bool
    ) -> None:
        self._consensus = consensus
        self._mixing = mixing
        self._sums = sums
        self._leaders = leaders
        self._recording = recording
        self._states: Vector | None = None  # made once: fresh memory of this size takes as long as filling it
        self.phases: list[Phase] = []  # what goes to the ledger of the open round, in order

    def restore(self, until: Mapping[int, int]) -> None:
        """Go on with a run; nobody is barred in it."""

    def open(self, server_round: int) -> None:
        """Begin a round, or begin it again."""
        self.phases = []

    def away(self, server_round: int) -> set[int]:
        """Edge servers that nobody is to send data to: none."""
        return set()

    def out(self, down: Sequence[Outage]) -> set[int]:
        """Edge servers that take no part any more in the open round: none."""
        return set()

    def agree(self, now: Gathered) -> Agreed | None:
        """The consensus (9), for the one that is to lead; None if nobody can."""
        self.open(now.round)
        trained, size = now.counted, now.layout.size
        mass = initial_mass(self._consensus, trained.samples, trained.server_of, servers_down(now.down, 0))
        mixings = mixings_without(now.down, self._mixing, self._consensus.most_steps)
        try:
            sums = self._partials(now, trained)
            plan = planned(self._consensus.p2p_rounds, sums, size, mass, mixings, now.down)
            steps, last = len(plan.mixings), mass_after(mass, plan.mixings)
            fit = set(np.flatnonzero(last > 0).tolist()) - servers_down(now.down, steps)
            leader, _ = next(self._leaders(now.round, fit), (None, 0))
            if leader is None:
                return None
            kept = self._kept_states(steps + 1, size)
            agreement = agree(sums, size, mass, plan.mixings, leader, states=kept)
        except NotFiniteError as error:
            raise now.located(error, trained) from error
        for step, held in enumerate(kept if kept is not None else ()):
            down = servers_down(now.down, max(step - 1, 0))
            up = {m: now.layout.arrays(state) for m, state in enumerate(held) if m not in down}
            entries = consensus_entries(now.round, step, up, None if step else trained)
            self.phases.append((len(up), entries))
        told = agreement.error, agreement.bound
        states = {leader: agreement.state}
        return Agreed(trained, states, last, steps, plan.target, lambda _: told, {leader})

    def proposed(
        self, now: Gathered, agreed: Agreed, leader: int, passed: int, make: Callable[[], NamedArrays]
    ) -> list[Entry]:
        """The leader's MODEL entry."""
        return [model_entry(now.round, leader, passed, make())]

    def close(self, report: RoundReport) -> RoundReport:
        """End the round; there is nothing to report."""
        return report

    def _partials(self, now: Gathered, trained: Trained) -> Row:
        """The sums (8), worked out where they are read, or at once if they are read twice."""
        sums = self._sums(now.rows(trained), trained)
        if not isinstance(self._consensus.p2p_rounds, AutoRounds):
            return sums
        return Known(whole(sums, self._consensus.edge_servers, now.layout.size))

    def _kept_states(self, count: int, size: int) -> Vector | None:
        """Room for so many steps' states, if they are to be recorded; the round before's are by now."""
        if not self._recording:
            return None
        if self._states is None or len(self._states) < count:
            self._states = None  # first, so that its memory can be used again
            self._states = np.empty((count, self._consensus.edge_servers, size), np.float32)
        return self._states[:count]
