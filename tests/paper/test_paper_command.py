"""The command `flower-bfl paper`: what it leaves, what it prints, how it fails."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import without_seconds

from flower_bfl import _paper_view
from flower_bfl.errors import ConfigError
from flower_bfl.paper import _training, app, experiment, runner
from flower_bfl.paper.experiment import names, read

HEAVY = ("torch", "flwr", "ray", "web3", "eth", "matplotlib", "sklearn")

TINY = """
title = "Tiny: who waits"
run = "latency"

[settings]
devices = 4
algorithm = "greedy"
states = 2
steps = 1

[quick]
seeds = 2
vary = { devices = [3] }

[full]
settings = { states = 3 }

[[grid]]
vary = { devices = [3, 5], algorithm = ["greedy", "all-local"] }

[[panel]]
title = "total"
x = "devices"
y = "total_s"
curves = "algorithm"

[[claim]]
text = "3 devices, latency over all-local"
column = "total_s"
of = { devices = 3, algorithm = "greedy" }
over = { devices = 3, algorithm = "all-local" }
expect = "below"
unit = "s"
"""

IMAGES = """
title = "Digits of houses"
run = "training"

[settings]
dataset = "svhn"
labels-per-device = 3
devices = 2
edge-servers = 2
rounds = 1
local-steps = 1

[[grid]]
vary = { scheme = ["consensus"] }

[[panel]]
title = "accuracy"
x = "round"
y = "accuracy"
curves = "scheme"

[[claim]]
text = "it learns"
column = "accuracy"
of = { scheme = "consensus" }
paper = 10.0
"""


@pytest.fixture(autouse=True)
def experiments(tmp_path_factory, monkeypatch):
    """Small ones in place of the paper's."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "fig1.toml").write_text(TINY)
    (folder / "fig2.toml").write_text(IMAGES)
    monkeypatch.setattr(experiment, "FOLDER", folder)
    read.cache_clear()
    yield
    read.cache_clear()


@pytest.fixture
def no_svhn(monkeypatch):
    """As where its files are missing and no network answers."""
    asked: list[Any] = []

    def load(*arguments: Any) -> None:
        asked.append(arguments)
        raise ConfigError("`folder` must hold SVHN's files [there are none]")

    monkeypatch.setattr(app, "load", load)
    app.loaded.cache_clear()
    return asked


def images(path: Path, shape=(3, 32, 32), seed=0) -> Path:
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 40), ("test", 20)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return path


def test_an_experiment_leaves_numbers_settings_picture_and_verdicts(command):
    status, out, err = command("paper", "fig1", "--seeds", 2, "--jobs", 2, "--folder", "there")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "fig1: Tiny: who waits"
    assert lines[1].startswith("3 devices, latency over all-local: paper below it, measured ")
    assert " s, 2 seeds: " in lines[1]
    assert lines[2].startswith("there/fig1.csv, there/fig1.png: 8 runs, ")
    assert len(lines) == 3
    assert sorted(path.name for path in Path("there").iterdir()) == ["fig1.csv", "fig1.json", "fig1.png"]
    assert json.loads(Path("there/fig1.json").read_text()) == {
        "devices": 4, "algorithm": "greedy", "states": 2, "steps": 1,
    }  # fmt: skip
    table = [line.split(",") for line in Path("there/fig1.csv").read_text().splitlines()]
    assert [row[:3] for row in table[:3]] == [
        ["devices", "algorithm", "seed"], ["3", "greedy", "0"], ["3", "all-local", "0"],
    ]  # fmt: skip
    assert len(table) == 9
    assert Path("there/fig1.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_call_makes_no_run_and_says_the_same(command, monkeypatch):
    status, out, _ = command("paper", "fig1", "--seeds", 2)
    before = Path("runs/paper/fig1.csv").read_bytes()
    monkeypatch.setattr(runner, "ProcessPoolExecutor", None)
    assert command("paper", "fig1", "--seeds", 2) == (status, out, "")
    assert Path("runs/paper/fig1.csv").read_bytes() == before


def test_more_seeds_go_on_from_fewer(command):
    assert command("paper", "fig1", "--seeds", 1)[0] == 0
    before = Path("runs/paper/fig1.csv").read_text()
    assert command("paper", "fig1", "--seeds", 2)[0] == 0
    assert Path("runs/paper/fig1.csv").read_text().startswith(before)


@pytest.mark.parametrize(
    ("options", "name", "runs"), [((), "fig1", 4 * 3), (("--quick",), "fig1-quick", 2 * 2)]
)
def test_seeds_are_those_of_the_version(options, name, runs, command):
    status, out, _ = command("paper", "fig1", *options)
    assert status == 0 and f": {runs} runs, " in out
    assert len(without_seconds(Path(f"runs/paper/{name}.csv"))) == 1 + runs


def test_the_full_version_has_ten_seeds(command, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(_paper_view, "run_experiment", lambda *arguments: not asked.append(arguments))
    assert command("paper", "fig1", "--full")[0] == 0
    ((full, seeds, *_),) = asked
    assert seeds == 10
    assert full.name == "fig1-full" and full.settings["states"] == 3


@pytest.mark.parametrize("names_", [["fig99"], ["fig1", "fig99"], ["all", "fig1"]])
def test_a_figure_that_there_is_not(names_, command):
    status, out, err = command("paper", *names_)
    assert (status, out) == (2, "")
    wrong = next(name for name in names_ if name not in names())
    assert err == f"Error: `figure` must be one of fig1, fig2 or all, got {wrong!r}\n"
    assert not Path("runs").exists()


def test_quick_and_full_are_not_both(command):
    status, out, err = command("paper", "fig1", "--quick", "--full")
    assert (status, out) == (2, "")
    assert err == "Error: `--quick` and `--full` must not both be given\n"
    assert not Path("runs").exists()


def test_without_its_data_set_an_experiment_is_not_run(command, no_svhn):
    status, out, err = command("paper", "fig2")
    assert (status, err) == (1, "")
    assert out == "fig2: Digits of houses\nnot run: `folder` must hold SVHN's files [there are none]\n"
    assert [path.name for path in Path("runs/paper").iterdir()] == ["fig2.json"]
    assert no_svhn == [("svhn", None)]


def test_of_all_what_can_be_run_is_run(command, no_svhn):
    status, out, _ = command("paper", "all", "--seeds", 1)
    assert status == 0
    assert "not run: " in out and ": 4 runs, " in out


def test_data_are_looked_for_where_one_says(command, no_svhn, tmp_path):
    assert command("paper", "fig2", "--data-folder", "data")[0] == 1
    assert no_svhn == [("svhn", tmp_path / "data")]


def test_images_of_ones_own_are_named_as_such_and_held_against_nothing(command, no_svhn, tmp_path):
    file = images(tmp_path / "mine[b].npz")
    status, out, err = command("paper", "fig2", "--images", file.name, "--seeds", 1)
    assert (status, err) == (0, "")
    name = f"fig2-mine[b]-{sha256(file.read_bytes()).hexdigest()[:8]}"
    first, last = out.splitlines()
    assert first == f"{name}: Digits of houses, but with the images of mine[b].npz"
    assert last.startswith(f"runs/paper/{name}.csv, runs/paper/{name}.png: 1 runs, ")
    assert no_svhn == []
    lines = Path(f"runs/paper/{name}.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["consensus", "0", "0"], ["consensus", "0", "1"]]


def test_other_images_of_the_same_name_are_another_experiment(tmp_path, experiments):
    one, other = images(tmp_path / "a" / "mine.npz"), images(tmp_path / "b" / "mine.npz", seed=1)
    names = {experiment.read("fig2").with_images(file).name for file in (one, other)}
    assert len(names) == 2 and all(name.startswith("fig2-mine-") for name in names)


def test_images_that_do_not_fit_are_told_before_a_run(command, no_svhn, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ProcessPoolExecutor", None)
    images(tmp_path / "gray.npz", shape=(1, 28, 28))
    status, out, err = command("paper", "fig2", "--images", "gray.npz")
    assert (status, err) == (1, "")
    assert out.splitlines()[1].startswith("not run: `") and "got (1, 28, 28)" in out


def test_images_that_are_not_there_are_told(command, no_svhn):
    status, _, err = command("paper", "fig2", "--images", "none.npz")
    assert status == 2 and "`images` must be a readable file" in err and "none.npz" in err


def test_a_folder_may_have_any_name(command):
    """Also one that the console would take for mark-up."""
    status, out, _ = command("paper", "fig1", "--seeds", 1, "--folder", "[/b] and [red]")
    assert status == 0
    assert "[/b] and [red]/fig1.csv, [/b] and [red]/fig1.png: 4 runs" in out


def test_other_settings_in_the_folder_are_told(command, experiments, tmp_path):
    assert command("paper", "fig1", "--seeds", 1)[0] == 0
    file = experiment.FOLDER / "fig1.toml"
    file.write_text(file.read_text().replace("states = 2", "states = 5"))
    read.cache_clear()
    status, out, err = command("paper", "fig1")
    assert (status, out) == (2, "")
    assert "`folder` must hold runs with states = 5 or none, got runs/paper/fig1.csv with 2" in err
    assert len(err.splitlines()) == 1


def test_who_stops_it_is_told_that_it_goes_on(command, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_paper_view, "run_missing", stop)
    status, _, err = command("paper", "fig1")
    assert status == 130
    assert "Stopped; the runs that had ended are kept" in err


def test_without_matplotlib_there_are_still_numbers(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, _ = command("paper", "fig1", "--seeds", 1)
    assert status == 0
    assert "No picture: this takes matplotlib" in out
    assert "runs/paper/fig1.csv: 4 runs" in out


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['flower-bfl', 'paper', '--help']\n"
        "from flower_bfl.cli import main\n"
        "try: main()\n"
        f"finally: print('imported:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "FIGURE" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize(
    ("here", "there", "status", "told"),
    [
        (["a", "b"], ["a", "b"], 0, "the same models, bit for bit"),
        (["a", "b"], ["a", "c"], 1, "OTHER MODELS"),
    ],
)
def test_a_first_run_is_compared_with_flowers(
    here, there, status, told, command, no_svhn, tmp_path, monkeypatch
):
    """The two ways stand in for themselves here; that they are the same is test_same_as_flower's."""

    def write(digests: list[str]):
        lines = [json.dumps({"model_digest": digest}) + "\n" for digest in digests]
        return lambda config: Path(config["run-folder"], "rounds.jsonl").write_text("".join(lines))

    monkeypatch.setattr(_training, "run_in_process", write(here))
    monkeypatch.setattr(_training, "run_under_flower", write(there))
    file = images(tmp_path / "mine.npz")
    ended, out, _ = command("paper", "fig2", "--images", file, "--seeds", 1, "--flower")
    assert (ended, out.splitlines()[-1].endswith(told)) == (status, True)


def test_what_trains_nothing_is_not_compared(command):
    status, out, _ = command("paper", "fig1", "--seeds", 1, "--flower")
    assert status == 0 and "trains no model" in out


def test_the_help_names_all_there_is(command, monkeypatch):
    monkeypatch.setattr(experiment, "FOLDER", Path(experiment.__file__).parent / "experiments")
    _, out, _ = command("paper", "--help")
    for name in names():
        assert name in out or name in [f"fig{number}" for number in range(4, 13)]
