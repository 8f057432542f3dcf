"""The experiments beyond the paper's figures: what they refer to is there, and how they are drawn."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from flower_bfl import AutoRounds
from flower_bfl.errors import ConfigError
from flower_bfl.paper import app, picture
from flower_bfl.paper._training import whole
from flower_bfl.paper.claims import Verdict, estimate
from flower_bfl.paper.experiment import Claim, Panel, parsed, read
from flower_bfl.paper.results import Results, Run
from flower_bfl.paper.runs import KINDS

OURS = ["theory", "cost", "auto"]


@pytest.mark.parametrize("name", OURS)
def test_panels_and_claims_are_of_columns_that_runs_have(name):
    experiment = read(name)
    columns = KINDS[experiment.run].columns
    for panel in experiment.panels:
        assert panel.y in columns
        assert panel.dashed in ("", *columns)
        assert panel.x in (*columns, *experiment.varied)
    assert {claim.column for claim in experiment.claims} <= set(columns)


@pytest.mark.parametrize("version", ["quick", "full"])
@pytest.mark.parametrize("name", OURS)
def test_every_run_can_be_made(name, version):
    experiment = read(name).version(version)
    for settings in experiment.runs():
        KINDS[experiment.run].check({**settings, "seed": 0})


@pytest.mark.parametrize("name", OURS)
def test_a_claim_is_of_one_run_a_seed(name):
    experiment = read(name)
    runs = list(experiment.runs())
    for claim in experiment.claims:
        for meant in (claim.of, claim.over):
            if meant is not None:
                assert sum(meant.items() <= run.items() for run in runs) == 1, claim.text


def test_a_claim_says_whose_it_is():
    claim = Claim("a share", "y", {}, paper=1.0, expect="below", source="Theorem 1")
    told = str(Verdict(claim, estimate([0.25, 0.25]), 2))
    assert told == "a share: Theorem 1 +1, measured +0.25 ± 0, 2 seeds: borne out"
    assert str(Verdict(replace(claim, source="paper"), estimate([0.25]), 1)).startswith("a share: paper +1,")


def test_steps_as_a_round_needs_them_have_the_number_as_their_limit():
    settings = {"devices": 4, "p2p-rounds": 7, "graph": "line"}
    assert app.make_strategy(whole(settings)).consensus.p2p_rounds == 7
    chosen = app.make_strategy(whole({**settings, "p2p-auto": True}))
    assert chosen.consensus.p2p_rounds == AutoRounds(most=7)
    with pytest.raises(ConfigError, match="`most` must be"):
        app.make_strategy(whole({**settings, "p2p-rounds": 0, "p2p-auto": True}))


# -- pictures ------------------------------------------------------------------------------------------------

CONTENT = {
    "title": "shares and bounds",
    "run": "convergence",
    "grid": [{"vary": {"graph": ["ring", "line"], "steps": ["auto", "5"]}}],
}


@pytest.fixture
def results(tmp_path):
    """Of two seeds: `transactions` differ between them, `measured` is ten times `last`."""
    results = Results(parsed("shares", CONTENT), tmp_path)
    for seed in (0, 1):
        for place, settings in enumerate(results.experiment.runs()):
            row = {
                "transactions": 100.0 * (place + 1) + seed,
                "measured": place + 1.0,
                "last": (place + 1) / 10,
            }
            results.add({**settings, "seed": seed}, [row], 1.0)
    return results


def drawn(results, **panel):
    axis = Figure().subplots()
    settings = {"title": "t", "x": "transactions", "y": "measured", "curves": "graph", **panel}
    panel = Panel(**settings)
    picture._draw_panel(axis, panel, results)
    picture._draw_legends([axis], [panel])
    return axis


def heights(axis):
    """The y of all curves, but not of the ends of bars."""
    return [line.get_ydata().tolist() for line in axis.lines if line.get_marker() != "_"]


def test_where_seeds_differ_in_x_a_point_is_the_mean_of_one_runs_seeds(results):
    axis = drawn(results)
    assert [line.get_xdata().tolist() for line in axis.lines] == [[100.5, 200.5], [300.5, 400.5]]
    assert heights(axis) == [[1, 2], [3, 4]]


def test_rows_of_runs_with_many_go_by_their_place():
    runs = [
        Run({"graph": "ring"}, seed, ({"x": 1.0 + seed, "y": 1.0}, {"x": 5.0, "y": 3.0})) for seed in (0, 2)
    ]
    x, mean, _ = picture.curve(runs, Panel("t", "x", "y", "graph"))
    assert (x.tolist(), mean.tolist()) == ([2, 5], [1, 3])


def test_the_dashed_column_follows_the_other_in_its_colour(results):
    axis = drawn(results, dashed="last")
    solid = [line for line in axis.lines if line.get_linestyle() == "-"]
    dashed = [line for line in axis.lines if line.get_linestyle() == "--" and line.get_xdata().size]
    assert [line.get_ydata().tolist() for line in dashed] == [[0.1, 0.2], [0.3, 0.4]]
    assert [line.get_color() for line in dashed] == [line.get_color() for line in solid]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["ring", "line", "last"]


def test_one_point_has_bars_for_its_interval(results, monkeypatch):
    monkeypatch.setattr(picture, "_FEWEST_FOR_BANDS", 2)
    axis = drawn(results, curves="steps", where={"graph": "ring"})
    assert [line.get_xdata().tolist() for line in axis.lines if line.get_marker() != "_"] == [
        [100.5],
        [200.5],
    ]
    assert len(axis.containers) == 2
    assert not drawn(results).containers


def test_on_a_logarithmic_axis_there_are_no_zeros(results):
    for run in results.runs:
        if run.key == {"graph": "ring", "steps": "5"}:
            run.rows[0]["measured"] = 0.0
    assert heights(drawn(results, log="y")) == [[1], [3, 4]]
    assert heights(drawn(results)) == [[1, 0], [3, 4]]


def test_a_logarithmic_setting_has_its_values_as_ticks(tmp_path):
    grid = [{"vary": {"rounds": [25, 5000], "steps": ["auto"]}}]
    results = Results(parsed("ticks", {**CONTENT, "grid": grid}), tmp_path)
    for settings in results.experiment.runs():
        results.add({**settings, "seed": 0}, [{"measured": 1.0}], 1.0)
    axis = drawn(results, x="rounds", curves="steps", log="x")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["25", "5,000"]
