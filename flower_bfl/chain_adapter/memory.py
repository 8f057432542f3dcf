"""The ledger's rules in plain Python, for tests and for runs that need no proof."""

import threading
from collections.abc import Iterable, Iterator
from hashlib import sha256

from flower_bfl.chain_adapter._rules import RuleBook, check_bounds, check_same_rules, parties
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Receipt, Recent, Role, Sender, digest
from flower_bfl.config import ContractRules
from flower_bfl.errors import LedgerError, PayloadError


class MemoryLedger:
    """A list of entries in memory that follows the contract's rules.

    It proves nothing to a third party: nothing is signed, and whoever holds the list can write another one.
    The BFL blocks are the same as those of an `EvmLedger` without a clock that got the same entries.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._ready = self._has_rules = False
        self._entries: list[tuple[Entry, bytes]] = []
        self._book = RuleBook()
        self._registered = frozenset({Sender(Role.OPERATOR)})
        self._block_hash = bytes(32)
        self.block_number = 0

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block, 32 bytes; zeros before the first."""
        return self._book.head

    @property
    def domain(self) -> tuple[int, bytes]:
        """No chain and no contract: zeros."""
        return 0, bytes(20)

    def open(self, keys: Keys, rules: ContractRules | None = None) -> None:
        """Get ready to record; the keys are not used, for nothing is signed."""
        if not self._has_rules:
            self._book, self._has_rules = RuleBook(rules or ContractRules()), True
        check_same_rules(rules, self._book.rules, "the ledger in memory")
        self._ready = True

    def record(self, entries: Iterable[Entry]) -> Receipt:
        """Record one phase; see `Ledger.record`. A block's hash covers the one before and its digests."""
        phase = list(entries)
        with self._lock:
            if not self._ready:
                raise LedgerError("`record` needs an open ledger: call `open(keys)` first")
            book, registered = self._book.copy(), self._registered
            digests = [digest(entry.payload) for entry in phase]

            def senders(entry: Entry) -> set[Sender]:
                return {each.sender for each in parties(entry, book.rules.edge_servers)}

            for place, entry in enumerate(phase):
                check_bounds(entry)
                if not registered >= senders(entry):  # an `EvmLedger` then registers all who are to come
                    for each in phase[place:]:
                        check_bounds(each)
                    registered = registered.union(*map(senders, phase[place:]))
                    for sender in sorted(registered):
                        book.register(sender)
                book.note(entry, digests[place])
            self._registered = registered
            return self._append(phase, digests, book)

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

    def recent(self) -> Recent:
        """The end of the run."""
        with self._lock:
            height, until = self._book.height, dict(self._book.quarantined_until)
            last = [each for each, _ in self._entries if each.round >= height - 1]
            rules = next((each.payload for each, _ in self._entries if each.kind is Kind.RULES), b"")
        return Recent(height, rules, tuple(last), until)

    def account(self, sender: Sender) -> bytes:
        """Nobody has an address here."""
        return b""

    def holder(self, account: bytes) -> Sender | None:
        """Nobody has an address here."""
        return None

    def close(self) -> None:
        """Stop recording until the next `open`; what was recorded stays."""
        self._ready = False

    def _append(self, phase: list[Entry], digests: list[bytes], book: RuleBook) -> Receipt:
        if phase:
            self._entries += zip(phase, digests, strict=True)
            self._book = book
            self._block_hash = sha256(self._block_hash + b"".join(digests)).digest()
            self.block_number += 1
        stored = sum(len(entry.payload) for entry in phase)
        return Receipt(self.block_number, self._block_hash, len(phase), 0, 0, stored)
