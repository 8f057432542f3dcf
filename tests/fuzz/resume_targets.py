"""Fuzz targets: what a run that was broken off goes on from."""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg
from fuzzed import FuzzedData
from record_targets import payloads
from target_registry import DEVICE, MODEL, OPERATOR, json_bytes, nothing, structured, target, written

from flower_bfl.chain_adapter import Entry, Kind, Role, Sender
from flower_bfl.chain_adapter.base import Recent
from flower_bfl.chain_adapter.records import read_state, state_payload
from flower_bfl.cli import _left_settings
from flower_bfl.controller import AllLocalController
from flower_bfl.errors import FlowerBFLError, PayloadError, RunFolderError
from flower_bfl.network import NetworkConfig
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._controlled import Controlled
from flower_bfl.strategies._go_on import play
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._memory import Memory
from flower_bfl.strategies._roster import Roster
from flower_bfl.strategies._run_folder import RunFolder
from flower_bfl.strategies._standing import Standing, check_arrays
from flower_bfl.types import LeftOut, RoundReport


def _own_line(k: int) -> dict[str, Any]:
    told = {"left_out": (LeftOut("device 1", "late"),), "server_devices": ((0, 1), (2,))}
    return RoundReport(k, 3, 30.0, **told, train={"loss": 0.5}, evaluate={"accuracy": 0.5}).as_json()


@target(lambda: [b"".join(json_bytes(_own_line(k)) + b"\n" for k in range(3))], RunFolderError)
def rounds_to_go_on_with(content: bytes) -> None:
    folder = RunFolder(written("rounds.jsonl", content).parent, resume=True)
    reports = folder.go_on(2)
    begun = Standing.of(Recent(1, b"", (Entry(Kind.MODEL, 0, OPERATOR, payloads()[2]),)))
    rest = {"timeout": 1.0, "train_config": None, "evaluate_config": None, "evaluate_fn": None}
    play(FedAvg(), begun, reports, None, ArrayRecord(), num_rounds=0, **rest)  # type: ignore[arg-type]


@structured(nothing, RunFolderError)
def lines_to_go_on_with(data: FuzzedData) -> None:
    count = 2 + data.whole(1)
    rounds_to_go_on_with(b"".join(json_bytes(data.changed(_own_line(k), 3)) + b"\n" for k in range(count)))


def _states() -> list[dict[str, Any]]:
    momentum = FedAdam()
    memory = Memory(momentum)
    momentum.m_t = momentum.v_t = {"w": np.ones(3)}
    network = {"rounds": np.array(2), "spent-j": np.zeros(5), "energy-slack-j": np.ones(5)}
    schemas = np.frombuffer(b'{"1": [["x", "<f4", [4]]]}', np.uint8)
    network |= {"clock-s": np.array(0.5), "schemas": schemas}
    return [memory.changed(), network, {"SERVER 1 3": np.ones(3, np.float32)}]


@structured(nothing, PayloadError)
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


@structured(nothing, FlowerBFLError)
def standing(data: FuzzedData) -> None:
    """Entries that a contract would have taken, with anything as payloads."""
    of = {Kind.GRADIENT: DEVICE, Kind.SEAL: DEVICE, Kind.CONSENSUS: Sender(Role.SERVER, 1)}
    entries = [Entry(Kind.RULES, 0, OPERATOR, payloads()[3]), Entry(Kind.MODEL, 0, OPERATOR, payloads()[2])]
    for _ in range(data.whole(8)):
        kind = data.one_of(list(Kind))
        payload = data.one_of(payloads())
        payload = data.mutated(payload) if data.whole(1) else payload
        entries.append(Entry(kind, 1, of.get(kind, OPERATOR), payload, data.whole(4)))
    found = Standing.of(Recent(data.whole(3), payloads()[3], tuple(entries)))
    found.check_rules(payloads()[3])
    check_arrays(Layout.of(MODEL), found.model)
    found.report(bytes(32))
    assert found.state is not None


@target(lambda: [b'{"devices": 4, "rate": 0.5, "name": "a", "on": true}'], RunFolderError)
def left_settings(content: bytes) -> None:
    for value in _left_settings(written("settings.json", content).parent).values():
        assert isinstance(value, bool | int | float | str)
