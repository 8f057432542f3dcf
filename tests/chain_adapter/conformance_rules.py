"""What every ledger must refuse and allow: roles, rounds, leaders, seals and votes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from makers import (
    KEYS,
    MINED,
    OPERATOR,
    data,
    device,
    drawn_leader,
    gradient,
    head_of,
    model,
    payload,
    restart,
    run_of,
    seal,
    server,
    vote,
)

from flower_bfl.chain_adapter import Entry, Kind, Ledger, Sender
from flower_bfl.chain_adapter.base import Recent
from flower_bfl.chain_adapter.signing import address
from flower_bfl.config import ContractRules
from flower_bfl.errors import LedgerError, RejectedError

Opened = Callable[..., Ledger]


def refuses(ledger: Ledger, entry: Entry, reason: str) -> None:
    """Recording the entry fails for this reason, and the message says which entry it was."""
    head = ledger.head
    with pytest.raises(RejectedError) as caught:
        ledger.record([entry])
    place = f"kind {entry.kind.name}, round {entry.round}, step {entry.step}"
    assert str(caught.value) == f"entry refused, {reason}: {entry.sender}, {place}"
    assert ledger.head == head


def next_leader(ledger: Ledger, server_round: int, servers: int, passed: int = 0) -> Sender:
    return server((drawn_leader(ledger.head, server_round, servers) + passed) % servers)


class RulesConformance:
    """Tests for a ledger; a subclass says how it is made."""

    stays_on_disk: ClassVar[bool] = False
    takes_signatures: ClassVar[bool] = True  # of senders whose keys it does not have

    def make(self, folder: Path) -> Ledger:
        """A ledger that is not open; for the same folder the same one again, if it stays on disk."""
        raise NotImplementedError

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[Opened]:
        """Opens a new ledger with rules; to be used once in a test."""
        ledger = self.make(tmp_path / "run")

        def open_with(rules: ContractRules | None = None, keys: Callable[[Sender], bytes] = KEYS) -> Ledger:
            ledger.open(keys, rules)
            return ledger

        yield open_with
        ledger.close()

    @pytest.fixture
    def ledger(self, opened: Opened) -> Ledger:
        return opened()

    # ---- roles and rounds

    def test_a_wrong_role_is_refused(self, ledger):
        def refuses_all(server_round: int, *cases: tuple[Kind, Sender]) -> None:
            for kind, sender in cases:
                refuses(ledger, Entry(kind, server_round, sender, b""), "WrongRole")

        refuses_all(
            0,
            *((kind, sender) for kind in (Kind.RULES, Kind.REPORT) for sender in (device(1), server(1))),
            *((kind, sender) for kind in (Kind.RESTART, Kind.STATE) for sender in (device(1), server(1))),
            *((kind, sender) for kind in (Kind.CONSENSUS, Kind.VOTE) for sender in (OPERATOR, device(1))),
            *((kind, OPERATOR) for kind in (Kind.GRADIENT, Kind.SEAL)),
            *((Kind.DATA, sender) for sender in (OPERATOR, server(1))),
            *((Kind.MODEL, sender) for sender in (device(1), server(1))),
        )
        assert list(ledger.entries()) == []
        ledger.record([model(0)])
        refuses_all(1, (Kind.MODEL, OPERATOR), (Kind.MODEL, device(1)), (Kind.SEAL, OPERATOR))
        assert list(ledger.entries()) == [model(0)]

    def test_all_right_roles_are_taken(self, opened):
        ledger = opened(MINED)
        entries = [
            Entry(Kind.RULES, 0, OPERATOR, b"a"),
            Entry(Kind.MODEL, 0, OPERATOR, b"b"),
            Entry(Kind.REPORT, 1, OPERATOR, b"c"),
            Entry(Kind.STATE, 1, OPERATOR, b"s"),
            Entry(Kind.RESTART, 1, OPERATOR, b"", step=1),
            Entry(Kind.GRADIENT, 1, device(0), b"d"),
            Entry(Kind.GRADIENT, 1, server(0), b"e"),
            Entry(Kind.DATA, 1, device(0), b"e", step=1),
            Entry(Kind.CONSENSUS, 1, server(0), b"f", step=5),
            Entry(Kind.VOTE, 1, server(0), b"g", step=1),
            Entry(Kind.CONSENSUS, 2, server(0), b"h"),
        ]
        ledger.record([*entries[:-2], Entry(Kind.MODEL, 1, server(1), b"i")])
        ledger.record([seal(1, device(2)), gradient(2, server(1)), entries[-1]])
        assert len(list(ledger.entries())) == len(entries) + 2

    @pytest.mark.parametrize("height", [0, 2])
    def test_only_the_open_round_is_written(self, opened, height):
        ledger = opened(ContractRules(edge_servers=3))
        ledger.record([model(k) for k in range(height)])
        wrong = [height + 1, height - 1, 2**32 - 2] if height else [1, 2**32 - 2]
        for attempted in wrong:
            reason = f"WrongRound (expected {height}, got {attempted})"
            for kind, sender in (
                (Kind.RULES, OPERATOR), (Kind.REPORT, OPERATOR), (Kind.GRADIENT, device(0)),
                (Kind.GRADIENT, server(0)), (Kind.CONSENSUS, server(0)), (Kind.VOTE, server(0)),
                (Kind.MODEL, server(0)), (Kind.SEAL, device(0)), (Kind.DATA, device(0)),
                (Kind.STATE, OPERATOR), (Kind.RESTART, OPERATOR),
            ):  # fmt: skip
                refuses(ledger, Entry(kind, attempted, sender, b"", step=1), reason)
        if height:
            refuses(ledger, model(0), f"WrongRound (expected {height}, got 0)")
        ledger.record([model(height)])
        assert ledger.head == head_of([model(k) for k in range(height + 1)])

    # ---- once each

    @pytest.mark.parametrize("in_one_phase", [True, False])
    def test_a_second_submission_is_refused(self, ledger, in_one_phase):
        first = gradient(0, device(0))
        second = Entry(Kind.GRADIENT, 0, device(0), b"another")
        if in_one_phase:
            with pytest.raises(
                RejectedError, match="AlreadySubmitted: device 0, kind GRADIENT, round 0, step 0"
            ):
                ledger.record([first, second])
        else:
            ledger.record([first])
            refuses(ledger, second, "AlreadySubmitted")
        assert list(ledger.entries()) == ([] if in_one_phase else [first])

    def test_data_are_sent_once_to_each_server(self, ledger):
        """Whether to one only is for the audit to see."""
        sent = [data(0, device(0), 0), data(0, device(0), 1), data(0, device(1), 1)]
        entries = [gradient(0, device(0)), *sent]
        ledger.record(entries)
        refuses(ledger, Entry(Kind.DATA, 0, device(0), b"others", step=1), "AlreadySubmitted")
        again = data(1, device(0), 0)
        ledger.record([model(0), again])
        assert list(ledger.entries()) == [*entries, model(0), again]

    def test_the_same_payload_in_another_round_step_kind_or_by_another_sender_is_no_second_submission(
        self, ledger
    ):
        entries = [
            Entry(kind, 0, server(m), b"same", step)
            for kind in (Kind.GRADIENT, Kind.CONSENSUS)
            for step in (0, 1)
            for m in (0, 1)
        ]
        again = [replace(entry, round=1) for entry in entries]
        ledger.record([*entries, model(0), *again])
        assert list(ledger.entries()) == [*entries, model(0), *again]

    def test_rules_are_given_once_whatever_the_round(self, ledger):
        ledger.record([Entry(Kind.RULES, 0, OPERATOR, b"rules")])
        refuses(ledger, Entry(Kind.RULES, 0, OPERATOR, b"other rules", step=2), "AlreadySubmitted")
        ledger.record([model(0)])
        refuses(ledger, Entry(Kind.RULES, 1, OPERATOR, b"other rules", step=2), "AlreadySubmitted")

    def test_rules_may_come_late_but_once(self, ledger):
        ledger.record([model(0), Entry(Kind.RULES, 1, OPERATOR, b"rules", step=3)])
        refuses(ledger, Entry(Kind.RULES, 1, OPERATOR, b"rules"), "AlreadySubmitted")

    # ---- a round that begins again

    def test_what_was_recorded_before_a_restart_frees_its_place(self, opened):
        ledger = opened(MINED)
        first = [gradient(1, device(0)), Entry(Kind.CONSENSUS, 1, server(1), b"state"), model(1)]
        ledger.record([model(0), *first])
        ledger.record([restart(1, 1)])
        refuses(ledger, seal(1, device(0)), "NothingProposed")
        other = [Entry(Kind.GRADIENT, 1, device(0), b"another"), *first[1:], seal(1, device(0))]
        ledger.record(other)
        assert list(ledger.entries()) == [model(0), *first, restart(1, 1), *other]
        assert ledger.head == head_of([model(0), model(1), seal(1, device(0))], MINED.difficulty_bits)

    def test_restarts_of_a_round_are_counted(self, ledger):
        refuses(ledger, restart(0, 2), "WrongRestart (expected 1, got 2)")
        ledger.record([restart(0, 1)])
        for wrong in (0, 1, 3):
            refuses(ledger, restart(0, wrong), f"WrongRestart (expected 2, got {wrong})")
        ledger.record([restart(0, 2), gradient(0, device(0)), restart(0, 3), gradient(0, device(0))])
        ledger.record([model(0)])
        refuses(ledger, restart(1, 4), "WrongRestart (expected 1, got 4)")
        ledger.record([restart(1, 1)])

    def test_rules_outlast_a_restart(self, ledger):
        ledger.record([Entry(Kind.RULES, 0, OPERATOR, b"rules"), restart(0, 1)])
        refuses(ledger, Entry(Kind.RULES, 0, OPERATOR, b"other rules"), "AlreadySubmitted")

    def test_a_restart_takes_votes_back(self, opened):
        """Those that were enough, and those that were not."""
        ledger = opened(ContractRules(edge_servers=4, quarantine_rounds=2))
        ledger.record([gradient(0, server(m)) for m in range(4)])
        ledger.record([vote(0, 0, 3), vote(0, 1, 3), vote(0, 0, 2)])
        refuses(ledger, gradient(0, server(3), step=1), "ServerQuarantined (until 3)")
        ledger.record([restart(0, 1), gradient(0, server(3))])
        ledger.record([vote(0, 1, 2), vote(0, 1, 3), gradient(0, server(2))])
        ledger.record([vote(0, 0, 3)])
        refuses(ledger, gradient(0, server(3), step=1), "ServerQuarantined (until 3)")

    def test_a_restart_leaves_the_quarantine_of_earlier_rounds(self, opened):
        """Also of a server that was voted out a second time meanwhile."""
        ledger = opened(ContractRules(edge_servers=3, quarantine_rounds=2))
        ledger.record([vote(0, 0, 2), vote(0, 1, 2), model(0)])
        ledger.record([vote(1, 0, 2), vote(1, 1, 2)])
        refuses(ledger, gradient(1, server(2)), "ServerQuarantined (until 4)")
        ledger.record([restart(1, 1)])
        refuses(ledger, gradient(1, server(2)), "ServerQuarantined (until 3)")

    # ---- the end of a run

    @pytest.mark.parametrize("mined", [False, True])
    def test_the_end_of_a_run_is_what_all_of_it_comes_to(self, opened, mined):
        """Whatever was recorded last, with and without a round that began again."""
        ledger = opened(MINED if mined else None)
        assert ledger.recent() == Recent(0)
        phases = run_of(3, mined=mined)
        rules = phases[0][0].payload
        recorded: list[Entry] = []
        for phase in [*phases[:6], [restart(2, 1)], *phases[5:]]:
            ledger.record(phase)
            recorded += phase
            sealed = Kind.SEAL if mined else Kind.MODEL
            height = sum(entry.kind is (sealed if entry.round else Kind.MODEL) for entry in recorded)
            end = tuple(entry for entry in recorded if entry.round >= height - 1)
            assert ledger.recent() == Recent(height, rules, end)
        assert list(ledger.entries()) == recorded

    def test_rules_that_come_late_are_found(self, ledger):
        late = Entry(Kind.RULES, 1, OPERATOR, b"rules", step=3)
        ledger.record([model(0), late, model(1), model(2), gradient(3, device(0))])
        assert ledger.recent() == Recent(3, b"rules", (model(2), gradient(3, device(0))))

    def test_the_end_of_a_run_says_who_is_barred(self, opened):
        ledger = opened(ContractRules(edge_servers=3, quarantine_rounds=1))
        ledger.record([model(0), vote(1, 0, 2), vote(1, 1, 2), vote(1, 0, 1)])
        assert ledger.recent().quarantined_until == {2: 3}
        ledger.record([restart(1, 1)])
        assert ledger.recent().quarantined_until == {}
        ledger.record([vote(1, 0, 1), vote(1, 2, 1)])
        ledger.record([model(1, next_leader(ledger, 1, 3)), model(2, next_leader(ledger, 2, 3))][:1])
        assert ledger.recent().quarantined_until == {1: 3}

    def test_accounts_have_addresses(self, ledger):
        if not self.takes_signatures:
            assert ledger.account(device(0)) == b"" and ledger.holder(bytes(20)) is None
            return
        assert ledger.account(device(0)) == b""
        ledger.record([gradient(0, device(0))])
        assert ledger.account(device(0)) == address(KEYS(device(0)))
        assert ledger.account(OPERATOR) == address(KEYS(OPERATOR))
        assert ledger.account(device(1)) == ledger.account(server(0)) == b""
        assert ledger.holder(address(KEYS(device(0)))) == device(0)
        assert ledger.holder(address(KEYS(OPERATOR))) == OPERATOR
        assert ledger.holder(address(KEYS(device(1)))) is None

    # ---- the rules of a run

    def test_rules_stay_as_they_were_made(self, tmp_path):
        rules = ContractRules(edge_servers=2, leader=1, quarantine_rounds=3)
        ledger = self.make(tmp_path / "run")
        ledger.open(KEYS, rules)
        ledger.record([model(0)])
        ledger.close()
        for other in (
            ContractRules(), replace(rules, edge_servers=3), replace(rules, leader=0),
            replace(rules, leader="any"), replace(rules, difficulty_bits=1),
            replace(rules, quarantine_rounds=4),
        ):  # fmt: skip
            ledger = self.make(tmp_path / "run") if self.stays_on_disk else ledger
            with pytest.raises(LedgerError, match="`rules` must be those of"):
                ledger.open(KEYS, other)
            ledger.close()
        for same in (rules, None):
            ledger = self.make(tmp_path / "run") if self.stays_on_disk else ledger
            ledger.open(KEYS, same)
            refuses(ledger, model(1, server(0)), "NotLeader (expected 1, got 0)")
            ledger.close()

    def test_there_are_no_more_servers_than_the_rules_say(self, opened):
        ledger = opened(ContractRules(edge_servers=2))
        with pytest.raises(
            RejectedError, match=r"^registration refused, UnknownServer \(index 2\): server .*2$"
        ):
            ledger.record([gradient(0, server(1)), gradient(0, server(2))])
        ledger.record([gradient(0, server(1)), gradient(0, device(2))])

    # ---- who leads

    def test_a_drawn_leader(self, opened):
        ledger = opened(ContractRules(edge_servers=4, leader="random"))
        recorded = [model(0)]
        ledger.record(recorded)
        for k, passed in ((1, 0), (2, 1), (3, 7)):
            leader = next_leader(ledger, k, 4, passed)
            for other in range(1, 4):
                wrong = server((leader.index + other) % 4)
                reason = f"NotLeader (expected {leader.index}, got {wrong.index})"
                refuses(ledger, model(k, wrong, passed), reason)
            recorded.append(model(k, leader, passed))
            ledger.record(recorded[-1:])
        assert ledger.head == head_of(recorded)

    def test_a_fixed_leader(self, opened):
        ledger = opened(ContractRules(edge_servers=3, leader=2))
        ledger.record([model(0)])
        refuses(ledger, model(1, server(1)), "NotLeader (expected 2, got 1)")
        refuses(ledger, model(1, server(2), passed=1), "NotLeader (expected 0, got 2)")
        refuses(ledger, model(1, server(1), passed=2**16 - 1), "NotLeader (expected 2, got 1)")
        ledger.record([model(1, server(2))])
        ledger.record([model(2, server(0), passed=1)])
        ledger.record([model(3, server(1), passed=2)])

    def test_a_leader_by_reputation(self, opened):
        """The first is drawn, all others are the servers of the last round's miner."""
        rules = ContractRules(edge_servers=3, leader="reputation", difficulty_bits=5)
        ledger = opened(rules)
        ledger.record([model(0)])
        leader = next_leader(ledger, 1, 3)
        refuses(
            ledger,
            model(1, server((leader.index + 1) % 3)),
            f"NotLeader (expected {leader.index}, got {(leader.index + 1) % 3})",
        )
        ledger.record([model(1, leader), seal(1, device(4), of_server=2)])
        refuses(ledger, model(2, server(1)), "NotLeader (expected 2, got 1)")
        ledger.record([model(2, server(2)), seal(2, server(0), of_server=1)])
        refuses(ledger, model(3, server(1), passed=2), "NotLeader (expected 0, got 1)")
        ledger.record([model(3, server(0), passed=2), seal(3, device(4), of_server=0)])
        refuses(ledger, model(4, server(2)), "NotLeader (expected 0, got 2)")

    def test_any_server_leads_where_no_rule_says_who(self, ledger):
        models = [model(0), model(1, server(5), passed=9), model(2, server(3))]
        ledger.record(models)
        assert ledger.head == head_of(models)

    # ---- proof of work

    def test_a_model_becomes_a_block_when_it_is_sealed(self, opened):
        ledger = opened(MINED)
        entries = [model(0)]
        ledger.record(entries)
        assert ledger.head == head_of([model(0)]) != bytes(32)
        for k, miner in enumerate([device(3), server(1), device(0)], start=1):
            head = ledger.head
            ledger.record([model(k)])
            assert ledger.head == head
            refuses(ledger, model(k, server((k + 1) % 2)), "AlreadySubmitted")
            refuses(ledger, model(k + 1), f"WrongRound (expected {k}, got {k + 1})")
            ledger.record([seal(k, miner, k % 2)])
            entries += [model(k), seal(k, miner, k % 2)]
            assert ledger.head == head_of(entries, MINED.difficulty_bits)
            assert int.from_bytes(ledger.head) >> (256 - MINED.difficulty_bits) == 0
        assert list(ledger.entries()) == entries

    def test_the_open_round_may_go_on_between_model_and_seal(self, opened):
        ledger = opened(MINED)
        entries = [model(0), model(1), gradient(1, device(0)), seal(1, device(0)), gradient(2, device(0))]
        ledger.record(entries)
        assert list(ledger.entries()) == entries
        assert ledger.head == head_of(entries, MINED.difficulty_bits)

    def test_miners_other_than_the_first_find_the_round_sealed(self, opened):
        ledger = opened(MINED)
        ledger.record([model(0), model(1), seal(1, device(1))])
        refuses(ledger, seal(1, device(2)), "WrongRound (expected 2, got 1)")
        refuses(ledger, seal(2, device(2)), "NothingProposed")

    def test_nothing_is_sealed_before_it_is_proposed(self, opened):
        ledger = opened(MINED)
        refuses(ledger, seal(0, device(0)), "NothingProposed")
        ledger.record([model(0)])
        refuses(ledger, seal(1, device(0)), "NothingProposed")
        ledger.record([model(1)])
        refuses(ledger, seal(1, device(0), of_server=2), "UnknownServer (index 2)")
        refuses(ledger, seal(1, OPERATOR), "WrongRole")
        ledger.record([seal(1, device(0), of_server=1)])

    def test_without_a_difficulty_there_is_nothing_to_seal(self, ledger):
        ledger.record([model(0), model(1)])
        refuses(ledger, seal(2, device(0)), "NothingProposed")

    # ---- votes

    @pytest.mark.parametrize(("servers", "quorum"), [(2, 1), (3, 2), (4, 2), (5, 3)])
    def test_more_than_half_of_the_others_vote_a_server_out(self, opened, servers, quorum):
        ledger = opened(ContractRules(edge_servers=servers, quarantine_rounds=2))
        accused = servers - 1
        ledger.record([gradient(0, server(accused))])
        for voter in range(quorum):
            ledger.record([Entry(Kind.CONSENSUS, 0, server(accused), b"", step=voter)])
            ledger.record([vote(0, voter, accused)])
        refuses(ledger, Entry(Kind.CONSENSUS, 0, server(accused), b"", 9), "ServerQuarantined (until 3)")

    def test_votes_of_several_rounds_are_not_added_up(self, opened):
        ledger = opened(ContractRules(edge_servers=4))
        ledger.record([gradient(0, server(3)), vote(0, 0, 3), model(0), vote(1, 1, 3), model(1)])
        ledger.record([vote(2, 2, 3), gradient(2, server(3))])
        ledger.record([vote(2, 1, 3)])
        refuses(ledger, gradient(2, server(3), step=1), "ServerQuarantined (until 13)")

    def test_a_server_that_is_voted_out_can_do_nothing_until_its_rounds_are_over(self, opened):
        rules = ContractRules(edge_servers=3, leader=2, difficulty_bits=4, quarantine_rounds=1)
        ledger = opened(rules)
        ledger.record([model(0), gradient(1, server(2)), vote(1, 0, 2), vote(1, 1, 2)])
        for k in (1, 2):
            for entry in (
                gradient(k, server(2), step=7), Entry(Kind.CONSENSUS, k, server(2), b""), vote(k, 2, 0),
                model(k, server(2)), seal(k, server(2)),
            ):  # fmt: skip
                refuses(ledger, entry, "ServerQuarantined (until 3)")
            ledger.record([model(k, server(0), passed=1)])
            refuses(ledger, seal(k, server(2)), "ServerQuarantined (until 3)")
            ledger.record([seal(k, device(0), of_server=2)])
        ledger.record([
            gradient(3, server(2)), Entry(Kind.CONSENSUS, 3, server(2), b""), vote(3, 2, 0),
            model(3, server(2)), seal(3, server(2)),
        ])  # fmt: skip

    def test_a_quarantine_of_no_rounds_ends_with_its_round(self, opened):
        ledger = opened(ContractRules(edge_servers=2, quarantine_rounds=0))
        ledger.record([gradient(0, server(1)), vote(0, 0, 1)])
        refuses(ledger, gradient(0, server(1), step=1), "ServerQuarantined (until 1)")
        ledger.record([model(0), gradient(1, server(1))])

    def test_votes_against_who_is_voted_out_count_anew(self, opened):
        ledger = opened(ContractRules(edge_servers=2, quarantine_rounds=1))
        ledger.record([gradient(0, server(1)), vote(0, 0, 1), model(0), vote(1, 0, 1)])
        refuses(ledger, gradient(1, server(1)), "ServerQuarantined (until 3)")

    def test_votes_of_who_is_voted_out_later_stay(self, opened):
        ledger = opened(ContractRules(edge_servers=3))
        ledger.record([gradient(0, server(m)) for m in range(3)])
        ledger.record([vote(0, 1, 0), vote(0, 0, 1), vote(0, 2, 1), vote(0, 2, 0)])
        for accused in (0, 1):
            refuses(ledger, gradient(0, server(accused), step=1), "ServerQuarantined (until 11)")

    def test_nobody_votes_twice_on_itself_or_on_a_server_that_is_not_there(self, opened):
        ledger = opened(ContractRules(edge_servers=4))
        ledger.record([gradient(0, server(0)), gradient(0, server(1)), vote(0, 0, 1)])
        refuses(ledger, vote(0, 0, 1), "AlreadySubmitted")
        for accused in (0, 4, 2**16 - 1):  # itself, and two that cannot come
            refuses(ledger, vote(0, 0, accused), f"UnknownServer (index {accused})")
        ledger.record([gradient(0, server(1), step=1)])

    def test_a_server_may_be_voted_out_before_it_says_anything(self, opened):
        ledger = opened(ContractRules(edge_servers=3))
        ledger.record([vote(0, 0, 2), vote(0, 1, 2)])
        refuses(ledger, gradient(0, server(2)), "ServerQuarantined (until 11)")
        ledger.record([gradient(0, server(0))])

    def test_without_a_number_of_servers_there_is_no_vote(self, ledger):
        ledger.record([gradient(0, server(0)), gradient(0, server(1))])
        refuses(ledger, vote(0, 0, 1), "UnknownServer (index 1)")

    def test_the_model_of_who_is_voted_out_can_be_replaced(self, opened):
        rules = ContractRules(edge_servers=3, leader=0, difficulty_bits=4)
        ledger = opened(rules)
        ledger.record([model(0), model(1, server(0))])
        refuses(ledger, model(1, server(1), passed=1), "AlreadySubmitted")
        ledger.record([vote(1, 1, 0), vote(1, 2, 0)])
        refuses(ledger, seal(1, device(0)), "NothingProposed")
        other = Entry(Kind.MODEL, 1, server(1), payload(5), step=1)
        ledger.record([other])
        refuses(ledger, model(1, server(2), passed=2), "AlreadySubmitted")
        ledger.record([seal(1, device(0))])
        assert ledger.head == head_of([model(0), other, seal(1, device(0))], 4)

    def test_a_model_that_came_to_nothing_leaves_no_trace_in_the_head(self, opened):
        """Nor in the timestamp of the one that replaces it."""
        ledger = opened(ContractRules(edge_servers=2, difficulty_bits=4))
        other = Entry(Kind.MODEL, 1, server(1), payload(5))
        ledger.record([model(0), model(1, server(0)), vote(1, 1, 0), other, seal(1, device(0))])
        assert ledger.head == head_of([model(0), other, seal(1, device(0))], 4)
