"""Who seals a round's block."""

from collections.abc import Mapping
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
    server_round: int,
    mining: Mining,
    servers: Mapping[int, int],
    leader: int,
    transactions: int,
    seed: int,
    hash_rates: Mapping[int, float] | None = None,
) -> Seal:
    """Devices race for the block, each for its edge server in `servers`; nobody there: the leader seals it.

    Their hash rates are the given ones, or else those of `mining`; a device without one does not race.
    """
    known = [device for device in sorted(servers) if mining.has_rate(device)]
    rates = dict(zip(known, mining.rates_of(known), strict=True)) if known else {}
    if hash_rates is not None:
        rates = {device: hash_rates[device] for device in sorted(servers) if device in hash_rates}
    if not rates:
        return Seal(Entry(Kind.SEAL, server_round, Sender(Role.SERVER, leader), b"", leader), None)
    rng = np.random.default_rng([seed, server_round, _STREAM])
    result = race(np.array([*rates.values()]), mining.work_hashes, transactions, rng)
    winner = [*rates][result.winner]
    sender = Sender(Role.DEVICE, winner)
    return Seal(Entry(Kind.SEAL, server_round, sender, b"", servers[winner]), result)


def miners(trained: Trained) -> dict[int, int]:
    """Devices whose keys this process has, with their edge servers."""
    replies = zip(trained.senders, trained.replies, trained.server_of.tolist(), strict=True)
    return {
        sender.index: server
        for sender, reply, server in replies
        if sender.role is Role.DEVICE and not reply.signature
    }
