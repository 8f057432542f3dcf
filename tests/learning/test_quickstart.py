"""The example app's parts, with its own run config; whole runs are tried elsewhere."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from flower_bfl import ConfigError, ConsensusBFL, IndependentServers
from flower_bfl.learning.models import build

APP = Path(__file__).parents[2] / "examples" / "quickstart"


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(APP)
        from quickstart import client_app, server_app

        yield client_app, server_app


@pytest.fixture
def config() -> dict[str, Any]:
    project = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["flwr"]["app"]["config"]


def reply_to(
    handler: Any, config: dict[str, Any], kind: str, *, device: int, server_round: int
) -> RecordDict:
    node = {"partition-id": device, "num-partitions": 10}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=config)
    content = RecordDict(
        {
            "arrays": ArrayRecord(build("digits", seed=0).state_dict()),
            "config": ConfigRecord({"server-round": server_round}),
        }
    )
    return handler(Message(content, dst_node_id=1, message_type=kind), context).content


def test_a_device_trains_reproducibly(modules: Any, config: dict[str, Any]) -> None:
    def trained(device: int, server_round: int) -> np.ndarray:
        reply = reply_to(modules[0].on_train, config, "train", device=device, server_round=server_round)
        return np.concatenate([array.numpy().ravel() for array in reply["arrays"].values()])

    first = trained(3, 1)
    assert np.array_equal(first, trained(3, 1))
    assert not np.array_equal(first, trained(3, 2))
    assert not np.array_equal(first, trained(4, 1))


def test_a_device_says_what_it_did_and_who_it_is(modules: Any, config: dict[str, Any]) -> None:
    metrics = reply_to(modules[0].on_train, config, "train", device=3, server_round=1)["metrics"]
    assert set(metrics) == {"num-examples", "num-steps", "train-loss", "device-index"}
    assert (metrics["num-examples"], metrics["num-steps"], metrics["device-index"]) == (144, 10, 3)


def test_a_device_evaluates_on_its_share_of_the_test_set(modules: Any, config: dict[str, Any]) -> None:
    replies = [
        reply_to(modules[0].on_evaluate, config, "evaluate", device=device, server_round=1)["metrics"]
        for device in range(10)
    ]
    assert sum(reply["num-examples"] for reply in replies) == 355
    assert all(0 <= reply["accuracy"] <= 1 for reply in replies)


@pytest.mark.parametrize(
    ("name", "kind"), [("consensus", ConsensusBFL), ("independent", IndependentServers), ("fedavg", FedAvg)]
)
@pytest.mark.parametrize("ledger", ["evm", "memory", "none"])
def test_strategies(
    name: str, kind: type, ledger: str, modules: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    strategy = modules[1].make_strategy(config | {"strategy": name, "ledger": ledger}, tmp_path)
    assert type(strategy) is kind
    assert strategy.min_train_nodes == strategy.min_available_nodes == 10


@pytest.mark.parametrize("key", ["strategy", "ledger"])
def test_unknown_names(key: str, modules: Any, config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` must be one of .*, got 'other'"):
        modules[1].make_strategy(config | {key: "other"}, tmp_path)


def test_the_run_folder(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert modules[1].run_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    chosen = modules[1].run_folder("")
    assert chosen.parent == tmp_path / "runs" and chosen.name.startswith("quickstart-")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": "mine"}, "`kind` must be one of"),
        ({"partition": "labels", "labels-per-device": 99}, "`labels_per_device` must be"),
        ({"devices": 2000}, "`devices` must be at most the number of samples, 1442, got 2000"),
        ({"edge-servers": 11}, "`edge-servers` must be at most `devices`, got 11 and 10"),
    ],
)
def test_settings_that_cannot_work_end_the_run_at_once(
    modules: Any, config: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        modules[1].check_settings(config | settings)


def test_the_report_is_logged_even_without_matplotlib(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    server_app = modules[1]
    monkeypatch.setattr(server_app.log, "info", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(server_app.log, "warning", lambda text, *values: lines.append(text % values))
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "evaluate": {"accuracy": 0.5}}\n', encoding="utf-8")
    server_app.report_on(tmp_path)
    assert lines[-1] == f"Curves: {tmp_path / 'curves.png'}"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    server_app.report_on(tmp_path)
    assert lines[-1].startswith("No curves: matplotlib")
