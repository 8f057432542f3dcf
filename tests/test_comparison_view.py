"""The command `flower-bfl controller compare`: its table, its JSON, and how it fails."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
import pytest
from matplotlib.image import imread

from flower_bfl import _comparison_view
from flower_bfl._comparison_view import Trial, parse_names, print_trial, run_trial
from flower_bfl.controller import (
    A2CController,
    AssignmentController,
    GreedyController,
    NearOptimalController,
)
from flower_bfl.controller.baselines import BASELINES, train_baseline
from flower_bfl.controller.comparison import Comparison, Outcome, misestimated, stale_states
from flower_bfl.controller.learner import TrainingConfig
from flower_bfl.controller.training import train
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig, draw_states, price, project

CONTROLLERS = ["all-local", "random", "greedy", "assignment", "a2c-sorted", "a2c", "near-optimal"]
SMALL = ("--devices", 4, "--servers", 2, "--states", 3)


@pytest.fixture(autouse=True)
def quick_mark(monkeypatch):
    """A near-optimal that does not search for long."""
    made = dict(_comparison_view.CONTROLLERS)
    made["near-optimal"] = lambda network, rng: NearOptimalController(network, kicks=0)
    monkeypatch.setattr(_comparison_view, "CONTROLLERS", made)


@pytest.fixture
def call(command):
    """Status, output and errors of `flower-bfl controller compare` with arguments, in an empty folder."""
    return partial(command, "controller", "compare")


def no_constant(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


def read(call, *arguments: object) -> dict:
    status, output, errors = call(*SMALL, *arguments, "--no-picture", "--json")
    assert (status, errors) == (0, "")
    return json.loads(output, parse_constant=no_constant)


def rows_of(output: str) -> dict[str, list[str]]:
    """The words of each row after its name."""
    lines = output.split("\n\n")[1].splitlines()[2:]
    parts = (re.fullmatch(r"(.+?) +([-–]?\d.*)", line) for line in lines)
    return {part[1]: part[2].split() for part in parts}


# --- the table ----------------------------------------------------------------------------------------------


def made_trial(**outcomes: tuple[float, float]) -> Trial:
    """Each controller's mean learning and its spread, over 16 states with 1000 s of mining."""
    drawn = np.random.default_rng(0).standard_normal((len(outcomes), 16))
    rows = {}
    for (name, (mean_s, spread_s)), each in zip(outcomes.items(), drawn, strict=True):
        learning_s = mean_s + spread_s * each
        rows[name.replace("__", " *").replace("_", "-")] = Outcome(learning_s + 1e3, learning_s, 2e-4, 0.3456)
    return Trial(Comparison(NetworkConfig(devices=100), rows), 7, 2, 3.0)


WIDE = {
    "all_local": (128.0, 3.0),
    "random": (5564.0, 812.0),
    "a2c_approximated": (91.0, 2.0),
    "near_optimal": (86.0, 1.0),
    "a2c_approximated__": (190.0, 20.0),
}


def test_the_table_says_what_was_compared_and_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    trial = made_trial(**WIDE)
    print_trial(trial, as_json=False)
    output = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in output.splitlines())
    assert output.splitlines()[0] == "100 devices, 5 edge servers of 5 sub-channels, 16 states, seed 7"
    assert "decides on gains that are 2 rounds old, off by 3 dB" in output
    rows = rows_of(output)
    assert list(rows) == list(trial.comparison.outcomes)
    for name, words in rows.items():
        made = trial.comparison
        expected = [
            made.total_s(name),
            made.learning_s(name),
            replace(
                made.excess(name), value=100 * made.excess(name).value, half=100 * made.excess(name).half
            ),
            made.gap_closed(name),
        ]
        expected[3] = replace(expected[3], value=100 * expected[3].value, half=100 * expected[3].half)
        for one in expected:
            assert float(words.pop(0)) == pytest.approx(one.value, abs=max(5.1e-3, 6e-4 * abs(one.value)))
            if one.half:
                half = words.pop(0)
                assert float(half.removeprefix("±")) == pytest.approx(one.half, rel=1e-3, abs=0.51)
        assert words == ["0.20", "346"]


def test_what_cannot_be_told_is_a_dash(capsys):
    outcome = Outcome(np.array([2.0, 3.0]), np.array([1.0, 2.0]), 1e-3, 1e-3)
    print_trial(
        Trial(Comparison(NetworkConfig(), {"all-local": outcome, "near-optimal": outcome}), 0), as_json=False
    )
    output = capsys.readouterr().out
    assert "nan" not in output
    assert rows_of(output)["all-local"][5] == "–"
    assert "*" not in output


def test_the_table_has_all_controllers_on_the_drawn_states(call):
    status, output, errors = call(*SMALL, "--no-picture")
    assert (status, errors) == (0, "")
    assert output.startswith("4 devices, 2 edge servers of 5 sub-channels, 3 states, seed 2026\n")
    rows = rows_of(output)
    assert list(rows) == CONTROLLERS
    network = NetworkConfig(devices=4, edge_servers=2)
    states = draw_states(network, 3, np.random.default_rng(2026))
    for name, kind in (("greedy", GreedyController), ("assignment", AssignmentController)):
        cost = price(network, states, kind(network).decide(states))
        assert float(rows[name][0]) == pytest.approx(cost.total_s.mean(), abs=5.1e-3)
        assert float(rows[name][2]) == pytest.approx(cost.learning_s.mean(), abs=5.1e-3)


def test_a_file_is_the_network(call, tmp_path):
    (tmp_path / "network.toml").write_text("devices = 3\nsub_channels = 1\nedge_servers = 2\n")
    status, output, _ = call("network.toml", "--states", 2, "--only", "greedy", "--no-picture")
    assert status == 0
    assert output.startswith("3 devices, 2 edge servers of 1 sub-channel, 2 states")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("greedy", ["all-local", "greedy", "near-optimal"]),
        (" near-optimal , random", ["all-local", "random", "near-optimal"]),
        ("all-local", ["all-local", "near-optimal"]),
    ],
)
def test_only_some_are_compared_and_the_marks(call, monkeypatch, only, expected):
    told = read(call, "--only", only, "--states", 2)
    assert [row["controller"] for row in told["controllers"]] == expected


# --- beliefs ------------------------------------------------------------------------------------------------


def test_with_age_and_error_each_decides_once_more(call):
    told = read(call, "--age", 2, "--error-db", 3, "--seed", 5)
    rows = told["controllers"]
    believers = ["greedy", "assignment", "a2c-sorted", "a2c", "near-optimal"]
    assert [row["controller"] for row in rows] == CONTROLLERS + believers
    assert [(row["gain_age"], row["gain_error_db"]) for row in rows] == [(0, 0.0)] * 7 + [(2, 3.0)] * 5
    network = NetworkConfig(devices=4, edge_servers=2)
    rng = np.random.default_rng(5)
    _, errors = rng.spawn(2)
    by_age = stale_states(network, 3, (2,), rng)
    decision = GreedyController(network).decide(misestimated(by_age[2], 3.0, errors))
    cost = price(network, by_age[0], project(network, by_age[0], decision))
    assert rows[7]["by_state"]["total_s"] == pytest.approx(cost.total_s.tolist())
    exact = price(network, by_age[0], GreedyController(network).decide(by_age[0]))
    assert rows[2]["by_state"]["total_s"] == pytest.approx(exact.total_s.tolist())


@pytest.mark.parametrize(
    ("age", "error_db", "said"),
    [(1, 0.0, "1 round old"), (3, 0.0, "3 rounds old"), (0, 1.5, "off by 1.5 dB")],
)
def test_the_table_says_what_is_believed(call, age, error_db, said):
    arguments = ("--only", "greedy", "--age", age, "--error-db", error_db, "--no-picture")
    _, output, _ = call(*SMALL, *arguments)
    assert list(rows_of(output)) == ["all-local", "greedy", "near-optimal", "greedy *"]
    assert f"decides on gains that are {said}" in output


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_has_what_was_compared(call):
    told = read(call)
    assert (told["states"], told["seed"]) == (3, 2026)
    assert NetworkConfig.from_dict(told["settings"]) == NetworkConfig(devices=4, edge_servers=2)
    rows = {row["controller"]: row for row in told["controllers"]}
    best, local_s = rows["near-optimal"]["by_state"], np.mean(rows["all-local"]["by_state"]["total_s"])
    for row in rows.values():
        total_s, learning_s = (np.mean(row["by_state"][name]) for name in ("total_s", "learning_s"))
        assert row["total_s"]["mean"] == pytest.approx(total_s)
        assert row["learning_s"]["mean"] == pytest.approx(learning_s)
        assert row["excess"]["mean"] == pytest.approx(learning_s / np.mean(best["learning_s"]) - 1)
        if row["gap_closed"]["mean"] is not None:
            gained_s = local_s - np.mean(best["total_s"])
            assert row["gap_closed"]["mean"] == pytest.approx((local_s - total_s) / gained_s)
        for what in ("total_s", "learning_s", "excess"):
            assert row[what]["low"] <= row[what]["mean"] <= row[what]["high"]
        assert row["batch_s"] > 0 and row["single_s"] > 0


def test_json_has_null_for_what_is_no_number(capsys):
    outcome = Outcome(np.array([2.0, 3.0]), np.array([1.0, 2.0]), 1e-3, 1e-3)
    trial = Trial(Comparison(NetworkConfig(), {"all-local": outcome, "near-optimal": outcome}), 0)
    print_trial(trial, as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert told["controllers"][0]["gap_closed"] == {"mean": None, "low": None, "high": None}


def test_the_same_seed_is_the_same_comparison(call):
    def by_state(*arguments):
        rows = read(call, "--only", "random,greedy", "--error-db", 3, *arguments)["controllers"]
        return [row["by_state"] for row in rows]

    assert by_state() == by_state("--seed", 2026)
    assert by_state() != by_state("--seed", 0)


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--only", "best"), 2, "`--only` must be names of all-local, random, greedy, assignment, a2c-"),
        (("--only", "greedy,"), 2, "got ''"),
        (("--error-db", -1), 2, "`error_db` must be from 0 to 100 dB, got -1.0"),
        (("--error-db", "nan"), 2, "`error_db` must be from 0 to 100 dB, got nan"),
        (("--devices", 0), 2, "`devices` must be"),
        (("--devices", 201), 1, "(28g): 201 devices take at least"),
        (("nowhere.toml",), 2, "`path` must be a readable TOML file, got nowhere.toml"),
    ],
)
def test_what_is_wrong_is_one_line(call, tmp_path, arguments, status, said):
    found, output, errors = call(*arguments)
    assert (found, output) == (status, "")
    assert errors.startswith("Error: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--states", 1), ("--seed", -1), ("--age", -1), ("--age", 0.5)])
def test_a_number_that_none_can_be_is_refused(call, arguments):
    status, output, errors = call(*arguments)
    assert (status, output) == (2, "")
    assert arguments[0] in errors


def test_the_help_names_every_controller(call):
    _, output, _ = call("--help")
    assert all(name in output for name in CONTROLLERS)
    assert parse_names(None, NetworkConfig()) == CONTROLLERS
    with pytest.raises(ConfigError, match=f"must be names of {', '.join(CONTROLLERS)}, got 'x'"):
        parse_names("greedy,x", NetworkConfig())


def test_a_network_that_the_policy_does_not_know_is_compared_without_it(capsys):
    slowest = NetworkConfig(objective="makespan")
    assert parse_names(None, slowest) == [name for name in CONTROLLERS if not name.startswith("a2c")]
    assert "Without a2c-sorted, a2c: `network` must be what" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="where objective is 'sum', got 'makespan'"):
        run_trial(slowest, ["a2c"], 2, 0)


def test_the_papers_baselines_are_trained_and_compared(call):
    rows = read(call, "--only", "greedy", "--baselines", 64)["controllers"]
    shown = [row["controller"] for row in rows]
    assert shown == ["all-local", "greedy", *(f"{name} (baseline)" for name in BASELINES), "near-optimal"]
    states = draw_states(NetworkConfig(devices=4, edge_servers=2), 3, np.random.default_rng(2026))
    network = NetworkConfig(devices=4, edge_servers=2)
    trained = train_baseline("dqn", network, 64, 0).controller
    expected = price(network, states, trained.decide(states)).total_s.mean()
    assert rows[shown.index("dqn (baseline)")]["total_s"]["mean"] == pytest.approx(expected)


def test_trained_policies_are_compared_by_their_folders(call, tmp_path):
    network = NetworkConfig(devices=4, edge_servers=2)
    made = train(network, TrainingConfig(steps=16, environments=8, rounds=2), tmp_path / "run" / "seed-0")
    arguments = ("--only", "greedy", "--policy", tmp_path / "run" / "seed-0", "--error-db", 3)
    rows = {(row["controller"], row["gain_error_db"]): row for row in read(call, *arguments)["controllers"]}
    for name, decoding in (("run/seed-0, sorted", "sorted"), ("run/seed-0", "assignment")):
        states = draw_states(network, 3, np.random.default_rng(2026))
        decision = A2CController(network, made.policy, decoding).decide(states)
        expected = price(network, states, decision).total_s.mean()
        assert rows[name, 0.0]["total_s"]["mean"] == pytest.approx(expected)
        assert (name, 3.0) in rows
    status, _, errors = call("--policy", tmp_path / "nothing")
    assert status == 1
    assert "there is no policy to be read in" in errors


# --- progress and picture -----------------------------------------------------------------------------------


def test_progress_is_told_on_a_terminal_and_not_in_the_output(call, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    status, output, errors = call(*SMALL, "--only", "greedy", "--no-picture", "--json")
    assert status == 0
    assert "greedy" in errors and "3/3" in errors
    assert "3/3" not in output


def test_progress_counts_the_states_of_each_controller():
    heard = {}
    network = NetworkConfig(devices=2, edge_servers=1)
    run_trial(
        network, ["greedy"], 3, 0, age=1, progress=lambda name, done, all_of: heard.update({name: done})
    )
    assert heard == {"all-local": 3, "greedy": 3, "greedy *": 3, "near-optimal": 3}


def test_the_picture_is_written_and_opens(call, tmp_path):
    status, output, errors = call(*SMALL)
    assert (status, errors) == (0, "")
    assert output.endswith("\nPicture: controllers.png\n")
    pixels = imread(tmp_path / "controllers.png")
    assert pixels.shape[0] >= 400 and pixels.shape[1] >= 1200
    assert pixels[..., :3].std() > 0.05  # not a blank page
    assert [path.name for path in tmp_path.iterdir()] == ["controllers.png"]


def test_with_json_the_picture_is_told_beside_it(call, tmp_path):
    status, output, errors = call(*SMALL, "--only", "greedy", "--json", "--picture", "here")
    assert (status, errors) == (0, "Picture: here\n")
    assert json.loads(output)["states"] == 3
    assert (tmp_path / "here").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_one_line_after_the_table(call):
    status, output, errors = call(*SMALL, "--only", "greedy", "--picture", "nowhere/a.png")
    assert status == 2
    assert "gap closed" in output
    assert errors.startswith("Error: `--picture` must be a path where a picture can be written, got nowhere")
    assert errors.count("\n") == 1


def test_without_matplotlib_there_is_a_table_and_a_hint(call, monkeypatch, tmp_path):
    for name in ("flower_bfl._comparison_picture", "flower_bfl._network_picture"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    status, output, errors = call(*SMALL, "--only", "greedy")
    assert status == 0
    assert "gap closed" in output
    assert errors == "No picture: this takes matplotlib, pip install 'flower-bfl[plots]'\n"
    assert list(tmp_path.iterdir()) == []
