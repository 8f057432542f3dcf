"""The mining race: devices compete with their hash rates for the block that publishes the model.

Finding a block is a memoryless search, so the time of device n is exponential with mean ħ/Ψ_n, and it wins
with probability Ψ_n / ΣΨ. The race itself is simulated, for no laptop computes 10¹¹ hashes a second; the
winner then finds a real nonce at the contract's small difficulty (`_rules.find_nonce`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FORKS_PER_TRANSACTION = 1 / 600
"""iota of the paper's section III."""


@dataclass(frozen=True)
class Race:
    """How one round's block was found."""

    winner: int  # position among the miners
    seconds: float  # simulated, orphaned blocks included
    forks: int  # blocks orphaned on the way


def fork_probability(transactions: int) -> float:
    """Probability that a block of this size is orphaned: 1 − exp(−iota·transactions), iota = 1/600."""
    return -math.expm1(-_FORKS_PER_TRANSACTION * transactions)


def race(
    hash_rates: NDArray[np.float64], work_hashes: float, transactions: int, rng: np.random.Generator
) -> Race:
    """One race. hash_rates: Ψ in hashes a second, shape (n,); work_hashes: ħ; transactions: the block's size.

    An orphaned block is raced for anew, and its time counts: ζ of (27) is forks + 1.
    """
    probability = fork_probability(transactions)
    seconds, forks = 0.0, 0
    while True:
        times = rng.exponential(work_hashes / hash_rates)
        winner = int(times.argmin())
        seconds += float(times[winner])
        if rng.random() >= probability:
            return Race(winner, seconds, forks)
        forks += 1
