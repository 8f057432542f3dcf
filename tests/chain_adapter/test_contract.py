"""The contract itself: calls that the ledger never makes, getters, calldata by eth_abi, and the build."""

import json
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from conformance import EPOCH_S, KEYS, OPERATOR, device, gradient, head_of, model, server
from eth_abi import decode as abi_decode
from eth_abi import encode as abi_encode
from eth_hash.auto import keccak

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, Sender, _contract
from flower_bfl.chain_adapter import digest as digest_of
from flower_bfl.chain_adapter._accounts import Account
from flower_bfl.chain_adapter._chain import EvmChain, RevertedError

CONTRACTS = Path(_contract.__file__).parent / "contracts"
STRANGER = Sender(device(0).role, 77)  # has a key and money, but no role
A, B = digest_of(b"a"), digest_of(b"b")
ADDRESSES = {
    sender: Account.of(KEYS, sender).address for sender in (OPERATOR, device(0), server(0), STRANGER)
}


def calldata(signature: str, *values: object) -> bytes:
    """By the general codec, not by our own."""
    types = signature[signature.index("(") + 1 : -1].split(",")
    return keccak(signature.encode())[:4] + abi_encode([name for name in types if name], values)


def submit(kind: int, step: int = 0, digest: bytes = A, payload: bytes = b"a") -> bytes:
    return calldata("submit(uint8,uint32,uint16,bytes32,bytes)", kind, 1, step, digest, payload)


def publish(server_round: int, timestamp: int, digest: bytes = A, payload: bytes = b"a") -> bytes:
    signature = "publish(uint32,uint64,uint64,bytes32,bytes)"
    return calldata(signature, server_round, timestamp, 0, digest, payload)


def piece(index: int, data: bytes = b"x") -> bytes:
    return calldata("piece(bytes32,uint32,bytes)", A, index, data)


def register(accounts: list[bytes], role: int, indices: list[int]) -> bytes:
    return calldata("register(address[],uint8,uint32[])", accounts, role, indices)


@pytest.fixture(scope="module")
def ledger() -> EvmLedger:
    """With device 0 and server 0 registered, model 0, and a gradient of each in round 1."""
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([model(0), gradient(1, device(0)), gradient(1, server(0))])
    return ledger


class Bench:
    """A block at the end of a ledger's chain that is never sealed: calls go straight to the contract."""

    def __init__(self, ledger: EvmLedger) -> None:
        self.contract = ledger.contract_address
        self.block = EvmChain(ledger._database).begin(None)
        self.send(OPERATOR, b"", to=ADDRESSES[STRANGER], value=10**24)

    def send(self, sender: Sender, data: bytes, to: bytes | None = None, value: int = 0) -> None:
        account = Account.of(KEYS, sender)
        nonce = self.block.nonce(account.address)
        self.block.apply(account.sign(nonce, 10**6, to or self.contract, data, value))

    def ask(self, signature: str, answer: list[str], *values: object) -> tuple[object, ...]:
        return abi_decode(answer, self.block.view(self.contract, calldata(signature, *values)))


@pytest.fixture
def bench(ledger):
    return Bench(ledger)


NEW = b"\x11" * 20


def known(sender: Sender) -> str:
    return f"AlreadyRegistered (account 0x{ADDRESSES[sender].hex()})"


@pytest.mark.parametrize(
    ("sender", "data", "value", "error"),
    [
        (device(0), register([NEW], 1, [5]), 0, "NotOperator"),
        (STRANGER, register([NEW], 1, [5]), 0, "NotOperator"),
        (OPERATOR, register([NEW], 0, [5]), 0, "WrongRole"),
        (OPERATOR, register([NEW], 3, [5]), 0, "WrongRole"),
        (OPERATOR, register([], 1, []), 0, "UnevenRegistration"),
        (OPERATOR, register([NEW], 1, [5, 6]), 0, "UnevenRegistration"),
        (OPERATOR, register([NEW, b"\x12" * 20], 1, [5, 6]), 3, "UnevenRegistration"),
        (OPERATOR, register([ADDRESSES[device(0)]], 1, [5]), 0, known(device(0))),
        (OPERATOR, register([ADDRESSES[OPERATOR]], 2, [5]), 0, known(OPERATOR)),
        (OPERATOR, register([NEW, NEW], 1, [5, 6]), 0, f"AlreadyRegistered (account 0x{NEW.hex()})"),
        (OPERATOR, register([NEW], 1, [0]), 0, "IndexTaken (index 0)"),
        (STRANGER, submit(Kind.GRADIENT), 0, "NotRegistered"),
        (STRANGER, publish(1, EPOCH_S + 9), 0, "NotRegistered"),
        (STRANGER, piece(0), 0, "NotRegistered"),
        (device(0), submit(Kind.MODEL), 0, "WrongKind"),
        (device(0), submit(255), 0, "WrongKind"),
        (device(0), submit(Kind.RULES), 0, "WrongRole"),
        (device(0), submit(Kind.GRADIENT), 0, "AlreadySubmitted"),
        (device(0), submit(Kind.GRADIENT, 1, B), 0, "DigestMismatch"),
        (device(0), submit(Kind.GRADIENT, 1, A, b"a" * 32), 0, "DigestMismatch"),
        (device(0), submit(Kind.GRADIENT, 1, bytes(32), b""), 0, "DigestMismatch"),
        (server(0), publish(1, EPOCH_S + 1, B), 0, "DigestMismatch"),
        (server(0), publish(1, EPOCH_S + 1, bytes(32), b""), 0, "DigestMismatch"),
        (server(0), publish(1, EPOCH_S), 0, f"StaleTimestamp (previous {EPOCH_S}, got {EPOCH_S})"),
        (server(0), publish(1, EPOCH_S - 1), 0, f"StaleTimestamp (previous {EPOCH_S}, got {EPOCH_S - 1})"),
        (server(0), publish(2, EPOCH_S + 9), 0, "WrongRound (expected 1, got 2)"),
        (OPERATOR, publish(0, EPOCH_S + 9), 0, "WrongRound (expected 1, got 0)"),
        (device(0), piece(1), 0, "PieceOutOfOrder (index 1)"),
        (device(0), calldata("noSuchFunction()"), 0, "revert without a known reason (0x)"),
    ],
)  # fmt: skip
def test_what_the_contract_refuses(bench, sender, data, value, error):
    with pytest.raises(RevertedError) as caught:
        bench.send(sender, data, value=value)
    assert _contract.read_error(caught.value.output) == error


def test_an_account_that_takes_no_money_is_not_registered(bench):
    with pytest.raises(RevertedError) as caught:
        bench.send(OPERATOR, register([bench.contract], 1, [5]), value=1)
    assert _contract.read_error(caught.value.output) == f"FundingFailed (account 0x{bench.contract.hex()})"


def test_every_error_of_the_contract_is_provoked_here():
    """So that a new one comes with its test."""
    spec = json.loads((CONTRACTS / "FlowerBFL.json").read_text())
    names = {item["name"] for item in spec["abi"] if item["type"] == "error"}
    assert names == {
        "NotOperator", "NotRegistered", "AlreadyRegistered", "IndexTaken", "UnevenRegistration",
        "FundingFailed", "WrongRole", "WrongKind", "WrongRound", "StaleTimestamp", "AlreadySubmitted",
        "DigestMismatch", "PieceOutOfOrder",
    }  # fmt: skip


def test_registration_shares_the_money_equally(bench):
    others = [b"\x13" * 20, b"\x14" * 20, b"\x15" * 20]
    bench.send(OPERATOR, register(others, 2, [7, 8, 9]), value=3 * 10**18)
    balances = [bench.block._vm.state.get_balance(other) for other in others]
    assert balances == [10**18] * 3
    assert bench.ask("accounts(address)", ["bool", "uint8", "uint32"], others[1]) == (True, 2, 8)


def test_the_getters(bench):
    address = {sender: f"0x{value.hex()}" for sender, value in ADDRESSES.items()}
    assert bench.ask("operator()", ["address"]) == (address[OPERATOR],)
    assert bench.ask("height()", ["uint32"]) == (1,)
    assert bench.ask("head()", ["bytes32"]) == (head_of([model(0)]),)
    block = bench.ask("blocks(uint32)", ["bytes32", "bytes32", "uint64", "uint64"], 0)
    assert block == (head_of([model(0)]), digest_of(model(0).payload), EPOCH_S, 0)
    assert bench.ask("accounts(address)", ["bool", "uint8", "uint32"], ADDRESSES[STRANGER]) == (False, 0, 0)
    assert bench.ask("holderOf(uint8,uint32)", ["address"], 1, 0) == (address[device(0)],)
    assert bench.ask("holderOf(uint8,uint32)", ["address"], 2, 5) == (f"0x{bytes(20).hex()}",)
    of = ("digestOf(uint8,uint32,uint16,address)", ["bytes32"])
    assert bench.ask(*of, Kind.GRADIENT, 1, 0, ADDRESSES[server(0)]) == (
        digest_of(gradient(1, server(0)).payload),
    )
    assert bench.ask(*of, Kind.GRADIENT, 1, 1, ADDRESSES[server(0)]) == (bytes(32),)


def test_pieces_are_kept_by_their_digest(bench):
    bench.send(device(0), piece(0, b"first"))
    bench.send(device(0), piece(1, b"second"))
    with pytest.raises(RevertedError) as caught:
        bench.send(device(0), piece(1, b"second"))
    assert _contract.read_error(caught.value.output) == "AlreadySubmitted"
    get = ("pieces(address,bytes32,uint32)", ["bytes32"], ADDRESSES[device(0)], A)
    assert [bench.ask(*get, index)[0] for index in range(3)] == [
        digest_of(b"first"),
        digest_of(b"second"),
        bytes(32),
    ]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 5000])
def test_our_calldata_is_that_of_the_general_codec(size):
    data = bytes(range(256)) * 20
    payload, name = data[:size], sha256(data[:size]).digest()
    entry = Entry(Kind.CONSENSUS, 300, server(2), payload, step=70)
    signature = "submit(uint8,uint32,uint16,bytes32,bytes)"
    assert _contract.submit(entry, name, payload) == calldata(signature, 3, 300, 70, name, payload)
    signature = "publish(uint32,uint64,uint64,bytes32,bytes)"
    assert _contract.publish(entry, name, payload, 10**12, 9) == calldata(
        signature, 300, 10**12, 9, name, payload
    )
    assert _contract.piece(name, 4, payload) == calldata("piece(bytes32,uint32,bytes)", name, 4, payload)
    accounts = {server(index): bytes([index]) * 20 for index in range(size % 7 + 1)}
    expected = register(list(accounts.values()), 2, [sender.index for sender in accounts])
    assert _contract.register(accounts) == expected
    assert _contract.read_register(expected) == {address: sender for sender, address in accounts.items()}


def test_the_package_has_what_the_compiler_makes_of_the_source(tmp_path):
    """Compile FlowerBFL.sol again, as compile.mjs says, with the compiler from npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js with npm is not installed")
    install = [
        "npm",
        "install",
        "--no-save",
        "--no-audit",
        "--no-fund",
        "--fetch-retries=0",
        "--prefix",
        str(tmp_path),
    ]
    try:
        installed = subprocess.run(
            [*install, "solc@0.8.30"], capture_output=True, text=True, timeout=100, check=False
        )
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
