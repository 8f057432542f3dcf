"""The example whose ledger is on a node: it runs, is audited from there, and says if nobody is there."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from nodes import anvil_fixture, free_port, node_modules_fixture  # noqa: F401  # fixtures

from flower_bfl.errors import LedgerError

APP = Path(__file__).parents[2] / "examples" / "external_chain"
ROUNDS = 3


def flower_bfl(*words: object) -> str:
    command = [sys.executable, "-m", "flower_bfl.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_runs_on_anvil_and_is_audited_from_there(anvil: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = f'rpc-url="{anvil}" num-server-rounds={ROUNDS}'
    output = flower_bfl("run", APP, "--run-folder", run, "--run-config", settings)
    contract = json.loads((run / "chain" / "chain.json").read_text())["contract"]
    assert f"The contract of this run: {contract}\n" in output
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert rounds[-1]["evaluate"]["accuracy"] > 0.8

    where = ("--rpc", anvil, "--contract", contract, "--payloads", run / "chain" / "payloads", "--json")
    report = json.loads(flower_bfl("audit", *where))
    assert report["finding"] is None and report["head"] == rounds[-1]["head"]
    assert (report["checked"]["rounds"], report["checked"]["models_recomputed"]) == (ROUNDS, ROUNDS)
    assert json.loads(flower_bfl("ledger", *where))["summary"]["rounds"] == ROUNDS


@pytest.fixture
def server_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(APP)
    from on_node import server_app

    yield server_app
    for name in [name for name in sys.modules if name.split(".")[0] == "on_node"]:
        del sys.modules[name]


def test_a_node_that_is_not_there_is_one_line(server_app: SimpleNamespace, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    config = {"rpc-url": url, "run-folder": str(tmp_path / "run"), "num-server-rounds": ROUNDS}
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
