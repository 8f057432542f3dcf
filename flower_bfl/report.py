"""What a run did, from the `rounds.jsonl` in its folder: a summary as text and curves as a picture.

Each line of `rounds.jsonl` is a JSON object, one a round, of which this module reads "round", "evaluate"
(central "accuracy" and "loss"), "train" (the devices' mean "train-loss"), "consensus_error",
"consensus_bound", "transactions", "gas", "chain_seconds", "train_seconds", "leader", "miner" and "left_out";
of a run with a controller also "simulated_seconds", "latency_s", "server_data", "kept_local" and "fallback",
of one with a defence "accused", "suspected", "true_positives", "false_positives" and "missed".
Any of them may be missing: a run without a ledger has no gas. What is of another kind is passed over.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import RunFolderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Round = dict[str, Any]
_Series = tuple[NDArray[np.int64], NDArray[np.float64]]  # rounds, values

_ROUNDS_FILE = "rounds.jsonl"
_CURVES_FILE = "curves.png"

_PANELS_A_ROW = 3
_LONGEST = 80  # characters of a name

# A bound of exact consensus (λ = 0) is some 1e-80; what is measured never gets below the rounding of floats.
ROUNDING = 1e-16

_LARGEST = 1e100  # of what is drawn and summed up: a picture has no room for more

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"

_PHASES = {  # of a round, with a colour each, see `flower_bfl.network.Price`
    "offload": "#56B4E9",
    "edge": _BLUE,
    "local": _ORANGE,
    "upload": "#F0E442",
    "consensus": _GREEN,
    "mining": "0.6",
}


def read_rounds(folder: Path) -> list[Round]:
    """Read the rounds of a run; a last line that was cut off, as by a crash, is left out.

    Raises:
        RunFolderError: no `rounds.jsonl` in the folder, or a line other than the last is not a JSON object.
    """
    path = Path(folder) / _ROUNDS_FILE
    try:
        if path.exists() and not (path.is_file() and path.resolve().is_relative_to(path.parent.resolve())):
            raise OSError("not a file in it")  # but a device, a pipe, or a link to somewhere else
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"`folder` must hold a readable {_ROUNDS_FILE}, got {folder} ({error})"
        ) from error
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            one = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunFolderError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(one, dict):
            raise RunFolderError(f"line {number} of {path} must be a JSON object, got {type(one).__name__}")
        rounds.append(one)
    return rounds


def summary(folder: Path) -> str:
    """The run in ten lines of text: accuracy, loss, consensus error, ledger, chain time beside training time.

    Raises:
        RunFolderError: as `read_rounds`, or there is no finished round.
    """
    rounds = finished_rounds(folder)
    rows = [("rounds", str(max(round_numbers(rounds))))]
    rows += _quality_rows(rounds)
    trained = sum(number > 0 for number in round_numbers(rounds))
    rows += _ledger_rows(rounds, trained)
    rows += _time_rows(rounds)
    rows += _controller_rows(rounds)
    leaders = Counter(_text(one["leader"]) for one in rounds if one.get("leader") is not None)
    if leaders:
        rows.append(("leaders", ", ".join(f"{leader}: {count}" for leader, count in sorted(leaders.items()))))
    miners = Counter(_text(one["miner"]) for one in rounds if one.get("miner"))
    if miners:
        rows.append(("miners", ", ".join(f"{miner}: {count}" for miner, count in miners.most_common())))
    rows += _attack_rows(rounds)
    left_out = [len(_list(one, "left_out")) for one in rounds if _list(one, "left_out")]
    if left_out:
        rows.append(("left out", f"{sum(left_out)}, in {len(left_out)} of {trained} rounds"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def draw_curves(folder: Path) -> Path:
    """Draw accuracy, loss, consensus error, seconds and gas against rounds, as far as the run has them.

    With a controller also accuracy against simulated seconds, and the latency of each round by phase.

    Returns:
        The picture, `curves.png` in the folder.

    Raises:
        RunFolderError: as `read_rounds`, or no round has anything to draw, or the picture cannot be written.
        ModuleNotFoundError: matplotlib is not installed (`pip install 'flower-bfl[plots]'`).
    """
    # Figure rather than pyplot: nothing global, no window, and it draws with Agg.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rounds = finished_rounds(folder)
    panels = _panels(rounds)
    if not panels:
        raise RunFolderError(f"no round in {Path(folder) / _ROUNDS_FILE} has a number to draw")
    rows = _rows(panels)
    first, last = min(round_numbers(rounds)), max(round_numbers(rounds))
    figure = Figure(figsize=(10.5, 3.1 * len(rows)), layout="constrained")
    cells = math.lcm(*(len(row) for row in rows))
    grid = figure.add_gridspec(len(rows), cells)
    for i, row in enumerate(rows):
        width = cells // len(row)
        for j, draw in enumerate(row):
            axes = figure.add_subplot(grid[i, j * width : (j + 1) * width])
            draw(axes)
            if not axes.get_xlabel():
                axes.set_xlabel("round")
                axes.set_xlim(first - 0.7, last + 0.7)
                axes.xaxis.set_major_locator(
                    MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
                )
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="0.9", linewidth=0.8)
            axes.set_axisbelow(True)
    path = Path(folder) / _CURVES_FILE
    try:
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise RunFolderError(f"cannot write {path} ({error})") from error
    return path


# --- reading ------------------------------------------------------------------------------------------------


def finished_rounds(folder: Path) -> list[Round]:
    """The rounds of a run, at least one.

    Raises:
        RunFolderError: as `read_rounds`, or there is no finished round.
    """
    rounds = read_rounds(folder)
    if not rounds:
        raise RunFolderError(f"{Path(folder) / _ROUNDS_FILE} holds no finished round")
    return rounds


def round_numbers(rounds: list[Round]) -> list[int]:
    """The rounds' own numbers; 0 is the state before the first round."""
    return [
        number if type(number := one.get("round")) is int and 0 <= number < 2**31 else position
        for position, one in enumerate(rounds, start=1)
    ]


def series(rounds: list[Round], *keys: str) -> _Series:
    """The rounds that have a finite number under the keys, and the numbers."""
    found = []
    for number, one in zip(round_numbers(rounds), rounds, strict=True):
        value: Any = one
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and -_LARGEST <= value <= _LARGEST:  # also no NaN
            found.append((number, float(value)))
    return (
        np.array([number for number, _ in found], dtype=np.int64),
        np.array([value for _, value in found], dtype=np.float64),
    )


def _list(one: Round, key: str) -> list[Any]:
    value = one.get(key)
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    """A name as it can be printed."""
    text = str(value)[:_LONGEST] if isinstance(value, str | int) else type(value).__name__
    return text if text.isprintable() else ascii(text)


# --- the summary's rows -------------------------------------------------------------------------------------


def _quality_rows(rounds: list[Round]) -> list[tuple[str, str]]:
    rows = []
    numbers, accuracy = series(rounds, "evaluate", "accuracy")
    if accuracy.size:
        best = int(accuracy.argmax())
        rows.append(("accuracy", f"{accuracy[-1]:.2%} (best {accuracy[best]:.2%}, round {numbers[best]})"))
    numbers, loss = series(rounds, "evaluate", "loss")
    if loss.size:
        best = int(loss.argmin())
        rows.append(("loss", f"{loss[-1]:.4f} (best {loss[best]:.4f}, round {numbers[best]})"))
    _, error = series(rounds, "consensus_error")
    if error.size:
        _, bound = series(rounds, "consensus_bound")
        of_bound = f", bound {_or_rounding(bound[-1])}" if bound.size else ""
        rows.append(("consensus error", f"{error[-1]:.3g}{of_bound} (worst {error.max():.3g})"))
    return rows


def _or_rounding(bound: float) -> str:
    return f"{bound:.3g}" if bound > ROUNDING else "below rounding"


def _ledger_rows(rounds: list[Round], trained: int) -> list[tuple[str, str]]:
    rows = []
    for name in ("transactions", "gas"):
        _, values = series(rounds, name)
        if values.any():
            rows.append((name, f"{values.sum():,.0f} ({values.sum() / max(1, trained):,.0f} a round)"))
    return rows


def _time_rows(rounds: list[Round]) -> list[tuple[str, str]]:
    """Total and median: the first round, in which the clients' processes start, would rule a mean."""
    later = [one for number, one in zip(round_numbers(rounds), rounds, strict=True) if number > 0]
    rows = []
    for name, key in (("training time", "train_seconds"), ("chain time", "chain_seconds")):
        _, values = series(rounds, key)
        _, of_rounds = series(later, key)
        if of_rounds.any():
            rows.append((name, f"{values.sum():.2f} s (median {np.median(of_rounds):.3f} s a round)"))
    return rows


def _controller_rows(rounds: list[Round]) -> list[tuple[str, str]]:
    _, clock = series(rounds, "simulated_seconds")
    if not clock.size:
        return []
    rows = [("simulated time", f"{clock[-1]:,.1f} s ({clock[-1] / max(1, clock.size):,.2f} s a round)")]
    offloaded = sum(
        len(each) for one in rounds for each in _list(one, "server_data") if isinstance(each, list)
    )
    _, everybody = series(rounds, "devices")
    rows.append(("offloaded", f"{offloaded:,} of {everybody.sum():,.0f} data sets"))
    kept = [len(_list(one, "kept_local")) for one in rounds if _list(one, "kept_local")]
    if kept:
        rows.append(("kept local", f"{sum(kept)} that were to be offloaded, in {len(kept)} rounds"))
    if fallbacks := sum(bool(one.get("fallback")) for one in rounds):
        rows.append(("fallback", f"in {fallbacks} rounds, for want of a feasible decision of the controller"))
    return rows


def _attack_rows(rounds: list[Round]) -> list[tuple[str, str]]:
    """Who was voted out or suspected, and how that compares with the truth where it is known."""
    rows = []
    out: dict[str, list[str]] = {}
    suspected: Counter[str] = Counter()
    for number, one in zip(round_numbers(rounds), rounds, strict=True):
        for accused in _list(one, "accused"):
            if isinstance(accused, dict) and accused.get("voted_out"):
                out.setdefault(_text(accused.get("server")), []).append(str(number))
        suspected.update(_text(each.get("who")) for each in _list(one, "suspected") if isinstance(each, dict))
    if out:
        told = (f"{server} in round {', '.join(when)}" for server, when in sorted(out.items()))
        rows.append(("voted out", f"edge server {'; '.join(told)}"))
    if suspected:
        told = (f"{who}: {count}" for who, count in suspected.most_common())
        rows.append(("suspected", ", ".join(told)))
    counts = [series(rounds, key)[1] for key in ("true_positives", "missed", "false_positives")]
    if any(count.any() for count in counts):
        sums = (count.sum() for count in counts)
        rows.append(("detection", "{:.0f} found, {:.0f} missed, {:.0f} falsely accused".format(*sums)))
    return rows


# --- the picture's panels -----------------------------------------------------------------------------------


def _panels(rounds: list[Round]) -> list[Callable[["Axes"], None]]:
    """A drawing function for every panel that has data."""
    accuracy = series(rounds, "evaluate", "accuracy")
    losses = series(rounds, "evaluate", "loss"), series(rounds, "train", "train-loss")
    consensus = _above(ROUNDING, rounds, "consensus_error"), _above(ROUNDING, rounds, "consensus_bound")
    later = [one for number, one in zip(round_numbers(rounds), rounds, strict=True) if number > 0]
    seconds = _above(0.0, later, "train_seconds"), _above(0.0, later, "chain_seconds")
    gas = series(rounds, "gas")
    clock = series(rounds, "simulated_seconds")
    phases = {name: series(rounds, "latency_s", name) for name in _PHASES}
    panels: list[tuple[bool, Callable[[Axes], None]]] = [
        (_any(accuracy), lambda axes: _draw_accuracy(axes, accuracy, _attacked(rounds))),
        (_any(*losses), lambda axes: _draw_loss(axes, *losses)),
        (_any(*consensus), lambda axes: _draw_consensus(axes, *consensus)),
        (_any(*seconds), lambda axes: _draw_seconds(axes, *seconds)),
        (bool(gas[1].any()), lambda axes: _draw_gas(axes, gas)),
        (_any(accuracy) and _any(clock), lambda axes: _draw_by_clock(axes, accuracy, clock)),
        (any(_any(phase) for phase in phases.values()), lambda axes: _draw_latency(axes, phases)),
    ]
    return [draw for has_data, draw in panels if has_data]


def _rows(panels: list[Callable[["Axes"], None]]) -> list[list[Callable[["Axes"], None]]]:
    """Spread the panels over as few rows as possible, the fuller rows first: 5 are 3 and 2, 4 are 2 and 2."""
    count = math.ceil(len(panels) / _PANELS_A_ROW)
    cuts = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(len(panels)), count))])
    return [panels[a:b] for a, b in pairwise(cuts)]


def _any(*series: _Series) -> bool:
    return any(values.size > 0 for _, values in series)


def _above(least: float, rounds: list[Round], key: str) -> _Series:
    """What a logarithmic axis can show, with gaps for the rest; nothing if that is all."""
    numbers, values = series(rounds, key)
    shown = values > least
    return (numbers, np.where(shown, values, np.nan)) if shown.any() else (numbers[:0], values[:0])


def _line(axes: "Axes", series: _Series, colour: str, label: str | None = None, style: str = "-") -> None:
    numbers, values = series
    if values.size:
        marker = "o" if values.size <= 40 else None
        axes.plot(
            numbers, values, style, color=colour, label=label, marker=marker, markersize=3, linewidth=1.6
        )


def _from_zero(axes: "Axes", *series: _Series) -> None:
    highest = max(float(values.max(initial=0.0)) for _, values in series)
    axes.set_ylim(0.0, 1.08 * highest or 1.0)


def _attacked(rounds: list[Round]) -> list[int]:
    """Rounds in which an edge server was accused."""
    return [number for number, one in zip(round_numbers(rounds), rounds, strict=True) if one.get("accused")]


def _draw_accuracy(axes: "Axes", accuracy: _Series, accused: list[int]) -> None:
    from matplotlib.ticker import PercentFormatter

    _line(axes, accuracy, _BLUE)
    for place, number in enumerate(accused):
        label = None if place else "edge server accused"
        axes.axvline(number, color=_PURPLE, linestyle=":", linewidth=1.2, label=label)
    if accused:
        axes.legend(frameon=False)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_title("Accuracy on the test set")


def _draw_loss(axes: "Axes", test: _Series, train: _Series) -> None:
    _line(axes, test, _BLUE, "test set")
    _line(axes, train, _ORANGE, "devices, while training")
    _from_zero(axes, test, train)
    axes.set_title("Loss (cross-entropy)")
    axes.legend(frameon=False)


def _draw_consensus(axes: "Axes", error: _Series, bound: _Series) -> None:
    _line(axes, error, _BLUE, "measured")
    _line(axes, bound, "0.45", "bound", "--")
    axes.set_yscale("log")
    axes.set_title("Consensus error")
    axes.legend(frameon=False)


def _draw_seconds(axes: "Axes", train: _Series, chain: _Series) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    _line(axes, train, _GREEN, "training")
    _line(axes, chain, _PURPLE, "chain")
    # Logarithmic: the first round, in which the clients' processes start, takes tens of times the others.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Seconds a round")
    axes.legend(frameon=False)


def _draw_gas(axes: "Axes", gas: _Series) -> None:
    from matplotlib.ticker import EngFormatter

    numbers, values = gas
    cumulative = numbers, np.cumsum(values)
    _line(axes, cumulative, _PURPLE)
    _from_zero(axes, cumulative)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title("Gas, cumulative")


def _draw_by_clock(axes: "Axes", accuracy: _Series, clock: _Series) -> None:
    from matplotlib.ticker import PercentFormatter

    at = dict(zip(*(part.tolist() for part in clock), strict=True)) | {0: 0.0}
    known = np.array([number in at for number in accuracy[0]])
    seconds = np.array([at[number] for number in accuracy[0][known]])
    axes.plot(
        seconds, accuracy[1][known], color=_BLUE, marker="o" if known.sum() <= 40 else None, markersize=3
    )
    axes.set_xlabel("simulated seconds")
    axes.set_xlim(left=0.0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_title("Accuracy against simulated time")


def _draw_latency(axes: "Axes", phases: dict[str, _Series]) -> None:
    bottom = np.zeros(0)
    for name, (numbers, values) in phases.items():
        if not values.any():
            continue
        bottom = np.zeros(values.size) if bottom.size != values.size else bottom
        axes.bar(numbers, values, 0.8, bottom, color=_PHASES[name], label=name)
        bottom = bottom + values
    axes.set_title("Decided latency a round, seconds")
    axes.legend(frameon=False, reverse=True, loc="upper left", bbox_to_anchor=(1.0, 1.0))
