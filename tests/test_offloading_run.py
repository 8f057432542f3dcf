"""The offloading example as a user runs it: real nodes, real data on the way, and the same in one process."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, RecordDict

from flower_bfl._flwr_run import run_app
from flower_bfl.audit import audit

pytestmark = pytest.mark.slow
APP = Path(__file__).parent.parent / "examples" / "offloading"
DEVICES, SERVERS, ROUNDS = 6, 2, 3
SETTINGS = {
    "devices": DEVICES,
    "edge-server-nodes": SERVERS,
    "num-server-rounds": ROUNDS,
    "controller": "greedy",
    "arrivals": 0.4,
    "kept": 0.6,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offloading") / "run"
    assert run_app(APP, SETTINGS | {"run-folder": str(folder)}, nodes=DEVICES + SERVERS, stream=False) == 0
    return folder


@pytest.fixture(scope="module")
def rounds(run):
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()][1:]


def test_devices_offload_and_the_model_learns(run, rounds):
    assert [line["round"] for line in rounds] == [1, 2, 3]
    for line in rounds:
        assert line["devices"] == DEVICES and not line["left_out"] and not line["fallback"]
        assert sum(map(len, line["server_data"])) > 0
        assert sum(map(len, line["server_data"])) + sum(map(len, line["server_devices"])) == DEVICES
        assert line["latency_s"]["total"] == pytest.approx(
            sum(
                line["latency_s"][name]
                for name in ("offload", "edge", "local", "upload", "consensus", "mining")
            )
        )
    assert rounds[-1]["evaluate"]["accuracy"] > 0.5
    assert rounds[-1]["evaluate"]["loss"] < rounds[0]["evaluate"]["loss"]
    totals = [line["latency_s"]["total"] for line in rounds]
    assert rounds[-1]["simulated_seconds"] == pytest.approx(sum(totals))
    assert (run / "curves.png").stat().st_size > 10_000


def test_data_arrive_between_the_rounds(rounds):
    """0.4 of a device's samples arrive each round, and it keeps the newest 0.6: 0.4, 0.6 and 0.6."""
    samples = [line["samples"] for line in rounds]
    assert samples[1] == samples[2] == pytest.approx(1.5 * samples[0], abs=2 * DEVICES)


def test_the_ledger_has_who_sent_what_and_the_audit_follows(run, rounds):
    report = audit(run)
    assert report.finding is None and report.checked.models_recomputed == ROUNDS
    assert report.checked.data_sets == sum(len(ds) for line in rounds for ds in line["server_data"])


def test_a_run_in_one_process_gives_the_same_model_bit_for_bit(run, rounds, tmp_path, monkeypatch):
    """Nothing depends on processes, node ids or the order of replies."""
    monkeypatch.syspath_prepend(APP)
    monkeypatch.syspath_prepend(Path(__file__).parent / "strategies")
    from field import Field
    from offloading import client_app, server_app

    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"] | SETTINGS
    grid = Field([client_app.app] * (DEVICES + SERVERS))
    for place, (node, context) in enumerate(zip(grid.partition_of, list(grid._contexts), strict=True)):
        grid._contexts[place] = Context(1, node, context.node_config, RecordDict(), config)
    strategy = server_app.make_strategy(config, tmp_path / "run")
    initial = ArrayRecord(server_app.build(config["dataset"], config["seed"]).state_dict())
    strategy.start(grid, initial, num_rounds=ROUNDS)
    for line, here in zip(rounds, strategy.reports[1:], strict=True):
        assert (line["model_digest"], line["head"]) == (here.model_digest, here.head)
        assert line["simulated_seconds"] == here.simulated_seconds
    for name in [name for name in sys.modules if name.partition(".")[0] == "offloading"]:
        del sys.modules[name]
