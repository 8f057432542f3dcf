"""The report: tolerant of a cut-off line and of missing figures, and a picture that is one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flower_bfl.errors import RunFolderError
from flower_bfl.report import draw_curves, read_rounds, summary


def a_round(number: int) -> dict[str, Any]:
    return {
        "round": number,
        "evaluate": {"accuracy": 0.5 + number / 100, "loss": 2.0 / number},
        "train": {"train-loss": 1.8 / number},
        "consensus_error": 0.01 / number,
        "consensus_bound": 0.02 / number,
        "transactions": 30,
        "gas": 1_000_000,
        "chain_seconds": 0.25,
        "train_seconds": 0.5,
        "leader": number % 2,
        "left_out": [{"who": "device 3", "reason": "the client failed"}] if number == 2 else [],
    }


def write(folder: Path, *rounds: dict[str, Any], rest: str = "") -> Path:
    lines = "".join(json.dumps(one) + "\n" for one in rounds)
    (folder / "rounds.jsonl").write_text(lines + rest, encoding="utf-8")
    return folder


def assert_is_picture(path: Path, folder: Path) -> None:
    from matplotlib.image import imread

    assert path == folder / "curves.png"
    pixels = imread(path)
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05  # not a blank page


def test_reads_what_was_written(tmp_path: Path) -> None:
    rounds = [a_round(1), a_round(2)]
    assert read_rounds(write(tmp_path, *rounds)) == rounds


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, a_round(1), a_round(2), rest=json.dumps(a_round(3))[:40])
    assert [one["round"] for one in read_rounds(tmp_path)] == [1, 2]


def test_any_other_bad_line_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, a_round(1), rest='{"round": 2,\n' + json.dumps(a_round(3)) + "\n")
    with pytest.raises(RunFolderError, match=r"line 2 of .*rounds\.jsonl is not JSON"):
        read_rounds(tmp_path)


def test_a_line_that_is_no_object_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"line 1 .* must be a JSON object, got list"):
        read_rounds(write(tmp_path, rest="[1]\n"))


@pytest.mark.parametrize("read", [read_rounds, summary, draw_curves])
def test_a_missing_folder(read: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"`folder` must hold a readable rounds\.jsonl, got .*nowhere"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("read", [summary, draw_curves])
def test_no_round_yet(read: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no finished round"):
        read(write(tmp_path))


def test_summary_of_three_rounds(tmp_path: Path) -> None:
    write(tmp_path, *map(a_round, (1, 2, 3)))
    rows = dict(line.split("  ", maxsplit=1) for line in summary(tmp_path).splitlines())
    assert {name: value.strip() for name, value in rows.items()} == {
        "rounds": "3",
        "accuracy": "53.00% (best 53.00%, round 3)",
        "loss": "0.6667 (best 0.6667, round 3)",
        "consensus error": "0.00333, bound 0.00667 (worst 0.01)",
        "transactions": "90 (30 a round)",
        "gas": "3,000,000 (1,000,000 a round)",
        "training time": "1.50 s (median 0.500 s a round)",
        "chain time": "0.75 s (median 0.250 s a round)",
        "leaders": "0: 1, 1: 2",
        "left out": "1, in 1 of 3 rounds",
    }


def test_the_opening_counts_in_sums_but_not_as_a_round(tmp_path: Path) -> None:
    opening = {"round": 0, "transactions": 10, "gas": 500, "train_seconds": 0.0, "chain_seconds": 0.5}
    text = summary(write(tmp_path, opening, a_round(1), a_round(2)))
    assert "70 (35 a round)" in text
    assert "1.00 s (median 0.500 s a round)" in text
    assert "1.00 s (median 0.250 s a round)" in text


def test_a_bound_of_exact_consensus_is_not_drawn_to_scale(tmp_path: Path) -> None:
    write(tmp_path, a_round(1) | {"consensus_error": 3e-9, "consensus_bound": 7e-83})
    assert "3e-09, bound below rounding" in summary(tmp_path)
    assert_is_picture(draw_curves(tmp_path), tmp_path)


@pytest.mark.parametrize("last", [1, 3, 60])
def test_draws_a_picture(last: int, tmp_path: Path) -> None:
    write(tmp_path, *map(a_round, range(1, last + 1)))
    assert_is_picture(draw_curves(tmp_path), tmp_path)


@pytest.mark.parametrize("kept", [{"evaluate"}, {"train"}, {"consensus_error"}, {"gas", "chain_seconds"}])
def test_draws_what_there_is(kept: set[str], tmp_path: Path) -> None:
    rounds = [{key: value for key, value in a_round(k).items() if key in kept | {"round"}} for k in (1, 2, 3)]
    write(tmp_path, *rounds)
    assert_is_picture(draw_curves(tmp_path), tmp_path)
    assert summary(tmp_path).startswith("rounds")


def test_a_run_without_a_ledger_says_nothing_of_one(tmp_path: Path) -> None:
    none = {"transactions": 0, "gas": 0, "chain_seconds": 0.0}
    text = summary(write(tmp_path, *(a_round(k) | none for k in (1, 2))))
    assert not any(word in text for word in ("transactions", "gas", "chain"))
    assert_is_picture(draw_curves(tmp_path), tmp_path)


def test_figures_that_cannot_be_drawn_are_skipped(tmp_path: Path) -> None:
    odd = a_round(2) | {
        "consensus_error": 0.0,
        "consensus_bound": None,
        "gas": float("nan"),
        "evaluate": None,
    }
    write(tmp_path, a_round(1), odd)
    assert_is_picture(draw_curves(tmp_path), tmp_path)
    assert "1,000,000" in summary(tmp_path)


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no round in .* has a number to draw"):
        draw_curves(write(tmp_path, {"round": 1, "leader": 0}))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, a_round(1))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError):
        draw_curves(tmp_path)


def controlled(number: int) -> dict[str, Any]:
    """A round with a controller."""
    phases = {"offload": 1.0, "edge": 2.0, "local": 3.0, "upload": 0.0, "consensus": 0.1, "mining": 4.0}
    return a_round(number) | {
        "devices": 4,
        "server_data": [[0, 2], [1]],
        "latency_s": phases | {"total": 10.1},
        "simulated_seconds": 10.1 * number,
        "kept_local": [{"who": "device 1", "reason": "NaN"}] if number == 2 else [],
        "fallback": "the controller failed" if number == 3 else "",
    }


def test_a_run_with_a_controller_is_summed_up(tmp_path: Path) -> None:
    lines = dict(
        line.split("  ", 1)
        for line in summary(write(tmp_path, *(controlled(k) for k in (1, 2, 3)))).splitlines()
    )
    told = {name: lines[name].strip() for name in ("simulated time", "offloaded", "kept local", "fallback")}
    assert told == {
        "simulated time": "30.3 s (10.10 s a round)",
        "offloaded": "9 of 12 data sets",
        "kept local": "1 that were to be offloaded, in 1 rounds",
        "fallback": "in 1 rounds, for want of a feasible decision of the controller",
    }
    assert "simulated time" not in summary(write(tmp_path, a_round(1)))


def test_accuracy_is_drawn_against_simulated_time_and_latency_by_phase(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from flower_bfl import report

    rounds = [a_round(1) | {"round": 0}, *(controlled(k) for k in (1, 2, 3))]
    figure = Figure()
    drawn = {}
    for draw in report._panels(rounds):
        axes = figure.add_subplot()
        draw(axes)
        drawn[axes.get_title()] = axes
    clock = drawn["Accuracy against simulated time"].lines[0].get_xdata()
    assert clock.tolist() == pytest.approx([0.0, 10.1, 20.2, 30.3])
    bars = drawn["Decided latency a round, seconds"].patches
    assert max(bar.get_y() + bar.get_height() for bar in bars) == pytest.approx(10.1)
    assert len(bars) == 3 * 5  # upload takes no time, and has no colour in the legend


def test_the_summary_says_who_was_voted_out_and_suspected(tmp_path: Path) -> None:
    out = {"server": 1, "offence": "state", "step": 3, "votes": 2, "voted_out": True}
    told = [
        {"accused": [out], "true_positives": 1, "false_positives": 0, "missed": 0},
        {"accused": [out | {"server": 2, "voted_out": False}], "true_positives": 0, "missed": 1},
        {"accused": [out], "suspected": [{"who": "device 3", "reason": "far off"}], "true_positives": 1},
    ]
    blank = {"false_positives": 0, "missed": 0}
    write(tmp_path, *(a_round(k) | blank | one for k, one in enumerate(told, start=1)))
    rows = dict(line.split("  ", maxsplit=1) for line in summary(tmp_path).splitlines())
    assert rows["voted out"].strip() == "edge server 1 in round 1, 3"
    assert rows["suspected"].strip() == "device 3: 1"
    assert rows["detection"].strip() == "2 found, 1 missed, 0 falsely accused"
    assert draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_run_in_which_nobody_acts_says_nothing_of_detection(tmp_path: Path) -> None:
    nothing = {"accused": [], "suspected": [], "true_positives": 0, "false_positives": 0, "missed": 0}
    write(tmp_path, *(a_round(k) | nothing for k in (1, 2)))
    assert not {"voted out", "suspected", "detection"} & {
        line.split("  ")[0] for line in summary(tmp_path).splitlines()
    }
