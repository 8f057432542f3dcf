"""A proxy goes wrong before anvil: what is recorded is there once, or an error says what to do."""

import random
from collections.abc import Callable
from contextlib import closing

import pytest
from eth_account import Account
from makers import KEYS, MINED, OPERATOR, device, gradient, head_of, model, of_phases, run_of, seal, server
from nodes import (  # noqa: F401  # fixtures
    FAULTS,
    Proxy,
    anvil_fixture,
    node_modules_fixture,
    proxy_fixture,
    started_anvil,
)

from flower_bfl.chain_adapter import Entry, Kind, RpcLedger
from flower_bfl.errors import LedgerError

PHASES = run_of(1, mined=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Tries follow each other at once."""
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_node._FIRST_PAUSE_S", 0.001)


def contents(anvil: str, ledger: RpcLedger) -> list:
    """The entries by another object, straight from the node; it compares their head with the contract's."""
    reader = RpcLedger(anvil, contract="0x" + ledger.contract_address.hex(), store=ledger._store)
    try:
        entries = list(reader.entries())
        assert reader.head == ledger.head == head_of(entries, MINED.difficulty_bits)
        return entries
    finally:
        reader.close()


def insist(work: Callable[[], object]) -> int:
    """Do it until there is no error, as the errors ask for; how many there were."""
    for failures in range(200):
        try:
            work()
            return failures
        except LedgerError:
            continue
    raise AssertionError("it never ends")


# ---- faults that pass: nobody notices


@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_goes_wrong_once(anvil, proxy, fault):
    """The same request comes again, and goes right."""
    seen: set[str] = set()

    def first_time(calls: list) -> str | None:
        name = str(calls)
        seen.symmetric_difference_update({name})
        return fault if name in seen else None

    proxy.fault = first_time
    ledger = RpcLedger(proxy.url, retries=1)
    ledger.open(KEYS, MINED)
    receipts = [ledger.record(phase) for phase in PHASES]
    assert contents(anvil, ledger) == of_phases(PHASES)
    registrations = 2  # of all devices, and of all servers
    transactions = sum(receipt.transactions for receipt in receipts)
    assert transactions == len(of_phases(PHASES)) + registrations
    assert ledger.transactions == transactions + 1
    ledger.close()


def test_late_answers(anvil, proxy):
    proxy.late_s = 0.4
    proxy.fault = lambda calls: "late" if len(proxy.requests) % 7 == 3 else None
    ledger = RpcLedger(proxy.url, timeout_s=0.2, retries=5)
    ledger.open(KEYS, MINED)
    for phase in PHASES:
        ledger.record(phase)
    assert contents(anvil, ledger) == of_phases(PHASES)
    ledger.close()


@pytest.mark.parametrize("seed", range(4))
def test_anything_may_go_wrong_at_any_time(anvil, proxy, seed):
    """Half of all requests fail, with few tries: each phase is recorded again until it is through."""
    draw = random.Random(seed)
    proxy.fault = lambda calls: draw.choice(FAULTS) if draw.random() < 0.5 else None
    ledger = RpcLedger(proxy.url, retries=1)
    failures = insist(lambda: ledger.open(KEYS, MINED))
    for phase in PHASES:
        failures += insist(lambda phase=phase: ledger.record(phase))
    proxy.fault = lambda calls: None
    assert failures > 0
    assert contents(anvil, ledger) == of_phases(PHASES)
    ledger.close()


def test_transactions_that_get_lost_are_sent_again(anvil, proxy):
    """The node says that it takes them, and forgets every third one, and then those that wait for it."""
    draw, lost = random.Random(1), 0

    def lose(calls: list) -> str | None:
        nonlocal lost
        lose = calls[0][0] == "eth_sendRawTransaction" and draw.random() < 0.3
        lost += lose
        return "swallow" if lose else None

    ledger = RpcLedger(proxy.url, timeout_s=0.1, retries=8)
    ledger.open(KEYS, MINED)
    proxy.fault = lose
    for phase in PHASES:
        ledger.record(phase)
    expected = of_phases(PHASES)  # in another order, where one of a phase was late
    assert sorted(contents(anvil, ledger), key=expected.index) == expected
    assert lost > 3
    ledger.close()


def test_a_nonce_that_another_program_takes(anvil, proxy):
    ledger = RpcLedger(proxy.url, timeout_s=0.2, retries=6)
    ledger.open(KEYS)
    key = KEYS(OPERATOR)
    fields = {"to": "0x" + "33" * 20, "gas": 21_000, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 1}
    web3 = ledger.web3
    nonce = web3.eth.get_transaction_count(Account.from_key(key).address)
    other = Account.sign_transaction(fields | {"nonce": nonce, "chainId": web3.eth.chain_id}, key)

    def overtake(calls: list) -> str | None:
        if calls[0][0] != "eth_sendRawTransaction":
            return None
        proxy.fault = lambda calls: None
        RpcLedger(anvil).web3.eth.send_raw_transaction(other.raw_transaction)
        return "swallow"

    proxy.fault = overtake
    ledger.record([model(0)])
    assert contents(anvil, ledger) == [model(0)]
    assert web3.eth.get_transaction(other.hash)["nonce"] == nonce
    ledger.close()


def test_an_answer_that_trickles(anvil, proxy):
    proxy.late_s = 1.0
    proxy.fault = lambda calls: "trickle" if len(proxy.requests) == 4 else None
    ledger = RpcLedger(proxy.url, timeout_s=0.2, retries=1)
    ledger.open(KEYS)
    assert proxy.requests[3] == proxy.requests[4]
    assert contents(anvil, ledger) == []
    proxy.fault = lambda calls: "trickle"
    with pytest.raises(LedgerError, match=r"gives no answer: nothing within 0\.2 s, 2 times in a row"):
        ledger.record([model(0)])
    ledger.close()


@pytest.mark.parametrize("payloads", ["auto", "full"])
def test_a_node_that_can_do_little(anvil, proxy, monkeypatch, payloads):
    """Few blocks of logs at once, no old states, no accounts, connections that do not stay."""
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_log._FETCHED", 2)
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_log._KEPT", 2)
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_node._IDLE_S", -1)

    def too_much(method: str, parameters: list) -> bool:
        if method == "eth_getLogs":
            return int(parameters[0]["toBlock"], 16) - int(parameters[0]["fromBlock"], 16) > 4
        return method == "eth_accounts" or (method == "eth_getCode" and parameters[1] != "latest")

    RpcLedger(anvil).open(KEYS)  # has the operator paid
    proxy.fault = lambda calls: "echo" if too_much(*calls[0]) else None
    ledger = RpcLedger(proxy.url, payloads=payloads)
    ledger.open(KEYS)
    phase = [gradient(0, device(n), 170_000) for n in range(2)] + [model(0)]
    ledger.record(phase)
    reader = RpcLedger(proxy.url, contract="0x" + ledger.contract_address.hex(), store=ledger._store)
    assert sorted(reader.entries(), key=phase.index) == phase
    assert reader.head == ledger.head
    proxy.fault = lambda calls: "echo" if calls[0][0] == "eth_getLogs" else None
    with pytest.raises(LedgerError, match=r"refuses eth_getLogs: no / for None"):
        list(reader.entries())
    ledger.close()
    reader.close()


# ---- faults that stay: an error within bounded tries, and the same phase again finishes


PHASE = [
    model(0), gradient(1, device(0)), gradient(1, device(5), 30_000), model(1), seal(1, device(4), 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "opens"), [("drop before", False), ("drop after", False), ("drop after", True)]
)
def test_the_node_goes_away_at_any_point_of_a_phase(node_modules, fault, opens):
    """After each number of requests in turn, until the phase is through without the fault."""
    with started_anvil(node_modules) as anvil, closing(Proxy(anvil)) as proxy:
        assert go_away_at_any_point(anvil, proxy, fault, opens) > 20


def go_away_at_any_point(anvil: str, proxy: Proxy, fault: str, opens: bool) -> int:
    """The number of requests that the phase needs."""
    for allowed in range(100):
        ledger = RpcLedger(proxy.url, retries=1)
        ledger.open(KEYS, MINED)
        last = len(proxy.requests) + allowed
        proxy.fault = lambda calls, last=last: fault if len(proxy.requests) > last else None
        try:
            ledger.record(PHASE)
            through = True
        except LedgerError as error:
            through = False
            assert f"the node at {proxy.url} gives no answer" in str(error)
            assert len(proxy.requests) == last + 2  # the one that failed, and its second try
            if sent(proxy.requests[last - allowed :]):
                with pytest.raises(LedgerError, match="phase before is recorded in part: record it again"):
                    ledger.record([Entry(Kind.REPORT, 0, OPERATOR, b"another")])
            proxy.fault = lambda calls: None
            if opens:
                insist(lambda ledger=ledger: ledger.open(KEYS))
            insist(lambda ledger=ledger: ledger.record(iter(PHASE)))
        proxy.fault = lambda calls: None
        assert contents(anvil, ledger) == PHASE
        assert ledger.transactions == len(PHASE) + 3  # creation, registration of devices and of servers
        ledger.close()
        if through:
            return allowed
    raise AssertionError("the phase never ends")


def test_after_an_error_open_lets_another_phase_go_on(anvil, proxy):
    ledger = RpcLedger(proxy.url, retries=0)
    ledger.open(KEYS)
    proxy.fault = lambda calls: "drop before" if calls[0][0] == "eth_sendRawTransaction" else None
    with pytest.raises(LedgerError, match="gives no answer"):
        ledger.record([model(0)])
    proxy.fault = lambda calls: None
    ledger.open(KEYS)
    ledger.record([Entry(Kind.REPORT, 0, OPERATOR, b"instead")])
    assert contents(anvil, ledger) == [Entry(Kind.REPORT, 0, OPERATOR, b"instead")]
    ledger.close()


def sent(requests: list[list[str]]) -> bool:
    return any("eth_sendRawTransaction" in methods for methods in requests)


def test_the_node_goes_away_at_any_point_of_open(anvil, proxy):
    """However often it is tried, one contract is made."""
    for allowed in range(100):
        ledger = RpcLedger(proxy.url, retries=0)
        made = contracts_of_operator(anvil)
        last = len(proxy.requests) + allowed
        proxy.fault = lambda calls, last=last: "drop after" if len(proxy.requests) > last else None
        try:
            ledger.open(KEYS)
            through = True
        except LedgerError:
            through = False
            proxy.fault = lambda calls: None
            insist(lambda ledger=ledger: ledger.open(KEYS))
        proxy.fault = lambda calls: None
        assert contracts_of_operator(anvil) == made + 1
        ledger.close()
        if through:
            break
    assert through and allowed > 8


def contracts_of_operator(anvil: str) -> int:
    """How many contracts are on the node that say that they are this operator's."""
    node = RpcLedger(anvil)
    operator = Account.from_key(KEYS(OPERATOR)).address
    topics = [node.web3.keccak(text="Registered(address,uint8,uint32)"), "0x" + operator[2:].rjust(64, "0")]
    logs = node.web3.eth.get_logs({"fromBlock": 0, "topics": topics})
    node.close()
    return len(logs)


def test_results_of_another_form_are_an_error_of_ours(anvil, proxy):
    """One method after the other answers nonsense; the phase is finished when it stops."""
    ledger = RpcLedger(proxy.url, retries=0, timeout_s=0.2)
    ledger.open(KEYS)
    ledger.record([model(0)])
    methods = sorted({method for request in proxy.requests for method in request})
    recorded = [model(0)]
    for step, wrong in enumerate(methods):
        proxy.fault = lambda calls, wrong=wrong: "nonsense" if (wrong in dict(calls)) else None
        phase = [gradient(1, device(0), step=step), Entry(Kind.CONSENSUS, 1, server(step % 3), b"", step)]
        for work in (lambda: list(ledger.entries()), lambda phase=phase: ledger.record(phase)):
            try:
                work()
            except LedgerError as error:
                assert proxy.url in str(error)
        proxy.fault = lambda calls: None
        if list(ledger.entries()) == recorded or ledger._phase is not None:
            ledger.record(phase)
        recorded += phase
        assert list(ledger.entries()) == recorded
    assert len(methods) > 10
    ledger.close()


def test_what_the_node_says_against_a_transaction_is_passed_on(anvil):
    """An account without money, which nobody tops up: whose it is, and what to do."""
    ledger = RpcLedger(anvil, retries=1)
    ledger.open(KEYS)
    ledger.record([gradient(0, device(0))])
    address = Account.from_key(KEYS(device(0))).address
    provider = ledger.web3.provider
    ledger._outbox.fund = lambda *_: []
    provider.make_request("anvil_setBalance", [address, "0x1"])
    message = rf"(?i)device 0, .* from {address}: the node says '.*'; send it money"
    with pytest.raises(LedgerError, match=message):
        ledger.record([gradient(0, device(0), step=1)])
    provider.make_request("anvil_setBalance", [address, hex(10**18)])
    ledger.record([gradient(0, device(0), step=1)])
    assert len(contents(anvil, ledger)) == 2
    ledger.close()
