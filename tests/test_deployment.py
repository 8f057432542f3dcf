"""The example apps on Flower's deployment runtime; one node loses its power in round 2."""

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment import deployed

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


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.app)
def test_a_run_survives_a_node_that_dies(case, tmp_path):
    folder = tmp_path / "run"
    with deployed(case.nodes) as deployment:
        process = deployment.run(EXAMPLES / case.app, case.settings | {"run-folder": str(folder)})
        until = time.monotonic() + LIMIT_S
        while len(lines_of(folder)) < 2 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        deployment.kill(case.killed)
        assert deployment.outcome(process, until - time.monotonic()) == 0, deployment.log("run")[-4000:]
    lines = lines_of(folder)
    assert [line["round"] for line in lines] == list(range(case.settings["num-server-rounds"] + 1))
    left_out = [one["who"] for line in lines[2:] for one in line["left_out"]]
    assert left_out.count(case.named) == 1, "it is named once, and not asked again"
    lost = {f"device {n}" for line in lines[2:] for n in range(4) if line["devices"] < 4}
    assert {*left_out} <= {case.named, *lost}, lines
    assert lines[-1]["evaluate"]["loss"] < lines[0]["evaluate"]["loss"]
    report = audit(folder)
    assert report.finding is None and report.checked.models_recomputed == case.settings["num-server-rounds"]


def test_the_pages_commands_have_options_that_exist():
    page = (EXAMPLES.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
    commands = [
        line for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()
    ]
    assert len(commands) == 5
    helps: dict[str, str] = {}
    for words in map(shlex.split, commands):
        tool = words[: 2 if words[0] == "flwr" else 1]
        path = Path(sys.executable).parent / tool[0]
        if tool[0] not in helps:
            done = subprocess.run([path, *tool[1:], "--help"], capture_output=True, text=True, timeout=100)
            helps[tool[0]] = done.stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[tool[0]], (tool, option)
    superlink = helps["flower-superlink"] + helps["flower-supernode"]
    for option in re.findall(r"`(--[a-z-]+)`", page):
        assert option in superlink, option
