"""The transactions that a contract has taken, read from a node, and where its rules stand after them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_hash.auto import keccak

from flower_bfl.chain_adapter import _contract, _rlp
from flower_bfl.chain_adapter._accounts import ReadTransaction
from flower_bfl.chain_adapter._contract import Call
from flower_bfl.chain_adapter._reader import EntryReader, Recorded
from flower_bfl.chain_adapter._rlp import Item, number
from flower_bfl.chain_adapter._rpc_node import Node, Refusal
from flower_bfl.chain_adapter.store import Payloads, PayloadStore
from flower_bfl.errors import LedgerError

_MOST_BLOCKS = 2**40
_RANGE = 10_000  # blocks searched at once; fewer where the node wants that
_FETCHED = 50  # transactions a request; of 80,000 bytes each at most, twice that in hexadecimal digits
_KEPT = 2 * _FETCHED


Known = Mapping[bytes, tuple[bytes, int]]
"""Encoded transactions and the gas they took, by hash."""


@dataclass(frozen=True)
class Where:
    """Where a contract is."""

    chain_id: int
    contract: bytes  # address, 20 bytes
    first_block: int  # in which it was made, or an earlier one


@dataclass(frozen=True)
class Place:
    """Where a transaction stands."""

    block: int
    block_hash: bytes
    position: int
    hash: bytes


class ContractLog:
    """The transactions in which a contract wrote an event, in order; failed ones wrote none.

    Each is checked against its hash. That none is left out is the node's word.
    """

    def __init__(self, node: Node, contract: bytes) -> None:
        self._node = node
        self._contract = contract
        self._range = _RANGE
        self._recent: dict[tuple[int, int], bytes] = {}

    def places(self, first: int, last: int) -> Iterator[list[Place]]:
        """Where the contract's transactions from block `first` to `last` stand, a few at a time."""
        while first <= last:
            end = min(last, first + self._range - 1)
            block_range = {"fromBlock": hex(first), "toBlock": hex(end)}
            call = ("eth_getLogs", [{"address": to_hex(self._contract), **block_range}])
            logs = self._node.batch([call])[0]
            if isinstance(logs, Refusal):
                if end == first:
                    raise LedgerError(f"the node at {self._node.name} refuses eth_getLogs: {logs.message}")
                self._range = (end - first + 1) // 2
                continue
            places = sorted(set(map(_read_place, logs)), key=lambda place: (place.block, place.position))
            for start in range(0, len(places), _FETCHED):
                yield places[start : start + _FETCHED]
            first = end + 1

    def fetch(self, places: Sequence[Place]) -> list[bytes]:
        """The encoded transactions that stand there; raises LedgerError if the node has others."""
        answers = self._node.ask_all([("eth_getTransactionByHash", [to_hex(each.hash)]) for each in places])
        encoded = []
        for place, answer in zip(places, answers, strict=True):
            encoded.append(encode_transaction(answer, place, self._node.name))
            self._recent[place.block, place.position] = encoded[-1]
        for key in list(self._recent)[:-_KEPT]:
            del self._recent[key]
        return encoded

    def fetch_at(self, block: int, position: int) -> bytes:
        """The encoded transaction that stands there."""
        if (block, position) in self._recent:  # a piece of the payload that comes next
            return self._recent[block, position]
        answer = self._node.ask("eth_getTransactionByBlockNumberAndIndex", hex(block), hex(position))
        return encode_transaction(answer, Place(block, b"", position, b""), self._node.name)


class ReorganisedError(LedgerError):
    """A block that was read is no longer part of the chain."""


class Follower(EntryReader):
    """Where the contract's rules stand after all that is on the chain; payloads are left alone."""

    def __init__(self, log: ContractLog, node: Node, first: int) -> None:
        super().__init__(PayloadStore(), log.fetch_at)
        self._log = log
        self._node = node
        self._first = first
        self._position = -1  # in its block, of the contract's last transaction
        self.block_number = 0  # of that block
        self.block_hash = bytes(32)
        self.transactions = self.gas = 0

    def advance(self, known: Known) -> None:
        """Read what is new; what is known need not be fetched.

        Raises ReorganisedError if what was read before is gone.
        """
        calls = [("eth_getBlockByNumber", [hex(self.block_number), False]), ("eth_blockNumber", [])]
        anchor, last = self._node.ask_all(calls)
        if self.transactions and (anchor is None or to_bytes(anchor["hash"]) != self.block_hash):
            raise ReorganisedError(
                f"block {self.block_number} at {self._node.name} must be {to_hex(self.block_hash)}, but the "
                "chain was reorganised or set back: open the ledger again, and record what is missing",
                block=self.block_number,
                expected=self.block_hash.hex(),
                found="nothing" if anchor is None else str(anchor["hash"]),
            )
        for listed in self._log.places(max(self._first, self.block_number), block_number(last)):
            before = (self.block_number, self._position)
            places = [place for place in listed if (place.block, place.position) > before]
            unknown = [place for place in places if place.hash not in known]
            fetched = dict(zip(unknown, self._download(unknown), strict=True))
            for place in places:
                encoded, gas = fetched.get(place) or known[place.hash]
                self.read_one(place.block, place.position, encoded)
                self.block_number, self.block_hash = place.block, place.block_hash
                self._position = place.position
                self.transactions += 1
                self.gas += gas

    def pieces(self, account: bytes, name: bytes) -> int:
        """How many pieces of a payload an account has on the chain."""
        return len(self._pieces.get((account, name), ()))

    def _download(self, places: Sequence[Place]) -> list[tuple[bytes, int]]:
        receipts = self._node.ask_all(
            [("eth_getTransactionReceipt", [to_hex(place.hash)]) for place in places]
        )
        gas = [0 if receipt is None else int(receipt["gasUsed"], 16) for receipt in receipts]
        return list(zip(self._log.fetch(places), gas, strict=True))

    def _payload(self, transaction: ReadTransaction, call: Call) -> bytes:
        return b""


def read_recorded(node: Node, where: Where, store: Payloads) -> Iterator[Recorded]:
    """The contract's entries up to now; raises LedgerError for what breaks a rule, PayloadError."""
    last = block_number(node.ask("eth_blockNumber"))
    view = {"to": to_hex(where.contract), "data": to_hex(_contract.view("head"))}
    head = to_bytes(node.ask("eth_call", view, hex(last)))
    log = ContractLog(node, where.contract)
    reader = EntryReader(store, log.fetch_at)
    for places in log.places(where.first_block, last):
        for place, encoded in zip(places, log.fetch(places), strict=True):
            recorded = reader.read_one(place.block, place.position, encoded)
            if recorded is not None:
                yield recorded
    if (reader.domain, reader.book.head) != ((where.chain_id, where.contract), head):
        raise LedgerError(
            f"the transactions of {to_hex(where.contract)} at {node.name} must end with its model "
            f"{to_hex(head)}, found {to_hex(reader.book.head)} of {to_hex(reader.domain[1])}",
            block=last,
            expected=head.hex(),
            found=reader.book.head.hex(),
        )


def check_contract(node: Node, contract: bytes) -> None:
    """Raise LedgerError unless the node has a contract there."""
    chain_id, code = node.ask_all([("eth_chainId", []), ("eth_getCode", [to_hex(contract), "latest"])])
    if not to_bytes(code):
        raise LedgerError(
            f"there must be a contract at {to_hex(contract)} on chain {int(chain_id, 16)}, found none: the "
            f"node at {node.name} is another one, or has lost its chain; another folder starts another ledger"
        )


def find_creation(node: Node, contract: bytes) -> int:
    """Number of the block that made a contract, which must be there, or of an earlier one."""
    last = node.ask("eth_blockNumber")
    low, high = 0, block_number(last)
    while low < high:
        middle = (low + high) // 2
        code = node.batch([("eth_getCode", [to_hex(contract), hex(middle)])])[0]
        if isinstance(code, Refusal):  # the node forgets old states
            return 0
        low, high = (low, middle) if to_bytes(code) else (middle + 1, high)
    return low


def to_hex(value: bytes) -> str:
    """Bytes as JSON-RPC has them."""
    return "0x" + value.hex()


def to_bytes(text: Any) -> bytes:
    """What `to_hex` was given; raises ValueError for anything else."""
    if not isinstance(text, str) or not text.startswith("0x"):
        raise ValueError(f"not hexadecimal: {text!r:.80}")
    value = bytes.fromhex(text[2:])
    if len(text) != 2 + 2 * len(value):
        raise ValueError(f"not hexadecimal: {text!r:.80}")  # spaces, which Python takes
    return value


def block_number(text: Any) -> int:
    """The number of a block; raises ValueError or TypeError for what no chain has."""
    block = int(text, 16)
    if not 0 <= block < _MOST_BLOCKS:
        raise ValueError(f"no number of a block: {text:.80}")
    return block


def encode_transaction(fields: Any, place: Place, node: str) -> bytes:
    """The encoded EIP-1559 transaction that a node describes; raises LedgerError unless it has that hash."""
    try:
        if int(fields["type"], 16) != 2:
            raise ValueError(f"it has type {fields['type']}, not 0x2")
        names = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas")
        items: list[Item] = [number(int(fields[name], 16)) for name in names]
        items += [b"" if fields["to"] is None else to_bytes(fields["to"])]
        items += [number(int(fields["value"], 16)), to_bytes(fields["input"])]
        items.append(
            [
                [to_bytes(each["address"]), [to_bytes(key) for key in each["storageKeys"]]]
                for each in fields.get("accessList") or []
            ]
        )
        parity = fields["yParity"] if "yParity" in fields else fields["v"]
        items += [number(int(value, 16)) for value in (parity, fields["r"], fields["s"])]
        encoded = b"\x02" + _rlp.encode(items)
        if (found := keccak(encoded)) != (expected := place.hash or to_bytes(fields["hash"])):
            raise ValueError(f"its hash must be {to_hex(expected)}, found {to_hex(found)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LedgerError(
            f"block {place.block}, transaction {place.position}: the node at {node} has another one: {error}",
            block=place.block,
            transaction=place.position,
            expected=f"EIP-1559 transaction {to_hex(place.hash)}",
            found=str(error),
        ) from error
    return encoded


def _read_place(log: Any) -> Place:
    block, position = block_number(log["blockNumber"]), int(log["transactionIndex"], 16)
    return Place(block, to_bytes(log["blockHash"]), position, to_bytes(log["transactionHash"]))
