"""An experiment's picture: panels in the paper's arrangement, means over seeds with their 95 % intervals."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from flower_bfl.paper.claims import estimate
from flower_bfl.paper.experiment import Experiment, Panel, Settings, Value
from flower_bfl.paper.results import Results, Run
from flower_bfl.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart, three more, and marks to print.
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000",
    "#7F7F7F", "#882255", "#999933",
)  # fmt: skip
_MARKS = "osD^vPX*<>"
_SAME = ("round", "steps")  # columns whose values all seeds have
_FEWEST_FOR_BANDS = 3  # seeds; an interval from two is thirteen times its standard error, and hides all else
_MOST_MARKED = 12  # points of a curve
_WIDTH, _HEIGHT = 5.2, 3.5
_LETTERS = 62  # of the title above a panel

Curve = tuple[Floats, Floats, Floats]
"""x, mean and half of the interval."""


def draw(results: Results) -> Path:
    """Draw what there is, into NAME.png beside the results.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    experiment = results.experiment
    rows = -(-len(experiment.panels) // experiment.columns)
    figure = Figure(figsize=(_WIDTH * experiment.columns, _HEIGHT * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, experiment.columns, squeeze=False)
    for axis, panel in zip(axes.flat, experiment.panels, strict=False):
        _draw_panel(axis, panel, results)
    _draw_legends(list(axes.flat), experiment.panels)
    for axis in axes.flat[len(experiment.panels) :]:
        axis.set_visible(False)
    bands = ", bands: 95 % intervals of the mean" if results.seeds >= _FEWEST_FOR_BANDS else ""
    seeds = f"{results.seeds} seed{'s' if results.seeds != 1 else ''}{bands}"
    note = fill(f"{seeds}{experiment.note and '; '}{experiment.note}", _LETTERS * experiment.columns)
    figure.suptitle(f"{experiment.title}\n{note}", fontsize=10)
    file = results.file.with_suffix(".png")
    figure.savefig(file, dpi=110)
    return file


def _draw_panel(axis: "Axes", panel: Panel, results: Results) -> None:
    experiment = results.experiment
    for number, value in _values(experiment, panel):
        runs = results.of({**panel.where, panel.curves: value})
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
        x, mean, half = curve(runs, panel)
        if results.seeds < _FEWEST_FOR_BANDS:
            half = np.full_like(half, np.nan)
        _draw_curve(axis, (x, mean, half), panel, colour, label=_label(experiment, value), marker=mark)
        if panel.dashed:
            beside = curve(runs, replace(panel, y=panel.dashed))
            _draw_curve(axis, beside, panel, colour, ls="--", lw=1.1)
    if panel.dashed and axis.lines:
        axis.plot([], [], color="0.3", lw=1.1, ls="--", label=_label(experiment, panel.dashed))
    axis.set(
        title=panel.title, xlabel=_label(experiment, panel.x), ylabel=_label(experiment, panel.y),
        xscale="log" if "x" in panel.log else "linear", yscale="log" if "y" in panel.log else "linear",
    )  # fmt: skip
    if "x" in panel.log and panel.x in experiment.varied:
        _tick_values(axis)
    _fit_to_means(axis, panel)
    axis.title.set_fontsize(10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)


def _draw_legends(axes: "Sequence[Axes]", panels: Sequence[Panel]) -> None:
    """Where there is a curve that no panel before has; its colour is the same in all."""
    explained: set[tuple[str, str]] = set()
    for axis, panel in zip(axes, panels, strict=False):
        curves = {(panel.curves, label) for label in axis.get_legend_handles_labels()[1]}
        if curves - explained:
            axis.legend(fontsize=8, edgecolor="none", framealpha=0.7)
        explained |= curves


def _draw_curve(axis: "Axes", points: Curve, panel: Panel, colour: str, **style: Any) -> None:
    """A line through the means and a band around them; a bar where there is but one."""
    x, mean, half = points
    if "y" in panel.log:
        x, mean, half = (values[mean > 0] for values in points)
    if not x.size:
        return
    often = max(1, x.size // _MOST_MARKED)
    axis.plot(x, mean, **{"color": colour, "lw": 1.4, "ms": 4, "markevery": often, **style})
    if "marker" not in style or not np.isfinite(half).any():
        return
    if x.size > 1:
        axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
    else:
        axis.errorbar(x, mean, half, fmt="none", color=colour, lw=1, capsize=3, alpha=0.5)


def _tick_values(axis: "Axes") -> None:
    """Ticks where the values of a setting are: few, and no powers of ten."""
    at = sorted({float(x) for line in axis.lines for x in np.asarray(line.get_xdata())})
    axis.set_xticks(at, [f"{x:,.10g}" for x in at])
    axis.set_xticks([], minor=True)


def _fit_to_means(axis: "Axes", panel: Panel) -> None:
    """Wide bands, as of two seeds, shall not make curves flat."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.lines]
    means = np.concatenate([*lines, np.zeros(0)])
    if means.size and "y" not in panel.log:
        margin = 0.15 * (np.ptp(means) or abs(means[0]) or 1.0)
        low = means.min() - margin
        axis.set_ylim(max(low, 0.0) if means.min() >= 0 else low, means.max() + margin)


def curve(runs: Sequence[Run], panel: Panel) -> Curve:
    """x, mean of y over seeds, and the half of its interval; where all seeds have a number.

    Where x is a column in which seeds differ, such as simulated seconds, rows go by their run's settings and
    their place in it.
    """
    seeds = len({run.seed for run in runs})
    points: dict[object, list[tuple[float, float]]] = {}
    for run in runs:
        for place, row in enumerate(run.rows):
            x = float(run.key.get(panel.x, row.get(panel.x, np.nan)))
            y = float(row[panel.y])
            same = panel.x in run.key or panel.x in _SAME
            by = x if same else (*run.key.values(), place)
            if np.isfinite(x) and np.isfinite(y):
                points.setdefault(by, []).append((x, y))
    whole = sorted(tuple(zip(*found, strict=True)) for found in points.values() if len(found) == seeds)
    told = [estimate(ys) for _, ys in whole]
    return (
        np.array([np.mean(xs) for xs, _ in whole]),
        np.array([each.value for each in told]),
        np.array([each.half for each in told]),
    )


def _values(experiment: Experiment, panel: Panel) -> list[tuple[int, Value]]:
    """Whose curves are drawn, with their places in the whole experiment: the same colour in every panel."""
    runs = list(experiment.runs())
    places = {value: place for place, value in enumerate(dict.fromkeys(run[panel.curves] for run in runs))}
    here = dict.fromkeys(run[panel.curves] for run in runs if _fits(run, panel.where))
    return [(places[value], value) for value in here if not panel.only or value in panel.only]


def _fits(settings: Settings, where: Settings) -> bool:
    return all(settings.get(name) == value for name, value in where.items())


def _label(experiment: Experiment, value: Value) -> str:
    return experiment.labels.get(str(value), str(value))
