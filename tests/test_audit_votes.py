"""Votes that an operator who writes everything made up: the audit names the one that does not hold."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from false_entries import (
    Place,
    also,
    assert_names,
    changing,
    gone,
    mutations,
    nudged,
    with_arrays,
    with_metadata,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_run import Change, Toy, device, server

from flower_bfl.attacks import Attack, Equivocation, GaussianNoise
from flower_bfl.audit import AuditReport, audit
from flower_bfl.chain_adapter import Entry, Kind, digest
from flower_bfl.chain_adapter.records import Evidence
from flower_bfl.chain_adapter.signing import sign
from flower_bfl.config import ContractRules

sys.path.insert(0, str(Path(__file__).parent / "strategies"))  # for `attacked`

LAST, ACCUSED = 1, 2  # the toy's only round; its edge servers are 0-1-2, of which two are enough to bar one
EVERYBODY = (0, 1)
DECIDING: Place = (Kind.VOTE, LAST, server(1), ACCUSED)
UNFOUNDED = "voted out for what the ledger shows"


def votes(evidence: Evidence, voters: Sequence[int] = EVERYBODY, accused: int = ACCUSED) -> list[Entry]:
    payload = evidence.encode(LAST, accused)
    return [Entry(Kind.VOTE, LAST, server(voter), payload, accused) for voter in voters]


def voting(
    after: Place, evidence: Callable[[Entry], Evidence], *, first: Change | None = None, **how
) -> Change:
    """Record votes behind an entry, which `first` may falsify; then nothing more by who was voted out."""
    done: list[Entry] = []

    def change(entry: Entry) -> Entry | list[Entry]:
        if done and entry.sender == server(how.get("accused", ACCUSED)):
            return []
        if (entry.kind, entry.round, entry.sender, entry.step) != after:
            return entry
        recorded = entry if first is None else first(entry)
        assert isinstance(recorded, Entry)
        done.append(recorded)
        return [recorded, *votes(evidence(recorded), **how)]

    return change


def state(step: int, whose: int = ACCUSED) -> Place:
    return (Kind.CONSENSUS, LAST, server(whose), step)


def told(offence: str, step: int = 0, found: bool = True, **others: bytes) -> Callable[[Entry], Evidence]:
    """Evidence whose digests are those of the entry and of something else, unless it says otherwise."""

    def evidence(entry: Entry) -> Evidence:
        given = {"found": digest(entry.payload), "expected": bytes(32)} if found else {}
        return Evidence(offence, step, **given | others)

    return evidence


def recorded(tmp_path: Path, change: Change) -> AuditReport:
    Toy(rounds=1, leader=0, difficulty_bits=1, change=change).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None or "can be checked" not in report.finding.rule
    return report


# -- voted out for nothing -----------------------------------------------------------------------------------

NOTHING_WRONG = {
    "a right state": (state(1), told("state", 1)),
    "a right sum": (state(0), told("state", 0)),
    "a right last state": (state(2), told("state", 2)),
    "another step's state": (state(1), told("state", 0)),
    "a step that is to come": (state(1), told("state", 2)),
    "a digest that nothing has": (state(1), told("state", 1, found=bytes(31) + b"1")),
    "no digests at all": (state(1), told("state", 1, found=False)),
    "silence of who spoke": (state(1), told("silence", 1, found=False)),
    "a model of who made none": (state(2), told("model", 0)),
    "a model in place of a state": (state(1), told("model", 1)),
    "an accusation that was never made": (state(1), told("accusation", 0, expected=b"")),
    "equivocation without a signature": (state(1), told("equivocation", 1)),
    "equivocation with junk": (state(1), told("equivocation", 1, signature=b"junk" * 16 + b"\x1b")),
    "equivocation with too much": (state(1), told("equivocation", 1, signature=bytes(500))),
}


@pytest.mark.parametrize("name", NOTHING_WRONG)
def test_who_is_voted_out_for_nothing_is_not_to_blame(name, tmp_path):
    after, evidence = NOTHING_WRONG[name]
    report = recorded(tmp_path, voting(after, evidence))
    assert_names(report, tmp_path, DECIDING, UNFOUNDED)
    assert f"server {ACCUSED}" in report.finding.found


@pytest.mark.parametrize("step", [0, 1, 2])
def test_no_model_is_no_offence_of_who_is_not_to_lead(step, tmp_path):
    report = recorded(tmp_path, voting(state(step), told("no model", 0, found=False)))
    assert_names(report, tmp_path, DECIDING, UNFOUNDED)


# -- voted out for something, but not for this ---------------------------------------------------------------


@cache
def broken_off() -> tuple[ContractRules, list[Entry]]:
    """Five edge servers, φ = 2: server 1's x^(1) is voted down, steps 3 to 5 are the new ones."""
    return voted_down(GaussianNoise(server=1, rounds={LAST}, p2p_step=1))


@cache
def equivocated() -> tuple[ContractRules, list[Entry]]:
    """The same for what server 1 sent to some."""
    return voted_down(Equivocation(server=1, rounds={LAST}, p2p_step=1))


def voted_down(attack: Attack) -> tuple[ContractRules, list[Entry]]:
    from attacked import attacked  # once pytest knows where it is

    run = attacked([attack], rounds=LAST, leader=0)
    assert run.audit().finding is None
    return run.rules, run.entries


def paper_audit(rules: ContractRules, entries: Sequence[Entry]) -> AuditReport:
    from attacked import OnPaper

    report = audit(OnPaper(rules, entries))
    assert report.finding is None or "can be checked" not in report.finding.rule
    return report


def changed(entries: Sequence[Entry], place: Place, new: Change) -> tuple[list[Entry], int]:
    """The entries, and where the new ones begin."""
    change, result, at = changing(*place, new), [], -1
    for entry in entries:
        some = change(entry)
        at = len(result) if some is not entry else at
        result += some if isinstance(some, list) else [some]
    assert at >= 0
    return result, at


BESIDE_THE_POINT: dict[str, Callable[[Evidence], Evidence]] = {
    "another step": lambda e: replace(e, step=0),
    "a step of no run": lambda e: replace(e, step=10**30),
    "a negative step": lambda e: replace(e, step=-1),
    "another digest found": lambda e: replace(e, found=e.expected),
    "nothing found": lambda e: replace(e, found=b""),
    "another digest expected": lambda e: replace(e, expected=bytes(32)),
    "nothing expected": lambda e: replace(e, expected=b""),
    "a signature too many": lambda e: replace(e, offence="silence", signature=bytes(65)),
    "silence": lambda e: Evidence("silence", 1),
    "a model": lambda e: replace(e, offence="model"),
    "equivocation": lambda e: replace(e, offence="equivocation"),
    "an accusation": lambda e: replace(e, offence="accusation", step=0),
}


def voted_otherwise(run: tuple[ContractRules, list[Entry]], change: Callable[[Entry], Entry]) -> None:
    """All vote like this, and the third of four others decides."""
    rules, entries = run
    false = [change(entry) if entry.kind is Kind.VOTE else entry for entry in entries]
    assert false != entries
    finding = paper_audit(rules, false).finding
    assert finding is not None and UNFOUNDED in finding.rule
    deciding = [y for y, entry in enumerate(false) if entry.kind is Kind.VOTE][2]
    assert finding.block == deciding
    assert finding.account.startswith(f"{false[deciding].sender} (0x")


@pytest.mark.parametrize("name", BESIDE_THE_POINT)
def test_evidence_beside_the_point_does_not_hold(name):
    def change(vote: Entry) -> Entry:
        evidence = BESIDE_THE_POINT[name](Evidence.decode(vote.payload))
        return replace(vote, payload=evidence.encode(LAST, 1))

    voted_otherwise(broken_off(), change)


@pytest.mark.parametrize(
    "said", [{"round": "2"}, {"server": "0"}, {"step": "01"}, {"step": "+1"}, {"more": "x"}]
)
def test_evidence_in_other_words_does_not_hold(said):
    voted_otherwise(broken_off(), with_metadata(**said))
    voted_otherwise(broken_off(), lambda vote: with_arrays(vote, lambda _: {"x": np.zeros(1)}))


@pytest.mark.parametrize(
    "other",
    [{"who": 2}, {"kind": Kind.GRADIENT}, {"k": LAST + 1}, {"step": 0}, {"domain": (1, bytes(20))},
     {"signed": bytes(32)}, {"found": bytes(32)}, {"expected": bytes(32)}, {"cut": 64}, {"cut": 0}],
)  # fmt: skip
def test_an_equivocation_needs_the_signature_of_who_is_accused(other):
    """Of the other state, as the entry of its place, on this chain; and the first one must be on record."""
    from attacked import KEYS as THEIRS

    def change(vote: Entry, **other) -> Entry:
        evidence = Evidence.decode(vote.payload)
        key, domain = THEIRS(server(other.pop("who", 1))), other.pop("domain", (0, bytes(20)))
        where = (other.pop("kind", Kind.CONSENSUS), other.pop("k", LAST), other.pop("step", 1))
        signature = sign(key, domain, *where, other.pop("signed", evidence.found))
        told = replace(evidence, signature=signature[: other.pop("cut", 65)], **other)
        return replace(vote, payload=told.encode(LAST, 1))

    (vote, *_) = [entry for entry in equivocated()[1] if entry.kind is Kind.VOTE]
    assert change(vote) == vote  # this one holds
    voted_otherwise(equivocated(), lambda vote: change(vote, **other))


def against_a_wrong_state(change: Callable[[Evidence], Evidence], **how) -> Change:
    before: list[Evidence] = []

    def first(entry: Entry) -> Entry:
        before.append(change(right(entry)))
        return nudged(entry)

    return voting(state(1), lambda _: before[0], first=first, **how)


def right(entry: Entry) -> Evidence:
    """What holds against a nudged state of step 1."""
    wrong = nudged(entry)
    return Evidence("state", 1, digest(wrong.payload), digest(entry.payload))


def test_evidence_that_holds_lets_the_audit_go_on(tmp_path):
    """The toy does not begin anew, so that the next thing is what is missing then: not the votes."""
    report = recorded(tmp_path, against_a_wrong_state(lambda e: e))
    assert report.finding is not None and UNFOUNDED not in report.finding.rule
    assert report.finding.account != f"server {ACCUSED}"


@pytest.mark.parametrize("how", ["nobody votes", "one votes", "one votes for nothing"])
def test_a_wrong_state_that_was_not_voted_out_is_found_as_ever(how, tmp_path):
    if how == "nobody votes":
        change = changing(*state(1), nudged)
    elif how == "one votes":
        change = against_a_wrong_state(lambda e: e, voters=(1,))
        change = _still_there(change)
    else:
        change = _still_there(against_a_wrong_state(lambda e: Evidence("silence", 0), voters=(1,)))
    report = recorded(tmp_path, change)
    assert_names(report, tmp_path, state(1), "eq. (9)")


def _still_there(change: Change) -> Change:
    """One vote bars nobody: what the accused records later stays."""
    return lambda entry: change(entry) or entry


@pytest.mark.parametrize("offence", ["state", "silence", "no model", "equivocation", "accusation", "model"])
def test_one_false_vote_bars_nobody_and_is_told(offence, tmp_path):
    evidence = told(offence, 1 if offence == "state" else 7)
    change = _still_there(voting(state(1), evidence, voters=(0,)))
    report = recorded(tmp_path, change)
    assert report.finding is None
    (incident,) = report.incidents
    assert (incident.round, incident.server, incident.offence) == (LAST, ACCUSED, offence)
    assert (incident.votes, incident.voted_out) == (1, False)
    assert not incident.upheld or offence == "no model"  # see the test of it


# -- where votes have no place -------------------------------------------------------------------------------


def test_votes_before_any_state_are_about_nothing(tmp_path):
    change = voting((Kind.GRADIENT, LAST, device(4), 0), told("silence", 0, found=False))
    report = recorded(tmp_path, change)
    assert_names(report, tmp_path, DECIDING, "vote")


def test_votes_before_any_state_are_not_upheld(tmp_path):
    change = voting((Kind.GRADIENT, LAST, device(4), 0), told("silence", 0, found=False))
    report = recorded(tmp_path, change)
    assert report.finding is not None


def model(whose: int = 0, passed: int = 0) -> Place:
    return (Kind.MODEL, LAST, server(whose), passed)


def withdrawing(evidence: Callable[[Entry], Evidence], first: Change = lambda entry: entry) -> Change:
    """The leader's model, votes against it, and the next one's."""

    def change(entry: Entry) -> Entry | list[Entry]:
        if (entry.kind, entry.round, entry.sender, entry.step) != model():
            return entry
        proposed = first(entry)
        assert isinstance(proposed, Entry)
        return [
            proposed,
            *votes(evidence(proposed), (1, 2), accused=0),
            replace(entry, sender=server(1), step=1),
        ]

    return change


@pytest.mark.parametrize("offence", ["model", "no model", "state", "silence", "accusation", "equivocation"])
def test_a_right_model_must_not_be_withdrawn(offence, tmp_path):
    report = recorded(tmp_path, withdrawing(told(offence, 0)))
    assert_names(report, tmp_path, (Kind.VOTE, LAST, server(2), 0), UNFOUNDED)


def test_a_wrong_model_must_not_be_withdrawn_for_something_else(tmp_path):
    report = recorded(tmp_path, withdrawing(told("model", 0), nudged))  # expected: zeros
    assert_names(report, tmp_path, (Kind.VOTE, LAST, server(2), 0), UNFOUNDED)


def test_a_wrong_model_may_be_withdrawn_and_the_next_one_must_follow(tmp_path):
    before: list[bytes] = []

    def first(entry: Entry) -> Entry:
        before.append(digest(entry.payload))
        return nudged(entry)

    report = recorded(
        tmp_path,
        withdrawing(lambda entry: Evidence("model", 0, digest(entry.payload), before[0]), first),
    )
    # The toy gives server 1 the model of server 0, whose state is another one.
    assert_names(report, tmp_path, model(1, 1), "the model must follow")


def test_a_wrong_model_that_nobody_voted_against_is_found_as_ever(tmp_path):
    assert_names(recorded(tmp_path, changing(*model(), nudged)), tmp_path, model(), "the model must follow")


# -- what comes after a consensus that was broken off --------------------------------------------------------


def off(entry: Entry) -> Entry:
    return with_arrays(entry, lambda arrays: arrays | {"head": arrays["head"] * np.float32(1.0001)})


AFTERWARDS = {
    "a state of a step that was never taken": (state(3, 0), also(step=6), True),
    "a wrong state of the new consensus": (state(4, 3), off, True),
    "a wrong sum of the new consensus": (state(3, 3), off, True),
    "no state of who is left": (state(4, 3), gone, False),
    "who was voted out takes part": (state(4, 3), also(sender=server(1)), True),
    "the last state under an old number": (state(5, 4), lambda entry: replace(entry, step=2), False),
}


@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_follows_a_broken_consensus_must_follow(name):
    rules, entries = broken_off()
    place, change, is_there = AFTERWARDS[name]
    false, at = changed(entries, place, change)
    finding = paper_audit(rules, false).finding
    assert finding is not None
    if is_there:
        assert at <= finding.block <= at + 1
        assert finding.account.startswith(str(false[finding.block].sender))
    else:
        assert str(place[2]) in finding.account


def test_nobody_goes_on_with_a_consensus_that_was_broken_off():
    rules, entries = broken_off()
    false, at = changed(entries, (Kind.VOTE, LAST, server(4), 1), lambda e: [e, *_later(entries)])
    finding = paper_audit(rules, false).finding
    assert finding is not None and finding.block == at + 1


def _later(entries: Sequence[Entry]) -> list[Entry]:
    """Server 3's x^(1), given again as its x^(2)."""
    (one,) = [e for e in entries if (e.kind, e.round, e.sender, e.step) == state(1, 3)]
    return [replace(one, step=2)]


def test_without_the_votes_the_wrong_state_is_found():
    rules, entries = broken_off()
    left = [entry for entry in entries if entry.kind is not Kind.VOTE]
    finding = paper_audit(rules, left).finding
    wrong = left[finding.block]
    assert (wrong.kind, wrong.sender, wrong.step) == (Kind.CONSENSUS, server(1), 1)


def test_votes_that_come_too_late_bar_nobody_in_time():
    rules, entries = broken_off()
    given = [entry for entry in entries if entry.kind is Kind.VOTE]
    left = [entry for entry in entries if entry.kind is not Kind.VOTE]
    at = next(y for y, e in enumerate(left) if (e.kind, e.round, e.step) == (Kind.CONSENSUS, LAST, 4))
    assert paper_audit(rules, left[:at] + given + left[at:]).finding is not None


# -- whatever a vote says ------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data())
def test_any_vote_makes_a_clean_finding_or_none(data):
    rules, entries = broken_off()
    places = [y for y, entry in enumerate(entries) if entry.kind is Kind.VOTE]
    at = data.draw(st.sampled_from(places))
    vote = entries[at]
    payload = data.draw(
        mutations(vote.payload)
        | st.binary(max_size=200)
        | st.builds(
            lambda *said: Evidence(*said).encode(LAST, 1),
            st.sampled_from(["state", "silence", "equivocation", "model", "accusation"]),
            st.integers(-1, 9) | st.integers(),
            *[st.just(b"") | st.binary(min_size=32, max_size=32)] * 2,
            st.binary(max_size=70),
        )
    )
    report = paper_audit(rules, [*entries[:at], replace(vote, payload=payload), *entries[at + 1 :]])
    decides = at == places[2]  # the third of four others
    if decides and payload != vote.payload:
        assert report.finding is not None
        assert report.finding.block == at
    if report.finding is not None:
        assert report.finding.account.startswith(str(vote.sender)) or not decides
