"""A small run on a ledger, in plain loops: no formula of it comes from the strategy or the audit."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, Role, Sender, digest, encode, simulated_keys
from flower_bfl.chain_adapter.records import RunRules, model_payload, report_payload
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


def data_digest(k: int, n: int) -> bytes:
    """What a device sends in a round, by its digest: the ledger never has more of it."""
    return sha256(f"samples of device {n} in round {k}".encode()).digest()


def data_payload(k: int, n: int, m: int) -> bytes:
    """Device n sent its data to edge server m."""
    said = {"round": k, "server": m, "num-examples": samples_of(n), "data": data_digest(k, n).hex()}
    return encode({}, texts(said))


def union_of(k: int, devices: Sequence[int]) -> dict[str, str]:
    """What an edge server says of the data that it trained on: whose, and SHA-256 over their digests."""
    union = sha256()
    for n in devices:
        union.update(data_digest(k, n))
    return {"devices": " ".join(map(str, devices)), "data": union.hexdigest()}


def samples_of(n: int) -> int:
    return 10 + 3 * n


def texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


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
    offloads: Mapping[int, int] = field(default_factory=dict)  # edge server of who does not train itself
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
        sent = {n: m for n, m in sorted(self.offloads.items()) if k not in self.idle}
        unions = {m: [n for n in sent if sent[n] == m] for m in active if m in sent.values()}
        training = [
            n
            for n in range(self.devices)
            if n not in self.offloads and n % self.servers in active and k not in self.idle
        ]
        members = [device(n) for n in training] + [server(m) for m in unions]
        home = {device(n): n % self.servers for n in training} | {server(m): m for m in unions}
        rng = np.random.default_rng([1, k])
        gradients = {y: rng.standard_normal(self.size).astype(np.float32) for y in members}
        samples = {device(n): samples_of(n) for n in training}
        samples |= {server(m): sum(map(samples_of, devices)) for m, devices in unions.items()}
        steps = {y: 1 + y.index % 3 if y.role is Role.DEVICE else 4 + y.index for y in members}
        counters = {y: np.array(100 * k + y.index + 50 * (y.role is Role.SERVER)) for y in members}
        model = sha256(self._payload(k - 1)).hexdigest()
        first = [Entry(Kind.DATA, k, device(n), data_payload(k, n, m), m) for n, m in sent.items()]
        for y in members:
            said = {"round": k, "model": model, "num-examples": samples[y], "num-steps": steps[y]}
            if y.role is Role.SERVER:
                said |= union_of(k, unions[y.index])
            payload = encode(arrays_of(gradients[y], count=counters[y]), texts(said))
            first.append(Entry(Kind.GRADIENT, k, y, payload))
        self._phase(first)

        mass = np.ones(self.servers)
        if members:
            total = fsum(samples.values())
            states = np.zeros((self.servers, self.size), np.float32)
            for m in active:
                summed = np.zeros(self.size)
                for y in members:
                    if home[y] == m:
                        summed = summed + gradients[y].astype(float) * (samples[y] / (total * steps[y]))
                states[m] = summed
            mass = np.array([(m in active) / len(active) for m in range(self.servers)])
            if self.mass == "data":
                held = np.zeros(self.servers)
                for y in members:
                    held[home[y]] += samples[y]
                mass = held / total
            for step in range(self.steps + 1):
                up = [m for m in range(self.servers) if m not in dead(max(step - 1, 0))]
                self._phase(self._state(k, step, m, states[m], home) for m in up)
                if step < self.steps:
                    weights = self._weights(down, step, dead(step))
                    states = np.array([_mixed(row, states) for row in weights], np.float32)
                    mass = np.array([_mixed(row, mass) for row in weights])

        leader, passed = self._leader(k, mass, dead(self.steps))
        if members:
            tau = fsum(samples[y] * steps[y] for y in members) / total
            factor = self.learning_rate * tau / mass[leader]
            self.model = (self.model - factor * states[leader].astype(float)).astype(np.float32)
            self.counter = counters[max(members, key=samples.__getitem__)]
        closing = [Entry(Kind.MODEL, k, server(leader), self._payload(k), passed)]
        if down:
            left_out = [LeftOut("device 9", "no reply")]
            closing.insert(0, Entry(Kind.REPORT, k, OPERATOR, report_payload(k, left_out, down)))
        if self.difficulty_bits:
            belongs = {n: self.offloads.get(n, n % self.servers) for n in range(self.devices)}
            able = [n for n in belongs if n not in self.own_keys and belongs[n] in active]
            miner = able[k % len(able)]
            self.last_miner = belongs[miner]
            closing.append(Entry(Kind.SEAL, k, device(miner), b"", self.last_miner))
        self._phase(closing)

    def _state(self, k: int, step: int, m: int, state: np.ndarray, home: Mapping[Sender, int]) -> Entry:
        said: dict[str, object] = {"round": k, "step": step, "server": m}
        if step == 0:
            here = [y for y in home if home[y] == m]
            said["devices"] = " ".join(str(y.index) for y in here if y.role is Role.DEVICE)
            if server(m) in here:
                said["itself"] = "yes"
        return Entry(Kind.CONSENSUS, k, server(m), encode(arrays_of(state), texts(said)), step)

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
