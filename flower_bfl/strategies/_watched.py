"""A round in which edge servers may lie and watch each other: anew without who is voted out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from flower_bfl.attacks import Falsification, Silence, Turn
from flower_bfl.chain_adapter.base import Entry, digest
from flower_bfl.chain_adapter.records import Evidence, NamedArrays
from flower_bfl.config import Outage
from flower_bfl.defences import Replay
from flower_bfl.strategies._attempt import Attempt
from flower_bfl.strategies._dispute import Agreed, Dispute, Gathered, Phase, Setting
from flower_bfl.strategies._journal import model_entry
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._outages import known_from, servers_down, set_aside
from flower_bfl.strategies._roster import called
from flower_bfl.strategies.aggregation import NotFiniteError, boost, terms_of_update
from flower_bfl.types import RoundReport, Terms


class Watched:
    """Edge servers that may be compromised, and a defence or none, over the rounds of a run."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._until: dict[int, int] = {}  # first round in which an edge server may act again
        self._now = Dispute(setting, 0, {})

    def restore(self, until: Mapping[int, int]) -> None:
        """Go on with a run in which edge servers are barred until some round."""
        self._until = dict(until)

    def open(self, server_round: int) -> None:
        """Begin a round, or begin it again."""
        self._now = Dispute(self._setting, server_round, dict(self._until))

    def away(self, server_round: int) -> set[int]:
        """Edge servers that are in quarantine when a round begins, or cut off by that."""
        return set_aside(self._setting.mixing, Dispute(self._setting, server_round, self._until).barred, ())

    def out(self, down: Sequence[Outage]) -> set[int]:
        """Edge servers that take no part any more in the open round."""
        return set_aside(self._setting.mixing, self._now.barred, known_from(down, self._now.broken_off))

    @property
    def phases(self) -> list[Phase]:
        """What goes to the ledger of the open round, in order."""
        return self._now.phases

    def agree(self, now: Gathered) -> Agreed | None:
        """The consensus (9) of those who are not voted out; None if nobody is left who trained."""
        self.open(now.round)
        most, servers = self._setting.consensus.most_steps, self._setting.consensus.edge_servers
        down, first_step = list(now.down), 0
        while True:
            barred, self._now.aside = self._now.barred, self.out(down)
            gone = self._now.aside | servers_down(down, 0)
            trained = now.counted.moved(gone, servers) if len(gone) < servers else None
            if trained is None or not trained.senders:
                return None
            try:
                attempt = Attempt(self._now, now, trained, down, first_step)
                for step in attempt.steps():
                    attempt.publish(step)
                    attempt.let_vote(step)
                    if self._now.barred != barred:
                        break
                else:
                    return attempt.agreed()
            except NotFiniteError as error:
                raise now.located(error, trained) from error
            self._now.broken_off = max(self._now.broken_off, step)
            down, first_step = known_from(down, step), first_step + most + 1

    def proposed(
        self, now: Gathered, agreed: Agreed, leader: int, passed: int, make: Callable[[], NamedArrays]
    ) -> list[Entry]:
        """The leader's MODEL entry, and votes on it that are not enough.

        Nothing: it proposes none, or was voted out for it, and the next one leads.
        """
        setting, layout, silent = self._setting, now.layout, False
        try:
            model = make()
        except NotFiniteError:
            if self._now.acted - self._now.barred:  # a lie that is still in it overflows, no gradient
                return []
            raise
        tau = boost(agreed.trained.samples, agreed.trained.steps)
        held, mass = agreed.states[leader], float(agreed.mass[leader])
        terms = terms_of_update(now.before, held, mass, tau, setting.consensus.learning_rate)
        for attack in setting.adversary.acting(now.round, leader, "model"):
            if isinstance(attack, Silence):
                self._now.acted.add(leader)
                silent = True
            elif isinstance(attack, Falsification):
                honest = layout.vector(model)[0 : layout.size]
                turn = Turn(now.round, honest, honest[None], model=now.before, terms=terms)
                model = layout.model(self._now.falsified(attack, turn, leader, "model"), model)
        published = [] if silent else [model_entry(now.round, leader, passed, model)]
        if setting.replay is None:
            return published
        began = perf_counter()
        evidence = Evidence("no model", passed)
        if not silent:
            expected = make()
            if _accepted(setting.replay, model, expected, layout, terms):
                self._now.seconds += perf_counter() - began
                return published
            wanted = model_entry(now.round, leader, passed, expected)
            evidence = Evidence("model", passed, digest(published[0].payload), digest(wanted.payload))
        self._now.seconds += perf_counter() - began
        down = servers_down(now.down, agreed.steps)
        votes = self._now.votes_on({leader: evidence}, set(range(setting.consensus.edge_servers)) - down)
        if not silent and leader not in self._now.barred:
            return [*published, *votes]
        self._now.record(published, len(published))
        self._now.record(votes, len(votes))
        return []

    def close(self, report: RoundReport) -> RoundReport:
        """End the round: the report with who was accused, and, where attackers are known, whether rightly."""
        now, adversary = self._now, self._setting.adversary
        self._until = {**now.until}
        report = replace(
            report,
            accused=now.accusations,
            quarantined=tuple(sorted(now.barred)),
            cut_off=tuple(sorted(now.aside - now.barred)),
            defend_seconds=report.defend_seconds + now.seconds,
        )
        if not adversary.attacks:
            return report
        suspected = {one.who for one in report.suspected}
        told = {f"edge server {one.server}" for one in now.accusations if one.voted_out} | suspected
        sent = {f"device {n}" for group in report.server_devices for n in group} | suspected
        sent |= {f"edge server {m}" for m, devices in enumerate(report.server_data) if devices}
        poisoners = adversary.poisoners | adversary.poisoned_data(report.round)
        guilty = {f"edge server {server}" for server in now.acted} | (sent & set(map(called, poisoners)))
        return replace(
            report,
            attacked=tuple(str(attack) for attack in adversary.attacks if attack.acts(report.round)),
            true_positives=len(told & guilty),
            false_positives=len(told - guilty),
            missed=len(guilty - told),
        )


def _accepted(
    replay: Replay, found: NamedArrays, expected: NamedArrays, layout: Layout, terms: Terms
) -> bool:
    """Whether a model is the expected one, as exactly as edge servers have to add up."""
    if any(not np.array_equal(found[name], expected[name]) for name in layout.copied):
        return False
    one, other = (layout.vector(model)[0 : layout.size] for model in (found, expected))
    return replay.accepts(one, other, terms)
