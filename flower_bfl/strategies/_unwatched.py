"""A consensus of edge servers that nobody doubts: what `Watched` is where somebody may lie."""

from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np

from flower_bfl.chain_adapter.base import Entry
from flower_bfl.chain_adapter.records import NamedArrays
from flower_bfl.config import Consensus, Outage
from flower_bfl.network import Mixing
from flower_bfl.strategies._dispute import Agreed, Gathered, Phase, Sums
from flower_bfl.strategies._journal import consensus_entries, model_entry
from flower_bfl.strategies._outages import mixings_without, servers_down
from flower_bfl.strategies.aggregation import NotFiniteError
from flower_bfl.strategies.consensus import agree, initial_mass, mass_after
from flower_bfl.types import RoundReport, Vector

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
        trained, steps = now.counted, self._consensus.p2p_rounds
        mass = initial_mass(self._consensus, trained.samples, trained.server_of, servers_down(now.down, 0))
        mixings = mixings_without(now.down, self._mixing, steps)
        last = mass_after(mass, mixings)
        fit = set(np.flatnonzero(last > 0).tolist()) - servers_down(now.down, steps)
        leader, _ = next(self._leaders(now.round, fit), (None, 0))
        if leader is None:
            return None
        kept = self._kept_states(now.layout.size)
        try:
            sums = self._sums(now.rows(trained), trained)
            agreement = agree(sums, now.layout.size, mass, mixings, leader, states=kept)
        except NotFiniteError as error:
            raise now.located(error, trained) from error
        for step, held in enumerate(kept if kept is not None else ()):
            down = servers_down(now.down, max(step - 1, 0))
            up = {m: now.layout.arrays(state) for m, state in enumerate(held) if m not in down}
            entries = consensus_entries(now.round, step, up, None if step else trained)
            self.phases.append((len(up), entries))
        states = {leader: agreement.state}
        return Agreed(trained, states, last, lambda _: (agreement.error, agreement.bound), {leader})

    def proposed(
        self, now: Gathered, agreed: Agreed, leader: int, passed: int, make: Callable[[], NamedArrays]
    ) -> list[Entry]:
        """The leader's MODEL entry."""
        return [model_entry(now.round, leader, passed, make())]

    def close(self, report: RoundReport) -> RoundReport:
        """End the round; there is nothing to report."""
        return report

    def _kept_states(self, size: int) -> Vector | None:
        """Room for every step's states, if they are to be recorded; those of the round before are by now."""
        if self._recording and self._states is None:
            shape = (self._consensus.p2p_rounds + 1, self._consensus.edge_servers, size)
            self._states = np.empty(shape, np.float32)
        return self._states
