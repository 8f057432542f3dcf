"""Entries into a block's transactions."""

from collections.abc import Callable, Iterable
from itertools import groupby

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import CHAIN_ID, Account
from flower_bfl.chain_adapter._chain import BlockBuilder, RevertedError
from flower_bfl.chain_adapter._contract import PIECE_BYTES
from flower_bfl.chain_adapter._rules import refused
from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, digest
from flower_bfl.chain_adapter.signing import signer
from flower_bfl.chain_adapter.store import Payloads
from flower_bfl.errors import RejectedError

OPERATOR = Sender(Role.OPERATOR)
_SHARE_WEI = 10**24  # more than an account can spend
_VOTED_OUT = 30  # gas of so many accounts is enough for hundreds of servers that a restart takes back


def gas_of(entry: Entry, data: bytes) -> int:
    """Gas limit of an entry with this calldata."""
    return gas_limit(data, _VOTED_OUT if entry.kind is Kind.RESTART else 0)


def gas_limit(data: bytes, accounts: int = 0) -> int:
    """Gas for a call with this calldata that registers so many accounts: ample, for the rest is not paid.

    EIP-7623 asks for 40 gas a byte of calldata at most; 50 covers hashing it and the memory for it as well.
    The largest call without its calldata, `propose`, takes about 170,000 gas, a new account 85,000.
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
        store: Payloads,
        inline_bytes: int,
        pieces: bool,
    ) -> None:
        self._domain = (CHAIN_ID, contract)
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

    def knows(self, entry: Entry) -> bool:
        """Whether the contract has the entry's signer as its sender."""
        sender = entry.sender
        holder = self._block.view(self._contract, _contract.view("holderOf", sender.role, sender.index))
        return holder[12:] == self._address(entry)

    def register(self, entries: Iterable[Entry]) -> None:
        """Register senders that the contract does not know, in the operator's name; raises RejectedError."""
        addresses = {entry.sender: self._address(entry) for entry in entries if not self.knows(entry)}
        for role, members in groupby(sorted(addresses), lambda sender: sender.role):
            group = list(members)
            data = _contract.register({sender: addresses[sender] for sender in group})
            gas = gas_limit(data, len(group))
            try:
                self._send(OPERATOR, data, gas, _SHARE_WEI * len(group))
            except RevertedError as error:
                indices = ", ".join(str(sender.index) for sender in group)
                reason = _contract.read_error(error.output)
                raise RejectedError(
                    f"registration refused, {reason}: {role.name.lower()} {indices}"
                ) from error

    def submit(self, entry: Entry) -> None:
        """Write one entry that is neither a model nor a seal; raises RejectedError."""
        if entry.signature and not self.knows(entry):
            raise refused("BadSignature", entry)  # the contract would take it for the signer's
        self._write(entry, lambda name, inline: _contract.submit(entry, name, inline))

    def propose(self, entry: Entry, parent: bytes, timestamp_s: int) -> None:
        """Write a model, to follow the BFL block `parent`; raises RejectedError."""
        self._write(entry, lambda name, inline: _contract.propose(entry, name, inline, parent, timestamp_s))

    def seal(self, entry: Entry, nonce: int) -> None:
        """Write a seal; raises RejectedError."""
        self._write(entry, lambda _name, _inline: _contract.seal(entry, nonce))

    def _write(self, entry: Entry, calldata: Callable[[bytes, bytes], bytes]) -> None:
        name = digest(entry.payload)
        try:
            data = calldata(name, self._place(entry, name))
            self._send(_payer(entry), data, gas_of(entry, data))
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
        address = self._account(_payer(entry)).address
        last = self._block.view(self._contract, _contract.view("pieces", address, name, len(starts) - 1))
        if not any(last):  # else this sender has sent the same payload before
            for index, start in enumerate(starts):
                data = _contract.piece(name, index, payload[start : start + PIECE_BYTES])
                self._send(_payer(entry), data, gas_limit(data))
            self.calldata_bytes += len(payload)
        return b""

    def _address(self, entry: Entry) -> bytes:
        """Address of the sender: the signer's, if somebody else relays the entry."""
        if not entry.signature:
            return self._account(entry.sender).address
        name = digest(entry.payload)
        try:
            return signer(entry.signature, self._domain, entry.kind, entry.round, entry.step, name)
        except ValueError as error:
            raise refused(f"BadSignature: {error}", entry) from error

    def _send(self, sender: Sender, data: bytes, gas: int, value_wei: int = 0) -> None:
        account = self._account(sender)
        nonce = self._block.nonce(account.address)
        self._block.apply(account.sign(nonce, gas, self._contract, data, value_wei))


def _payer(entry: Entry) -> Sender:
    """Who sends the transaction: the operator relays what somebody signed elsewhere."""
    return OPERATOR if entry.signature else entry.sender
