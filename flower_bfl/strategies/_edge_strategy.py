"""What strategies with edge servers share: who takes part, which replies count, the round's report."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING, getLogger
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TypedDict, Unpack

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry, Ledger, digest, simulated_keys
from flower_bfl.errors import ConfigError
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._recorder import Phases, Recorder
from flower_bfl.strategies._replies import (
    Contribution,
    MetricsAggregation,
    as_numpy,
    averaged,
    contribution,
    evaluation,
    screen,
)
from flower_bfl.strategies._roster import Association, Roster, Trained
from flower_bfl.strategies._run_folder import RunFolder
from flower_bfl.strategies.aggregation import CumulativeGradient, Vector
from flower_bfl.types import LeftOut, RoundReport

logger = getLogger("flwr")  # Flower shows this logger's lines among its own, also in `flwr run --stream`

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]
NamedArrays = dict[str, NDArray[np.generic]]


class FedAvgArguments(TypedDict, total=False):
    """Constructor arguments of Flower's FedAvg; they mean here what they mean there."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsAggregation | None
    evaluate_metrics_aggr_fn: MetricsAggregation | None


class EdgeStrategy(FedAvg):
    """FedAvg's sampling and messages, with devices that belong to edge servers.

    A subclass says in `aggregate_train` what becomes of a round's contributions.
    """

    def __init__(
        self,
        *,
        edge_servers: int,
        association: Association | None,
        ledger: Ledger | None,
        seed: int,
        run_folder: Path | str | None,
        wait_for_nodes_s: float,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        super().__init__(**fedavg)
        if not wait_for_nodes_s > 0:
            raise ConfigError(f"`wait_for_nodes_s` must be positive, got {wait_for_nodes_s}")
        self.edge_servers = edge_servers
        self.seed = seed
        self.wait_for_nodes_s = wait_for_nodes_s
        self.reports: list[RoundReport] = []
        self._roster = Roster(edge_servers, association)
        self._recorder = Recorder(ledger)
        self._run_folder = None if run_folder is None else RunFolder(run_folder)
        self._draft: RoundReport | None = None  # the round whose blocks or evaluation are still to come
        self._layout: Layout | None = None
        self._model: NamedArrays = {}
        self._sent_at = self._replied_at = 0.0

    # -- Flower's side ------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
    ) -> Result:
        """Flower's loop of rounds; returns when the last round's blocks are part of the chain."""
        self._begin(initial_arrays)
        noting = None if evaluate_fn is None else self._noting(evaluate_fn)
        try:
            return super().start(
                grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, noting
            )
        finally:
            self._finish_round()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's sample of nodes; raises ConfigError if too few connect in time."""
        self._begin(arrays)
        self._await_nodes(grid)
        self._sent_at = perf_counter()
        return super().configure_train(server_round, arrays, ConfigRecord(dict(config)), grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does."""
        return super().configure_evaluate(server_round, arrays, ConfigRecord(dict(config)), grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """FedAvg's weighted mean, over the replies that can be used; also part of the round's report."""
        usable, left_out = screen(replies, partial(evaluation, weighted_by_key=self.weighted_by_key))
        _warn(server_round, left_out)
        if not usable:
            return None
        metrics = averaged(usable, self.weighted_by_key, self.evaluate_metrics_aggr_fn)
        if self._draft is not None:
            self._draft = replace(self._draft, evaluate_devices=dict(metrics))
        return metrics

    def summary(self) -> None:
        """Log the settings."""
        for name, value in self._settings().items():
            logger.log(INFO, "\t├──> %s: %s", name, value)
        super().summary()

    # -- what a subclass uses -----------------------------------------------------------------------------

    def _settings(self) -> dict[str, object]:
        return {"Edge servers": self.edge_servers}

    def _evaluate_centrally(
        self, evaluate_fn: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        return evaluate_fn(server_round, arrays)

    def _opening(self) -> list[Entry]:
        """Entries to be recorded before the first round."""
        return []

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of the model's arrays."""
        assert self._layout is not None, "aggregate_train comes after configure_train"
        return self._layout

    def _receive(self, replies: Iterable[Message]) -> tuple[Trained, list[LeftOut]]:
        """The replies that can be used, and the others, once the round before is on the ledger."""
        self._replied_at = perf_counter()
        self._finish_round()
        read = partial(contribution, layout=self.layout, weighted_by_key=self.weighted_by_key)
        usable, left_out = screen(replies, read)
        trained, impostors = self._roster.admit(usable)
        return trained, left_out + impostors

    def _flat(self, model: NamedArrays) -> Vector:
        return self.layout.vector(model)[0 : self.layout.size]

    def _gradient(self, sent: Vector, reply: Contribution, learning_rate: float = 1.0) -> CumulativeGradient:
        """A device's cumulative gradient against the model that it was sent: (6)(7)."""
        return CumulativeGradient(sent, self.layout.vector(reply.arrays), learning_rate)

    def _metrics(self, trained: Trained, own: Mapping[str, float]) -> MetricRecord:
        """The devices' metrics averaged, and the round's own."""
        contents = [reply.content for reply in trained.replies]
        mean = averaged(contents, self.weighted_by_key, self.train_metrics_aggr_fn) if contents else {}
        return MetricRecord({**mean, **own})

    def _close_round(self, report: RoundReport, model: NamedArrays, payload: bytes, phases: Phases) -> None:
        """Adopt the round's model and start recording; the report follows when its blocks are there."""
        _warn(report.round, report.left_out)
        self._model = model
        self._draft = replace(
            report,
            model_digest=digest(payload).hex(),
            train_seconds=self._replied_at - self._sent_at,
            aggregate_seconds=perf_counter() - self._replied_at,
        )
        self._recorder.submit(phases)
        if self._run_folder is not None:
            self._run_folder.save_model(payload)

    def _finish_round(self) -> None:
        """Wait until the last round's blocks are there, then report it."""
        draft, self._draft = self._draft, None
        if draft is None:
            return
        cost = self._recorder.wait()
        report = replace(draft, ledger=cost, head=self._recorder.head.hex())
        self.reports.append(report)
        if self._run_folder is not None:
            self._run_folder.append(report)
        logger.log(INFO, "%s", report.as_line())

    # -- private ------------------------------------------------------------------------------------------

    def _begin(self, arrays: ArrayRecord) -> None:
        if self._layout is not None:
            return
        self._model = {name: as_numpy(array) for name, array in arrays.items()}
        self._layout = Layout.of(self._model)
        if self._layout.copied:
            logger.log(
                WARNING,
                "arrays %s are not floating-point, gradients cannot move them: the device with the most "
                "samples sets them",
                self._layout.copied,
            )
        self._recorder.open(simulated_keys(self.seed))
        self._recorder.submit([self._opening()])
        self._draft = RoundReport(round=0)

    def _noting(self, evaluate_fn: EvaluateFunction) -> EvaluateFunction:
        def noting(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = self._evaluate_centrally(evaluate_fn, server_round, arrays)
            if metrics is not None and self._draft is not None:
                self._draft = replace(self._draft, evaluate=dict(metrics))
            return metrics

        return noting

    def _await_nodes(self, grid: Grid) -> None:
        """Flower waits for ever; a number that never connects is a mistake worth a message."""
        needed = max(self.min_available_nodes, self.min_train_nodes, self.edge_servers)
        deadline = monotonic() + self.wait_for_nodes_s
        while (connected := len(list(grid.get_node_ids()))) < needed:
            if monotonic() > deadline:
                raise ConfigError(
                    "`min_available_nodes`, `min_train_nodes` and `edge_servers` must be at most the number "
                    f"of nodes that connect in {self.wait_for_nodes_s:g} s, got {self.min_available_nodes}, "
                    f"{self.min_train_nodes} and {self.edge_servers} with {connected} connected"
                )
            sleep(0.2)


def _warn(server_round: int, left_out: Iterable[LeftOut]) -> None:
    for reply in left_out:
        logger.log(WARNING, "round %d: %s left out: %s", server_round, reply.who, reply.reason)


def as_record(model: NamedArrays) -> ArrayRecord:
    """A model as Flower sends it."""
    return ArrayRecord({name: Array(array) for name, array in model.items()})
