"""Writes rounds to the ledger while the devices go on training."""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter

from flower_bfl.chain_adapter.base import Entry, Keys, Ledger
from flower_bfl.config import ContractRules
from flower_bfl.types import LedgerCost

Phases = Iterable[Iterable[Entry]]


class Recorder:
    """One round at a time in a thread of its own; without a ledger it does nothing."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._pending: Future[LedgerCost] | None = None

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block on the ledger; empty without one."""
        return b"" if self._ledger is None else self._ledger.head

    def open(self, keys: Keys, rules: ContractRules) -> None:
        """Open the ledger for writing."""
        if self._ledger is not None:
            self._ledger.open(keys, rules)

    def submit(self, phases: Phases) -> None:
        """Start recording a round, one block a phase; the round before must have been waited for."""
        if self._ledger is not None:
            self._pending = self._pool.submit(_record, self._ledger, phases)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def wait(self) -> LedgerCost:
        """Return once the round's blocks are part of the chain; raises the LedgerError of recording."""
        pending, self._pending = self._pending, None
        return LedgerCost() if pending is None else pending.result()


@contextmanager
def _polite() -> Iterator[None]:
    """Let the interpreter switch threads more often: Flower's ask for it thousands of times a round.

    An EVM in Python hardly ever waits, so that each of their short calls would last a switch interval (5 ms).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, 0.0005))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _record(ledger: Ledger, phases: Phases) -> LedgerCost:
    started = perf_counter()
    with _polite():
        receipts = [ledger.record(phase) for phase in phases]
    return LedgerCost(
        blocks=len(receipts),
        transactions=sum(receipt.transactions for receipt in receipts),
        gas=sum(receipt.gas for receipt in receipts),
        calldata_bytes=sum(receipt.calldata_bytes for receipt in receipts),
        stored_bytes=sum(receipt.stored_bytes for receipt in receipts),
        seconds=perf_counter() - started,
    )
