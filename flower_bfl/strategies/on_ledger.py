"""Any Flower strategy, with its replies and results on a ledger."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from logging import INFO
from pathlib import Path
from time import perf_counter

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Ledger, Role, Sender
from flower_bfl.chain_adapter.records import NamedArrays, RunRules, model_payload, report_payload
from flower_bfl.config import ContractRules, Mining
from flower_bfl.errors import ConfigError
from flower_bfl.strategies._go_on import play
from flower_bfl.strategies._journal import (
    OPERATOR,
    EvaluateFunction,
    Journal,
    gradient_entries,
    logger,
    state_entry,
)
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._memory import Memory
from flower_bfl.strategies._miners import miners, seal
from flower_bfl.strategies._replies import Asked, as_numpy, contribution, screen
from flower_bfl.strategies._roster import Roster, Trained
from flower_bfl.strategies._signatures import Signatures
from flower_bfl.strategies._standing import Standing, check_arrays
from flower_bfl.types import LeftOut, RoundReport

_SERVER = 0  # the one aggregator that a Flower strategy is


class OnLedger(Strategy):
    """Records what devices send to a Flower strategy and what it makes of it; changes neither.

    ``OnLedger(FedAdam(...), EvmLedger("chain"))`` goes where ``FedAdam(...)`` went. Every reply that can be
    used becomes the device's gradient, w_k − w_y, and every result a model, proposed by the strategy in the
    name of edge server 0 and sealed by a miner. The others are recorded as left out, with the reason; the
    strategy sees them all the same. The audit checks signatures, order and seals, but cannot recompute models
    whose rule it does not know.

    Parameters
    ----------
    strategy : the strategy to be recorded.
    ledger : where to.
    mining : how devices race for each round's block; None: blocks need no miner.
    keys, require_signatures, seed, run_folder, resume : as in `ConsensusBFL`. What the strategy keeps in its
        attributes from round to round (momentum, say) is on the ledger as well. With `require_signatures`,
        replies without a signature are kept from the strategy as well.
    weighted_by_key : the metric that holds D_y.
    """

    def __init__(
        self,
        strategy: Strategy,
        ledger: Ledger,
        *,
        mining: Mining | None = Mining(),  # noqa: B008  # frozen
        keys: Keys | None = None,
        require_signatures: bool = False,
        seed: int = 0,
        run_folder: Path | str | None = None,
        resume: bool = False,
        weighted_by_key: str = "num-examples",
    ) -> None:
        self.strategy = strategy
        self.mining = mining
        self.seed = seed
        self.weighted_by_key = weighted_by_key
        self._journal = Journal(ledger, keys, seed, run_folder, resume=resume)
        self._signatures = Signatures(ledger, self._journal.keys, 1, required=require_signatures)
        self._roster = Roster(servers=1)
        self._layout: Layout | None = None
        self._standing: Standing | None = None  # of the run that this one goes on with
        self._memory = Memory(strategy)
        self._model: NamedArrays = {}  # w_k, as it was sent
        self._asked = self._asked_to_evaluate = Asked()
        self._sent_at = 0.0

    @property
    def reports(self) -> list[RoundReport]:
        """What each round did and cost, as far as its blocks are on the ledger."""
        return self._journal.reports

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
        if self._layout is not None:
            raise ConfigError("a strategy must run once, got a second `start`: make a new one for a new run")
        noting = None if evaluate_fn is None else self._journal.noting(evaluate_fn)
        try:
            self._begin(initial_arrays)
            return play(
                self, self._standing, self.reports, grid, initial_arrays, num_rounds, timeout, train_config,
                evaluate_config, noting,
            )  # fmt: skip
        finally:
            self._journal.close()

    def finish(self) -> None:
        """Wait until the last round's blocks are there, then report it; `start` does so by itself."""
        self._journal.finish()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, with what clients need to sign their updates."""
        self._begin(arrays)
        self._model = {name: as_numpy(array) for name, array in arrays.items()}
        self._layout = Layout.of(self._model)  # a mean of whole numbers is none
        asking = ConfigRecord({**config, **self._signatures.request(1.0)})
        messages = list(self.strategy.configure_train(server_round, arrays, asking, grid))
        self._asked = Asked(messages)
        self._sent_at = perf_counter()
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's result, recorded with the replies that it comes from."""
        replied_at = perf_counter()
        self._journal.finish()
        recorded_at = perf_counter()
        replies = self._asked.replies(replies)
        trained, left_out, unsigned = self._receive(server_round, replies)
        signed = [reply for reply in replies if reply.metadata.src_node_id not in unsigned]
        arrays, metrics = self.strategy.aggregate_train(server_round, self._ordered(signed))
        made = self._model if arrays is None else {n: as_numpy(array) for n, array in arrays.items()}
        report = RoundReport(
            round=server_round,
            devices=len(trained.devices),
            samples=float(trained.samples.sum()),
            left_out=tuple(left_out),
            server_devices=(trained.devices,),
            leader=_SERVER,
            signed_devices=trained.signed,
            train_seconds=replied_at - self._sent_at,
            wait_seconds=recorded_at - replied_at,
            aggregate_seconds=perf_counter() - recorded_at,
            train={} if metrics is None else dict(metrics),
        )
        self._record(report, trained, made)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._asked_to_evaluate = Asked(messages)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The strategy's; also part of the round's report."""
        metrics = self.strategy.aggregate_evaluate(
            server_round, self._ordered(self._asked_to_evaluate.replies(replies))
        )
        if metrics is not None:
            self._journal.note(partial(replace, evaluate_devices=dict(metrics)))
        return metrics

    def summary(self) -> None:
        """Log the settings."""
        logger.log(INFO, "\t├──> Ledger: %s", self._journal.describe())
        self.strategy.summary()

    # -- private ------------------------------------------------------------------------------------------

    def _begin(self, arrays: ArrayRecord) -> None:
        if self._layout is not None:
            return
        self._model = {name: as_numpy(array) for name, array in arrays.items()}
        self._layout = Layout.of(self._model)
        rules = RunRules(type(self.strategy).__name__)
        bits = 0 if self.mining is None else self.mining.difficulty_bits
        opening = [
            Entry(Kind.RULES, 0, OPERATOR, rules.encode()),
            Entry(Kind.MODEL, 0, OPERATOR, model_payload(0, self._model)),
        ]
        self._standing = self._journal.begin(ContractRules(1, _SERVER, bits), opening)
        if self._standing is not None:
            check_arrays(self._layout, self._standing.model, shapes=False)
            self._signatures.go_on()
            self._memory.restore(self._standing.state)

    def _receive(
        self, server_round: int, replies: list[Message]
    ) -> tuple[Trained, list[LeftOut], frozenset[int]]:
        """What is recorded as gradients, what is not, and the nodes that must sign and did not."""
        assert self._layout is not None, "aggregate_train comes after configure_train"
        read = partial(contribution, layout=self._layout, weighted_by_key=self.weighted_by_key)
        usable, left_out = screen(replies, read, self._roster.device)
        finite = [each for each in usable if all(np.isfinite(a).all() for a in each.arrays.values())]
        left_out += [
            LeftOut(f"node {each.node}", "its arrays must be finite, got NaN or infinity")
            for each in usable
            if each not in finite
        ]
        silent = self._asked.nodes("train") - {reply.metadata.src_node_id for reply in replies}
        left_out += [
            LeftOut(self._roster.name(node), "no reply in time")
            for node in sorted(silent, key=self._roster.place)
        ]
        known, impostors = self._roster.admit(finite)
        trained, unsigned = self._signatures.screen(server_round, known, self._model, 1.0)
        refused: frozenset[int] = frozenset()
        if self._signatures.required:
            nodes = {reply.metadata.src_node_id for reply in replies}
            refused = frozenset(nodes - {each.node for each in trained.replies})
        return trained, left_out + impostors + unsigned, refused

    def _ordered(self, replies: Iterable[Message]) -> list[Message]:
        """By device: sums of floats depend on the order, and a run should not on who was first."""
        return sorted(replies, key=lambda reply: self._roster.place(reply.metadata.src_node_id))

    def _record(self, report: RoundReport, trained: Trained, made: NamedArrays) -> None:
        k, payload = report.round, model_payload(report.round, made)
        closing = [Entry(Kind.MODEL, k, Sender(Role.SERVER, _SERVER), payload)]
        if report.left_out:
            closing.insert(0, Entry(Kind.REPORT, k, OPERATOR, report_payload(k, report.left_out, ())))
        if kept := self._memory.changed():
            closing.insert(0, state_entry(k, kept))
        if self.mining is not None:
            size = len(trained.devices) + len(closing)
            won = seal(k, self.mining, miners(trained), _SERVER, size, self.seed)
            report = won.noted(report)
            closing.append(won.entry)
        gradients = gradient_entries(k, trained, self._model)
        self._journal.write(report, payload, [gradients, closing])
