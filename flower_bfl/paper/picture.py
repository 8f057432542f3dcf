"""An experiment's picture: panels in the paper's arrangement, means over seeds with their 95 % intervals."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flower_bfl.paper.claims import estimate
from flower_bfl.paper.experiment import Experiment, Panel, Settings, Value
from flower_bfl.paper.results import Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart, and marks for those who print.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKS = "osD^vPX"
_SAME = ("round", "steps")  # columns whose values all seeds have
_MOST_MARKED = 12  # points of a curve
_WIDTH, _HEIGHT = 5.2, 3.5


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
    for axis in axes.flat[len(experiment.panels) :]:
        axis.set_visible(False)
    seeds = f"{results.seeds} seed{'s' if results.seeds != 1 else ''}, bands: 95 % intervals of the mean"
    figure.suptitle(f"{experiment.title}\n{seeds}{experiment.note and '; '}{experiment.note}", fontsize=10)
    file = results.file.with_suffix(".png")
    figure.savefig(file, dpi=110)
    return file


def _draw_panel(axis: "Axes", panel: Panel, results: Results) -> None:
    experiment = results.experiment
    for number, value in enumerate(_values(experiment, panel)):
        runs = results.of({**panel.where, panel.curves: value})
        x, mean, half = curve(runs, panel)
        if not x.size:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        axis.plot(
            x, mean, color=colour, lw=1.4, label=_label(experiment, value),
            marker=_MARKS[number % len(_MARKS)], ms=4, markevery=max(1, x.size // _MOST_MARKED),
        )  # fmt: skip
        if np.isfinite(half).any() and x.size > 1:
            axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
        elif np.isfinite(half).any():  # a band around one point would have no width
            axis.errorbar(x, mean, half, fmt="none", color=colour, lw=1, capsize=3)
        if panel.dashed:
            x, mean, _ = curve(runs, replace(panel, y=panel.dashed))
            axis.plot(x, mean, color=colour, lw=1.1, ls="--")
    if panel.dashed and axis.lines:
        axis.plot([], [], color="0.3", lw=1.1, ls="--", label=_label(experiment, panel.dashed))
    axis.set(
        title=panel.title, xlabel=_label(experiment, panel.x), ylabel=_label(experiment, panel.y),
        xscale="log" if "x" in panel.log else "linear", yscale="log" if "y" in panel.log else "linear",
    )  # fmt: skip
    _fit_to_means(axis, panel)
    axis.title.set_fontsize(10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.6)
    if axis.lines:
        axis.legend(fontsize=8, frameon=False)


def _fit_to_means(axis: "Axes", panel: Panel) -> None:
    """Wide bands, as of two seeds, shall not make curves flat."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.lines]
    means = np.concatenate([*lines, np.zeros(0)])
    if means.size and "y" not in panel.log:
        margin = 0.15 * (np.ptp(means) or abs(means[0]) or 1.0)
        axis.set_ylim(means.min() - margin, means.max() + margin)


def curve(runs: Sequence[Run], panel: Panel) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]:
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


def _values(experiment: Experiment, panel: Panel) -> list[Value]:
    found: dict[Value, None] = {}
    for settings in experiment.runs():
        if _fits(settings, panel.where):
            found[settings[panel.curves]] = None
    return [value for value in found if not panel.only or value in panel.only]


def _fits(settings: Settings, where: Settings) -> bool:
    return all(settings.get(name) == value for name, value in where.items())


def _label(experiment: Experiment, value: Value) -> str:
    return experiment.labels.get(str(value), str(value))
