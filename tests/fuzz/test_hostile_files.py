"""Hostile files: TOML, reports of rounds and policies of other kinds, and no way out of a folder."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hostile import MEGABYTE, PACKAGE, bounded, policy_folder

from flower_bfl.audit._folder import AuditedStore
from flower_bfl.chain_adapter import keystore
from flower_bfl.chain_adapter._rpc_file import read_where
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.encoding import digest
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.controller.checkpoint import load_checkpoint
from flower_bfl.errors import ConfigError, LedgerError, PayloadError, RunFolderError, TrainingError
from flower_bfl.network import NetworkConfig
from flower_bfl.paper.experiment import parsed
from flower_bfl.report import draw_curves, read_rounds, summary

# ---- TOML


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


# ---- reports of rounds


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


# ---- policies


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
