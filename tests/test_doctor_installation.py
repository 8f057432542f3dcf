"""The doctor of an installation: what is absent, broken, old, full or running already is named."""

import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from doctored import quick_fixture, wrong  # noqa: F401  # fixtures

from flower_bfl.doctor import Finding, _installation, _machine, check_installation
from flower_bfl.doctor._findings import guarded


def installation(place: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_installation(place)}


def test_of_this_installation_nothing_is_wrong(tmp_path: Path) -> None:
    """This one loads what is there."""
    found = installation(tmp_path)
    assert not wrong(found), found
    assert {
        "Python",
        "flwr",
        "packages",
        "simulation",
        "EVM",
        "policies",
        "extra torch",
        "disk",
    } <= found.keys()


def test_what_is_tried_may_break_end_or_hang(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "breaks.py").write_text("raise ImportError('no such symbol')")
    (tmp_path / "ends.py").write_text("import os\nprint('x')\nos._exit(3)")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)")
    (tmp_path / "chats.py").write_text("print('hello', end='')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    told = _installation.try_out(["breaks", "chats", "ends", "json", "hangs", "csv"], 10)
    assert time.monotonic() - began < 60
    assert told == {
        "breaks": "ImportError: no such symbol",
        "chats": None,
        "ends": "ends Python with status 3",
        "json": None,
        "hangs": "does not end within 5 s",
        "csv": None,
    }
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("ray", "simulation"),
        ("flwr", "flwr"),
        ("trial:evm", "EVM"),
        ("trial:policies", "policies"),
        ("torch", "extra torch"),
        ("matplotlib", "extra plots"),
        ("web3", "extra web3"),
    ],
)
def test_what_does_not_load_is_named(broken: str, what: str, monkeypatch, tmp_path: Path) -> None:
    def try_out(names: list[str]) -> dict[str, str | None]:
        return dict.fromkeys(names) | {broken: "ImportError: undefined symbol"}

    monkeypatch.setattr(_installation, "try_out", try_out)
    found = list(_installation.check_what_loads())
    (finding,) = [each for each in found if each.what == what]
    assert finding.state == "wrong" and "ImportError: undefined symbol" in finding.told
    assert "\npip install --force-reinstall " in finding.to_do


def test_what_is_absent_is_named(quick, monkeypatch) -> None:
    def version_without(name: str) -> str:
        if name in ("torch", "torchvision", "scikit-learn", "tensorboard", "ray", "scipy"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(_installation, "version", version_without)
    found = {each.what: each for each in _installation.check_what_loads()}
    assert found["extra torch"].state == found["extra train"].state == "note"
    assert found["extra torch"].told.startswith("absent, for the examples")
    assert found["extra torch"].told.endswith("pip install 'flower-bfl[torch]'")
    assert found["extra train"].told.startswith("absent tensorboard, for ")
    assert found["extra plots"].state == "ok"
    assert "install --force-reinstall 'flwr[simulation]<1.42,>=1.41'" in found["simulation"].to_do
    needed = {each.what: each for each in _installation.check_packages(["scipy>=1.13", "numpy>=2.0"])}
    assert (needed["scipy"].state, needed["scipy"].told) == ("wrong", "absent; >=1.13 is needed")
    assert needed["scipy"].to_do.endswith("\npip install 'scipy>=1.13'")


def test_without_flower_the_rest_is_checked_still(monkeypatch, tmp_path: Path) -> None:
    def version_without(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_installation, "version", version_without)
    found = installation(tmp_path)
    assert wrong(found) == {"flwr"} and {"disk", "processes"} <= found.keys()
    assert found["flwr"].to_do.endswith("'flwr[simulation]<1.42,>=1.41'")


def test_versions_are_held_against_those_asked_for(monkeypatch) -> None:
    wanted = ["flwr[simulation]<1.42,>=1.41", "py-evm<0.13,>=0.12.1b1", "torch>=2; extra == 'torch'"]
    found = list(_installation.check_packages(wanted))
    assert [each.state for each in found] == ["ok", "ok"] and found[1].told.startswith("2 in versions")
    monkeypatch.setattr(_installation, "version", lambda name: "1.42.0" if name == "flwr" else version(name))
    found = list(_installation.check_packages(wanted))
    assert found[0].told == "1.42.0; <1.42,>=1.41 is needed"
    assert found[0].to_do.endswith("\npip install 'flwr[simulation]<1.42,>=1.41'")


def test_flowers_command_and_home(tmp_path: Path, monkeypatch) -> None:
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(scripts))
    assert next(_installation.check_flwr_command()).state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on the PATH" in next(_installation.check_flwr_command()).told
    (tmp_path / "flwr").write_text("#!/bin/sh\n")
    (tmp_path / "flwr").chmod(0o755)
    assert "of another environment" in next(_installation.check_flwr_command()).told
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "made" / "later"))
    assert "made at the first" in next(_installation.check_flwr_home()).told
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr" / "below-a-file"))
    assert next(_installation.check_flwr_home()).state == "wrong"


def test_the_machine(tmp_path: Path, monkeypatch) -> None:
    for free, state in ((2**31, "ok"), (2**29, "note"), (2**20, "wrong")):
        monkeypatch.setattr(_machine, "free_bytes", lambda path, free=free: free)
        assert next(_machine.check_space(tmp_path)).state == state
    for available, state in ((2**31, "ok"), (2**20, "note"), (None, "ok")):
        monkeypatch.setattr(_machine, "_available_bytes", lambda available=available: available)
        assert next(_machine.check_cores_and_memory()).state == state
    assert _machine.free_bytes(tmp_path / "not" / "yet") > 0


def test_what_runs_already_is_named_by_its_command(monkeypatch) -> None:
    running = [
        (7, 2_000_000, "/usr/bin/python /v/bin/flower-superlink --insecure"),
        (8, 1_000_000, "ray::ClientAppActor.run"),
        (9, 1_000_000, "vim notes-on-anvil.txt"),
    ]
    monkeypatch.setattr(_machine, "_processes", lambda: iter(running))
    finding = next(_machine.check_processes())
    assert finding.state == "note"
    assert finding.told.startswith("flower-superlink (7), ray::ClientAppActor.run (8) hold 3.0 MB")
    monkeypatch.setattr(_machine, "_processes", lambda: iter(running[2:]))
    assert next(_machine.check_processes()).state == "ok"


def test_a_check_that_fails_or_hangs_is_a_finding() -> None:
    def ends() -> list[Finding]:
        raise SystemExit(3)

    def hangs() -> list[Finding]:
        time.sleep(5)
        return []

    assert guarded("x", ends) == [Finding("x", "wrong", "could not be checked: SystemExit(3)")]
    assert guarded("x", hangs, 0.1) == [Finding("x", "wrong", "no answer within 0.1 s")]
