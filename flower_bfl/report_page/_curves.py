"""Which charts a run has, from the rounds of its `rounds.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from flower_bfl.report import ROUNDING, Round, series
from flower_bfl.report_page._charts import Chart, Format, Series

_LATENCY = ("offload", "edge", "local", "upload", "consensus", "mining")  # see `flower_bfl.network.Price`
_ENERGY = ("offload", "local", "upload")  # mining takes thousands of times as much
_LARGEST = 1e300  # that can be drawn
_ByRound = dict[int, float]


@dataclass(frozen=True)
class Curves:
    """A run's charts."""

    quality: tuple[Chart, ...]  # against rounds
    by_clock: tuple[Chart, ...]  # the same against simulated seconds
    costs: tuple[Chart, ...]
    phases: tuple[Chart, ...]  # latency and energy, as decided by a controller


def curves(rounds: Sequence[Round]) -> Curves:
    """The charts for which the rounds have numbers."""
    accuracy = _of(rounds, "evaluate", "accuracy")
    test, train = _of(rounds, "evaluate", "loss"), _of(rounds, "train", "train-loss")
    clock = _of(rounds, "simulated_seconds")
    quality = [
        _chart("Accuracy on the test set", {"accuracy": accuracy}, format="percent", from_zero=False),
        _chart("Loss", {"test set": test, "devices, while training": train}),
    ]
    at = clock | {0: 0.0} if clock else {}
    by_clock = [
        _against(at, "Accuracy on the test set", {"accuracy": accuracy}, format="percent", from_zero=False),
        _against(at, "Loss", {"test set": test, "devices, while training": train}),
    ]
    return Curves(_kept(quality), _kept(by_clock), _kept(_costs(rounds)), _kept(_phases(rounds)))


def _costs(rounds: Sequence[Round]) -> list[Chart | None]:
    error, bound = _of(rounds, "consensus_error"), _of(rounds, "consensus_bound")
    target = _of(rounds, "consensus_target")  # of as many steps as a round needs
    small = any(value <= ROUNDING for value in (*error.values(), *bound.values()))
    gas, transactions = _of(rounds, "gas"), _of(rounds, "transactions")
    wall = {"training": "train_seconds", "chain": "chain_seconds", "aggregation": "aggregate_seconds"}
    seconds = {name: _later(_positive(_of(rounds, key))) for name, key in wall.items()}
    return [
        _chart(
            "Consensus error and its bound",
            {"measured": _positive(error), "bound": _positive(bound), "target": _positive(target)},
            log=True,
            note="Gaps: exact, or below the rounding of floats." if small else "",
        ),
        _chart("Gas, cumulative", {"gas": _summed(gas)} if any(gas.values()) else {}, format="count"),
        _chart(
            "Transactions a round",
            {"transactions": transactions} if any(transactions.values()) else {},
            format="count",
            kind="bars",
        ),
        _chart("Wall seconds a round", seconds, log=True),
    ]


def _phases(rounds: Sequence[Round]) -> list[Chart | None]:
    latency = {name: _of(rounds, "latency_s", name) for name in _LATENCY}
    energy = {name: _of(rounds, "energy_j", name) for name in _ENERGY}
    mining = _of(rounds, "energy_j", "mining")
    return [
        _chart("Latency a round, seconds", _not_zero(latency), kind="bars"),
        _chart("Energy of learning a round, joules", _not_zero(energy), kind="bars"),
        _chart("Energy of mining a round, joules", _not_zero({"mining": mining}), kind="bars"),
    ]


# -- making them ---------------------------------------------------------------------------------------------


def _of(rounds: Sequence[Round], *keys: str) -> _ByRound:
    numbers, values = series(list(rounds), *keys)
    found = zip(numbers.tolist(), values.tolist(), strict=True)
    return {number: value for number, value in found if abs(value) <= _LARGEST}


def _chart(
    title: str,
    named: Mapping[str, _ByRound],
    *,
    note: str = "",
    format: Format = "number",
    kind: str = "lines",
    log: bool = False,
    from_zero: bool = True,
) -> Chart | None:
    """A chart over the rounds in which one of the series has a value; None if there is none."""
    given = {name: values for name, values in named.items() if values}
    numbers = sorted({number for values in given.values() for number in values})
    if not numbers:
        return None
    found = tuple(Series(name, tuple(map(values.get, numbers))) for name, values in given.items())
    xs = tuple(map(float, numbers))
    bars = kind == "bars"
    return Chart(title, "round", xs, found, note, format, "bars" if bars else "lines", log, from_zero)


def _against(
    at: _ByRound,
    title: str,
    named: Mapping[str, _ByRound],
    *,
    format: Format = "number",
    from_zero: bool = True,
) -> Chart | None:
    """The chart of the rounds whose time is known, over that time."""
    known = {name: {k: v for k, v in values.items() if k in at} for name, values in named.items()}
    by_round = _chart(title, known, format=format, from_zero=from_zero)
    if by_round is None or len(by_round.xs) < 2:
        return None
    order = sorted(range(len(by_round.xs)), key=lambda i: at[int(by_round.xs[i])])
    return Chart(
        title,
        "simulated seconds",
        tuple(at[int(by_round.xs[i])] for i in order),
        tuple(Series(each.name, tuple(each.values[i] for i in order)) for each in by_round.series),
        format=format,
        from_zero=from_zero,
    )


def _kept(charts: Sequence[Chart | None]) -> tuple[Chart, ...]:
    return tuple(chart for chart in charts if chart is not None)


def _positive(values: _ByRound) -> _ByRound:
    """What a logarithmic axis can show."""
    return {number: value for number, value in values.items() if value > ROUNDING}


def _later(values: _ByRound) -> _ByRound:
    """Without the state before the first round."""
    return {number: value for number, value in values.items() if number > 0}


def _summed(values: _ByRound) -> _ByRound:
    numbers = sorted(values)
    return dict(zip(numbers, accumulate(values[number] for number in numbers), strict=True))


def _not_zero(named: Mapping[str, _ByRound]) -> dict[str, _ByRound]:
    return {name: values for name, values in named.items() if any(values.values())}
