"""What strategies with edge servers share: who takes part, which replies count, the round's report."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING
from time import monotonic, perf_counter, sleep
from types import SimpleNamespace
from typing import TypedDict, Unpack, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from numpy.typing import NDArray

from flower_bfl.attacks import Attack
from flower_bfl.attacks.data import told
from flower_bfl.chain_adapter.base import Entry, Role, Sender
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, FlowerBFLError
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._go_on import play
from flower_bfl.strategies._journal import EvaluateFunction, Journal, logger, warn
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._recorder import Phases
from flower_bfl.strategies._replies import (
    Asked,
    Contribution,
    MetricsAggregation,
    as_numpy,
    averaged,
    contribution,
    evaluation,
    screen,
)
from flower_bfl.strategies._roster import Association, Roster, Trained
from flower_bfl.strategies._signatures import Signatures
from flower_bfl.strategies._standing import Standing, check_arrays
from flower_bfl.strategies.aggregation import CumulativeGradient, NotFiniteError
from flower_bfl.types import LeftOut, RoundReport, Vector

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
    """FedAvg's sampling and messages, with devices that belong to edge servers. One object, one run.

    A subclass says in `_round` what becomes of a round's contributions.
    """

    def __init__(
        self,
        *,
        edge_servers: int,
        association: Association | None,
        journal: Journal,
        wait_for_nodes_s: float,
        require_signatures: bool = False,
        attacks: Iterable[Attack] = (),
        seed: int = 0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        super().__init__(**fedavg)
        for name, fraction in (
            ("fraction_train", self.fraction_train),
            ("fraction_evaluate", self.fraction_evaluate),
        ):
            if not 0 <= fraction <= 1:
                raise ConfigError(f"`{name}` must be in [0, 1], got {fraction}")
        if not wait_for_nodes_s > 0:
            raise ConfigError(f"`wait_for_nodes_s` must be positive, got {wait_for_nodes_s}")
        self.edge_servers = edge_servers
        self.wait_for_nodes_s = wait_for_nodes_s
        self.attacks = tuple(attacks)
        self._adversary = Adversary(self.attacks, seed)
        self._roster = Roster(edge_servers, association)
        self._journal = journal
        self._signatures = Signatures(journal.ledger, journal.keys, edge_servers, required=require_signatures)
        self._layout: Layout | None = None
        self._standing: Standing | None = None  # of the run that this one goes on with
        self._model: NamedArrays = {}  # w_k, as it was sent
        self._asked = self._asked_to_evaluate = Asked()
        self._sent_at = self._replied_at = self._recorded_at = 0.0

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
        """Flower's loop of rounds; returns when the last round's blocks are part of the chain.

        A run that goes on does so from its ledger's last model; of `initial_arrays`, names and shapes count.
        """
        if self._layout is not None:
            raise ConfigError("a strategy must run once, got a second `start`: make a new one for a new run")
        noting = None
        if evaluate_fn is not None:
            noting = self._journal.noting(partial(self._evaluate_centrally, evaluate_fn))
        try:
            self._expect(num_rounds)
            self._begin(initial_arrays)
            return play(
                self, self._standing, self.reports, grid, initial_arrays, num_rounds, timeout, train_config,
                evaluate_config, noting,
            )  # fmt: skip
        finally:
            self._journal.close()

    @property
    def reports(self) -> list[RoundReport]:
        """What each round did, cost and achieved, as far as its blocks are on the ledger."""
        return self._journal.reports

    def finish(self) -> None:
        """Wait until the last round's blocks are there, then report it; `start` does so by itself."""
        self._journal.finish()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's sample of nodes; raises ConfigError if too few connect in time."""
        self._begin(arrays)
        if self._standing is not None and server_round <= self._standing.round:
            raise ConfigError(
                f"`server_round` must be at least {self._standing.round + 1}, with which the run goes on, "
                f"got {server_round}"
            )
        self._model = {name: as_numpy(array) for name, array in arrays.items()}
        nodes = self._gather(server_round, config, grid)
        messages: list[Message] = []
        if nodes:
            own = {**self._signatures.request(self._learning_rate()), **told(self.attacks)}
            config = ConfigRecord({**config, **own})
            messages = list(super().configure_train(server_round, arrays, config, _these(nodes)))
            messages = self._address(server_round, messages, grid)
        self._asked = Asked(messages)
        self._sent_at = perf_counter()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The round over the replies that can be used; the others are left out and reported."""
        self._replied_at = perf_counter()
        self.finish()
        self._recorded_at = perf_counter()
        trained, left_out = self._receive(server_round, self._asked.replies(replies))
        while trained.senders:
            try:
                return self._round(server_round, trained, left_out)
            except NotFiniteError as error:
                reason = "its gradient, and the model made with it, must be finite, got NaN or infinity"
                for sender in (trained.senders[y] for y in sorted(error.positions)):
                    left_out += self._without(sender, reason)
                trained = trained.without(error.positions)
        if not self._anyone_trained() and left_out:
            raise FlowerBFLError(
                f"round {server_round}: none of {len(left_out)} devices sent a reply that can be used; "
                f"{left_out[0].who}: {left_out[0].reason}"
            )
        return self._skip(server_round, left_out)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's sample of nodes; no evaluation, and a warning, if too few are connected."""
        if self.fraction_evaluate == 0.0:
            return []
        needed = max(self.min_available_nodes, self.min_evaluate_nodes)
        nodes = self._await(lambda: self._devices(grid), needed)
        if len(nodes) < needed:
            logger.log(
                WARNING, "round %d: no evaluation, %d nodes of %d connected", server_round, len(nodes), needed
            )
            return []
        config = ConfigRecord(dict(config))
        messages = list(super().configure_evaluate(server_round, arrays, config, _these(nodes)))
        self._asked_to_evaluate = Asked(messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """FedAvg's weighted mean, over the replies that can be used; also part of the round's report."""
        read = partial(evaluation, weighted_by_key=self.weighted_by_key)
        replies = self._ordered(self._asked_to_evaluate.replies(replies))
        usable, left_out = screen(replies, read, self._roster.device)
        warn(server_round, left_out)
        if not usable:
            return None
        metrics = averaged(usable, self.weighted_by_key, self.evaluate_metrics_aggr_fn)
        self._journal.note(partial(replace, evaluate_devices=dict(metrics)))
        return metrics

    def summary(self) -> None:
        """Log the settings."""
        for name, value in self._settings().items():
            logger.log(INFO, "\t├──> %s: %s", name, value)
        super().summary()

    # -- what a subclass says -----------------------------------------------------------------------------

    @abstractmethod
    def _round(
        self, server_round: int, trained: Trained, left_out: Sequence[LeftOut]
    ) -> tuple[ArrayRecord | None, MetricRecord]:
        """From contributions to the new model; called again without those that a NotFiniteError names."""

    @abstractmethod
    def _skip(self, server_round: int, left_out: Sequence[LeftOut]) -> tuple[None, MetricRecord]:
        """A round without a usable reply."""

    def _expect(self, rounds: int) -> None:
        """Before a run of so many rounds."""

    def _restore(self, standing: Standing) -> None:
        """Go back to where a run stood."""
        check_arrays(self.layout, standing.model)
        self._signatures.go_on()

    def _settings(self) -> dict[str, object]:
        return {"Edge servers": self.edge_servers}

    def _opening(self) -> list[Entry]:
        """Entries to be recorded before the first round."""
        return []

    def _contract_rules(self) -> ContractRules:
        """What the ledger's contract checks."""
        return ContractRules()

    def _learning_rate(self) -> float:
        """η of the gradients that clients sign."""
        return 1.0

    def _evaluate_centrally(
        self, evaluate_fn: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        return evaluate_fn(server_round, arrays)

    def _gather(self, server_round: int, config: ConfigRecord, grid: Grid) -> list[int]:
        """The nodes to sample devices from; none: nobody trains this round."""
        wanted = {
            "min_available_nodes": self.min_available_nodes,
            "min_train_nodes": self.min_train_nodes,
            "edge_servers": self.edge_servers,
        }
        argument, needed = max(wanted.items(), key=lambda item: item[1])
        nodes = self._await(lambda: list(grid.get_node_ids()), needed)
        self._check_enough(argument, needed, nodes)
        return nodes

    def _devices(self, grid: Grid) -> list[int]:
        """The nodes that are there and may be asked to evaluate."""
        return list(grid.get_node_ids())

    def _address(self, server_round: int, messages: list[Message], grid: Grid) -> list[Message]:
        """The messages to the sampled devices, made ready to be sent."""
        return messages

    def _sent_to(self, node: int) -> NamedArrays:
        """The model that a node was sent this round."""
        return self._model

    def _without(self, sender: Sender, reason: str) -> list[LeftOut]:
        """What is lost with a contribution."""
        return [LeftOut(str(sender), reason)]

    # -- what a subclass uses -----------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of the model's arrays."""
        assert self._layout is not None, "aggregate_train comes after configure_train"
        return self._layout

    def _receive(self, server_round: int, replies: Iterable[Message]) -> tuple[Trained, list[LeftOut]]:
        """The replies that can be used, and the others."""
        self._adversary.open()
        replies = self._ordered(replies)
        usable, left_out = screen(replies, self._contribution, self._roster.device)
        silent = self._asked.nodes("train") - {reply.metadata.src_node_id for reply in replies}
        left_out += [
            LeftOut(self._roster.name(node), "no reply in time")
            for node in sorted(silent, key=self._roster.place)
        ]
        trained, impostors = self._roster.admit(usable)
        trained = self._adversary.poisoned(Role.DEVICE, server_round, trained, self._sent_to, self.layout)
        trained, unsigned = self._signatures.screen(server_round, trained, self._model, self._learning_rate())
        return trained, left_out + impostors + unsigned

    def _ordered(self, replies: Iterable[Message]) -> list[Message]:
        """By device, so that what is told of replies does not depend on which came first."""
        return sorted(replies, key=lambda reply: self._roster.place(reply.metadata.src_node_id))

    def _contribution(self, reply: Message) -> Contribution:
        """A reply to a training message; raises ReplyError if a round cannot use it."""
        return contribution(reply, self.layout, self.weighted_by_key)

    def _flat(self, model: NamedArrays) -> Vector:
        return self.layout.vector(model)[0 : self.layout.size]

    def _gradient(self, sent: Vector, reply: Contribution, learning_rate: float = 1.0) -> CumulativeGradient:
        """A device's cumulative gradient against the model that it was sent: (6)(7)."""
        return CumulativeGradient(sent, self.layout.vector(reply.arrays), learning_rate)

    def _named(self, weights: Vector, trained: Trained) -> NamedArrays:
        """The model of these weights, the rest from the largest contributor; may raise NotFiniteError."""
        model = self.layout.model(weights, trained.largest.arrays)
        if not all(np.isfinite(model[name]).all() for name in self.layout.trained):
            raise NotFiniteError(range(len(trained.senders)))
        return model

    def _metrics(self, trained: Trained, own: Mapping[str, float]) -> MetricRecord:
        """The devices' metrics averaged, and the round's own."""
        contents = [reply.content for reply in trained.replies]
        return MetricRecord({**averaged(contents, self.weighted_by_key, self.train_metrics_aggr_fn), **own})

    def _close_round(self, report: RoundReport, payload: bytes, phases: Phases) -> None:
        """Start recording; the report and model.safetensors follow when the blocks are there."""
        report = replace(
            report,
            train_seconds=self._replied_at - self._sent_at,
            wait_seconds=self._recorded_at - self._replied_at,
            aggregate_seconds=perf_counter() - self._recorded_at,
        )
        self._journal.write(report, payload, phases)

    # -- private ------------------------------------------------------------------------------------------

    def _begin(self, arrays: ArrayRecord) -> None:
        if self._layout is not None:
            return
        self._model = {name: as_numpy(array) for name, array in arrays.items()}
        self._layout = Layout.of(self._model)
        for names, what in (
            (self._layout.copied, "are not floating-point: the device with the most samples sets them"),
            (self._layout.rounded, "are rounded to float32 each round"),
        ):
            if names:
                logger.log(WARNING, "arrays %s %s", names, what)
        self._standing = self._journal.begin(self._contract_rules(), self._opening())
        if self._standing is not None:
            self._restore(self._standing)

    def _anyone_trained(self) -> bool:
        went_on = self._standing is not None and self._standing.round > 0
        return went_on or any(report.devices for report in self.reports)

    def _check_enough(self, argument: str, needed: int, nodes: Sequence[int]) -> None:
        if len(nodes) < needed:
            raise ConfigError(
                f"`{argument}` must be at most the number of nodes that connect "
                f"in {self.wait_for_nodes_s:g} s, got {needed} with {len(nodes)} connected"
            )

    def _await(self, there: Callable[[], list[int]], needed: int) -> list[int]:
        """The nodes that are there once they are enough, or time is up; Flower itself would wait for ever."""
        began = said = monotonic()
        while len(nodes := there()) < needed and monotonic() < began + self.wait_for_nodes_s:
            if monotonic() > said + 5:
                said = monotonic()
                left_s = began + self.wait_for_nodes_s - said
                logger.log(INFO, "waiting for nodes: %d of %d there, %.0f s left", len(nodes), needed, left_s)
            sleep(0.2)
        return nodes


def _these(nodes: Sequence[int]) -> Grid:
    """A grid for FedAvg to sample from that cannot lose a node meanwhile."""
    return cast(Grid, SimpleNamespace(get_node_ids=lambda: nodes))
