"""Consensus-based federated learning on a ledger: the paper's Algorithm 1 as a Flower strategy."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import ArrayLike

from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Ledger, Role, Sender, draw_leader
from flower_bfl.chain_adapter.records import RunRules, model_payload, report_payload
from flower_bfl.config import Consensus, ContractRules, LeaderRule, Mass, Mining, Outage, check_outages
from flower_bfl.controller.base import Controller
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Graph,
    MixingName,
    NetworkConfig,
    edge_graph,
    mixing_matrix,
    spectral_radius,
)
from flower_bfl.strategies._controlled import Controlled
from flower_bfl.strategies._edge_strategy import EdgeStrategy, FedAvgArguments, NamedArrays, as_record
from flower_bfl.strategies._journal import (
    OPERATOR,
    Journal,
    consensus_entries,
    gradient_entries,
    model_entry,
)
from flower_bfl.strategies._miners import Seal, miners, seal
from flower_bfl.strategies._outages import down_in, mixings_without, servers_down
from flower_bfl.strategies._replies import Contribution
from flower_bfl.strategies._roster import NOBODY, Association, Trained
from flower_bfl.strategies.aggregation import (
    Floats,
    PartialAggregates,
    Vector,
    boost,
    contribution_weights,
    updated_model,
)
from flower_bfl.strategies.consensus import agree, initial_mass, mass_after
from flower_bfl.types import LeftOut, RoundReport


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
    p2p_rounds : consensus steps φ a round.
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
    seed : of the random graph, of the mining race and of derived keys.
    run_folder : a folder for rounds.jsonl and model.safetensors, or None.
    outages : edge servers and links that fail in given rounds, for what-if runs.
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
        p2p_rounds: int = 5,
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
        outages: Iterable[Outage] = (),
        controller: Controller | None = None,
        network: NetworkConfig | None = None,
        most_offloaded_bytes: int = 2**28,
        exchange_timeout_s: float = 300.0,
        wait_for_nodes_s: float = 300.0,
        **fedavg: Unpack[FedAvgArguments],
    ) -> None:
        self.consensus = Consensus(
            edge_servers, p2p_rounds, mass or ("count" if p2p_rounds else "data"), leader, learning_rate
        )
        adjacency = edge_graph(graph, edge_servers, seed=seed)
        self.mixing = mixing_matrix(mixing, adjacency, laplacian_step=laplacian_step)
        self.outages = tuple(outages)
        check_outages(self.outages, adjacency)
        if leader == "reputation" and (ledger is None or mining is None):
            raise ConfigError("`leader` must not be 'reputation' without `ledger` and `mining`")
        self.mining = mining
        self.seed = seed
        if controller is None and network is not None:
            raise ConfigError("`network` needs a `controller`, got none")
        super().__init__(
            edge_servers=edge_servers,
            association=association,
            journal=Journal(ledger, keys, seed, run_folder),
            wait_for_nodes_s=wait_for_nodes_s,
            require_signatures=require_signatures,
            **fedavg,
        )
        self._controlled = None
        if controller is not None:
            self._controlled = Controlled(
                controller,
                network,
                edge_servers=edge_servers,
                p2p_rounds=p2p_rounds,
                most_bytes=most_offloaded_bytes,
                timeout_s=exchange_timeout_s,
                seed=seed,
                key=self.configrecord_key,
                roster=self._roster,
                screen_data=self._signatures.screen_data,
            )
        self._recording = ledger is not None
        self._last_miners_server: int | None = None
        self._states: Vector | None = None  # made once: fresh memory of this size takes as long as filling it

    def _round(
        self, server_round: int, trained: Trained, left_out: Sequence[LeftOut]
    ) -> tuple[ArrayRecord | None, MetricRecord]:
        """One round of Algorithm 1, from the devices' models to the new global one."""
        # 1. Every device's cumulative gradient, (6)(7), and their sums at the edge servers, (8).
        before, learning_rate = self._flat(self._model), self.consensus.learning_rate
        gradients = [self._gradient(before, reply, learning_rate) for reply in trained.replies]
        weights = contribution_weights(trained.samples, trained.steps)
        partials = PartialAggregates(gradients, weights, trained.server_of, self.edge_servers)

        # 2. The edge servers agree, step by step with their neighbours: (9).
        down = down_in(self.outages, server_round)
        mass = initial_mass(self.consensus, trained.samples, trained.server_of, servers_down(down, 0))
        mixings = mixings_without(down, self.mixing, self.consensus.p2p_rounds)
        elected = self._elect(server_round, mass_after(mass, mixings), down)
        if elected is None:
            return self._skip(server_round, left_out)
        leader, passed = elected
        agreement = agree(partials, self.layout.size, mass, mixings, leader, states=self._kept_states())

        # 3. The leader turns what it holds into the global model: (10)-(12).
        tau = boost(trained.samples, trained.steps)
        after = updated_model(before, agreement.state, agreement.mass, tau, learning_rate)
        model = self._named(after, trained)

        # 4. All of it goes to the ledger, one block a phase, while the devices train on.
        published = model_entry(server_round, leader, passed, model)
        own = {
            "consensus-error": agreement.error,
            "consensus-bound": agreement.bound,
            "left-out": len(left_out),
        }
        metrics = self._metrics(trained, own | self._decided())
        report = RoundReport(
            round=server_round,
            devices=len(trained.devices) + sum(map(len, trained.unions.values())),
            samples=float(trained.samples.sum()),
            left_out=tuple(left_out),
            down=tuple(map(str, down)),
            server_devices=tuple(trained.at([server]).devices for server in range(self.edge_servers)),
            server_data=tuple(trained.unions.get(server, ()) for server in range(self.edge_servers)),
            leader=leader,
            p2p_rounds=len(mixings),
            spectral_radius=spectral_radius(self.mixing),
            consensus_error=agreement.error,
            consensus_bound=agreement.bound,
            boost=tau,
            signed_devices=trained.signed,
            train=dict(metrics),
        )
        recorded = len(self._data(server_round)) + len(trained.senders) + len(mixings) * self.edge_servers
        report, closing = self._closing(report, trained, down, published, recorded)
        phases = self._phases(
            server_round, self._model, trained, self._data(server_round), agreement.states, down, closing
        )
        self._close_round(report, published.payload, phases)
        return as_record(model), metrics

    # -- with a controller: who takes part, and with whose data -------------------------------------------

    def _gather(self, server_round: int, config: ConfigRecord, grid: Grid) -> list[int]:
        if self._controlled is None:
            return super()._gather(server_round, config, grid)
        wanted = {"min_available_nodes": self.min_available_nodes, "min_train_nodes": self.min_train_nodes}
        return self._controlled.gather(server_round, config, grid, wanted, self._await)

    def _address(self, server_round: int, messages: list[Message], grid: Grid) -> list[Message]:
        if self._controlled is None or not messages:
            return messages
        return self._controlled.open(server_round, messages, grid)

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

    # -- the steps' details -------------------------------------------------------------------------------

    def _receive(self, server_round: int, replies: Iterable[Message]) -> tuple[Trained, list[LeftOut]]:
        pooled: dict[int, Contribution] = {}
        lost: list[LeftOut] = []
        if self._controlled is not None:
            replies, pooled, lost = self._controlled.receive(replies, self._contribution)
        trained, left_out = super()._receive(server_round, replies)
        trained, left_out = trained.joined(pooled), left_out + lost
        dead = servers_down(down_in(self.outages, server_round), 0)
        for sender in trained.at(dead).senders:
            reason = "it is down" if sender.role is Role.SERVER else "its edge server is down"
            left_out += self._without(sender, reason)
        return trained.at(set(range(self.edge_servers)) - dead), left_out

    def _kept_states(self) -> Vector | None:
        """Room for every step's states, if they are to be recorded; those of the round before are by now."""
        if self._recording and self._states is None:
            shape = (self.consensus.p2p_rounds + 1, self.edge_servers, self.layout.size)
            self._states = np.empty(shape, np.float32)
        return self._states

    def _elect(self, server_round: int, masses: Floats, down: Sequence[Outage]) -> tuple[int, int] | None:
        """The leader and how many were passed over; None if no server that is up has a share of the sum."""
        dead = servers_down(down, self.consensus.p2p_rounds)
        rule = self.consensus.leader
        if isinstance(rule, int):
            first = rule
        elif rule == "reputation" and self._last_miners_server is not None:
            first = self._last_miners_server
        else:
            first = draw_leader(self._head(), server_round, self.edge_servers)
        for passed in range(self.edge_servers):
            server = (first + passed) % self.edge_servers
            if masses[server] > 0 and server not in dead:
                return server, passed
        return None

    def _skip(self, server_round: int, left_out: Sequence[LeftOut]) -> tuple[None, MetricRecord]:
        """The model stays as it is, and the ledger says why."""
        down = down_in(self.outages, server_round)
        elected = self._elect(server_round, np.ones(self.edge_servers), down)
        assert elected is not None  # `check_outages` saw to that
        leader, passed = elected
        published = model_entry(server_round, leader, passed, self._model)
        report = RoundReport(
            round=server_round, left_out=tuple(left_out), down=tuple(map(str, down)), leader=leader
        )
        report, closing = self._closing(report, NOBODY, down, published, 0)
        phases = [phase for phase in (self._data(server_round), closing) if phase]
        self._close_round(report, published.payload, phases)
        return None, MetricRecord({"left-out": len(left_out), **self._decided()})

    def _closing(
        self,
        report: RoundReport,
        trained: Trained,
        down: Sequence[Outage],
        published: Entry,
        recorded: int,
    ) -> tuple[RoundReport, list[Entry]]:
        """The round's last phase: what went wrong, the model, the miner's seal; `recorded` came before it."""
        if self._controlled is not None:
            report = self._controlled.now.noted(report, self._controlled.clock_s)
        closing = [published]
        if report.left_out or down:
            payload = report_payload(report.round, report.left_out, down)
            closing.insert(0, Entry(Kind.REPORT, report.round, OPERATOR, payload))
        if self.mining is None or not self._recording:
            return report, closing
        assert report.leader is not None
        size = recorded + len(closing)
        won = self._race(trained, report.leader, report.round, size)
        self._last_miners_server = won.entry.step
        return won.noted(report), [*closing, won.entry]

    def _phases(
        self,
        server_round: int,
        sent: NamedArrays,
        trained: Trained,
        data: Sequence[Entry],
        states: Vector | None,
        down: Sequence[Outage],
        closing: list[Entry],
    ) -> Iterator[Iterable[Entry]]:
        """The round's entries; read in the recorder's thread, so that encoding overlaps with training too."""
        gradients = gradient_entries(server_round, trained, sent, self.consensus.learning_rate)
        yield chain(data, gradients)
        for step, held in enumerate(states if states is not None else ()):
            up = sorted(set(range(self.edge_servers)) - servers_down(down, max(step - 1, 0)))
            yield consensus_entries(server_round, step, {m: self.layout.arrays(held[m]) for m in up}, trained)
        yield closing

    def _opening(self) -> list[Entry]:
        rules = RunRules(type(self).__name__, self.consensus, self.mixing)
        return [
            Entry(Kind.RULES, 0, OPERATOR, rules.encode()),
            Entry(Kind.MODEL, 0, OPERATOR, model_payload(0, self._model)),
        ]

    def _contract_rules(self) -> ContractRules:
        bits = 0 if self.mining is None else self.mining.difficulty_bits
        return ContractRules(self.edge_servers, self.consensus.leader, bits)

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
