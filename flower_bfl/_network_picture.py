"""One round of an edge network as a picture: a map, a stacked bar of seconds a device, and the phases."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from flower_bfl._network_view import PricedRound
from flower_bfl.errors import ConfigError
from flower_bfl.network.settings import Array

# Okabe and Ito's colours, which colour-blind readers can tell apart; after six edge servers they begin again.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_LOCAL, _UPLOAD, _WAITING = "0.55", "black", "0.9"
_PALE = 0.45  # how much colour there is in a pale one

_WIDTH_IN, _MAP_IN = 13.0, 5.5
_BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, 0),
    "borderaxespad": 3.8,  # times the font's size, for the axis
    "frameon": False,
    "fontsize": 9,
}
_LONGEST = 8  # times the median of all devices, on the axis of seconds
_MOST_NAMES = 120  # that stand above each other without touching
_DOT_PT, _SERVER_PT = 5.0, 15.0


def draw_round(priced: PricedRound) -> Figure:
    """Left who offloads where and the round's phases, right the seconds of each device."""
    cost, devices = priced.price, priced.network.devices
    height_in = float(np.clip(3 + 0.075 * devices, 9.0, 10.5))
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained", dpi=100 if devices <= 50 else 150)
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1, 1.1), height_ratios=(_MAP_IN + 1, height_in - _MAP_IN - 1)
    )
    _draw_map(figure.add_subplot(grid[0, 0]), priced)
    _draw_phases(figure.add_subplot(grid[1, 0]), priced)
    _draw_devices(figure.add_subplot(grid[:, 1]), priced)
    total = f"{float(cost.total_s):.2f} s in total, utility {float(cost.utility):.3f}"
    figure.suptitle(f"{priced.title}: {total}")
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write it in the format that the path ends with, else as PNG; raises ConfigError if that fails."""
    try:
        figure.savefig(path, format=path.suffix[1:] or "png", dpi="figure")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`--picture` must be a path where a picture can be written, got {path} ({error})"
        ) from error


def _colour_of(priced: PricedRound, device: int) -> str:
    place = priced.place_of(device)
    return _LOCAL if place is None else _COLOURS[place[0] % len(_COLOURS)]


def _pale(colour: str) -> Any:
    return tuple(1 - _PALE * (1 - part) for part in to_rgb(colour))


# --- the map ------------------------------------------------------------------------------------------------


def _draw_map(axes: Axes, priced: PricedRound) -> None:
    network, half_m = priced.network, priced.network.radio.area_m / 2
    axes.add_patch(
        Rectangle((-half_m, -half_m), 2 * half_m, 2 * half_m, fill=False, color="0.8", linestyle="--")
    )
    links = []
    for device, place_m in enumerate(priced.positions_m):
        place, colour = priced.place_of(device), _colour_of(priced, device)
        if place is None:
            axes.plot(*place_m, "o", color=colour, markersize=_DOT_PT, fillstyle="none", zorder=3)
            continue
        ends_m = np.stack([place_m, network.places_m[place[0]]])
        axes.plot(*ends_m.T, color=colour, linewidth=1, alpha=0.7, zorder=1)
        axes.plot(*place_m, "o", color=colour, markersize=_DOT_PT + 1, markeredgecolor="white", zorder=3)
        links.append(ends_m)
    for server, (x_m, y_m) in enumerate(network.places_m):
        colour = _COLOURS[server % len(_COLOURS)]
        axes.plot(x_m, y_m, "s", color=colour, markersize=_SERVER_PT, markeredgecolor="black", zorder=2)
        bold: dict[str, Any] = {"color": "white", "weight": "bold", "ha": "center", "va": "center_baseline"}
        outline = [withStroke(linewidth=2, foreground="black")]  # for a device that stands there, too
        axes.text(x_m, y_m, str(server), **bold, zorder=4, path_effects=outline)
    axes.set_aspect("equal")
    axes.set(xlabel="metres east of the centre", ylabel="metres north of the centre")
    axes.set_title("Who offloads where")
    _number_devices(axes, priced, links)
    entries = [
        _dot("s", 9, "0.3", label="edge server"),
        _dot("o", _DOT_PT, "0.3", label="offloads to the edge server", linestyle="-", linewidth=1),
        _dot("o", _DOT_PT, _LOCAL, label="trains itself", fillstyle="none"),
    ]
    axes.legend(handles=entries, ncols=3, **_BELOW)


def _dot(marker: str, size_pt: float, colour: str, **style: Any) -> Line2D:
    return Line2D([], [], **({"linestyle": ""} | style), marker=marker, markersize=size_pt, color=colour)


def _number_devices(axes: Axes, priced: PricedRound, links: list[Array]) -> None:
    """A number beside each device, where it covers least; none where it would hit another number."""
    size_pt = 7.5 if priced.network.devices <= 50 else 6
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    m_per_pt = max(right - left, high - low) / (_MAP_IN * 72)
    along = np.linspace(0, 1, 60)[:, None]
    lines_m = [start + along * (end - start) for start, end in links]
    covered_m = np.concatenate([priced.positions_m, priced.network.places_m, *lines_m])
    counts = (priced.network.devices, priced.network.edge_servers, len(along) * len(links))
    reach_m = np.repeat([_DOT_PT / 2, _SERVER_PT / 2, 0.0], counts) * m_per_pt
    sides = np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)])
    numbers = np.empty((0, 4))  # centre and half size
    for device, place_m in enumerate(priced.positions_m):
        half_m = np.array([0.33 * len(str(device)), 0.42]) * size_pt * m_per_pt
        tries_m = np.concatenate([place_m + sides * (half_m + away * m_per_pt) for away in (4, 9, 14)])
        off_m = np.abs(numbers[:, :2] - tries_m[:, None]) - numbers[:, 2:] - half_m
        hits = (off_m < 0).all(axis=2).any(axis=1)
        covers = (np.abs(covered_m - tries_m[:, None]) < half_m + reach_m[:, None]).all(axis=2).sum(axis=1)
        if hits.all():
            continue
        x_m, y_m = tries_m[np.where(hits, covers.max() + 1, covers).argmin()]
        axes.text(x_m, y_m, str(device), fontsize=size_pt, ha="center", va="center", color="0.15", zorder=5)
        numbers = np.vstack([numbers, (x_m, y_m, *half_m)])


# --- seconds ------------------------------------------------------------------------------------------------


def _draw_devices(axes: Axes, priced: PricedRound) -> None:
    """Bars of learning alone: mining takes many times as long, and would leave nothing of them to be seen."""
    cost, devices = priced.price, priced.network.devices
    server = priced.decision.slot // priced.network.sub_channels
    order = np.lexsort((cost.offload_s + cost.edge_s, server, cost.path_s))
    places, colours = [priced.place_of(int(n)) for n in order], [_colour_of(priced, int(n)) for n in order]
    pale = [_pale(colour) for colour in colours]
    y, begin_s = np.arange(devices), np.zeros(devices)
    axes.barh(y, cost.path_s[order], color=_WAITING)
    parts: list[tuple[Array, Any]] = [
        (cost.offload_s, pale),
        (cost.edge_s, colours),
        (cost.local_s, colours),
        (cost.upload_s, _UPLOAD),
    ]
    for seconds, colour in parts:
        axes.barh(y, seconds[order], left=begin_s, color=colour)
        begin_s = begin_s + seconds[order]
    size_pt = float(np.clip(500 / devices, 5, 8))
    _cut(axes, cost.path_s[order], size_pt)
    names = [str(n) if at is None else f"{n} → {at[0]}.{at[1]}" for n, at in zip(order, places, strict=True)]
    axes.set_yticks(y, names if devices <= _MOST_NAMES else [""] * devices, fontsize=size_pt)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(devices, 8) - 0.4, -0.6)
    axes.set(xlabel="seconds", ylabel="device → edge server . sub-channel")
    axes.set_title("Learning: who waits for what (mining and consensus: see left)")
    _bare(axes)
    _explain_colours(axes)


def _explain_colours(axes: Axes) -> None:
    some = _COLOURS[:3]
    entries: dict[str, Any] = {
        "offload": tuple(Patch(color=_pale(colour)) for colour in some),
        "edge work": tuple(Patch(color=colour) for colour in some),
        "local work": Patch(color=_LOCAL),
        "upload": Patch(color=_UPLOAD),
        "waits for the others": Patch(color=_WAITING),
    }
    side_by_side = {tuple: HandlerTuple(ndivide=None, pad=0)}
    handles, labels = list(entries.values()), list(entries)
    axes.legend(handles, labels, handler_map=side_by_side, ncols=5, columnspacing=1.2, **_BELOW)


def _cut(axes: Axes, path_s: Array, size_pt: float) -> None:
    """Room for all but those that take many times what others do: their seconds are written on the bar."""
    end_s = min(1.04 * float(path_s.max()), _LONGEST * float(np.median(path_s)))
    axes.set_xlim(0, end_s)
    for y in np.flatnonzero(path_s > end_s):
        at: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": size_pt}
        axes.text(0.99 * end_s, float(y), f"{path_s[y]:.4g} s", **at)


def _draw_phases(axes: Axes, priced: PricedRound) -> None:
    cost = priced.price
    if priced.network.objective == "makespan":
        phases = {"slowest path": float(cost.learning_s)}
    else:
        by_phase = (cost.offload_s, cost.edge_s, cost.local_s, cost.upload_s)
        names = ("offload", "edge work", "local work", "upload")
        phases = {name: float(seconds.sum()) for name, seconds in zip(names, by_phase, strict=True)}
    phases |= {"consensus": float(cost.consensus_s), "mining": float(cost.mining_total_s)}
    seconds = np.array([*phases.values(), float(cost.total_s)])
    begin = np.r_[np.cumsum(seconds[:-1]) - seconds[:-1], 0.0]
    axes.barh([*phases, "total"], seconds, left=begin, color=[*["0.6"] * len(phases), "0.25"])
    for y, end in enumerate(begin + seconds):
        where: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{seconds[y]:.4g} s", (end, y), fontsize=9, **where)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds")
    axes.set_title("The objective, phase by phase", pad=16)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
