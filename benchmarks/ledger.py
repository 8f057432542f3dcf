"""What recording costs: time per 5 KB transaction on each ledger, and gas by kind of entry.

    python benchmarks/ledger.py [--phases 40] [--senders 20]

The ledgers take turns, phase by phase, so that a busy machine slows all of them alike; printed is the median
over the phases. Gas does not depend on the machine.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from flower_bfl.chain_adapter import (
    Entry,
    EvmLedger,
    Kind,
    Ledger,
    MemoryLedger,
    Role,
    Sender,
    simulated_keys,
)

KEYS = simulated_keys(1)
OPERATOR = Sender(Role.OPERATOR)


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def phase(server_round: int, senders: int, size: int = 5_000) -> list[Entry]:
    return [
        Entry(Kind.GRADIENT, server_round, Sender(Role.DEVICE, n), noise(size, 1000 * server_round + n))
        for n in range(senders)
    ]


def time_ms(ledgers: dict[str, Ledger], phases: int, senders: int) -> dict[str, float]:
    """Median milliseconds per transaction; the first phase, which registers the senders, is left out."""
    taken_s: dict[str, list[float]] = {name: [] for name in ledgers}
    for k in range(phases + 1):
        entries = phase(k, senders)
        for name, ledger in ledgers.items():
            start = time.perf_counter()
            ledger.record(entries)
            taken_s[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) / senders * 1e3 for name, times in taken_s.items()}


def print_times(phases: int, senders: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledgers: dict[str, Ledger] = {
            "EvmLedger in memory": EvmLedger(),
            "EvmLedger on disk": EvmLedger(Path(folder)),
            "MemoryLedger": MemoryLedger(),
        }
        for ledger in ledgers.values():
            ledger.open(KEYS)
        times = time_ms(ledgers, phases, senders)
        for ledger in ledgers.values():
            ledger.close()
    reference = times["EvmLedger in memory"]
    print(f"{phases} phases of {senders} transactions of 5,000 bytes\n")
    print("| ledger | ms a transaction | ratio |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.3f} | {value / reference:.2f} |")


def print_gas() -> None:
    """Gas of each kind of entry, without registrations; random payloads, as trained weights nearly are."""
    server, device = Sender(Role.SERVER, 0), Sender(Role.DEVICE, 0)
    rows: list[tuple[str, int]] = []

    def gas(name: str, ledger: EvmLedger, *entries: Entry) -> None:
        rows.append((name, ledger.record(entries).gas))

    small = EvmLedger()
    small.open(KEYS)
    rows.append(("create the contract", small.gas))
    small.record([Entry(Kind.MODEL, 0, OPERATOR, b"0")])
    both = small.record([Entry(Kind.GRADIENT, 0, device, b"x"), Entry(Kind.CONSENSUS, 0, server, b"x")]).gas
    without = small.record(
        [Entry(Kind.GRADIENT, 1, device, b"x"), Entry(Kind.CONSENSUS, 1, server, b"x")]
    ).gas
    rows.append(("register one account", (both - without) // 2))
    for size in (32, 5_000, 24_000):
        gas(
            f"submit, {size:,} bytes in calldata",
            small,
            Entry(Kind.GRADIENT, 10 + size, device, noise(size, size)),
        )
    gas("submit, digest only", small, Entry(Kind.GRADIENT, 2, device, noise(24_001, 1)))
    for k, size in enumerate((5_000, 24_000, 24_001), start=1):
        where = "in calldata" if size <= 24_000 else "by digest"
        gas(f"publish, {size:,} bytes {where}", small, Entry(Kind.MODEL, k, server, noise(size, size)))
    full = EvmLedger(payloads="full")
    full.open(KEYS)
    full.record([Entry(Kind.GRADIENT, 0, device, b"x")])
    for size in (80_000, 1_000_000):
        pieces = f", {-(-size // 80_000)} pieces and the entry" if size > 80_000 else ""
        gas(
            f"submit, {size:,} bytes in calldata{pieces}",
            full,
            Entry(Kind.GRADIENT, size, device, noise(size, size)),
        )
    print("\n| what | gas |\n|---|---|")
    for name, used in rows:
        print(f"| {name} | {used:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phases", type=int, default=40)
    parser.add_argument("--senders", type=int, default=20)
    arguments = parser.parse_args()
    print_times(arguments.phases, arguments.senders)
    print_gas()


if __name__ == "__main__":
    main()
