"""Transactions back into entries, each checked by the contract's rules and against its digest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eth_hash.auto import keccak

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import ReadTransaction, contract_of, read_transaction
from flower_bfl.chain_adapter._contract import Call
from flower_bfl.chain_adapter._rules import RuleBook
from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, digest
from flower_bfl.chain_adapter.signing import signer
from flower_bfl.chain_adapter.store import Payloads
from flower_bfl.errors import LedgerError, PayloadError, RejectedError

_EMPTY = digest(b"")
_OPERATOR = Sender(Role.OPERATOR)


@dataclass(frozen=True)
class Recorded:
    """An entry, and where it stands on the chain."""

    entry: Entry
    digest: bytes  # SHA-256 of the payload, as it is on the chain
    account: bytes  # address of whoever signed it, 20 bytes
    block: int
    transaction: int  # place in the block
    transaction_hash: bytes
    calldata_bytes: int
    bfl_hash: bytes = b""  # of the BFL block that this entry completed
    nonce: int = 0  # of a seal


class EntryReader:
    """Reads a run's transactions in order; a transaction that breaks a rule of the contract is an error.

    The first one makes the contract. `fetch` gives an earlier transaction, by block and place in it; all
    others than the ledger's are passed over. `book` is where the rules stand after what was read so far.
    """

    def __init__(self, store: Payloads, fetch: Callable[[int, int], bytes]) -> None:
        self._store = store
        self._fetch = fetch
        self._senders: dict[bytes, Sender] = {}
        self._pieces: dict[tuple[bytes, bytes], list[tuple[int, int]]] = {}
        self._nonces: dict[bytes, int] = {}  # the last of each account
        self._domain = (0, bytes(20))
        self.book = RuleBook()
        self.operator = bytes(20)

    @property
    def domain(self) -> tuple[int, bytes]:
        """Chain id and address of the contract, once its creation was read."""
        return self._domain

    @property
    def accounts(self) -> dict[Sender, bytes]:
        """Address of every registered sender."""
        return {sender: address for address, sender in self._senders.items()}

    def read(self, block: int, transactions: Sequence[bytes]) -> list[Recorded]:
        """The entries of the next block; raises LedgerError, which says where, for what breaks a rule."""
        return [
            recorded
            for position, encoded in enumerate(transactions)
            if (recorded := self.read_one(block, position, encoded)) is not None
        ]

    def read_one(self, block: int, position: int, encoded: bytes) -> Recorded | None:
        """The entry of one transaction, if it is one."""
        account = b""
        try:
            transaction = read_transaction(encoded)
            account = transaction.sender
            return self._read(block, position, transaction, encoded)
        except (ValueError, LookupError, OverflowError, LedgerError) as error:
            kind = type(error) if isinstance(error, LedgerError) else LedgerError
            reason = (
                error if isinstance(error, LedgerError) else f"not a transaction of this ledger: {error!r}"
            )
            raise kind(
                f"block {block}, transaction {position}: {reason}",
                block=block,
                transaction=position,
                account=self._name(account),
                expected=getattr(error, "expected", "") or "a transaction that follows the contract's rules",
                found=getattr(error, "found", "") or str(error),
            ) from error

    def _read(
        self, block: int, position: int, transaction: ReadTransaction, encoded: bytes
    ) -> Recorded | None:
        data = transaction.data
        if not self._senders:  # the operator makes the contract
            if transaction.to or transaction.value_wei:
                raise LedgerError("the first transaction must make the contract")
            self.book = RuleBook(_contract.read_creation(data))
            self.operator = transaction.sender
            self._senders[transaction.sender] = _OPERATOR
            self._domain = (transaction.chain_id, contract_of(transaction.sender, transaction.nonce))
            return None
        if transaction.to != self._domain[1]:
            return None
        if transaction.chain_id != self._domain[0]:
            raise LedgerError(f"a transaction of chain {transaction.chain_id}, not {self._domain[0]}")
        if transaction.nonce <= self._nonces.get(transaction.sender, -1):
            raise LedgerError(f"nonce {transaction.nonce} of this account is used up")
        self._nonces[transaction.sender] = transaction.nonce
        if (new := _contract.read_register(data)) is not None:
            self._register(transaction.sender, new)
            return None
        call = _contract.read_call(data)
        if call is None:
            return None
        if transaction.value_wei:
            raise LedgerError(f"`{call.function}` takes no money, got {transaction.value_wei} wei")
        if call.kind is None:
            places = self._pieces.setdefault((transaction.sender, call.digest), [])
            if self._senders.get(transaction.sender) is None or call.index != len(places):
                raise LedgerError(f"piece {call.index} of a payload, of which {len(places)} are there")
            places.append((block, position))
            return None
        account = self._signer(transaction, call)
        sender = self._senders.get(account)
        if sender is None:
            raise RejectedError(f"NotRegistered: 0x{account.hex()}")
        payload = self._payload(transaction, call)
        entry = Entry(call.kind, call.round, sender, payload, call.step, call.signature)
        before = self.book.height
        self._follow(entry, call)
        sealed = self.book.last if self.book.height > before else None
        return Recorded(
            entry=entry,
            digest=call.digest,
            account=account,
            block=block,
            transaction=position,
            transaction_hash=keccak(encoded),
            calldata_bytes=len(call.payload),
            bfl_hash=b"" if sealed is None else sealed.hash,
            nonce=call.nonce,
        )

    def _register(self, by: bytes, new: dict[bytes, Sender]) -> None:
        if by != self.operator:
            raise RejectedError(f"NotOperator: 0x{by.hex()}")
        taken = set(self._senders.values())
        for address, sender in new.items():
            if sender.role is Role.OPERATOR:
                raise RejectedError(f"WrongRole: registration of 0x{address.hex()} as operator")
            if address in self._senders or sender in taken:
                raise RejectedError(f"AlreadyRegistered: 0x{address.hex()} as {sender}")
            self.book.register(sender)
            self._senders[address] = sender

    def _signer(self, transaction: ReadTransaction, call: Call) -> bytes:
        if call.function != "relay":
            return transaction.sender
        assert call.kind is not None
        return signer(call.signature, self._domain, call.kind, call.round, call.step, call.digest)

    def _follow(self, entry: Entry, call: Call) -> None:
        if entry.kind is Kind.MODEL:
            self.book.propose(entry, call.digest, call.timestamp_s, call.parent)
        elif entry.kind is Kind.SEAL:
            self.book.seal(entry, call.nonce)
        else:
            self.book.submit(entry)

    def _payload(self, transaction: ReadTransaction, call: Call) -> bytes:
        places = self._pieces.get((transaction.sender, call.digest))
        if call.payload:
            payload, source = call.payload, "in calldata"
        elif call.digest == _EMPTY:
            payload, source = b"", "empty"
        elif places:
            payload = b"".join(self._piece(*place) for place in places)
            source = f"in {len(places)} pieces"
        else:
            return self._store.read(call.digest)
        if (found := digest(payload)) != call.digest:
            raise PayloadError(
                f"payload {source} must have digest {call.digest.hex()}, found {found.hex()}",
                expected=call.digest.hex(),
                found=found.hex(),
            )
        return payload

    def _piece(self, block: int, position: int) -> bytes:
        call = _contract.read_call(read_transaction(self._fetch(block, position)).data)
        if call is None:  # it was one when its place was noted
            raise LedgerError(f"block {block}, transaction {position} is another one than it was")
        return call.payload

    def _name(self, account: bytes) -> str:
        if not account:
            return ""
        sender = self._senders.get(account)
        return f"0x{account.hex()}" if sender is None else f"{sender} (0x{account.hex()})"
