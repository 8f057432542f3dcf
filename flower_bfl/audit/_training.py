"""A round's model worked out again from what was signed: equations (8) to (12).

Whatever is recorded beyond gradients must be, byte for byte, what follows from them. So each payload is made
anew and compared; digests are computed only to name a difference.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_bfl.audit._findings import decoded, differs, wrong
from flower_bfl.audit._round import Round, Trained, read_trained
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.records import (
    NamedArrays,
    consensus_payload,
    model_digest,
    model_payload,
    read_consensus,
    read_report,
)
from flower_bfl.config import Consensus, Outage, check_outages
from flower_bfl.errors import ConfigError, LedgerError, PayloadError
from flower_bfl.network import Mixing
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._outages import mixings_without, servers_down
from flower_bfl.strategies.aggregation import (
    Floats,
    NotFiniteError,
    PartialAggregates,
    Vector,
    boost,
    contribution_weights,
    updated_model,
    whole,
)
from flower_bfl.strategies.consensus import initial_mass, mass_after, mix

_SAME_DIRECTION = 1e-4  # relative; float32's rounding is far below it


@dataclass(frozen=True, eq=False)
class _Mixed:
    """Λ·x where it is read, in the float32 that edge servers exchange."""

    mixing: Mixing
    states: Vector  # shape (m, p)

    def __getitem__(self, part: slice, /) -> Vector:
        return mix(self.mixing, self.states[:, part]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class TrainingRules:
    """How a round's entries follow from each other."""

    consensus: Consensus
    mixing: Mixing  # Λ
    layout: Layout

    def follow(self, now: Round, before: NamedArrays) -> tuple[NamedArrays, Trained]:
        """The model after a round, and whose gradients are in it; raises LedgerError.

        If everything follows but for the outages in the REPORT, it is the report that is wrong.
        """
        down = self._outages(now)
        try:
            return self._follow(now, before, down)
        except LedgerError:
            if now.report is not None and down and self._follows_without_outages(now, before):
                rule = "what a REPORT says was down must have been down"
                said = ", ".join(map(str, down))
                raise wrong(now.report, rule, "no outage: all else follows without it", said) from None
            raise

    def _follows_without_outages(self, now: Round, before: NamedArrays) -> bool:
        try:
            self._follow(now, before, [])
        except LedgerError:
            return False
        return True

    @np.errstate(all="ignore")  # what is not finite does not follow from anything
    def _follow(self, now: Round, before: NamedArrays, down: list[Outage]) -> tuple[NamedArrays, Trained]:
        assert now.model is not None, "a round is checked once its model is sealed"
        at, last = now.model, self.consensus.p2p_rounds
        trained = read_trained(now, model_digest(now.number - 1, before), self.layout)
        if not trained.senders:
            for state in now.states.values():
                raise wrong(state, "a round without gradients must have no consensus", "no state", "one")
            self._check_leader(at, np.ones(self.consensus.edge_servers), servers_down(down, last), now.barred)
            return self._check_model(at, before), trained

        # (8): the edge servers' weighted sums.
        mass = initial_mass(self.consensus, trained.samples, trained.server_of, servers_down(down, 0))
        mixings = mixings_without(down, self.mixing, last)
        states = self._partials(now, trained)

        # (9): step by step with their neighbours.
        for step in range(last + 1):
            self._check_step(now, step, states, trained, down)
            if step < last:
                states = whole(_Mixed(mixings[step], states), len(states), self.layout.size)
        for (step, _), state in now.states.items():
            if step > last:
                raise wrong(state, f"consensus must take {last} steps", "no further state", f"x^({step})")

        # (10)-(12): the leader's update.
        mass = mass_after(mass, mixings)
        leader = self._check_leader(at, mass, servers_down(down, last), now.barred)
        sent = self.layout.vector(before)[0 : self.layout.size]
        tau, rate = boost(trained.samples, trained.steps), self.consensus.learning_rate
        after = updated_model(sent, states[leader], float(mass[leader]), tau, rate)
        largest = trained.gradients[int(trained.samples.argmax())]
        return self._check_model(at, self.layout.model(after, largest.arrays)), trained

    # -- what the entries say ----------------------------------------------------------------------------

    def _outages(self, now: Round) -> list[Outage]:
        """What was down, by the round's REPORT."""
        if now.report is None:
            return []
        _, down = decoded(now.report, read_report)
        try:
            for outage in down:
                numbers = (outage.round, outage.step, *outage.servers)
                if outage.round != now.number or not all(type(number) is int for number in numbers):
                    raise ConfigError(f"`down` must be outages of round {now.number}, got {outage!r}")
            check_outages(down, adjacency(self.mixing))
        except (ConfigError, TypeError, IndexError) as error:
            rule = "a REPORT must speak of edge servers and links of this run, in its round"
            raise wrong(now.report, rule, "outages of this round", str(error)) from error
        return down

    def _partials(self, now: Round, trained: Trained) -> Vector:
        """A of (8), shape (m, p)."""
        try:
            return self._sums(trained, contribution_weights(trained.samples, trained.steps))
        except NotFiniteError as error:
            assert now.model is not None
            at = now.gradients[trained.senders[min(error.positions)]] if error.positions else now.model
            raise wrong(
                at, "gradients and their sums must be finite", "numbers", "NaN or infinity"
            ) from error

    def _sums(self, trained: Trained, weights: Floats) -> Vector:
        rows = [self.layout.vector(gradient.arrays) for gradient in trained.gradients]
        servers = self.consensus.edge_servers
        return whole(PartialAggregates(rows, weights, trained.server_of, servers), servers, self.layout.size)

    # -- what follows from them --------------------------------------------------------------------------

    def _check_step(
        self, now: Round, step: int, states: Vector, trained: Trained, down: list[Outage]
    ) -> None:
        """The recorded states of one step against those that follow, shape (m, p)."""
        up = set(range(self.consensus.edge_servers)) - servers_down(down, max(step - 1, 0))
        recorded = {server: at for (taken, server), at in now.states.items() if taken == step}
        differ: dict[int, bytes] = {}
        for server, at in recorded.items():
            if server not in up:
                rule = f"an edge server that is down must not record x^({step})"
                raise wrong(at, rule, "no state", "a state")
            arrays = self.layout.arrays(states[server])
            payload = consensus_payload(now.number, step, server, arrays, trained.at(server))
            if payload != at.entry.payload:
                differ[server] = payload
        if differ:
            rule = f"x^({step}) must be Λ x^({step - 1}), eq. (9)"
            server = next(iter(differ))
            if step == 0:
                rule = "x^(0) must be a_m of the gradients, eq. (8)"
                server = self._blamed({server: recorded[server] for server in differ}, trained)
            raise differs(recorded[server], rule, differ[server])
        for server in sorted(up - recorded.keys() - now.barred):
            assert now.model is not None
            raise LedgerError(
                f"an edge server that is up must record x^({step}), before the model",
                block=now.model.block,
                account=f"server {server}",
                expected="a state",
                found="none in this round",
            )

    def _blamed(self, differ: dict[int, Recorded], trained: Trained) -> int:
        """The edge server to name where a_m does not follow at several.

        All a_m have D in them, so that one server's wrong list of devices makes all of them differ. But what
        the other servers recorded is still Σ D_y/e_y g_y times a number, the same 1/D for all of them.
        """
        sums = self._sums(trained, trained.samples / trained.steps).astype(np.float64)
        factors: dict[int, float] = {}
        for server, at in differ.items():
            try:
                held = self.layout.vector(read_consensus(at.entry.payload)[0])[0 : self.layout.size]
                factors[server] = float(held @ sums[server] / (sums[server] @ sums[server]))
                off = np.abs(held - factors[server] * sums[server]).max() / np.abs(held).max()
            except (KeyError, ValueError, PayloadError):
                return server
            if not off < _SAME_DIRECTION:
                return server
        usual = np.median([*factors.values()])
        return max(factors, key=lambda server: abs(factors[server] - usual))

    def _check_leader(self, at: Recorded, mass: Floats, down: set[int], barred: frozenset[int]) -> int:
        """The leader; that so many servers after the drawn one were passed over, the contract has checked."""
        servers = range(self.consensus.edge_servers)
        leader, passed = at.entry.sender.index, at.entry.step
        fit = [server for server in servers if mass[server] > 0 and server not in down | barred]
        found = f"edge server {leader}, after {passed} passed over"
        for back in range(passed, 0, -1):
            if (server := (leader - back) % len(servers)) in fit:
                rule = "only edge servers in quarantine, down or without mass may be passed over"
                raise wrong(at, rule, f"edge server {server} leads", found)
        if leader not in fit:
            raise wrong(at, "the leader must be up and have mass", f"one of {fit} leads", found)
        return leader

    def _check_model(self, at: Recorded, model: NamedArrays) -> NamedArrays:
        payload = model_payload(at.entry.round, model)
        if payload != at.entry.payload:
            raise differs(at, "the model must follow from the leader's x^(φ), eqs. (10)-(12)", payload)
        return model


def adjacency(mixing: Mixing) -> NDArray[np.bool_]:
    """Which edge servers exchange states, by their weights, shape (m, m)."""
    linked: NDArray[np.bool_] = mixing != 0
    np.fill_diagonal(linked, False)
    return linked
