"""A phase's entries as transactions, in the waves in which a node must mine them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import Account
from flower_bfl.chain_adapter._contract import PIECE_BYTES
from flower_bfl.chain_adapter._phase import OPERATOR, gas_limit, gas_of
from flower_bfl.chain_adapter._rpc_log import to_hex
from flower_bfl.chain_adapter._rpc_outbox import Outgoing
from flower_bfl.chain_adapter._rules import RuleBook, check_bounds, parties, refused
from flower_bfl.chain_adapter.base import Entry, Kind, Sender, digest
from flower_bfl.chain_adapter.signing import signer
from flower_bfl.chain_adapter.store import Payloads
from flower_bfl.errors import RejectedError

_REGISTERED = 64  # accounts a transaction: ten million gas

EntryName = tuple[Kind, int, Sender, int, bytes, bytes]
"""What tells an entry from another: kind, round, sender, step, digest of the payload, signature."""


def name_of(entry: Entry) -> EntryName:
    """The entry's name."""
    return entry.kind, entry.round, entry.sender, entry.step, digest(entry.payload), entry.signature


@dataclass
class Phase:
    """A phase on its way to the chain."""

    names: list[EntryName] = field(default_factory=list)
    registrations: list[Outgoing] = field(default_factory=list)
    waves: list[list[Outgoing]] = field(default_factory=list)  # to be mined one after the other
    stored: set[bytes] = field(default_factory=set)  # payloads that it brought into the store
    calldata_bytes: int = 0
    stored_bytes: int = 0

    @property
    def transactions(self) -> list[Outgoing]:
        """All of them, in order."""
        return [*self.registrations, *(outgoing for wave in self.waves for outgoing in wave)]


class PhasePlanner:
    """Tries entries on a copy of the rules, and plans their transactions if all are allowed.

    `accounts` are the registered ones; `pieces_of` says how many pieces of a payload an account has on the
    chain. For the rest see `PhaseWriter`.
    """

    def __init__(
        self,
        book: RuleBook,
        accounts: Mapping[Sender, bytes],
        pieces_of: Callable[[bytes, bytes], int],
        domain: tuple[int, bytes],
        account: Callable[[Sender], Account],
        store: Payloads,
        inline_bytes: int,
        pieces: bool,
    ) -> None:
        self._book = book.copy()
        self._known = dict(accounts)
        self._pieces_of = pieces_of
        self._domain = domain
        self._account = account
        self._store = store
        self._inline_bytes = inline_bytes
        self._pieces = pieces
        self._sent: set[tuple[bytes, bytes]] = set()
        self._new: list[Sender] = []
        self._phase = Phase()

    def plan(self, entries: Iterable[Entry], now: Callable[[], int | None]) -> Phase:
        """The entries' phase; raises RejectedError or ConfigError, and then leaves nothing in the store."""
        planned: list[tuple[object, list[Outgoing], Outgoing]] = []
        remaining = iter(entries)  # one at a time: a phase's payloads together may be large
        try:
            while (entry := next(remaining, None)) is not None:
                if any(each.sender not in self._known for each in self._parties(entry)):
                    rest = [entry, *remaining]
                    self._register(rest)
                    remaining = iter(rest[1:])
                planned.append((_wave(entry), *self._plan(entry, now)))
        except BaseException:
            self._store.discard(self._phase.stored)
            raise
        self._phase.registrations = self._registrations()
        for _, wave in groupby(planned, lambda each: each[0]):
            _, pieces, transactions = zip(*wave, strict=True)
            self._phase.waves += [[piece for each in pieces for piece in each], list(transactions)]
        return self._phase

    def _plan(self, entry: Entry, now: Callable[[], int | None]) -> tuple[list[Outgoing], Outgoing]:
        """The pieces of the entry's payload, which come first, and its own transaction."""
        check_bounds(entry)
        name = name_of(entry)
        payload_digest = name[4]
        self._check_account(entry, payload_digest)
        now_s = now() if entry.kind is Kind.MODEL else None
        parent, timestamp_s = self._book.head, self._book.next_timestamp_s(entry.round, now_s)
        nonce = self._book.note(entry, payload_digest, now_s)
        self._phase.names.append(name)
        inline, pieces = self._place(entry, payload_digest)
        if entry.kind is Kind.MODEL:
            data = _contract.propose(entry, payload_digest, inline, parent, timestamp_s)
        elif entry.kind is Kind.SEAL:
            data = _contract.seal(entry, nonce)
        else:
            data = _contract.submit(entry, payload_digest, inline)
        return pieces, self._outgoing(entry, data)

    def _register(self, entries: Iterable[Entry]) -> None:
        """Note senders that the contract does not know; raises RejectedError."""
        new: dict[Sender, bytes] = {}
        for entry in entries:
            check_bounds(entry)
            for each in self._parties(entry):
                if each.sender not in self._known and each.sender not in new:
                    new[each.sender] = self._address(each, digest(each.payload))
        for sender in sorted(new):
            self._book.register(sender)
            if new[sender] in self._known.values():
                account = to_hex(new[sender])
                raise RejectedError(f"registration refused, AlreadyRegistered (account {account}): {sender}")
            self._known[sender] = new[sender]
        self._new += new

    def _parties(self, entry: Entry) -> list[Entry]:
        return parties(entry, self._book.rules.edge_servers)

    def _check_account(self, entry: Entry, name: bytes) -> None:
        address, known = self._address(entry, name), self._known[entry.sender]
        if address == known:
            return
        if entry.signature:
            raise refused(f"BadSignature (of {to_hex(address)}, not {to_hex(known)})", entry)
        index = entry.sender.index
        raise RejectedError(f"registration refused, IndexTaken (index {index}): {entry.sender}")

    def _address(self, entry: Entry, name: bytes) -> bytes:
        if not entry.signature:
            return self._account(entry.sender).address
        try:
            return signer(entry.signature, self._domain, entry.kind, entry.round, entry.step, name)
        except ValueError as error:
            raise refused(f"BadSignature: {error}", entry) from error

    def _place(self, entry: Entry, name: bytes) -> tuple[bytes, list[Outgoing]]:
        """What of the payload goes into the entry's calldata, and the pieces before it."""
        payload, phase = entry.payload, self._phase
        if len(payload) <= self._inline_bytes:
            phase.calldata_bytes += len(payload)
            return payload, []
        if not self._pieces:
            if name not in self._store:
                phase.stored.add(name)
            self._store.write(payload, name)
            phase.stored_bytes += len(payload)
            return b"", []
        address = self._payer(entry).address
        if (address, name) in self._sent:
            return b"", []
        self._sent.add((address, name))
        starts = range(0, len(payload), PIECE_BYTES)
        missing = range(self._pieces_of(address, name), len(starts))
        pieces = [_contract.piece(name, index, payload[starts[index] :][:PIECE_BYTES]) for index in missing]
        if pieces:  # else this sender has sent the same payload before
            phase.calldata_bytes += len(payload)
        return b"", [self._outgoing(entry, data) for data in pieces]

    def _registrations(self) -> list[Outgoing]:
        transactions = []
        for _, members in groupby(sorted(self._new), lambda sender: sender.role):
            group = list(members)
            for start in range(0, len(group), _REGISTERED):
                new = {sender: self._known[sender] for sender in group[start : start + _REGISTERED]}
                data = _contract.register(new)
                what = f"registration of {', '.join(map(str, new))}"
                operator = self._account(OPERATOR)
                transactions.append(
                    Outgoing(operator, self._domain[1], data, gas_limit(data, len(new)), what)
                )
        return transactions

    def _outgoing(self, entry: Entry, data: bytes) -> Outgoing:
        place = f"kind {entry.kind.name}, round {entry.round}, step {entry.step}"
        return Outgoing(
            self._payer(entry), self._domain[1], data, gas_of(entry, data), f"{entry.sender}, {place}"
        )

    def _payer(self, entry: Entry) -> Account:
        return self._account(OPERATOR if entry.signature else entry.sender)


def _wave(entry: Entry) -> object:
    """Equal for neighbours that may be mined in any order.

    The order matters for models, seals and restarts, and for a vote that bars an edge server which acts next
    to it.
    """
    if entry.kind in (Kind.MODEL, Kind.SEAL, Kind.RESTART):
        return object()
    return entry.step if entry.kind is Kind.VOTE else None
