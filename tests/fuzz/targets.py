"""Fuzz targets, one for each parser: bytes in, nothing out, and no exception but those that are allowed.

The first byte of an input chooses: 0, the rest is what the parser reads; otherwise the rest are decisions
about what becomes of something valid, so that what lies behind digests, signatures and the like is reached.
"""

import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection
from io import BytesIO
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from eth_hash.auto import keccak
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from fuzzed import FuzzedData

from flower_bfl.audit._folder import AuditedFolder
from flower_bfl.chain_adapter import (
    Entry,
    Kind,
    Role,
    Sender,
    _contract,
    _rlp,
    _rpc_outbox,
    keystore,
    simulated_keys,
)
from flower_bfl.chain_adapter import signing as signatures
from flower_bfl.chain_adapter._accounts import Account, contract_of, read_transaction, recover
from flower_bfl.chain_adapter._reader import EntryReader
from flower_bfl.chain_adapter._rpc_file import read_where, write_where
from flower_bfl.chain_adapter._rpc_log import ContractLog as Log
from flower_bfl.chain_adapter._rpc_log import (
    Follower,
    Place,
    Where,
    check_contract,
    encode_transaction,
    find_creation,
    read_recorded,
    to_hex,
)
from flower_bfl.chain_adapter._rpc_node import Node
from flower_bfl.chain_adapter._rpc_outbox import Outbox, Outgoing
from flower_bfl.chain_adapter.base import Recent
from flower_bfl.chain_adapter.encoding import decode, digest, encode
from flower_bfl.chain_adapter.records import (
    DataSet,
    DataUnion,
    Evidence,
    Gradient,
    RunRules,
    consensus_payload,
    model_payload,
    read_consensus,
    read_model,
    read_report,
    read_state,
    report_payload,
    state_payload,
)
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.cli import _left_settings
from flower_bfl.config import AutoRounds, Consensus, ContractRules, Outage
from flower_bfl.controller import AllLocalController
from flower_bfl.controller.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flower_bfl.controller.placement import FEATURES
from flower_bfl.defences._described import described, from_description
from flower_bfl.defences.deviation import Deviation
from flower_bfl.defences.robust import CentredClipping, Krum
from flower_bfl.errors import FlowerBFLError, LedgerError, PayloadError, ReplyError, RunFolderError
from flower_bfl.learning.data import load_file
from flower_bfl.learning.offloading import offloadable
from flower_bfl.learning.signing import sign_updates
from flower_bfl.network import NetworkConfig
from flower_bfl.paper.experiment import FOLDER, parsed
from flower_bfl.report import _panels, read_rounds, summary
from flower_bfl.report_page._map import read_positions
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._controlled import Controlled
from flower_bfl.strategies._fleet import RollCall
from flower_bfl.strategies._go_on import go_on
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._memory import Memory
from flower_bfl.strategies._offloading import DataLink
from flower_bfl.strategies._replies import as_numpy, averaged, contribution, evaluation, screen
from flower_bfl.strategies._roster import Roster
from flower_bfl.strategies._run_folder import RunFolder
from flower_bfl.strategies._standing import Standing, check_arrays
from flower_bfl.types import DATA_RECORD, EDGE, OFFLOAD, OWN_RECORD, LeftOut, RoundReport

KEYS = simulated_keys(3)
OPERATOR, DEVICE = Sender(Role.OPERATOR), Sender(Role.DEVICE, 0)
KEY_PASSWORD = "testpassword"
MODEL = {"w": np.ones((2, 3), np.float32), "steps": np.array(4)}

Parser = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """What is fuzzed, and inputs to begin with, as the parser reads them."""

    run: Callable[[bytes], None]
    valid: Callable[[], list[bytes]]

    @property
    def corpus(self) -> list[bytes]:
        """Inputs of the target: what is valid, as it is, and decisions of several lengths."""
        decisions = [bytes([1 + k]) + hashlib.sha512(bytes([k])).digest() * (1 + k % 4) for k in range(12)]
        return [b"\0" + each for each in self.valid()] + decisions


TARGETS: dict[str, Target] = {}


def target(valid: Callable[[], list[bytes]], *allowed: type[Exception]) -> Callable[[Parser], Parser]:
    """Enter a parser of bytes; the wrapped one is given valid bytes that were changed, or any."""

    def enter(parse: Parser) -> Parser:
        def run(data: bytes) -> None:
            with suppress(*allowed):
                parse(_chosen(data, valid()))

        TARGETS[parse.__name__.replace("_", "-")] = Target(run, valid)
        return parse

    return enter


def structured(
    valid: Callable[[], list[bytes]], *allowed: type[Exception]
) -> Callable[[Callable[[FuzzedData], object]], Callable[[FuzzedData], object]]:
    """Enter a function that makes its input from decisions and parses it."""

    def enter(act: Callable[[FuzzedData], object]) -> Callable[[FuzzedData], object]:
        def run(data: bytes) -> None:
            with suppress(*allowed):
                act(FuzzedData(data))

        TARGETS[act.__name__.replace("_", "-")] = Target(run, valid)
        return act

    return enter


def _chosen(data: bytes, valid: list[bytes]) -> bytes:
    if data[:1] in (b"", b"\0"):
        return data[1:]
    return FuzzedData(data[1:]).mutated(valid[data[0] % len(valid)])


def _nothing() -> list[bytes]:
    return []


def _folder() -> Path:
    """A folder of this process, in memory where there is such a place."""
    return _made_folder(os.getpid())


@cache
def _made_folder(process: int) -> Path:
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="flower-bfl-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def _file(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(content)
    return path


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


# ---- canonical encoding and records


@cache
def _payloads() -> list[bytes]:
    consensus = [Consensus(3, 4), Consensus(2, AutoRounds(0.5, True, 9, 20), "data", 1, 0.1)]
    return [
        encode({"b": np.zeros((2, 0), np.float64), "c": np.array([True, False])}, {"a": "1", "\u00e9": "x"}),
        encode({}),
        model_payload(3, MODEL),
        *(RunRules("ConsensusBFL", each, np.eye(each.edge_servers), ('{"name": "Median"}',), "x").encode()
          for each in consensus),
        RunRules("FedAvg").encode(),
        DataSet(7, bytes(32)).encode(3, 1),
        Gradient(MODEL, 0.1 + 0.2, 5).encode(3, bytes(32)),
        Gradient(MODEL, 3, 5, DataUnion((0, 4), bytes(32))).encode(3, bytes(32)),
        consensus_payload(3, 0, 1, MODEL, [DEVICE, Sender(Role.SERVER, 1)]),
        consensus_payload(3, 1, 1, MODEL),
        report_payload(3, [LeftOut("device 1", "late")], [Outage(3, 1), Outage(2, link=(0, 1), step=2)]),
        Evidence("equivocation", 2, bytes(32), bytes(32), bytes(65)).encode(3, 1),
        Evidence("silence").encode(3, 1),
    ]  # fmt: skip


@target(_payloads, PayloadError)
def encoding(payload: bytes) -> None:
    arrays, metadata = decode(payload)
    assert encode(arrays, metadata) == payload


@structured(_nothing, PayloadError)
def header(data: FuzzedData) -> None:
    """A header that says something else of its arrays, in the right frame."""
    payload = data.one_of(_payloads())
    size = int.from_bytes(payload[:8], "little")
    told = data.changed(json.loads(payload[8 : 8 + size]))
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    text = data.mutated(text) if data.whole(1) else text
    text += b" " * (-len(text) % 8)
    encoding(len(text).to_bytes(8, "little") + text + payload[8 + size :])


def _consensus_again(found: Any) -> bytes:
    arrays, members = found
    own = [member.index for member in members if member.role is Role.SERVER]
    return consensus_payload(0, 0, own[0] if own else 0, arrays, members)


@structured(_nothing, PayloadError)
def records(data: FuzzedData) -> None:
    """Payloads with other metadata, to every reader: what it understood, written again, is understood alike.

    An audit compares what is written again with what was recorded, so that the other words cannot differ.
    """
    arrays, metadata = decode(data.one_of(_payloads()))
    changed = data.changed(metadata)
    said = {name: str(text) for name, text in (changed if isinstance(changed, dict) else metadata).items()}
    if "report" in metadata and data.whole(3):
        said["report"] = json.dumps(data.changed(json.loads(metadata["report"])))
    if not data.whole(7):
        arrays = {"mixing": np.zeros((data.whole(3), data.whole(3)), data.one_of(["f4", "f8", "?", "i1"]))}
    payload = encode(arrays, said)
    for read, write in _READERS.items():
        with suppress(PayloadError):
            found = read(payload)
            again = read(write(found))
            assert repr(again) == repr(found) or isinstance(found, Gradient | RunRules), (
                f"{found} from {said}"
            )


_READERS: dict[Callable[[bytes], Any], Callable[[Any], bytes]] = {
    RunRules.decode: RunRules.encode,
    DataSet.decode: lambda data: data.encode(0, 0),
    Gradient.decode: lambda gradient: gradient.encode(0, bytes(32)),
    Evidence.decode: lambda evidence: evidence.encode(0, 0),
    read_consensus: _consensus_again,
    read_report: lambda found: report_payload(0, *found),
    read_model: lambda model: model_payload(0, model),
}


# ---- transactions


@cache
def _transactions() -> list[bytes]:
    account = Account.of(KEYS, OPERATOR)
    calls = _calldata()
    return [account.sign(k, 10**6, bytes([k]) * 20, call).encode() for k, call in enumerate(calls, start=1)]


@cache
def _calldata() -> list[bytes]:
    signed = Entry(Kind.GRADIENT, 1, DEVICE, b"x", 0, bytes(65))
    return [
        b"", _contract.register({DEVICE: bytes(range(20)), Sender(Role.DEVICE, 1): b"\1" * 20}),
        _contract.submit(Entry(Kind.GRADIENT, 1, DEVICE, b"x"), digest(b"x"), b"x"),
        _contract.submit(signed, digest(b"x"), b"x"),
        _contract.propose(Entry(Kind.MODEL, 0, OPERATOR, b"m"), digest(b"m"), b"m", bytes(32), 1_577_836_800),
        _contract.seal(Entry(Kind.SEAL, 1, DEVICE, b""), 5), _contract.piece(digest(b"pp"), 0, b"p"),
        _contract.view("head"),
    ]  # fmt: skip


def _encoded_items() -> list[bytes]:
    nested: _rlp.Item = b"x"
    for _ in range(60):
        nested = [nested]
    return [each[1:] for each in _transactions()] + [_rlp.encode(nested), _rlp.encode([b"\0" * 60, [], b""])]


@target(_encoded_items, ValueError)
def rlp(encoded: bytes) -> None:
    assert _rlp.encode(_rlp.decode(encoded)) == encoded


@target(_transactions, ValueError)
def transaction(encoded: bytes) -> None:
    told = read_transaction(encoded)
    assert len(told.sender) == 20 and len(told.to) in (0, 20)
    signatures._separator(told.chain_id, told.to)  # fits where it goes


@structured(_nothing, ValueError)
def signed_transaction(data: FuzzedData) -> None:
    """Fields of any kind under a signature that fits them."""
    fields = _rlp.decode(data.one_of(_transactions())[1:])
    for _ in range(data.whole(3)):
        odd: list[_rlp.Item] = [
            b"",
            b"\0",
            b"\0\1",
            b"\xff" * 32,
            b"\xff" * 33,
            [],
            [b""],
            [[b"\1" * 20, [b"k"]]],
        ]
        fields[data.whole(8)] = data.one_of([*odd, data.take(9)])
    signature = Account.of(KEYS, OPERATOR).sign_hash(keccak(b"\2" + _rlp.encode(fields[:9])))
    r, s, parity = signature[:32].lstrip(b"\0"), signature[32:64].lstrip(b"\0"), signature[64:].lstrip(b"\0")
    transaction(b"\2" + _rlp.encode([*fields[:9], parity, r, s]))


@target(_calldata, ValueError, LookupError)
def calldata(data: bytes) -> None:
    for read in (_contract.read_creation, _contract.read_error):
        with suppress(ValueError):
            read(data)
    call = _contract.read_call(data)
    accounts = _contract.read_register(data)
    assert call is None or accounts is None
    if accounts:
        assert _contract.register({sender: address for address, sender in accounts.items()}) == data


@target(
    lambda: [_contract.creation(ContractRules(3, 1, 4, 9)), _contract.creation(ContractRules())], ValueError
)
def creation(data: bytes) -> None:
    rules = _contract.read_creation(data)
    assert _contract.read_creation(_contract.creation(rules)) == rules


@cache
def _first() -> tuple[bytes, bytes]:
    """The contract's creation and its address."""
    made = _contract.creation(ContractRules(2, difficulty_bits=1))
    operator = Account.of(KEYS, OPERATOR)
    return operator.sign(0, 10**7, b"", made).encode(), contract_of(operator.address)


@structured(_nothing, LedgerError)
def reader(data: FuzzedData) -> None:
    """Calls that are changed, signed by somebody who may."""
    first, contract = _first()
    sent = [first]
    read = EntryReader(PayloadStore(), lambda block, place: sent[place])
    operator, device = (Account.of(KEYS, each) for each in (OPERATOR, DEVICE))
    calls = [
        _contract.register({DEVICE: device.address}),
        *(data.mutated(data.one_of(_calldata())) for _ in "12"),
    ]
    for nonce, call in enumerate(calls, start=1):
        account = operator if nonce == 1 or data.whole(1) else device
        sent.append(account.sign(nonce, 10**6, contract, call, value=data.whole(9) // 9).encode())
    read.read(1, sent)


@target(lambda: [_signature() + digest(b"x"), bytes(97)], ValueError)
def signature(signed: bytes) -> None:
    name = signed[65:]
    with suppress(ValueError):
        assert len(recover(digest(name), signed[:65])) == 20
    assert len(signatures.signer(signed[:65], (1, bytes(20)), Kind.GRADIENT, 1, 0, name)) == 20


def _signature() -> bytes:
    return signatures.sign(KEYS(DEVICE), (1, bytes(20)), Kind.GRADIENT, 1, 0, digest(b"x"))


# ---- nodes


def _node(answer: Callable[[list[Any]], bytes]) -> Node:
    """A node whose answers to requests are these bytes."""
    node = Node("http://127.0.0.1:1", 0.001, 0)
    node._post = lambda body: (200, answer(body))  # type: ignore[method-assign]
    return node


@contextmanager
def _reading(node: Node) -> Iterator[None]:
    with node.reading():
        yield


@target(
    lambda: [
        _json({"jsonrpc": "2.0", "id": 1, "result": "0x1"}),
        _json(
            [{"id": 2, "result": None}, {"id": 1, "error": {"code": -32000, "message": "x", "data": "0x"}}]
        ),
        _json({"id": None, "error": {"code": 3, "message": "x", "data": {"data": "0x08c379a0"}}}),
        _json({"id": 1, "error": None, "result": "0x1"}),
    ],
    LedgerError,
)
def rpc_answers(raw: bytes) -> None:
    for calls in ([("eth_a", [])], [("eth_a", []), ("eth_b", ["0x1"])]):
        node = _node(lambda body: raw)
        node.request_counter = iter((1, 2))  # type: ignore[assignment]
        with suppress(LedgerError):
            assert len(node.batch(calls)) == len(calls)


@target(
    lambda: [
        b'HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n{"id": 1, "result": "0x"}',
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2;x=y\r\n{}\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.0 500 No\r\nConnection: close\r\n\r\nno",
    ],
    LedgerError,
)
def rpc_http(raw: bytes) -> None:
    """What a socket says."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw[:100_000])
        theirs.shutdown(socket.SHUT_WR)
        node = Node("http://127.0.0.1:1", 1.0, 0)
        node._connection = HTTPConnection("127.0.0.1", 1)
        node._connection.sock, node._used_s = ours, time.monotonic()
        node.request_counter = iter([1])  # type: ignore[assignment]
        try:
            node.batch([("eth_a", [])])
        finally:
            node.close()


@cache
def _described_transactions() -> list[dict[str, Any]]:
    return [_as_json(each, place) for place, each in enumerate([_first()[0], *_transactions()])]


def _as_json(encoded: bytes, place: int) -> dict[str, Any]:
    """A transaction as a node describes it."""
    fields = _rlp.decode(encoded[1:])
    names = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas", "to", "value", "input")
    told = {name: to_hex(field) for name, field in zip(names, fields, strict=False)}
    numbers = {
        name: hex(int.from_bytes(fields[names.index(name)])) for name in names if name not in ("to", "input")
    }
    ends = zip(("yParity", "r", "s"), fields[9:], strict=True)
    return {
        **told, **numbers, "to": told["to"] if fields[5] else None, "type": "0x2",
        "hash": to_hex(keccak(encoded)),
        "accessList": [], **{name: hex(int.from_bytes(field)) for name, field in ends},
        "blockNumber": "0x1", "transactionIndex": hex(place), "blockHash": to_hex(bytes(32)),
        "transactionHash": to_hex(keccak(encoded)), "status": "0x1", "gasUsed": "0x5208",
    }  # fmt: skip


@structured(_nothing, LedgerError)
def rpc_transaction(data: FuzzedData) -> None:
    told = data.changed(data.one_of(_described_transactions()))
    encoded = encode_transaction(told, Place(1, b"", 0, b""), "node")
    assert to_hex(keccak(encoded)) == told["hash"].lower()


def _answering(data: FuzzedData) -> Node:
    """A node that says anything; at first what would be right."""
    block = {"hash": to_hex(bytes(32)), "baseFeePerGas": "0x7", "gasLimit": "0x1c9c380", "number": "0x1"}
    right: dict[str, Any] = {
        "eth_blockNumber": "0x1", "eth_chainId": "0xbf1", "eth_getCode": "0x60",
        "eth_call": to_hex(bytes(32)),
        "eth_getBlockByNumber": block, "eth_getLogs": _described_transactions()[:3], "eth_accounts": ["0x01"],
        "eth_getTransactionByHash": _described_transactions()[0], "eth_getTransactionCount": "0x1",
        "eth_getTransactionByBlockNumberAndIndex": _described_transactions()[3],
        "eth_getBalance": hex(10**20),
        "eth_getTransactionReceipt": _described_transactions()[1], "eth_maxPriorityFeePerGas": "0x1",
        "eth_sendTransaction": "0x1", "eth_sendRawTransaction": "0x1",
    }  # fmt: skip
    left = [40]

    def answer(body: bytes) -> bytes:
        left[0] -= 1
        asked = json.loads(body)
        asked = asked if isinstance(asked, list) else [asked]
        told = []
        for each in asked:
            result = data.changed(right[each["method"]], 2)
            refused = {"error": data.changed({"code": 3, "message": "execution reverted", "data": "0x1234"})}
            told.append(
                {"id": each["id"], **(refused if left[0] < 0 or not data.whole(15) else {"result": result})}
            )
        return _json(told)

    return _node(answer)


@structured(_nothing, LedgerError)
def rpc_log(data: FuzzedData) -> None:
    node, contract = _answering(data), _first()[1]
    actions: list[Callable[[], object]] = [
        lambda: list(read_recorded(node, Where(0xBF1, contract, 0), PayloadStore())),
        lambda: Follower(Log(node, contract), node, 0).advance({}),
        lambda: find_creation(node, contract),
        lambda: check_contract(node, contract),
        lambda: Log(node, contract).fetch_at(1, 0),
    ]
    with _reading(node):
        data.one_of(actions)()


@structured(_nothing, LedgerError)
def rpc_outbox(data: FuzzedData) -> None:
    node = _answering(data)
    outbox = Outbox(node, 0.001, 0)
    operator = Account.of(KEYS, OPERATOR)
    wave = [Outgoing(operator, bytes(20), b"data", 10**6, "a call")]
    actions: list[Callable[[], object]] = [
        outbox.prices,
        lambda: outbox.fund(wave, operator, data.one_of([None, Account.of(KEYS, DEVICE)])),
        lambda: outbox.settle(wave),
        lambda: outbox.wait_for_others([operator.address]),
        lambda: (wave[0].signed.append(operator.sign(0, 1, b"", b"")), outbox.look(wave), wave[0].gas_used),
    ]
    with _reading(node), _hurried():
        data.one_of(actions)()


class _Clock:
    """Time that passes by being slept or asked for."""

    now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def monotonic(self) -> float:
        self.now_s += 1e-4
        return self.now_s


@contextmanager
def _hurried() -> Iterator[None]:
    kept, _rpc_outbox.time = _rpc_outbox.time, _Clock()  # type: ignore[assignment]
    try:
        yield
    finally:
        _rpc_outbox.time = kept


def _chain_files() -> list[bytes]:
    path = _folder() / "made.json"
    path.unlink(missing_ok=True)
    write_where(path, Where(31337, bytes(range(20)), 7))
    return [path.read_bytes()]


@target(_chain_files, LedgerError)
def chain_file(content: bytes) -> None:
    path = _file("chain.json", content)
    if (where := read_where(path)) is not None:
        again = _folder() / "again.json"
        again.unlink(missing_ok=True)
        write_where(again, where)
        assert read_where(again) == where
        signatures._separator(where.chain_id, where.contract)


# ---- files


@cache
def _policies() -> tuple[bytes, bytes]:
    """policy.json, and the weights that it names."""
    weights = {
        f"pair.{layer}.{part}": np.ones(shape, np.float32)
        for layer, rows, columns in ((0, 3, len(FEATURES)), (2, 3, 3), (4, 3, 3))
        for part, shape in (("weight", (rows, columns)), ("bias", (rows,)))
    }
    weights |= {"own": np.ones(2, np.float32), "log_std": np.zeros(4, np.float32)}
    learner = {"step": np.array(12.0, np.float32)}
    folder = _folder() / "policy"
    save_checkpoint(
        folder, Checkpoint("shared", NetworkConfig(), weights, {"seed": 1}, 32, [{"steps": 1.0}], learner)
    )
    about = json.loads((folder / "policy.json").read_bytes())
    weights = (folder / about["weights"]["file"]).read_bytes()
    about["weights"]["file"] = "w"
    return _json(about), weights


def _load(about: bytes, weights: bytes) -> None:
    folder = _folder() / "loaded"
    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_bytes(about)
    (folder / "w").write_bytes(weights)
    loaded = load_checkpoint(folder)
    with suppress(FlowerBFLError):
        loaded.check_fit(NetworkConfig())
        assert loaded.policy.architecture == loaded.architecture
    again = _folder() / "saved"
    save_checkpoint(again, loaded)
    assert load_checkpoint(again).steps == loaded.steps


@target(lambda: [_policies()[0]], FlowerBFLError)
def policy_file(about: bytes) -> None:
    _load(about, _policies()[1])


@structured(_nothing, FlowerBFLError)
def policy(data: FuzzedData) -> None:
    about, weights = json.loads(_policies()[0]), _policies()[1]
    if data.whole(1):
        size = int.from_bytes(weights[:8], "little")
        told = _json(data.changed(json.loads(weights[8 : 8 + size])))
        weights = len(told).to_bytes(8, "little") + told + weights[8 + size :]
    weights = data.mutated(weights) if data.whole(1) else weights
    about["weights"] = {"file": "w", "sha256": hashlib.sha256(weights).hexdigest()}
    _load(_json(data.changed(about)), weights)


def _networks() -> list[bytes]:
    return [
        NetworkConfig().to_toml().encode(),
        b"devices = 3\n[radio]\narea_m = 0x10\n",
        b"server_positions_m = []",
    ]


@target(_networks, FlowerBFLError)
def network(content: bytes) -> None:
    made = NetworkConfig.from_toml(_file("network.toml", content))
    assert NetworkConfig.from_toml(_file("network.toml", made.to_toml().encode())) == made
    assert made.edge_speeds_hz.shape == (made.edge_servers,)


@structured(_nothing, FlowerBFLError, tomli_w_error := type("_NoToml", (Exception,), {}))
def network_table(data: FuzzedData) -> None:
    table = data.changed(NetworkConfig().to_dict() | {"server_positions_m": [[0.0, 1.0]] * 5})
    if isinstance(table, dict):
        NetworkConfig.from_dict(table)
    with suppress(TypeError, ValueError, AttributeError, RecursionError):  # what tomli_w makes of it
        network(tomli_w.dumps(table).encode())


@cache
def _experiments() -> list[bytes]:
    return sorted((path.read_bytes() for path in FOLDER.glob("*.toml")), key=len)[:3]


@target(_experiments, FlowerBFLError)
def experiment(content: bytes) -> None:
    import tomllib

    try:
        table = tomllib.loads(content[:20_000].decode())
    except (ValueError, RecursionError):  # in `read`, which takes files of this package alone
        return
    parsed("fuzzed", table)


@structured(_nothing, FlowerBFLError)
def experiment_table(data: FuzzedData) -> None:
    import tomllib

    parsed("fuzzed", data.changed(tomllib.loads(data.one_of(_experiments()).decode())))


def _round_line(number: int) -> dict[str, Any]:
    line = RoundReport(number, 3, 30.0, (LeftOut("device 1", "late"),)).as_json()
    attacked = {
        "accused": [{"server": 1, "voted_out": True}],
        "suspected": [{"who": "device 2", "reason": "odd"}],
    }
    return line | attacked | {
        "evaluate": {"accuracy": 0.5, "loss": 1.0}, "train": {"train-loss": 2.0}, "gas": 10**6,
        "transactions": 3,
        "consensus_error": 0.1, "simulated_seconds": 3.0, "latency_s": {"offload": 1.0},
        "server_data": [[0], [1, 2]],
        "true_positives": 1, "missed": 0, "false_positives": 0, "kept_local": [{"who": "device 1",
        "reason": "x"}],
        "leader": 1, "miner": "device 2", "train_seconds": 1.0, "chain_seconds": 0.1,
    }  # fmt: skip


def _rounds() -> list[bytes]:
    return [b"".join(_json(_round_line(number)) + b"\n" for number in range(3)), b'{"round": 1}\n{"round']


@target(_rounds, RunFolderError)
def rounds(content: bytes) -> None:
    path = _file("rounds.jsonl", content)
    found = read_rounds(path.parent)
    summary(path.parent).encode()
    _panels(found)


@structured(_nothing, RunFolderError)
def round_lines(data: FuzzedData) -> None:
    rounds(
        b"".join(_json(data.changed(_round_line(number), 3)) + b"\n" for number in range(1 + data.whole(2)))
    )


@target(_rounds, LedgerError)
def audited_rounds(content: bytes) -> None:
    folder = object.__new__(AuditedFolder)
    folder._rounds, folder._size, folder.notes = _file("rounds.jsonl", content), len(content), []
    for line in folder._read_lines():
        assert isinstance(line, dict)


@target(lambda: [_json({"area_m": 9.0, "edge_servers_m": [[0.0, 1.0]], "devices_m": [[1, 2], [3, 4]]})])
def positions(content: bytes) -> None:
    read_positions(_file("network.json", content).parent)


@cache
def _keystores() -> list[dict[str, Any]]:
    from eth_account import Account as Keyed

    key = KEYS(OPERATOR)
    return [Keyed.encrypt(key, KEY_PASSWORD, kdf, 2) for kdf in ("pbkdf2", "scrypt")]


def _key(content: bytes) -> None:
    _file("operator.json", content)
    assert len(keystore.KeyFolder(_folder(), KEY_PASSWORD)(OPERATOR)) == 32


@contextmanager
def _cheap() -> Iterator[None]:
    """Less patience with costly files than keys get: the rule is the same."""
    kept = keystore._MOST_ROUNDS, keystore._MOST_BLOCKS
    keystore._MOST_ROUNDS, keystore._MOST_BLOCKS = 300, 300
    try:
        yield
    finally:
        keystore._MOST_ROUNDS, keystore._MOST_BLOCKS = kept


@target(lambda: list(map(_json, _keystores())), FlowerBFLError)
def key_file(content: bytes) -> None:
    with _cheap():
        _key(content)


@structured(_nothing, FlowerBFLError)
def key_fields(data: FuzzedData) -> None:
    with _cheap():
        _key(_json(data.changed(data.one_of(_keystores()))))


@target(lambda: [_images(np.savez), _images(np.savez_compressed)], FlowerBFLError)
def image_file(content: bytes) -> None:
    data = load_file(_file("images.npz", content))
    assert len(data.train_images) == len(data.train_labels)


def _images(save: Callable[..., None]) -> bytes:
    file = BytesIO()
    images, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 9])
    save(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return file.getvalue()


@target(
    lambda: [described(each).encode() for each in (CentredClipping(), Krum(0.25), Deviation())], PayloadError
)
def defence(text: bytes) -> None:
    told = text.decode(errors="surrogateescape")
    assert described(from_description(told)) == told


# ---- Flower's messages


def _npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


@cache
def _arrays() -> list[bytes]:
    return [
        _npy(np.ones((2, 3), np.float32)), _npy(np.array(4)), _npy(np.asfortranarray(np.ones((2, 2), ">f8"))),
        _npy(np.zeros(0, "U3")), _images(np.savez),
    ]  # fmt: skip


@target(_arrays, Exception)  # any, and no other than numpy's: `as_arrays` turns them into a ReplyError
def array(content: bytes) -> None:
    found = as_numpy(Array("float32", (), "numpy.ndarray", content))
    assert found.nbytes <= len(content) and not found.dtype.hasobject


def _metrics(data: FuzzedData) -> MetricRecord:
    metrics = {"num-examples": 4, "num-steps": 2, "device-index": 1, "loss": 0.5}
    for _ in range(data.whole(3)):
        name = data.one_of([*metrics, "other"])
        value = data.one_of(
            [0, -1, 2**31, 2**53 + 1, 2**63 - 1, 0.5, float("nan"), float("inf"), 1e308, [], [1, 2], [0.5]]
        )
        metrics[name] = value  # type: ignore[assignment]
    return MetricRecord({name: value for name, value in metrics.items() if data.whole(15)})


def _config(data: FuzzedData, right: Mapping[str, Any]) -> ConfigRecord:
    """A record with other values, of the kinds that Flower has."""
    values = dict(right)
    for _ in range(data.whole(3)):
        name = data.one_of([*values, "failed", "gain-db", "flower-bfl-signature", "x"])
        odd = [
            0,
            -1,
            2**31,
            2**53 + 1,
            2**63 - 1,
            -(2**63),
            0.5,
            float("nan"),
            float("inf"),
            True,
            False,
            "",
            "device",
        ]
        odd += [
            "edge-server",
            "\x1b[2K",
            b"",
            bytes(20),
            bytes(65),
            [1, 2],
            [0.5, -3.0],
            ["a"],
            [b""],
            [True],
            "f" * 40,
        ]
        values[name] = data.one_of(odd)
    return ConfigRecord({name: value for name, value in values.items() if data.whole(15)})


def _array(data: FuzzedData, right: np.ndarray) -> Array:
    content = data.mutated(_npy(right)) if data.whole(3) == 3 else _npy(right)
    return Array(
        str(right.dtype), right.shape, "torch.x" if data.whole(31) == 31 else "numpy.ndarray", content
    )


def _model(data: FuzzedData, right: Mapping[str, np.ndarray] = MODEL) -> ArrayRecord:
    named = {name: _array(data, each) for name, each in right.items() if data.whole(31) != 31}
    if data.whole(15) == 15:
        named["odd"] = Array(np.array(data.one_of([True, 1j, "text", np.datetime64(1, "s"), np.float16(1)])))
    return ArrayRecord(named)


def _message(content: RecordDict, node: int = 5, kind: str = "train") -> Message:
    message = Message(content, node, kind)
    message.metadata.__dict__["_src_node_id"] = node
    return message


@structured(_nothing, ReplyError)
def reply(data: FuzzedData) -> None:
    content = RecordDict({"arrays": _model(data), "metrics": _metrics(data)})
    if data.whole(3) == 3:
        content["own"] = _config(data, {"flower-bfl-signature": bytes(65), "flower-bfl-address": bytes(20)})
    message = _message(content)
    layout = Layout.of(MODEL)
    usable, left_out = screen([message], lambda reply: contribution(reply, layout, "num-examples"))
    assert len(usable) + len(left_out) == 1
    for one in usable:
        layout.vector(one.arrays)[0:6]
        other = RecordDict({"metrics": _metrics(data)})
        with suppress(ReplyError):
            both = [one.content, evaluation(_message(other), "num-examples")]
            averaged(both, "num-examples", aggregate_metricrecords)


class _Grid:
    """Nodes that say anything, some twice, and some who were not asked."""

    def __init__(self, data: FuzzedData, answer: Callable[[FuzzedData], RecordDict]) -> None:
        self._data, self._answer = data, answer

    def send_and_receive(self, messages: Any, timeout: float | None = None) -> list[Message]:
        nodes = [message.metadata.dst_node_id for message in messages]
        replies = [_message(self._answer(self._data), node) for node in nodes if self._data.whole(7)]
        for _ in range(self._data.whole(2)):
            replies.append(_message(self._answer(self._data), self._data.one_of([*nodes, 99])))
        if self._data.whole(7) == 7:
            asked = Message(RecordDict(), self._data.one_of([*nodes, 99]), "query")
            error = Message(Error(self._data.whole(9), "x"), reply_to=asked)
            error.metadata.__dict__["_src_node_id"] = self._data.one_of([*nodes, 99])
            replies.append(error)
        return replies


@structured(_nothing)
def roll_call(data: FuzzedData) -> None:
    device = {"role": "device", "index": 1, "may-offload": True, "num-examples": 4, "data-bytes": 99}
    device |= {"work-cycles": 1e9, "cpu-hz": 1e9, "gain-db": [-90.0, -100.0]}
    server = {"role": "edge-server", "index": 1}
    call = RollCall(2, "config", 1.0)

    def answer(data: FuzzedData) -> RecordDict:
        return RecordDict(
            {data.one_of([OWN_RECORD, OWN_RECORD, "x"]): _config(data, data.one_of([device, server]))}
        )

    for _ in range(2):
        fleet = call.take([1, 2, 3], ConfigRecord(), _Grid(data, answer))
        assert {*fleet.device_nodes, *fleet.servers.values()} <= {1, 2, 3}
        for one in fleet.left_out:
            one.reason.encode()


@structured(_nothing)
def offloaded_data(data: FuzzedData) -> None:
    samples = {"x": np.ones((3, 2), np.float32), "y": np.arange(3)}
    link = DataLink(200, "config", 1.0, lambda server_round, sets: {})

    def answer(data: FuzzedData) -> RecordDict:
        return RecordDict({DATA_RECORD if data.whole(15) else "x": _model(data, samples)})

    wanted = {device: device % 2 for device in range(1 + data.whole(2))}
    nodes = {device: 10 + device for device in range(5)}
    configs = {node: ConfigRecord() for node in nodes.values()}
    with _silent():
        fetched = link.fetch(1, wanted, nodes, configs, _Grid(data, answer))
    assert fetched.sets.keys() <= wanted.keys()
    assert all(sum(each.nbytes for each in one.arrays.values()) <= 200 for one in fetched.sets.values())


@structured(_nothing, FlowerBFLError)
def asked_client(data: FuzzedData) -> None:
    """What a device and an edge server make of a server's messages."""
    samples = {"x": np.ones((3, 2), np.float32), "y": np.arange(3)}
    app = ClientApp(mods=[sign_updates(KEYS(DEVICE))])

    @offloadable(app, lambda message, context: samples)
    def train(message: Message, context: Context, given: Any) -> Message:
        metrics = MetricRecord({"num-examples": len(given), "num-steps": 1})
        return Message(RecordDict({"arrays": ArrayRecord(_right()), "metrics": metrics}), reply_to=message)

    told = {"server-round": 1, "edge-server": 0, "edge-servers": 2, "most-bytes": 10**6, "ledger-chain-id": 1}
    told |= {"ledger-contract": "ab" * 20, "ledger-learning-rate": 1.0}
    kind = data.one_of(["train", EDGE, OFFLOAD, "query.report"])
    content = RecordDict({"arrays": _model(data), "config": _config(data, told)})
    if kind == EDGE and data.whole(15):
        content[DATA_RECORD] = _model(data, samples)
    context = Context(1, 5, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    with _silent():
        app(_message(content, kind=kind), context)


@contextmanager
def _silent() -> Iterator[None]:
    logger = getLogger("flwr")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


@cache
def _right() -> dict[str, Array]:
    return {name: Array(each) for name, each in MODEL.items()}


# ---- what a run that was broken off goes on from


def _own_line(k: int) -> dict[str, Any]:
    told = {"left_out": (LeftOut("device 1", "late"),), "server_devices": ((0, 1), (2,))}
    return RoundReport(k, 3, 30.0, **told, train={"loss": 0.5}, evaluate={"accuracy": 0.5}).as_json()


@target(lambda: [b"".join(_json(_own_line(k)) + b"\n" for k in range(3))], RunFolderError)
def rounds_to_go_on_with(content: bytes) -> None:
    folder = RunFolder(_file("rounds.jsonl", content).parent, resume=True)
    reports = folder.go_on(2)
    rest = {"timeout": 1.0, "train_config": None, "evaluate_config": None, "evaluate_fn": None}
    go_on(FedAvg(), None, ArrayRecord(), 0, num_rounds=0, reports=reports, **rest)  # type: ignore[arg-type]


@structured(_nothing, RunFolderError)
def lines_to_go_on_with(data: FuzzedData) -> None:
    count = 2 + data.whole(1)
    rounds_to_go_on_with(b"".join(_json(data.changed(_own_line(k), 3)) + b"\n" for k in range(count)))


def _states() -> list[dict[str, Any]]:
    momentum = FedAdam()
    memory = Memory(momentum)
    momentum.m_t = momentum.v_t = {"w": np.ones(3)}
    network = {"rounds": np.array(2), "spent-j": np.zeros(5), "energy-slack-j": np.ones(5)}
    schemas = np.frombuffer(b'{"1": [["x", "<f4", [4]]]}', np.uint8)
    network |= {"clock-s": np.array(0.5), "schemas": schemas}
    return [memory.changed(), network, {"SERVER 1 3": np.ones(3, np.float32)}]


@structured(_nothing, PayloadError)
def state(data: FuzzedData) -> None:
    """Arrays of other names, shapes and dtypes than a part of a strategy left."""
    place = data.whole(2)
    kept = dict(_states()[place])
    for _ in range(data.whole(3)):
        name = data.one_of([*kept, "rounds", "m_t dict w", "__dict__ dict x", "SERVER 1 model"])
        odd = [np.array(-1), np.array(10**9), np.zeros((2, 5)), np.array(np.nan), np.zeros(0, "u1")]
        kept.pop(name, None)
        if data.whole(3):
            kept[data.mutated(name.encode()).decode("latin1") if data.whole(1) else name] = data.one_of(odd)
    kept = read_state(state_payload(3, kept))
    if place == 0:
        Memory(FedAdam()).restore(kept)
    elif place == 1:
        _planner().restore(kept, 3)
    else:
        Adversary([], 0).restore(kept)


def _planner() -> Controlled:
    network = NetworkConfig(devices=5, edge_servers=2, sub_channels=2)
    return Controlled(
        AllLocalController(network), network, edge_servers=2, p2p_rounds=1, most_bytes=9, timeout_s=1.0,
        seed=0, key="config", roster=Roster(2), screen_data=lambda server_round, sets: {},
    )  # fmt: skip


@structured(_nothing, FlowerBFLError)
def standing(data: FuzzedData) -> None:
    """Entries that a contract would have taken, with anything as payloads."""
    of = {Kind.GRADIENT: DEVICE, Kind.SEAL: DEVICE, Kind.CONSENSUS: Sender(Role.SERVER, 1)}
    entries = [Entry(Kind.RULES, 0, OPERATOR, _payloads()[3]), Entry(Kind.MODEL, 0, OPERATOR, _payloads()[2])]
    for _ in range(data.whole(8)):
        kind = data.one_of(list(Kind))
        payload = data.one_of(_payloads())
        payload = data.mutated(payload) if data.whole(1) else payload
        entries.append(Entry(kind, 1, of.get(kind, OPERATOR), payload, data.whole(4)))
    found = Standing.of(Recent(data.whole(3), _payloads()[3], tuple(entries)))
    found.check_rules(_payloads()[3])
    check_arrays(Layout.of(MODEL), found.model)
    found.report(bytes(32))
    assert found.state is not None


@target(lambda: [b'{"devices": 4, "rate": 0.5, "name": "a", "on": true}'], RunFolderError)
def left_settings(content: bytes) -> None:
    for value in _left_settings(_file("settings.json", content).parent).values():
        assert isinstance(value, bool | int | float | str)
