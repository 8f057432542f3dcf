"""Curves are means over seeds, and a picture has all of them."""

from pathlib import Path

import numpy as np
import pytest
from hand_made import filled, latency, row
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student

from flower_bfl.paper.experiment import Panel
from flower_bfl.paper.picture import curve, draw
from flower_bfl.paper.results import Run

NAN = float("nan")


def learned(seed: int, values: list[float], clock: list[float] | None = None, **key: object) -> Run:
    clock = clock or [10.0 * k for k in range(len(values))]
    rows = [{"round": float(k), "y": y, "simulated_seconds": clock[k]} for k, y in enumerate(values)]
    return Run({"scheme": "ours", **key}, seed, tuple(rows))


def panel(x: str = "round") -> Panel:
    return Panel("p", x, "y", "scheme")


def test_a_curve_is_the_mean_with_students_interval():
    values = np.random.default_rng(0).normal(size=(4, 6))
    x, mean, half = curve([learned(seed, each.tolist()) for seed, each in enumerate(values)], panel())
    np.testing.assert_array_equal(x, np.arange(6))
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(half, student.ppf(0.975, 3) * values.std(axis=0, ddof=1) / 2)


def test_where_a_seed_has_no_number_there_is_no_point():
    runs = [learned(0, [1, 2, NAN, 4, 5]), learned(1, [3, NAN, 5, 6])]
    x, mean, _ = curve(runs, panel())
    assert (x.tolist(), mean.tolist()) == ([0, 3], [2, 5])


def test_of_one_seed_there_is_no_interval():
    x, mean, half = curve([learned(7, [1, 2])], panel())
    assert (x.tolist(), mean.tolist()) == ([0, 1], [1, 2])
    assert np.isnan(half).all()


def test_of_no_run_there_is_no_curve():
    assert [each.size for each in curve([], panel())] == [0, 0, 0]


def test_clocks_that_differ_are_averaged_too():
    runs = [learned(0, [1, 2, 3], [0.0, 10.0, 20.0]), learned(1, [3, 4, 5], [0.0, 30.0, 50.0])]
    x, mean, _ = curve(runs, panel("simulated_seconds"))
    assert (x.tolist(), mean.tolist()) == ([0, 20, 35], [2, 3, 4])


def test_a_setting_as_x():
    runs = [
        Run({"devices": n, "algorithm": "greedy"}, seed, (row(total_s=n + seed),))
        for n in (20, 5, 10)
        for seed in (0, 2)
    ]
    x, mean, half = curve(runs, Panel("p", "devices", "total_s", "algorithm"))
    assert (x.tolist(), mean.tolist()) == ([5, 10, 20], [6, 11, 21])
    np.testing.assert_allclose(half, student.ppf(0.975, 1) * 1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *arguments: object, **named: object) -> None:
        figures.append(self)
        save(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


PANELS = [
    {"title": "a", "x": "devices", "y": "total_s", "curves": "algorithm", "log": "xy"},
    {"title": "b", "x": "devices", "y": "utility", "curves": "algorithm", "only": ["greedy"]},
    {"title": "c", "x": "devices", "y": "total_s", "curves": "algorithm", "where": {"devices": 5}},
]
TOTALS = {
    (3, "all-local"): [1.0, 2.0, 1.5], (5, "all-local"): [3.0, 4.0, 3.5],
    (3, "greedy"): [0.5, 1.0, 0.75], (5, "greedy"): [2.0, 2.5, 2.25],
}  # fmt: skip


def test_the_picture_has_every_panel_and_curve(drawn: list[Figure], tmp_path: Path):
    experiment = latency(panel=PANELS, columns=2, note="a note", labels={"greedy": "Gr", "total_s": "s"})
    file = draw(filled(experiment, tmp_path, TOTALS))
    assert file == tmp_path / "tiny.png" and file.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["a", "b", "c"]
    assert len(figure.axes) == 4
    a, b, c = axes
    assert {line.get_label(): line.get_xydata().tolist() for line in a.lines} == {
        "all-local": [[3, 1.5], [5, 3.5]],
        "Gr": [[3, 0.75], [5, 2.25]],
    }
    assert [text.get_text() for text in a.get_legend().get_texts()] == ["all-local", "Gr"]
    assert (a.get_xlabel(), a.get_ylabel(), a.get_xscale(), a.get_yscale()) == ("devices", "s", "log", "log")
    assert [line.get_label() for line in b.lines] == ["Gr"]
    points = [line for line in c.lines if not line.get_label().startswith("_")]  # but not the ends of bars
    assert [line.get_xydata().tolist() for line in points] == [[[5, 3.5]], [[5, 2.25]]]
    assert len(a.collections) == 2  # bands
    title = figure.get_suptitle()
    assert title == "Tiny\n3 seeds, bands: 95 % intervals of the mean; a note"


def test_a_legend_is_where_a_curve_comes_for_the_first_time(drawn: list[Figure], tmp_path: Path):
    a, b, _ = PANELS
    by_devices = {**a, "x": "total_s", "curves": "devices"}
    draw(filled(latency(panel=[b, a, {**a, "y": "utility"}, by_devices]), tmp_path, TOTALS))
    (figure,) = drawn
    assert [axis.get_legend() is not None for axis in figure.axes[:4]] == [True, True, False, True]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_long_note_is_not_cut_off(columns, drawn: list[Figure], tmp_path: Path):
    draw(filled(latency(panel=PANELS, columns=columns, note="a long note " * 40), tmp_path, TOTALS))
    (figure,) = drawn
    (title,) = figure.texts
    box = title.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert " ".join(title.get_text().split()).count("a long note") == 40


def test_two_seeds_have_no_bands(drawn: list[Figure], tmp_path: Path):
    """Theirs would be thirteen standard errors wide either way, and hide every curve."""
    totals = {key: values[:2] for key, values in TOTALS.items()}
    draw(filled(latency(panel=PANELS, note="a note"), tmp_path, totals))
    (figure,) = drawn
    assert not any(axis.collections or axis.containers for axis in figure.axes)
    assert figure.get_suptitle() == "Tiny\n2 seeds; a note"


def test_colours_are_the_algorithms_in_every_picture_of_an_experiment(drawn: list[Figure], tmp_path: Path):
    """Also while the runs of one are not there yet."""
    experiment = latency()
    draw(filled(experiment, tmp_path / "all", TOTALS))
    draw(filled(experiment, tmp_path / "some", {key: TOTALS[key] for key in TOTALS if key[1] == "greedy"}))
    colours = [{line.get_label(): line.get_color() for line in each.axes[0].lines} for each in drawn]
    assert len(set(colours[0].values())) == 2
    assert colours[1] == {"greedy": colours[0]["greedy"]}


@pytest.mark.parametrize("totals", [{}, {(3, "greedy"): [0.0, 0.0]}, {(3, "greedy"): [-1.0]}])
def test_little_is_drawn_without_a_warning(totals, drawn: list[Figure], tmp_path: Path):
    draw(filled(latency(panel=PANELS), tmp_path, totals))
    (figure,) = drawn
    assert figure.get_suptitle().startswith("Tiny\n0 seeds")
    positive, plain, nobody, _ = figure.axes
    assert not positive.lines  # a logarithm has nothing to show
    assert bool(plain.lines) == bool(totals)
    assert not nobody.lines
