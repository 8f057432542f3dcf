"""Policies on disk: bit for bit, in plain files, and what is damaged, of another version or half written."""

import hashlib
import json
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.controller.checkpoint import Checkpoint, holds_checkpoint, load_checkpoint, save_checkpoint
from flower_bfl.controller.placement import FEATURES, VERSION
from flower_bfl.errors import ConfigError, FlowerBFLError, TrainingError
from flower_bfl.network import NetworkConfig, Radio, Tasks

NETWORK = NetworkConfig(
    devices=4,
    edge_servers=2,
    sub_channels=3,
    edge_cpu_hz=(1e9, 3e9),
    server_positions_m=((0.0, 1.5), (-2.0, 0.1)),
    radio=Radio(interference=False, power_dbm=(10.0, 23.0)),
    tasks=Tasks(drift=0.3),
)
CURVE = [{"steps": 16.0, "utility": 0.1 + 0.2}, {"steps": 32.0, "utility": 1e-17, "learning_s": 12.5}]


def made(number=0, network=NETWORK, **change):
    """A checkpoint with weights that differ by number."""
    rng = np.random.default_rng(number)
    weights = {
        f"pair.{layer}.{part}": rng.normal(size=shape).astype(np.float32)
        for layer, rows, columns in ((0, 32, len(FEATURES)), (2, 32, 32), (4, 3, 32))
        for part, shape in (("weight", (rows, columns)), ("bias", (rows,)))
    }
    weights |= {"own": np.ones(2, np.float32), "log_std": np.zeros(4, np.float32)}
    learner = {"critic.bias": rng.normal(size=7), "actor_steps.0.step": np.array(12.0, np.float32)}
    training = {"steps": 64, "seed": number, "devices": [4, 5], "update": "trpo", "advantage": True}
    return replace(Checkpoint("shared", network, weights, training, 32, CURVE, learner), **change)


def same_tensors(one, other):
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


def same(one, other):
    """Equal to the last bit, but for the version of the code, which saving fills in."""
    names = {each.name for each in fields(Checkpoint)} - {"weights", "learner", "code_version"}
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and same_tensors(one.weights, other.weights)
        and same_tensors(one.learner, other.learner)
    )


def weights_in(folder):
    (file,) = folder.glob("weights-*.safetensors")
    return file


def rewrite(folder, change):
    """Change what the JSON says; `change` may also return something else in its place."""
    about = json.loads((folder / "policy.json").read_bytes())
    other = change(about)
    (folder / "policy.json").write_text(json.dumps(about if other is None else other))


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path, made())
    return tmp_path


# --- there and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checkpoint",
    [made(), made(1, NetworkConfig()), made(2, learner={}), made(3, curve=[]), made(4, architecture="paper")],
)
def test_what_was_written_is_read(tmp_path, checkpoint):
    assert not holds_checkpoint(tmp_path / "a" / "b")
    save_checkpoint(tmp_path / "a" / "b", checkpoint)
    assert holds_checkpoint(tmp_path / "a" / "b")
    for path in (tmp_path / "a" / "b", str(tmp_path / "a" / "b")):
        kept = load_checkpoint(path)
        assert same(kept, checkpoint)
        assert kept.code_version == version("flower-bfl")


DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "uint32", "bool"]


@settings(max_examples=60, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans()), max_size=5
    ),
)
def test_arrays_of_any_kind_come_back_bit_for_bit(tmp_path_factory, seed, kinds):
    rng = np.random.default_rng(seed)

    def array(dtype, shape):
        """Any bits at all: also NaN of every kind, infinities and numbers next to 0."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = rng.integers(0, 2 if dtype == "bool" else 256, size, dtype=np.uint8).tobytes()
        return np.frombuffer(data, dtype).reshape(shape)

    arrays = [array(dtype, shape).T if turned else array(dtype, shape) for dtype, shape, turned in kinds]
    named = {f"{'policy.' * (i % 2)}{i}": each for i, each in enumerate(arrays)}
    path = tmp_path_factory.mktemp("any")
    save_checkpoint(path, made(weights=named, learner=named_otherwise(arrays)))
    kept = load_checkpoint(path)
    assert same_tensors(kept.weights, named)
    assert same_tensors(kept.learner, named_otherwise(arrays))


def named_otherwise(arrays):
    return {f"critic.{i}": each for i, each in enumerate(arrays)}


def test_numbers_of_another_byte_order_are_read_as_the_same_numbers(tmp_path):
    values = np.array([1.5, -2.0, 1e-30])
    save_checkpoint(tmp_path, made(weights={"x": values.astype(">f4")}))
    np.testing.assert_array_equal(load_checkpoint(tmp_path).weights["x"], values.astype(np.float32))


def test_files_are_what_json_and_safetensors_read_alone(folder, monkeypatch):
    assert {path.name for path in folder.iterdir()} == {"policy.json", weights_in(folder).name}

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    about = json.loads((folder / "policy.json").read_text(encoding="ascii"), parse_constant=no_constant)
    assert about["network"] == NETWORK.to_dict()
    assert (about["architecture"], about["steps"], about["model_version"]) == ("shared", 32, VERSION)
    assert about["training"] == made().training and about["curve"] == CURVE
    data = weights_in(folder).read_bytes()
    assert about["weights"] == {
        "file": weights_in(folder).name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    expected = {f"policy.{name}": values for name, values in made().weights.items()} | made().learner
    assert same_tensors(safetensors.numpy.load(data), expected)

    def unpickled(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, unpickled)
    assert same(load_checkpoint(folder), made())


def test_a_row_of_the_curve_is_a_line(folder):
    lines = (folder / "policy.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith("  {")] == CURVE


def test_the_same_is_written_alike_and_the_next_takes_its_place(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_checkpoint(folder, made())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_checkpoint(folder, made(1))
    assert same(load_checkpoint(folder), made(1))
    assert len(list(folder.iterdir())) == 2 and weights_in(folder).name not in before


def test_saving_leaves_other_files_alone(folder):
    (folder / "tensorboard").mkdir()
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(folder, made(1))
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "tensorboard").is_dir()


def test_old_weights_that_cannot_be_removed_do_no_harm(folder):
    (folder / "weights-0.safetensors").mkdir()
    save_checkpoint(folder, made(1))
    assert same(load_checkpoint(folder), made(1))


# --- damage -------------------------------------------------------------------------------------------------


def test_every_flipped_bit_in_the_weights_is_found(folder):
    rng = np.random.default_rng(0)
    file = weights_in(folder)
    data = file.read_bytes()
    for place in rng.choice(len(data), 200, replace=False).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(
            TrainingError, match=r"weights-.* is damaged: its SHA-256 must be [0-9a-f]{64}, got"
        ):
            load_checkpoint(folder)
    file.write_bytes(data)
    assert same(load_checkpoint(folder), made())


def test_weights_that_are_cut_off_or_longer_are_found(folder):
    file = weights_in(folder)
    data = file.read_bytes()
    for damaged in (b"", data[:1], data[:8], data[: len(data) // 2], data[:-1], data + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(TrainingError, match="is damaged"):
            load_checkpoint(folder)


def test_weights_of_another_policy_are_found(folder, tmp_path):
    save_checkpoint(tmp_path / "other", made(1))
    weights_in(folder).write_bytes(weights_in(tmp_path / "other").read_bytes())
    with pytest.raises(TrainingError, match="is damaged"):
        load_checkpoint(folder)


def test_a_flipped_bit_in_the_json_is_found_or_does_no_harm(folder):
    rng = np.random.default_rng(1)
    file = folder / "policy.json"
    data = file.read_bytes()
    refused = 0
    for place in rng.choice(len(data), 200, replace=False).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            load_checkpoint(folder)
        except FlowerBFLError:
            refused += 1
    assert refused > 100  # in white space and numbers it cannot be seen


def test_a_json_that_is_cut_off_is_found(folder):
    file = folder / "policy.json"
    text = file.read_text().rstrip()
    for length in (*range(0, len(text), 97), len(text) - 1):
        file.write_text(text[:length])
        with pytest.raises(TrainingError, match=r"policy\.json is not a policy as flower-bfl writes it"):
            load_checkpoint(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(TrainingError, match=r"there is no policy to be read in .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    name = weights_in(folder).name
    weights_in(folder).unlink()
    with pytest.raises(TrainingError, match=f"there is no policy to be read in .*{name}"):
        load_checkpoint(folder)


def put(about, *names_and_value):
    *names, last, value = names_and_value
    for name in names:
        about = about[name]
    about[last] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda about: [],
        lambda about: "policy",
        lambda about: 3,
        lambda about: {"steps": 3},
        lambda about: about.pop("weights") and None,
        lambda about: about.pop("network") and None,
        lambda about: about.pop("curve") and None,
        lambda about: put(about, "weights", "weights"),
        lambda about: put(about, "weights", {}),
        lambda about: put(about, "weights", "file", 7),
        lambda about: put(about, "weights", "file", ""),
        lambda about: put(about, "weights", "file", "."),
        lambda about: put(about, "weights", "file", "weights\0"),
        lambda about: put(about, "network", "Table IV"),
        lambda about: put(about, "network", 4),
        lambda about: put(about, "network", [4]),
    ],
)
def test_json_that_is_no_policy_is_refused(folder, change):
    rewrite(folder, change)
    with pytest.raises(TrainingError, match=r"policy\.json is not a policy as flower-bfl writes it"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"])
def test_text_that_is_no_json_is_refused(folder, text):
    (folder / "policy.json").write_bytes(text)
    with pytest.raises(TrainingError, match=r"policy\.json is not a policy as flower-bfl writes it"):
        load_checkpoint(folder)


def test_a_network_that_breaks_a_rule_is_refused_with_the_rule(folder):
    rewrite(folder, lambda about: put(about, "network", "devices", 0))
    with pytest.raises(ConfigError, match="`devices` must be"):
        load_checkpoint(folder)


def test_weights_with_the_right_digest_that_are_none_are_refused(folder):
    weights_in(folder).write_bytes(b"nothing")
    rewrite(folder, lambda about: put(about, "weights", "sha256", hashlib.sha256(b"nothing").hexdigest()))
    with pytest.raises(TrainingError, match="is no safetensors file"):
        load_checkpoint(folder)


def test_weights_of_another_architecture_are_read_but_make_no_policy(tmp_path):
    save_checkpoint(tmp_path, made(architecture="paper"))
    kept = load_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=r"`weights` must be .* for 'paper'"):
        kept.policy  # noqa: B018


@pytest.mark.parametrize("where", ["../secret.safetensors", "sub/../../secret.safetensors", "{folder}"])
def test_weights_outside_of_the_folder_are_not_read(tmp_path, where):
    folder = tmp_path / "run"
    save_checkpoint(folder, made())
    secret = tmp_path / "secret.safetensors"
    weights_in(folder).rename(secret)  # with the right digest
    name = where.format(folder=secret)
    rewrite(folder, lambda about: put(about, "weights", "file", name))
    with pytest.raises(TrainingError, match=r"there is no policy to be read in .*run/secret\.safetensors"):
        load_checkpoint(folder)


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [VERSION - 1, VERSION + 1, "1", None])
def test_a_policy_of_another_model_is_refused_and_told_to_train_again(tmp_path, other):
    save_checkpoint(tmp_path, made(model_version=other))
    rewrite(tmp_path, lambda about: put(about, "code_version", "0.0.7"))
    with pytest.raises(ConfigError) as refusal:
        load_checkpoint(tmp_path)
    message = str(refusal.value)
    assert f"`model_version` must be {VERSION}, " in message and f"got {other} in " in message
    assert "trained by flower-bfl 0.0.7" in message and "train it again" in message


def test_another_format_is_refused(folder):
    rewrite(folder, lambda about: put(about, "format", "flower-bfl policy 2"))
    with pytest.raises(
        ConfigError, match="`format` must be 'flower-bfl policy 1', got 'flower-bfl policy 2'"
    ):
        load_checkpoint(folder)


# --- writing that fails -------------------------------------------------------------------------------------


def in_a_process(folder, before, change=""):
    """Save another checkpoint in a process of its own, which may do to itself what `before` says."""
    script = """
        import os, resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, {tests!r})
        from test_checkpoint import made
        from flower_bfl.controller.checkpoint import save_checkpoint
        from flower_bfl.errors import TrainingError
        {before}
        try:
            save_checkpoint(Path({folder!r}), made(1{change}))
        except TrainingError as error:
            sys.exit(str(error))
    """
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(script).format(tests=tests, folder=str(folder), before=before, change=change)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("most_bytes", "change", "left"),
    [
        (4000, "", 2),  # the weights have 12 KB
        (20_000, ", curve=[{'steps': 1.0}] * 2000", 3),  # the JSON is longer, and comes after the weights
    ],
)
def test_a_disk_that_is_full_leaves_what_was_there(folder, most_bytes, change, left):
    # No file may grow beyond that: what a full disk looks like to a process.
    before = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes}))"
    )
    done = in_a_process(folder, before, change)
    assert done.returncode == 1
    assert f"the policy of step 32 cannot be written to {folder} ([Errno 27] File too large" in done.stderr
    assert "what was there before is as it was" in done.stderr
    assert same(load_checkpoint(folder), made())
    assert len(list(folder.iterdir())) == left and not list(folder.glob("*.part"))
    save_checkpoint(folder, made(2))
    assert same(load_checkpoint(folder), made(2)) and len(list(folder.iterdir())) == 2


KILLED = """
calls, replace = [], Path.replace
def dying(self, target):
    calls.append(target)
    if {after}:
        replace(self, target)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    if not {after}:
        replace(self, target)
    return target
Path.replace = dying
"""


@pytest.mark.parametrize(
    ("call", "after", "expected"), [(1, False, 0), (1, True, 0), (2, False, 0), (2, True, 1)]
)
def test_a_process_that_is_killed_while_writing_leaves_one_policy_or_the_other(folder, call, after, expected):
    before = KILLED.format(call=call, after=after)
    done = in_a_process(folder, before)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(load_checkpoint(folder), made(expected))
    save_checkpoint(folder, made(2))  # which clears away what was left
    assert same(load_checkpoint(folder), made(2)) and len(list(folder.iterdir())) == 2


def test_a_process_that_is_killed_before_its_first_policy_leaves_none(tmp_path):
    before = KILLED.format(call=2, after=False)
    assert in_a_process(tmp_path, before).returncode == -signal.SIGKILL
    assert not holds_checkpoint(tmp_path)
    with pytest.raises(TrainingError, match="there is no policy to be read"):
        load_checkpoint(tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(TrainingError, match=r"the policy of step 32 cannot be written to .*run"):
        save_checkpoint(tmp_path / "run", made())
    assert (tmp_path / "run").read_text() == "mine"
