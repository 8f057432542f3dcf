"""Runs of federated learning: each scheme, the attack where the paper puts it, and rows by the report's."""

import numpy as np
import pytest
from safetensors.numpy import load_file as read_model

from flower_bfl.errors import ConfigError
from flower_bfl.paper import app
from flower_bfl.paper._training import COLUMNS, check, run, run_in_process, whole
from flower_bfl.paper.app import SCHEMES
from flower_bfl.paper.runs import NotAvailableError

TINY = {
    "dataset": "digits", "devices": 3, "edge-servers": 3, "rounds": 2, "local-steps": 1, "batch-size": 5,
    "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_gives_a_row_a_round(scheme):
    rows = run({**TINY, "scheme": scheme, "attack-rounds": "2"})
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all(0 <= row["accuracy"] <= 100 and row["loss"] > 0 for row in rows)
    assert {row["transactions"] > 0 for row in rows[1:]} == {scheme == "ours"}


@pytest.mark.parametrize(
    ("rounds", "every", "tested"), [(5, 2, [0, 2, 4, 5]), (4, 2, [0, 2, 4]), (3, 9, [0, 3])]
)
def test_the_model_is_tested_now_and_then_and_at_the_end(rounds, every, tested):
    rows = run({**TINY, "scheme": "consensus", "rounds": rounds, "test-every": every})
    assert [row["round"] for row in rows] == tested


def test_a_seed_gives_a_run():
    settings = {**TINY, "scheme": "consensus", "partition": "labels"}
    assert str(run(settings)) == str(run(settings)) != str(run({**settings, "seed": 2}))


def model(folder, **settings) -> np.ndarray:
    run_in_process(whole({**TINY, "rounds": 1, "run-folder": str(folder), **settings}))
    return np.concatenate([each.ravel() for each in read_model(folder / "model.safetensors").values()])


@pytest.mark.parametrize("scheme", ["without-consensus", "centralised"])
def test_noise_is_in_every_weight_of_the_model_where_there_is_no_consensus(scheme, tmp_path):
    noise = model(tmp_path / "a", scheme=scheme, noise=0.05, **{"attack-rounds": "1"})
    noise -= model(tmp_path / "b", scheme=scheme)
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    assert abs(noise.mean()) < 0.05 * 5 / noise.size**0.5
    assert np.count_nonzero(noise) > 0.99 * noise.size


@pytest.mark.parametrize("servers", [2, 3])
def test_noise_in_a_consensus_is_shared_among_all(servers, tmp_path):
    """One of them puts it into its own state, and the steps that follow take the mean."""
    settings = {"scheme": "consensus", "edge-servers": servers, "noise": 0.05, "attack-rounds": "1"}
    honest = model(tmp_path / "honest", **settings | {"attack-rounds": ""})
    noise = model(tmp_path / "attacked", **settings) - honest
    assert noise.std() == pytest.approx(0.05 / servers, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"round": 3}, r"`settings` may have scheme, .*got 'round'"),
        ({"scheme": "theirs"}, r"`scheme` must be one of ours, .*got 'theirs'"),
        ({"controller": "best"}, r"`controller` must be one of .*got 'best'"),
        (
            {"attack": "noise", "attack-rounds": "1"},
            r"`attack` must be one of none, model-noise, .*got 'noise'",
        ),
        ({"graph": "square"}, "graph"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check({**TINY, **settings})


def test_another_image_size_than_svhns_is_refused(tmp_path):
    images = {f"{part}_images": np.zeros((4, 3, 28, 28), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "x.npz", **images, train_labels=np.arange(4), test_labels=np.arange(4))
    settings = {**TINY, "dataset": "file", "data-folder": str(tmp_path / "x.npz")}
    with pytest.raises(
        NotAvailableError, match=r"must be a file of images of shape \(3, 32, 32\), got \(3, 28, 28\)"
    ):
        check(settings)
    app.loaded.cache_clear()
