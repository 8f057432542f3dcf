"""Values that more than one part of the package exchanges."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Floats = NDArray[np.float64]


class Row(Protocol):
    """Something whose slices of parameters are float32: an array, or what is worked out where it is read."""

    def __getitem__(self, part: slice, /) -> Vector: ...


Terms = Sequence[tuple[float, Row]]
"""Weights and vectors whose sum something is."""

# Names in messages between server and clients, see docs/offloading.md and docs/keys.md.
REPORT = "query.report"  # who are you, and what have you this round?
OFFLOAD = "query.offload"  # send your data
EDGE = "train.edge"  # train on the data that come with this
OWN_RECORD = "flower-bfl"  # of a reply: a node's report, or the device's signature
DATA_RECORD = "flower-bfl-data"
SIGNATURE_KEY = "flower-bfl-signature"
ADDRESS_KEY = "flower-bfl-address"
POISON_KEY = "flower-bfl-poison"  # of a round's config: what malicious devices do to their data


@dataclass(frozen=True)
class DeviceReport:
    """What a device says of itself before a round. What is None, the network model draws."""

    may_offload: bool = True  # its data may leave it
    work_cycles: float | None = None  # C_n, cycles for the whole local task
    cpu_hz: float | None = None  # F_n
    energy_slack_j: float | None = None  # what learning may take this round, E_max − E_gen
    gain_db: Sequence[float] | None = None  # power gain of its channel to each edge server


@dataclass(frozen=True)
class LeftOut:
    """A reply that did not enter the round, and the rule that it breaks."""

    who: str  # "device 3", or "node 123" when the reply does not say which device it is
    reason: str


@dataclass(frozen=True)
class Accusation:
    """An edge server that others voted against."""

    server: int
    offence: str  # see `flower_bfl.chain_adapter.records.Evidence`
    step: int  # of the ledger, where it happened
    votes: int
    voted_out: bool  # the votes were enough: it is in quarantine


def in_words(offence: str, step: int) -> str:
    """What an edge server is accused of."""
    if offence == "accusation":
        return f"accusing edge server {step} without reason"
    told = {"model": "its model", "no model": "no model as the leader"}
    return told.get(offence, f"its {offence} in step {step}")


@dataclass(frozen=True)
class LedgerCost:
    """What recording one round took."""

    blocks: int = 0
    transactions: int = 0
    gas: int = 0
    calldata_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0  # spent in the ledger, partly while devices train


@dataclass(frozen=True)
class RoundReport:
    """One line of rounds.jsonl: what a round did, cost and achieved. Seconds are wall time."""

    round: int
    devices: int = 0  # replies that entered the round
    samples: float = 0  # D
    left_out: tuple[LeftOut, ...] = ()
    down: tuple[str, ...] = ()  # edge servers and links that failed, and from which step
    server_devices: tuple[tuple[int, ...], ...] = ()  # devices whose gradients each edge server summed up
    server_data: tuple[tuple[int, ...], ...] = ()  # devices whose data each edge server trained on
    kept_local: tuple[LeftOut, ...] = ()  # devices that were to offload their data and did not
    fallback: str = ""  # why the round went by another decision than the controller's
    suspected: tuple[LeftOut, ...] = ()  # whose gradients deviate, and were recorded but left out
    accused: tuple[Accusation, ...] = ()  # by votes on the ledger
    quarantined: tuple[int, ...] = ()  # edge servers that are barred at the end of the round
    cut_off: tuple[int, ...] = ()  # edge servers that the others' quarantine separates from the rest
    attacked: tuple[str, ...] = ()  # who was an attacker, where that is known: in a simulation
    true_positives: int | None = None  # attackers voted out or suspected; None where nobody knows
    false_positives: int | None = None  # others
    missed: int | None = None  # attackers that acted and were neither
    leader: int | None = None
    p2p_rounds: int = 0  # φ_k, steps that were taken
    spectral_radius: float = 0.0  # λ
    consensus_error: float | None = None  # ‖x/s − Σa‖ of the leader
    consensus_bound: float | None = None  # λ^φ ‖a − s·Σa‖_F / s
    consensus_target: float | None = None  # √(ξ_k/√K), what the error may be; None for a fixed φ
    boost: float | None = None  # τ
    miner: str = ""  # who sealed the block; empty where nobody mines
    mining_seconds: float | None = None  # simulated time of the race
    forks: int = 0  # blocks orphaned in the race
    signed_devices: tuple[int, ...] = ()  # devices that signed, with keys of their own, what they sent
    model_digest: str = ""  # SHA-256 of the model's canonical encoding
    head: str = ""  # hash of the round's BFL block; empty without a ledger
    ledger: LedgerCost = field(default_factory=LedgerCost)
    latency_s: Mapping[str, float] = field(default_factory=dict)  # decided, by phase, see `Price`
    energy_j: Mapping[str, float] = field(default_factory=dict)  # decided, of all devices, by phase
    simulated_seconds: float | None = None  # decided latency of all rounds so far; None without a controller
    report_seconds: float = 0.0  # until devices and edge servers had said who they are
    decide_seconds: float = 0.0  # the controller's
    offload_seconds: float = 0.0  # until data had come
    train_seconds: float = 0.0
    defend_seconds: float = 0.0  # checking, part of aggregate_seconds
    wait_seconds: float = 0.0  # for the blocks of the round before, once the devices had replied
    aggregate_seconds: float = 0.0
    train: Mapping[str, object] = field(default_factory=dict)  # averaged over devices
    evaluate_devices: Mapping[str, object] = field(default_factory=dict)  # averaged over devices
    evaluate: Mapping[str, object] = field(default_factory=dict)  # central, on the global model

    def as_json(self) -> dict[str, object]:
        """Flat form for rounds.jsonl: the ledger's figures stand beside the others."""
        line: dict[str, object] = asdict(self)
        cost = asdict(self.ledger)
        del line["ledger"]
        return line | {"chain_seconds": cost.pop("seconds")} | cost

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "RoundReport":
        """What `as_json` was made of; TypeError or KeyError for other fields. Values are not checked."""
        costs = {each.name for each in fields(LedgerCost)} - {"seconds"}
        cost = LedgerCost(seconds=line["chain_seconds"], **{name: line[name] for name in costs})
        told = {name: value for name, value in line.items() if name not in costs | {"chain_seconds"}}
        read: dict[str, Any] = {"accused": lambda each: Accusation(**each)}
        read |= dict.fromkeys(("left_out", "kept_local", "suspected"), lambda each: LeftOut(**each))
        for name, value in told.items():
            if isinstance(value, list):
                told[name] = tuple(
                    read[name](each) if name in read else tuple(each) if isinstance(each, list) else each
                    for each in value
                )
        return cls(ledger=cost, **told)

    def as_line(self) -> str:
        """One line for a log."""
        parts = [f"round {self.round}: {self.devices} devices"]
        parts += [f"{name} {value:.4g}" for name, value in self.evaluate.items() if isinstance(value, float)]
        if self.consensus_error is not None:
            parts.append(f"consensus error {self.consensus_error:.2g}{self._of_its_target()}")
        if self.ledger.transactions:
            cost = self.ledger
            parts.append(
                f"{cost.transactions} transactions, {cost.gas / 1e6:.1f} Mgas in {cost.seconds:.2f} s"
            )
        if self.round:
            parts.append(f"training {self.train_seconds:.2f} s")
        if self.simulated_seconds is not None:
            offloaded = sum(map(len, self.server_data))
            parts.append(f"{offloaded} offloaded, {self.simulated_seconds:.1f} simulated s so far")
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out")
        if self.kept_local:
            parts.append(f"{len(self.kept_local)} kept local")
        if self.fallback:
            parts.append("without its controller")
        for one in self.accused:
            verdict = "voted out" if one.voted_out else "accused"
            parts.append(f"edge server {one.server} {verdict} for {in_words(one.offence, one.step)}")
        if self.suspected:
            parts.append(f"suspected: {', '.join(one.who for one in self.suspected)}")
        return ", ".join(parts)

    def _of_its_target(self) -> str:
        """After how many steps, where a round chooses them, and whether they were enough."""
        if self.consensus_target is None or self.consensus_bound is None:
            return ""
        enough = self.consensus_bound <= self.consensus_target
        told = "target" if enough else f"not enough: its bound {self.consensus_bound:.2g} is above the target"
        return f" after {self.p2p_rounds} steps ({told} {self.consensus_target:.2g})"
