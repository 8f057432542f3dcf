"""The ledger on nodes: the conformance suite, other ledgers as judges, money, blocks, what a URL hides."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from conformance import LedgerConformance
from eth_account import Account
from eth_account.messages import encode_typed_data
from makers import (
    EPOCH_S,
    KEYS,
    MINED,
    OPERATOR,
    device,
    gradient,
    head_of,
    model,
    of_phases,
    run_of,
    seal,
    server,
    vote,
)
from nodes import (  # noqa: F401  # fixtures
    FAULTS,
    Proxy,
    anvil_fixture,
    free_port,
    hardhat_fixture,
    node_modules_fixture,
    proxy_fixture,
    started_anvil,
)
from web3.exceptions import ContractCustomError

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, Ledger, MemoryLedger, PayloadStore, RpcLedger
from flower_bfl.chain_adapter import simulated_keys as keys_of_seed
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, LedgerError, RejectedError

ETHER = 10**18
FUNDER = sha256(b"funder").digest()


@pytest.fixture(scope="class")
def anvil_of_class(node_modules) -> Iterator[str]:
    with started_anvil(node_modules) as url:
        yield url


class TestOnAnvil(LedgerConformance):
    stays_on_disk = True

    @pytest.fixture(autouse=True)
    def _node(self, anvil_of_class):
        self.url = anvil_of_class

    def make(self, folder: Path) -> Ledger:
        return RpcLedger(self.url, folder=folder)


@pytest.mark.slow
class TestOnAnvilFull(TestOnAnvil):
    def make(self, folder: Path) -> Ledger:
        return RpcLedger(self.url, folder=folder, payloads="full")


class TestOnHardhat(LedgerConformance):
    stays_on_disk = True

    @pytest.fixture(autouse=True)
    def _node(self, hardhat):
        self.url = hardhat

    def make(self, folder: Path) -> Ledger:
        return RpcLedger(self.url, folder=folder)


Make = Callable[..., RpcLedger]


@pytest.fixture
def make(anvil) -> Iterator[Make]:
    """Makes ledgers on anvil, and closes them."""
    ledgers: list[RpcLedger] = []

    def made(url: str = anvil, **options: object) -> RpcLedger:
        ledgers.append(RpcLedger(url, **options))  # type: ignore[arg-type]
        return ledgers[-1]

    yield made
    for ledger in ledgers:
        ledger.close()


def call(ledger: RpcLedger, method: str, *params: object) -> object:
    answer = ledger.web3.provider.make_request(method, params)
    assert "error" not in answer, answer
    return answer["result"]


def address_of(key: bytes) -> str:
    return Account.from_key(key).address


def in_background(work: Callable[[], object]) -> Callable[[], object]:
    """Starts the work; what it returns waits for its result."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def result() -> object:
        thread.join()
        return results[0]

    return result


def wait_until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.01)


# ---- other ledgers as judges


@pytest.mark.parametrize("payloads", ["auto", "full", "digest"])
def test_a_mined_run_with_votes_is_the_same_on_every_ledger(tmp_path, make, payloads):
    large = Entry(Kind.CONSENSUS, 3, server(0), bytes(range(250)) * 700)
    last = [large, gradient(3, server(1), 30_000)], [vote(3, 0, 1)], [model(3, server(0)), seal(3, server(0))]
    phases = [*run_of(2, mined=True), *last]
    ledgers = MemoryLedger(), EvmLedger(payloads=payloads), make(folder=tmp_path, payloads=payloads)
    receipts = []
    for ledger in ledgers:
        ledger.open(KEYS, MINED)
        receipts.append([ledger.record(phase) for phase in phases])
    heads = {ledger.head for ledger in ledgers}
    assert heads == {head_of(of_phases(phases), MINED.difficulty_bits)}
    _, evm, rpc = ledgers
    assert list(rpc.entries()) == of_phases(phases)
    assert rpc.transactions == evm.transactions
    for in_process, on_node in zip(receipts[1], receipts[2], strict=True):
        for name in ("transactions", "calldata_bytes", "stored_bytes"):
            assert getattr(on_node, name) == getattr(in_process, name)
    deployed = call(rpc, "eth_getTransactionReceipt", transactions_of(rpc)[0])
    assert rpc.gas == sum(receipt.gas for receipt in receipts[2]) + int(deployed["gasUsed"], 16)


def transactions_of(ledger: RpcLedger) -> list[str]:
    """Hashes of the contract's transactions, by web3.py from its events."""
    address = ledger.web3.to_checksum_address(ledger.contract_address)
    logs = ledger.web3.eth.get_logs({"address": address, "fromBlock": 0})
    return list(dict.fromkeys("0x" + log["transactionHash"].hex() for log in logs))


def test_who_signed_what_as_web3_and_a_wallet_see_it(make):
    ledger = make()
    ledger.open(KEYS)
    for phase in run_of(1):
        ledger.record(phase)
    recorded = list(ledger.recorded())
    for each in recorded:
        transaction = ledger.web3.eth.get_transaction(each.transaction_hash)
        assert transaction["from"] == address_of(KEYS(each.entry.sender))
        assert (transaction["blockNumber"], transaction["transactionIndex"]) == (each.block, each.transaction)
        assert ledger.web3.to_checksum_address(each.account) == transaction["from"]
    functions = ledger.web3_contract.functions
    assert functions.head().call() == ledger.head == recorded[-1].bfl_hash
    assert functions.height().call() == 2
    assert functions.operator().call() == address_of(KEYS(OPERATOR))
    with ledger.web3.batch_requests() as batch:
        batch.add(ledger.web3.eth.get_block("latest"))
        batch.add(functions.height())
        block, height = batch.execute()
    assert block["number"] == ledger.block_number and height == 2
    with pytest.raises(ContractCustomError):
        functions.submit(Kind.REPORT, 0, 0, bytes(32), b"").call()
    assert ledger.web3.is_connected()
    with pytest.raises(LedgerError, match="Connection refused, 1 times"):
        make(f"http://127.0.0.1:{free_port()}", retries=0).web3.is_connected(show_traceback=True)


def test_an_update_signed_in_a_wallet_is_relayed(make):
    """eth_account writes the typed data in its own way, from the names in docs/keys.md."""
    ledger = make()
    ledger.open(KEYS)
    key, entry = keys_of_seed(3)(device(5)), gradient(0, device(5))
    chain_id, contract = ledger.domain
    domain = {"name": "FlowerBFL", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    fields = {"kind": "uint8", "round": "uint32", "step": "uint16", "digest": "bytes32"}
    types = {"Entry": [{"name": name, "type": kind} for name, kind in fields.items()]}
    values = (Kind.GRADIENT, 0, 0, sha256(entry.payload).digest())
    message = encode_typed_data(domain, types, dict(zip(fields, values, strict=True)))
    signed = replace(entry, signature=Account.sign_message(message, key).signature)
    ledger.record([signed])
    (recorded,) = ledger.recorded()
    assert recorded.entry == signed
    assert ledger.web3.to_checksum_address(recorded.account) == address_of(key)


# ---- reading


def test_a_run_is_read_by_contract_address_without_keys(tmp_path, make):
    writer = make(folder=tmp_path / "run")
    writer.open(KEYS, MINED)
    for phase in run_of(1, mined=True):
        writer.record(phase)
    large = [gradient(2, device(0), 30_000)]
    writer.record(large)
    contract = "0x" + writer.contract_address.hex()
    reader = make(contract=contract, store=PayloadStore(tmp_path / "run" / "payloads"))
    assert list(reader.entries()) == of_phases([*run_of(1, mined=True), large])
    for name in ("head", "domain", "rules", "block_number", "block_hash", "transactions", "gas"):
        assert getattr(reader, name) == getattr(writer, name)
    assert reader.rules == MINED
    writer.record([model(2)])
    assert reader.block_number == writer.block_number
    with pytest.raises(LedgerError, match=r"call `open\(keys\)` first"):
        reader.record([model(2)])
    away = make(contract=contract, folder=tmp_path / "away")
    with pytest.raises(LedgerError, match=r"block \d+, transaction 0: payload file .* is missing"):
        list(away.entries())
    assert not (tmp_path / "away").exists()


def test_a_folder_remembers_its_contract(tmp_path, make):
    ledger = make(folder=tmp_path)
    ledger.open(KEYS)
    remembered = json.loads((tmp_path / "chain.json").read_text())
    assert remembered == {
        "format": "flower-bfl chain 1",
        "chain_id": 31337,
        "contract": "0x" + ledger.contract_address.hex(),
        "first_block": ledger.block_number,
    }
    again = make(folder=tmp_path)
    again.open(KEYS)
    assert again.contract_address == ledger.contract_address


def test_a_contract_is_continued_by_address(tmp_path, make):
    first = make()
    first.open(KEYS)
    first.record([model(0)])
    second = make(folder=tmp_path, contract="0x" + first.contract_address.hex())
    second.open(KEYS)
    second.record([model(1)])
    assert second.head == head_of([model(0), model(1)])
    assert (tmp_path / "chain.json").exists()


def test_a_folder_that_cannot_be_written(tmp_path, make):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "locked").mkdir()
    with pytest.raises(LedgerError, match=rf"chain file {tmp_path / 'taken' / 'chain.json'} cannot be read"):
        make(folder=tmp_path / "taken").open(KEYS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "flower-bfl chain 1"}'])
def test_a_damaged_chain_file(tmp_path, make, text):
    (tmp_path / "chain.json").write_text(text)
    with pytest.raises(LedgerError, match=rf"chain file {tmp_path / 'chain.json'} cannot be read"):
        make(folder=tmp_path).open(KEYS)


def test_a_folder_of_another_chain_or_contract(tmp_path, make, node_modules):
    first, other = make(folder=tmp_path / "run"), make()
    first.open(KEYS)
    other.open(KEYS)
    with pytest.raises(LedgerError, match="`url` and `contract` must be those of"):
        make(folder=tmp_path / "run", contract="0x" + other.contract_address.hex()).open(KEYS)
    message = r"chain 31337 .* found chain 5"
    with started_anvil(node_modules, "--chain-id", "5") as url, pytest.raises(LedgerError, match=message):
        make(url, folder=tmp_path / "run").open(KEYS)


def test_an_address_without_a_contract_and_with_another_one(make):
    nobody = "0x" + "11" * 20
    with pytest.raises(LedgerError, match=f"there must be a contract at {nobody} on chain 31337, found none"):
        list(make(contract=nobody).entries())
    deployer = make()
    deployer.open(KEYS)
    account = call(deployer, "eth_accounts")[0]
    code = "0x6001600c60003960016000f300"  # a contract that does nothing: one byte, STOP
    made = call(deployer, "eth_sendTransaction", {"from": account, "data": code})
    wait_until(lambda: call(deployer, "eth_getTransactionReceipt", made))
    address = call(deployer, "eth_getTransactionReceipt", made)["contractAddress"]
    with pytest.raises(LedgerError, match="no contract of this version of FlowerBFL"):
        _ = make(contract=address).head
    with pytest.raises(LedgerError):
        list(make(contract=address).entries())


def test_a_node_that_leaves_out_a_model_or_changes_a_transaction_is_noticed(make, monkeypatch):
    ledger = make()
    ledger.open(KEYS)
    for phase in run_of(1):
        ledger.record(phase)
    honest = ledger._node._try

    def lying(changed):
        def answers(calls):
            return [changed(method, answer) for (method, _), answer in zip(calls, honest(calls), strict=True)]

        monkeypatch.setattr(ledger._node, "_try", answers)

    lying(lambda method, answer: answer[:-2] if method == "eth_getLogs" else answer)
    with pytest.raises(LedgerError, match="must end with its model"):
        list(ledger.entries())
    for field, value in (("nonce", "0x77"), ("input", "0x"), ("s", "0x1"), ("type", "0x0"), ("to", 5)):

        def changed(method, answer, field=field, value=value):
            return {**answer, field: value} if method == "eth_getTransactionByHash" else answer

        lying(changed)
        with pytest.raises(LedgerError, match=r"block \d+, transaction 0: the node at .* has another one"):
            list(ledger.entries())


# ---- keys, money


def test_a_contract_opens_only_with_its_own_operators_keys(make):
    first = make()
    first.open(KEYS)
    second = make(contract="0x" + first.contract_address.hex())
    with pytest.raises(LedgerError, match="`keys` must be those of the contract 0x"):
        second.open(keys_of_seed(8))
    with pytest.raises(LedgerError, match="call `open"):
        second.record([model(0)])


def test_another_key_for_a_registered_device_is_refused(make):
    ledger = make()
    ledger.open(lambda sender: KEYS(sender if sender != device(7) else device(0)))
    ledger.record([gradient(0, device(0))])
    with pytest.raises(RejectedError, match=r"AlreadyRegistered \(account 0x\w+\): device 7"):
        ledger.record([gradient(0, device(7))])
    ledger.open(lambda sender: (KEYS if sender != device(0) else keys_of_seed(8))(sender))
    with pytest.raises(RejectedError, match=r"registration refused, IndexTaken \(index 0\): device 0"):
        ledger.record([gradient(0, device(0), step=1)])


@pytest.fixture(scope="module")
def public_node(node_modules) -> Iterator[str]:
    """A node that signs for nobody, with blocks at their time and little room in it."""
    options = ("--accounts", "0", "--block-time", "0.2", "--gas-limit", "12000000")
    with started_anvil(node_modules, *options) as url:
        yield url


def test_a_node_without_money_says_who_needs_it(make, public_node):
    operator = address_of(KEYS(OPERATOR))
    with pytest.raises(LedgerError, match=rf"(?i){operator} .* needs 0\.\d+ ether and has 0"):
        make(public_node).open(KEYS)
    with pytest.raises(LedgerError, match="pass a richer `funder`"):
        make(public_node, funder=FUNDER).open(KEYS)


def test_a_funder_pays_and_blocks_keep_the_order_of_a_phase(make, public_node):
    """24 entries of 24,000 bytes: more than one block holds; signed in an order that is not that of names."""
    ledger = make(public_node, funder=FUNDER)
    call(ledger, "anvil_setBalance", address_of(FUNDER), hex(100 * ETHER))
    ledger.open(KEYS)
    phase = [gradient(0, device(17 * n % 6), 20_000, n // 6) for n in range(24)]
    receipt = ledger.record(phase)
    assert list(ledger.entries()) == phase
    blocks = {recorded.block for recorded in ledger.recorded()}
    assert len(blocks) > 1 and receipt.block == max(blocks)
    ledger.record([model(0), gradient(1, device(1)), model(1)])
    assert ledger.head == head_of([model(0), model(1)])
    left = ledger.web3.eth.get_balance(address_of(FUNDER))
    assert 0 < left < 100 * ETHER


def test_an_account_that_runs_low_gets_more(make):
    ledger = make()
    ledger.open(KEYS)
    ledger.record([gradient(0, device(0))])
    for key in (KEYS(device(0)), KEYS(OPERATOR)):
        call(ledger, "anvil_setBalance", address_of(key), "0x1")
    ledger.record([gradient(0, device(0), step=1)])
    assert len(list(ledger.entries())) == 2


# ---- fees, gas, other programs, chains that are set back


def test_fees_that_have_become_too_low_are_raised(make, node_modules):
    with started_anvil(node_modules) as url:
        ledger = make(url, timeout_s=0.3, retries=30)
        ledger.open(KEYS)
        ledger.record([gradient(0, device(0))])
        call(ledger, "evm_setAutomine", False)
        done = in_background(lambda: ledger.record([gradient(0, device(0), step=1)]))
        watcher = make(url)
        wait_until(lambda: call(watcher, "txpool_status")["pending"] != "0x0")
        call(watcher, "anvil_setNextBlockBaseFeePerGas", hex(5 * 10**9))
        call(watcher, "evm_mine")  # takes nothing
        wait_until(lambda: dearest(watcher) >= 5 * 10**9)
        call(watcher, "evm_setAutomine", True)
        call(watcher, "evm_mine")
        assert done().transactions == 1
        assert list(ledger.entries()) == [gradient(0, device(0)), gradient(0, device(0), step=1)]


def dearest(ledger: RpcLedger) -> int:
    pending = call(ledger, "txpool_content")["pending"]
    fees = (int(each["maxFeePerGas"], 16) for account in pending.values() for each in account.values())
    return max(fees, default=0)


def test_a_transaction_that_runs_out_of_gas_is_sent_again_with_more(make, monkeypatch):
    ledger = make(payloads="full")
    ledger.open(KEYS)
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_phase.gas_limit", lambda data, accounts=0: 60_000)
    phase = [gradient(0, device(0)), gradient(0, device(1)), gradient(0, device(0), step=1), model(0)]
    ledger.record(phase)
    assert sorted(ledger.entries(), key=phase.index) == phase
    assert ledger.head == head_of([model(0)])


def test_gas_that_is_not_enough_without_another_try_is_an_error(make, monkeypatch):
    ledger = make(retries=0)
    ledger.open(KEYS)
    ledger.record([gradient(0, device(0))])
    monkeypatch.setattr("flower_bfl.chain_adapter._rpc_phase.gas_of", lambda entry, data: 40_000)
    phase = [gradient(0, device(0), step=1)]
    with pytest.raises(LedgerError, match=r"device 0, kind GRADIENT.*: it ran out of 40000 gas"):
        ledger.record(phase)
    ledger.record(phase)
    assert len(list(ledger.entries())) == 2


def test_a_chain_from_before_base_fees(make, node_modules):
    with (
        started_anvil(node_modules, "--hardfork", "berlin") as url,
        pytest.raises(LedgerError, match=r"must have base fees \(EIP-1559\), found none"),
    ):
        make(url).open(KEYS)


def test_a_contract_that_others_go_on_with_is_followed(make):
    mine = make()
    mine.open(KEYS)
    mine.record([model(0), gradient(1, device(0))])
    theirs = make(contract="0x" + mine.contract_address.hex())
    theirs.open(KEYS)
    theirs.record([gradient(1, device(1)), model(1)])
    with pytest.raises(RejectedError, match=r"WrongRound \(expected 2, got 1\)"):
        mine.record([gradient(1, device(2))])
    mine.record([gradient(2, device(1))])
    assert mine.head == head_of([model(0), model(1)])


def test_a_phase_that_the_contract_refuses_after_all(make):
    """Another program records the same round while this one makes its plan."""
    first = make()
    first.open(KEYS)
    theirs = make(contract="0x" + first.contract_address.hex())
    theirs.open(KEYS)

    def clock() -> int:
        if theirs.head == bytes(32):
            theirs.record([model(0)])
        return EPOCH_S

    mine = make(contract="0x" + first.contract_address.hex(), clock=clock)
    mine.open(KEYS)
    other = replace(model(0), payload=b"another")
    message = r"kind MODEL, round 0, step 0 from 0x\w+ was refused, WrongRound \(expected 1, got 0\)"
    with pytest.raises(LedgerError, match=message) as caught:
        mine.record([other])
    assert not isinstance(caught.value, RejectedError)  # which would promise that nothing is recorded
    assert list(mine.entries()) == [model(0)]
    mine.record([model(1)])
    assert len(list(mine.entries())) == 2


def test_a_chain_that_was_set_back(make, node_modules):
    with started_anvil(node_modules) as url:
        ledger = make(url)
        ledger.open(KEYS)
        ledger.record([model(0)])
        snapshot = call(ledger, "evm_snapshot")
        phase = [gradient(1, device(0)), model(1)]
        ledger.record(phase)
        reader = make(url, contract="0x" + ledger.contract_address.hex())
        assert reader.head == head_of([model(0), model(1)])
        assert call(ledger, "evm_revert", snapshot)
        for _ in range(2):
            with pytest.raises(LedgerError, match="reorganised or set back: open the ledger again"):
                ledger.record([gradient(2, device(0))])
        assert reader.head == head_of([model(0)])
        ledger.open(KEYS)
        ledger.record(phase)
        assert list(ledger.entries()) == [model(0), *phase]


def test_a_node_that_starts_anew_without_its_chain(tmp_path, make, node_modules):
    port = free_port()
    with started_anvil(node_modules, port=port) as url:
        ledger = make(url, folder=tmp_path, retries=1)
        ledger.open(KEYS)
        ledger.record([model(0)])
    with pytest.raises(LedgerError, match=rf"the node at {url} gives no answer: Connection refused, 2 times"):
        ledger.record([model(1)])
    with started_anvil(node_modules, port=port):
        with pytest.raises(LedgerError, match="reorganised or set back"):
            ledger.record([model(1)])
        for lost in (ledger, make(url, folder=tmp_path)):
            with pytest.raises(LedgerError, match=r"there must be a contract at .* has lost its chain"):
                lost.open(KEYS)


def test_transactions_of_a_crashed_run_are_waited_for(make, node_modules):
    with started_anvil(node_modules) as url:
        crashed = make(url, timeout_s=0.2, retries=0)
        crashed.open(KEYS)
        crashed.record([gradient(0, device(0))])
        call(crashed, "evm_setAutomine", False)
        phase = [gradient(0, device(0), step=1)]
        with pytest.raises(LedgerError, match="the node took it, but no block has it yet"):
            crashed.record(phase)
        contract = "0x" + crashed.contract_address.hex()
        with pytest.raises(LedgerError, match="has transactions that wait to be mined"):
            make(url, contract=contract, timeout_s=0.2).open(KEYS)
        later = make(url, contract=contract)
        opened = in_background(lambda: later.open(KEYS))
        call(crashed, "evm_mine")
        opened()
        with pytest.raises(RejectedError, match="AlreadySubmitted"):
            later.record(phase)
        crashed.record(phase)  # the one that sent them finds them
        assert len(list(later.entries())) == 2


# ---- the URL


SECRETS = ("s3cretuser", "s3cretword", "s3cretpath", "s3cretkey")
SECRET_URL = "http://s3cretuser:s3cretword@127.0.0.1:{}/v3/s3cretpath?token=s3cretkey"


def test_credentials_are_sent_and_never_shown(tmp_path, caplog, capfd, make, anvil, proxy):
    caplog.set_level(logging.DEBUG)
    ledger = make(SECRET_URL.format(proxy.port), folder=tmp_path, retries=0)
    ledger.open(KEYS)
    ledger.record([model(0)])
    assert ledger.web3.is_connected()
    authorization = "Basic " + b64encode(b"s3cretuser:s3cretword").decode()
    assert set(proxy.targets) == {("/v3/s3cretpath?token=s3cretkey", authorization)}
    shown = [repr(ledger), str(ledger), repr(ledger.web3.provider), str(ledger.web3.provider)]
    for fault in (*FAULTS, "echo"):
        proxy.fault = lambda calls, fault=fault: fault
        shown.append(printed_error(lambda: list(ledger.entries())))
        assert bool(shown[-1]) == (fault not in ("twice", "reorder"))
    for port in (free_port(), anvil.rpartition(":")[2]):  # nobody listens; another path than the node's
        other = make(SECRET_URL.format(port), contract="0x" + "22" * 20, retries=0)
        shown.append(printed_error(lambda other=other: list(other.entries())))
        assert f"http://127.0.0.1:{port}" in shown[-1]
        assert not other.web3.is_connected()
    shown += [caplog.text, *capfd.readouterr(), (tmp_path / "chain.json").read_text()]
    assert [secret for secret in (*SECRETS, authorization) for text in shown if secret in text] == []


def printed_error(work: Callable[[], object]) -> str:
    """All that Python prints of the LedgerError that this leads to; nothing if it leads to none."""
    try:
        work()
    except LedgerError:
        return traceback.format_exc()
    return ""


@pytest.mark.parametrize(
    "url",
    [
        "", "s3cretword", "ftp://s3cretuser:s3cretword@host", "http://", "http://host:s3cretword",
        "http://s3cretuser:s3/cretword@host", "http://s3cretuser:12#s3cretword@host", "http://[s3cretword",
        "http://host/s3cret path", "http://host/s3cretpäth", "http://host/\ns3cretpath", None,
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_one_is_not_shown_either(url):
    with pytest.raises(ConfigError, match="`url`") as caught:
        RpcLedger(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"payloads": "ipfs"}, r"`payloads` must be one of \['auto', 'digest', 'full'\], got 'ipfs'"),
        ({"timeout_s": 0}, "`timeout_s` must be > 0 and `retries` >= 0, got 0 and 6"),
        ({"retries": -1}, "`retries` >= 0, got 30.0 and -1"),
        ({"contract": "0x12"}, "`contract` must be 0x and 40 hexadecimal digits, got '0x12'"),
        ({"funder": bytes(32)}, "`funder` must be a private key, 32 bytes"),
        ({"funder": b"short"}, "`funder` must be a private key, 32 bytes"),
    ],
)
def test_arguments_that_break_a_rule(options, message):
    with pytest.raises(ConfigError, match=message):
        RpcLedger("http://127.0.0.1:8545", **options)


def test_a_ledger_that_was_never_opened_asks_nothing():
    ledger = RpcLedger(f"http://127.0.0.1:{free_port()}")
    assert (ledger.head, ledger.transactions, ledger.gas, ledger.rules) == (bytes(32), 0, 0, ContractRules())
    assert list(ledger.entries()) == []
    assert repr(ledger).startswith("RpcLedger('http://127.0.0.1:")


def test_importing_the_package_does_not_load_web3():
    code = (
        "import sys, flower_bfl, flower_bfl.chain_adapter as c; "
        "assert not {'eth_account', 'web3', 'coincurve'} & set(sys.modules); "
        "c.RpcLedger; assert 'web3' in sys.modules; assert flower_bfl.RpcLedger is c.RpcLedger"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ})
