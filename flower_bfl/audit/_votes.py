"""Votes against edge servers, and whether what they say is what the ledger shows."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from flower_bfl.audit._findings import account, decoded, wrong
from flower_bfl.audit._round import Round, Vote
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Kind, digest
from flower_bfl.chain_adapter.records import Evidence
from flower_bfl.chain_adapter.signing import signer


@dataclass(frozen=True)
class Incident:
    """An edge server that others accused, and what the ledger has to say about it."""

    round: int
    server: int
    account: str  # of the server, as far as it acted in the round
    offence: str  # see `flower_bfl.chain_adapter.records.Evidence`
    step: int
    votes: int
    voted_out: bool
    upheld: bool  # the evidence holds


@dataclass(frozen=True, eq=False)
class Found:
    """Something that does not follow; `at` is None for what is missing."""

    at: Recorded | None
    expected: bytes  # payload


class Votes:
    """A round's votes, judged in the order in which they were given.

    Parameters
    ----------
    now : the round.
    domain : of the ledger, for signatures.
    exact : whether evidence must name the only payload that follows.
    servers : number of edge servers M.

    Raises LedgerError for votes that bar somebody before there is anything to vote on.
    """

    def __init__(
        self, now: Round, domain: Callable[[], tuple[int, bytes]], *, exact: bool, servers: int
    ) -> None:
        self._servers = servers
        self._fit: frozenset[int] | None = None  # edge servers that can lead, once a consensus is over
        self._now = now
        self._domain = domain
        self._exact = exact
        self._upheld: dict[Vote, bool] = {}
        self.barred: set[int] = set()  # voted out so far in this round
        _check_none_decides(now.votes_at())  # before any state there is nothing to vote on

    def judged(self, step: int, found: Mapping[int, Found], fit: frozenset[int] | None) -> bool:
        """Judge the votes after the states of a step; True if the consensus is over. Raises LedgerError.

        `found` is what does not follow in the step, by edge server, `fit`, after the last one, who can lead.
        Who is voted out for no model leaves the others' consensus as it is.
        """
        self._fit = fit
        decided = self._judge(self._now.votes_at(step=step), "state", step, found)
        return any(_evidence(vote).offence != "no model" for vote in decided)

    def judged_model(self, models: int, found: Mapping[int, Found]) -> bool:
        """Judge the votes after so many models; True if they bar the last one's leader."""
        at = self._now.models[models - 1]
        self._judge(self._now.votes_at(models=models), "model", at.entry.step, found)
        return at.entry.sender.index in self.barred

    def incidents(self) -> list[Incident]:
        """Everybody who was accused, once all votes that bar somebody are judged."""
        _check_none_decides(vote for vote in self._now.votes if vote not in self._upheld)
        groups: dict[tuple[int, Evidence], list[Vote]] = {}
        for vote in self._now.votes:
            groups.setdefault((vote.accused, _evidence(vote)), []).append(vote)
        acted = {at.entry.sender.index: account(at) for at in self._now.states.values()}
        return [
            Incident(
                round=self._now.number,
                server=server,
                account=acted.get(server, f"server {server}"),
                offence=evidence.offence,
                step=evidence.step,
                votes=len(votes),
                voted_out=server in self.barred,
                upheld=all(self._upheld.get(vote, False) for vote in votes),
            )
            for (server, evidence), votes in groups.items()
        ]

    def _judge(self, votes: Collection[Vote], kind: str, step: int, found: Mapping[int, Found]) -> list[Vote]:
        decided = [vote for vote in votes if vote.decides]
        for vote in votes:
            holds = self._holds(vote, kind, step, found)
            self._upheld[vote] = holds
            if vote.decides and not holds:
                rule = "an edge server must be voted out for what the ledger shows"
                told = f"{_evidence(vote).offence} of server {vote.accused}, step {_evidence(vote).step}"
                raise wrong(vote.at, rule, "evidence that holds", f"{told}: it does not")
        self.barred |= {vote.accused for vote in decided}
        return decided

    def _holds(self, vote: Vote, kind: str, step: int, found: Mapping[int, Found]) -> bool:
        evidence, accused = _evidence(vote), vote.accused
        if vote.at.entry.payload != evidence.encode(self._now.number, accused):
            return False
        if evidence.offence == "accusation":
            return self._is_false(accused, evidence)
        if evidence.offence == "no model":
            return self._owed_a_model(vote, evidence.step)
        if evidence.step != step:
            return False
        if evidence.offence == "equivocation":
            return kind == "state" and self._equivocated(accused, evidence)
        if (wrong_one := found.get(accused)) is None:
            return False
        if wrong_one.at is None:
            return evidence.offence == "silence"
        names = evidence.found == wrong_one.at.digest
        exactly = not self._exact or evidence.expected == digest(wrong_one.expected)
        return evidence.offence == kind and names and exactly

    def _owed_a_model(self, vote: Vote, passed: int) -> bool:
        """Whether the accused was to lead once so many were passed over, and a later one did, or nobody."""
        if self._fit is None or vote.models == len(self._now.models):
            return False
        after = self._now.models[vote.models].entry
        before = self._now.models[vote.models - 1].entry.step if vote.models else -1
        due = (after.sender.index - after.step + passed) % self._servers
        was_passed = passed < after.step or after.sender.index not in self._fit
        return before < passed and was_passed and due == vote.accused and due in self._fit

    def _is_false(self, accuser: int, evidence: Evidence) -> bool:
        """Whether an accuser's own vote does not hold."""
        vote = self._now.vote_of(accuser, evidence.step)
        return vote is not None and vote.at.digest == evidence.found and self._upheld.get(vote) is False

    def _equivocated(self, accused: int, evidence: Evidence) -> bool:
        """Whether the accused recorded one state, and signed another one of the same step."""
        at = self._now.states.get((evidence.step, accused))
        if at is None or evidence.found == at.digest or evidence.expected != at.digest:
            return False
        signed = (Kind.CONSENSUS, self._now.number, evidence.step, evidence.found)
        try:
            return signer(evidence.signature, self._domain(), *signed) == at.account
        except Exception:  # whatever a stranger's bytes make of a library: they are no signature
            return False


def _check_none_decides(votes: Iterable[Vote]) -> None:
    """Raise LedgerError for a vote that bars somebody, and that there was nothing to vote on for."""
    for vote in votes:
        if vote.decides:
            rule = "edge servers must vote on what others have just published"
            raise wrong(vote.at, rule, "a vote after a state or a model", "one that nothing comes before")


def _evidence(vote: Vote) -> Evidence:
    return decoded(vote.at, Evidence.decode)
