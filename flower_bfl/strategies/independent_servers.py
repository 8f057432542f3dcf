"""The paper's "traditional FL": edge servers that never talk to each other."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flower_bfl.attacks import Attack, Falsification, Turn
from flower_bfl.attacks.base import Place
from flower_bfl.chain_adapter.base import Role, Sender, encode
from flower_bfl.config import Consensus
from flower_bfl.strategies._defended import checked_attacks
from flower_bfl.strategies._edge_strategy import (
    EdgeStrategy,
    FedAvgArguments,
    NamedArrays,
)
from flower_bfl.strategies._journal import EvaluateFunction, Journal
from flower_bfl.strategies._replies import Asked, as_record
from flower_bfl.strategies._roster import Association, Trained
from flower_bfl.strategies.aggregation import (
    NotFiniteError,
    PartialAggregates,
    boost,
    contribution_weights,
    updated_model,
    whole,
)
from flower_bfl.types import LeftOut, RoundReport, Vector


class IndependentServers(EdgeStrategy):
    """Every edge server keeps its own model for its own devices, aggregated as in `ConsensusBFL`.

    Metrics of a central evaluation are means over the servers' models. The arrays that a round returns, and
    model.safetensors, are the model of the server whose devices hold the most samples; `models` has all. A
    device that turns up after the first round joins its server with its second reply: what it trained
    first was not that server's model.

    Parameters are those of `ConsensusBFL`, as far as they concern edge servers without links and a ledger.
    Attacks act in an edge server's aggregate (step 0) or its own "model"; nobody is there to notice.
    """

    def __init__(
        self,
        *,
        edge_servers: int = 3,
        association: Association | None = None,
        run_folder: Path | str | None = None,
        attacks: Attack | Iterable[Attack] = (),
        seed: int = 0,
        wait_for_nodes_s: float = 300.0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        consensus = Consensus(edge_servers, p2p_rounds=0)
        super().__init__(
            edge_servers=edge_servers,
            association=association,
            journal=Journal(None, None, 0, run_folder),
            wait_for_nodes_s=wait_for_nodes_s,
            attacks=checked_attacks(attacks, consensus),
            seed=seed,
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
        messages = self._addressed(messages)
        self._asked = Asked(messages)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the model of the device's own edge server."""
        messages = self._addressed(super().configure_evaluate(server_round, arrays, config, grid))
        self._asked_to_evaluate = Asked(messages)
        return messages

    def _receive(self, server_round: int, replies: Iterable[Message]) -> tuple[Trained, list[LeftOut]]:
        trained, left_out = super()._receive(server_round, replies)
        strangers = [
            y
            for y, (reply, server) in enumerate(zip(trained.replies, trained.server_of, strict=True))
            if self._sent[reply.node] is not self.models[server]
        ]
        reason = "it trained another edge server's model, its own from now on"
        late = [LeftOut(f"device {trained.devices[y]}", reason) for y in strangers]
        return trained.without(strangers), left_out + late

    def _sent_to(self, node: int) -> NamedArrays:
        return self._sent[node]

    def _round(
        self, server_round: int, trained: Trained, left_out: Sequence[LeftOut]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """One round at every edge server: (6)-(8), (11) and (12) over its own devices alone."""
        groups = [trained.at([server]) for server in range(self.edge_servers)]
        self.models = [self._updated(server_round, server, trained) for server in range(self.edge_servers)]
        largest = int(np.argmax([own.samples.sum() for own in groups]))
        metrics = self._metrics(trained, {"left-out": len(left_out)})
        report = RoundReport(
            round=server_round,
            attacked=tuple(str(attack) for attack in self.attacks if attack.acts(server_round)),
            devices=len(trained.devices),
            samples=float(trained.samples.sum()),
            left_out=tuple(left_out),
            server_devices=tuple(own.devices for own in groups),
            train=dict(metrics),
        )
        self._close_round(report, _payload(server_round, self.models[largest]), [])
        return as_record(self.models[largest]), metrics

    def _skip(self, server_round: int, left_out: Sequence[LeftOut]) -> tuple[None, MetricRecord]:
        report = RoundReport(round=server_round, left_out=tuple(left_out))
        self._close_round(report, _payload(server_round, self._model), [])
        return None, MetricRecord({"left-out": len(left_out)})

    def _falsified(
        self, server_round: int, server: int, place: Place, honest: Vector, before: Vector
    ) -> Vector:
        """What an edge server makes of a vector at a place, if it is compromised."""
        who = Sender(Role.SERVER, server)
        self._adversary.remember(who, place, honest)
        model = before if place == "model" else None
        for attack in self._adversary.acting(server_round, server, place):
            if isinstance(attack, Falsification):
                turn = Turn(server_round, honest, honest[None], model=model)
                honest = self._adversary.falsify(attack, turn, who, place)
        return honest

    def _updated(self, server_round: int, server: int, trained: Trained) -> NamedArrays:
        model, own = self.models[server], trained.at([server])
        if not own.devices:
            return model
        before = self._flat(model)
        gradients = [self._gradient(before, reply) for reply in own.replies]
        weights = contribution_weights(own.samples, own.steps)
        partial = PartialAggregates(gradients, weights, np.zeros_like(own.server_of), 1)
        try:
            total = self._falsified(server_round, server, 0, whole(partial, 1, self.layout.size)[0], before)
            after = updated_model(before, total, 1.0, boost(own.samples, own.steps))
            return self._named(self._falsified(server_round, server, "model", after, before), own)
        except NotFiniteError as error:
            places = np.flatnonzero(trained.server_of == server)
            raise NotFiniteError(int(places[y]) for y in error.positions) from error

    def _model_for(self, message: Message) -> NamedArrays:
        device = self._roster.device(message.metadata.dst_node_id)
        server = None if device is None else self._roster.server(device)
        return self._model if server is None else self.models[server]

    def _addressed(self, messages: Iterable[Message]) -> list[Message]:
        records = {id(model): as_record(model) for model in (*self.models, self._model)}
        addressed = []
        for message in messages:
            content = RecordDict(dict(message.content))
            content[self.arrayrecord_key] = records[id(self._model_for(message))]
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            addressed.append(Message(content=content, message_type=kind, dst_node_id=node))
        return addressed

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


def _payload(server_round: int, model: NamedArrays) -> bytes:
    return encode(model, {"round": str(server_round)})
