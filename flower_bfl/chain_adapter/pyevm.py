"""The ledger on an EVM chain in this process."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from eth_typing import Address

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import CHAIN_ID, Account, contract_of, read_transaction
from flower_bfl.chain_adapter._chain import GUARD, Block, BlockBuilder, EvmChain
from flower_bfl.chain_adapter._contract import PIECE_BYTES
from flower_bfl.chain_adapter._end import ContractState, read_end
from flower_bfl.chain_adapter._phase import OPERATOR, PhaseWriter
from flower_bfl.chain_adapter._reader import EntryReader, Recorded
from flower_bfl.chain_adapter._rules import EPOCH_S, check_bounds, check_same_rules, find_nonce, parties
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.chain_adapter._whole_file import TOTALS, check_whole_file, totals
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Receipt, Recent, Role, Sender
from flower_bfl.chain_adapter.store import Payloads, PayloadStore
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, LedgerError

if TYPE_CHECKING:
    from web3 import Web3
    from web3.contract import Contract

_INLINE_BYTES = {"auto": 24_000, "full": PIECE_BYTES, "digest": 0}
_DEPLOY_GAS = 10**7


@dataclass(frozen=True)
class _Position:
    """Where the chain stands."""

    contract: bytes
    rules: ContractRules
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
    store
        keeps payloads in place of the folder ``payloads/``.
    fsync
        wait for the disk with each phase: what was recorded outlasts a power cut, not only a killed process.
    read_only
        change nothing in the folder; `open` refuses.

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
        store: Payloads | None = None,
        fsync: bool = True,
        read_only: bool = False,
    ) -> None:
        if payloads not in _INLINE_BYTES:
            raise ConfigError(f"`payloads` must be one of {sorted(_INLINE_BYTES)}, got {payloads!r}")
        self._file = None if folder is None else Path(folder) / "chain.sqlite"
        self._store = store or PayloadStore(
            None if folder is None else Path(folder) / "payloads", fsync=fsync
        )
        self._fsync = fsync
        self._payloads = payloads
        self._clock = clock
        self._read_only = read_only
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
    def domain(self) -> tuple[int, bytes]:
        """Chain id and address of the contract, to which a relayed entry's signature is bound."""
        return CHAIN_ID, self._where().contract

    @property
    def web3(self) -> "Web3":
        """A web3.py object on this chain, to read it with the tools that people know; needs web3.py."""
        try:
            from flower_bfl.chain_adapter.web3_view import view
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"`web3` needs the package {error.name}: pip install 'flower-bfl[web3]'"
            ) from error
        return view(lambda: EvmChain(self._connect()), self._lock)

    @property
    def web3_contract(self) -> "Contract":
        """The FlowerBFL contract as a web3.py object."""
        return self.web3.eth.contract(address=Address(self.contract_address), abi=_contract.ABI)

    @property
    def rules(self) -> ContractRules:
        """What the contract checks beyond roles and rounds."""
        return self._where().rules

    @property
    def transactions(self) -> int:
        """Number of transactions on the chain; making the contract and registering accounts count too."""
        return self._where().transactions

    @property
    def gas(self) -> int:
        """Gas of all transactions on the chain."""
        return self._where().gas

    def open(self, keys: Keys, rules: ContractRules | None = None) -> None:
        """Get ready to record, signing with `keys`; makes the chain and the contract if there are none yet.

        Raises LedgerError if the folder cannot be used, or its chain has another operator, contract or rules.
        """
        if self._read_only:
            raise LedgerError(
                f"the chain{self._of_file()} was opened to be read only, so nothing is recorded"
            )
        with self._lock:
            self._keys, self._accounts, self._registered = None, {}, set()
            operator = Account.of(keys, Sender(Role.OPERATOR))
            database = self._connect()
            chain = EvmChain(database)
            if not chain.started:
                self._start(database, chain, operator, rules or ContractRules())
            check_same_rules(rules, self._where().rules, f"the chain{self._of_file()}")
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
        registered, servers = set(self._registered), self.rules.edge_servers
        remaining = iter(entries)  # one at a time: a phase's payloads together may be large
        while (entry := next(remaining, None)) is not None:
            check_bounds(entry)
            own = [each for each in parties(entry, servers) if each.sender not in registered]
            if not all(map(writer.knows, own)):
                rest = list(remaining)
                for each in rest:
                    check_bounds(each)
                needed = [party for each in (entry, *rest) for party in parties(each, servers)]
                writer.register(party for party in needed if party.sender not in registered)
                registered |= {party.sender for party in needed}
                remaining = iter(rest)
            registered |= {each.sender for each in own}
            if entry.kind is Kind.MODEL:
                timestamp_s = EPOCH_S + entry.round if self._clock is None else self._clock()
                timestamp_s = max(position.model_timestamp_s + 1, timestamp_s)
                writer.propose(entry, position.head, timestamp_s)
            elif entry.kind is Kind.SEAL:
                writer.seal(entry, self._nonce(entry, block, position))
            else:
                writer.submit(entry)
                continue
            head, timestamp_s = _last_model(block, position.contract)
            position = replace(position, head=head, model_timestamp_s=timestamp_s)
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

    def _nonce(self, entry: Entry, block: BlockBuilder, position: _Position) -> int:
        proposal = block.view(position.contract, _contract.view("proposal"))
        digest, timestamp_s = proposal[64:96], int.from_bytes(proposal[32:64])
        bits = position.rules.difficulty_bits if any(digest) else 0  # the contract refuses a seal of nothing
        return find_nonce(position.head, timestamp_s, entry.sender, digest, bits)

    def entries(self) -> Iterator[Entry]:
        """Every entry in recorded order.

        Each block must follow from the one before and be sealed by the operator, each transaction must be
        signed and keep the contract's rules, each payload must have its digest; raises LedgerError or
        PayloadError for what does not. What is recorded after the first entry was asked for is not included.
        """
        return (recorded.entry for recorded in self.recorded())

    def recorded(self) -> Iterator[Recorded]:
        """Every entry in recorded order, with its place on the chain; checked as by `entries`."""
        with self._lock:
            position = self._where()
            if position.block_number == 0:
                return
            earlier = lru_cache(1)(lambda block: self._block(block).transactions)  # pieces come one by one
            reader = EntryReader(self._store, lambda block, place: earlier(block)[place])
            parent = self._block(0).hash
        for number in range(1, position.block_number + 1):
            with self._lock:
                block = self._block(number, parent)
                parent = block.hash
                read = reader.read(number, block.transactions)
            if block.sealer != reader.operator:
                raise LedgerError(
                    f"block {number} must be sealed by the operator, 0x{reader.operator.hex()}, "
                    f"found 0x{block.sealer.hex()}",
                    block=number,
                    expected=f"seal of 0x{reader.operator.hex()}",
                    found=f"seal of 0x{block.sealer.hex()}",
                )
            yield from read
        if (parent, reader.book.head) != (position.block_hash, position.head):
            raise LedgerError(
                f"the chain{self._of_file()} must end with block {position.block_hash.hex()} and model "
                f"{position.head.hex()}, found {parent.hex()} and {reader.book.head.hex()}",
                block=position.block_number,
                expected=position.head.hex(),
                found=reader.book.head.hex(),
            )

    def recent(self) -> Recent:
        """The end of the run: the last blocks, and for what was before them the contract's own state.

        Blocks must be linked and sealed by the operator, transactions signed, payloads be what their digests
        say; raises LedgerError or PayloadError.
        """
        with self._lock:
            if self._where().block_number == 0:
                return Recent(0)
            chain = EvmChain(self._connect())
            return read_end(chain, self._state(chain), self._store, self.rules.edge_servers)

    def account(self, sender: Sender) -> bytes:
        """Address (20 bytes) of a sender, as the contract has it; empty if it has none."""
        with self._lock:
            if self._where().block_number == 0:
                return b""
            return self._state(EvmChain(self._connect())).address(sender)

    def holder(self, account: bytes) -> Sender | None:
        """Whose address (20 bytes) it is, if the contract has it."""
        with self._lock:
            if self._where().block_number == 0:
                return None
            return self._state(EvmChain(self._connect())).sender(account)

    def check_file(self, progress: Callable[[int, int], object] = lambda block, last: None) -> None:
        """Check that the chain's file is sound, and holds what the chain implies and nothing unknown.

        `progress` hears of each block, and of the number of the last. Raises LedgerError.
        """
        with self._lock:
            check_whole_file(self._connect(), progress)

    def gas_of(self, block: int) -> list[int]:
        """Gas of each transaction of a block, in order; raises LedgerError if it cannot be read."""
        with self._lock:
            chain = EvmChain(self._connect())
            places = range(len(self._block(block).transactions))
            sums = [0, *(int.from_bytes(cast(bytes, chain.receipt(block, place)[1])) for place in places)]
        return [after - before for before, after in pairwise(sums)]

    def close(self) -> None:
        """Close the chain's file until the next use; a chain in memory stays until this object goes."""
        with self._lock:
            self._keys = None
            if self._database is not None and self._file is not None:
                self._database.close()
                self._database = self._position = None

    def _connect(self) -> ChainDatabase:
        if self._database is None:
            self._database = ChainDatabase(self._file, GUARD, fsync=self._fsync, read_only=self._read_only)
        return self._database

    def _block(self, number: int, parent: bytes | None = None) -> Block:
        return EvmChain(self._connect()).block(number, parent)

    def _where(self) -> _Position:
        with self._lock:
            if self._position is None:
                nothing = _Position(bytes(20), ContractRules(), 0, bytes(32), 0, 0)
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
            rules = _contract.read_creation(creation.data)
        except (IndexError, ValueError) as error:
            raise LedgerError(f"block 1 of the chain{self._of_file()} cannot be read: {error}") from error
        contract = contract_of(creation.sender)
        last, block = chain.last, chain.begin(None)
        sums = database.get(TOTALS, bytes(16))
        position = _Position(
            contract,
            rules,
            last.block_number,
            last.hash,
            int.from_bytes(sums[:8]),
            int.from_bytes(sums[8:]),
        )
        head, timestamp_s = _last_model(block, contract)
        return replace(position, head=head, model_timestamp_s=timestamp_s)

    def _start(
        self, database: ChainDatabase, chain: EvmChain, operator: Account, rules: ContractRules
    ) -> None:
        try:
            chain.start(operator.address)
            block = chain.begin(self._now())
            block.apply(operator.sign(0, _DEPLOY_GAS, b"", _contract.creation(rules)))
            block.seal(operator.sign_hash)
            database[TOTALS] = totals(block.transactions, block.gas)
            database.commit()
        except BaseException:
            database.rollback()
            raise

    def _seal(self, database: ChainDatabase, block: BlockBuilder, position: _Position) -> _Position:
        header = block.seal(self._account(OPERATOR).sign_hash)
        transactions, gas = position.transactions + block.transactions, position.gas + block.gas
        database[TOTALS] = totals(transactions, gas)
        self._store.flush()
        database.commit()
        return replace(
            position,
            block_number=header.block_number,
            block_hash=header.hash,
            transactions=transactions,
            gas=gas,
        )

    def _state(self, chain: EvmChain) -> ContractState:
        return ContractState(chain, self._where().contract)

    def _account(self, sender: Sender) -> Account:
        if sender not in self._accounts:
            assert self._keys is not None
            self._accounts[sender] = Account.of(self._keys, sender)
        return self._accounts[sender]

    def _now(self) -> int | None:
        return None if self._clock is None else self._clock()

    def _of_file(self) -> str:
        return "" if self._file is None else f" in {self._file}"


def _last_model(block: BlockBuilder, contract: bytes) -> tuple[bytes, int]:
    """Hash and time of the last BFL block; zeros before the first."""
    height = int.from_bytes(block.view(contract, _contract.view("height")))
    if height == 0:
        return bytes(32), 0
    model = block.view(contract, _contract.view("blocks", height - 1))
    return model[:32], int.from_bytes(model[64:96])
