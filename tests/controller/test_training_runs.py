"""A training run that stops, is killed or finds its disk full: what is kept, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flower_bfl.controller.checkpoint import load_checkpoint, save_checkpoint
from flower_bfl.controller.learned import A2CController
from flower_bfl.controller.learner import Learner, TrainingConfig
from flower_bfl.controller.training import exported, train
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import NetworkConfig, draw_states, violations

TINY = NetworkConfig(devices=3, edge_servers=2, sub_channels=1)
SETTINGS = TrainingConfig(steps=32 * 16, environments=8, rounds=2)  # 32 updates


def same(one, other):
    """Equal to the last bit, but for what is said of the number of steps wanted."""
    weights = [
        {**each.weights, **{f"learner {k}": v for k, v in each.learner.items()}} for each in (one, other)
    ]
    return (
        weights[0].keys() == weights[1].keys()
        and all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
        and one.curve == other.curve
        and one.steps == other.steps
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(TINY, SETTINGS, tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_policy_settings_curve_and_logs(tmp_path):
    seen = []
    made = train(TINY, replace(SETTINGS, steps=64), tmp_path, seen.append)
    kept = load_checkpoint(tmp_path)
    assert same(made, kept)
    assert kept.network == TINY and kept.steps == 64
    assert kept.training == {
        **json.loads(json.dumps(kept.training)),
        "environments": 8,
        "rounds": 2,
        "seed": 0,
    }
    assert [row["steps"] for row in kept.curve] == [16, 32, 48, 64] == [one.steps for one in seen]
    np.testing.assert_allclose(
        [row["utility"] for row in kept.curve], [one.utility for one in seen], rtol=1e-5
    )
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert len(list(tmp_path.glob("weights-*"))) == 1
    states = draw_states(TINY, 5, np.random.default_rng(0))
    assert violations(TINY, states, A2CController.load(tmp_path, TINY).decide(states)) == []


def test_tensorboard_reads_the_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = train(TINY, replace(SETTINGS, steps=64), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/utility")
    assert [one.step for one in events] == [16, 32, 48, 64]
    np.testing.assert_allclose(
        [one.value for one in events], [row["utility"] for row in made.curve], rtol=1e-5
    )


@pytest.mark.parametrize("stop_after", [1, 20, 29])
def test_an_interrupted_run_goes_on_to_the_same_policy(whole, tmp_path, stop_after):
    def stop(made):
        if made.steps == 16 * stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, SETTINGS, tmp_path, stop)
    assert load_checkpoint(tmp_path).steps == 16 * stop_after
    assert same(train(TINY, SETTINGS, tmp_path), whole)


@pytest.mark.parametrize("where", ["_play", "_judge", "_teach_critic", "_improve"])
def test_an_interrupt_in_the_middle_of_an_update_keeps_the_one_before(whole, tmp_path, monkeypatch, where):
    method = getattr(Learner, where)

    def interrupted(self, *arguments):
        result = method(self, *arguments)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return result

    seen = []
    monkeypatch.setattr(Learner, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, SETTINGS, tmp_path, seen.append)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).steps == 9 * 16
    assert same(train(TINY, SETTINGS, tmp_path), whole)


def test_a_run_can_be_made_longer(whole, tmp_path):
    train(TINY, replace(SETTINGS, steps=160), tmp_path)
    assert same(train(TINY, SETTINGS, tmp_path), whole)


def test_a_finished_run_stays_as_it_is(whole, tmp_path):
    train(TINY, SETTINGS, tmp_path)
    assert same(train(TINY, SETTINGS, tmp_path), whole)


@pytest.mark.parametrize("change", [{"update": "gradient"}, {"devices": (3, 4)}])
def test_other_kinds_of_learners_go_on_as_well(tmp_path, change):
    settings = replace(SETTINGS, steps=96, **change)
    train(TINY, replace(settings, steps=48), tmp_path / "parts")
    assert same(train(TINY, settings, tmp_path / "parts"), train(TINY, settings, tmp_path / "whole"))


def test_the_papers_networks_go_on_but_for_rounding(tmp_path):
    """On some processors the last bits of their products depend on where in memory the weights lie."""
    settings = replace(SETTINGS, steps=96, architecture="paper")
    train(TINY, replace(settings, steps=48), tmp_path / "parts")
    parts, whole = (train(TINY, settings, tmp_path / name) for name in ("parts", "whole"))
    assert parts.weights.keys() == whole.weights.keys()
    for name, values in whole.weights.items():
        np.testing.assert_allclose(parts.weights[name], values, rtol=0, atol=2e-3)


def run_in_a_process(folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """A training of the same run in a process of its own; `before` may do what it likes to it."""
    script = f"""
        import os, resource, signal
        from pathlib import Path
        from flower_bfl.controller.learner import Learner, TrainingConfig
        from flower_bfl.controller.training import train
        from flower_bfl.network import NetworkConfig
        def progress(made): pass
        {before}
        train(
            NetworkConfig(devices=3, edge_servers=2, sub_channels=1),
            TrainingConfig(steps=32 * 16, environments=8, rounds=2), Path({str(folder)!r}), progress,
        )
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200
    )


def test_a_killed_run_goes_on_to_the_same_policy(whole, tmp_path):
    done = run_in_a_process(
        tmp_path,
        "progress = lambda made: os.kill(os.getpid(), signal.SIGKILL) if made.steps == 25 * 16 else None",
    )
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path).steps == 20 * 16
    assert same(train(TINY, SETTINGS, tmp_path), whole)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_intact(whole, tmp_path):
    train(TINY, replace(SETTINGS, steps=160), tmp_path)
    before = load_checkpoint(tmp_path)
    # No file may grow beyond 10 KB: what a full disk looks like to a process.
    limit = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    )
    done = run_in_a_process(tmp_path, limit)
    assert done.returncode == 1
    assert "TrainingError: the policy of step 320 cannot be written to" in done.stderr
    assert "what was there before is as it was" in done.stderr
    assert same(load_checkpoint(tmp_path), before)
    assert not list(tmp_path.glob("*.part"))
    assert same(train(TINY, SETTINGS, tmp_path), whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(TrainingError, match="cannot be written"):
        train(TINY, SETTINGS, tmp_path / "run")


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written to .*run"):
        train(TINY, SETTINGS, tmp_path / "run")


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (TINY, replace(SETTINGS, seed=1), "`seed` must be 0 as in the run that the folder holds, got 1"),
        (TINY, replace(SETTINGS, trace=0.5), "`trace` must be 0.95"),
        (replace(TINY, devices=4), SETTINGS, "`network` must be that of the run in the folder"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, network, settings, message):
    train(TINY, replace(SETTINGS, steps=16), tmp_path)
    with pytest.raises(ConfigError, match=message):
        train(network, settings, tmp_path)


def test_a_policy_alone_decides_but_cannot_go_on(tmp_path):
    made = train(TINY, replace(SETTINGS, steps=16), tmp_path / "run")
    save_checkpoint(tmp_path / "policy", exported(made))
    states = draw_states(TINY, 5, np.random.default_rng(0))
    decisions = [A2CController.load(tmp_path / name, TINY).decide(states) for name in ("run", "policy")]
    np.testing.assert_array_equal(decisions[0].slot, decisions[1].slot)
    with pytest.raises(TrainingError, match="without what its learner needs"):
        train(TINY, SETTINGS, tmp_path / "policy")
