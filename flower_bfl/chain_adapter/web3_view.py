"""The chain in this process as web3.py sees any chain, to read it with the tools that people know.

It answers the read-only methods of Ethereum's JSON-RPC. Calls and account states are those of the latest
block; what is older would need an archive of states, and says so.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from eth.abc import BlockHeaderAPI
from eth_hash.auto import keccak
from web3 import Web3
from web3.middleware import ExtraDataToPOAMiddleware
from web3.providers import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from flower_bfl.chain_adapter._accounts import CHAIN_ID, contract_of, read_transaction
from flower_bfl.chain_adapter._chain import EvmChain
from flower_bfl.chain_adapter._rlp import decode
from flower_bfl.errors import FlowerBFLError

_INVALID_PARAMS, _NO_METHOD, _REVERTED = -32602, -32601, 3
_ZERO = bytes(20)

Json = Any


class _ProblemError(Exception):
    """What the caller is told in place of a result."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})


class ChainProvider(JSONBaseProvider):
    """Answers requests from a chain; `chain` gives it, `lock` is held meanwhile."""

    def __init__(self, chain: Callable[[], EvmChain], lock: Any) -> None:
        super().__init__()
        self._open = chain
        self._lock = lock

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """The answer as JSON-RPC has it; an unknown method or a bad parameter is an error in it."""
        answer: dict[str, Json] = {"jsonrpc": "2.0", "id": 1}
        handler = getattr(self, "_" + method, None)
        try:
            if handler is None:
                raise _ProblemError(
                    _NO_METHOD, f"the method {method} is not offered by this chain, which is read-only"
                )
            with self._lock:
                answer["result"] = handler(*params)
        except _ProblemError as problem:
            answer["error"] = problem.error
        except (ValueError, TypeError, KeyError, AttributeError, FlowerBFLError) as error:
            answer["error"] = {"code": _INVALID_PARAMS, "message": f"{method}: {error}"}
        return cast(RPCResponse, answer)

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Always: the chain is in this process."""
        return True

    # -- methods, by their names in JSON-RPC ----------------------------------------------------------------

    def _web3_clientVersion(self) -> Json:  # noqa: N802
        return "flower-bfl/py-evm"

    def _net_version(self) -> Json:
        return str(CHAIN_ID)

    def _eth_chainId(self) -> Json:  # noqa: N802
        return hex(CHAIN_ID)

    def _eth_accounts(self) -> Json:
        return []

    def _eth_syncing(self) -> Json:
        return False

    def _eth_blockNumber(self) -> Json:  # noqa: N802
        return hex(self._open().last.block_number)

    def _eth_gasPrice(self) -> Json:  # noqa: N802
        return hex(_fee(self._open().last))

    def _eth_getBlockByNumber(self, block: Json, full: bool = False) -> Json:  # noqa: N802
        number = self._number(block)
        return None if number is None else self._block(number, full)

    def _eth_getBlockByHash(self, block_hash: str, full: bool = False) -> Json:  # noqa: N802
        number = self._open().number_of(_bytes(block_hash, 32))
        return None if number is None else self._block(number, full)

    def _eth_getBlockTransactionCountByNumber(self, block: Json) -> Json:  # noqa: N802
        number = self._number(block)
        return None if number is None else hex(len(self._open().block(number).transactions))

    def _eth_getTransactionByHash(self, transaction_hash: str) -> Json:  # noqa: N802
        place = self._open().find(_bytes(transaction_hash, 32))
        return None if place is None else self._transaction(*place)

    def _eth_getTransactionByBlockNumberAndIndex(self, block: Json, index: str) -> Json:  # noqa: N802
        number, position = self._number(block), int(index, 16)
        if number is None or position >= len(self._open().block(number).transactions):
            return None
        return self._transaction(number, position)

    def _eth_getTransactionReceipt(self, transaction_hash: str) -> Json:  # noqa: N802
        place = self._open().find(_bytes(transaction_hash, 32))
        return None if place is None else self._receipt(*place)

    def _eth_getLogs(self, wanted: Json) -> Json:  # noqa: N802
        if "blockHash" in wanted:
            only = self._open().number_of(_bytes(str(wanted["blockHash"]), 32))
            first, last = (1, 0) if only is None else (only, only)  # none at all, or this one
        else:
            first = self._number(wanted.get("fromBlock", "latest"), beyond=True) or 0
            last = min(
                self._number(wanted.get("toBlock", "latest"), beyond=True) or 0,
                self._open().last.block_number,
            )
        return [log for number in range(first, last + 1) for log in self._logs(number, wanted)]

    def _eth_call(self, call: Json, block: Json = "latest") -> Json:
        self._latest(block)
        data = _bytes(call.get("data", call.get("input", "0x")))
        answer = (
            self._open()
            .begin(None)
            .call(_bytes(call["to"], 20), data, _bytes(call["from"], 20) if "from" in call else _ZERO)
        )
        if answer.is_error:
            raise _ProblemError(_REVERTED, "execution reverted", "0x" + answer.output.hex())
        return "0x" + answer.output.hex()

    def _eth_getBalance(self, account: str, block: Json = "latest") -> Json:  # noqa: N802
        return hex(self._state(block).get_balance(_bytes(account, 20)))

    def _eth_getTransactionCount(self, account: str, block: Json = "latest") -> Json:  # noqa: N802
        return hex(self._state(block).get_nonce(_bytes(account, 20)))

    def _eth_getCode(self, account: str, block: Json = "latest") -> Json:  # noqa: N802
        return "0x" + self._state(block).get_code(_bytes(account, 20)).hex()

    def _eth_getStorageAt(self, account: str, slot: str, block: Json = "latest") -> Json:  # noqa: N802
        return "0x" + self._state(block).get_storage(_bytes(account, 20), int(slot, 16)).to_bytes(32).hex()

    # -- what they are made of ------------------------------------------------------------------------------

    def _number(self, block: Json, *, beyond: bool = False) -> int | None:
        """Number of a block; None if there is none, unless numbers beyond the last one are wanted."""
        last = self._open().last.block_number
        if block in ("latest", "pending", "safe", "finalized", None):
            return last
        number = 0 if block == "earliest" else int(block, 16)
        return number if beyond or number <= last else None

    def _latest(self, block: Json) -> None:
        if self._number(block) != self._open().last.block_number:
            raise _ProblemError(
                _INVALID_PARAMS, f"only the latest block's state can be asked for, got {block}"
            )

    def _state(self, block: Json) -> Any:
        self._latest(block)
        return self._open().begin(None).state

    def _block(self, number: int, full: bool) -> Json:
        chain = self._open()
        header, encoded = chain.header(number), chain.block(number).transactions
        transactions = (
            [self._transaction(number, position) for position in range(len(encoded))]
            if full
            else ["0x" + keccak(each).hex() for each in encoded]
        )
        size = sum(map(len, encoded)) + len(header.extra_data) + 540  # the header's other fields
        return _header(header) | {
            "transactions": transactions,
            "uncles": [],
            "withdrawals": [],
            "size": hex(size),
        }

    def _transaction(self, number: int, position: int) -> Json:
        chain = self._open()
        header, encoded = chain.header(number), chain.block(number).transactions[position]
        fields = decode(encoded[1:])
        read = read_transaction(encoded)
        chain_id, nonce, tip, cap, gas, _, value = (int.from_bytes(each) for each in _texts(fields[:7]))
        parity, r, s = (int.from_bytes(each) for each in _texts(fields[9:]))
        price = min(cap, _fee(header) + tip)
        numbers = {
            "blockNumber": number, "transactionIndex": position, "type": 2, "chainId": chain_id,
            "nonce": nonce, "gas": gas, "maxPriorityFeePerGas": tip, "maxFeePerGas": cap, "gasPrice": price,
            "value": value, "yParity": parity, "v": parity, "r": r, "s": s,
        }  # fmt: skip
        return {name: hex(value) for name, value in numbers.items()} | {
            "hash": "0x" + keccak(encoded).hex(),
            "blockHash": "0x" + header.hash.hex(),
            "from": "0x" + read.sender.hex(),
            "to": "0x" + read.to.hex() if read.to else None,
            "input": "0x" + read.data.hex(),
            "accessList": [],
        }

    def _receipt(self, number: int, position: int) -> Json:
        chain = self._open()
        encoded = chain.block(number).transactions[position]
        transaction = read_transaction(encoded)
        status, total, bloom, _ = chain.receipt(number, position)
        before = int.from_bytes(chain.receipt(number, position - 1)[1]) if position else 0  # type: ignore[arg-type]
        used = int.from_bytes(cast(bytes, total))
        header = chain.header(number)
        numbers = {
            "blockNumber": number, "transactionIndex": position, "type": 2,
            "status": int.from_bytes(cast(bytes, status)), "gasUsed": used - before,
            "cumulativeGasUsed": used, "effectiveGasPrice": _fee(header),
        }  # fmt: skip
        made = None if transaction.to else "0x" + contract_of(transaction.sender, transaction.nonce).hex()
        return {name: hex(value) for name, value in numbers.items()} | {
            "transactionHash": "0x" + keccak(encoded).hex(),
            "blockHash": "0x" + header.hash.hex(),
            "from": "0x" + transaction.sender.hex(),
            "to": "0x" + transaction.to.hex() if transaction.to else None,
            "contractAddress": made,
            "logsBloom": "0x" + cast(bytes, bloom).hex(),
            "logs": [log for log in self._logs(number, {}) if log["transactionIndex"] == hex(position)],
        }

    def _logs(self, number: int, wanted: dict[str, Json]) -> Iterator[dict[str, Json]]:
        chain = self._open()
        header, encoded = chain.header(number), chain.block(number).transactions
        addresses, topics = _several(wanted.get("address")), wanted.get("topics") or []
        place = 0
        for position, transaction in enumerate(encoded):
            for address, log_topics, data in cast(list[Any], chain.receipt(number, position)[3]):
                log = {
                    "address": "0x" + address.hex(),
                    "topics": ["0x" + topic.hex() for topic in log_topics],
                    "data": "0x" + data.hex(),
                    "blockNumber": hex(number),
                    "blockHash": "0x" + header.hash.hex(),
                    "transactionHash": "0x" + keccak(transaction).hex(),
                    "transactionIndex": hex(position),
                    "logIndex": hex(place),
                    "removed": False,
                }
                place += 1
                if (not addresses or log["address"] in addresses) and _fit(log["topics"], topics):
                    yield log


def view(chain: Callable[[], EvmChain], lock: Any) -> Web3:
    """A web3.py object on a chain in this process; a block's extra data are its `proofOfAuthorityData`."""
    web3 = Web3(ChainProvider(chain, lock))
    web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    return web3


def _header(header: BlockHeaderAPI) -> dict[str, Json]:
    numbers = {
        "number": header.block_number, "timestamp": header.timestamp, "gasLimit": header.gas_limit,
        "gasUsed": header.gas_used, "difficulty": header.difficulty, "baseFeePerGas": _fee(header),
        "blobGasUsed": header.blob_gas_used or 0, "excessBlobGas": header.excess_blob_gas or 0,
    }  # fmt: skip
    texts = {
        "hash": header.hash, "parentHash": header.parent_hash, "sha3Uncles": header.uncles_hash,
        "miner": header.coinbase, "stateRoot": header.state_root, "transactionsRoot": header.transaction_root,
        "receiptsRoot": header.receipt_root, "logsBloom": header.bloom.to_bytes(256),
        "extraData": header.extra_data, "mixHash": header.mix_hash, "nonce": header.nonce,
        "withdrawalsRoot": header.withdrawals_root, "parentBeaconBlockRoot": header.parent_beacon_block_root,
        "requestsHash": getattr(header, "requests_hash", None),
    }  # fmt: skip
    return {name: hex(value) for name, value in numbers.items()} | {
        name: "0x" + value.hex() for name, value in texts.items() if value is not None
    }


def _fee(header: BlockHeaderAPI) -> int:
    return header.base_fee_per_gas or 0


def _bytes(text: str | bytes, size: int | None = None) -> bytes:
    value = text if isinstance(text, bytes) else bytes.fromhex(text.removeprefix("0x"))
    if size is not None and len(value) != size:
        raise ValueError(f"{size} bytes were expected, got {len(value)}")
    return value


def _texts(fields: Sequence[Any]) -> Iterator[bytes]:
    return (field if isinstance(field, bytes) else b"" for field in fields)


def _several(value: Json) -> list[str]:
    return [each.lower() for each in ([value] if isinstance(value, str) else value or [])]


def _fit(topics: list[str], wanted: Sequence[Json]) -> bool:
    """Whether a log's topics are those wanted; None is any, a list is any of these."""
    if len(wanted) > len(topics):
        return False
    pairs = zip(wanted, topics, strict=False)
    return all(each is None or topic in _several(each) for each, topic in pairs)
