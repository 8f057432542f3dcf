"""The picture of `flower-bfl controller compare`: what is drawn is what was found, and can be read."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from flower_bfl._comparison_picture import draw_comparison
from flower_bfl._comparison_view import Trial
from flower_bfl.controller.comparison import Comparison, Outcome
from flower_bfl.network import NetworkConfig

# Mean learning and its spread in seconds, and the time to decide, many at once and alone.
FOUND = {
    "all-local": (38.7, 3.8, 9e-7, 2e-5),
    "random": (173.0, 95.0, 1e-5, 3e-4),
    "greedy": (34.0, 13.0, 2e-4, 5e-4),
    "a2c": (18.4, 1.0, 2e-3, 9e-3),
    "better": (17.45, 1.0, 2e-3, 9e-3),
    "assignment": (17.7, 1.1, 0.08, 0.08),
    "near-optimal": (17.5, 1.0, 2.2, 2.4),
}
BELIEVED = {"greedy *": (36.0, 14.0, 2e-4, 5e-4), "near-optimal *": (20.0, 2.0, 1.1, 1.1)}


def trial_of(found, states: int = 64, age: int = 0) -> Trial:
    drawn = np.random.default_rng(0).standard_normal(states)
    drawn = (drawn - drawn.mean()) / drawn.std()
    outcomes = {
        name: Outcome(22 + mean_s + spread_s * drawn, mean_s + spread_s * drawn, batch_s, single_s)
        for name, (mean_s, spread_s, batch_s, single_s) in found.items()
    }
    return Trial(Comparison(NetworkConfig(), outcomes), 2026, age)


TRIALS = {
    "all": trial_of(FOUND),
    "believed": trial_of(FOUND | BELIEVED, age=2),
    "marks": trial_of({name: FOUND[name] for name in ("all-local", "near-optimal")}),
    "two states": trial_of(FOUND | BELIEVED, states=2, age=2),
}
every_trial = pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes}


def row_of(figure: Figure, y: float) -> str:
    """The name beside a height; the names are on the left, and both panels have the same heights."""
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim()
    names = [label.get_text() for label in left.get_yticklabels()]
    assert abs(y - round(y)) < 0.4
    return names[round(y)]


@every_trial
def test_dots_and_intervals_are_the_excess(trial):
    figure = draw_comparison(trial)
    axes = panels(figure)["Excess"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    bars = [line for line in axes.lines if line.get_marker() == "None" and len(set(line.get_ydata())) == 1]
    names = list(trial.comparison.outcomes)
    assert len(dots) == len(bars) == len(names)
    believed = set()
    for name, dot, bar in zip(names, dots, bars, strict=True):
        one = trial.comparison.excess(name)
        ((x, y),) = dot.get_xydata()
        assert x == pytest.approx(100 * one.value)
        assert bar.get_xdata() == pytest.approx([100 * one.low, 100 * one.high])
        assert set(bar.get_ydata()) == {y}
        assert row_of(figure, y) == name.removesuffix(" *")
        assert dot.get_color() == bar.get_color()
        if name.endswith(" *"):
            believed.add(dot.get_color())
            assert y > round(y)
            (partner,) = (d for d, n in zip(dots, names, strict=True) if n == name.removesuffix(" *"))
            assert partner.get_ydata()[0] < round(y)
    assert len(believed) == any(name.endswith(" *") for name in names)
    assert believed.isdisjoint(
        d.get_color() for d, n in zip(dots, names, strict=True) if not n.endswith(" *")
    )
    written = [float(text.get_text().removesuffix(" %")) for text in axes.texts]
    assert written == pytest.approx([dot.get_xdata()[0] for dot in dots], rel=5e-3, abs=0.051)


@every_trial
def test_every_dot_and_what_is_written_beside_it_lie_within_the_panel(trial):
    figure = draw_comparison(trial)
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert all(text.get_window_extent().x1 <= axes.bbox.x1 for text in axes.texts)
        for line in axes.lines:
            if line.get_marker() == "o":
                assert low < line.get_xdata()[0] < high


@every_trial
def test_time_is_drawn_for_many_states_and_for_one(trial):
    figure = draw_comparison(trial)
    axes = panels(figure)["Time to decide"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    found = {}
    for dot in dots:
        ((x, y),) = dot.get_xydata()
        kind = "single_s" if dot.get_markerfacecolor() == "white" else "batch_s"
        found[row_of(figure, y), kind] = x
    shown = {name: one for name, one in trial.comparison.outcomes.items() if not name.endswith(" *")}
    assert found == {
        (name, kind): getattr(one, kind) for name, one in shown.items() for kind in ("batch_s", "single_s")
    }
    assert axes.get_xscale() == "log"


def test_the_legend_tells_who_believes_only_where_somebody_does():
    def told(trial):
        legend = panels(draw_comparison(trial))["Excess"].get_legend()
        return {
            text.get_text(): line.get_color()
            for text, line in zip(legend.texts, legend.get_lines(), strict=True)
        }

    assert set(told(TRIALS["all"])) == {"decides on true gains", "marks"}
    labels = told(TRIALS["believed"])
    assert set(labels) == {"decides on true gains", "marks", "decides on gains 2 rounds old"}
    axes = panels(draw_comparison(TRIALS["believed"]))["Excess"]
    colours = {line.get_color() for line in axes.lines if line.get_marker() == "o"}
    assert colours == set(labels.values())


def shown_texts(figure: Figure) -> list[Text]:
    texts = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts, *axes.get_legend().get_texts()]
        for axis in (axes.xaxis, axes.yaxis):
            first, last = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if first <= tick.get_loc() <= last]
            texts += [axis.label, *(tick.label1 for tick in ticks if tick.label1.get_visible())]
    return [text for text in texts if text.get_text().strip()]


@every_trial
def test_no_text_covers_another(trial):
    figure = draw_comparison(trial)
    figure.draw_without_rendering()
    texts = shown_texts(figure)
    low, high = np.array([text.get_window_extent().get_points() for text in texts]).swapaxes(0, 1)
    assert low.min() >= 0
    assert (high <= figure.bbox.size).all()
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    # Words beside each other need a blank between them.
    covering = np.argwhere(np.triu((common[..., 0] > -5) & (common[..., 1] > 1), 1))
    assert [(texts[i].get_text(), texts[j].get_text()) for i, j in covering] == []
