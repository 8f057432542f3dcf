"""The experiments as data: each can be run, drawn and held against its claims, in every version."""

import re
from typing import Any, get_args, get_type_hints

import pytest
from hand_made import latency

from flower_bfl.errors import ConfigError
from flower_bfl.paper import app
from flower_bfl.paper.experiment import Claim, Experiment, Settings, Take, names, parsed, read
from flower_bfl.paper.runs import KINDS

VERSIONS = ("itself", "quick", "full")


def version(name: str, which: str) -> Experiment:
    return read(name) if which == "itself" else read(name).version(which)  # type: ignore[arg-type]


@pytest.fixture(params=[(name, which) for name in names() for which in VERSIONS], ids="-".join)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return version(*request.param)


def selected(experiment: Experiment, settings: Settings) -> list[dict[str, Any]]:
    """Runs by the settings in which they differ: others are not in the results."""
    keys = [{name: run[name] for name in experiment.varied} for run in experiment.runs()]
    return [key for key in keys if all(name in key and key[name] == settings[name] for name in settings)]


def test_the_papers_figures_come_first_by_number():
    found = names()
    figures = [f"fig{number}" for number in range(4, 13)]
    assert found[:9] == figures
    assert found[9:] == sorted(found[9:], key=lambda name: (len(name), name))


def test_every_run_is_one_of_its_own(experiment: Experiment):
    keys = [tuple(key.values()) for key in selected(experiment, {})]
    assert keys and len(keys) == len(set(keys))


def test_every_setting_means_something(experiment: Experiment, monkeypatch: pytest.MonkeyPatch):
    """The kind's own check, but for data sets that are not here."""
    monkeypatch.setattr(app, "loaded", lambda name, folder: None)
    kind = KINDS[experiment.run]
    for settings in experiment.runs():
        kind.check(settings)
    assert not set(experiment.varied) & {*kind.columns, "seed", "seconds"}


def test_every_curve_has_runs(experiment: Experiment):
    columns = KINDS[experiment.run].columns
    assert experiment.panels
    for panel in experiment.panels:
        assert panel.y in columns and (not panel.dashed or panel.dashed in columns)
        assert panel.x in columns or panel.x in experiment.varied
        assert panel.curves in experiment.varied
        curves = {run[panel.curves] for run in selected(experiment, panel.where)}
        assert curves
        assert set(panel.only) <= curves
        assert set(panel.log) <= {"x", "y"}


def test_every_claim_is_of_one_run_a_seed(experiment: Experiment):
    """A quick version may lack some, whose claims it leaves out."""
    columns = KINDS[experiment.run].columns
    fewest = 0 if experiment.name.endswith("-quick") else 1
    for claim in experiment.claims:
        assert claim.column in columns, claim.text
        if claim.take.what != "last":
            assert claim.take.x in columns, claim.text
        for settings in (claim.of, claim.over):
            if settings is not None:
                assert fewest <= len(selected(experiment, settings)) <= 1, (claim.text, settings)
        assert claim.over != claim.of
        for entry, kind in (("measure", Claim), ("expect", Claim)):
            assert getattr(claim, entry) in get_args(get_type_hints(kind)[entry])
        assert claim.take.what in get_args(get_type_hints(Take)["what"])
        if claim.measure == "percent":
            assert claim.over is not None and claim.unit == "%"
        if claim.paper is not None and claim.over is not None:
            assert (claim.paper > 0) == (claim.expect == "above"), "the number is in the claimed direction"
    assert len({claim.text for claim in experiment.claims}) == len(experiment.claims)


def test_there_are_labels_for_nothing_else(experiment: Experiment):
    """A misspelt label would be drawn nowhere, and nobody would miss it."""
    values = {str(value) for run in read(experiment.name.split("-")[0]).runs() for value in run.values()}
    known = {*values, *KINDS[experiment.run].columns, *experiment.varied, *experiment.settings}
    unknown = {name for name in experiment.labels if name not in known}
    assert not unknown


@pytest.mark.parametrize("name", names())
def test_versions_with_other_settings_have_other_names(name):
    own = read(name)
    assert own.name == name
    for which in ("quick", "full"):
        other = own.version(which)
        assert (other.name == name) == (list(other.runs()) == list(own.runs()))
        assert other.name in (name, f"{name}-{which}")
    assert own.quick.seeds <= 3, "quick"
    assert own.full.seeds == 10
    assert len(list(own.version("quick").runs())) <= len(list(own.runs()))


def test_versions_take_what_they_say():
    experiment = latency(
        {"devices": [3, 5, 7], "algorithm": ["greedy"]},
        {"devices": [9], "algorithm": ["greedy", "all-local"]},
        quick={"seeds": 2, "settings": {"steps": 9}, "vary": {"algorithm": ["ours"]}},
        full={"seeds": 4},
    )
    quick = experiment.version("quick")
    assert (quick.name, quick.quick.seeds, experiment.full.seeds) == ("tiny-quick", 2, 4)
    assert [(run["devices"], run["algorithm"], run["steps"]) for run in quick.runs()] == [
        (n, "ours", 9) for n in (3, 5, 7, 9)
    ]
    assert experiment.version("full") is experiment


def test_what_a_grid_varies_overrules_settings():
    experiment = parsed(
        "x",
        {
            "title": "x", "run": "latency", "settings": {"a": 0, "b": 0, "c": 0},
            "grid": [{"vary": {"a": [2, 3]}}, {"vary": {"c": [5]}}],
        },
    )  # fmt: skip
    assert list(experiment.runs()) == [
        {"a": 2, "b": 0, "c": 0},
        {"a": 3, "b": 0, "c": 0},
        {"a": 0, "b": 0, "c": 5},
    ]
    assert experiment.varied == ("a", "c")


WHOLE: dict[str, Any] = {
    "title": "t",
    "run": "latency",
    "settings": {"a": 1},
    "grid": [{"vary": {"a": [1, 2]}}],
    "panel": [{"title": "p", "x": "a", "y": "y", "curves": "a"}],
    "claim": [{"text": "c", "column": "y", "of": {"a": 1}, "take": {"what": "drop", "at": [3]}}],
}


def changed(**entries: Any) -> dict[str, Any]:
    return {name: value for name, value in (WHOLE | entries).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(titel="t"), r"`Experiment` may have name, title, .*, got 'titel'"),
        (changed(title=None), r"`Experiment` lacks an entry: .*'title'"),
        (changed(grid=[{"vary": {}, "values": 1}]), r"`Grid` may have vary, got 'values'"),
        (changed(grid=[{}]), r"`Grid` lacks an entry: .*'vary'"),
        (changed(panel=[WHOLE["panel"][0] | {"z": 1}]), r"`Panel` may have title, x, y, .*, got 'z'"),
        (changed(panel=[{"title": "p"}]), r"`Panel` lacks an entry: .*'x', 'y', and 'curves'"),
        (changed(claim=[WHOLE["claim"][0] | {"under": {}}]), r"`Claim` may have text, .*, got 'under'"),
        (changed(claim=[{"text": "c"}]), r"`Claim` lacks an entry: .*'column' and 'of'"),
        (changed(claim=[WHOLE["claim"][0] | {"take": {"mean": 1}}]), r"`Take` may have what, .*, got 'mean'"),
        (changed(quick={"seed": 1}), r"`Version` may have seeds, settings, vary, got 'seed'"),
        (
            changed(full={"vary": {"b": [1]}}),
            r"`vary` of a version of x must be of a grid's settings, got 'b'",
        ),
        (
            changed(grid=[{"vary": {"a": [1]}}, {"vary": {"b": [1]}}]),
            r"`settings` of x must have b, which not every grid varies",
        ),
        (
            changed(grid=[{"vary": {"a": [1, 2, 1]}}]),
            r"`grid` of x must give each run once, got \(1,\) again",
        ),
        (
            changed(grid=[{"vary": {"a": [1]}}, {"vary": {"a": [2, 1]}}]),
            r"`grid` of x must give each run once, got \(1,\) again",
        ),
        (changed(quick={"vary": {"a": [7, 7]}}), r"`grid` of x-quick must give each run once, got \(7,\)"),
    ],
)
def test_wrong_entries_are_told(content, message):
    assert parsed("x", WHOLE).claims[0].take == Take("drop", at=(3,))
    with pytest.raises(ConfigError, match=message):
        parsed("x", content)


@pytest.mark.parametrize("name", ["fig99", "fig4-quick", "../fig4", ""])
def test_who_asks_for_another_figure_is_told_which_there_are(name):
    listed = re.escape(", ".join(names()))
    with pytest.raises(ConfigError, match=rf"`figure` must be one of {listed} or all, got {name!r}"):
        read(name)
