"""The ledger on an EVM chain in this process."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import Account, contract_of, read_transaction
from flower_bfl.chain_adapter._chain import GUARD, Block, BlockBuilder, EvmChain
from flower_bfl.chain_adapter._contract import PIECE_BYTES
from flower_bfl.chain_adapter._phase import EntryReader, PhaseWriter
from flower_bfl.chain_adapter._rules import EPOCH_S, check_bounds
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Receipt, Role, Sender
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.errors import ConfigError, LedgerError

_INLINE_BYTES = {"auto": 24_000, "full": PIECE_BYTES, "digest": 0}
_DEPLOY_GAS = 10**7
_TOTALS = b"flower-bfl:totals"  # number of transactions and gas so far, 8 bytes each; not part of the chain


@dataclass(frozen=True)
class _Position:
    """Where the chain stands."""

    contract: bytes
    block_number: int
    block_hash: bytes
    transactions: int
    gas: int
    head: bytes = bytes(32)  # of the BFL blocks
    model_timestamp_s: int = 0  # of the last BFL block


class EvmLedger:
    """Entries as signed transactions to the FlowerBFL contract, on py-evm's Prague rules.

    A phase is a block. Opening a folder that has a chain continues it; `head` and `entries` work without
    `open`. Without a clock, time is logical, and the same entries under the same keys give the same chain,
    bit for bit.

    Parameters
    ----------
    folder
        holds ``chain.sqlite`` and ``payloads/``, made if missing; None keeps everything in memory.
    payloads
        "auto": up to 24,000 bytes go into calldata, larger ones into the payload store, with their digest on
        the chain; "full": all go into calldata, in pieces of 80,000 bytes; "digest": all go into the store.
    clock
        gives seconds since 1970, for blocks and BFL blocks; None is logical time.

    Raises
    ------
    ConfigError
        `payloads` is none of the three.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        payloads: Literal["auto", "full", "digest"] = "auto",
        clock: Callable[[], int] | None = None,
    ) -> None:
        if payloads not in _INLINE_BYTES:
            raise ConfigError(f"`payloads` must be one of {sorted(_INLINE_BYTES)}, got {payloads!r}")
        self._file = None if folder is None else Path(folder) / "chain.sqlite"
        self._store = PayloadStore(None if folder is None else Path(folder) / "payloads")
        self._payloads = payloads
        self._clock = clock
        self._lock = threading.RLock()  # py-evm is not thread-safe
        self._database: ChainDatabase | None = None
        self._position: _Position | None = None
        self._keys: Keys | None = None
        self._accounts: dict[Sender, Account] = {}
        self._registered: set[Sender] = set()

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block, 32 bytes; zeros before the first."""
        return self._where().head

    @property
    def block_number(self) -> int:
        """Number of the chain's last block; 0 before `open` made a chain."""
        return self._where().block_number

    @property
    def block_hash(self) -> bytes:
        """Hash of the chain's last block, 32 bytes."""
        return self._where().block_hash

    @property
    def contract_address(self) -> bytes:
        """Address of the FlowerBFL contract, 20 bytes."""
        return self._where().contract

    @property
    def transactions(self) -> int:
        """Number of transactions on the chain; making the contract and registering accounts count too."""
        return self._where().transactions

    @property
    def gas(self) -> int:
        """Gas of all transactions on the chain."""
        return self._where().gas

    def open(self, keys: Keys) -> None:
        """Get ready to record, signing with `keys`; makes the chain and the contract if there are none yet.

        Raises LedgerError if the folder cannot be used, or its chain has another operator or contract.
        """
        with self._lock:
            self._keys, self._accounts, self._registered = None, {}, set()
            operator = Account.of(keys, Sender(Role.OPERATOR))
            database = self._connect()
            chain = EvmChain(database)
            if not chain.started:
                self._start(database, chain, operator)
            if (contract := self._where().contract) != contract_of(operator.address):
                own = contract_of(operator.address)
                raise LedgerError(
                    f"`keys` must be those of the chain{self._of_file()}: "
                    f"its contract is 0x{contract.hex()}, theirs would be 0x{own.hex()}"
                )
            self._keys = keys

    def record(self, entries: Iterable[Entry]) -> Receipt:
        """Record one phase in one block; see `Ledger.record`. Raises ConfigError for too large a number."""
        with self._lock:
            if self._keys is None:
                raise LedgerError("`record` needs an open ledger: call `open(keys)` first")
            database, position = self._connect(), self._where()
            block = EvmChain(database).begin(self._now())
            inline, pieces = _INLINE_BYTES[self._payloads], self._payloads == "full"
            writer = PhaseWriter(block, position.contract, self._account, self._store, inline, pieces)
            try:
                return self._write_phase(entries, writer, block, database, position)
            except BaseException:
                database.rollback()
                self._position = None  # to be read again
                writer.forget()
                raise

    def _write_phase(
        self,
        entries: Iterable[Entry],
        writer: PhaseWriter,
        block: BlockBuilder,
        database: ChainDatabase,
        position: _Position,
    ) -> Receipt:
        registered = set(self._registered)
        remaining = iter(entries)  # one at a time: a phase's payloads together may be large
        while (entry := next(remaining, None)) is not None:
            if entry.sender not in registered:
                rest = [entry, *remaining]
                new = {each.sender for each in rest} - registered
                for each in rest:
                    check_bounds(each)
                writer.register(new)
                registered |= new
                remaining = iter(rest[1:])
            check_bounds(entry)
            if entry.kind is Kind.MODEL:
                timestamp_s = EPOCH_S + entry.round if self._clock is None else self._clock()
                timestamp_s = max(position.model_timestamp_s + 1, timestamp_s)
                writer.publish(entry, timestamp_s)
                head = block.view(position.contract, _contract.view("head"))
                position = replace(position, head=head, model_timestamp_s=timestamp_s)
            else:
                writer.submit(entry)
        if block.transactions:
            self._position = self._seal(database, block, position)
            self._registered = registered
        return Receipt(
            block=self._where().block_number,
            block_hash=self._where().block_hash,
            transactions=block.transactions,
            gas=block.gas,
            calldata_bytes=writer.calldata_bytes,
            stored_bytes=writer.stored_bytes,
        )

    def entries(self) -> Iterator[Entry]:
        """Every entry in recorded order.

        Blocks are checked against the last block's hash, and payloads against their digests; raises
        LedgerError or PayloadError for what does not fit. What is recorded after the first entry was asked
        for is not included.
        """
        with self._lock:
            position = self._where()
            if position.block_number == 0:
                return
            reader = EntryReader(position.contract, self._store, self._block)
            parent = self._block(0).hash
        for number in range(1, position.block_number + 1):
            with self._lock:
                block = self._block(number, parent)
                parent = block.hash
                read = reader.read(block)
            yield from read
        if (parent, reader.head) != (position.block_hash, position.head):
            raise LedgerError(
                f"the chain{self._of_file()} must end with block {position.block_hash.hex()} and model "
                f"{position.head.hex()}, found {parent.hex()} and {reader.head.hex()}"
            )

    def close(self) -> None:
        """Close the chain's file until the next use; a chain in memory stays until this object goes."""
        with self._lock:
            self._keys = None
            if self._database is not None and self._file is not None:
                self._database.close()
                self._database = self._position = None

    def _connect(self) -> ChainDatabase:
        if self._database is None:
            self._database = ChainDatabase(self._file, GUARD)
        return self._database

    def _block(self, number: int, parent: bytes | None = None) -> Block:
        return EvmChain(self._connect()).block(number, parent)

    def _where(self) -> _Position:
        with self._lock:
            if self._position is None:
                nothing = _Position(bytes(20), 0, bytes(32), 0, 0)
                if self._database is None and (self._file is None or not self._file.exists()):
                    return nothing  # reading makes no file
                database = self._connect()
                chain = EvmChain(database)
                if not chain.started:
                    return nothing
                self._position = self._load(database, chain)
            return self._position

    def _load(self, database: ChainDatabase, chain: EvmChain) -> _Position:
        first = chain.block(1).transactions
        try:
            creation = read_transaction(first[0])
        except (IndexError, ValueError) as error:
            raise LedgerError(f"block 1 of the chain{self._of_file()} makes no contract: {error}") from error
        if creation.data != _contract.BYTECODE:
            raise LedgerError(
                f"the chain{self._of_file()} was made by another version of the FlowerBFL contract"
            )
        contract = contract_of(creation.sender)
        last, block = chain.last, chain.begin(None)
        totals = database.get(_TOTALS, bytes(16))
        position = _Position(
            contract, last.block_number, last.hash, int.from_bytes(totals[:8]), int.from_bytes(totals[8:])
        )
        height = int.from_bytes(block.view(contract, _contract.view("height")))
        if height == 0:
            return position
        model = block.view(contract, _contract.view("blocks", height - 1))
        return replace(position, head=model[:32], model_timestamp_s=int.from_bytes(model[64:96]))

    def _start(self, database: ChainDatabase, chain: EvmChain, operator: Account) -> None:
        try:
            chain.start(operator.address)
            block = chain.begin(self._now())
            block.apply(operator.sign(0, _DEPLOY_GAS, b"", _contract.BYTECODE))
            block.seal()
            database[_TOTALS] = _totals(block.transactions, block.gas)
            database.commit()
        except BaseException:
            database.rollback()
            raise

    def _seal(self, database: ChainDatabase, block: BlockBuilder, position: _Position) -> _Position:
        header = block.seal()
        transactions, gas = position.transactions + block.transactions, position.gas + block.gas
        database[_TOTALS] = _totals(transactions, gas)
        database.commit()
        return replace(
            position,
            block_number=header.block_number,
            block_hash=header.hash,
            transactions=transactions,
            gas=gas,
        )

    def _account(self, sender: Sender) -> Account:
        if sender not in self._accounts:
            assert self._keys is not None
            self._accounts[sender] = Account.of(self._keys, sender)
        return self._accounts[sender]

    def _now(self) -> int | None:
        return None if self._clock is None else self._clock()

    def _of_file(self) -> str:
        return "" if self._file is None else f" in {self._file}"


def _totals(transactions: int, gas: int) -> bytes:
    return transactions.to_bytes(8) + gas.to_bytes(8)
