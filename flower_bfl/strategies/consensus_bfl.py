"""Consensus-based federated learning on a ledger: the paper's Algorithm 1 as a Flower strategy."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import ArrayLike, NDArray

from flower_bfl.attacks import Attack
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Ledger, Role, Sender, draw_leader
from flower_bfl.chain_adapter.records import RunRules, model_payload, read_model, report_payload
from flower_bfl.config import (
    AutoRounds,
    Consensus,
    ContractRules,
    LeaderRule,
    Mass,
    Mining,
    Outage,
    check_outages,
    check_whole_number,
)
from flower_bfl.controller.base import Controller
from flower_bfl.defences import Defence, EdgeRule, described
from flower_bfl.errors import ConfigError, FlowerBFLError
from flower_bfl.network import (
    Graph,
    MixingName,
    NetworkConfig,
    edge_graph,
    mixing_matrix,
    spectral_radius,
)
from flower_bfl.strategies._controlled import Controlled
from flower_bfl.strategies._defended import checked_attacks, checked_defences, checked_edge_rule
from flower_bfl.strategies._dispute import Agreed, Gathered, Setting
from flower_bfl.strategies._edge_strategy import EdgeStrategy, FedAvgArguments, NamedArrays
from flower_bfl.strategies._journal import (
    OPERATOR,
    Journal,
    gradient_entries,
    model_entry,
    state_entry,
)
from flower_bfl.strategies._miners import Seal, miners, seal
from flower_bfl.strategies._outages import down_in, servers_down
from flower_bfl.strategies._replies import Contribution, as_record
from flower_bfl.strategies._roster import NOBODY, Association, Trained
from flower_bfl.strategies._standing import Standing
from flower_bfl.strategies._unwatched import Unwatched
from flower_bfl.strategies._watched import Watched
from flower_bfl.strategies.aggregation import (
    NotFiniteError,
    boost,
    normalised,
    partial_aggregates,
    updated_model,
)
from flower_bfl.types import LeftOut, RoundReport, Row, Vector


class ConsensusBFL(EdgeStrategy):
    """Several edge servers aggregate their own devices, agree by consensus, and record every step.

    Takes FedAvg's constructor arguments and replaces it in a Flower app; the ClientApp stays as it is. Two
    metrics that a client may report are used if they are there: "num-steps" (e_y, its SGD steps; 1 if
    absent) and "device-index" (its own index, e.g. its partition id, which makes runs reproducible and
    lets a device that reconnects keep its edge server and account).

    With p2p_rounds=0 it is the paper's "BFL without consensus", with ledger=None its "consensus FL without
    blockchain"; its "traditional FL" is `IndependentServers`.

    Parameters
    ----------
    edge_servers : number of edge servers M.
    graph : links between them: "complete", "ring", "line", "star", "random", or a list of pairs.
    mixing : consensus weights Λ: "laplacian" (the paper's I − d·L), "metropolis", or an (M, M) matrix.
    laplacian_step : d of the Laplacian weights, in (0, 1/M); 0.9/M by default.
    p2p_rounds : consensus steps φ a round, "auto" or an `AutoRounds`: as many as the round needs.
    mass : "count" (the paper's M·x_m) or "data" (ratio consensus); "data" by default where p2p_rounds is 0.
    leader : "random" (drawn from the last block's hash), "reputation" (the edge server whose device mined the
        last block) or the index of an edge server. If it cannot lead, the next one does.
    association : edge server of each device, by device index; devices are dealt out in turn by default.
    learning_rate : η of eqs. (6)(7)(12). It cancels out of the model and scales the recorded gradients.
    ledger : where every gradient, consensus step and model is written, or None.
    mining : how devices race for each round's block on the ledger; None: blocks need no miner.
    keys : private keys of operator, edge servers and devices, such as a `KeyFolder`; None derives them from
        the seed, for simulations: whoever knows it can sign in everybody's name.
    require_signatures : leave out devices that do not sign their updates with keys of their own.
    seed : of the random graph, of the mining race, of attacks and of derived keys.
    run_folder : a folder for rounds.jsonl and model.safetensors, or None.
    resume : go on with the run that ledger and run folder hold, from its last finished round; a ledger
        without a run starts one. Settings must be the run's, see docs/reliability.md.
    outages : edge servers and links that fail in given rounds, for what-if runs.
    attacks : of compromised edge servers and poisoned devices, for what-if runs, see `flower_bfl.attacks`.
    defence : `Replay()`, `Deviation()` or both, see docs/attacks.md; None: whoever lies is believed.
    edge_rule : a robust rule in place of the mean at the edge servers, e.g. `Median()`; None: the mean (8).
    quarantine_rounds : for which an edge server takes no part after the round in which it was voted out.
    controller : decides before each round who offloads its data where, with how much power, bandwidth, CPU
        and hash rate, see docs/offloading.md; None: every device trains itself.
    network : the edge network that the controller decides in, with at least as many devices as there are;
        None: the controller's own. Its consensus takes `p2p_rounds` steps, whatever it says itself.
    most_offloaded_bytes : the largest data set that a device may offload.
    exchange_timeout_s : how long nodes have to report before a round, and then to send their data.
    wait_for_nodes_s : how long to wait for the nodes that FedAvg's arguments ask for.

    Raises ConfigError for an argument that breaks a rule, RunFolderError for an unwritable folder, and
    LedgerError from a round whose blocks could not be written.
    """

    def __init__(
        self,
        *,
        edge_servers: int = 3,
        graph: Graph = "complete",
        mixing: MixingName | ArrayLike = "laplacian",
        laplacian_step: float | None = None,
        p2p_rounds: int | Literal["auto"] | AutoRounds = 5,
        mass: Mass | None = None,
        leader: LeaderRule = "random",
        association: Association | None = None,
        learning_rate: float = 1.0,
        ledger: Ledger | None = None,
        mining: Mining | None = Mining(),  # noqa: B008  # frozen
        keys: Keys | None = None,
        require_signatures: bool = False,
        seed: int = 0,
        run_folder: Path | str | None = None,
        resume: bool = False,
        outages: Iterable[Outage] = (),
        attacks: Attack | Iterable[Attack] = (),
        defence: Defence | Sequence[Defence] | None = None,
        edge_rule: EdgeRule | None = None,
        quarantine_rounds: int = 10,
        controller: Controller | None = None,
        network: NetworkConfig | None = None,
        most_offloaded_bytes: int = 2**28,
        exchange_timeout_s: float = 300.0,
        wait_for_nodes_s: float = 300.0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        rounds = AutoRounds() if p2p_rounds == "auto" else p2p_rounds
        mass = mass or ("count" if rounds else "data")
        self.consensus = Consensus(edge_servers, rounds, mass, leader, learning_rate)
        adjacency = edge_graph(graph, edge_servers, seed=seed)
        self.mixing = mixing_matrix(mixing, adjacency, laplacian_step=laplacian_step)
        self.outages = tuple(outages)
        check_outages(self.outages, adjacency)
        if leader == "reputation" and (ledger is None or mining is None):
            raise ConfigError("`leader` must not be 'reputation' without `ledger` and `mining`")
        self._replay, self._deviation = checked_defences(
            defence, self.consensus, sealed=ledger is not None and mining is not None
        )
        self.edge_rule = checked_edge_rule(edge_rule)
        check_whole_number("quarantine_rounds", quarantine_rounds, 0, 2**31 - 1)
        self.quarantine_rounds = quarantine_rounds
        self.mining = mining
        self.seed = seed
        if controller is None and network is not None:
            raise ConfigError("`network` needs a `controller`, got none")
        super().__init__(
            edge_servers=edge_servers,
            association=association,
            journal=Journal(ledger, keys, seed, run_folder, resume=resume),
            wait_for_nodes_s=wait_for_nodes_s,
            require_signatures=require_signatures,
            attacks=checked_attacks(attacks, self.consensus),
            seed=seed,
            **fedavg,
        )
        self._controlled: Controlled | None = None
        if controller is not None:
            self._controlled = Controlled(
                controller, network, edge_servers=edge_servers, p2p_rounds=self.consensus.most_steps,
                most_bytes=most_offloaded_bytes, timeout_s=exchange_timeout_s, seed=seed,
                key=self.configrecord_key, roster=self._roster, screen_data=self._signatures.screen_data,
            )  # fmt: skip
            self._journal.save_network(self._controlled.places())
        self._last_miners_server: int | None = None
        self._edge = self._edge_network()

    def _round(
        self, server_round: int, trained: Trained, left_out: Sequence[LeftOut]
    ) -> tuple[ArrayRecord | None, MetricRecord]:
        """One round of Algorithm 1, from the devices' models to the new global one."""
        # 1. Every device's cumulative gradient, (6)(7); one that deviates is recorded, but goes no further.
        before, learning_rate = self._flat(self._model), self.consensus.learning_rate
        gradients = [self._gradient(before, reply, learning_rate) for reply in trained.replies]
        began = perf_counter()
        suspected = self._suspected(trained, gradients)
        judged_s = perf_counter() - began if self._deviation is not None else 0.0
        down = down_in(self.outages, server_round)

        # 2. Their sums at the edge servers, (8), which agree on them step by step with their neighbours: (9).
        gathered = Gathered(server_round, trained, gradients, [*suspected], down, before, self.layout)
        agreed = self._edge.agree(gathered)
        told = tuple(one for one, *_ in suspected.values())
        counted = NOBODY if agreed is None else agreed.trained
        lost = [one for reports in suspected.values() for one in reports]
        left_out = [*left_out, *lost, *self._lost(trained, counted, suspected)]
        if agreed is None:
            return self._skip(server_round, left_out, trained, told)

        # 3. The leader turns what it holds into the global model: (10)-(12).
        tau = boost(agreed.trained.samples, agreed.trained.steps)
        for leader, passed in self._leaders(server_round, agreed.fit):
            after = partial(
                updated_model, before, agreed.states[leader], float(agreed.mass[leader]), tau, learning_rate
            )
            published = self._edge.proposed(
                gathered, agreed, leader, passed, partial(self._made, gathered, agreed, after)
            )
            if published:
                break  # else it was voted out for it, and the next one leads
        else:
            return self._skip(server_round, left_out, trained, told)

        # 4. All of it goes to the ledger, one block a phase, while the devices train on.
        error, bound = agreed.error(leader)
        own = {"consensus-error": error, "consensus-bound": bound, "left-out": len(left_out)}
        metrics = self._metrics(agreed.trained, own | self._decided())
        report = RoundReport(
            round=server_round,
            devices=len(agreed.trained.devices) + sum(map(len, agreed.trained.unions.values())),
            samples=float(agreed.trained.samples.sum()),
            left_out=tuple(left_out),
            down=tuple(map(str, down)),
            suspected=told,
            defend_seconds=judged_s,
            server_devices=tuple(agreed.trained.at([m]).devices for m in range(self.edge_servers)),
            server_data=tuple(agreed.trained.unions.get(m, ()) for m in range(self.edge_servers)),
            leader=leader,
            p2p_rounds=agreed.steps,
            spectral_radius=spectral_radius(self.mixing),
            consensus_error=error,
            consensus_bound=bound,
            consensus_target=agreed.target,
            boost=tau,
            signed_devices=trained.signed,
            train=dict(metrics),
        )
        self._write(report, trained, down, published)
        return as_record(read_model(published[0].payload)), metrics

    # -- with a controller: who takes part, and with whose data -------------------------------------------

    def _gather(self, server_round: int, config: ConfigRecord, grid: Grid) -> list[int]:
        if self._controlled is None:
            return super()._gather(server_round, config, grid)
        wanted = {"min_available_nodes": self.min_available_nodes, "min_train_nodes": self.min_train_nodes}
        return self._controlled.gather(server_round, config, grid, wanted, self._await)

    def _address(self, server_round: int, messages: list[Message], grid: Grid) -> list[Message]:
        if self._controlled is None or not messages:
            return messages
        return self._controlled.open(server_round, messages, grid, self._edge.away(server_round))

    def _devices(self, grid: Grid) -> list[int]:
        return super()._devices(grid) if self._controlled is None else self._controlled.devices_of(grid)

    def _without(self, sender: Sender, reason: str) -> list[LeftOut]:
        if sender.role is Role.DEVICE or self._controlled is None:
            return super()._without(sender, reason)
        return self._controlled.lost(sender.index, reason)

    def _data(self, server_round: int) -> list[Entry]:
        return [] if self._controlled is None else self._controlled.now.entries(server_round)

    def _decided(self) -> dict[str, float]:
        """The controller's part of the round's metrics."""
        return {} if self._controlled is None else self._controlled.now.metrics(self._controlled.clock_s)

    def _race(self, trained: Trained, leader: int, server_round: int, size: int) -> Seal:
        assert self.mining is not None
        rates, who = None, miners(trained)
        if self._controlled is not None:
            plan = self._controlled.now.plan
            rates = {} if plan is None else plan.hash_rates
            who |= self._controlled.now.miners()
        return seal(server_round, self.mining, who, leader, size, self.seed, rates)

    # -- from one round to the next -------------------------------------------------------------------------

    def _memory(self) -> dict[str, NDArray[np.generic]]:
        """What the next round depends on beside the model, by name: for a run that is broken off."""
        kept = {"adversary": self._adversary.memory()}
        if self._controlled is not None:
            kept["network"] = self._controlled.memory()
        return {f"{where}/{name}": array for where, own in kept.items() for name, array in own.items()}

    def _restore(self, standing: Standing) -> None:
        super()._restore(standing)
        self._last_miners_server = standing.miners_server
        self._edge.restore(standing.quarantined_until)
        kept: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in standing.state.items():
            where, _, own = name.partition("/")
            kept.setdefault(where, {})[own] = array
        self._adversary.restore(kept.get("adversary", {}))
        if self._controlled is not None and standing.round > 0:
            self._controlled.restore(kept.get("network", {}), standing.round)

    # -- the steps' details -------------------------------------------------------------------------------

    def _receive(self, server_round: int, replies: Iterable[Message]) -> tuple[Trained, list[LeftOut]]:
        pooled: dict[int, Contribution] = {}
        lost: list[LeftOut] = []
        if self._controlled is not None:
            replies, pooled, lost = self._controlled.receive(replies, self._contribution)
        trained, left_out = super()._receive(server_round, replies)
        trained, left_out = trained.joined(pooled), left_out + lost
        trained = self._adversary.poisoned(Role.SERVER, server_round, trained, self._sent_to, self.layout)
        dead = servers_down(down_in(self.outages, server_round), 0)
        for sender in trained.at(dead).senders:
            reason = "it is down" if sender.role is Role.SERVER else "its edge server is down"
            left_out += self._without(sender, reason)
        return trained.at(set(range(self.edge_servers)) - dead), left_out

    def _expect(self, rounds: int) -> None:
        self.consensus = self.consensus.expecting(rounds)
        self._edge = self._edge_network()

    def _edge_network(self) -> Watched | Unwatched:
        """How the edge servers agree: watched if one may lie, or somebody looks."""
        if not self.attacks and self._replay is None:
            recording = self._journal.ledger is not None
            return Unwatched(self.consensus, self.mixing, self._sums, self._leaders, recording=recording)
        setting = Setting(
            self.consensus, self.mixing, self._adversary, self._replay, self.quarantine_rounds,
            sums=self._sums, weighted=self.edge_rule is None, sign=self._journal.signature,
        )  # fmt: skip
        return Watched(setting)

    def _suspected(self, trained: Trained, gradients: Sequence[Row]) -> dict[int, list[LeftOut]]:
        """Whose gradients deviate from the others', by position, and what is lost with them."""
        if self._deviation is None:
            return {}
        rows = normalised(gradients, trained.steps, self.layout.size)
        return {
            y: self._without(trained.senders[y], "its gradient deviates from the others'")
            for y in self._deviation.suspects(rows)
        }

    def _sums(self, gradients: Sequence[Row], trained: Trained) -> Row:
        """The partial aggregates (8), or what a robust rule makes of the same gradients."""
        return partial_aggregates(
            gradients, trained.samples, trained.steps, trained.server_of, self.edge_servers,
            self.edge_rule, self.layout.size,
        )  # fmt: skip

    def _leaders(self, server_round: int, fit: Container[int]) -> Iterator[tuple[int, int]]:
        """Edge servers that can lead, in order, and how many are passed over before each."""
        rule = self.consensus.leader
        if isinstance(rule, int):
            first = rule
        elif rule == "reputation" and self._last_miners_server is not None:
            first = self._last_miners_server
        else:
            first = draw_leader(self._head(), server_round, self.edge_servers)
        for passed in range(self.edge_servers):
            server = (first + passed) % self.edge_servers
            if server in fit:
                yield server, passed

    def _made(self, now: Gathered, agreed: Agreed, after: Callable[[], Vector]) -> NamedArrays:
        """The model of the weights after a round."""
        try:
            return self._named(after(), agreed.trained)
        except NotFiniteError as error:
            raise now.located(error, agreed.trained) from error

    def _lost(self, trained: Trained, counted: Trained, suspected: Container[int]) -> list[LeftOut]:
        """What edge servers trained themselves that take no part any more."""
        lost = [
            sender
            for y, sender in enumerate(trained.senders)
            if sender.role is Role.SERVER and y not in suspected and sender not in counted.senders
        ]
        return [one for sender in lost for one in self._without(sender, "it is in quarantine, or cut off")]

    def _skip(
        self,
        server_round: int,
        left_out: Sequence[LeftOut],
        trained: Trained = NOBODY,
        suspected: tuple[LeftOut, ...] = (),
    ) -> tuple[None, MetricRecord]:
        """The model stays as it is, and the ledger says why; so it does if nobody is left to lead."""
        down = down_in(self.outages, server_round)
        if not trained.senders:
            self._edge.open(server_round)  # nothing came of what was tried
        gone = servers_down(down, self.consensus.most_steps) | self._edge.out(down)
        elected = next(self._leaders(server_round, set(range(self.edge_servers)) - gone), None)
        if elected is None:
            raise FlowerBFLError(f"round {server_round}: no edge server is left that could lead it")
        leader, passed = elected
        published = model_entry(server_round, leader, passed, self._model)
        report = RoundReport(
            round=server_round,
            left_out=tuple(left_out),
            down=tuple(map(str, down)),
            suspected=suspected,
            leader=leader,
        )
        self._write(report, trained if self._edge.phases else NOBODY, down, [published])
        return None, MetricRecord({"left-out": len(left_out), **self._decided()})

    def _write(
        self, report: RoundReport, trained: Trained, down: Sequence[Outage], published: Sequence[Entry]
    ) -> None:
        """Start recording the round, phase by phase: who trained on what, states and votes, the model.

        Entries are made in the recorder's thread, so that encoding overlaps with training, too.
        """
        data, states = self._data(report.round), self._edge.phases
        if self._controlled is not None:
            report = self._controlled.now.noted(report, self._controlled.clock_s)
        report = self._edge.close(report)
        closing = [*published]
        if report.left_out or down:
            payload = report_payload(report.round, report.left_out, down)
            closing.insert(0, Entry(Kind.REPORT, report.round, OPERATOR, payload))
        if self._journal.ledger is not None and (memory := self._memory()):
            closing.insert(0, state_entry(report.round, memory))
        if self.mining is not None and self._journal.ledger is not None:
            assert report.leader is not None
            size = len(data) + len(trained.senders) + sum(count for count, _ in states) + len(closing)
            won = self._race(trained, report.leader, report.round, size)
            self._last_miners_server = won.entry.step
            report = won.noted(report)
            closing.append(won.entry)
        gradients = gradient_entries(report.round, trained, self._model, self.consensus.learning_rate)
        first = [chain(data, gradients)] if data or trained.senders else []
        phases = iter([*first, *(entries for _, entries in states), closing])
        self._close_round(report, published[0].payload, phases)

    def _opening(self) -> list[Entry]:
        defences = [each for each in (self._replay, self._deviation) if each is not None]
        rules = RunRules(
            type(self).__name__, self.consensus, self.mixing, tuple(map(described, defences)),
            "" if self.edge_rule is None else described(self.edge_rule),
        )  # fmt: skip
        return [
            Entry(Kind.RULES, 0, OPERATOR, rules.encode()),
            Entry(Kind.MODEL, 0, OPERATOR, model_payload(0, self._model)),
        ]

    def _contract_rules(self) -> ContractRules:
        bits = 0 if self.mining is None else self.mining.difficulty_bits
        return ContractRules(self.edge_servers, self.consensus.leader, bits, self.quarantine_rounds)

    def _learning_rate(self) -> float:
        return self.consensus.learning_rate

    def _head(self) -> bytes:
        """What the leader is drawn from; without a ledger the seed stands in for the chain."""
        return self._journal.head or sha256(f"flower-bfl leader {self.seed}".encode()).digest()

    def _settings(self) -> dict[str, object]:
        return {
            "Edge servers": self.edge_servers,
            "Consensus": f"{self.consensus.p2p_rounds} steps, λ = {spectral_radius(self.mixing):.3f}, "
            f"mass {self.consensus.mass}, leader {self.consensus.leader}",
            "Ledger": self._journal.describe(),
        } | ({} if self._controlled is None else {"Controller": self._controlled.name})
