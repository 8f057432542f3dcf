"""A run followed entry by entry: what belongs to which round, and whether each model follows."""

from collections.abc import Callable

import numpy as np

from flower_bfl.audit._findings import decoded, differs, wrong
from flower_bfl.audit._round import Round, Vote
from flower_bfl.audit._training import TrainingRules, adjacency
from flower_bfl.audit._votes import Incident
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Kind, Sender
from flower_bfl.chain_adapter.records import NamedArrays, RunRules, model_payload, read_model, read_state
from flower_bfl.config import ContractRules
from flower_bfl.defences import Defence, Deviation, EdgeRule, Replay, from_description
from flower_bfl.errors import ConfigError, PayloadError
from flower_bfl.network import mixing_matrix
from flower_bfl.strategies._layout import Layout


class RunAudit:
    """Keeps one model and the entries of one round, whatever the length of the run.

    Parameters
    ----------
    contract : the contract's rules; those in the RULES entry must agree with them.
    domain : of the ledger, to which signatures in evidence are bound.
    """

    def __init__(self, contract: ContractRules, domain: Callable[[], tuple[int, bytes]]) -> None:
        self._contract = contract
        self._domain = domain
        self._round = Round()
        self._votes: dict[int, set[Sender]] = {}  # of the round, by accused edge server
        self._quarantined_until: dict[int, int] = {}
        self._quarantined_before: dict[int, int] = {}  # when the round began
        self._in_round = 0  # entries since then
        self._rules: TrainingRules | None = None  # once the initial model is there
        self._model: NamedArrays = {}
        self.run: RunRules | None = None
        self.incidents: list[Incident] = []
        self.recomputed = 0  # models
        self.not_aggregated = 0  # gradients
        self.not_trained_on = 0  # data sets
        self.restarts = 0  # of rounds that were broken off
        self.void = 0  # entries that do not count, for their round began again
        self.withdrawn = 0  # models whose leader was voted out before they were sealed

    def read(self, at: Recorded) -> None:
        """Take in the next entry; raises LedgerError for what does not follow."""
        kind = at.entry.kind
        if (self.run is None) != (kind is Kind.RULES):
            raise wrong(at, "a run must begin with its RULES, given once", "RULES first", kind.name)
        if kind is Kind.RULES:
            self.run = self._read_rules(at)
        elif kind is Kind.RESTART:
            self._restart()
        elif kind is Kind.VOTE:
            self._vote(at)
        elif kind is Kind.MODEL:
            self.withdrawn += self._round.model is not None
            self._round.models.append(at)
        elif kind is not Kind.SEAL and self.run is not None and self.run.consensus is not None:
            self._keep(at)
        self._in_round += kind is not Kind.RULES  # which stay
        if at.bfl_hash:
            self._close()

    def _restart(self) -> None:
        """Nothing that was recorded of the round counts, votes included."""
        self.restarts += 1
        self.void += self._in_round
        self.not_aggregated += len(self._round.gradients)
        self.not_trained_on += len(self._round.data)
        self._quarantined_until = dict(self._quarantined_before)
        self._open(self._round.number)

    def _read_rules(self, at: Recorded) -> RunRules:
        run = decoded(at, RunRules.decode)
        if (payload := run.encode()) != at.entry.payload:
            raise differs(at, "RULES must say what they have to and nothing else", payload)
        if run.consensus is None or run.mixing is None:
            return run
        try:
            _defences(run)
        except PayloadError as error:
            rule = "RULES must hold defences in their format"
            raise wrong(at, rule, "the format in docs/ledger.md", str(error)) from error
        wanted = (run.consensus.edge_servers, run.consensus.leader)
        found = (self._contract.edge_servers, self._contract.leader)
        if wanted != found:
            rule = "the contract must have the edge servers and the leader rule of RULES"
            raise wrong(at, rule, f"{wanted[0]}, {wanted[1]!r}", f"{found[0]}, {found[1]!r}")
        try:
            mixing_matrix(run.mixing, adjacency(run.mixing))
        except (ConfigError, np.linalg.LinAlgError) as error:
            rule = "RULES must hold a mixing matrix Λ"
            raise wrong(at, rule, "symmetric, connected, rows that sum to 1", str(error)) from error
        return run

    def _vote(self, at: Recorded) -> None:
        accused = at.entry.step
        voters = self._votes.setdefault(accused, set())
        voters.add(at.entry.sender)
        decides = 2 * len(voters) > self._contract.edge_servers - 1
        now = self._round
        step = -1 if now.models else now.last_step
        vote = Vote(at, step, len(now.models), decides and not self._barred(accused))
        now.ballots[at.entry.sender.index, accused] = vote
        if decides:
            self._quarantined_until[accused] = at.entry.round + self._contract.quarantine_rounds + 1

    def _barred(self, server: int) -> bool:
        return self._round.number < self._quarantined_until.get(server, 0)

    def _keep(self, at: Recorded) -> None:
        now, entry = self._round, at.entry
        if entry.kind is Kind.CONSENSUS:
            if now.number == 0:
                raise wrong(at, "round 0 must have no consensus", "the initial model only", "a state")
            if now.model is not None:
                raise wrong(at, "consensus must come before the model", "no state", "a state after it")
            now.states[entry.step, entry.sender.index] = at
            now.last_step = max(now.last_step, entry.step)
        elif entry.kind is Kind.REPORT:
            if now.report is not None:
                raise wrong(at, "a round must have one REPORT at most", "one", "another one")
            now.report = at
        elif entry.kind is Kind.STATE:
            if now.state is not None:
                raise wrong(at, "a round must have one STATE at most", "one", "another one")
            decoded(at, read_state)
            now.state = at
        elif entry.kind is Kind.DATA:
            self._keep_data(at)
        elif entry.step or now.model is not None:
            self.not_aggregated += 1  # nobody sums it up
        elif entry.sender in now.gradients:
            raise wrong(at, "a sender must have one GRADIENT a round at most", "one", "another one")
        else:
            now.gradients[entry.sender] = at

    def _keep_data(self, at: Recorded) -> None:
        data, device = self._round.data, at.entry.sender.index
        if self._round.model is not None:
            self.not_trained_on += 1  # nobody can have
        elif device in data:
            rule = "a device must send its data to one edge server a round"
            raise wrong(at, rule, f"server {data[device].entry.step} only", f"server {at.entry.step} too")
        else:
            data[device] = at

    def _close(self) -> None:
        """Check the round whose model is sealed, and begin the next."""
        now, run = self._round, self.run
        assert now.model is not None and run is not None
        if run.consensus is not None and run.mixing is not None:
            gradients = data_sets = 0  # that are in the model
            if self._rules is None:
                self._model = _initial(now.model)
                self._rules = TrainingRules(
                    run.consensus,
                    run.mixing,
                    Layout.of(self._model),
                    *_defences(run),
                    self._domain,
                )
            else:
                self._model, trained, incidents = self._rules.follow(now, self._model)
                gradients, data_sets = len(trained.senders), trained.data_sets
                self.recomputed += 1
                self.incidents += incidents
            self.not_aggregated += len(now.gradients) - gradients
            self.not_trained_on += len(now.data) - data_sets
        self._quarantined_before = dict(self._quarantined_until)
        self._open(now.number + 1)

    def _open(self, number: int) -> None:
        self._round, self._votes, self._in_round = Round(number), {}, 0
        self._round.barred = frozenset(filter(self._barred, self._quarantined_until))


def _defences(run: RunRules) -> tuple[list[Defence], EdgeRule | None]:
    """The run's defences and its rule at the edge; raises PayloadError."""
    defences: list[Defence] = []
    for text in run.defences:
        each = from_description(text)
        if not isinstance(each, Replay | Deviation):
            raise PayloadError(f"defences must be Replay or Deviation, got {text:.80}")
        defences.append(each)
    if len({type(each) for each in defences}) < len(defences):
        raise PayloadError(f"defences must be one of a kind at most, got {len(defences)}")
    rule = from_description(run.edge_rule) if run.edge_rule else None
    if rule is not None and not isinstance(rule, EdgeRule):
        raise PayloadError(f"edge-rule must be a rule for edge servers, got {run.edge_rule:.80}")
    return defences, rule


def _initial(at: Recorded) -> NamedArrays:
    model = decoded(at, read_model)
    if (payload := model_payload(0, model)) != at.entry.payload:
        raise differs(at, "the initial model must be one of round 0", payload)
    return model
