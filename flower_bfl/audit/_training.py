"""A round's model worked out again from what was signed: equations (8) to (12).

Whatever is recorded beyond gradients must be, byte for byte, what follows from them. So each payload is made
anew and compared; digests are computed only to name a difference.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count

import numpy as np
from numpy.typing import NDArray

from flower_bfl.audit._findings import decoded, differs, wrong
from flower_bfl.audit._round import Round, Trained, read_gradient, read_trained
from flower_bfl.audit._rounding import Rounding
from flower_bfl.audit._votes import Found, Incident, Votes
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.records import (
    NamedArrays,
    consensus_payload,
    model_digest,
    model_payload,
    read_consensus,
    read_report,
)
from flower_bfl.config import Consensus, Outage, check_outages
from flower_bfl.defences import Defence, Deviation, EdgeRule, Replay
from flower_bfl.errors import ConfigError, LedgerError, PayloadError
from flower_bfl.network import Mixing
from flower_bfl.strategies._enough_steps import planned
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._outages import (
    known_from,
    mixing_of_the_rest,
    mixings_without,
    servers_down,
    set_aside,
)
from flower_bfl.strategies.aggregation import (
    Known,
    NotFiniteError,
    PartialAggregates,
    boost,
    normalised,
    partial_aggregates,
    terms_of_sum,
    terms_of_update,
    updated_model,
    whole,
)
from flower_bfl.strategies.consensus import Mixed, initial_mass, mass_after, terms_of_mix
from flower_bfl.types import Floats, Terms, Vector

_SAME_DIRECTION = 1e-4  # relative; float32's rounding is far below it

_NOBODY = Trained([], [], np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class _Agreed:
    """What a round's last consensus comes to."""

    trained: Trained
    steps: int  # φ_k
    states: Vector  # x^(φ), shape (m, p)
    mass: Floats  # after the last step, shape (m,)
    fit: frozenset[int]  # edge servers that can lead


@dataclass(frozen=True, eq=False)
class TrainingRules:
    """How a round's entries follow from each other."""

    consensus: Consensus
    mixing: Mixing  # Λ
    layout: Layout
    defences: Sequence[Defence]
    edge_rule: EdgeRule | None
    domain: Callable[[], tuple[int, bytes]]  # of the ledger, for signatures in evidence

    def follow(self, now: Round, before: NamedArrays) -> tuple[NamedArrays, Trained, list[Incident]]:
        """The model after a round, whose gradients are in it, who was accused; raises LedgerError.

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
    def _follow(
        self, now: Round, before: NamedArrays, down: list[Outage]
    ) -> tuple[NamedArrays, Trained, list[Incident]]:
        assert now.model is not None, "a round is checked once its model is sealed"
        exact = self._rounding.replay.arithmetic == "exact"
        votes = Votes(now, self.domain, exact=exact, servers=self.consensus.edge_servers)

        # (8) and (9), each time anew without those who were voted out.
        first, steps, barred = 0, self.consensus.most_steps + 1, set(now.barred)
        while isinstance(agreed := self._agree(now, before, votes, barred, down, first), int):
            for (step, _), state in now.states.items():
                if first + agreed < step < first + steps:
                    rule = "a consensus must end when an edge server is voted out"
                    raise wrong(state, rule, "no further state", f"x^({step})")
            down, first = known_from(down, agreed), first + steps
            barred |= votes.barred
        for (step, _), state in now.states.items():
            if agreed is not None and step > first + agreed.steps:
                rule = f"consensus must take {agreed.steps} steps"
                raise wrong(state, rule, "no further state", f"x^({step})")

        # (10)-(12): the leader's update; one that was voted out for its own made way for the next.
        last, unchanged = self.consensus.most_steps, model_payload(now.number, before)
        for place, at in enumerate(now.models):
            out = barred | votes.barred
            if agreed is None or not agreed.fit - out:  # nobody can lead who has anything to say
                agreed = None
                gone = servers_down(down, last) | set_aside(self.mixing, out, down)
                self._check_leader(at, set(range(self.consensus.edge_servers)) - gone)
                model, payload = before, unchanged
            else:
                self._check_leader(at, agreed.fit - out)
                model, terms = self._updated(at.entry.sender.index, before, agreed)
                payload = model_payload(now.number, model)
                if payload != at.entry.payload:
                    right = self._rounding.accepted(at.entry.payload, payload, terms)
                    model, payload = (model, payload) if right is None else (right, at.entry.payload)
            follows = payload == at.entry.payload
            found = {} if follows else {at.entry.sender.index: Found(at, payload)}
            if not votes.judged_model(place + 1, found) and not follows:
                rule = "the model must follow from the leader's x^(φ), eqs. (10)-(12)"
                raise differs(at, rule, payload)
        return model, _NOBODY if agreed is None else agreed.trained, votes.incidents()

    def _agree(
        self,
        now: Round,
        before: NamedArrays,
        votes: Votes,
        barred: Collection[int],
        down: list[Outage],
        first: int,
    ) -> _Agreed | int | None:
        """One consensus from step `first` on; the step in which somebody was voted out, if that ended it.

        None: nobody trained.
        """
        aside = set_aside(self.mixing, barred, down)
        down = [*down, *(Outage(now.number, server=server) for server in sorted(aside))]
        trained = read_trained(now, model_digest(now.number - 1, before), self.layout, first)
        self._check_states(now, trained, first)
        if not trained.senders:
            return None
        if self.defences:
            trained = self._counted(now, before, trained, first, servers_down(down, 0))

        mass = initial_mass(self.consensus, trained.samples, trained.server_of, servers_down(down, 0))
        mixings: Sequence[Mixing]
        mixings = mixings_without(down, mixing_of_the_rest(self.mixing, aside), self.consensus.most_steps)
        states = self._partials(now, trained)
        fit: frozenset[int] | None = None  # until the last step
        before_it: Vector | None = None
        for step in count():
            terms = partial(self._terms, trained, before_it, mixings[step - 1] if step else None)
            found = self._wrong_states(now, first, step, states, trained, down, terms)
            if step == 0:  # of what is recorded, which may be in the run's arithmetic
                rounds, size = self.consensus.p2p_rounds, self.layout.size
                mixings = planned(rounds, Known(states), size, mass, mixings, down).mixings
            if step == (last := len(mixings)):
                mass, gone = mass_after(mass, mixings), servers_down(down, last)
                fit = frozenset(m for m in range(len(mass)) if mass[m] > 0 and m not in gone)
            if votes.judged(first + step, found, fit):
                return step
            self._raise(now, first + step, found, trained, step)
            if fit is not None:
                return _Agreed(trained, step, states, mass, fit)
            before_it = states
            states = whole(Mixed(mixings[step], states), len(states), self.layout.size)
        raise AssertionError("a consensus ends")

    def _check_states(self, now: Round, trained: Trained, first: int) -> None:
        """Where there are gradients there must be states, and the other way round."""
        if self.defences and now.gradients and not now.states:
            rule = "recorded gradients must be summed up"
            raise wrong(next(iter(now.gradients.values())), rule, "x^(0) of edge servers", "no state")
        for (step, _), state in now.states.items():
            if step >= first and not trained.senders:
                raise wrong(state, "a round without gradients must have no consensus", "no state", "one")

    @cached_property
    def _rounding(self) -> Rounding:
        """How exactly what is recorded must follow."""
        replay = next((each for each in self.defences if isinstance(each, Replay)), Replay())
        return Rounding(replay, self.layout)

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
        rows = [self.layout.vector(gradient.arrays) for gradient in trained.gradients]
        servers, size = self.consensus.edge_servers, self.layout.size
        try:
            sums = partial_aggregates(
                rows, trained.samples, trained.steps, trained.server_of, servers, self.edge_rule, size
            )
            return whole(sums, servers, size)
        except NotFiniteError as error:
            assert now.model is not None
            at = now.gradients[trained.senders[min(error.positions)]] if error.positions else now.model
            raise _not_finite(at) from error

    def _counted(
        self, now: Round, before: NamedArrays, trained: Trained, first: int, down: Collection[int]
    ) -> Trained:
        """Every recorded gradient must be summed up, but for those that the run's Deviation suspects.

        What nobody sums up is that of an edge server which says nothing, if there is one: D counts it.
        """
        senders = sorted(now.gradients)
        suspects: set[int] = set()
        for deviation in (each for each in self.defences if isinstance(each, Deviation)):
            model = model_digest(now.number - 1, before)
            gradients = [read_gradient(now.gradients[y], now.number, model, self.layout) for y in senders]
            rows = [self.layout.vector(gradient.arrays) for gradient in gradients]
            taken = np.array([gradient.steps for gradient in gradients], dtype=np.int64)
            try:
                suspects |= set(deviation.suspects(normalised(rows, taken, self.layout.size)))
            except NotFiniteError as error:
                raise _not_finite(now.gradients[senders[min(error.positions)]]) from error
        silent = [
            m for m in range(self.consensus.edge_servers) if (first, m) not in now.states and m not in down
        ]
        missing: list[Sender] = []
        for y, sender in enumerate(senders):
            lost = y in suspects or (sender.role is Role.SERVER and sender.index in down)
            if lost != (sender in trained.senders):
                continue
            if silent and not lost:
                missing.append(sender)
                continue
            rule, told = "gradients must be summed up, but for those that deviate", ("not in a sum", "in one")
            raise wrong(now.gradients[sender], rule, *(told if lost else told[::-1]))
        return trained.joined(now, missing, silent[0]) if missing else trained

    def _sums(self, trained: Trained, weights: Floats) -> Vector:
        rows = [self.layout.vector(gradient.arrays) for gradient in trained.gradients]
        servers = self.consensus.edge_servers
        return whole(PartialAggregates(rows, weights, trained.server_of, servers), servers, self.layout.size)

    # -- what follows from them --------------------------------------------------------------------------

    def _wrong_states(
        self, now: Round, first: int, step: int, states: Vector, trained: Trained, down: list[Outage],
        terms: Callable[[int], Terms],
    ) -> dict[int, Found]:  # fmt: skip
        """What does not follow in a step, by edge server; `states`, (m, p), become the recorded ones."""
        up = set(range(self.consensus.edge_servers)) - servers_down(down, max(step - 1, 0))
        recorded = {server: at for (taken, server), at in now.states.items() if taken == first + step}
        found = {server: Found(None, b"") for server in sorted(up - recorded.keys())}
        for server, at in recorded.items():
            if server not in up:
                rule = f"an edge server that is down must not record x^({step})"
                raise wrong(at, rule, "no state", "a state")
            members = trained.at(server) if step == 0 else None
            arrays = self.layout.arrays(states[server])
            payload = consensus_payload(now.number, first + step, server, arrays, members)
            if payload == at.entry.payload:
                continue
            right = self._rounding.accepted(at.entry.payload, payload, partial(terms, server))
            if right is None:
                found[server] = Found(at, payload)
            else:
                states[server] = self.layout.vector(right)[0 : self.layout.size]
        return found

    def _terms(self, trained: Trained, before: Vector | None, mixing: Mixing | None, server: int) -> Terms:
        """What an edge server's state is the sum of; nothing if it is no sum."""
        if before is not None and mixing is not None:
            return terms_of_mix(mixing, before, server)
        if self.edge_rule is not None:
            return ()
        rows = [self.layout.vector(gradient.arrays) for gradient in trained.gradients]
        return terms_of_sum(rows, trained.samples, trained.steps, trained.server_of, server)

    def _raise(
        self, now: Round, ledger_step: int, found: Mapping[int, Found], trained: Trained, step: int
    ) -> None:
        """Raise LedgerError for what does not follow, and was not voted on."""
        differ = {server: each for server, each in found.items() if each.at is not None}
        if differ and (step > 0 or len(differ) == len(found)):  # who says nothing makes all sums (8) differ
            server, rule = next(iter(differ)), f"x^({step}) must be Λ x^({step - 1}), eq. (9)"
            if step == 0:
                rule = "x^(0) must be a_m of the gradients, eq. (8)"
                server = self._blamed({m: each.at for m, each in differ.items() if each.at}, trained)
            at = differ[server].at
            assert at is not None
            raise differs(at, rule, differ[server].expected)
        for server in found.keys() - differ.keys():
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

    def _updated(
        self, leader: int, before: NamedArrays, agreed: _Agreed
    ) -> tuple[NamedArrays, Callable[[], Terms]]:
        """The model that follows from what a leader holds, and what it is the sum of."""
        trained = agreed.trained
        sent = self.layout.vector(before)[0 : self.layout.size]
        tau, rate = boost(trained.samples, trained.steps), self.consensus.learning_rate
        update = (sent, agreed.states[leader], float(agreed.mass[leader]), tau, rate)
        largest = trained.gradients[int(trained.samples.argmax())]
        return self.layout.model(updated_model(*update), largest.arrays), partial(terms_of_update, *update)

    def _check_leader(self, at: Recorded, fit: Collection[int]) -> None:
        """The leader; that so many servers after the drawn one were passed over, the contract has checked."""
        leader, passed, servers = at.entry.sender.index, at.entry.step, self.consensus.edge_servers
        found = f"edge server {leader}, after {passed} passed over"
        for back in range(passed, 0, -1):
            if (server := (leader - back) % servers) in fit:
                rule = "only edge servers in quarantine, down or without mass may be passed over"
                raise wrong(at, rule, f"edge server {server} leads", found)
        if leader not in fit:
            raise wrong(at, "the leader must be up and have mass", f"one of {sorted(fit)} leads", found)


def _not_finite(at: Recorded) -> LedgerError:
    return wrong(at, "gradients and their sums must be finite", "numbers", "NaN or infinity")


def adjacency(mixing: Mixing) -> NDArray[np.bool_]:
    """Which edge servers exchange states, by their weights, shape (m, m)."""
    linked: NDArray[np.bool_] = mixing != 0
    np.fill_diagonal(linked, False)
    return linked
