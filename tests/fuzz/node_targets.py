"""Fuzz targets: what an Ethereum node answers, and the file that says where a chain is."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPConnection
from typing import Any

from eth_hash.auto import keccak
from fuzzed import FuzzedData
from target_registry import (
    DEVICE,
    KEYS,
    OPERATOR,
    json_bytes,
    nothing,
    process_folder,
    structured,
    target,
    written,
)
from transaction_targets import created, transactions

from flower_bfl.chain_adapter import _rlp, _rpc_outbox
from flower_bfl.chain_adapter import signing as signatures
from flower_bfl.chain_adapter._accounts import Account
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
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.errors import LedgerError


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
        json_bytes({"jsonrpc": "2.0", "id": 1, "result": "0x1"}),
        json_bytes(
            [{"id": 2, "result": None}, {"id": 1, "error": {"code": -32000, "message": "x", "data": "0x"}}]
        ),
        json_bytes({"id": None, "error": {"code": 3, "message": "x", "data": {"data": "0x08c379a0"}}}),
        json_bytes({"id": 1, "error": None, "result": "0x1"}),
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
    return [_as_json(each, place) for place, each in enumerate([created()[0], *transactions()])]


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


@structured(nothing, LedgerError)
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
        return json_bytes(told)

    return _node(answer)


@structured(nothing, LedgerError)
def rpc_log(data: FuzzedData) -> None:
    node, contract = _answering(data), created()[1]
    actions: list[Callable[[], object]] = [
        lambda: list(read_recorded(node, Where(0xBF1, contract, 0), PayloadStore())),
        lambda: Follower(Log(node, contract), node, 0).advance({}),
        lambda: find_creation(node, contract),
        lambda: check_contract(node, contract),
        lambda: Log(node, contract).fetch_at(1, 0),
    ]
    with _reading(node):
        data.one_of(actions)()


@structured(nothing, LedgerError)
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
    path = process_folder() / "made.json"
    path.unlink(missing_ok=True)
    write_where(path, Where(31337, bytes(range(20)), 7))
    return [path.read_bytes()]


@target(_chain_files, LedgerError)
def chain_file(content: bytes) -> None:
    path = written("chain.json", content)
    if (where := read_where(path)) is not None:
        again = process_folder() / "again.json"
        again.unlink(missing_ok=True)
        write_where(again, where)
        assert read_where(again) == where
        signatures._separator(where.chain_id, where.contract)
