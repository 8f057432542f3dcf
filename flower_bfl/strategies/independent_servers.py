"""The paper's "traditional FL": edge servers that never talk to each other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flower_bfl.chain_adapter.base import encode
from flower_bfl.config import Consensus
from flower_bfl.strategies._edge_strategy import (
    EdgeStrategy,
    EvaluateFunction,
    FedAvgArguments,
    NamedArrays,
    as_record,
)
from flower_bfl.strategies._roster import Association, Trained
from flower_bfl.strategies.aggregation import (
    PartialAggregates,
    boost,
    contribution_weights,
    updated_model,
    whole,
)
from flower_bfl.types import RoundReport


class IndependentServers(EdgeStrategy):
    """Every edge server keeps its own model for its own devices, aggregated as in `ConsensusBFL`.

    Metrics of a central evaluation are means over the servers' models. The arrays that a round returns, and
    model.safetensors, are the model of the server whose devices hold the most samples; `models` has all.

    Parameters are those of `ConsensusBFL`, as far as they concern edge servers without links and a ledger.
    """

    def __init__(
        self,
        *,
        edge_servers: int = 3,
        association: Association | None = None,
        seed: int = 0,
        run_folder: Path | str | None = None,
        wait_for_nodes_s: float = 300.0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        Consensus(edge_servers)
        super().__init__(
            edge_servers=edge_servers,
            association=association,
            ledger=None,
            seed=seed,
            run_folder=run_folder,
            wait_for_nodes_s=wait_for_nodes_s,
            **fedavg,
        )
        self.models: list[NamedArrays] = []
        self._sent: dict[int, NamedArrays] = {}  # by node: the model that it was sent this round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the model of the device's own edge server."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self.models = self.models or [self._model] * self.edge_servers
        self._sent = {message.metadata.dst_node_id: self._model_for(message) for message in messages}
        return [self._addressed(message) for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """One round at every edge server: (6)-(8), (11) and (12) over its own devices alone."""
        trained, left_out = self._receive(replies)
        if trained.devices:
            self.models = [self._updated(server, trained.at([server])) for server in range(self.edge_servers)]
        held = [int(trained.at([server]).samples.sum()) for server in range(self.edge_servers)]
        model = self.models[int(np.argmax(held))]
        metrics = self._metrics(trained, {"left-out": len(left_out)})
        report = RoundReport(
            round=server_round,
            devices=len(trained.devices),
            samples=sum(held),
            left_out=tuple(left_out),
            server_devices=tuple(trained.at([server]).devices for server in range(self.edge_servers)),
            train=dict(metrics),
        )
        self._close_round(report, model, encode(model, {"round": str(server_round)}), [])
        return (as_record(model) if trained.devices else None), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the model of the device's own edge server."""
        return [self._addressed(m) for m in super().configure_evaluate(server_round, arrays, config, grid)]

    def _updated(self, server: int, trained: Trained) -> NamedArrays:
        if not trained.devices:
            return self.models[server]
        gradients = [
            self._gradient(self._flat(self._sent.get(reply.node, self.models[server])), reply)
            for reply in trained.replies
        ]
        weights = contribution_weights(trained.samples, trained.steps)
        partial = PartialAggregates(gradients, weights, np.zeros_like(trained.server_of), 1)
        total = whole(partial, 1, self.layout.size)[0]
        tau = boost(trained.samples, trained.steps)
        after = updated_model(self._flat(self.models[server]), total, 1.0, tau)
        return self.layout.model(after, trained.largest.arrays)

    def _model_for(self, message: Message) -> NamedArrays:
        device = self._roster.device(message.metadata.dst_node_id)
        return self._model if device is None else self.models[self._roster.server(device)]

    def _addressed(self, message: Message) -> Message:
        content = RecordDict(dict(message.content))
        content[self.arrayrecord_key] = as_record(self._model_for(message))
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        return Message(content=content, message_type=kind, dst_node_id=node)

    def _evaluate_centrally(
        self, evaluate_fn: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        """Mean over the edge servers' models."""
        if not self.models:
            return evaluate_fn(server_round, arrays)
        results = [evaluate_fn(server_round, as_record(model)) for model in self.models]
        told = [result for result in results if result is not None]
        keys = [key for key in (told[0] if told else ()) if not isinstance(told[0][key], list)]
        return MetricRecord({key: float(np.mean([result[key] for result in told])) for key in keys})
