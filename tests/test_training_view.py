"""`flower-bfl controller train`: what it prints, draws and leaves, and how it stops and goes on."""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from flower_bfl import _training_picture
from flower_bfl._training_picture import draw_curves
from flower_bfl._training_view import parse_settings
from flower_bfl.controller.checkpoint import load_checkpoint
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import NetworkConfig

SMALL = ("--devices", "3", "--servers", "1", "--steps", "2048")


@pytest.fixture
def call(command):
    """Status, output and errors of `flower-bfl controller train` with arguments, in an empty folder."""
    return partial(command, "controller", "train")


def test_every_seed_leaves_a_policy_and_a_row(call, tmp_path):
    status, output, errors = call(*SMALL, "--seeds", 2, "--seed", 7, "--folder", "run")
    assert status == 0
    assert all(len(line) <= 80 for line in output.splitlines())
    rows = [line.split() for line in output.splitlines() if line.lstrip().startswith(("7 ", "8 "))]
    for seed, row in zip((7, 8), rows, strict=True):
        kept = load_checkpoint(tmp_path / "run" / f"seed-{seed}")
        assert kept.training["seed"] == seed and kept.steps == 2048
        assert row[:2] == [str(seed), "2,048"] and row[-1] == f"run/seed-{seed}"
        mean = np.mean([each["utility"] for each in kept.curve])
        assert float(row[2]) == pytest.approx(mean, abs=1e-3)
    assert "seed 7" in errors and "2048/2048" in errors
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_without_a_folder_it_goes_to_runs(call, tmp_path):
    assert call(*SMALL)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("controller-")
    assert load_checkpoint(folder / "seed-0").steps == 2048


def test_the_same_folder_goes_on(call, tmp_path):
    call(*SMALL, "--folder", "parts")
    call(*SMALL[:-1], "4096", "--folder", "parts")
    call(*SMALL[:-1], "4096", "--folder", "whole")
    parts, whole = (load_checkpoint(tmp_path / name / "seed-0") for name in ("parts", "whole"))
    assert parts.curve == whole.curve and len(whole.curve) == 4
    assert all(np.array_equal(parts.weights[name], whole.weights[name]) for name in whole.weights)


def test_an_interrupt_says_how_to_go_on(tmp_path, request):
    command = [
        sys.executable,
        "-m",
        "flower_bfl.cli",
        "controller",
        "train",
        "--devices",
        "3",
        "--servers",
        "1",
        "--steps",
        "10000000",
    ]
    process = subprocess.Popen(
        [*command, "--folder", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A job in a shell's background ignores interrupts, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    request.addfinalizer(process.kill)
    events = tmp_path / "run" / "seed-0" / "tensorboard"
    deadline = time.monotonic() + 100
    while not events.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped; what was learnt is kept. To go on, add: --folder run" in errors
    assert load_checkpoint(tmp_path / "run" / "seed-0").steps > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--devices", "three"), "`--devices` must be whole numbers with commas between, got 'three'"),
        (("--devices", "0"), "`devices` must be"),
        (("--seeds", "0"), "`--seeds` must be at least 1, got 0"),
        (("--steps", "0"), "`steps` must be"),
        (("--architecture", "deep"), "`architecture` must be one of ('shared', 'paper'), got 'deep'"),
        (("--divergence", "js"), "`divergence` must be one of ('exact', 'paper'), got 'js'"),
        (("nowhere.toml",), "`path` must be a readable TOML file"),
    ],
)
def test_what_is_wrong_is_one_line(call, tmp_path, arguments, said):
    status, output, errors = call(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("Error: ") and said in errors
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_line(call, tmp_path):
    (tmp_path / "run").write_text("")
    status, _, errors = call(*SMALL, "--folder", "run")
    assert status == 1
    assert "cannot be written to run" in errors.replace("\n", " ")


@pytest.mark.parametrize("missing", ["torch", "gymnasium"])
def test_what_training_takes_and_is_not_there_is_one_line(missing):
    script = f"import sys; sys.modules[{missing!r}] = None; from flower_bfl.cli import main; main()"
    command = [sys.executable, "-c", script, "controller", "train", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == f"Error: this takes the package {missing}: pip install 'flower-bfl[train]'\n"


def test_several_numbers_of_devices_take_turns():
    network, settings = parse_settings(NetworkConfig(), "20,30", 100, 3, "shared", "paper")
    assert (network.devices, settings.devices) == (20, (20, 30))
    assert (settings.steps, settings.seed, settings.divergence) == (100, 3, "paper")
    assert parse_settings(NetworkConfig(), "20", 100, 3, "shared", "exact")[1].devices == ()
    with pytest.raises(ConfigError):
        parse_settings(NetworkConfig(), "20,,30", 100, 3, "shared", "exact")


# --- the picture --------------------------------------------------------------------------------------------


def curve(seed, updates=30):
    rng = np.random.default_rng(seed)
    return [
        {"steps": 10.0 * (i + 1), "utility": i / 100 + 0.1 * rng.normal(), "learning_s": 40.0 - i}
        for i in range(updates)
    ]


@pytest.fixture
def drawn(monkeypatch):
    figures = []

    class Kept(Figure):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            figures.append(self)

    monkeypatch.setattr(_training_picture, "Figure", Kept)
    return figures


def test_lines_are_means_of_the_last_ten_updates_and_their_mean(drawn, tmp_path):
    curves = {seed: curve(seed, 30 - seed) for seed in range(3)}
    draw_curves(curves, tmp_path)
    utility, learning = drawn[0].axes
    assert [len(line.get_xdata()) for line in utility.lines] == [30, 29, 28, 28]
    for seed, line in enumerate(utility.lines[:3]):
        values = [row["utility"] for row in curves[seed]]
        assert line.get_ydata()[20] == pytest.approx(np.mean(values[11:21]))
        assert line.get_ydata()[0] == values[0]
    mean = np.mean([line.get_ydata()[:28] for line in utility.lines[:3]], axis=0)
    np.testing.assert_allclose(utility.lines[3].get_ydata(), mean)
    assert learning.lines[0].get_ydata()[-1] == pytest.approx(np.mean(range(11, 21)))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_updates_without_a_reward_and_seeds_without_updates_are_left_out(drawn, tmp_path):
    rows = curve(0)
    rows[3] = {"steps": 40.0}
    draw_curves({0: rows, 1: []}, tmp_path)
    assert [len(line.get_xdata()) for line in drawn[0].axes[0].lines] == [29]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="the curves cannot be drawn in"):
        draw_curves({0: curve(0)}, tmp_path / "file")


def test_the_curve_is_plain_json(call, tmp_path):
    call(*SMALL, "--folder", "run")
    about = json.loads((tmp_path / "run" / "seed-0" / "policy.json").read_text())
    assert [row["steps"] for row in about["curve"]] == [1024, 2048]
