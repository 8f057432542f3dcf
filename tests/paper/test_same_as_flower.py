"""In this process a run comes to the very models that it comes to under Flower's own simulation."""

from pathlib import Path

import pytest

from flower_bfl._flwr_run import private_flower
from flower_bfl.paper._training import run_in_process, run_under_flower, whole
from flower_bfl.report import read_rounds

TINY = {"dataset": "digits", "partition": "labels", "rounds": 3, "local-steps": 3, "seed": 3}
ATTACKED = {"scheme": "ours", "attack-rounds": "2", "defence": "replay"}
CONTROLLED = {"devices": 6, "controller": "greedy", "edge-steps": 4}


@pytest.fixture(scope="module")
def flower():
    with private_flower() as environment:
        yield environment


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(ATTACKED | CONTROLLED, id="attacked and controlled"),
        pytest.param(ATTACKED, id="attacked", marks=pytest.mark.slow),
        pytest.param(CONTROLLED | {"edge-servers": 2}, id="controlled", marks=pytest.mark.slow),
        pytest.param({"scheme": "independent"}, id="independent", marks=pytest.mark.slow),
    ],
)
def test_round_by_round_the_models_are_the_same(settings, flower, tmp_path: Path):
    config = whole(TINY | settings)
    run_under_flower(config | {"run-folder": str(tmp_path / "flower")}, flower)
    run_in_process(config | {"run-folder": str(tmp_path / "here")})
    theirs, ours = (read_rounds(tmp_path / name) for name in ("flower", "here"))
    assert [line["round"] for line in ours] == [0, 1, 2, 3]
    for name in ("model_digest", "evaluate", "accused", "consensus_error", "simulated_seconds"):
        assert [line.get(name) for line in ours] == [line.get(name) for line in theirs]
    assert len({line["evaluate"]["loss"] for line in ours}) == 4
    if "defence" in settings:
        assert [line["true_positives"] for line in ours[1:]] == [0, 1, 0]
    if "controller" in settings:
        assert any(
            map(any, (line["server_data"] for line in ours[1:]))
        )  # some device's data went to a server
