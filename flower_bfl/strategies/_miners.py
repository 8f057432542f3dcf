"""Who seals a round's block."""

from dataclasses import dataclass, replace

import numpy as np

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender
from flower_bfl.chain_adapter.mining import Race, race
from flower_bfl.config import Mining
from flower_bfl.strategies._roster import Trained
from flower_bfl.types import RoundReport

_STREAM = 27  # of random numbers, apart from those of the graph and the data


@dataclass(frozen=True)
class Seal:
    """The entry that seals a round's block, and the race for it (None if nobody raced)."""

    entry: Entry
    race: Race | None

    def noted(self, report: RoundReport) -> RoundReport:
        """The report with what became of the race."""
        report = replace(report, miner=str(self.entry.sender))
        if self.race is None:
            return report
        return replace(report, mining_seconds=self.race.seconds, forks=self.race.forks)


def seal(
    server_round: int, mining: Mining, trained: Trained, leader: int, transactions: int, seed: int
) -> Seal:
    """Devices race that have a hash rate and whose keys this process has; else the leader seals for them."""
    miners = [
        y
        for y, (device, reply) in enumerate(zip(trained.devices, trained.replies, strict=True))
        if not reply.signature and mining.has_rate(device)
    ]
    if not miners:
        return Seal(Entry(Kind.SEAL, server_round, Sender(Role.SERVER, leader), b"", leader), None)
    devices = [trained.devices[y] for y in miners]
    rng = np.random.default_rng([seed, server_round, _STREAM])
    result = race(mining.rates_of(devices), mining.work_hashes, transactions, rng)
    winner = miners[result.winner]
    sender, server = Sender(Role.DEVICE, trained.devices[winner]), int(trained.server_of[winner])
    return Seal(Entry(Kind.SEAL, server_round, sender, b"", server), result)
