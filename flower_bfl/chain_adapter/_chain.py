"""An EVM chain in this process: py-evm's Prague rules, one block at a time, without proof of work or stake.

py-evm's own `mine_all` checks again what was just made and encodes each transaction several times. The steps
here are its steps with those repetitions left out; the blocks are the same, and py-evm imports them as valid.

Every block is sealed by the operator, in the form of the Clique networks (EIP-225): the header's extra data
are 32 bytes of text and the signature, 65 bytes, of the header's hash without that signature.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from eth.abc import (
    BlockHeaderAPI,
    ComputationAPI,
    MessageAPI,
    SignedTransactionAPI,
    StateAPI,
    TransactionContextAPI,
)
from eth.chains.base import Chain
from eth.constants import POST_MERGE_NONCE
from eth.db.atomic import AtomicDB
from eth.db.schema import SchemaV1
from eth.exceptions import CanonicalHeadNotFound, HeaderNotFound, Revert, TransactionNotFound
from eth.typing import AccountState, HeaderParams
from eth.vm.code_stream import CodeStream
from eth.vm.forks.london.headers import calculate_expected_base_fee_per_gas
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.blocks import PragueBlock, PragueBlockHeader
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.forks.prague.state import PragueState, PragueTransactionExecutor
from eth.vm.interrupt import EVMMissingData
from eth.vm.message import Message
from eth_bloom.bloom import BloomFilter
from eth_typing import Address, BlockNumber, Hash32
from eth_utils.exceptions import ValidationError
from eth_utils.logging import get_extended_debug_logger
from trie.exceptions import MissingTrieNode

from flower_bfl.chain_adapter._accounts import CHAIN_ID, SignedTransaction, recover
from flower_bfl.chain_adapter._rlp import Item, RLPError, decode, encode, number
from flower_bfl.chain_adapter._rules import EPOCH_S
from flower_bfl.chain_adapter._sqlite import ChainDatabase
from flower_bfl.chain_adapter._trie import read_value, read_values, root_and_nodes
from flower_bfl.errors import LedgerError

GUARD = bytes(SchemaV1.make_canonical_head_hash_lookup_key())
"""Key of the last block's hash."""

EXTRA_DATA_BYTES = 97
_TEXT = b"flower-bfl".ljust(32, b"\0")

_BLOCK_GAS = 1 << 50  # no phase comes near it, so the base fee never rises
_BASE_FEE_WEI = 7  # and cannot fall: an eighth of less than 8 wei is none
_OPERATOR_WEI = 10**40
_VIEW_GAS = 10**7


class _Computation(PragueComputation):
    """A computation that keeps, from one transaction to the next, which places in a code may be jumped to."""

    _jump_targets: ClassVar[dict[bytes, tuple[set[int], set[int]]]] = {}

    def __init__(self, state: StateAPI, message: MessageAPI, context: TransactionContextAPI) -> None:
        super().__init__(state, message, context)
        assert isinstance(self.code, CodeStream)
        known = self._jump_targets.setdefault(message.code, (set(), set()))
        self.code.valid_positions, self.code.invalid_positions = known


class _Executor(PragueTransactionExecutor):
    """py-evm's executor, without its debug log, for which it hashes the calldata even if nobody reads it."""

    def build_evm_message(self, transaction: SignedTransactionAPI) -> MessageAPI:
        state, sender, to = self.vm_state, transaction.sender, transaction.to
        if not to:  # makes a contract, once a run
            return super().build_evm_message(transaction)
        state.delta_balance(sender, -transaction.gas * state.get_gas_price(transaction))
        state.increment_nonce(sender)
        gas = transaction.gas - transaction.intrinsic_gas
        return Message(gas, to, sender, transaction.value, transaction.data, state.get_code(to))


class _State(PragueState):
    computation_class = _Computation  # type: ignore[assignment]  # py-evm has it as fixed
    transaction_executor_class = _Executor
    logger = get_extended_debug_logger("eth.vm.state")  # py-evm looks it up by name each time it is used


class _VM(PragueVM):
    _state_class = _State
    extra_data_max_bytes = EXTRA_DATA_BYTES


class _FlowerChain(Chain):
    vm_configuration = ((BlockNumber(0), _VM),)
    chain_id = CHAIN_ID


class RevertedError(Exception):
    """The contract refused a transaction; `output` is its encoded error."""

    def __init__(self, output: bytes) -> None:
        super().__init__(output.hex())
        self.output = output


_TROUBLES = (
    CanonicalHeadNotFound, HeaderNotFound, EVMMissingData, MissingTrieNode, ValidationError, RLPError,
    ValueError,
)  # fmt: skip


@contextmanager
def _ledger_error(what: str, block: int | None = None) -> Iterator[None]:
    """Turn what py-evm raises for a damaged chain, or a transaction it does not take, into a LedgerError.

    With a block's number, errors that name none get it.
    """
    try:
        yield
    except _TROUBLES as error:
        raise LedgerError(f"{what}: {error!r}", block=block) from error
    except LedgerError as error:
        if error.block is None:
            error.block = block
        raise


@dataclass(frozen=True)
class Block:
    """A recorded block."""

    number: int
    hash: bytes
    sealer: bytes  # address of who signed its header, 20 bytes; none signed the genesis block
    transactions: list[bytes]
    timestamp_s: int
    gas: int


class EvmChain:
    """The chain in a database; empty until `start`."""

    def __init__(self, database: ChainDatabase) -> None:
        self._database = database
        self._chain = _FlowerChain(AtomicDB(database))

    @property
    def started(self) -> bool:
        """Whether there is a genesis block."""
        return GUARD in self._database

    def start(self, operator: bytes) -> None:
        """Write the genesis block, which gives the operator (20 bytes) all the money."""
        state: AccountState = {
            Address(operator): {"balance": _OPERATOR_WEI, "nonce": 0, "code": b"", "storage": {}},
        }
        genesis: dict[str, HeaderParams] = {
            "difficulty": 0,
            "gas_limit": _BLOCK_GAS,
            "timestamp": EPOCH_S,
            "base_fee_per_gas": _BASE_FEE_WEI,
            "extra_data": _TEXT,
        }
        _FlowerChain.from_genesis(AtomicDB(self._database), genesis, state)

    @property
    def last(self) -> BlockHeaderAPI:
        """Header of the last block."""
        with _ledger_error("the chain's last block cannot be read"):
            return self._chain.chaindb.get_canonical_head()

    def begin(self, timestamp_s: int | None) -> "BlockBuilder":
        """A block after the last one, to be filled; without a timestamp it is `EPOCH_S` plus its number.

        Block times must rise: a timestamp that does not is moved to one second after the last block's.
        """
        parent = self.last
        number = parent.block_number + 1
        header = PragueBlockHeader(
            difficulty=0,
            nonce=POST_MERGE_NONCE,
            block_number=BlockNumber(number),
            gas_limit=parent.gas_limit,
            timestamp=max(parent.timestamp + 1, EPOCH_S + number if timestamp_s is None else timestamp_s),
            parent_hash=parent.hash,
            state_root=parent.state_root,
            base_fee_per_gas=calculate_expected_base_fee_per_gas(parent),
        )
        return BlockBuilder(self._database, self._chain, header)

    def header(self, number: int) -> BlockHeaderAPI:
        """Header of a block; raises LedgerError if it is missing."""
        with _ledger_error(f"block {number} of the chain cannot be read", number):
            return self._chain.chaindb.get_canonical_block_header_by_number(BlockNumber(number))

    def number_of(self, block_hash: bytes) -> int | None:
        """Number of the block with this hash; None if there is no such one."""
        try:
            return self._chain.chaindb.get_block_header_by_hash(Hash32(block_hash)).block_number
        except HeaderNotFound:
            return None

    def block(self, number: int, parent: bytes | None = None) -> Block:
        """A block; `parent`, if given, must be the hash of the block before.

        Raises LedgerError, with the block's number, if it is not, or if the block is missing.
        """
        header = self.header(number)
        with _ledger_error(f"block {number} of the chain cannot be read", number):
            transactions = read_values(self._database, header.transaction_root)
        if parent is not None and header.parent_hash != parent:
            raise LedgerError(
                f"block {number} must follow {parent.hex()}, but names {header.parent_hash.hex()}",
                block=number,
                expected=f"parent {parent.hex()}",
                found=header.parent_hash.hex(),
            )
        return Block(number, header.hash, _sealer(header), transactions, header.timestamp, header.gas_used)

    def receipt(self, number: int, position: int) -> list[Item]:
        """Receipt of a block's transaction: status, the block's gas up to it, bloom filter, logs."""
        root = self.header(number).receipt_root
        with _ledger_error(f"block {number}, receipt {position} cannot be read"):
            encoded = read_value(self._database, root, position)
        receipt = decode(encoded[1:])
        assert isinstance(receipt, list)
        return receipt

    def find(self, transaction_hash: bytes) -> tuple[int, int] | None:
        """Block and place in it of a transaction; None if there is no such one."""
        try:
            return self._chain.chaindb.get_transaction_index(Hash32(transaction_hash))
        except TransactionNotFound:
            return None


class BlockBuilder:
    """A block under construction. Nothing reaches the database before `seal`."""

    def __init__(self, database: ChainDatabase, chain: _FlowerChain, header: PragueBlockHeader) -> None:
        self._database = database
        self._chaindb = chain.chaindb
        self._header = header
        vm = chain.get_vm(header)
        assert isinstance(vm, _VM)
        self._vm = vm
        self._transactions: list[SignedTransaction] = []
        self._receipts: list[bytes] = []
        self._bloom = 0
        self.gas = 0

    @property
    def transactions(self) -> int:
        """How many transactions the block has."""
        return len(self._transactions)

    def nonce(self, address: bytes) -> int:
        """Nonce of the address's next transaction."""
        with _ledger_error("an account cannot be read"):
            return self._vm.state.get_nonce(Address(address))

    def view(self, contract: bytes, data: bytes) -> bytes:
        """What a view of a contract answers."""
        answer = self.call(contract, data)
        if answer.is_error:
            raise LedgerError(f"the contract does not answer a view: {answer.error!r}")
        return answer.output

    def call(self, contract: bytes, data: bytes, sender: bytes = bytes(20)) -> ComputationAPI:
        """What becomes of a call that nobody records."""
        to, by = Address(contract), Address(sender)
        with _ledger_error("the contract cannot be read"):
            code = self._vm.state.get_code(to)
            return self._vm.execute_bytecode(by, 0, _VIEW_GAS, to, by, 0, data, code)

    @property
    def state(self) -> StateAPI:
        """Balances, nonces, code and storage."""
        return self._vm.state

    def apply(self, transaction: SignedTransaction) -> None:
        """Execute the next transaction; raises RevertedError, after which this block is of no use."""
        state = self._vm.state
        state.lock_changes()
        with _ledger_error("the chain does not take the transaction"):
            computation = state.apply_transaction(transaction)
        if computation.is_error:
            if isinstance(computation.error, Revert):
                raise RevertedError(computation.output)
            raise LedgerError(f"the chain stopped the transaction: {computation.error!r}")
        self.gas += self._vm.finalize_gas_used(transaction, computation)
        logs = computation.get_log_entries()
        bloom = 0
        for address, topics, _ in logs:
            bloom |= _bloom(address)
            for topic in topics:
                bloom |= _bloom(topic.to_bytes(32))
        self._bloom |= bloom
        self._transactions.append(transaction)
        self._receipts.append(_encode_receipt(self.gas, bloom, logs))

    def seal(self, sign: Callable[[bytes], bytes]) -> BlockHeaderAPI:
        """Hand the block with all state to the database, which has yet to commit it.

        `sign` gives the 65-byte signature of a hash.
        """
        transaction_root, transactions = root_and_nodes([each.encode() for each in self._transactions])
        receipt_root, receipts = root_and_nodes(self._receipts)
        self._database.update(transactions | receipts)
        with _ledger_error("the block cannot be completed"):
            self._vm.state.persist()
            header = self._header.copy(
                state_root=self._vm.state.state_root,
                transaction_root=Hash32(transaction_root),
                receipt_root=Hash32(receipt_root),
                bloom=self._bloom,
                gas_used=self.gas,
                extra_data=_TEXT,
            )
            header = header.copy(extra_data=_TEXT + sign(header.hash))
            self._chaindb.persist_block(PragueBlock(header, self._transactions))
        return header


def _sealer(header: BlockHeaderAPI) -> bytes:
    """Address of who sealed a block, 20 bytes; raises LedgerError if nobody can have."""
    if header.block_number == 0:
        return bytes(20)
    text, signature = header.extra_data[:32], header.extra_data[32:]
    try:
        if text != _TEXT:
            raise ValueError(f"extra data starts with {text!r}")
        return recover(header.copy(extra_data=text).hash, signature)
    except ValueError as error:
        raise LedgerError(
            f"block {header.block_number} is not sealed: {error}",
            block=header.block_number,
            expected="the operator's signature in the extra data",
            found=header.extra_data.hex(),
        ) from error


@lru_cache(4096)  # the same few addresses, events and rounds over and over
def _bloom(value: bytes) -> int:
    return int(BloomFilter.from_iterable([value]))


def _encode_receipt(gas: int, bloom: int, logs: tuple[tuple[bytes, tuple[int, ...], bytes], ...]) -> bytes:
    """A successful EIP-1559 transaction's receipt; `gas` is the block's sum so far."""
    encoded_logs: list[Item] = [
        [address, [topic.to_bytes(32) for topic in topics], data] for address, topics, data in logs
    ]
    used = number(gas)
    return b"\x02" + encode([b"\x01", used, bloom.to_bytes(256), encoded_logs])
