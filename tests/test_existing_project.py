"""A project that ran FedAvg: one line and its import make it ConsensusBFL, and it still learns."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl import EvmLedger
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind

APP = Path(__file__).parents[1] / "examples" / "existing_project"
ROUNDS = 4
DEVICES = 10


def flower_bfl(folder: Path, *words: object) -> str:
    command = [sys.executable, "-m", "flower_bfl.cli", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_it_runs_learns_and_passes_its_audit(tmp_path: Path) -> None:
    output = flower_bfl(tmp_path, "run", APP, "--run-config", f"num-server-rounds={ROUNDS}")
    accuracy = re.search(r"Accuracy on images that no device has: ([\d.]+)%", output)
    assert accuracy is not None and float(accuracy[1]) > 70

    (run,) = (tmp_path / "runs").iterdir()
    assert f"Successfully started run {run.name}" in output
    checked = json.loads(flower_bfl(tmp_path, "audit", run, "--json"))["checked"]
    assert (checked["rounds"], checked["gradients"]) == (ROUNDS, DEVICES * ROUNDS)
    assert checked["models_recomputed"] == ROUNDS


# -- the one line --------------------------------------------------------------------------------------------


def changed() -> tuple[list[str], list[str]]:
    """The lines of the README's diff that go, and those that come in their place."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (APP / "README.md").read_text(), re.M | re.S)
    lines = diff.splitlines()
    return [[line[1:] for line in lines if line.startswith(sign)] for sign in "-+"]


def server_app(strategy: str) -> str:
    """The source of the ServerApp, with the strategy that the README's diff ends or begins with."""
    source = (APP / "digits" / "server_app.py").read_text()
    if strategy == "ConsensusBFL":
        return source
    for old, new in zip(*changed(), strict=True):
        assert source.count(f"{new}\n") == 1
        source = source.replace(new, old)
    return source


def test_the_readme_shows_a_line_and_its_import() -> None:
    old, new = changed()
    assert [line.split()[0] for line in old] == ["from", "strategy"]
    assert [line.split()[0] for line in new] == ["from", "strategy"]
    lines = (APP / "digits" / "server_app.py").read_text().splitlines()
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (APP / "README.md").read_text(), re.M | re.S)
    assert {line[1:] for line in diff.splitlines() if line[:1] == " "} <= set(lines)
    before = server_app("FedAvg")
    assert "flower_bfl" not in before and "ConsensusBFL" not in before


def test_the_client_is_what_a_stranger_has() -> None:
    others = "".join(path.read_text() for path in (APP / "digits").glob("*.py") if path.stem != "server_app")
    others += (APP / "pyproject.toml").read_text()
    for word in ("flower_bfl", "flower-bfl", "num-steps", "device-index"):
        assert word not in others


class Devices:
    """A Grid whose nodes are the project's own ClientApp in this process, one after the other."""

    def __init__(self, app: ClientApp, config: dict[str, object]) -> None:
        self._app = app
        self._contexts = {
            number + 1: Context(
                run_id=1,
                node_id=number + 1,
                node_config={"partition-id": number, "num-partitions": DEVICES},
                state=RecordDict(),
                run_config=config,
            )
            for number in range(DEVICES)
        }

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        messages = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return [self._app(message, self._contexts[message.metadata.dst_node_id]) for message in messages]


@pytest.fixture
def client_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientApp]:
    monkeypatch.syspath_prepend(APP)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    from digits.client_app import app

    yield app
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.split(".")[0] == "digits"]:
        del sys.modules[name]


def test_both_versions_run_and_agree(
    client_app: ClientApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices that say nothing of their steps count alike, so consensus leads to FedAvg's model."""
    monkeypatch.chdir(tmp_path)
    config = {
        "num-server-rounds": 2,
        "fraction-evaluate": 0.5,
        "local-epochs": 1,
        "learning-rate": 0.05,
        "batch-size": 16,
    }
    printed, models = {}, {}
    for strategy in ("FedAvg", "ConsensusBFL"):
        torch.manual_seed(0)
        random.seed(0)
        names: dict[str, Any] = {}
        exec(compile(server_app(strategy), f"{strategy}.py", "exec"), names)
        models[strategy] = seen = list[np.ndarray]()
        names["evaluate"] = keeping(names["evaluate"], seen)
        names["main"](Devices(client_app, config), SimpleNamespace(run_id=7, run_config=config))
        printed[strategy] = capsys.readouterr().out
    np.testing.assert_allclose(models["ConsensusBFL"], models["FedAvg"], atol=1e-5)
    assert np.abs(models["FedAvg"][-1] - models["FedAvg"][0]).max() > 0.05
    assert printed["FedAvg"] == printed["ConsensusBFL"] != ""
    assert audit_of(tmp_path / "runs" / "7") == 2


def keeping(evaluate: Callable[..., MetricRecord], models: list[np.ndarray]) -> Callable[..., MetricRecord]:
    """The project's evaluation, which also appends the model's numbers to a list."""

    def evaluate_and_keep(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        models.append(np.concatenate([array.ravel() for array in arrays.to_numpy_ndarrays()]))
        return evaluate(server_round, arrays)

    return evaluate_and_keep


def audit_of(run: Path) -> int:
    """The models that were recomputed."""
    report = audit(run)
    assert report.finding is None
    ledger = EvmLedger(run / "chain", read_only=True)
    assert sum(entry.kind is Kind.GRADIENT for entry in ledger.entries()) == DEVICES * 2
    ledger.close()
    return report.checked.models_recomputed
