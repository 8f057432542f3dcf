"""Hostile input to every parser: only our errors, in bounded time and memory, and nothing is run or followed.

`fuzz.py` beside this runs the same targets for longer, guided by coverage.
"""

import ast
import json
import os
import pickle
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from fuzzed import FuzzedData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS, _message

import flower_bfl
from flower_bfl.audit._folder import AuditedStore
from flower_bfl.chain_adapter import _rlp, keystore
from flower_bfl.chain_adapter import _rpc_node as rpc_node
from flower_bfl.chain_adapter._rpc_file import read_where
from flower_bfl.chain_adapter._rpc_log import to_bytes
from flower_bfl.chain_adapter._rpc_node import Node, Refusal
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.encoding import decode, digest, encode
from flower_bfl.chain_adapter.records import DataSet, RunRules, read_report
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.controller.checkpoint import load_checkpoint
from flower_bfl.errors import (
    ConfigError,
    LedgerError,
    PayloadError,
    ReplyError,
    RunFolderError,
    TrainingError,
)
from flower_bfl.learning import data as images
from flower_bfl.learning.signing import sign_updates
from flower_bfl.network import NetworkConfig
from flower_bfl.paper.experiment import parsed
from flower_bfl.report import draw_curves, read_rounds, summary
from flower_bfl.strategies._fleet import RollCall
from flower_bfl.strategies._offloading import DataLink
from flower_bfl.strategies._replies import as_arrays
from flower_bfl.types import DATA_RECORD, OWN_RECORD

PACKAGE = Path(flower_bfl.__file__).parent
MEGABYTE = 1 << 20


# ---- any bytes


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # numpy's, of a file as Python 2 wrote them
@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_and_what_becomes_of_it(name):
    target = TARGETS[name]

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.binary(max_size=120))
    def run(data):
        target.run(data)

    for data in target.corpus:
        target.run(data)
    run()


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=200)
def test_without_decisions_nothing_is_changed(data, valid):
    assert FuzzedData(b"").mutated(valid) == valid
    document = {"a": [1, {"b": 2}]}
    assert FuzzedData(b"").changed(document) == document
    FuzzedData(data).changed(document)
    assert document == {"a": [1, {"b": 2}]}


def test_valid_input_is_taken():
    """A target that refused all of it would find nothing."""
    taken = {}
    for name, target in TARGETS.items():
        for data in target.valid():
            before = _refusals(lambda target=target, data=data: target.run(b"\0" + data))
            taken.setdefault(name, []).append(before)
    assert {name for name, refused in taken.items() if all(refused)} <= {"array"}


def _refusals(act) -> bool:
    """Whether an error comes out of a parser, also one that a target lets pass."""
    import targets

    found: list[bool] = []
    real = targets.suppress

    class Noted(real):
        def __exit__(self, kind, error, trace):
            found.append(kind is not None)
            return super().__exit__(kind, error, trace)

    targets.suppress = Noted
    try:
        act()
    finally:
        targets.suppress = real
    return bool(found) and found[-1]


# ---- what the fuzzers found


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


@pytest.mark.parametrize(
    "text",
    [b"a = " + b"9" * 5000, b"devices = 0x" + b"f" * 5000, b"a = " + b"[" * 30_000, b"\xff", b"#" * MEGABYTE,
     b"devices = 60000\n[blocks]\nhash_rate = [1" + b"0" * 308 + b", 1" + b"0" * 308 + b"]\n"],
)  # fmt: skip
def test_a_network_that_no_number_and_no_stack_holds(tmp_path, text):
    (tmp_path / "network.toml").write_bytes(text)
    with pytest.raises(ValueError, match=r"must be|less") as caught:
        NetworkConfig.from_toml(tmp_path / "network.toml")
    assert type(caught.value).__module__ == "flower_bfl.errors"


@pytest.mark.parametrize(
    "change",
    [{"grid": "abc"}, {"grid": [{"vary": 3}]}, {"grid": [3]}, {"claim": [{"take": 3}]}, {"quick": []},
     {"grid": [{"vary": {"a": [[1]], "b": [1]}}]}],
)  # fmt: skip
def test_an_experiment_of_other_kinds(change):
    with pytest.raises(ConfigError):
        parsed("odd", {"title": "x", "run": "cost", "grid": [], "panel": []} | change)


ODD = [3, "x", [3], {"a": 1}, [None], 10**400, True, "\ud800", "\x1b[2J", -1]
FIELDS = [
    "round",
    "devices",
    "leader",
    "miner",
    "left_out",
    "server_data",
    "kept_local",
    "accused",
    "suspected",
]
FIELDS += ["true_positives", "missed", "evaluate", "simulated_seconds", "latency_s", "gas", "train_seconds"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_round_that_is_of_another_kind(name, tmp_path):
    usual = {"round": 1, "evaluate": {"accuracy": 0.5}, "simulated_seconds": 1.0, "true_positives": 1}
    for value in ODD:
        (tmp_path / "rounds.jsonl").write_text(json.dumps(usual | {name: value}) + "\n")
        text = summary(tmp_path)
        assert text.replace("\n", "").isprintable()


@pytest.mark.filterwarnings("ignore:constrained_layout")  # for want of room beside a label of 100 digits
@pytest.mark.parametrize("value", [1e308, -1e308, 1e99, 5e-324])
def test_numbers_at_the_end_of_what_floats_hold_are_drawn_or_left_out(value, tmp_path):
    names = [
        "consensus_error",
        "consensus_bound",
        "gas",
        "train_seconds",
        "chain_seconds",
        "simulated_seconds",
    ]
    odd = dict.fromkeys(names, value) | {
        "latency_s": {"edge": value},
        "evaluate": {"accuracy": value, "loss": value},
    }
    lines = [{"round": 1, "evaluate": {"accuracy": 0.5}}, {"round": 2, **odd}, {"round": 2**31 - 1, **odd}]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert summary(tmp_path)
    assert draw_curves(tmp_path).exists()


@pytest.mark.parametrize("line", ["[" * 100_000, '{"gas": ' + "9" * 5000 + "}"])
def test_a_line_that_no_stack_and_no_number_holds(line, tmp_path):
    (tmp_path / "rounds.jsonl").write_text(f"{line}\n{{}}\n")
    with pytest.raises(RunFolderError, match=r"line 1 .* is not JSON"):
        summary(tmp_path)


def report_of(**said: object) -> bytes:
    return encode(
        {},
        {"format": "flower-bfl 5", "round": "1", "report": json.dumps({"left_out": [], "down": []} | said)},
    )


@pytest.mark.parametrize(
    "said",
    [{"left_out": [{"who": 3, "reason": "x"}]}, {"left_out": [{"who": "\ud800", "reason": "x"}]},
    {"left_out": ["who"]},
     {"down": [{"round": 1, "server": None, "link": "ab", "step": 0}]},
     {"down": [{"round": 1.5, "server": 1, "link": None, "step": 0}]},
     {"down": [{"round": 1, "server": 1, "link": None, "step": 10**30}]}],
)  # fmt: skip
def test_a_report_of_other_kinds(said):
    with pytest.raises(PayloadError, match="must hold a report"):
        read_report(report_of(**said))


@pytest.mark.parametrize("name", ["edge-servers", "p2p-rounds", "leader"])
@pytest.mark.parametrize("text", ["1_0", " 1", "+1", "01", "\u0661", "1e3", "-1", "", "9" * 5000])
def test_numbers_of_the_rules_are_spelt_in_one_way(name, text):
    said = {"edge-servers": "1", "p2p-rounds": "1", name: text}
    with pytest.raises(PayloadError):
        RunRules.decode(rules_of(np.eye(1), **said))


@pytest.mark.parametrize("text", ["1.5", "1_0", " 1", "+1", "01", "\u0661", "1e3"])
def test_what_is_spelt_otherwise_is_not_written_so_again(text):
    """Which an audit compares."""
    payload = encode(
        {}, {"format": "flower-bfl 5", "num-examples": text, "round": "0", "data": bytes(32).hex()}
    )
    assert DataSet.decode(payload).encode(0, 0) != payload


def test_names_that_are_no_unicode_are_not_encoded():
    for arrays, metadata in (({"\ud800": np.zeros(1)}, {}), ({}, {"a": "\ud800"})):
        with pytest.raises(PayloadError, match="Unicode"):
            encode(arrays, metadata)


def test_a_server_that_asks_for_what_cannot_be_signed():
    mod = sign_updates(bytes(31) + b"\1")
    right = {
        "server-round": 1,
        "ledger-chain-id": 1,
        "ledger-contract": "ab" * 20,
        "ledger-learning-rate": 1.0,
    }
    for name, value in [
        ("server-round", float("inf")), ("server-round", -1), ("ledger-contract", "zz"), ("ledger-contract",
        "ab" * 40),
        ("ledger-chain-id", -1), ("ledger-learning-rate", float("nan")), ("ledger-learning-rate", 0.0),
    ]:  # fmt: skip
        arrays = ArrayRecord({"w": Array(np.ones(2, np.float32))})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(right | {name: value})})
        with pytest.raises(ReplyError):
            mod(_message(content), None, lambda message, context: message)


# ---- bounded


@contextmanager
def bounded(megabytes: float = 4.0, seconds: float = 60.0) -> Iterator[None]:
    """That no more memory is taken, and no more time."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        assert time.monotonic() - started < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()


def framed(header: object) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


HUGE = {"w": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}


@pytest.mark.parametrize(
    "payload",
    [framed(HUGE), (2**63).to_bytes(8, "little") + b"{}", framed({"w": HUGE["w"] | {"data_offsets": [0, 0]}}),
     framed({"w": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
     framed({f"w{k}": HUGE["w"] for k in range(100)})],
)  # fmt: skip
def test_a_header_that_says_more_than_there_is(payload):
    with bounded(), pytest.raises(PayloadError):
        decode(payload)


def policy_folder(folder: Path, content: bytes, **change: object) -> Path:
    about = json.loads((PACKAGE / "controller" / "policies" / "shared" / "policy.json").read_bytes())
    about |= {"weights": {"file": "w.safetensors", "sha256": digest(content).hex()}, **change}
    (folder / "policy.json").write_text(json.dumps(about))
    (folder / "w.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "header",
    [HUGE, {"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
     {"w": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}],
)  # fmt: skip
def test_weights_that_say_more_than_there_is(header, tmp_path):
    with bounded(), pytest.raises(TrainingError):
        load_checkpoint(policy_folder(tmp_path, framed(header)))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_policy_whose_numbers_cannot_be_written_again(number, tmp_path):
    policy_folder(tmp_path, safetensors.numpy.save({"policy.a": np.zeros(1)}), training={"rate": 12345})
    text = (tmp_path / "policy.json").read_text()
    assert load_checkpoint(tmp_path).training == {"rate": 12345}
    (tmp_path / "policy.json").write_text(text.replace("12345", number))
    with pytest.raises(TrainingError, match="must be finite"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"steps": "many"}, {"steps": -1}, {"curve": 3}, {"curve": [{"steps": None}]}, {"training": []},
     {"code_version": 1}, {"steps": 2**64}],
)  # fmt: skip
def test_a_policy_whose_fields_are_of_another_kind(change, tmp_path):
    with pytest.raises(TrainingError, match="is not a policy"):
        load_checkpoint(policy_folder(tmp_path, safetensors.numpy.save({"policy.a": np.zeros(1)}), **change))


@pytest.mark.parametrize(
    "odd", [np.zeros(()), np.zeros((2, 2)), np.full(3, np.nan), np.full(3, 1e30), np.zeros(3, int)]
)
def test_weights_that_cannot_be_multiplied_make_no_policy(odd, tmp_path):
    folder = PACKAGE / "controller" / "policies" / "shared"
    (file,) = folder.glob("weights-*.safetensors")
    right = safetensors.numpy.load(file.read_bytes())
    assert load_checkpoint(folder).policy.architecture == "shared"
    for name in (name for name in right if name.startswith("policy.")):
        loaded = load_checkpoint(policy_folder(tmp_path, safetensors.numpy.save(right | {name: odd})))
        with pytest.raises(ConfigError, match="`weights` must"):
            loaded.policy  # noqa: B018


def rules_of(mixing: np.ndarray | None, **change: str) -> bytes:
    said = {
        "format": "flower-bfl 5",
        "strategy": "ConsensusBFL",
        "edge-servers": "65535",
        "p2p-rounds": "65535",
    }
    said |= {"mass": "count", "leader": "random", "learning-rate": "1.0"}
    return encode({} if mixing is None else {"mixing": mixing}, said | change)


@pytest.mark.parametrize(
    "payload",
    [rules_of(np.eye(2)), rules_of(np.eye(2), **{"edge-servers": "9" * 4000}),
     rules_of(np.eye(2), **{"edge-servers": "2", "p2p-rounds": "65536"}),
     rules_of(np.eye(2), **{"edge-servers": "2", "p2p-rounds": "auto", "tolerance": "1",
     "most-p2p-rounds": "9" * 30}),
     rules_of(np.ones((2000, 2000), bool), **{"edge-servers": "2000"})],
)  # fmt: skip
def test_rules_of_more_servers_and_steps_than_there_are(payload):
    with bounded(24), pytest.raises(PayloadError):
        RunRules.decode(payload)


def test_lists_in_lists_and_lists_of_many():
    deep = b""
    for _ in range(20_000):
        size = len(deep)
        length = size.to_bytes((size.bit_length() + 7) // 8)
        deep = (bytes([0xC0 + size]) if size < 56 else bytes([0xF7 + len(length)]) + length) + deep
    with bounded(), pytest.raises(ValueError, match="64 deep"):
        _rlp.decode(deep)
    many = _rlp.encode([b"\1"] * MEGABYTE)
    with bounded(64):
        assert len(_rlp.decode(many)) == MEGABYTE
    with bounded(), pytest.raises(ValueError, match="cut off"):
        _rlp.decode(b"\xbf" + b"\xff" * 8)


def npy(shape: str, version: bytes = b"\1\0", descr: str = "'|u1'") -> bytes:
    """A file that says that it has this shape, and has four bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return (
        b"\x93NUMPY"
        + version
        + len(header).to_bytes(2 if version[0] == 1 else 4, "little")
        + header
        + b"data"
    )


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0", b"\3\0"])
@pytest.mark.parametrize(
    "shape", ["(1099511627776,)", "(2147483648, 2147483648)", f"({'9' * 40},)", "(-1, 2, 0)"]
)
def test_arrays_that_say_more_than_there_is(version, shape):
    record = ArrayRecord({"w": Array("uint8", (), "numpy.ndarray", npy(shape, version))})
    with bounded(), pytest.raises(ReplyError, match="must be readable"):
        as_arrays(record)


def test_an_archive_is_no_array():
    file = BytesIO()
    np.savez_compressed(file, w=np.zeros(MEGABYTE))
    record = ArrayRecord({"w": Array("float64", (), "numpy.ndarray", file.getvalue())})
    with bounded(), pytest.raises(ReplyError, match="an archive as 'w'"):
        as_arrays(record)


def test_images_that_unpack_for_ever(tmp_path, monkeypatch):
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez_compressed(tmp_path / "images.npz", **dict.fromkeys(names, np.zeros(8 * MEGABYTE, np.uint8)))
    assert (tmp_path / "images.npz").stat().st_size < MEGABYTE
    monkeypatch.setattr(images, "_MOST_BYTES", MEGABYTE)
    with bounded(), pytest.raises(ConfigError, match="unpacked it has"):
        images.load_file(tmp_path / "images.npz")


def keystore_of(**kdf: object) -> str:
    params = {"salt": "00" * 32, "dklen": 32, **kdf}
    crypto = {
        "kdf": "pbkdf2" if "c" in kdf else "scrypt",
        "kdfparams": params,
        "ciphertext": "00" * 32,
        "mac": "00" * 32,
    }
    return json.dumps({"version": 3, "crypto": crypto | {"cipherparams": {"iv": "00" * 16}}})


@pytest.mark.parametrize(
    "text",
    [keystore_of(n=2**30, r=8, p=1), keystore_of(n=2, r=2**28, p=1), keystore_of(n=2**18, r=8, p=2**20),
     keystore_of(c=2**40, prf="hmac-sha256"), keystore_of(n=2, r=1, p=1, dklen=2**36), keystore_of(n="2",
     r=1, p=1),
     keystore_of(c=1, prf="hmac-sha256").replace("}}}",
     '}, "KDFPARAMS": {"n": 1073741824, "r": 8, "p": 1}}}')],
)  # fmt: skip
def test_a_key_file_that_takes_for_ever(text, tmp_path):
    (tmp_path / "operator.json").write_text(text)
    with bounded(), pytest.raises(ConfigError):
        keystore.KeyFolder(tmp_path, "password")(Sender(Role.OPERATOR))


def test_an_experiment_of_more_runs_than_there_is_time_for():
    grid = {"vary": {f"s{k}": list(range(100)) for k in range(20)}}
    with bounded(), pytest.raises(ConfigError, match="at most 10000 runs"):
        parsed("odd", {"title": "x", "run": "cost", "grid": [grid], "panel": []})


def test_a_key_of_many_parts_in_a_network(tmp_path):
    """tomllib takes time by the square of the parts; the longest that is read takes seconds."""
    (tmp_path / "network.toml").write_bytes(b"a" + b".a" * 40_000 + b" = 1")
    with bounded(), pytest.raises(ConfigError, match="longer than"):
        NetworkConfig.from_toml(tmp_path / "network.toml")


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


# ---- nothing is run


class Trap:
    """What writes a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()


def test_nothing_is_unpickled(tmp_path):
    place = tmp_path / "sprung"
    file = BytesIO()
    np.save(file, np.array([Trap(place)], dtype=object), allow_pickle=True)
    for content in (file.getvalue(), pickle.dumps(Trap(place))):
        record = ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", content)})
        with pytest.raises(ReplyError):
            as_arrays(record)
        config = ConfigRecord({"ledger-contract": "ab" * 20, "ledger-chain-id": 1, "server-round": 1})
        with pytest.raises(ReplyError):
            sign_updates()(
                _message(RecordDict({"w": record, "c": config})), None, lambda message, context: message
            )
        (tmp_path / "images.npz").write_bytes(content)
        with pytest.raises(ConfigError):
            images.load_file(tmp_path / "images.npz")
        with pytest.raises(TrainingError):
            load_checkpoint(policy_folder(tmp_path, content))
        with pytest.raises(PayloadError):
            decode(content)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "images.npz", **dict.fromkeys(names, np.array([Trap(place)], dtype=object)))
    with pytest.raises(ConfigError):
        images.load_file(tmp_path / "images.npz")
    assert not place.exists()


def test_no_module_can_unpickle():
    refused = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not refused & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called, said = (
                    ast.unparse(node.func),
                    {each.arg: ast.unparse(each.value) for each in node.keywords},
                )
                assert called not in ("eval", "exec"), path
                assert called != "np.load" or said["allow_pickle"] == "False", path
                assert called != "torch.load" or said["weights_only"] == "True", path


# ---- no way out of the folder


def outside(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A folder of payloads, a file outside of it, and its digest."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = tmp_path / "run" / "payloads"
    folder.mkdir(parents=True)
    return folder, secret, digest(b"secret")


@pytest.mark.parametrize("kind", [PayloadStore, AuditedStore])
def test_a_link_in_place_of_a_payload_is_not_followed(kind, tmp_path):
    folder, secret, name = outside(tmp_path)
    (folder / f"{name.hex()}.safetensors").symlink_to(secret)
    with pytest.raises(PayloadError):
        kind(folder).read(name)


@pytest.mark.parametrize("kind", [PayloadStore, AuditedStore])
def test_a_device_or_a_pipe_in_place_of_a_payload_is_not_read(kind, tmp_path):
    folder, _, name = outside(tmp_path)
    path = folder / f"{name.hex()}.safetensors"
    for make in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path), path.mkdir):
        make()
        with bounded(), pytest.raises(PayloadError):
            kind(folder).read(name)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_link_is_not_written_through(tmp_path):
    folder, secret, _ = outside(tmp_path)
    name = digest(b"public")
    (folder / f"{name.hex()}.safetensors").symlink_to(secret)
    PayloadStore(folder).write(b"public!" * 9, name)
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "..", ".", "", "a\0b", "../run/w", "x/../../secret"]
)
def test_a_policy_names_no_file_outside_of_its_folder(name, tmp_path):
    secret = safetensors.numpy.save({"policy.secret": np.zeros(1)})
    (tmp_path / "secret").write_bytes(secret)
    folder = tmp_path / "policy"
    folder.mkdir()
    policy_folder(folder, b"", weights={"file": name, "sha256": digest(secret).hex()})
    with pytest.raises(TrainingError):
        load_checkpoint(folder)


@pytest.mark.parametrize("which", ["policy.json", "w.safetensors"])
def test_a_policy_is_no_device(which, tmp_path):
    policy_folder(tmp_path, b"")
    (tmp_path / which).unlink()
    (tmp_path / which).symlink_to("/dev/zero")
    with bounded(), pytest.raises(TrainingError, match="not a regular file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["rounds.jsonl", "chain.json"])
def test_no_other_file_of_a_run_is_a_device_a_pipe_or_a_link_out_of_it(name, tmp_path):
    (tmp_path / "secret").write_text("{}\n")
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / name
    for make in (
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("../secret"),
    ):
        make()
        with bounded(), pytest.raises((RunFolderError, LedgerError)):
            read_rounds(folder) if name == "rounds.jsonl" else read_where(path)
        path.unlink()


def test_a_sender_is_no_path(tmp_path):
    keys = keystore.KeyFolder(tmp_path / "keys", "password")
    for sender in (Sender(Role.OPERATOR), Sender(Role.DEVICE, 10**9)):
        with pytest.raises(ConfigError) as caught:
            keys(sender)
        assert re.search(rf"{tmp_path}/keys/[a-z0-9-]+\.json", str(caught.value))


# ---- nobody answers who was not asked


class Grid:
    """Replies that are given, whoever was asked."""

    def __init__(self, *replies: Message) -> None:
        self.replies = replies

    def send_and_receive(self, messages, timeout=None):
        return list(self.replies)


def data_from(node: int, value: float = 1.0) -> Message:
    arrays = ArrayRecord({"x": Array(np.full((2, 2), value, np.float32))})
    return _message(RecordDict({DATA_RECORD: arrays}), node)


def test_data_of_a_device_that_was_not_asked_are_not_taken():
    link = DataLink(10**6, "config", 1.0, lambda server_round, sets: {})
    nodes = {0: 10, 1: 11, 2: 12}
    configs = {node: ConfigRecord() for node in nodes.values()}
    grid = Grid(data_from(12, 9.0), data_from(99, 9.0), data_from(10), data_from(10, 9.0))
    fetched = link.fetch(1, {0: 0, 1: 1}, nodes, configs, grid)
    assert list(fetched.sets) == [0]
    np.testing.assert_array_equal(fetched.sets[0].arrays["x"], np.ones((2, 2)))  # the first that it sent
    assert fetched.gone == {1} and not fetched.refused


def test_reports_of_nodes_that_were_not_asked_are_not_taken():
    def report(node: int, index: int) -> Message:
        told = {"role": "device", "index": index, "num-examples": 1, "data-bytes": 1}
        return _message(RecordDict({OWN_RECORD: ConfigRecord(told)}), node)

    fleet = RollCall(2, "config", 1.0).take(
        [10, 11], ConfigRecord(), Grid(report(99, 5), report(10, 0), report(10, 1), report(12, 2))
    )
    assert {index: one.node for index, one in fleet.devices.items()} == {0: 10}
    assert [one.who for one in fleet.left_out] == ["node 11"]
