"""The ledger's rules in plain Python, for tests and for runs that need no proof."""

import threading
from collections.abc import Iterable, Iterator
from hashlib import sha256

from flower_bfl.chain_adapter._rules import EPOCH_S, check_bounds, may_submit, refused
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Receipt, Sender, bfl_block_hash, digest
from flower_bfl.errors import LedgerError, PayloadError

_Slot = tuple[Kind, int, int, Sender]


class MemoryLedger:
    """A list of entries in memory that follows the contract's rules.

    It proves nothing to a third party: nothing is signed, and whoever holds the list can write another one.
    The BFL blocks are the same as those of an `EvmLedger` without a clock that got the same entries.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._ready = False
        self._entries: list[tuple[Entry, bytes]] = []
        self._slots: set[_Slot] = set()
        self._head = bytes(32)
        self._height = 0
        self._block_hash = bytes(32)
        self.block_number = 0

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block, 32 bytes; zeros before the first."""
        return self._head

    def open(self, keys: Keys) -> None:
        """Get ready to record; the keys are not used, for nothing is signed."""
        self._ready = True

    def record(self, entries: Iterable[Entry]) -> Receipt:
        """Record one phase; see `Ledger.record`. A block's hash covers the one before and its digests."""
        phase = list(entries)
        for entry in phase:
            check_bounds(entry)
        with self._lock:
            if not self._ready:
                raise LedgerError("`record` needs an open ledger: call `open(keys)` first")
            slots: set[_Slot] = set()
            head, height = self._head, self._height
            for entry in phase:
                if not may_submit(entry):
                    raise refused("WrongRole", entry)
                if entry.kind is Kind.MODEL:
                    if entry.round != height:
                        raise refused(f"WrongRound (expected {height}, got {entry.round})", entry)
                    head = bfl_block_hash(head, EPOCH_S + height, 0, digest(entry.payload))
                    height += 1
                    continue
                slot = _slot(entry)
                if slot in self._slots or slot in slots:
                    raise refused("AlreadySubmitted", entry)
                slots.add(slot)
            return self._append(phase, slots, head, height)

    def entries(self) -> Iterator[Entry]:
        """Every entry in recorded order, payloads checked against their digests."""
        with self._lock:
            recorded = list(self._entries)
        for entry, expected in recorded:
            if (found := digest(entry.payload)) != expected:
                raise PayloadError(
                    f"payload of {entry.sender} must have digest {expected.hex()}, found {found.hex()}"
                )
            yield entry

    def close(self) -> None:
        """Stop recording until the next `open`; what was recorded stays."""
        self._ready = False

    def _append(self, phase: list[Entry], slots: set[_Slot], head: bytes, height: int) -> Receipt:
        if phase:
            digests = [digest(entry.payload) for entry in phase]
            self._entries += zip(phase, digests, strict=True)
            self._slots |= slots
            self._head, self._height = head, height
            self._block_hash = sha256(self._block_hash + b"".join(digests)).digest()
            self.block_number += 1
        stored = sum(len(entry.payload) for entry in phase)
        return Receipt(self.block_number, self._block_hash, len(phase), 0, 0, stored)


def _slot(entry: Entry) -> _Slot:
    once = entry.kind is Kind.RULES  # rules are given once, whatever round and step say
    return entry.kind, 0 if once else entry.round, 0 if once else entry.step, entry.sender
