"""The end of a run's chain: its last blocks, and for all that was before them the contract's own state."""

from collections.abc import Iterator

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import CHAIN_ID, ReadTransaction, contract_of, read_transaction
from flower_bfl.chain_adapter._chain import Block, EvmChain
from flower_bfl.chain_adapter._contract import Call
from flower_bfl.chain_adapter._reader import EntryReader, Recorded
from flower_bfl.chain_adapter.base import Entry, Kind, Recent, Role, Sender
from flower_bfl.chain_adapter.store import Payloads
from flower_bfl.errors import LedgerError

_OPERATOR = Sender(Role.OPERATOR)


class ContractState:
    """What the contract answers after the last block."""

    def __init__(self, chain: EvmChain, contract: bytes) -> None:
        self.contract = contract
        self._block = chain.begin(None)

    @property
    def height(self) -> int:
        """Number of BFL blocks."""
        return int.from_bytes(self._ask("height"))

    @property
    def has_rules(self) -> bool:
        """Whether there is a RULES entry."""
        return any(self._ask("digestOf", Kind.RULES, 0, 0, self.address(_OPERATOR)))

    def address(self, sender: Sender) -> bytes:
        """Of a sender, 20 bytes; empty if it has none."""
        address = self._ask("holderOf", sender.role, sender.index)[12:]
        return address if any(address) else b""

    def sender(self, account: bytes) -> Sender | None:
        """Whose account it is, if it is registered."""
        registered, role, index, _ = self._account(account)
        return Sender(Role(role), index) if registered else None

    def quarantined_until(self, server: int) -> int:
        """First round in which an edge server may act again; 0: it was never barred."""
        address = self.address(Sender(Role.SERVER, server))
        return self._account(address)[3] if address else 0

    def _account(self, address: bytes) -> tuple[int, int, int, int]:
        told = self._ask("accounts", address)
        registered, role, index, until = (int.from_bytes(told[at : at + 32]) for at in (0, 32, 64, 96))
        return registered, role, index, until

    def _ask(self, function: str, *words: int | bytes) -> bytes:
        return self._block.view(self.contract, _contract.view(function, *words))


class EndReader(EntryReader):
    """Reads transactions from any block on; that the contract's rules were kept is the contract's word."""

    def __init__(self, store: Payloads, chain: EvmChain, state: ContractState) -> None:
        super().__init__(store, lambda block, place: chain.block(block).transactions[place])
        self._domain = CHAIN_ID, state.contract
        self._state = state
        self._know(state.address(_OPERATOR))

    def _read(
        self, block: int, position: int, transaction: ReadTransaction, encoded: bytes
    ) -> Recorded | None:
        self._know(transaction.sender)
        return super()._read(block, position, transaction, encoded)

    def _signer(self, transaction: ReadTransaction, call: Call) -> bytes:
        account = super()._signer(transaction, call)
        self._know(account)
        return account

    def _know(self, account: bytes) -> None:
        if account not in self._senders and (sender := self._state.sender(account)) is not None:
            self._senders[account] = sender

    def _register(self, by: bytes, new: dict[bytes, Sender]) -> None:
        """The contract has them."""

    def _follow(self, entry: Entry, call: Call) -> None:
        """The contract did."""


def read_end(chain: EvmChain, state: ContractState, store: Payloads, servers: int) -> Recent:
    """The end of a run with so many edge servers.

    Its blocks must be linked and sealed by the operator, transactions signed, payloads be what their digests
    say; raises LedgerError or PayloadError.
    """
    height = state.height
    first, operator = max(height - 1, 0), state.address(_OPERATOR)
    if contract_of(operator) != state.contract:  # else whoever writes its state could say who seals it
        raise LedgerError(f"the operator must be who made the contract 0x{state.contract.hex()}")
    blocks: list[Block] = []
    for block in _backwards(chain, operator):
        blocks.insert(0, block)
        if any(server_round < first for server_round in _rounds(block)):
            break
    reader = EndReader(store, chain, state)
    read = [at.entry for block in blocks for at in reader.read(block.number, block.transactions)]
    entries = [entry for entry in read if entry.round >= first]
    rules = next((entry.payload for entry in entries if entry.kind is Kind.RULES), b"")
    if not rules and state.has_rules:
        rules = _given_rules(chain, EndReader(store, chain, state))
    until = {m: state.quarantined_until(m) for m in range(servers)}
    return Recent(height, rules, tuple(entries), {m: k for m, k in until.items() if k})


def _backwards(chain: EvmChain, operator: bytes) -> Iterator[Block]:
    """The blocks from the last one down to the second: the first one makes the contract."""
    child = None
    for number in range(chain.last.block_number, 1, -1):
        block = chain.block(number)
        if child is not None and chain.header(child).parent_hash != block.hash:
            raise LedgerError(f"block {child} must follow block {number}", block=child)
        if block.sealer != operator:
            raise LedgerError(
                f"block {number} must be sealed by the operator, 0x{operator.hex()}, "
                f"found 0x{block.sealer.hex()}",
                block=number,
                expected=f"seal of 0x{operator.hex()}",
                found=f"seal of 0x{block.sealer.hex()}",
            )
        child = number
        yield block


def _rounds(block: Block) -> Iterator[int]:
    """Rounds of a block's entries."""
    for encoded in block.transactions:
        call = _contract.read_call(read_transaction(encoded).data)
        if call is not None and call.kind is not None:
            yield call.round


def _given_rules(chain: EvmChain, reader: EndReader) -> bytes:
    """The payload of RULES, which come early in a run."""
    for number in range(2, chain.last.block_number + 1):
        for at in reader.read(number, chain.block(number).transactions):
            if at.entry.kind is Kind.RULES:
                return at.entry.payload
    return b""
