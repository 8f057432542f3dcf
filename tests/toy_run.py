"""A small run on a ledger, in plain loops: no formula of it comes from the strategy or the audit."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, Role, Sender, digest, simulated_keys
from flower_bfl.chain_adapter.records import (
    Gradient,
    RunRules,
    consensus_payload,
    model_payload,
    report_payload,
)
from flower_bfl.chain_adapter.signing import sign
from flower_bfl.config import Consensus, ContractRules, Outage
from flower_bfl.types import LeftOut

KEYS = simulated_keys(11)
OPERATOR = Sender(Role.OPERATOR)
LINE = np.array([[0.7, 0.3, 0.0], [0.3, 0.4, 0.3], [0.0, 0.3, 0.7]])

Change = Callable[[Entry], Entry | list[Entry]]


def device(index: int) -> Sender:
    return Sender(Role.DEVICE, index)


def server(index: int) -> Sender:
    return Sender(Role.SERVER, index)


def own_key(index: int) -> bytes:
    """A key that only this device has."""
    return sha256(f"kept by device {index}".encode()).digest()


def arrays_of(vector: np.ndarray, **others: Any) -> dict[str, np.ndarray]:
    """The toy's arrays: the trained ones, which are float32, and others."""
    return {"w": vector[:-3].reshape(-1, 3), "b": vector[-3:], **others}


@dataclass
class Toy:
    """What to record. `change` is asked for every entry, just before it is recorded."""

    rounds: int = 2
    devices: int = 5
    steps: int = 2
    mass: str = "count"
    leader: Any = "random"
    difficulty_bits: int = 4
    learning_rate: float = 0.5
    mixing: np.ndarray = field(default_factory=lambda: LINE)
    outages: tuple[Outage, ...] = ()
    own_keys: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()  # rounds in which nobody trains
    pass_over: dict[int, int] = field(default_factory=dict)  # servers passed over without need, by round
    payloads: Any = "auto"
    size: int = 15  # parameters, a multiple of 3
    change: Change = lambda entry: entry

    @property
    def servers(self) -> int:
        return len(self.mixing)

    def record(self, folder: Path, rules: ContractRules | None = None) -> "Toy":
        """Write the run folder; the ledger gets its contract from the toy's rules unless others are given."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ledger = EvmLedger(folder / "chain", payloads=self.payloads)
        self.ledger.open(KEYS, rules or ContractRules(self.servers, self.leader, self.difficulty_bits))
        consensus = Consensus(self.servers, self.steps, self.mass, self.leader, self.learning_rate)
        self.model = np.random.default_rng(0).standard_normal(self.size).astype(np.float32)
        self.counter = np.array(7)
        self.last_miner = None
        rules_entry = Entry(Kind.RULES, 0, OPERATOR, RunRules("Toy", consensus, self.mixing).encode())
        self._phase([rules_entry, Entry(Kind.MODEL, 0, OPERATOR, self._payload(0))])
        self._report(0)
        for k in range(1, self.rounds + 1):
            self._round(k)
            self._report(k)
        self.ledger.close()
        return self

    def _round(self, k: int) -> None:
        down = [outage for outage in self.outages if outage.round == k]

        def dead(step: int) -> set[int]:
            return {o.server for o in down if o.server is not None and o.step <= step}

        active = [m for m in range(self.servers) if m not in dead(0)]
        training = [n for n in range(self.devices) if n % self.servers in active and k not in self.idle]
        rng = np.random.default_rng([1, k])
        sent = self._payload(k - 1)
        gradients = {n: rng.standard_normal(self.size).astype(np.float32) for n in training}
        samples = {n: 10.0 + 3 * n for n in training}
        steps = {n: 1 + n % 3 for n in training}
        counters = {n: np.array(100 * k + n) for n in training}
        self._phase(
            Entry(
                Kind.GRADIENT, k, device(n),
                Gradient(arrays_of(gradients[n], count=counters[n]), samples[n], steps[n]).encode(
                    k, sha256(sent).digest()
                ),
            )
            for n in training
        )  # fmt: skip

        mass = np.ones(self.servers)
        if training:
            total = fsum(samples.values())
            states = np.zeros((self.servers, self.size), np.float32)
            for m in active:
                summed = np.zeros(self.size)
                for n in training:
                    if n % self.servers == m:
                        summed = summed + gradients[n].astype(float) * (samples[n] / (total * steps[n]))
                states[m] = summed
            mass = np.array([(m in active) / len(active) for m in range(self.servers)])
            if self.mass == "data":
                held = np.zeros(self.servers)
                for n in training:
                    held[n % self.servers] += samples[n]
                mass = held / total
            for step in range(self.steps + 1):
                self._phase(
                    Entry(
                        Kind.CONSENSUS, k, server(m),
                        consensus_payload(
                            k, step, m, arrays_of(states[m]),
                            [device(n) for n in training if n % self.servers == m],
                        ),
                        step,
                    )
                    for m in range(self.servers)
                    if m not in dead(max(step - 1, 0))
                )  # fmt: skip
                if step < self.steps:
                    weights = self._weights(down, step, dead(step))
                    states = np.array([_mixed(row, states) for row in weights], np.float32)
                    mass = np.array([_mixed(row, mass) for row in weights])

        leader, passed = self._leader(k, mass, dead(self.steps))
        if training:
            tau = fsum(samples[n] * steps[n] for n in training) / total
            factor = self.learning_rate * tau / mass[leader]
            self.model = (self.model - factor * states[leader].astype(float)).astype(np.float32)
            self.counter = counters[max(training, key=samples.__getitem__)]
        closing = [Entry(Kind.MODEL, k, server(leader), self._payload(k), passed)]
        if down:
            left_out = [LeftOut("device 9", "no reply")]
            closing.insert(0, Entry(Kind.REPORT, k, OPERATOR, report_payload(k, left_out, down)))
        if self.difficulty_bits:
            able = [n for n in range(self.devices) if n not in self.own_keys and n % self.servers in active]
            miner = able[k % len(able)]
            self.last_miner = miner % self.servers
            closing.append(Entry(Kind.SEAL, k, device(miner), b"", self.last_miner))
        self._phase(closing)

    def _weights(self, down: list[Outage], step: int, dead: set[int]) -> np.ndarray:
        left = self.mixing.copy()
        lost = [o.link for o in down if o.link is not None and o.step <= step]
        lost += [(m, other) for m in sorted(dead) for other in range(self.servers) if other != m]
        for a, b in lost:
            for own, other in ((a, b), (b, a)):
                left[own, own] += left[own, other]
                left[own, other] = 0
        return left

    def _leader(self, k: int, mass: np.ndarray, dead: set[int]) -> tuple[int, int]:
        if self.leader == "reputation" and self.last_miner is not None:
            first = self.last_miner
        elif isinstance(self.leader, int):
            first = self.leader
        else:
            drawn = sha256(self.ledger.head + k.to_bytes(8, "big")).digest()
            first = int.from_bytes(drawn, "big") % self.servers
        passed = self.pass_over.get(k, 0)
        while mass[(first + passed) % self.servers] <= 0 or (first + passed) % self.servers in dead:
            passed += 1
        return (first + passed) % self.servers, passed

    def _payload(self, k: int) -> bytes:
        return model_payload(k, {**arrays_of(self.model), "count": self.counter})

    def _phase(self, entries: Any) -> None:
        changed: list[Entry] = []
        for entry in entries:
            result = self.change(entry)
            changed += result if isinstance(result, list) else [result]
        self.ledger.record([self._signed(entry) for entry in changed])

    def _signed(self, entry: Entry) -> Entry:
        if entry.sender.role is not Role.DEVICE or entry.sender.index not in self.own_keys:
            return entry
        name = digest(entry.payload)
        key, domain = own_key(entry.sender.index), self.ledger.domain
        return replace(entry, signature=sign(key, domain, entry.kind, entry.round, entry.step, name))

    def _report(self, k: int) -> None:
        payload = [e.payload for e in self.ledger.entries() if e.kind is Kind.MODEL and e.round == k][-1]
        line = {
            "round": k,
            "head": self.ledger.head.hex(),
            "model_digest": digest(payload).hex() if k else "",
        }
        with (self.folder / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if k:
            (self.folder / "model.safetensors").write_bytes(payload)


def _mixed(row: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ row_m · values_m over the weights that are not zero, in order, in float64."""
    linked = np.flatnonzero(row)
    total = row[linked[0]] * values[linked[0]].astype(float)
    for m in linked[1:]:
        total = total + row[m] * values[m].astype(float)
    return total
