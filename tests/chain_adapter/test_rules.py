"""The rules in Python against the rules in the contract, on runs that hypothesis makes up.

What it makes up is mostly right where the run stands, and wrong in one thing now and then.
"""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from makers import EPOCH_S, KEYS, OPERATOR, device, server

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, MemoryLedger, Role, Sender, _contract
from flower_bfl.chain_adapter import digest as digest_of
from flower_bfl.chain_adapter._accounts import Account
from flower_bfl.chain_adapter._chain import EvmChain, RevertedError
from flower_bfl.chain_adapter._rules import RuleBook, find_nonce
from flower_bfl.config import ContractRules
from flower_bfl.errors import RejectedError

DEVICES = 2
OFTEN = settings(max_examples=20, stateful_step_count=50, suppress_health_check=list(HealthCheck))
Draw = Any  # hypothesis' function


@st.composite
def contract_rules(draw: Draw) -> ContractRules:
    servers = draw(st.integers(0, 5))
    difficulty_bits = draw(st.integers(0, 4))
    leaders: list[Any] = ["any"]
    if servers:
        leaders += ["random", draw(st.integers(0, servers - 1))] + ["reputation"] * (difficulty_bits > 0)
    return ContractRules(servers, draw(st.sampled_from(leaders)), difficulty_bits, draw(st.integers(0, 3)))


@st.composite
def seldom(draw: Draw, usual: Any, *others: Any) -> Any:
    """The usual value, or one of the others in one case of five."""
    return draw(st.sampled_from(others)) if draw(st.integers(0, 4)) == 4 else usual


def server_count(rules: ContractRules) -> int:
    return rules.edge_servers or 3


@st.composite
def right_entries(draw: Draw, book: RuleBook) -> Entry:
    """An entry that is right where the book stands, unless it was submitted before."""
    count = server_count(book.rules)
    barred = {index for index, until in book.quarantined_until.items() if book.height < until}
    free = [index for index in range(count) if index not in barred] or [0]
    known = sorted(book.servers & set(free))
    what = draw(
        st.sampled_from([*["model or seal", "other"] * 3, "restart", *["vote"] * 3 * (len(known) > 1)])
    )
    a_server = st.sampled_from(free).map(server)
    a_miner = st.sampled_from([device(0), device(1), *map(server, free)])
    step = draw(st.integers(0, count - 1))
    waits = book.proposal is not None and book.proposal.proposer.index not in barred
    if what == "vote":
        proposers = [book.proposal.proposer.index] * len(known) if waits and book.proposal else []
        accused = draw(st.sampled_from([index for index in proposers if index in known] + known))
        voter = draw(st.sampled_from([index for index in free if index != accused]))
        return Entry(Kind.VOTE, book.height, server(voter), b"evidence", accused)
    if what == "restart":
        return Entry(Kind.RESTART, book.height, OPERATOR, b"", book.restarts + 1)
    if what == "other":
        kind = draw(
            st.sampled_from([Kind.GRADIENT, Kind.DATA, Kind.CONSENSUS, Kind.RULES, Kind.REPORT, Kind.STATE])
        )
        a_device = st.sampled_from([device(0), device(1)])
        senders = {Kind.GRADIENT: a_miner, Kind.DATA: a_device, Kind.CONSENSUS: a_server}
        return Entry(kind, book.height, draw(senders.get(kind, st.just(OPERATOR))), b"a" * 33, step)
    if waits:
        return Entry(Kind.SEAL, book.height, draw(a_miner), b"", step)
    name = bytes([book.height])
    if book.height == 0:
        return Entry(Kind.MODEL, 0, OPERATOR, name, step)
    if book.rules.leader == "any":
        return Entry(Kind.MODEL, book.height, draw(a_server), name, step)
    able = [passed for passed in range(count) if book.leader(passed) in free] or [0]
    passed = draw(st.sampled_from(able))
    return Entry(Kind.MODEL, book.height, server(book.leader(passed)), name, passed)


@st.composite
def entries(draw: Draw, book: RuleBook) -> Entry:
    """An entry that is right where the book stands, or has one slip."""
    entry = draw(right_entries(book))
    slip = draw(seldom("", "kind", "round", "sender", "barred", "step", "seal"))
    if slip == "kind":
        entry = replace(entry, kind=draw(st.sampled_from(Kind)), payload=b"")
    elif slip == "round":
        entry = replace(entry, round=draw(st.sampled_from([book.height + 1, max(book.height - 1, 0)])))
    elif slip == "sender":
        everybody = [OPERATOR, device(0), device(1), *map(server, range(server_count(book.rules)))]
        entry = replace(entry, sender=draw(st.sampled_from(everybody)))
    elif slip == "barred" and book.quarantined_until:
        entry = replace(entry, sender=server(draw(st.sampled_from(sorted(book.quarantined_until)))))
    elif slip == "seal":
        entry = Entry(Kind.SEAL, book.height, device(0), b"", entry.step)
    elif slip == "step":
        entry = replace(
            entry, step=draw(st.sampled_from([server_count(book.rules), entry.step + 1, 2**16 - 1]))
        )
    return entry


# ---- single calls, also such that no ledger makes


class Calls(RuleBasedStateMachine):
    """Each call goes to the rule book and to the contract: the same answer, and both stand at the same place.

    All senders are registered but, at first, the last edge server. The block of the calls is never sealed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rewards: dict[Sender, int] = {}

    @initialize(rules=contract_rules())
    def start(self, rules: ContractRules) -> None:
        ledger = EvmLedger()
        ledger.open(KEYS, rules)
        self.ledger, self.contract = ledger, ledger.contract_address
        self.block = EvmChain(ledger._database).begin(None)
        self.book = RuleBook(rules)
        self.servers = list(map(server, range(server_count(rules))))
        self.register(*map(device, range(DEVICES)))
        if self.servers[:-1]:
            self.register(*self.servers[:-1])
        self.late = self.servers[-1]

    def register(self, *senders: Sender) -> None:
        addresses = {sender: Account.of(KEYS, sender).address for sender in senders}
        self.send(OPERATOR, _contract.register(addresses), value=10**24 * len(senders))
        for sender in senders:
            self.book.register(sender)
            self.rewards[sender] = 0

    def send(self, sender: Sender, data: bytes, value: int = 0) -> str:
        """The contract's error; empty if it takes the call."""
        account = Account.of(KEYS, sender)
        nonce = self.block.nonce(account.address)
        try:
            self.block.apply(account.sign(nonce, 10**6, self.contract, data, value))
        except RevertedError as error:
            return _contract.read_error(error.output)
        return ""

    def ask(self, function: str, *words: int | bytes) -> list[int]:
        answer = self.block.view(self.contract, _contract.view(function, *words))
        return [int.from_bytes(answer[start : start + 32]) for start in range(0, len(answer), 32)]

    @precondition(lambda self: self.late not in self.rewards)
    @rule()
    def register_the_last(self) -> None:
        self.register(self.late)

    @rule(data=st.data())
    def call(self, data: Any) -> None:
        book = self.book
        entry = data.draw(entries(book))
        if entry.sender.role is Role.SERVER and entry.sender not in self.rewards:
            return  # the contract alone knows whom it has registered
        note(str(entry))
        name, trial = digest_of(entry.payload), book.copy()
        try:
            if entry.kind is Kind.MODEL:
                parent = data.draw(seldom(book.head, bytes(32), name))
                last_s = -1 if book.last is None else book.last.timestamp_s
                timestamp_s = data.draw(seldom(last_s + data.draw(st.integers(1, 9)), last_s, last_s - 1, 0))
                timestamp_s = max(timestamp_s, 0)
                calldata = _contract.propose(entry, name, entry.payload, parent, timestamp_s)
                trial.propose(entry, name, timestamp_s, parent)
            elif entry.kind is Kind.SEAL:
                nonce = data.draw(seldom(self.good_nonce(entry), 0, 1, 2**64 - 1))
                calldata = _contract.seal(entry, nonce)
                trial.seal(entry, nonce)
            else:
                calldata = _contract.submit(entry, name, entry.payload)
                trial.submit(entry)
            expected, self.book = "", trial
        except RejectedError as error:
            expected = str(error).removeprefix("entry refused, ").rsplit(": ", 1)[0]
        assert self.send(entry.sender, calldata) == expected
        if entry.kind is Kind.SEAL and not expected:
            self.rewards[entry.sender] += 1
        if entry.kind in (Kind.VOTE, Kind.SEAL, Kind.RESTART) and not expected:
            self.check_where_they_stand()

    def good_nonce(self, entry: Entry) -> int:
        proposal, book = self.book.proposal, self.book
        if proposal is None:
            return 5
        return find_nonce(
            book.head, proposal.timestamp_s, entry.sender, proposal.digest, book.rules.difficulty_bits
        )

    def check_where_they_stand(self) -> None:
        book = self.book
        assert self.ask("height") == [book.height]
        assert self.ask("head") == [int.from_bytes(book.head)]
        if book.rules.leader != "any":
            for passed in (0, 2**16 - 1):
                assert self.ask("leader", passed) == [book.leader(passed)]
        for sender, rewards in self.rewards.items():
            until = book.quarantined_until.get(sender.index, 0) if sender.role is Role.SERVER else 0
            address = Account.of(KEYS, sender).address
            assert self.ask("accounts", address) == [1, sender.role, sender.index, until, rewards]
        if book.last is not None:
            last = book.last
            miner = 0 if last.miner is None else last.miner.role << 32 | last.miner.index
            hashes = [int.from_bytes(last.hash), int.from_bytes(last.digest)]
            assert self.ask("blocks", book.height - 1) == [
                *hashes, last.timestamp_s, miner, last.nonce, last.server,
            ]  # fmt: skip

    def teardown(self) -> None:
        if self.rewards:
            self.check_where_they_stand()


# ---- whole ledgers


class Phases(RuleBasedStateMachine):
    """Phases go to a ledger in memory and to a chain: the same answer, head and entries."""

    def __init__(self) -> None:
        super().__init__()
        self.ledgers: list[Any] = [MemoryLedger(), EvmLedger()]
        self.recorded: list[Entry] = []

    @initialize(rules=contract_rules())
    def start(self, rules: ContractRules) -> None:
        self.guide = RuleBook(rules)
        for ledger in self.ledgers:
            ledger.open(KEYS, rules)

    @rule(data=st.data(), count=st.integers(1, 5))
    def record(self, data: Any, count: int) -> None:
        book, phase = self.guide.copy(), []
        for _ in range(count):
            phase.append(entry := data.draw(entries(book)))
            trial = book.copy()
            try:
                trial.register(entry.sender)
                trial.note(entry, digest_of(entry.payload))
                book = trial
            except RejectedError:
                pass
        answers = [self.answer(ledger, phase) for ledger in self.ledgers]
        assert answers[0] == answers[1]
        if not answers[0]:
            self.recorded += phase
            self.guide = book
        assert self.ledgers[0].head == self.ledgers[1].head == self.guide.head

    @staticmethod
    def answer(ledger: Any, phase: list[Entry]) -> str:
        try:
            ledger.record(phase)
        except RejectedError as error:
            known, _, where = str(error).rpartition(": ")
            return known if known.startswith("registration") else f"{known}: {where}"
        return ""

    @rule()
    def open_again(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
            ledger.open(KEYS)

    def teardown(self) -> None:
        for ledger in self.ledgers:
            assert list(ledger.entries()) == self.recorded
            ledger.close()


class TestCalls(Calls.TestCase):
    settings: ClassVar[settings] = OFTEN


class TestPhases(Phases.TestCase):
    settings: ClassVar[settings] = OFTEN


@pytest.mark.slow
class TestManyCalls(Calls.TestCase):
    settings: ClassVar[settings] = settings(OFTEN, max_examples=400)


@pytest.mark.slow
class TestManyPhases(Phases.TestCase):
    settings: ClassVar[settings] = settings(OFTEN, max_examples=200)


def test_logical_time_starts_with_2020():
    assert RuleBook().next_timestamp_s(3, None) == EPOCH_S + 3
