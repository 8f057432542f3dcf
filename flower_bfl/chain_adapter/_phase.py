"""Entries into a block's transactions, and a block's transactions back into entries."""

from collections.abc import Callable, Iterable
from itertools import groupby

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import Account, ReadTransaction, read_transaction
from flower_bfl.chain_adapter._chain import Block, BlockBuilder, RevertedError
from flower_bfl.chain_adapter._contract import PIECE_BYTES, Call
from flower_bfl.chain_adapter._rules import refused
from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, bfl_block_hash, digest
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.errors import LedgerError, PayloadError, RejectedError

_SHARE_WEI = 10**24  # more than an account can spend
_EMPTY = digest(b"")


def gas_limit(data: bytes, accounts: int = 0) -> int:
    """Gas for a call with this calldata that registers so many accounts: ample, for the rest is not paid.

    EIP-7623 asks for 40 gas a byte of calldata at most; 50 covers hashing it and the memory for it as well.
    The largest call without its calldata, `publish`, takes about 140,000 gas, a new account 85,000.
    """
    return 300_000 + 50 * len(data) + 150_000 * accounts


class PhaseWriter:
    """Writes one phase into a block; payloads of more than `inline_bytes` go elsewhere.

    Elsewhere is the chain, in pieces of their own transactions, if `pieces` is set, else `store`. A payload
    is kept before its entry is written, and `forget` takes the new ones back if the phase comes to nothing.
    """

    def __init__(
        self,
        block: BlockBuilder,
        contract: bytes,
        account: Callable[[Sender], Account],
        store: PayloadStore,
        inline_bytes: int,
        pieces: bool,
    ) -> None:
        self._block = block
        self._contract = contract
        self._account = account
        self._store = store
        self._inline_bytes = inline_bytes
        self._pieces = pieces
        self._new: set[bytes] = set()
        self.calldata_bytes = self.stored_bytes = 0

    def forget(self) -> None:
        """Drop the payloads that this phase brought into the store."""
        self._store.discard(self._new)

    def register(self, senders: Iterable[Sender]) -> None:
        """Register senders that the contract does not know, in the operator's name; raises RejectedError."""
        addresses = {sender: self._account(sender).address for sender in sorted(senders)}
        unknown = [sender for sender, address in addresses.items() if not self._is_registered(address)]
        for role, members in groupby(unknown, lambda sender: sender.role):
            group = list(members)
            data = _contract.register({sender: addresses[sender] for sender in group})
            gas = gas_limit(data, len(group))
            try:
                self._send(Sender(Role.OPERATOR), data, gas, _SHARE_WEI * len(group))
            except RevertedError as error:
                indices = ", ".join(str(sender.index) for sender in group)
                reason = _contract.read_error(error.output)
                raise RejectedError(
                    f"registration refused, {reason}: {role.name.lower()} {indices}"
                ) from error

    def submit(self, entry: Entry) -> None:
        """Write one entry that is not a model; raises RejectedError."""
        self._write(entry, lambda name, inline: _contract.submit(entry, name, inline))

    def publish(self, entry: Entry, timestamp_s: int) -> None:
        """Write a model, whose BFL block gets the timestamp; raises RejectedError."""
        self._write(entry, lambda name, inline: _contract.publish(entry, name, inline, timestamp_s))

    def _write(self, entry: Entry, calldata: Callable[[bytes, bytes], bytes]) -> None:
        name = digest(entry.payload)
        try:
            data = calldata(name, self._place(entry, name))
            self._send(entry.sender, data, gas_limit(data))
        except RevertedError as error:
            raise refused(_contract.read_error(error.output), entry) from error

    def _place(self, entry: Entry, name: bytes) -> bytes:
        """See to the payload and return what of it goes into the entry's own calldata."""
        payload = entry.payload
        if len(payload) <= self._inline_bytes:
            self.calldata_bytes += len(payload)
            return payload
        if not self._pieces:
            if name not in self._store:
                self._new.add(name)
            self._store.write(payload, name)
            self.stored_bytes += len(payload)
            return b""
        starts = range(0, len(payload), PIECE_BYTES)
        address = self._account(entry.sender).address
        last = self._block.view(self._contract, _contract.view("pieces", address, name, len(starts) - 1))
        if not any(last):  # else this sender has sent the same payload before
            for index, start in enumerate(starts):
                data = _contract.piece(name, index, payload[start : start + PIECE_BYTES])
                self._send(entry.sender, data, gas_limit(data))
            self.calldata_bytes += len(payload)
        return b""

    def _is_registered(self, address: bytes) -> bool:
        return any(self._block.view(self._contract, _contract.view("accounts", address))[:32])

    def _send(self, sender: Sender, data: bytes, gas: int, value_wei: int = 0) -> None:
        account = self._account(sender)
        nonce = self._block.nonce(account.address)
        self._block.apply(account.sign(nonce, gas, self._contract, data, value_wei))


class EntryReader:
    """Reads entries from blocks 1, 2, ... in turn; `block` fetches one that came before, by its number.

    `head` is the last BFL block's hash, computed from what was read so far.
    """

    def __init__(self, contract: bytes, store: PayloadStore, block: Callable[[int], Block]) -> None:
        self._contract = contract
        self._store = store
        self._block = block
        self._senders: dict[bytes, Sender] = {}
        self.head = bytes(32)
        self._pieces: dict[
            tuple[bytes, bytes], list[tuple[int, int]]
        ] = {}  # block and place in it of each piece

    def read(self, block: Block) -> list[Entry]:
        """The entries of the next block; raises LedgerError or PayloadError with block and transaction."""
        entries: list[Entry] = []
        for position, encoded in enumerate(block.transactions):
            where = f"block {block.number}, transaction {position}"
            try:
                transaction = read_transaction(encoded)
                if not self._senders:  # block 1: the operator makes the contract
                    self._senders[transaction.sender] = Sender(Role.OPERATOR)
                self._senders.update(_contract.read_register(transaction.data))
                call = _contract.read_call(transaction.data) if transaction.to == self._contract else None
                if call is None:
                    continue
                sender = self._senders[transaction.sender]
            except (ValueError, KeyError) as error:
                raise LedgerError(f"{where}: not a transaction of this ledger: {error}") from error
            if call.kind is None:
                places = self._pieces.setdefault((transaction.sender, call.digest), [])
                places.append((block.number, position))
            else:
                payload = self._payload(transaction, call, block, where)
                entries.append(Entry(call.kind, call.round, sender, payload, call.step))
                if call.kind is Kind.MODEL:
                    self.head = bfl_block_hash(self.head, call.timestamp_s, call.nonce, call.digest)
        return entries

    def _payload(self, transaction: ReadTransaction, call: Call, block: Block, where: str) -> bytes:
        places = self._pieces.get((transaction.sender, call.digest))
        if call.payload:
            payload, source = call.payload, "in calldata"
        elif call.digest == _EMPTY:
            payload, source = b"", "empty"
        elif places:
            payload, source = (
                b"".join(self._piece(*place, block) for place in places),
                f"in {len(places)} pieces",
            )
        else:
            try:
                return self._store.read(call.digest)
            except PayloadError as error:
                raise PayloadError(f"{where}: {error}") from error
        if (found := digest(payload)) != call.digest:
            raise PayloadError(
                f"{where}: payload {source} must have digest {call.digest.hex()}, found {found.hex()}"
            )
        return payload

    def _piece(self, number: int, position: int, block: Block) -> bytes:
        holder = block if number == block.number else self._block(number)
        call = _contract.read_call(read_transaction(holder.transactions[position]).data)
        assert call is not None  # it was one when its place was noted
        return call.payload
