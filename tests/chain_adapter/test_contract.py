"""The contract itself: what it refuses, getters, rewards, events, and the build."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bench import (
    ADDRESSES,
    STRANGER,
    A,
    B,
    Bench,
    calldata,
    piece,
    propose,
    register,
    relay,
    seal,
    submit,
)
from eth_abi import encode as abi_encode
from eth_hash.auto import keccak
from makers import (
    EPOCH_S,
    KEYS,
    OPERATOR,
    block_hash,
    device,
    gradient,
    head_of,
    mined_hash,
    model,
    server,
    vote,
)
from makers import seal as seal_entry

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, Sender, _contract
from flower_bfl.chain_adapter import digest as digest_of
from flower_bfl.chain_adapter._chain import EvmChain
from flower_bfl.config import ContractRules

CONTRACTS = Path(_contract.__file__).parent / "contracts"
BITS = 4
RULES = ContractRules(edge_servers=3, leader=1, difficulty_bits=BITS, quarantine_rounds=2)
HEAD = head_of([model(0)])
NEW = b"\x11" * 20
NOBODY = f"0x{bytes(20).hex()}"


@pytest.fixture(scope="module")
def ledger() -> EvmLedger:
    """Round 1 is open, with gradients of device 0 and server 0; server 2 is voted out until round 4."""
    ledger = EvmLedger()
    ledger.open(KEYS, RULES)
    start = [gradient(1, sender) for sender in (device(0), device(1), server(0), server(2))]
    ledger.record([model(0), *start, vote(1, 0, 2), vote(1, 1, 2)])
    return ledger


@pytest.fixture
def bench(ledger):
    return Bench(ledger)


@pytest.fixture
def waiting(bench):
    """With model A waiting for its seal."""
    bench.send(server(1), propose(HEAD))
    return bench


def known(sender: Sender) -> str:
    return f"AlreadyRegistered (account 0x{ADDRESSES[sender].hex()})"


def nonce_where(*conditions: tuple[int, bytes, int, bool]) -> int:
    """The first nonce that is good, or bad, for each miner, model and time (in seconds since the first)."""

    def fits(nonce: int, miner: int, digest: bytes, time: int, good: bool) -> bool:
        return (int.from_bytes(block_hash(HEAD, time, miner, nonce, digest)) < 2 ** (256 - BITS)) == good

    return next(nonce for nonce in range(10**5) if all(fits(nonce, *each) for each in conditions))


DEVICE_0, SERVER_0 = 1 << 32, 2 << 32  # miners by their number
GOOD = nonce_where(
    (DEVICE_0, A, 1, True), (DEVICE_0, A, 2, False), (DEVICE_0, B, 1, False), (SERVER_0, A, 1, False)
)
STALE = f"StaleParent (expected 0x{HEAD.hex()}, got 0x{bytes(32).hex()})"
LATE = f"StaleTimestamp (previous {EPOCH_S}"
BARRED = "ServerQuarantined (until 4)"


REFUSALS = [
    (device(0), register([NEW], 1, [5]), 0, "NotOperator"),
    (STRANGER, register([NEW], 1, [5]), 0, "NotOperator"),
    (OPERATOR, register([NEW], 0, [5]), 0, "WrongRole"),
    (OPERATOR, register([NEW], 3, [5]), 0, "WrongRole"),
    (OPERATOR, register([], 1, []), 0, "UnevenRegistration"),
    (OPERATOR, register([NEW], 1, [5, 6]), 0, "UnevenRegistration"),
    (OPERATOR, register([NEW, b"\x12" * 20], 1, [5, 6]), 3, "UnevenRegistration"),
    (OPERATOR, register([ADDRESSES[device(0)]], 1, [5]), 0, known(device(0))),
    (OPERATOR, register([ADDRESSES[OPERATOR]], 1, [5]), 0, known(OPERATOR)),
    (OPERATOR, register([NEW, NEW], 1, [5, 6]), 0, f"AlreadyRegistered (account 0x{NEW.hex()})"),
    (OPERATOR, register([NEW], 1, [0]), 0, "IndexTaken (index 0)"),
    (OPERATOR, register([NEW], 2, [3]), 0, "UnknownServer (index 3)"),
    (STRANGER, submit(Kind.GRADIENT), 0, "NotRegistered"),
    (STRANGER, propose(HEAD), 0, "NotRegistered"),
    (STRANGER, seal(0), 0, "NotRegistered"),
    (STRANGER, piece(0), 0, "NotRegistered"),
    (STRANGER, relay(Kind.GRADIENT, 1, 1, A, b"a", bytes(65)), 0, "BadSignature"),
    (device(0), submit(Kind.MODEL), 0, "WrongKind"),
    (device(0), submit(Kind.SEAL), 0, "WrongKind"),
    (OPERATOR, submit(10), 0, "WrongKind"),
    (device(0), submit(Kind.RESTART), 0, "WrongRole"),
    (server(0), submit(Kind.STATE), 0, "WrongRole"),
    (OPERATOR, submit(Kind.RESTART, 1, 0), 0, "WrongRestart (expected 1, got 0)"),
    (OPERATOR, submit(Kind.RESTART, 1, 2), 0, "WrongRestart (expected 1, got 2)"),
    (OPERATOR, submit(Kind.RESTART, 2), 0, "WrongRound (expected 1, got 2)"),
    (device(0), submit(255), 0, "WrongKind"),
    (server(0), submit(Kind.DATA), 0, "WrongRole"),
    (OPERATOR, submit(Kind.DATA), 0, "WrongRole"),
    (device(0), submit(Kind.DATA, 2), 0, "WrongRound (expected 1, got 2)"),
    (device(0), submit(Kind.DATA, 1, 1, B), 0, "DigestMismatch"),
    (device(0), submit(Kind.RULES), 0, "WrongRole"),
    (device(0), submit(Kind.VOTE), 0, "WrongRole"),
    (device(0), submit(Kind.GRADIENT), 0, "AlreadySubmitted"),
    (device(0), submit(Kind.GRADIENT, 2), 0, "WrongRound (expected 1, got 2)"),
    (device(0), submit(Kind.GRADIENT, 0), 0, "WrongRound (expected 1, got 0)"),
    (device(0), submit(Kind.GRADIENT, 1, 1, B), 0, "DigestMismatch"),
    (device(0), submit(Kind.GRADIENT, 1, 1, A, b"a" * 32), 0, "DigestMismatch"),
    (device(0), submit(Kind.GRADIENT, 1, 1, bytes(32), b""), 0, "DigestMismatch"),
    (server(2), submit(Kind.GRADIENT, 1, 1), 0, BARRED),
    (server(2), submit(Kind.CONSENSUS), 0, BARRED),
    (server(2), submit(Kind.VOTE), 0, BARRED),
    (server(2), propose(HEAD, passed=1), 0, BARRED),
    (server(2), seal(0), 0, BARRED),
    (server(0), submit(Kind.VOTE, 1, 0), 0, "UnknownServer (index 0)"),
    (server(0), submit(Kind.VOTE, 1, 3), 0, "UnknownServer (index 3)"),
    (server(0), submit(Kind.VOTE, 1, 2), 0, "AlreadySubmitted"),
    (device(0), propose(HEAD), 0, "WrongRole"),
    (OPERATOR, propose(HEAD), 0, "WrongRole"),
    (server(0), propose(HEAD), 0, "NotLeader (expected 1, got 0)"),
    (server(1), propose(HEAD, passed=1), 0, "NotLeader (expected 2, got 1)"),
    (server(1), propose(bytes(32)), 0, STALE),
    (server(1), propose(HEAD, digest=B), 0, "DigestMismatch"),
    (server(1), propose(HEAD, digest=bytes(32), payload=b""), 0, "DigestMismatch"),
    (server(1), propose(HEAD, timestamp=EPOCH_S), 0, f"{LATE}, got {EPOCH_S})"),
    (server(1), propose(HEAD, timestamp=0), 0, f"{LATE}, got 0)"),
    (server(1), propose(HEAD, 2), 0, "WrongRound (expected 1, got 2)"),
    (OPERATOR, propose(bytes(32), 0), 0, "WrongRound (expected 1, got 0)"),
    (OPERATOR, seal(0), 0, "WrongRole"),
    (device(0), seal(0, 2), 0, "WrongRound (expected 1, got 2)"),
    (device(0), seal(0), 0, "NothingProposed"),
    (device(0), piece(1), 0, "PieceOutOfOrder (index 1)"),
    (device(0), calldata("noSuchFunction()"), 0, "revert without a known reason (0x)"),
]  # fmt: skip


@pytest.mark.parametrize(("sender", "data", "value", "error"), REFUSALS)
def test_what_the_contract_refuses(bench, sender, data, value, error):
    assert bench.refusal(sender, data, value=value) == error


def test_an_account_that_takes_no_money_is_not_registered(bench):
    refusal = bench.refusal(OPERATOR, register([bench.contract], 1, [5]), value=1)
    assert refusal == f"FundingFailed (account 0x{bench.contract.hex()})"


@pytest.mark.parametrize(
    ("servers", "rule", "fixed", "difficulty"),
    [(3, 4, 0, 0), (0, 1, 0, 0), (0, 2, 0, 1), (0, 3, 0, 0), (3, 3, 3, 0), (3, 2, 0, 0)],
)
def test_rules_that_contradict_each_other(bench, servers, rule, fixed, difficulty):
    types = ["uint16", "uint8", "uint16", "uint8", "uint32"]
    numbers = abi_encode(types, [servers, rule, fixed, difficulty, 1])
    assert bench.refusal(OPERATOR, _contract.BYTECODE + numbers, to=b"") == "BadRules"


def test_kinds_end_with_state():
    """So that a new one comes with its number, and its tests."""
    assert max(Kind) == Kind.STATE == 9


def test_a_restart_goes_to_the_getters(bench):
    """It lifts the quarantine of server 2, and frees the place of what was submitted before."""
    of, votes = ("digestOf(uint8,uint32,uint16,address)", "bytes32"), ("votes(uint32,uint16)", "uint16")
    gradient_0 = Kind.GRADIENT, 1, 0, ADDRESSES[device(0)]
    assert bench.ask("restarts(uint32)", "uint16", 1) == (0,)
    bench.send(OPERATOR, submit(Kind.RESTART, 1, 1))
    assert bench.ask("restarts(uint32)", "uint16", 1) == (1,)
    assert bench.ask("restarts(uint32)", "uint16", 0) == (0,)
    assert bench.ask(*of, *gradient_0) == (bytes(32),)
    assert bench.ask(*of, Kind.RESTART, 1, 1, ADDRESSES[OPERATOR]) == (A,)
    assert bench.ask(*votes, 1, 2) == (0,)
    account = bench.ask("accounts(address)", "bool,uint8,uint32,uint32,uint64", ADDRESSES[server(2)])
    assert account == (True, 2, 2, 0, 0)
    bench.send(device(0), submit(Kind.GRADIENT, 1, 0))
    assert bench.ask(*of, *gradient_0) == (A,)
    again = submit(Kind.RESTART, 1, 1)
    assert bench.refusal(OPERATOR, again) == "WrongRestart (expected 2, got 1)"


def test_data_go_to_the_getters(bench):
    """Once for each edge server; whose number the contract does not look at."""
    for step in (0, 2, 2**16 - 1):
        bench.send(device(0), submit(Kind.DATA, 1, step))
        assert bench.refusal(device(0), submit(Kind.DATA, 1, step)) == "AlreadySubmitted"
        of = ("digestOf(uint8,uint32,uint16,address)", "bytes32")
        assert bench.ask(*of, Kind.DATA, 1, step, ADDRESSES[device(0)]) == (A,)


def test_a_waiting_model_is_not_replaced(waiting):
    assert waiting.refusal(server(0), propose(HEAD, passed=2, digest=B, payload=b"b")) == "AlreadySubmitted"
    assert waiting.refusal(device(0), seal(GOOD, of_server=3)) == "UnknownServer (index 3)"


def test_a_nonce_is_good_for_one_miner_only(waiting):
    """Nobody can seal with what somebody else has found."""
    assert waiting.refusal(device(0), seal(nonce_where((DEVICE_0, A, 1, False)))) == "BadNonce"
    assert waiting.refusal(server(0), seal(GOOD)) == "BadNonce"
    assert waiting.refusal(device(0), seal(GOOD, of_server=2)) == ""
    assert waiting.ask("head()", "bytes32") == (block_hash(HEAD, 1, DEVICE_0, GOOD, A),)


@pytest.mark.parametrize(("digest", "payload", "time"), [(B, b"b", 1), (A, b"a", 2)])
def test_a_nonce_is_good_for_one_model_and_time_only(bench, digest, payload, time):
    bench.send(server(1), propose(HEAD, timestamp=EPOCH_S + time, digest=digest, payload=payload))
    assert bench.refusal(device(0), seal(GOOD)) == "BadNonce"
    assert bench.refusal(device(0), seal(nonce_where((DEVICE_0, digest, time, True)))) == ""


def test_miners_are_paid_a_reward_for_each_block():
    ledger = EvmLedger()
    ledger.open(KEYS, ContractRules(edge_servers=2, difficulty_bits=3))
    miners = [device(1), server(0), device(1), device(0), device(1)]
    ledger.record([model(0)])
    for k, miner in enumerate(miners, start=1):
        ledger.record([model(k), seal_entry(k, miner)])
    bench = Bench(ledger)
    for sender in (device(0), device(1), server(0), server(1), OPERATOR):
        account = bench.ask("accounts(address)", "bool,uint8,uint32,uint32,uint64", ADDRESSES[sender])
        assert account == (True, sender.role, sender.index, 0, miners.count(sender))


def test_a_proposal_and_a_seal_go_to_the_getters(waiting):
    address = f"0x{ADDRESSES[server(1)].hex()}"
    assert waiting.ask("proposal()", "address,uint64,bytes32") == (address, EPOCH_S + 1, A)
    waiting.send(device(0), seal(GOOD, of_server=2))
    block = (block_hash(HEAD, 1, DEVICE_0, GOOD, A), A, EPOCH_S + 1, DEVICE_0, GOOD, 2)
    assert waiting.ask("blocks(uint32)", "bytes32,bytes32,uint64,uint64,uint64,uint16", 1) == block
    assert waiting.ask("proposal()", "address,uint64,bytes32") == (NOBODY, 0, bytes(32))
    assert waiting.ask("height()", "uint32") == (2,)


def test_every_error_of_the_contract_is_provoked_here():
    """So that a new one comes with its test."""
    spec = json.loads((CONTRACTS / "FlowerBFL.json").read_text())
    names = {item["name"] for item in spec["abi"] if item["type"] == "error"}
    in_other_tests = {"FundingFailed", "BadRules", "BadNonce"}
    assert {error.split(" ")[0] for *_, error in REFUSALS} == names - in_other_tests | {"revert"}


def test_registration_shares_the_money_equally(bench):
    others = [b"\x13" * 20, b"\x14" * 20, b"\x15" * 20]
    bench.send(OPERATOR, register(others, 1, [7, 8, 9]), value=3 * 10**18)
    balances = [bench.block._vm.state.get_balance(other) for other in others]
    assert balances == [10**18] * 3
    account = bench.ask("accounts(address)", "bool,uint8,uint32,uint32,uint64", others[1])
    assert account == (True, 1, 8, 0, 0)


def test_the_getters(bench):
    address = {sender: f"0x{value.hex()}" for sender, value in ADDRESSES.items()}
    assert bench.ask("operator()", "address") == (address[OPERATOR],)
    for getter, value in (
        ("servers()", 3), ("leaderRule()", 3), ("fixedLeader()", 1), ("difficulty()", BITS),
        ("quarantineRounds()", 2), ("height()", 1),
    ):  # fmt: skip
        assert bench.ask(getter, "uint256") == (value,)
    assert bench.ask("head()", "bytes32") == (HEAD,)
    block = bench.ask("blocks(uint32)", "bytes32,bytes32,uint64,uint64,uint64,uint16", 0)
    assert block == (HEAD, digest_of(model(0).payload), EPOCH_S, 0, 0, 0)
    account = ("accounts(address)", "bool,uint8,uint32,uint32,uint64")
    assert bench.ask(*account, ADDRESSES[STRANGER]) == (False, 0, 0, 0, 0)
    assert bench.ask(*account, ADDRESSES[server(2)]) == (True, 2, 2, 4, 0)
    assert bench.ask("holderOf(uint8,uint32)", "address", 1, 0) == (address[device(0)],)
    assert bench.ask("holderOf(uint8,uint32)", "address", 0, 0) == (address[OPERATOR],)
    assert bench.ask("holderOf(uint8,uint32)", "address", 2, 5) == (NOBODY,)
    assert bench.ask("votes(uint32,uint16)", "uint16", 1, 2) == (2,)
    assert bench.ask("votes(uint32,uint16)", "uint16", 0, 2) == (0,)
    assert [bench.ask("leader(uint16)", "uint16", passed)[0] for passed in (0, 1, 2, 3, 2**16 - 1)] == [
        (1 + passed) % 3 for passed in (0, 1, 2, 3, 2**16 - 1)
    ]
    of = ("digestOf(uint8,uint32,uint16,address)", "bytes32")
    digest = digest_of(gradient(1, server(0)).payload)
    assert bench.ask(*of, Kind.GRADIENT, 1, 0, ADDRESSES[server(0)]) == (digest,)
    assert bench.ask(*of, Kind.GRADIENT, 1, 1, ADDRESSES[server(0)]) == (bytes(32),)
    assert bench.ask(*of, Kind.VOTE, 1, 2, ADDRESSES[server(1)]) == (digest_of(b"evidence"),)


def test_pieces_are_kept_by_their_digest(bench):
    bench.send(device(0), piece(0, b"first"))
    bench.send(device(0), piece(1, b"second"))
    assert bench.refusal(device(0), piece(1, b"second")) == "AlreadySubmitted"
    get = ("pieces(address,bytes32,uint32)", "bytes32", ADDRESSES[device(0)], A)
    assert [bench.ask(*get, index)[0] for index in range(3)] == [
        digest_of(b"first"),
        digest_of(b"second"),
        bytes(32),
    ]


# ---- events, from which an explorer reads a run


def test_the_events_tell_the_run():
    rules = ContractRules(edge_servers=2, difficulty_bits=3, quarantine_rounds=4)
    ledger = EvmLedger()
    ledger.open(KEYS, rules)
    state = Entry(Kind.CONSENSUS, 0, server(0), b"state", 3)
    phase = [state, model(0), model(1), vote(1, 1, 0), seal_entry(1, device(0), 1)]
    number = ledger.record(phase).block
    told = [
        (log[1][0], [int.from_bytes(topic) for topic in log[1][1:]], log[2])
        for position in range(7)
        for log in EvmChain(ledger._database).receipt(number, position)[3]
    ]

    def event(signature: str, indexed: list[object], types: str, *values: object) -> tuple[object, ...]:
        return keccak(signature.encode()), indexed, abi_encode(types.split(","), values)

    account = {sender: int.from_bytes(address) for sender, address in ADDRESSES.items()}
    operator, miner = account[OPERATOR], account[device(0)]
    registered, sealed = "Registered(address,uint8,uint32)", "Sealed(uint32,address,bytes32,uint64,uint16)"
    submitted = "Submitted(uint32,address,uint8,uint16,bytes32)"
    proposed = "Proposed(uint32,address,uint16,bytes32,uint64)"
    digests = [digest_of(model(k).payload) for k in (0, 1)]
    heads = [head_of([model(0)]), mined_hash(head_of([model(0)]), 1, device(0), digests[1], 3)]
    nonce = next(n for n in range(10**5) if block_hash(heads[0], 1, DEVICE_0, n, digests[1]) == heads[1])
    assert told == [
        event(registered, [miner, 1], "uint32", 0),
        event(registered, [account[server(0)], 2], "uint32", 0),
        event(registered, [account[server(1)], 2], "uint32", 1),
        event(
            submitted, [0, account[server(0)]], "uint8,uint16,bytes32", Kind.CONSENSUS, 3, digest_of(b"state")
        ),
        event(proposed, [0, operator], "uint16,bytes32,uint64", 0, digests[0], EPOCH_S),
        event(sealed, [0, operator], "bytes32,uint64,uint16", heads[0], 0, 0),
        event(proposed, [1, account[server(1)]], "uint16,bytes32,uint64", 0, digests[1], EPOCH_S + 1),
        event(
            submitted, [1, account[server(1)]], "uint8,uint16,bytes32", Kind.VOTE, 0, digest_of(b"evidence")
        ),
        event("Quarantined(uint16,uint32,uint32)", [0, 1], "uint32", 6),
        event(sealed, [1, miner], "bytes32,uint64,uint16", heads[1], nonce, 1),
    ]  # fmt: skip


# ---- the build


def test_the_package_has_what_the_compiler_makes_of_the_source(tmp_path):
    """Compile FlowerBFL.sol again, as compile.mjs says, with the compiler from npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js with npm is not installed")
    quiet = ["--no-save", "--no-audit", "--no-fund", "--fetch-retries=0"]
    install = ["npm", "install", *quiet, "--prefix", str(tmp_path), "solc@0.8.30"]
    try:
        installed = subprocess.run(install, capture_output=True, text=True, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry did not answer within 100 s")
    if installed.returncode != 0:
        pytest.skip(f"npm could not install solc: {installed.stderr.strip()[-200:]}")
    for name in ("FlowerBFL.sol", "compile.mjs"):
        shutil.copy(CONTRACTS / name, tmp_path)
    subprocess.run(["node", "compile.mjs"], cwd=tmp_path, timeout=100, check=True)
    assert json.loads((tmp_path / "FlowerBFL.json").read_text()) == json.loads(
        (CONTRACTS / "FlowerBFL.json").read_text()
    )
