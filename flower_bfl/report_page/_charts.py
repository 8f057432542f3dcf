"""Curves and stacked bars as numbers and as geometry: what an SVG needs, in units of a box of 360 by 220."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 12.0, 186.0  # of the plot in the box

_MOST_MARKERS = 40  # points of a line that get a dot each
_MOST_DECADES = 4  # that are labelled on a logarithmic axis
_SMALLEST = 1e-290  # difference that floats can still be scaled with
_BAR = 0.82  # of the room that a bar has

Format = Literal["percent", "number", "count"]


@dataclass(frozen=True)
class Series:
    """Values over the x of their chart; None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    x_name: str
    xs: tuple[float, ...]  # ascending
    series: tuple[Series, ...]
    note: str = ""
    format: Format = "number"
    kind: Literal["lines", "bars"] = "lines"  # bars are stacked
    log: bool = False
    from_zero: bool = True


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One part of a stack."""

    series: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Row:
    """What the chart says at one x: for its table, and for the read-out."""

    at: float  # in the box
    x: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """A chart as geometry."""

    chart: Chart
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    paths: tuple[str, ...]  # of each series of a line chart
    dots: tuple[tuple[int, float, float], ...]  # series, x, y
    bars: tuple[Bar, ...]
    rows: tuple[Row, ...]


def drawn(chart: Chart) -> Drawing:
    """The geometry of a chart that has at least one value, none of them beyond ±1e300."""
    bars = chart.kind == "bars"
    across = _scale(chart.xs, bars)
    values = _stacked(chart) if bars else [series.values for series in chart.series]
    shown = [value for each in values for value in each if value is not None]
    low, high, ticks = _log_axis(shown) if chart.log else _axis(shown, chart.from_zero or bars)
    up = _upwards(low, high, chart.log)
    label = written(chart.format)
    xs = [across(x) for x in chart.xs]
    points = [[None if v is None else (x, up(v)) for x, v in zip(xs, each, strict=True)] for each in values]
    return Drawing(
        chart=chart,
        x_ticks=tuple(Tick(across(x), _short(x)) for x in _x_ticks(chart.xs)),
        y_ticks=tuple(Tick(up(value), _power(value) if chart.log else label(value)) for value in ticks),
        paths=() if bars else tuple(map(_path, points)),
        dots=() if bars or len(xs) > _MOST_MARKERS else tuple(_dots(points)),
        bars=tuple(_bars(chart, xs, points, up(0.0))) if bars else (),
        rows=tuple(
            Row(
                round(xs[i], 1),
                _short(x),
                tuple("" if s.values[i] is None else exact(chart.format, s.values[i]) for s in chart.series),
            )
            for i, x in enumerate(chart.xs)
        ),
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about so many: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span < _SMALLEST:
        return [low]
    size = 10 ** math.floor(math.log10(span / count))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def written(format: Format) -> Callable[[float], str]:
    """How numbers are written on an axis."""
    return (lambda value: f"{value * 100:.4g} %") if format == "percent" else _short


def exact(format: Format, value: float | None) -> str:
    """How a number is written in a table."""
    if value is None:
        return ""
    if format == "percent":
        return f"{value * 100:.2f} %"
    return f"{value:,.0f}" if format == "count" else f"{value:.4g}"


# -- axes ----------------------------------------------------------------------------------------------------


def _axis(values: Sequence[float], from_zero: bool) -> tuple[float, float, list[float]]:
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _SMALLEST:
        low, high = (0.0, 1.0) if abs(low) < _SMALLEST else (low - abs(low) / 2, high + abs(high) / 2)
    high += 0.04 * (high - low)
    return low, high, ticks(low, high)


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Whole decades; `values` are positive."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last = max(last, first + 1)
    every = math.ceil((last - first) / _MOST_DECADES)
    return 10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1, every)]


def _upwards(low: float, high: float, log: bool) -> Callable[[float], float]:
    def place(value: float) -> float:
        share = math.log10(value / low) / math.log10(high / low) if log else (value - low) / (high - low)
        return BOTTOM - share * (BOTTOM - TOP)

    return place


def _scale(xs: Sequence[float], bars: bool) -> Callable[[float], float]:
    low, high = xs[0], xs[-1]
    room = (RIGHT - LEFT) / (2 * len(xs)) if bars else 6.0  # beside the first and the last
    span = high - low

    def place(x: float) -> float:
        share = (x - low) / span if span else 0.5
        return LEFT + room + share * (RIGHT - LEFT - 2 * room)

    return place


def _x_ticks(xs: Sequence[float]) -> list[float]:
    whole = all(float(x).is_integer() for x in xs)
    found = ticks(xs[0], xs[-1], 6)
    return [x for x in found if not whole or float(x).is_integer()]


def _short(value: float) -> str:
    """At most four digits and a letter: 1.5M."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.4g}{letter}"
    return f"{value:.4g}"


def _power(value: float) -> str:
    power = round(math.log10(value))
    return f"{value:g}" if -3 <= power <= 3 else f"1e{power}"


# -- marks ---------------------------------------------------------------------------------------------------

_Points = Sequence[tuple[float, float] | None]


def _path(points: _Points) -> str:
    """The d of an SVG path, with a gap where there is no value."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:.1f},{point[1]:.1f}")
        pen = "L"
    return "".join(parts)


def _dots(points: Sequence[_Points]) -> list[tuple[int, float, float]]:
    return [
        (series, round(point[0], 1), round(point[1], 1))
        for series, each in enumerate(points)
        for point in each
        if point is not None
    ]


def _stacked(chart: Chart) -> list[tuple[float | None, ...]]:
    """The top of each part: the sum of it and those below."""
    tops: list[tuple[float | None, ...]] = []
    below = (0.0,) * len(chart.xs)
    for series in chart.series:
        below = tuple(low + (value or 0.0) for low, value in zip(below, series.values, strict=True))
        tops.append(below)
    return tops


def _bars(chart: Chart, xs: Sequence[float], tops: Sequence[_Points], ground: float) -> list[Bar]:
    room = min((b - a for a, b in pairwise(xs)), default=RIGHT - LEFT)
    width = min(_BAR * room, 40.0)
    found = []
    for i, x in enumerate(xs):
        below = ground
        for series, each in enumerate(tops):
            point = each[i]
            assert point is not None  # a sum always is one
            if below - point[1] > 0:
                found.append(
                    Bar(
                        series,
                        round(x - width / 2, 2),
                        round(point[1], 2),
                        round(width, 2),
                        round(below - point[1], 2),
                    )
                )
            below = point[1]
    return found
