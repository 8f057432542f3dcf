"""What a run writes down: the ledger through its recorder, the run folder, a report of every round."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from logging import INFO, WARNING, getLogger
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Ledger, Role, Sender, digest, simulated_keys
from flower_bfl.chain_adapter.records import (
    Gradient,
    consensus_payload,
    model_digest,
    model_payload,
    state_payload,
)
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError
from flower_bfl.strategies._recorder import Phases, Recorder
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies._run_folder import RunFolder
from flower_bfl.strategies._standing import Standing, restart_entry
from flower_bfl.types import LeftOut, RoundReport

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]
OPERATOR = Sender(Role.OPERATOR)
logger = getLogger("flwr")  # Flower shows this logger's lines among its own, also in `flwr run --stream`


class Journal:
    """Records rounds while the devices go on training, and reports each once its blocks are there.

    Parameters
    ----------
    ledger : where entries go, or None.
    keys : private keys of all who sign here; None derives them from the seed, for simulations.
    seed : of the derived keys.
    run_folder : a folder for rounds.jsonl and model.safetensors, or None.
    resume : go on with the run that ledger and folder hold, if they hold one.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        keys: Keys | None,
        seed: int,
        run_folder: Path | str | None,
        *,
        resume: bool = False,
    ) -> None:
        if resume and ledger is None:
            raise ConfigError("`resume` needs a `ledger`, got none: a run goes on from its ledger")
        self.ledger = ledger
        self._resume = resume
        self.reports: list[RoundReport] = []
        self.keys = keys or simulated_keys(seed)
        self._simulated = keys is None
        self._recorder = Recorder(ledger)
        self._run_folder = None if run_folder is None else RunFolder(run_folder, resume=resume)
        self._draft: _Draft | None = None  # the round whose blocks or evaluation are still to come

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block on the ledger; empty without one."""
        return self._recorder.head

    def describe(self) -> str:
        """Name of the ledger, and whose keys sign."""
        if self.ledger is None:
            return "none"
        keys = "keys derived from the seed: a simulation" if self._simulated else "keys as given"
        return f"{type(self.ledger).__name__}, {keys}"

    def signature(self, sender: Sender, server_round: int, step: int, name: bytes) -> bytes:
        """An edge server's signature of a state."""
        from flower_bfl.chain_adapter.signing import sign  # late: it brings Ethereum's libraries

        assert self.ledger is not None
        key, domain = self.keys(sender), self.ledger.domain
        return sign(key, domain, Kind.CONSENSUS, server_round, step, name)

    def begin(self, rules: ContractRules, opening: Sequence[Entry]) -> Standing | None:
        """Open the ledger, and start recording what comes before the first round.

        Returns where the run stands if there is one to go on with, in which no round is under way then.
        """
        if not self._resume and any(self._recorder.head):
            raise ConfigError(
                "`ledger` must be empty, got one that holds a run: give every run one of its own, "
                "or set `resume` to go on with that one"
            )
        self._recorder.open(self.keys, rules)
        found = self._standing(opening[0].payload) if self._resume else None
        if found is not None and found.round >= 0:
            if found.open:
                found = self._begun_again(found, opening[0].payload)
            self._go_on(found)
            return found
        if self._run_folder is not None:
            self._run_folder.check_new()
        there = found is not None and bool(found.rules)
        self._recorder.submit([opening[1:] if there else opening])
        self._draft = _Draft(RoundReport(round=0))
        return None

    def _standing(self, wanted: bytes) -> Standing:
        """Where the ledger ends, checked as it is read; its RULES must be the wanted ones."""
        assert self.ledger is not None
        found = Standing.of(self.ledger.recent())
        if found.rules:
            found.check_rules(wanted)
        return found

    def _begun_again(self, found: Standing, wanted: bytes) -> Standing:
        """Where the run stands once nothing that was recorded of the open round counts."""
        again = restart_entry(found)
        logger.log(WARNING, "round %d was broken off: it begins again", again.round)
        self._recorder.submit([[again]])
        self._recorder.wait()
        return self._standing(wanted)  # for its votes do not count either

    def _go_on(self, found: Standing) -> None:
        """Bring the folder to where the last finished round ended."""
        if self._run_folder is not None:
            self.reports += self._run_folder.go_on(found.round)
            self._run_folder.save_model(found.model_payload)
        if len(self.reports) <= found.round:
            self._draft = _Draft(found.report(self.head))  # its evaluation is still to come

    def save_network(self, network: Mapping[str, object]) -> None:
        """Keep where edge servers and devices are, for who draws the run afterwards."""
        if self._run_folder is not None:
            self._run_folder.save_network(network)

    def write(self, report: RoundReport, payload: bytes, phases: Phases) -> None:
        """Start recording a round; its report and model.safetensors follow when the blocks are there."""
        warn(report.round, report.left_out)
        self._draft = _Draft(replace(report, model_digest=digest(payload).hex()), payload)
        self._recorder.submit(phases)

    def note(self, change: Callable[[RoundReport], RoundReport]) -> None:
        """Change the report of the round that is being recorded."""
        if self._draft is not None:
            self._draft = replace(self._draft, report=change(self._draft.report))

    def noting(self, evaluate: EvaluateFunction) -> EvaluateFunction:
        """The central evaluation, whose metrics become part of the round's report."""

        def noting(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate(server_round, arrays)
            if metrics is not None:
                self.note(partial(replace, evaluate=dict(metrics)))
            return metrics

        return noting

    def finish(self) -> None:
        """Wait until the last round's blocks are there, then report it; raises the ledger's error."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        cost = self._recorder.wait()
        report = replace(draft.report, ledger=cost, head=self.head.hex())
        self.reports.append(report)
        if self._run_folder is not None:
            if draft.payload:
                self._run_folder.save_model(draft.payload)
            self._run_folder.append(report)  # last: the model of a round that was reported is there
        logger.log(INFO, "%s", report.as_line())

    def close(self) -> None:
        """Finish, and end the recorder's thread."""
        try:
            self.finish()
        finally:
            self._recorder.close()
            if self._run_folder is not None:
                self._run_folder.close()


def warn(server_round: int, left_out: Iterable[LeftOut]) -> None:
    """Log whose replies did not enter the round."""
    for reply in left_out:
        logger.log(WARNING, "round %d: %s left out: %s", server_round, reply.who, reply.reason)


def gradient_entries(
    server_round: int, trained: Trained, sent: Mapping[str, NDArray[np.generic]], learning_rate: float = 1.0
) -> Iterator[Entry]:
    """Everyone's cumulative gradient against the model that it was sent, with D_y and e_y."""
    model = model_digest(server_round - 1, sent)
    for sender, reply in zip(trained.senders, trained.replies, strict=True):
        gradient = Gradient.between(
            sent, reply.arrays, reply.samples, reply.steps, learning_rate, reply.union
        )
        payload = gradient.encode(server_round, model)
        yield Entry(Kind.GRADIENT, server_round, sender, payload, signature=reply.signature)


def consensus_entries(
    server_round: int,
    step: int,
    states: Mapping[int, Mapping[str, NDArray[np.generic]]],
    trained: Trained | None = None,
) -> Iterator[Entry]:
    """x_m^(l) of some edge servers; with those who trained, of sums (8) of their gradients."""
    for server, state in states.items():
        members = None if trained is None else trained.at([server]).senders
        payload = consensus_payload(server_round, step, server, state, members)
        yield Entry(Kind.CONSENSUS, server_round, Sender(Role.SERVER, server), payload, step)


def state_entry(server_round: int, state: Mapping[str, NDArray[np.generic]]) -> Entry:
    """What the next round depends on beside the model."""
    return Entry(Kind.STATE, server_round, OPERATOR, state_payload(server_round, state))


def model_entry(
    server_round: int, leader: int, passed: int, model: Mapping[str, NDArray[np.generic]]
) -> Entry:
    """The new model, by the leader that it has once so many were passed over."""
    payload = model_payload(server_round, model)
    return Entry(Kind.MODEL, server_round, Sender(Role.SERVER, leader), payload, passed)


@dataclass(frozen=True, eq=False)
class _Draft:
    """A report in the making, and the model that goes with it."""

    report: RoundReport
    payload: bytes = b""
