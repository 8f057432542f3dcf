"""Fuzz targets: policies, TOML, reports of rounds, positions, keys and images."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import tomli_w
from fuzzed import FuzzedData
from target_registry import (
    KEYS,
    OPERATOR,
    image_archive,
    json_bytes,
    nothing,
    process_folder,
    structured,
    target,
    written,
)

from flower_bfl.audit._folder import AuditedFolder
from flower_bfl.chain_adapter import keystore
from flower_bfl.controller.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from flower_bfl.controller.placement import FEATURES
from flower_bfl.errors import FlowerBFLError, LedgerError, RunFolderError
from flower_bfl.learning.data import load_file
from flower_bfl.network import NetworkConfig
from flower_bfl.paper.experiment import FOLDER, parsed
from flower_bfl.report import _panels, read_rounds, summary
from flower_bfl.report_page._map import read_positions
from flower_bfl.types import LeftOut, RoundReport

KEY_PASSWORD = "testpassword"


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
    folder = process_folder() / "policy"
    save_checkpoint(
        folder, Checkpoint("shared", NetworkConfig(), weights, {"seed": 1}, 32, [{"steps": 1.0}], learner)
    )
    about = json.loads((folder / "policy.json").read_bytes())
    weights = (folder / about["weights"]["file"]).read_bytes()
    about["weights"]["file"] = "w"
    return json_bytes(about), weights


def _load(about: bytes, weights: bytes) -> None:
    folder = process_folder() / "loaded"
    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_bytes(about)
    (folder / "w").write_bytes(weights)
    loaded = load_checkpoint(folder)
    with suppress(FlowerBFLError):
        loaded.check_fit(NetworkConfig())
        assert loaded.policy.architecture == loaded.architecture
    again = process_folder() / "saved"
    save_checkpoint(again, loaded)
    assert load_checkpoint(again).steps == loaded.steps


@target(lambda: [_policies()[0]], FlowerBFLError)
def policy_file(about: bytes) -> None:
    _load(about, _policies()[1])


@structured(nothing, FlowerBFLError)
def policy(data: FuzzedData) -> None:
    about, weights = json.loads(_policies()[0]), _policies()[1]
    if data.whole(1):
        size = int.from_bytes(weights[:8], "little")
        told = json_bytes(data.changed(json.loads(weights[8 : 8 + size])))
        weights = len(told).to_bytes(8, "little") + told + weights[8 + size :]
    weights = data.mutated(weights) if data.whole(1) else weights
    about["weights"] = {"file": "w", "sha256": hashlib.sha256(weights).hexdigest()}
    _load(json_bytes(data.changed(about)), weights)


def _networks() -> list[bytes]:
    return [
        NetworkConfig().to_toml().encode(),
        b"devices = 3\n[radio]\narea_m = 0x10\n",
        b"server_positions_m = []",
    ]


@target(_networks, FlowerBFLError)
def network(content: bytes) -> None:
    made = NetworkConfig.from_toml(written("network.toml", content))
    assert NetworkConfig.from_toml(written("network.toml", made.to_toml().encode())) == made
    assert made.edge_speeds_hz.shape == (made.edge_servers,)


@structured(nothing, FlowerBFLError)
def network_table(data: FuzzedData) -> None:
    table = data.changed(NetworkConfig().to_dict() | {"server_positions_m": [[0.0, 1.0]] * 5})
    if isinstance(table, dict):
        NetworkConfig.from_dict(table)
    try:
        content = tomli_w.dumps(table).encode()
    except (TypeError, ValueError, AttributeError, RecursionError):
        return
    network(content)


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


@structured(nothing, FlowerBFLError)
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
    return [
        b"".join(json_bytes(_round_line(number)) + b"\n" for number in range(3)),
        b'{"round": 1}\n{"round',
    ]


@target(_rounds, RunFolderError)
def rounds(content: bytes) -> None:
    path = written("rounds.jsonl", content)
    found = read_rounds(path.parent)
    summary(path.parent).encode()
    _panels(found)


@structured(nothing, RunFolderError)
def round_lines(data: FuzzedData) -> None:
    rounds(
        b"".join(
            json_bytes(data.changed(_round_line(number), 3)) + b"\n" for number in range(1 + data.whole(2))
        )
    )


@target(_rounds, LedgerError)
def audited_rounds(content: bytes) -> None:
    folder = object.__new__(AuditedFolder)
    folder._rounds, folder._size, folder.notes = written("rounds.jsonl", content), len(content), []
    for line in folder._read_lines():
        assert isinstance(line, dict)


@target(lambda: [json_bytes({"area_m": 9.0, "edge_servers_m": [[0.0, 1.0]], "devices_m": [[1, 2], [3, 4]]})])
def positions(content: bytes) -> None:
    read_positions(written("network.json", content).parent)


@cache
def _keystores() -> list[dict[str, Any]]:
    from eth_account import Account as Keyed

    key = KEYS(OPERATOR)
    return [Keyed.encrypt(key, KEY_PASSWORD, kdf, 2) for kdf in ("pbkdf2", "scrypt")]


def _key(content: bytes) -> None:
    written("operator.json", content)
    assert len(keystore.KeyFolder(process_folder(), KEY_PASSWORD)(OPERATOR)) == 32


@contextmanager
def _cheap() -> Iterator[None]:
    """Less patience with costly files than keys get: the rule is the same."""
    kept = keystore._MOST_ROUNDS, keystore._MOST_BLOCKS
    keystore._MOST_ROUNDS, keystore._MOST_BLOCKS = 300, 300
    try:
        yield
    finally:
        keystore._MOST_ROUNDS, keystore._MOST_BLOCKS = kept


@target(lambda: list(map(json_bytes, _keystores())), FlowerBFLError)
def key_file(content: bytes) -> None:
    with _cheap():
        _key(content)


@structured(nothing, FlowerBFLError)
def key_fields(data: FuzzedData) -> None:
    with _cheap():
        _key(json_bytes(data.changed(data.one_of(_keystores()))))


@target(lambda: [image_archive(np.savez), image_archive(np.savez_compressed)], FlowerBFLError)
def image_file(content: bytes) -> None:
    data = load_file(written("images.npz", content))
    assert len(data.train_images) == len(data.train_labels)
