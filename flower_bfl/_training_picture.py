"""Learning curves of a controller: utility and learning latency over rounds, a line a seed and their mean."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flower_bfl.errors import TrainingError

_PANELS = (("utility", "utility (31)"), ("learning_s", "learning latency, s"))
_SMOOTH = 10  # updates
_SEED, _MEAN = "#56B4E9", "#0072B2"


def draw_curves(curves: dict[int, list[dict[str, float]]], folder: Path) -> None:
    """Write `curves.png`; curves: by seed, a row an update. Raises TrainingError if it cannot be written."""
    figure = Figure(figsize=(10, 4), layout="constrained", dpi=110)
    for axes, (name, label) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        _draw(axes, list(curves.values()), name)
        axes.set_xlabel("rounds played")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    figure.suptitle(f"{len(curves)} seeds" if len(curves) > 1 else "1 seed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "curves.png", dpi="figure")
    except OSError as error:
        raise TrainingError(f"the curves cannot be drawn in {folder} ({error})") from error


def _draw(axes: Axes, curves: list[list[dict[str, float]]], name: str) -> None:
    lines = []
    for curve in curves:
        rows = [(row["steps"], row[name]) for row in curve if name in row]
        if not rows:
            continue
        steps, values = np.array(rows).T
        lines.append((steps, _smooth(values)))
        axes.plot(steps, lines[-1][1], color=_SEED, linewidth=1, alpha=0.8, label="each seed")
    if len(lines) > 1:
        shortest = min(len(steps) for steps, _ in lines)
        mean = np.mean([values[:shortest] for _, values in lines], axis=0)
        axes.plot(lines[0][0][:shortest], mean, color=_MEAN, linewidth=2, label="mean")
    handles, labels = axes.get_legend_handles_labels()
    if len(lines) > 1:
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys(), frameon=False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means over the last few updates."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    first = np.maximum(np.arange(1, len(values) + 1) - _SMOOTH, 0)
    return np.asarray((total[1:] - total[first]) / (np.arange(1, len(values) + 1) - first))
