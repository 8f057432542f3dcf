"""A run's rounds: Flower's loop begins with the first, the one here where the run stands."""

import io
from collections.abc import Iterable
from contextlib import suppress
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flower_bfl.strategies._journal import EvaluateFunction, logger
from flower_bfl.strategies._replies import as_record
from flower_bfl.strategies._standing import Standing
from flower_bfl.types import RoundReport


def play(
    strategy: Strategy,
    standing: Standing | None,
    reports: Iterable[RoundReport],
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int,
    timeout: float,
    train_config: ConfigRecord | None,
    evaluate_config: ConfigRecord | None,
    evaluate_fn: EvaluateFunction | None,
) -> Result:
    """The rounds of a run by Flower's own loop, or those that are left of one that goes on.

    The result has the metrics of the rounds before as well, as far as `reports` do.
    """
    if standing is None:
        return Strategy.start(
            strategy, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
    done, arrays = standing.round, as_record(standing.model)
    logger.log(INFO, "Going on with round %d of %d", done + 1, num_rounds)
    strategy.summary()
    result = _reported(reports)
    result.arrays = arrays

    def evaluate(server_round: int) -> None:
        metrics = None if evaluate_fn is None else evaluate_fn(server_round, arrays)
        if metrics is not None:
            logger.log(INFO, "\t└──> Global evaluation: %s", metrics)
            result.evaluate_metrics_serverapp[server_round] = metrics

    evaluate(done)
    train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
    for server_round in range(done + 1, num_rounds + 1):
        logger.log(INFO, "")
        logger.log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
        asked = strategy.configure_train(server_round, arrays, train_config, grid)
        made, trained = strategy.aggregate_train(server_round, grid.send_and_receive(asked, timeout=timeout))
        if made is not None:
            result.arrays = arrays = made
        if trained is not None:
            logger.log(INFO, "\t└──> Aggregated MetricRecord: %s", trained)
            result.train_metrics_clientapp[server_round] = trained
        asked = strategy.configure_evaluate(server_round, arrays, evaluate_config, grid)
        answers = grid.send_and_receive(asked, timeout=timeout)
        if (evaluated := strategy.aggregate_evaluate(server_round, answers)) is not None:
            result.evaluate_metrics_clientapp[server_round] = evaluated
        evaluate(server_round)
    for line in io.StringIO(str(result)):
        logger.log(INFO, "\t%s", line.rstrip("\n"))
    return result


def _reported(reports: Iterable[RoundReport]) -> Result:
    """The metrics of rounds that are done."""
    result = Result()
    for report in reports:
        told = (
            (report.train, result.train_metrics_clientapp),
            (report.evaluate_devices, result.evaluate_metrics_clientapp),
            (report.evaluate, result.evaluate_metrics_serverapp),
        )
        for metrics, kept in told:
            with suppress(TypeError, ValueError):  # what somebody else wrote there is no metric
                if known := {name: value for name, value in metrics.items() if value is not None}:
                    kept[report.round] = MetricRecord(known)  # type: ignore[arg-type]
    return result
