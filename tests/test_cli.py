"""The command line: what it prints, how it fails, what it imports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flower_bfl import _flwr_run, cli
from flower_bfl.errors import ConfigError, FlowerBFLError

HEAVY = ("torch", "flwr", "ray", "web3", "eth", "matplotlib", "sklearn")

Call = tuple[Path, dict[str, object], int]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Exit status of `flower-bfl` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["flower-bfl", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[tool.flwr.app.config]\ndevices = 6\ngraph = "ring"\nrate = 0.1\nrun-folder = ""\n'
    )
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The arguments with which the command runs the app; the app itself only writes a file."""
    seen: list[Call] = []

    def fake_run(app: Path, run_config: dict[str, object], *, nodes: int) -> int:
        seen.append((app, run_config, nodes))
        folder = Path(str(run_config["run-folder"]))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rounds.jsonl").write_bytes(b"{}" * 1000)
        return 1 if run_config.get("graph") == "broken" else 0

    monkeypatch.setattr(_flwr_run, "run_app", fake_run)
    return seen


def test_help_names_the_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['flower-bfl', '--help']\n"
        "from flower_bfl.cli import main\n"
        "try: main()\n"
        f"finally: print('imported:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "run" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(
    ("group", "commands"), [("network", ("show", "settings")), ("controller", ("train", "compare"))]
)
def test_a_group_alone_names_its_commands(
    group: str, commands: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, group) == 2
    printed = capsys.readouterr()
    assert all(f" {command} " in printed.out + printed.err for command in commands)


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    declared = re.search(r'^version = "(.+)"$', pyproject, re.M)
    assert declared is not None
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"flower-bfl {declared[1]}\n"


def test_python_m_is_the_command_too() -> None:
    command = [sys.executable, "-m", "flower_bfl.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("flower-bfl ")


def test_an_unknown_app_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", str(tmp_path / "nowhere")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Error: `app` must be the folder of a Flower app, got " in printed.err


@pytest.mark.parametrize(("error", "code"), [(ConfigError("x"), 2), (FlowerBFLError("x"), 1)])
def test_errors_of_the_run_become_exit_codes(
    app: Path, error: FlowerBFLError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_run(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(_flwr_run, "run_app", failing_run)
    assert call(monkeypatch, "run", str(app)) == code


def test_run_prints_the_run_folder_and_its_files(
    app: Path,
    calls: list[Call],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "run", str(app)) == 0
    ((_, settings, _),) = calls
    folder = Path(str(settings["run-folder"]))
    assert folder.parent == tmp_path / "runs"
    assert re.fullmatch(r"demo-\d{8}-\d{6}", folder.name)
    printed = capsys.readouterr().out
    assert str(folder) in printed
    assert "rounds.jsonl" in printed
    assert "2.0 kB" in printed


def test_a_failed_run_prints_its_folder_and_fails(
    app: Path, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--run-folder", str(tmp_path / "out"), "--run-config", "graph=broken")
    assert call(monkeypatch, "run", str(app), *arguments) == 1


def resumable(app: Path) -> None:
    (app / "pyproject.toml").write_text(
        '[tool.flwr.app.config]\ndevices = 6\nrate = 0.1\nrun-folder = ""\nresume = ""\n'
    )


def test_a_run_goes_on_with_the_settings_that_it_left(
    app: Path, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumable(app)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "settings.json").write_text('{"devices": 4, "rate": 0.5, "seed": 3}')
    words = ("run", str(app), "--run-config", f'resume="{folder}" rate=0.7')
    assert call(monkeypatch, *words) == 0
    where = {"resume": str(folder), "run-folder": str(folder)}
    assert calls.pop() == (app, {"devices": 4, "rate": 0.7, "seed": 3} | where, 4)
    (folder / "settings.json").unlink()
    assert call(monkeypatch, *words) == 0
    assert calls.pop() == (app, {"rate": 0.7} | where, 6)


@pytest.mark.parametrize(
    ("left", "words", "told"),
    [
        ("[", (), "must hold a run's settings"),
        ("[1]", (), "must hold a run's settings"),
        ('{"rate": [1]}', (), "must hold numbers, text and truth values, got 'rate' with another"),
        ("{}", ("--run-folder", "elsewhere"), "`run-folder` must be the folder of the run that goes on"),
        (None, (), "`resume` must be the folder of a run, got"),
    ],
)
def test_what_cannot_be_gone_on_with_is_one_line(
    app: Path,
    tmp_path: Path,
    left: str | None,
    words: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumable(app)
    folder = tmp_path / "run"
    if left is not None:
        folder.mkdir()
        (folder / "settings.json").write_text(left)
    assert call(monkeypatch, "run", str(app), *words, "--run-config", f'resume="{folder}"') in (1, 2)
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "settings", "nodes"),
    [
        ((), {}, 6),
        (("--nodes", "4"), {"devices": 4}, 4),
        (("--run-config", "devices=3"), {"devices": 3}, 3),
        (("--nodes", "4", "--run-config", "devices=3"), {"devices": 3}, 4),
        (("--run-config", "graph=star rate=1e-3"), {"graph": "star", "rate": 0.001}, 6),
        (
            ("--run-config", "graph='a b'", "--run-config", 'rate=2 graph="c d"'),
            {"rate": 2, "graph": "c d"},
            6,
        ),
    ],
)
def test_settings_reach_the_app(
    app: Path,
    calls: list[Call],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    settings: dict[str, object],
    nodes: int,
) -> None:
    folder = tmp_path / "out"
    assert call(monkeypatch, "run", str(app), "--run-folder", str(folder), *arguments) == 0
    assert calls == [(app, settings | {"run-folder": str(folder)}, nodes)]


def test_an_app_that_declares_no_run_folder_runs_too(
    app: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as a project that has never heard of one; to ask it for one is an error."""
    (app / "pyproject.toml").write_text("[tool.flwr.app.config]\nrate = 0.1\n")
    seen: list[dict[str, object]] = []

    def fake_run(app: Path, run_config: dict[str, object], *, nodes: int) -> int:
        seen.append(run_config)
        return 0

    monkeypatch.setattr(_flwr_run, "run_app", fake_run)
    assert call(monkeypatch, "run", str(app)) == 0
    assert seen == [{}]
    monkeypatch.undo()
    assert call(monkeypatch, "run", str(app), "--run-folder", "here") == 2
    assert "declares (rate), got run-folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["graph", "graph=", "=ring", "graph = ring", "rate=0.1 oops"])
def test_run_config_that_is_no_pairs(
    app: Path,
    calls: list[Call],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "run", str(app), "--run-config", text) == 2
    assert "`--run-config` must be name=value pairs, got" in capsys.readouterr().err
    assert calls == []
