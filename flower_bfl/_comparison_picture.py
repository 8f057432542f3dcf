"""Controllers compared as a picture: how far above near-optimal each is, and how long it takes to decide."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter

from flower_bfl._comparison_view import Trial, believes, controller_of
from flower_bfl.controller.comparison import ALL_LOCAL, NEAR_OPTIMAL, Estimate

# As in the picture of a round: Okabe and Ito's colours, and grey.
_DECIDES, _BELIEVES, _MARK = "#0072B2", "#D55E00", "0.55"

_WIDTH_IN, _ROW_IN, _FRAME_IN = 11.0, 0.45, 2.1
_LINEAR_BELOW = 1.0  # per cent; above, the axis of excess is logarithmic
_DOT_PT, _RING_PT = 6.5, 10.0
_APART = 0.19  # of a row


def draw_comparison(trial: Trial) -> Figure:
    """Left the excess with its interval, right the time for a state; a line for each controller."""
    names = [name for name in trial.comparison.outcomes if not believes(name)]
    height_in = _FRAME_IN + _ROW_IN * len(names)
    figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=120)
    figure.set_layout_engine("constrained", wspace=0.05)
    excess, time = figure.subplots(1, 2, width_ratios=(1.4, 1), sharey=True)
    _draw_excess(excess, trial, names)
    _draw_time(time, trial, names)
    excess.set_yticks(range(len(names)), names)
    excess.set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(trial.title)
    return figure


def _draw_excess(axes: Axes, trial: Trial, names: list[str]) -> None:
    """True and believed gains one above the other: what not to know costs is what is between them."""
    comparison = trial.comparison
    paired = {controller_of(name) for name in comparison.outcomes if believes(name)}
    values, highest = [], []
    for name in comparison.outcomes:
        who, one = controller_of(name), comparison.excess(name)
        percent = Estimate(100 * one.value, 100 * one.half)
        shift = 0.0 if who not in paired else _APART if believes(name) else -_APART
        _draw_estimate(axes, names.index(who) + shift, percent, _colour_of(name))
        values.append(percent.value)
        highest.append(percent.high)
    axes.axvline(0, color=_MARK, linewidth=1, zorder=1)
    _scale_percent(axes, min(values), max(highest))
    axes.set_xlabel("learning latency above near-optimal's, %, mean and 95 % interval")
    axes.set_title("Excess")
    _bare(axes)
    kinds = {_DECIDES: "decides on true gains", _MARK: "marks"}
    if paired:
        kinds[_BELIEVES] = f"decides on gains {trial.belief}"
    _explain(axes, [_dot(colour, label=label) for colour, label in kinds.items()])


def _draw_estimate(axes: Axes, row: float, percent: Estimate, colour: str) -> None:
    axes.plot([percent.low, percent.high], [row, row], color=colour, linewidth=2, zorder=2)
    axes.plot(percent.value, row, "o", color=colour, markersize=_DOT_PT, markeredgecolor="white", zorder=3)
    where: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center_baseline"}
    text = f"{percent.value:z.1f} %" if abs(percent.value) < 100 else f"{percent.value:.0f} %"
    outline = [withStroke(linewidth=3, foreground="white")]  # what is below 0 is written over its line
    axes.annotate(text, (percent.high, row), fontsize=9, color="0.2", path_effects=outline, **where)


def _scale_percent(axes: Axes, low: float, high: float) -> None:
    """Decades of per cent, and straight through 0, which is near-optimal and on no logarithmic axis.

    Little below that is shown: it is not to be had, but intervals over few states reach far down.
    """
    axes.set_xscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.6)
    decades = 10.0 ** np.arange(0, np.ceil(np.log10(max(high, -low, 10.0))) + 1)
    ticks = np.concatenate([-decades[::-1], [0.0], decades])
    # Room to the right for what is written there.
    axes.set_xlim(min(-0.4, 1.5 * low), max(6.0 * high, 10.0))
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _draw_time(axes: Axes, trial: Trial, names: list[str]) -> None:
    for row, name in enumerate(names):
        outcome, colour = trial.comparison.outcomes[name], _colour_of(name)
        axes.plot([outcome.batch_s, outcome.single_s], [row, row], color=colour, linewidth=1.5, zorder=2)
        axes.plot(outcome.single_s, row, **_style(colour, hollow=True), zorder=3)
        axes.plot(outcome.batch_s, row, **_style(colour), zorder=4)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
    axes.minorticks_off()
    axes.set_xlabel("for a state")
    axes.set_title("Time to decide")
    _bare(axes)
    _explain(axes, [_dot("0.3", label="many at once"), _dot("0.3", hollow=True, label="alone")])


def _colour_of(name: str) -> str:
    if believes(name):
        return _BELIEVES
    return _MARK if name in (ALL_LOCAL, NEAR_OPTIMAL) else _DECIDES


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * (1 - 1e-9):
            return f"{value / size:g} {unit}"
    return f"{value / 1e-9:g} ns"


def _style(colour: str, *, hollow: bool = False) -> dict[str, Any]:
    return {
        "marker": "o",
        "linestyle": "",
        "markersize": _RING_PT if hollow else _DOT_PT,  # so that either is seen where both are
        "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour if hollow else "white",
    }


def _dot(colour: str, *, label: str, hollow: bool = False) -> Line2D:
    return Line2D([], [], **_style(colour, hollow=hollow), label=label)


def _explain(axes: Axes, entries: list[Line2D]) -> None:
    """Below the axis."""
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.8}
    axes.legend(handles=entries, ncols=len(entries), frameon=False, fontsize=9, **below)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
