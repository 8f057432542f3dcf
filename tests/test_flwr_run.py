"""A tiny app under the real `flwr run`: what comes back, and what stays behind (nothing)."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl import _flwr_run
from flower_bfl._flwr_run import declared_config, private_flower, run_app
from flower_bfl._processes import end_processes, family
from flower_bfl.errors import ConfigError, FlowerBFLError

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="looks into /proc")

PYPROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "idle"
    version = "1.0.0"
    description = "An app that does nothing"
    license = "Apache-2.0"
    dependencies = ["a-package-that-is-not-published"]

    [tool.flwr.app]
    publisher = "nobody"

    [tool.flwr.app.components]
    serverapp = "idle.apps:server"
    clientapp = "idle.apps:client"

    [tool.flwr.app.config]
    text = ""
    fail = false
    sleep-s = 0.0
    nested.rounds = 1
"""
APPS = """
    import time
    import numpy as np
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    from flower_bfl import ConfigError

    client = ClientApp()
    server = ServerApp()


    @client.train()
    def train(message, context):
        print("training", flush=True)
        time.sleep(context.run_config["sleep-s"])
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)


    @server.main()
    def main(grid, context):
        if context.run_config["fail"]:
            raise ConfigError("asked to fail")
        print("text is", ascii(context.run_config["text"]), flush=True)
        strategy = FedAvg(fraction_evaluate=0.0)
        arrays = ArrayRecord([np.zeros(2, dtype=np.float32)])
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=context.run_config["nested.rounds"])
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    (folder / "pyproject.toml").write_text(dedent(PYPROJECT))
    (folder / "idle").mkdir()
    (folder / "idle" / "__init__.py").touch()
    (folder / "idle" / "apps.py").write_text(dedent(APPS))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's home and Flower settings, which are to stay as they are: empty; a proxy, Ray, colours."""
    home, flower = tmp_path / "home", tmp_path / "users-flower"
    home.mkdir()
    flower.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FLWR_HOME", str(flower))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield home
    assert list(home.iterdir()) == []
    assert list(flower.iterdir()) == []


# --- the real thing -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_app_tells_a_completed_run_from_a_failed_one(
    app: Path, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "blanks, \"both\" 'quotation' marks = ü"
    with private_flower() as environment:
        assert run_app(app, {"text": text, "nested.rounds": 2}, nodes=2, environment=environment) == 0
        streamed = capfd.readouterr()
        assert f"text is {text!a}" in streamed.out
        assert "[ROUND 2/2]" in streamed.out

        assert run_app(app, {"fail": True}, nodes=2, stream=False, environment=environment) != 0
        kept = capfd.readouterr()
        assert kept.out == ""
        assert kept.err.endswith("asked to fail\n")  # below Flower's own last words

        monkeypatch.setattr(_flwr_run, "_run_status", lambda _: "pending")
        with pytest.raises(FlowerBFLError, match=r"did not start the run within 1 s"):
            run_app(app, {}, nodes=2, stream=False, environment=environment, start_timeout_s=1.0)

        (marker,) = (name for name in environment if name.startswith("FLOWER_BFL_PRIVATE_"))
        assert family(marker, set())  # the SuperLink still serves
    assert not family(marker, set())
    assert not Path(environment["FLWR_HOME"]).parent.exists()


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_in_the_middle_of_a_round_ends_every_process(
    app: Path, home: Path, number: signal.Signals
) -> None:
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also under nohup
        "from pathlib import Path; from flower_bfl._flwr_run import run_app\n"
        f"run_app(Path({str(app)!r}), {{'sleep-s': 100.0}}, nodes=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    with process.stdout:
        assert any(b"Sampled" in line for line in process.stdout), "the run ended before its first round"
        started = wait_for_descendant(process.pid, "raylet")
        process.send_signal(number)
        sent = time.monotonic()
        process.stdout.read()
    assert process.wait() != 0
    assert time.monotonic() - sent < 15
    assert [name for pid, name in started.items() if is_running(pid)] == []


def test_a_start_that_takes_too_long_is_an_error(app: Path, home: Path) -> None:
    with pytest.raises(FlowerBFLError, match=r"did not answer within 0\.01 s"):
        run_app(app, {}, nodes=2, start_timeout_s=0.01)


def descendants(pid: int) -> dict[int, str]:
    """Name by number of every process below `pid`, by way of parents alone."""
    parents = {}
    for entry in PROC.glob("[0-9]*"):
        try:
            number, name, rest = re.fullmatch(
                r"(\d+) \((.*)\) \S (.*)", (entry / "stat").read_text(), re.S
            ).groups()
        except OSError:
            continue
        parents[int(number)] = (int(rest.split()[0]), name)
    below = {pid}
    while more := {child for child, (parent, _) in parents.items() if parent in below} - below:
        below |= more
    return {child: parents[child][1] for child in below - {pid}}


def wait_for_descendant(pid: int, name: str) -> dict[int, str]:
    deadline = time.monotonic() + 60
    while name not in (found := descendants(pid)).values():
        assert time.monotonic() < deadline, f"no {name} among {found}"
        time.sleep(0.2)
    return found


def is_running(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# --- ending processes ---------------------------------------------------------------------------------

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
START = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], env={});"
PARENT = START + "import time; time.sleep(60)"


@needs_proc
@pytest.mark.parametrize(
    "scripts",
    [(SLEEP,), (STUBBORN,), (PARENT, SLEEP), (PARENT, START, SLEEP)],
    ids=["meek", "stubborn", "child without marker", "orphan without marker"],
)
def test_end_processes_ends_the_marked_and_spares_the_rest(scripts: tuple[str, ...]) -> None:
    marker = f"FLOWER_BFL_TEST_{uuid.uuid4().hex}"
    with (
        spawn(*scripts, environment=os.environ | {marker: "1"}) as ours,
        spawn(SLEEP, environment=os.environ | {f"{marker}_NOT": "1"}) as bystander,
    ):
        last = printed_number(ours)
        assert printed_number(bystander) == bystander.pid
        assert is_running(last)
        end_processes(marker)
        ours.wait()
        assert not is_running(last)
        assert bystander.poll() is None
        bystander.kill()


def spawn(*arguments: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )


def printed_number(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_config", "nodes", "message"),
    [
        ({"rounds": 3}, 2, r"`run_config` may set what .* declares \(fail, nested.rounds, sleep-s, text\)"),
        ({"fail": 1}, 2, r"`run_config` must give fail a value of type bool, as the app does, got 1"),
        ({"nested.rounds": True}, 2, r"must give nested.rounds a value of type int, .* got True"),
        ({"nested.rounds": 1.5}, 2, r"must give nested.rounds a value of type int, .* got 1.5"),
        ({"text": 3}, 2, r"must give text a value of type str, .* got 3"),
        ({}, 0, r"`nodes` must be at least 1, got 0"),
    ],
)
def test_settings_the_app_cannot_take(
    app: Path, run_config: dict[str, object], nodes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_app(app, run_config, nodes=nodes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must hold a pyproject.toml"),
        ("[tool", "must hold a valid pyproject.toml"),
        ("[project]\nname = 'x'", r"must be a Flower app, got .* without \[tool.flwr.app\]"),
    ],
)
def test_a_folder_that_is_no_app(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_app(tmp_path, {}, nodes=2)


def test_an_app_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`app` must be the folder of a Flower app, got .*/nowhere"):
        run_app(tmp_path / "nowhere", {}, nodes=2)


def test_nested_settings_are_named_with_dots(app: Path) -> None:
    assert declared_config(app) == {"text": "", "fail": False, "sleep-s": 0.0, "nested.rounds": 1}


@given(
    st.dictionaries(
        st.text(), st.text() | st.booleans() | st.integers() | st.floats(allow_nan=False), max_size=4
    )
)
def test_settings_survive_toml(run_config: dict[str, str | bool | int | float]) -> None:
    read = tomllib.loads(_flwr_run._toml(run_config))
    assert read == run_config
    assert [type(value) for value in read.values()] == [type(value) for value in run_config.values()]
