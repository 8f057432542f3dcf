"""Runs in which edge servers lie, their audit, and what their rounds must come to, in plain loops."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from federation import Device, Federation, initial, values, walker

from flower_bfl import ConsensusBFL, MemoryLedger, Mining
from flower_bfl.attacks import Attack
from flower_bfl.audit import AuditReport, Incident, audit
from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, decode, digest, simulated_keys
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.signing import address
from flower_bfl.config import ContractRules
from flower_bfl.defences import Replay
from flower_bfl.types import RoundReport

KEYS = simulated_keys(0)  # of a strategy that was given no others
SERVERS, STEPS = 5, 2
LINKS = {
    "complete": {(a, b) for a in range(SERVERS) for b in range(a + 1, SERVERS)},
    "ring": {(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)},
    "line": {(0, 1), (1, 2), (2, 3), (3, 4)},
    "star": {(0, 1), (0, 2), (0, 3), (0, 4)},
}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class OnPaper:
    """Entries as if they stood on a chain that is in order: what the audit makes of them, and fast."""

    rules: ContractRules
    entries: Sequence[Entry]
    domain: tuple[int, bytes] = (0, bytes(20))  # that of a ledger in memory

    @property
    def block_number(self) -> int:
        return len(self.entries)

    def recorded(self) -> Iterator[Recorded]:
        """Every entry in a block of its own, whose number is the entry's place."""
        last = Kind.SEAL if self.rules.difficulty_bits else Kind.MODEL
        for place, entry in enumerate(self.entries):
            ends = entry.kind is (Kind.MODEL if entry.round == 0 else last)
            who, name = address(KEYS(entry.sender)), digest(entry.payload)
            yield Recorded(entry, name, who, place, 0, bytes(32), 0, place.to_bytes(32) if ends else b"")


@dataclass(frozen=True)
class Run:
    """A run, its rounds and its ledger."""

    strategy: ConsensusBFL
    model: Arrays
    entries: list[Entry]

    @property
    def rounds(self) -> dict[int, RoundReport]:
        return {report.round: report for report in self.strategy.reports}

    @property
    def rules(self) -> ContractRules:
        return self.strategy._contract_rules()

    def audit(self) -> AuditReport:
        return audit(OnPaper(self.rules, self.entries))

    def incidents(self) -> tuple[Incident, ...]:
        """What an audit that finds nothing wrong has to tell."""
        report = self.audit()
        assert report.finding is None, report.finding
        return report.incidents

    def blamed(self) -> tuple[Entry | None, str]:
        """The entry that the audit finds wrong, None if one is missing, and the account that it names."""
        finding = self.audit().finding
        assert finding is not None
        assert "can be checked" not in finding.rule  # an exception somewhere inside
        entry = self.entries[finding.block] if f"({account(server(0))[10:12]}" in finding.account else None
        return entry, finding.account

    def of(self, kind: Kind, server_round: int) -> list[Entry]:
        return [entry for entry in self.entries if (entry.kind, entry.round) == (kind, server_round)]

    def votes(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind is Kind.VOTE]

    def model_of(self, server_round: int) -> Arrays:
        """The model that a round's last leader recorded."""
        return {n: np.array(a) for n, a in decode(self.of(Kind.MODEL, server_round)[-1].payload)[0].items()}


def named_walkers(count: int) -> list[Device]:
    return [walker(n, named=True, steps=1 + n % 3) for n in range(count)]


def attacked(
    attacks: Iterable[Attack] = (),
    *,
    defence: Any = Replay(),  # noqa: B008  # frozen
    rounds: int = 2,
    devices: Sequence[Device] | int = 7,
    shuffle: int = 1,
    arrays: Any = None,
    ledger: Any = None,
    **settings: Any,
) -> Run:
    """A short run; the attacks of most tests act in its last round."""
    ledger = ledger or MemoryLedger()
    given = {"edge_servers": SERVERS, "p2p_rounds": STEPS, "quarantine_rounds": 1} | settings
    given = {"mining": Mining(difficulty_bits=1), "fraction_evaluate": 0.0} | given
    strategy = ConsensusBFL(ledger=ledger, attacks=attacks, defence=defence, **given)
    present = named_walkers(devices) if isinstance(devices, int) else devices
    result = strategy.start(Federation(present, shuffle), arrays or initial(), rounds)
    return Run(strategy, values(result.arrays), list(ledger.entries()))


def server(index: int) -> Sender:
    return Sender(Role.SERVER, index)


def account(sender: Sender) -> str:
    """How a finding names who signed."""
    return f"{sender} (0x{address(KEYS(sender)).hex()})"


# -- a round in plain loops ----------------------------------------------------------------------------------


def parts(links: Iterable[tuple[int, int]], left: Collection[int]) -> list[set[int]]:
    """Servers that hang together, largest part first, of equal ones that with the lowest index."""
    groups = [{m} for m in sorted(left)]
    for a, b in links:
        if a in left and b in left:
            one, other = (next(group for group in groups if m in group) for m in (a, b))
            if one is not other:
                groups.remove(other)
                one |= other
    return sorted(groups, key=lambda group: (-len(group), min(group)))


def set_aside(links: Iterable[tuple[int, int]], servers: int, barred: Collection[int]) -> set[int]:
    """The barred, and who is cut off by that."""
    left = set(range(servers)) - set(barred)
    return set(range(servers)) - parts(links, left)[0]


@dataclass(frozen=True)
class Down:
    """A server, or a link, that does not work from a step of the last consensus on."""

    what: int | tuple[int, int]
    step: int = 0


def homes(devices: Iterable[int], servers: int, aside: Collection[int]) -> dict[int, int]:
    """Devices are dealt out in turn; those of a server that is set aside go to the next one left."""
    found = {}
    for n in devices:
        home = n % servers
        while home in aside:
            home = (home + 1) % servers
        found[n] = home
    return found


def round_by_hand(
    before: Arrays,
    after: dict[int, tuple[Arrays, float, int]],  # by device: w_y, D_y, e_y
    links: Iterable[tuple[int, int]],
    *,
    first_leader: int,
    servers: int = SERVERS,
    steps: int = STEPS,
    mass: str = "count",
    aside: Collection[int] = (),
    down: Sequence[Down] = (),
    no_leaders: Collection[int] = (),
) -> tuple[int, Arrays]:
    """Leader and model of a round's last consensus, (6) to (12) in float64.

    Λ is I − 0.9/M · L, or where edge servers are set aside, 1 / (1 + the larger degree) on the other links.
    """
    rest = [link for link in links if not set(link) & set(aside)]
    degree = [sum(m in link for link in rest) for m in range(servers)]
    home = homes(after, servers, {*aside, *(d.what for d in down if d.step == 0)})
    total = fsum(samples for _, samples, _ in after.values())
    tau = fsum(samples * taken for _, samples, taken in after.values()) / total
    dead = [{m for m in range(servers) if m in aside or any(d.what == m and d.step <= s for d in down)}
            for s in range(steps + 1)]  # fmt: skip
    weights = []
    for step in range(steps):
        matrix = np.zeros((servers, servers))
        for a, b in links:
            cut = any(d.what in ((a, b), (b, a)) and d.step <= step for d in down)
            if not cut and a not in dead[step] and b not in dead[step]:
                weight = 1 / (1 + max(degree[a], degree[b])) if aside else 0.9 / servers
                matrix[a, b] = matrix[b, a] = weight
        for m in range(servers):
            matrix[m, m] = 1 - sum(matrix[m])
        weights.append(matrix)

    shares = [0.0] * servers
    for m in range(servers):
        if mass == "data":
            shares[m] = sum(after[n][1] for n in after if home[n] == m) / total
        elif m not in dead[0]:
            shares[m] = 1 / (servers - len(dead[0]))
    sums: dict[str, list] = {name: [] for name in before}
    for name, array in before.items():
        for m in range(servers):
            held = np.zeros(array.shape)
            for n, (model, samples, taken) in after.items():
                if home[n] == m:
                    held += samples / (total * taken) * (array.astype(float) - model[name])
            sums[name].append(held)
    for matrix in weights:
        shares = [sum(matrix[m, o] * shares[o] for o in range(servers)) for m in range(servers)]
        for name, states in sums.items():
            sums[name] = [sum(matrix[m, o] * states[o] for o in range(servers)) for m in range(servers)]
    leader = first_leader
    while leader in dead[steps] or leader in no_leaders or shares[leader] <= 0:
        leader = (leader + 1) % servers
    return leader, {n: before[n] - tau * sums[n][leader] / shares[leader] for n in before}


def trained_on(
    before: Arrays, server_round: int, devices: Iterable[int]
) -> dict[int, tuple[Arrays, float, int]]:
    """What `named_walkers` make of a model."""
    replies = {n: walker(n, named=True, steps=1 + n % 3)(server_round, before) for n in devices}
    return {
        n: (values(r["arrays"]), float(r["metrics"]["num-examples"]), int(r["metrics"]["num-steps"]))
        for n, r in replies.items()
    }


def assert_same(model: Arrays, expected: Arrays, tolerance: float = 3e-6) -> None:
    for name in expected:
        np.testing.assert_allclose(model[name], expected[name], rtol=tolerance, atol=tolerance)
