"""The example apps on Flower's deployment runtime; one node loses its power in round 2."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment import Deployment, deployed

from flower_bfl import _flwr_run
from flower_bfl._processes import family
from flower_bfl.audit import audit

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT_S = 900


@dataclass(frozen=True)
class Case:
    app: str
    nodes: list[str]  # node configs
    settings: dict[str, object]
    killed: int  # node
    named: str  # how the report names it


def devices(count: int) -> list[str]:
    return [f"partition-id={index} num-partitions={count}" for index in range(count)]


def roles(count: int, servers: int) -> list[str]:
    return [f'role="device" index={index}' for index in range(count)] + [
        f'role="edge-server" index={index}' for index in range(servers)
    ]


CASES = [
    Case("quickstart", devices(4), {"devices": 4, "min-devices": 3, "num-server-rounds": 4}, 1, "device 1"),
    Case(
        "offloading",
        roles(4, 2),
        {"devices": 4, "edge-server-nodes": 2, "num-server-rounds": 3, "controller": "greedy"},
        4,
        "edge server 0",
    ),
]


def lines_of(folder: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    except OSError:
        return []


def kill_in_round_2(deployment: Deployment, node: int, folder: Path, goes_on: Callable[[], bool]) -> None:
    """SIGKILL once the node has a message of round 2; line 0 comes when round 1's replies are there."""
    received = deployment.received(node)
    while goes_on() and not lines_of(folder):
        received = deployment.received(node)
        time.sleep(0.1)
    while goes_on() and deployment.received(node) == received:
        time.sleep(0.1)
    deployment.kill(node)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.app)
def test_a_run_survives_a_node_that_dies(case, tmp_path):
    folder = tmp_path / "run"
    with deployed(case.nodes) as deployment:
        process = deployment.run(EXAMPLES / case.app, case.settings | {"run-folder": str(folder)})
        until = time.monotonic() + LIMIT_S
        kill_in_round_2(
            deployment,
            case.killed,
            folder,
            lambda: process.poll() is None and time.monotonic() < until,
        )
        assert deployment.outcome(process, until - time.monotonic()) == 0, deployment.log("run")[-4000:]
    lines = lines_of(folder)
    assert [line["round"] for line in lines] == list(range(case.settings["num-server-rounds"] + 1))
    named = [(line["round"], one["who"]) for line in lines for one in line["left_out"]]
    assert [number for number, who in named if who == case.named] == [2], "named once, and not asked again"
    lost = {f"device {n}" for n in range(4) if lines[2]["devices"] < 4}
    assert {*named} <= {(2, who) for who in (case.named, *lost)}, lines
    assert lines[-1]["evaluate"]["loss"] < lines[0]["evaluate"]["loss"]
    report = audit(folder)
    assert report.finding is None and report.checked.models_recomputed == case.settings["num-server-rounds"]


@pytest.mark.slow
def test_a_project_that_only_changed_its_strategy_survives_it_too():
    """Its clients do not say who they are; it writes below the folder in which the SuperLink was started."""
    with deployed(devices(4)) as deployment:
        until = time.monotonic() + LIMIT_S
        settings = {"num-server-rounds": 3, "fraction-evaluate": 0.0}
        process = deployment.run(EXAMPLES / "existing_project", settings)
        while process.poll() is None and deployment.received(1) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        deployment.kill(1)
        assert deployment.outcome(process, until - time.monotonic()) == 0, deployment.log("run")[-4000:]
        (folder,) = deployment.folder.glob("runs/*")
        report = audit(folder)
    assert report.finding is None and report.checked.models_recomputed == 3
    assert report.checked.gradients == 4 + 3 + 3


@pytest.mark.slow
def test_a_server_that_dies_goes_on_on_the_same_nodes(tmp_path):
    """kill -9 of the ServerApp's process; with the models of a run of which nothing died, bit for bit."""
    folder, whole, rounds = tmp_path / "run", tmp_path / "whole", 3
    settings = {"devices": 4, "num-server-rounds": rounds}
    with deployed(devices(4)) as deployment:
        until = time.monotonic() + LIMIT_S
        process = deployment.run(EXAMPLES / "quickstart", settings | {"run-folder": str(folder)})
        while process.poll() is None and len(lines_of(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(server_app_of(deployment), signal.SIGKILL)
        assert deployment.outcome(process, until - time.monotonic()) != 0
        assert len(lines_of(folder)) <= rounds
        process = deployment.run(EXAMPLES / "quickstart", settings | {"resume": str(folder)})
        assert deployment.outcome(process, until - time.monotonic()) == 0, deployment.log("run")[-4000:]
    assert [line["round"] for line in lines_of(folder)] == list(range(rounds + 1))
    words = ["examples/quickstart", "--nodes", "4", "--run-folder", whole]
    words += ["--run-config", f"num-server-rounds={rounds}"]
    command = [sys.executable, "-m", "flower_bfl.cli", "run", *words]
    subprocess.run(command, cwd=EXAMPLES.parent, check=True, capture_output=True, timeout=280)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert audit(folder).head == audit(whole).head


def server_app_of(deployment: Deployment) -> int:
    """The process that runs the ServerApp."""
    for process in family(deployment.marker, set()):
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if b"flwr-serverapp" in words:
            return process.pid
    raise AssertionError("no ServerApp")


def test_the_pages_commands_have_options_that_exist(tmp_path):
    page = (EXAMPLES.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)).replace("\\\n", "")
    commands = [shlex.split(line) for line in blocks.splitlines() if line.startswith("fl")]
    assert len(commands) == 8
    (tmp_path / "flwr").mkdir()
    environment = _flwr_run._environment("UNUSED", tmp_path, *_flwr_run._free_ports())  # else it phones home
    helps: dict[str, str] = {}
    for words in commands:
        options = [word for word in words if word.startswith("--")]
        tool = words[: {"run": 2, "supernode": 3}.get(words[1], 1)]
        name = " ".join(tool)
        if name not in helps:
            path = Path(sys.executable).parent / tool[0]
            done = subprocess.run(
                [path, *tool[1:], "--help"], env=environment, capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, done.stderr
            helps[name] = done.stdout
        for option in options:
            assert option in helps[name], (name, option)
    assert len(helps) == 4
    for option in re.findall(r"`(--[a-z-]+)`", page):
        assert option in helps["flower-superlink"] + helps["flower-supernode"], option
