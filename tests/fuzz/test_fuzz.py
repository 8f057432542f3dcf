"""Hostile input to every parser: only our errors, in bounded time and memory, and nothing is run.

`fuzz.py` beside this runs the same targets for longer, guided by coverage. What it found, and what must not
be followed or believed, is in `test_hostile_*.py`.
"""

import ast
import json
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import target_registry
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from fuzzed import FuzzedData
from hostile import MEGABYTE, PACKAGE, bounded, policy_folder, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_targets import message_from
from targets import TARGETS

from flower_bfl.chain_adapter import _rlp, keystore
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.encoding import decode
from flower_bfl.chain_adapter.records import RunRules
from flower_bfl.controller.checkpoint import load_checkpoint
from flower_bfl.errors import ConfigError, PayloadError, ReplyError, TrainingError
from flower_bfl.learning import data as images
from flower_bfl.learning.signing import sign_updates
from flower_bfl.network import NetworkConfig
from flower_bfl.paper.experiment import parsed
from flower_bfl.strategies._replies import as_arrays

# ---- any bytes


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # numpy's, of a file as Python 2 wrote them
@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_and_what_becomes_of_it(name):
    target = TARGETS[name]

    @settings(max_examples=200, suppress_health_check=list(HealthCheck), database=None)
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
    found: list[bool] = []
    real = target_registry.suppress

    class Noted(real):
        def __exit__(self, kind, error, trace):
            found.append(kind is not None)
            return super().__exit__(kind, error, trace)

    target_registry.suppress = Noted
    try:
        act()
    finally:
        target_registry.suppress = real
    return bool(found) and found[-1]


# ---- bounded


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


@pytest.mark.parametrize(
    "header",
    [HUGE, {"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
     {"w": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}],
)  # fmt: skip
def test_weights_that_say_more_than_there_is(header, tmp_path):
    with bounded(), pytest.raises(TrainingError):
        load_checkpoint(policy_folder(tmp_path, framed(header)))


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
                message_from(RecordDict({"w": record, "c": config})), None, lambda message, context: message
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
