"""The audit: true runs pass, and in a false one it names the first entry that does not follow."""

import copy
import json
import os
import shutil
import sqlite3
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from false_entries import (
    Place,
    Replayed,
    also,
    assert_names,
    changing,
    gone,
    junk,
    mutations,
    name_of,
    not_finite,
    nudged,
    place_of,
    with_arrays,
    with_fields,
    with_metadata,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_run import KEYS, LINE, OPERATOR, Change, Toy, device, own_key, server
from trie.hexary import HexaryTrie

from flower_bfl.audit import Finding, audit
from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, PayloadStore, decode, digest, encode
from flower_bfl.chain_adapter import _contract as contract_calls
from flower_bfl.chain_adapter import pyevm as pyevm_module
from flower_bfl.chain_adapter._accounts import Account, read_transaction
from flower_bfl.chain_adapter._chain import BlockBuilder, RevertedError
from flower_bfl.chain_adapter._reader import EntryReader, Recorded
from flower_bfl.chain_adapter._rules import find_nonce
from flower_bfl.chain_adapter._trie import read_values, root_and_nodes
from flower_bfl.chain_adapter.records import RunRules, consensus_payload, report_payload
from flower_bfl.config import Consensus, ContractRules, Outage
from flower_bfl.errors import LedgerError, PayloadError, RunFolderError

sys.path.insert(0, str(Path(__file__).parent / "strategies"))  # for `federation`

CUT = Outage(2, link=(0, 1), step=1)


# -- runs that follow ----------------------------------------------------------------------------------------

TRUE_RUNS = {
    "as it comes": Toy(rounds=3),
    "mass by data": Toy(mass="data"),
    "fixed leader": Toy(leader=1),
    "leader by reputation": Toy(leader="reputation", rounds=4),
    "no mining": Toy(difficulty_bits=0),
    "no consensus": Toy(steps=0, mass="data"),
    "own keys": Toy(own_keys=(1, 3)),
    "nobody trains": Toy(idle=(1,)),
    "payloads in the store": Toy(payloads="digest"),
    "one edge server": Toy(mixing=np.array([[1.0]]), devices=2),
    "link down": Toy(outages=(CUT,)),
    "servers down": Toy(outages=(Outage(1, server=1), Outage(2, server=2, step=1)), rounds=3),
    "more than one outage": Toy(outages=(Outage(1, server=0, step=2), Outage(1, link=(1, 2), step=1))),
}


@pytest.mark.parametrize("name", TRUE_RUNS)
def test_a_true_run_follows(name, tmp_path):
    toy = TRUE_RUNS[name]
    toy.record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.verdict == "every model follows from what was signed"
    assert report.checked.models_recomputed == report.checked.rounds == toy.rounds
    assert report.head == toy.ledger.head.hex()
    assert report.operator == name_of(OPERATOR).split("(")[1].rstrip(")")
    assert report.own_keys == tuple(name_of(device(n), own_key(n)) for n in toy.own_keys)
    assert report.notes == ()


def test_the_counts_are_those_of_the_run(tmp_path):
    Toy(rounds=3, own_keys=(1,)).record(tmp_path)
    checked = audit(tmp_path).checked
    # a round: 5 gradients, 3 states at 3 steps, the model and its seal; RULES and the first model before
    assert (checked.gradients, checked.consensus_states, checked.models) == (15, 27, 4)
    assert (checked.transactions, checked.signatures) == (2 + 3 * 16, 2 + 3 * 17)
    assert (checked.leaders, checked.proofs_of_work, checked.votes) == (3, 3, 0)
    assert checked.blocks == 1 + 3 * 5  # that of the contract has no entries
    entries = EvmLedger(tmp_path / "chain", read_only=True).entries()
    assert checked.payload_bytes == sum(len(entry.payload) for entry in entries)


def test_an_audit_changes_nothing(tmp_path):
    Toy(payloads="digest").record(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert audit(tmp_path).finding is None
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_is_audited_as_far_as_it_is(tmp_path):
    toy = Toy().record(tmp_path)
    toy.ledger.open(KEYS)
    toy.ledger.record([Entry(Kind.REPORT, 3, OPERATOR, report_payload(3, [], []))])
    assert (tmp_path / "chain" / "chain.sqlite-wal").exists()
    report = audit(tmp_path)
    assert report.finding is None
    assert report.notes == ("round 3 was not finished: 1 entries, no sealed model",)
    toy.ledger.close()


def test_memory_does_not_grow_with_the_run(tmp_path):
    """Eight rounds have 6 times 1.4 MB more payloads than two."""
    peaks = []
    for rounds in (2, 8):
        folder = tmp_path / str(rounds)
        Toy(rounds=rounds, devices=3, steps=1, size=30_000).record(folder)
        tracemalloc.start()
        assert audit(folder).finding is None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000


# -- strategies as they are ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"leader": "reputation", "learning_rate": 0.1, "graph": "line", "mixing": "metropolis"},
        {"mining": None, "leader": 1, "mass": "data", "edge_servers": 4, "graph": "star"},
        {"p2p_rounds": 0},
        {"outages": [Outage(1, server=0), Outage(2, server=2, step=3), Outage(2, link=(0, 1), step=1)]},
        {"edge_servers": 1},
    ],
    ids=str,
)
def test_what_the_strategy_records_follows(arguments, tmp_path):
    from federation import record, run, walker

    from flower_bfl import ConsensusBFL

    rng = np.random.default_rng(3)
    arrays = {
        "a": rng.standard_normal((5, 4)).astype(np.float32),
        "steps": np.array(3),
        "b": rng.standard_normal(6),
        "c": rng.standard_normal((2, 2)).astype(np.float16),
    }
    ledger = EvmLedger(tmp_path / "chain")
    strategy = ConsensusBFL(ledger=ledger, run_folder=tmp_path, fraction_evaluate=0.0, **arguments)
    run(strategy, [walker(n, named=True, steps=1 + n % 3) for n in range(5)], arrays=record(arrays), seed=1)
    ledger.close()
    report = audit(tmp_path)
    assert report.finding is None and report.notes == ()
    assert (report.strategy, report.checked.models_recomputed) == ("ConsensusBFL", 3)


def test_of_a_wrapped_strategy_it_says_that_models_are_not_recomputed(tmp_path):
    from federation import initial, run, walker
    from flwr.serverapp.strategy import FedMedian

    from flower_bfl import OnLedger

    ledger = EvmLedger(tmp_path / "chain")
    strategy = OnLedger(FedMedian(fraction_evaluate=0.0), ledger, run_folder=tmp_path)
    run(strategy, [walker(n, named=True) for n in range(3)], arrays=initial())
    ledger.close()
    report = audit(tmp_path)
    assert report.finding is None
    assert (report.recomputed, report.checked.models, report.checked.models_recomputed) == (False, 4, 0)
    assert "FedMedian" in report.verdict and "not recomputed" in report.verdict


# -- false entries by somebody who has all the keys ----------------------------------------------------------


def without_b(entry: Entry) -> Entry:
    return with_arrays(entry, lambda arrays: {n: a for n, a in arrays.items() if n != "b"})


def in_double(entry: Entry) -> Entry:
    return with_arrays(entry, lambda arrays: {n: a.astype(float) for n, a in arrays.items()})


def reporting(*outages: Outage):
    return lambda entry: replace(entry, payload=report_payload(entry.round, [], outages))


def rules_with(mixing: np.ndarray = LINE, **consensus):
    """RULES that are not those of the run, which is Toy()'s."""
    said = {"edge_servers": 3, "p2p_rounds": 2, "learning_rate": 0.5} | consensus
    payload = RunRules("Toy", Consensus(**said), mixing).encode()
    return lambda entry: replace(entry, payload=payload)


GRADIENT = (Kind.GRADIENT, 2, device(3), 0)  # of edge server 0
STATE_0 = (Kind.CONSENSUS, 2, server(0), 0)
STATE_1 = (Kind.CONSENSUS, 2, server(1), 0)
AFTER_1 = (Kind.CONSENSUS, 2, server(2), 1)
AFTER_2 = (Kind.CONSENSUS, 1, server(1), 2)
INITIAL = (Kind.MODEL, 0, OPERATOR, 0)
MODEL = (Kind.MODEL, 2, server(1), 0)  # of Toy(leader=1)
REPORT = (Kind.REPORT, 2, OPERATOR, 0)
RULES = (Kind.RULES, 0, OPERATOR, 0)

# what is recorded in place of what, and the entry that the audit must name with the rule that it breaks
FALSE_ENTRIES: dict[str, tuple[Place, Change, Place, str]] = {
    "a gradient": (GRADIENT, nudged, STATE_0, "eq. (8)"),
    "its samples": (GRADIENT, with_metadata(num_examples="18"), STATE_0, "eq. (8)"),
    "its steps": (GRADIENT, with_metadata(num_steps="7"), STATE_0, "eq. (8)"),
    "its round": (GRADIENT, with_metadata(round="1"), GRADIENT, "one of its round"),
    "the model it was made from": (
        GRADIENT, with_metadata(model="00" * 32), GRADIENT, "one of its round and model",
    ),
    "its arrays": (GRADIENT, without_b, GRADIENT, "the model's arrays"),
    "its dtypes": (GRADIENT, in_double, GRADIENT, "the model's arrays"),
    "a gradient that is not finite": (GRADIENT, not_finite, GRADIENT, "must be finite"),
    "a gradient that is none": (GRADIENT, junk, GRADIENT, "must be in its format"),
    "a gradient's samples that are none": (GRADIENT, with_metadata(num_examples="-1"), GRADIENT, "format"),
    "a gradient that is missing": (GRADIENT, gone, STATE_0, "recorded gradients"),
    "a_0": (STATE_0, nudged, STATE_0, "eq. (8)"),
    "a_1": (STATE_1, nudged, STATE_1, "eq. (8)"),
    "x_2 after a step": (AFTER_1, nudged, AFTER_1, "x^(1) must be Λ x^(0)"),
    "x_1 after two": (AFTER_2, nudged, AFTER_2, "x^(2) must be Λ x^(1)"),
    "a state that is none": (AFTER_2, junk, AFTER_2, "eq. (9)"),
    "a first state that is none": (STATE_1, junk, STATE_1, "must be in its format"),
    "a state of another server": (STATE_1, with_metadata(server="2"), STATE_1, "eq. (8)"),
    "a state of another step": (AFTER_1, with_metadata(step="2"), AFTER_1, "eq. (9)"),
    "a state too many": (AFTER_2, also(step=3), (*AFTER_2[:3], 3), "2 steps"),
    "a state after the model": (
        MODEL, also(kind=Kind.CONSENSUS, step=5), (Kind.CONSENSUS, 2, server(1), 5), "before the model",
    ),
    "a state in round 0": (
        RULES, also(kind=Kind.CONSENSUS, sender=server(0)), (Kind.CONSENSUS, 0, server(0), 0), "round 0",
    ),
    "a device that sent nothing": (STATE_0, with_metadata(devices="0 3 9"), STATE_0, "recorded gradients"),
    "a device of another server": (STATE_1, with_metadata(devices="1 3 4"), STATE_1, "summed up once"),
    "a device twice": (STATE_1, with_metadata(devices="1 1 4"), STATE_1, "summed up once"),
    "a device that is not said": (STATE_1, with_metadata(devices="1"), STATE_1, "eq. (8)"),
    "no devices at all": (STATE_1, with_metadata(devices=""), STATE_1, "eq. (8)"),
    "devices that are no numbers": (STATE_0, with_metadata(devices="0 x"), STATE_0, "must be in its format"),
    "devices in another order": (STATE_0, with_metadata(devices="3 0"), STATE_0, "eq. (8)"),
    "a model": (MODEL, nudged, MODEL, "(10)-(12)"),
    "a model's counter": (
        MODEL, lambda e: with_arrays(e, lambda a: a | {"count": a["count"] + 1}), MODEL, "(10)-(12)",
    ),
    "a model in another dtype": (MODEL, in_double, MODEL, "(10)-(12)"),
    "a model that is none": (MODEL, junk, MODEL, "(10)-(12)"),
    "the first model's round": (INITIAL, with_metadata(round="1"), INITIAL, "round 0"),
    "the first model, none": (INITIAL, junk, INITIAL, "must be in its format"),
    "the mass": (RULES, rules_with(mass="data", leader=1), (Kind.MODEL, 1, server(1), 0), "(10)-(12)"),
    "the learning rate": (
        RULES, rules_with(learning_rate=1.0, leader=1), (Kind.MODEL, 1, server(1), 0), "(10)-(12)",
    ),
    "the mixing matrix": (
        RULES, rules_with(LINE @ LINE, leader=1), (Kind.CONSENSUS, 1, server(0), 1), "eq. (9)",
    ),
    "no mixing matrix": (RULES, rules_with(2 * LINE, leader=1), RULES, "a mixing matrix"),
    "a mixing matrix of nobody": (RULES, rules_with(LINE * np.nan, leader=1), RULES, "a mixing matrix"),
    "the steps": (RULES, rules_with(p2p_rounds=1, leader=1), (Kind.CONSENSUS, 1, server(0), 2), "1 steps"),
    "the leader rule": (RULES, rules_with(leader="random"), RULES, "the leader rule of RULES"),
    "rules that say more": (RULES, with_metadata(momentum="0.9"), RULES, "nothing else"),
    "rules that are none": (RULES, junk, RULES, "must be in its format"),
}  # fmt: skip


@pytest.mark.parametrize("what", FALSE_ENTRIES)
def test_one_false_entry_is_named(what, tmp_path):
    place, new, named, rule = FALSE_ENTRIES[what]
    Toy(leader=1, change=changing(*place, new)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, named, rule)


FALSE_REPORTS: dict[str, tuple[Change, str]] = {
    "an outage that was none": (reporting(Outage(2, link=(1, 2), step=1), CUT), "eq. (9)"),
    "a server that is not there": (reporting(Outage(2, server=3)), "of this run"),
    "a link that is not there": (reporting(Outage(2, link=(0, 2))), "of this run"),
    "an outage of another round": (reporting(Outage(1, link=(0, 1), step=1)), "of this run"),
    "all servers": (reporting(*(Outage(2, server=m) for m in range(3))), "of this run"),
    "nonsense": (junk, "must be in its format"),
    "servers that are no numbers": (
        with_metadata(report=json.dumps({"left_out": [], "down": [
            {"round": 2, "server": [1], "link": None, "step": 0}]})), "of this run",
    ),
    "links that are no pairs": (
        with_metadata(report=json.dumps({"left_out": [], "down": [
            {"round": 2, "server": None, "link": [0, 1, 2], "step": 0}]})), "in its format",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FALSE_REPORTS)
def test_a_false_report_is_named(what, tmp_path):
    new, rule = FALSE_REPORTS[what]
    Toy(outages=(CUT,), change=changing(*REPORT, new)).record(tmp_path)
    named = REPORT if "eq." not in rule else (Kind.CONSENSUS, 2, server(1), 2)  # next to both links
    assert_names(audit(tmp_path), tmp_path, named, rule)


def test_a_report_of_an_outage_in_a_round_that_had_none_is_named(tmp_path):
    """Everything follows without it: so it is the report that is false, not the states before it."""
    said = Entry(Kind.REPORT, 2, OPERATOR, report_payload(2, [], [Outage(2, server=2, step=1)]))
    Toy(change=changing(Kind.CONSENSUS, 2, server(2), 2, lambda entry: [entry, said])).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, REPORT, "must have been down")


def test_a_second_report_is_named(tmp_path):
    Toy(outages=(CUT,), change=changing(*REPORT, also(step=1))).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (*REPORT[:3], 1), "one REPORT")


def test_an_outage_that_is_not_reported_makes_the_states_false(tmp_path):
    Toy(outages=(CUT,), change=changing(*REPORT, gone)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (Kind.CONSENSUS, 2, server(0), 2), "eq. (9)")


def test_a_state_of_a_server_that_was_down_is_named(tmp_path):
    down = Outage(1, server=2, step=1)
    late = (Kind.CONSENSUS, 1, server(1), 2)
    extra = lambda entry: [entry, replace(entry, sender=server(2))]  # noqa: E731
    Toy(outages=(down,), change=changing(*late, extra)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (Kind.CONSENSUS, 1, server(2), 2), "that is down must not record")


def test_a_state_that_is_missing_is_named_by_its_server(tmp_path):
    Toy(leader=1, change=changing(Kind.CONSENSUS, 2, server(2), 1, gone)).record(tmp_path)
    finding = audit(tmp_path).finding
    block, _ = place_of(tmp_path, *MODEL)
    assert finding == Finding(
        "an edge server that is up must record x^(1), before the model", "a state", "none in this round",
        block, None, "server 2",
    )  # fmt: skip


def test_passing_over_a_server_that_could_lead_is_named(tmp_path):
    toy = Toy(leader=0, pass_over={2: 2}).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (Kind.MODEL, 2, server(2), 2), "may be passed over")
    assert "edge server 0 leads" in audit(tmp_path).finding.expected
    assert toy.ledger.rules.leader == 0


def test_a_leader_that_was_down_is_named(tmp_path):
    """Edge server 1 leads as if it were up; its share of the sum would give a model all the same."""
    down = Outage(2, server=1, step=1)
    leading = changing(Kind.MODEL, 2, server(2), 1, with_fields(sender=server(1), step=0))
    Toy(leader=1, outages=(down,), change=leading).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, MODEL, "must be up and have mass")


def test_a_round_without_gradients_must_keep_the_model(tmp_path):
    Toy(leader=1, idle=(2,), change=changing(*MODEL, nudged)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, MODEL, "must follow")


def test_a_round_without_gradients_must_have_no_states(tmp_path):
    """A state that sums up nothing."""
    zeros = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
    state = Entry(Kind.CONSENSUS, 2, server(0), consensus_payload(2, 0, 0, zeros))
    Toy(leader=1, idle=(2,), change=changing(*MODEL, lambda entry: [state, entry])).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (Kind.CONSENSUS, 2, server(0), 0), "no consensus")


def test_the_rules_must_come_first(tmp_path):
    Toy(change=changing(*RULES, gone)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, (Kind.MODEL, 0, OPERATOR, 0), "begin with its RULES")


def test_a_contract_that_checks_no_leader_is_named(tmp_path):
    Toy().record(tmp_path, rules=ContractRules(edge_servers=3, difficulty_bits=4))
    assert_names(audit(tmp_path), tmp_path, RULES, "the contract must have")


def test_gradients_that_no_server_took_are_told(tmp_path):
    """It breaks no rule to leave a device out, but somebody may want to know."""
    Toy(change=changing(Kind.GRADIENT, 1, device(4), 0, also(sender=device(7)))).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.checked.gradients_not_aggregated == 1
    assert report.notes == ("1 gradients are in no model",)


def test_a_gradient_that_comes_after_the_model_changes_nothing(tmp_path):
    """On a node of somebody else's, no device shall spoil a run by sending one late."""
    late = also(kind=Kind.GRADIENT, sender=device(7), payload=b"anything")
    Toy(leader=1, change=changing(*MODEL, late)).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.checked.gradients_not_aggregated == 1


def test_votes_and_a_model_whose_leader_was_voted_out(tmp_path):
    """Edge server 1 proposes nonsense, the others vote it out, the next one proposes the model."""
    Toy(rounds=1, leader=1).record(tmp_path / "honest")
    (true,) = [entry for entry in EvmLedger(tmp_path / "honest" / "chain").entries() if entry.round == 1
               and entry.kind is Kind.MODEL]  # fmt: skip

    def proposing(model: Entry) -> list[Entry]:
        nonsense = replace(model, sender=server(1), step=0, payload=b"nonsense")
        said = {"round": "1", "server": "1", "offence": "model", "step": "0"}
        evidence = said | {"found": digest(b"nonsense").hex(), "expected": digest(true.payload).hex()}
        votes = [Entry(Kind.VOTE, 1, server(m), encode({}, evidence), 1) for m in (0, 2)]
        return [nonsense, *votes, model]

    Toy(rounds=1, leader=1, pass_over={1: 1}, change=changing(Kind.MODEL, 1, server(2), 1, proposing)).record(
        tmp_path
    )
    report = audit(tmp_path)
    assert report.finding is None
    (incident,) = report.incidents
    assert (incident.server, incident.offence, incident.votes) == (1, "model", 2)
    assert incident.voted_out and incident.upheld
    assert (report.checked.votes, report.checked.models, report.checked.models_recomputed) == (2, 3, 1)
    assert report.notes == ("1 models were never sealed: their leaders were voted out",)


# -- blocks that the contract would not take: an operator can make them all the same -------------------------


@pytest.fixture
def no_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions that the contract refuses become part of their block, as if it had not."""
    taken = BlockBuilder.apply

    def apply(self: BlockBuilder, transaction: object) -> None:
        try:
            taken(self, transaction)
        except RevertedError:
            self._transactions.append(transaction)
            self._receipts.append(b"\x02\xc0")

    monkeypatch.setattr(BlockBuilder, "apply", apply)


LAST_STATE = (Kind.CONSENSUS, 2, server(2), 2)

REFUSED: dict[str, tuple[Place, Change, Place, str]] = {
    "another leader": (MODEL, with_fields(sender=server(0)), (*MODEL[:2], server(0), 0), "NotLeader"),
    "another round": (GRADIENT, with_fields(round=1), (Kind.GRADIENT, 1, device(3), 0), "WrongRound"),
    "a device's state": (
        LAST_STATE, also(sender=device(2)), (Kind.CONSENSUS, 2, device(2), 2), "WrongRole",
    ),
    "the same again": (LAST_STATE, also(payload=b"other"), LAST_STATE, "AlreadySubmitted"),
    "a server's data": (
        GRADIENT, lambda e: [Entry(Kind.DATA, 2, server(0), b"data"), e], (Kind.DATA, 2, server(0), 0),
        "WrongRole",
    ),
    "data twice": (
        GRADIENT, lambda e: [*(Entry(Kind.DATA, 2, device(4), payload, 1) for payload in (b"a", b"b")), e],
        (Kind.DATA, 2, device(4), 1), "AlreadySubmitted",
    ),
    "rules again": (
        (Kind.SEAL, 2, device(2), 2), lambda e: [Entry(Kind.RULES, 2, OPERATOR, b"new"), e],
        (Kind.RULES, 2, OPERATOR, 0), "AlreadySubmitted",
    ),
    "a server in quarantine": (
        MODEL, lambda e: [*(Entry(Kind.VOTE, 2, server(m), b"", 1) for m in (0, 2)), e],
        MODEL, "ServerQuarantined",
    ),
    "nothing to be sealed": (
        LAST_STATE, lambda e: [e, Entry(Kind.SEAL, 2, device(1), b"", 1)],
        (Kind.SEAL, 2, device(1), 1), "NothingProposed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_contract_would_have_refused_is_named(what, tmp_path, no_contract):
    place, new, named, rule = REFUSED[what]
    seen: list[Entry] = []

    def change(entry: Entry) -> Entry | list[Entry]:
        changed = changing(*place, new)(entry)
        seen.extend(changed if isinstance(changed, list) else [changed])
        return changed

    with suppress(LedgerError):  # the toy reads its own ledger for its report
        Toy(leader=1, change=change).record(tmp_path)
    (tmp_path / "rounds.jsonl").unlink()
    finding = audit(tmp_path).finding
    assert finding is not None and rule in finding.rule
    assert finding.account == name_of(named[2])
    chain = EvmLedger(tmp_path / "chain", read_only=True)
    data = read_transaction(chain._block(finding.block).transactions[finding.transaction]).data
    call = contract_calls.read_call(data)
    assert (call.kind, call.round, call.step) == (named[0], named[1], named[3])


def test_a_nonce_without_work_is_named(tmp_path, no_contract, monkeypatch):
    monkeypatch.setattr(pyevm_module, "find_nonce", lambda *arguments: find_nonce(*arguments) + 1)
    with suppress(LedgerError):
        Toy(difficulty_bits=10).record(tmp_path)
    (tmp_path / "rounds.jsonl").unlink()
    finding = audit(tmp_path).finding
    assert finding is not None and "BadNonce" in finding.rule
    assert finding.account == name_of(device(1))


def test_a_block_sealed_by_another_is_named(tmp_path, monkeypatch):
    seal = BlockBuilder.seal

    def sealed(self: BlockBuilder, sign: object) -> object:
        other = Account.of(lambda _: own_key(0), OPERATOR)
        return seal(self, other.sign_hash if self._header.block_number == 5 else sign)

    monkeypatch.setattr(BlockBuilder, "seal", sealed)
    with suppress(LedgerError):
        Toy().record(tmp_path)
    (tmp_path / "rounds.jsonl").unlink()
    finding = audit(tmp_path).finding
    assert finding is not None
    assert (finding.block, finding.transaction) == (5, None)
    assert "sealed by the operator" in finding.rule


def test_a_payload_that_is_not_its_digests_is_named(tmp_path, no_contract, monkeypatch):
    """In calldata, where the contract would have seen it."""
    from flower_bfl.chain_adapter import _phase

    false = Entry(Kind.REPORT, 2, OPERATOR, b"false")
    monkeypatch.setattr(_phase, "digest", lambda data: digest(b"true" if data == b"false" else data))
    with suppress(LedgerError):
        Toy(leader=1, change=changing(*MODEL, lambda entry: [false, entry])).record(tmp_path)
    (tmp_path / "rounds.jsonl").unlink()
    finding = audit(tmp_path).finding
    assert finding is not None
    assert (finding.expected, finding.found) == (digest(b"true").hex(), digest(b"false").hex())
    assert finding.account == name_of(OPERATOR)


# -- the file, the folder, the head --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Toy(rounds=3, payloads="digest").record(folder)
    return folder


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def canonical(number: int) -> bytes:
    return f"block-number-to-hash:{number}".encode()


WHERE = "WHERE key = ?"
DAMAGES: dict[str, tuple[str, list[object], str]] = {
    "a row changed": ("UPDATE chain SET value = CAST(value || x'00' AS BLOB) WHERE length(key) = 32", [],
                      "keep each value under its hash"),
    "a row gone": (f"DELETE FROM chain {WHERE}", [canonical(3)], "cannot be found"),
    "a block's number at another": (f"UPDATE chain SET value = (SELECT value FROM chain {WHERE}) {WHERE}",
                                    [canonical(2), canonical(3)], "must say what the chain implies"),
    "no header at a number": (f"UPDATE chain SET value = x'c0' {WHERE}", [canonical(3)], "lead to a header"),
    "an unknown row": ("INSERT INTO chain VALUES ('x', x'00')", [], "bytes only"),
    "an unknown row of bytes": ("INSERT INTO chain VALUES (x'78', x'00')", [], "does not imply"),
    "another total": ("UPDATE chain SET value = zeroblob(16) WHERE key = CAST('flower-bfl:totals' AS BLOB)",
                      [], "what the chain implies"),
    "text for bytes": ("UPDATE chain SET value = CAST('a' AS TEXT) WHERE length(key) = 32", [], "bytes only"),
    "a number for bytes": ("UPDATE chain SET value = 5 WHERE length(key) = 32", [], "bytes only"),
    "another table": ("CREATE TABLE more (a)", [], "one table and its index"),
    "a view": ("ALTER TABLE chain RENAME TO other", [], "one table and its index"),
    "no rows": ("DELETE FROM chain", [], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_a_finding(what, run):
    statement, values, rule = DAMAGES[what]
    with sqlite3.connect(run / "chain" / "chain.sqlite") as connection:
        connection.execute(statement, values)
    connection.close()
    finding = audit(run).finding
    assert finding is not None and rule in finding.rule


def test_what_is_no_database_is_a_finding(run):
    (run / "chain" / "chain.sqlite").write_bytes(b"nothing of the kind" * 1000)
    assert audit(run).finding is not None


def a_payload(run: Path) -> Path:
    return sorted((run / "chain" / "payloads").iterdir())[3]


def test_payloads_that_are_damaged_or_gone_are_named(run):
    payload = a_payload(run)
    name, content = payload.name.split(".")[0], payload.read_bytes()
    payload.write_bytes(content[:-1] + b"x")
    finding = audit(run).finding
    assert finding is not None and finding.expected == name and finding.account
    assert finding.found == digest(content[:-1] + b"x").hex()
    payload.unlink()
    finding = audit(run).finding
    assert finding is not None and (finding.expected, finding.found) == (name, "missing")
    assert finding.block is not None and finding.transaction is not None


def test_links_and_pipes_in_place_of_payloads_are_not_followed(run, tmp_path):
    payload = a_payload(run)
    shutil.move(payload, tmp_path / "elsewhere")
    payload.symlink_to(tmp_path / "elsewhere")
    assert "not readable" in audit(run).finding.found
    payload.unlink()
    os.mkfifo(payload)
    assert "not readable" in audit(run).finding.found
    payload.unlink()
    payload.mkdir()
    assert "not readable" in audit(run).finding.found


@pytest.mark.parametrize(
    "part", ["chain/chain.sqlite", "chain/payloads", "rounds.jsonl", "model.safetensors"]
)
def test_no_part_of_the_run_may_lie_elsewhere(part, run, tmp_path):
    shutil.move(run / part, tmp_path / "elsewhere")
    (run / part).symlink_to(tmp_path / "elsewhere")
    finding = audit(run).finding
    assert finding is not None and part in finding.rule and str(tmp_path / "elsewhere") == finding.found


def test_files_to_which_nothing_refers_are_told(run):
    (run / "chain" / "payloads" / ("ab" * 32 + ".safetensors")).write_bytes(b"garbage")
    (run / "chain" / "payloads" / "notes.txt").write_bytes(b"no digest at all")
    report = audit(run)
    assert report.finding is None
    name = "ab" * 32 + ".safetensors"
    assert report.notes == (f"2 files in chain/payloads to which nothing refers, such as {name}",)


def test_a_chain_that_was_cut_off_shows_in_the_rounds_and_by_its_head(tmp_path):
    toy = Toy(rounds=2).record(tmp_path / "short")
    whole = Toy(rounds=3).record(tmp_path / "long")
    short_head, long_head = toy.ledger.head, whole.ledger.head
    for name in ("rounds.jsonl", "model.safetensors"):
        shutil.copy(tmp_path / "long" / name, tmp_path / "short" / name)
    finding = audit(tmp_path / "short").finding
    assert finding is not None and "must not end before" in finding.rule
    assert (finding.expected, finding.found) == ("round 3", "round 2 as the last")
    (tmp_path / "short" / "rounds.jsonl").unlink()
    (tmp_path / "short" / "model.safetensors").unlink()
    report = audit(tmp_path / "short", head=short_head)
    assert report.finding is None
    assert [note.split(":")[0] for note in report.notes] == ["no rounds.jsonl", "no model.safetensors"]
    finding = audit(tmp_path / "short", head=long_head).finding
    assert finding is not None and finding.expected == long_head.hex()
    finding = audit(tmp_path / "long", head=short_head).finding
    assert finding is not None and "the given one is of round 2" in finding.found


@pytest.mark.parametrize(
    ("name", "value"), [("head", "ab" * 32), ("model_digest", "cd" * 32), ("round", 7), ("head", None)]
)
def test_rounds_that_say_something_else_are_a_finding(name, value, run):
    path = run / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    expected, lines[2][name] = lines[2][name], value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    finding = audit(run).finding
    assert finding is not None and "of round 2" in finding.rule
    assert (finding.expected, finding.found) == (str(expected), str(value))


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"round": ' + b"1" * 5000 + b"}"])
def test_rounds_that_are_no_json_are_a_finding(line, run):
    path = run / "rounds.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert audit(run).finding is not None


def test_a_run_that_was_killed_follows_as_far_as_it_went(run):
    """A last line that is cut off, and a chain that is one round ahead of the rest of the folder."""
    path = run / "rounds.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    store = PayloadStore(run / "chain" / "payloads")
    second = next(
        entry.payload
        for entry in EvmLedger(run / "chain", store=store, read_only=True).entries()
        if entry.kind is Kind.MODEL and entry.round == 2
    )
    (run / "model.safetensors").write_bytes(second)
    report = audit(run)
    assert report.finding is None
    assert report.notes == (
        "the last line of rounds.jsonl is cut off",
        "rounds.jsonl ends with round 2, the chain with round 3",
    )


def test_the_model_in_the_folder_must_be_the_last(run):
    (run / "model.safetensors").write_bytes(b"another")
    finding = audit(run).finding
    assert finding is not None and finding.found == digest(b"another").hex()
    (run / "model.safetensors").unlink()
    finding = audit(run).finding
    assert finding is not None and finding.found == "none"


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match=r"chain/chain.sqlite"):
        audit(tmp_path)


def test_a_chain_without_a_run_is_a_finding(tmp_path):
    ledger = EvmLedger(tmp_path / "chain")
    ledger.open(KEYS)
    ledger.close()
    finding = audit(tmp_path).finding
    assert finding is not None and "must begin with its RULES" in finding.rule


# -- any bytes at all ----------------------------------------------------------------------------------------


def test_arrays_that_share_their_bytes_do_not_unfold():
    """2 MB that would be 400 MB of arrays, were they made."""
    size = 2_000_000
    header = {f"w{n}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]} for n in range(200)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    payload = len(text).to_bytes(8, "little") + text + bytes(size)
    tracemalloc.start()
    with pytest.raises(PayloadError, match="must begin at 2000000, got 0"):
        decode(payload)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 200_000, '{"down":' * 100_000])
def test_a_report_that_is_nested_too_deeply_is_named(text, tmp_path):
    Toy(outages=(CUT,), change=changing(*REPORT, with_metadata(report=text))).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, REPORT, "must be in its format")


@pytest.mark.parametrize("size", [0, 1, 2, 16, 17, 127, 128, 129, 300])
def test_a_trie_is_read_as_it_was_written(size):
    values = [bytes([n % 256]) * (1 + n % 50) for n in range(size)]
    root, nodes = root_and_nodes(values)
    assert read_values(nodes, root) == values


@pytest.mark.parametrize("keys", [[b"\x80", b"\x02"], [b"\x01"], [b"\x80", b"\x81"], [b"\x80", b"other"]])
def test_a_trie_that_holds_anything_but_a_list_is_refused(keys):
    """A transaction at a place that nobody reads would be one that nobody checks."""
    nodes: dict[bytes, bytes] = {}
    trie = HexaryTrie(nodes)
    for key in keys:
        trie[key] = b"transaction " * 5
    with pytest.raises(LedgerError, match=r"must hold values at 0, 1, 2|must be there once"):
        read_values(nodes, trie.root_hash)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> tuple[ContractRules, list[Recorded]]:
    folder = tmp_path_factory.mktemp("run")
    toy = Toy(outages=(CUT,)).record(folder)
    return toy.ledger.rules, list(toy.ledger.recorded())


@settings(max_examples=400)
@given(data=st.data())
def test_any_payload_is_a_finding_and_never_a_traceback(entries, data):
    rules, recorded = entries
    place = data.draw(st.integers(0, len(recorded) - 1))
    at = recorded[place]
    payload = data.draw(mutations(at.entry.payload))
    changed = replace(at, entry=replace(at.entry, payload=payload))
    report = audit(Replayed(rules, [*recorded[:place], changed, *recorded[place + 1 :]]))
    assert report.finding is None or report.finding.expected != "records in their formats", report.finding
    follows = at.entry.kind is Kind.CONSENSUS or (at.entry.kind is Kind.MODEL and at.entry.round > 0)
    if follows and payload != at.entry.payload:
        assert report.finding is not None
        assert (report.finding.block, report.finding.transaction) == (at.block, at.transaction)


@settings(max_examples=400)
@given(data=st.data())
def test_any_calldata_is_an_entry_or_a_ledger_error(data, calls):
    """Of somebody who has the keys of the run, and a chain on which nobody executes anything."""
    reader, transactions = calls
    block, place, transaction, sender = data.draw(st.sampled_from(transactions))
    words = bytearray(transaction.data)
    for _ in range(data.draw(st.integers(1, 3))):
        start = 4 + 32 * data.draw(st.integers(0, 7))
        word = data.draw(
            st.binary(min_size=32, max_size=32) | st.integers(0, 400).map(lambda n: n.to_bytes(32))
        )
        words[start : start + 32] = word
    words = words[: data.draw(st.integers(0, len(words)) | st.just(len(words)))]
    account = Account.of(KEYS, sender)
    encoded = account.sign(10_000, 10**6, transaction.to, bytes(words)).encode()
    fresh = copy.deepcopy(reader)
    try:
        fresh.read_one(block, place, encoded)
    except LedgerError as error:
        assert error.block == block


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory):
    """A reader in the middle of a run, and the run's transactions."""
    folder = tmp_path_factory.mktemp("run")
    toy = Toy().record(folder)
    blocks = [toy.ledger._block(number).transactions for number in range(1, toy.ledger.block_number + 1)]
    reader = EntryReader(PayloadStore(), lambda block, place: blocks[block - 1][place])
    for number, transactions in enumerate(blocks[:6], 1):
        reader.read(number, transactions)
    senders = {address: sender for sender, address in reader.accounts.items()}
    read = [
        (number, place, transaction, senders[transaction.sender])
        for number, encoded in enumerate(blocks, 1)
        for place, transaction in enumerate(map(read_transaction, encoded))
    ]
    return reader, read
