"""The example whose ledger is on a node: it runs, is audited from there, and says if nobody is there."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployment import deployed
from nodes import anvil_fixture, free_port, node_modules_fixture  # noqa: F401  # fixtures

from flower_bfl.errors import LedgerError

APP = Path(__file__).parents[2] / "examples" / "external_chain"
ROUNDS = 3


def flower_bfl(*words: object) -> str:
    command = [sys.executable, "-m", "flower_bfl.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_runs_on_anvil_and_is_audited_from_there(anvil: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = f'rpc-url="{anvil}" num-server-rounds={ROUNDS}'
    output = flower_bfl("run", APP, "--run-folder", run, "--run-config", settings)
    where = at(anvil, run)
    assert f"The contract of this run: {where[3]}\n" in output
    rounds = follows(anvil, run)
    assert rounds[-1]["evaluate"]["accuracy"] > 0.8
    assert json.loads(flower_bfl("ledger", *where))["summary"]["rounds"] == ROUNDS


@pytest.mark.slow
def test_on_real_nodes_of_which_one_dies_it_is_audited_from_there_too(anvil: str, tmp_path: Path) -> None:
    run, until = tmp_path / "run", time.monotonic() + 900
    with deployed([f"partition-id={index} num-partitions=4" for index in range(4)]) as deployment:
        settings = {"rpc-url": anvil, "num-server-rounds": ROUNDS, "run-folder": str(run)}
        process = deployment.run(APP, settings)
        while process.poll() is None and deployment.received(1) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        deployment.kill(1)
        assert deployment.outcome(process, until - time.monotonic()) == 0, deployment.log("run")[-4000:]
    rounds = follows(anvil, run)
    assert [line["devices"] for line in rounds[1:]] == [4, 3, 3]
    assert [len(line["left_out"]) for line in rounds[1:]] == [0, 1, 0]


def at(node: str, run: Path) -> tuple[object, ...]:
    """Where a run's ledger is, for the command."""
    contract = json.loads((run / "chain" / "chain.json").read_text())["contract"]
    return ("--rpc", node, "--contract", contract, "--payloads", run / "chain" / "payloads", "--json")


def follows(node: str, run: Path) -> list[dict[str, Any]]:
    """The run's rounds, all of which follow from what the node has."""
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    report = json.loads(flower_bfl("audit", *at(node, run)))
    assert report["finding"] is None and report["head"] == rounds[-1]["head"]
    assert (report["checked"]["rounds"], report["checked"]["models_recomputed"]) == (ROUNDS, ROUNDS)
    return rounds


@pytest.fixture
def server_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(APP)
    from on_node import server_app

    yield server_app
    for name in [name for name in sys.modules if name.split(".")[0] == "on_node"]:
        del sys.modules[name]


def test_a_node_that_is_not_there_is_one_line(server_app: SimpleNamespace, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    config = {"rpc-url": url, "run-folder": str(tmp_path / "run"), "resume": "", "num-server-rounds": ROUNDS}
    with pytest.raises(LedgerError) as error:
        server_app.main(None, SimpleNamespace(run_id=1, run_config=config))
    assert str(error.value) == (
        f"RpcLedger('{url}'): nobody answers there; start a node, or set `rpc-url` to one"
    )
    assert not (tmp_path / "run").exists()


def test_the_readme_names_the_settings_that_there_are() -> None:
    readme, project = (APP / "README.md").read_text(), (APP / "pyproject.toml").read_text()
    (default,) = re.findall(r'^rpc-url = "(.+)"$', project, re.M)
    assert f"--rpc {default} " in readme
    assert "rpc-url=" in readme
