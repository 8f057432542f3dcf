"""What the documentation shows is what happens."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from flower_bfl import EvmLedger
from flower_bfl._flwr_run import declared_config
from flower_bfl.chain_adapter import Kind
from flower_bfl.cli import _parse_run_config
from flower_bfl.network import NetworkConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def federation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "strategies")
    import federation

    return federation


def test_the_drop_in_example_runs(tmp_path, monkeypatch, federation):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    names = {"initial_weights": lambda: [np.zeros((4, 3), np.float32), np.zeros(3, np.float32)]}
    exec(example, names)  # what a reader would paste
    names["main"](federation.Federation([federation.walker(n) for n in range(5)]), None)
    ledger = EvmLedger("ledger")
    assert sum(entry.kind is Kind.MODEL for entry in ledger.entries()) == 11
    ledger.close()


def run_page(name, names):
    for example in blocks(ROOT / "docs" / name, "python"):
        exec(example, names)
    return names


def test_the_ledger_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("ledger.md", {"weights": np.ones(3, np.float32)})
    assert [entry.kind for entry in names["ledger"].entries()] == [Kind.MODEL]
    assert names["models"] == len(names["sealed"]) == 1
    names["ledger"].close()


def test_the_examples_of_keys_run(tmp_path, monkeypatch, federation):
    monkeypatch.chdir(tmp_path)
    names = run_page("keys.md", {"password": "correct horse"})
    grid = federation.Federation([federation.walker(n) for n in range(3)])
    names["strategy"].start(grid, federation.initial(), num_rounds=1)
    assert sorted(path.name for path in Path("keys").iterdir()) == sorted(
        ["operator.json", *(f"{role}-{n}.json" for role in ("device", "server") for n in range(3))]
    )
    assert names["app"] is not None


def test_the_examples_of_the_theory_run(capsys):
    names = run_page("theory.md", {})
    assert f" {names['terms'].total}\n" in capsys.readouterr().out
    assert names["strategy"].consensus.p2p_rounds.absolute


def test_the_examples_of_the_network_model_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "docs" / "network-model.md", "toml")
    Path("network.toml").write_text(example, encoding="utf-8")
    names = run_page("network-model.md", {})
    assert "(20, 10)\n[]\n" in capsys.readouterr().out
    np.testing.assert_allclose(names["wish"].bandwidth_hz, names["decisions"].bandwidth_hz)
    assert (names["small"].devices, names["small"].blocks.total) == (8, "race")


def test_the_controller_example_runs(capsys):
    names = run_page("controller.md", {})
    assert names["states"].batch == (8,)
    assert 5 < float(capsys.readouterr().out) < 15


def test_the_offloading_examples_run_together(tmp_path, monkeypatch, federation):
    monkeypatch.chdir(tmp_path)
    import field

    names = run_page("offloading.md", {})
    result = names["strategy"].start(field.Field([names["app"]] * 25), field.start_weights(), num_rounds=1)
    assert list(result.arrays) == ["w"]
    (report,) = names["strategy"].reports[1:]
    assert report.devices == 20 and sum(map(len, report.server_data)) > 10 and not report.left_out


def test_the_examples_of_attacks_run(tmp_path, monkeypatch, federation):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    honest = [federation.walker(n, named=True) for n in range(6)]
    for place, example in enumerate(blocks(ROOT / "docs" / "attacks.md", "python")[:2]):
        exec(example, names)
        names["strategy"].start(federation.Federation(honest), federation.initial(), num_rounds=4)
        out = [report.round for report in names["strategy"].reports if report.accused]
        assert out == ([2, 4] if place == 0 else [])
    exec(blocks(ROOT / "docs" / "attacks.md", "python")[2], names)


def test_the_network_model_lists_every_setting_with_its_default():
    page = (ROOT / "docs" / "network-model.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|[^|]*\| `([\w.]+)` \| `([^`]+)` \|", page, re.M)
    network = NetworkConfig()
    expected = {each.name: getattr(network, each.name) for each in fields(network)}
    for name in ("radio", "tasks", "blocks"):
        part = expected.pop(name)
        expected |= {f"{name}.{each.name}": getattr(part, each.name) for each in fields(part)}
    assert {name: ast.literal_eval(default) for name, default in listed} == expected


def test_settings_in_commands_exist():
    commands = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    shown = [shlex.split(line) for line in commands if "--run-config" in line]
    assert shown
    for words in shown:
        settings = _parse_run_config([words[words.index("--run-config") + 1]])
        assert settings.keys() <= declared_config(ROOT / words[2]).keys()


def test_make_targets_in_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {
        word for page in PAGES for word in re.findall(r"\bmake ([a-z-]+)\b", "".join(blocks(page, "sh")))
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
