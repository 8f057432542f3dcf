"""Hostile Ethereum nodes: answers of another form, and answers that have no end."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hostile import MEGABYTE, bounded

from flower_bfl.chain_adapter import _rpc_node as rpc_node
from flower_bfl.chain_adapter._rpc_log import to_bytes
from flower_bfl.chain_adapter._rpc_node import Node, Refusal
from flower_bfl.errors import LedgerError


def answers(raw: object) -> list:
    """What a node that says this answers to one call."""
    node = Node("http://127.0.0.1:1", 0.01, 0)
    node._post = lambda body: (200, raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    node.request_counter = iter([1])
    return node.batch([("eth_a", [])])


def test_an_answer_with_an_error_that_is_null_is_an_answer():
    assert answers({"id": 1, "error": None, "result": "0x1"}) == ["0x1"]


@pytest.mark.parametrize("error", ["boom", 3, [], {"code": float("inf")}, {"code": None}, {"message": "x"}])
def test_an_error_of_another_form_is_no_answer(error):
    with pytest.raises(LedgerError, match="no JSON-RPC"):
        answers({"id": 1, "error": error})


@pytest.mark.parametrize("text", ["0x 01", "0x0", "0x\n", "0xzz", "01", None, 7])
def test_what_is_no_hexadecimal(text):
    with pytest.raises(ValueError, match="hexadecimal"):
        to_bytes(text)


# ---- answers that have no end


STREAMS = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * MEGABYTE,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"8000\r\n"
    + b"x" * 32_768
    + b"\r\n",
    "one chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 15 + b"\r\n",
    "until it closes": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\n",
    "interim answers": b"",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
}
AGAIN = {
    "body": b"x" * 65_536, "chunks": b"8000\r\n" + b"x" * 32_768 + b"\r\n", "one chunk": b"x" * 65_536,
    "until it closes": b"x" * 65_536, "headers": b"a: b\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 99,
    "trailers": b"a: b\r\n" * 999,
}  # fmt: skip


@contextmanager
def endless(kind: str, pause_s: float = 0.0) -> Iterator[str]:
    """A node that never comes to an end; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(STREAMS[kind])
                    while True:
                        connection.sendall(AGAIN[kind] if not pause_s else AGAIN[kind][:1])
                        time.sleep(pause_s)
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


@pytest.mark.parametrize("kind", STREAMS)
def test_an_answer_that_has_no_end(kind, monkeypatch):
    monkeypatch.setattr(rpc_node, "_MOST_BYTES", 4 * MEGABYTE)
    with endless(kind) as url:
        node = Node(url, 2.0, 0)
        with bounded(24):
            try:
                (answer,) = node.batch([("eth_a", [])])
            except LedgerError as error:
                assert (kind == "headers" and "HTTPException" in str(error)) or "within" in str(error)
            else:
                assert isinstance(answer, Refusal) and "more than 4,194,304 bytes" in answer.message


@pytest.mark.parametrize("kind", ["headers", "interim answers", "trailers", "until it closes"])
def test_an_answer_that_trickles_for_ever(kind):
    with endless(kind, 0.02) as url:
        node = Node(url, 0.3, 0)
        with bounded(seconds=2), pytest.raises(LedgerError, match="nothing within"):
            node.batch([("eth_a", [])])


def test_logs_that_are_too_many_are_asked_for_in_parts(monkeypatch):
    """As if the node refused the range."""
    from flower_bfl.chain_adapter._rpc_log import ContractLog

    asked = []
    node = Node("http://127.0.0.1:1", 0.01, 0)

    def post(body: bytes) -> tuple[int, bytes]:
        request = json.loads(body)
        block_range = request["params"][0]
        asked.append(int(block_range["toBlock"], 16) - int(block_range["fromBlock"], 16))
        if asked[-1] > 10:
            raise rpc_node._TooLongError
        return 200, json.dumps({"id": request["id"], "result": []}).encode()

    monkeypatch.setattr(node, "_post", post)
    list(ContractLog(node, bytes(20)).places(0, 60))
    assert min(asked) <= 10 and asked[0] == 60
