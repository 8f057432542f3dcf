"""web3.py on the chain in this process, against what the ledger itself says of it."""

import pytest
from eth_utils import to_checksum_address
from makers import KEYS, OPERATOR, device, gradient, model

from flower_bfl.chain_adapter import EvmLedger, Kind

Web3 = pytest.importorskip("web3").Web3
from eth_account import Account  # noqa: E402
from eth_account.typed_transactions import TypedTransaction  # noqa: E402
from hexbytes import HexBytes  # noqa: E402
from web3.exceptions import BlockNotFound, ContractCustomError, TransactionNotFound, Web3RPCError  # noqa: E402


@pytest.fixture(scope="module")
def ledger():
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([model(0)])
    for k in range(1, 4):
        ledger.record([gradient(k, device(n)) for n in range(3)])
        ledger.record([model(k)])
    return ledger


@pytest.fixture(scope="module")
def w3(ledger):
    return ledger.web3


def test_the_chain(ledger, w3):
    assert w3.is_connected()
    assert w3.eth.chain_id == ledger.domain[0]
    assert w3.eth.block_number == ledger.block_number
    assert bytes(w3.eth.get_block("latest").hash) == ledger.block_hash
    assert w3.eth.syncing is False and w3.eth.accounts == []


def test_blocks_lead_from_the_last_to_the_first(ledger, w3):
    block = w3.eth.get_block("latest")
    numbers = [block.number]
    while block.number:
        block = w3.eth.get_block(block.parentHash)
        numbers.append(block.number)
    assert numbers == list(range(ledger.block_number, -1, -1))
    assert sum(w3.eth.get_block(n).gasUsed for n in numbers) == ledger.gas
    assert sum(w3.eth.get_block_transaction_count(n) for n in numbers) == ledger.transactions


def test_the_sealer_of_a_block_signed_its_hash(ledger, w3):
    """Rebuilt by web3's own RLP from the fields of the JSON, without this package."""
    import rlp
    from eth_keys import keys

    block = w3.eth.get_block("latest")
    names = [
        "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom",
        "difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce",
        "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot",
        "requestsHash",
    ]  # fmt: skip

    def encoded(value):
        if isinstance(value, int):
            return value.to_bytes((value.bit_length() + 7) // 8, "big")
        return bytes(HexBytes(value))

    def fields(extra):
        return [encoded(extra if name == "extraData" else block[name]) for name in names]

    extra = bytes(block["proofOfAuthorityData"])
    assert Web3.keccak(rlp.encode(fields(extra))) == block.hash
    unsealed = Web3.keccak(rlp.encode(fields(extra[:32])))
    signer = keys.Signature(extra[32:]).recover_public_key_from_msg_hash(unsealed).to_canonical_address()
    assert to_checksum_address(signer) == Account.from_key(KEYS(OPERATOR)).address


def test_transactions_and_receipts(ledger, w3):
    for recorded in ledger.recorded():
        transaction = w3.eth.get_transaction(recorded.transaction_hash)
        receipt = w3.eth.get_transaction_receipt(recorded.transaction_hash)
        assert (transaction.blockNumber, transaction.transactionIndex) == (
            recorded.block,
            recorded.transaction,
        )
        assert transaction["from"] == to_checksum_address(recorded.account)
        assert transaction.to == to_checksum_address(ledger.contract_address)
        assert receipt.status == 1 and receipt["from"] == transaction["from"]
        same = w3.eth.get_transaction_by_block(recorded.block, recorded.transaction)
        assert same.hash == transaction.hash
        names = (
            "chainId",
            "nonce",
            "gas",
            "maxPriorityFeePerGas",
            "maxFeePerGas",
            "value",
            "accessList",
            "v",
        )
        fields = {name: transaction[name] for name in names} | {
            "type": 2,
            "to": bytes(HexBytes(transaction.to)),
            "data": bytes(transaction.input),
            "r": int.from_bytes(transaction.r, "big"),
            "s": int.from_bytes(transaction.s, "big"),
        }
        encoded = TypedTransaction.from_dict(fields).encode()
        assert Web3.keccak(encoded) == transaction.hash
        assert Account.recover_transaction(encoded) == transaction["from"]
    for number in range(1, ledger.block_number + 1):
        block = w3.eth.get_block(number, full_transactions=True)
        receipts = [w3.eth.get_transaction_receipt(each.hash) for each in block.transactions]
        assert sum(receipt.gasUsed for receipt in receipts) == block.gasUsed
        assert [log.logIndex for receipt in receipts for log in receipt.logs] == list(
            range(sum(len(receipt.logs) for receipt in receipts))
        )


def test_the_contracts_events_and_views(ledger, w3):
    contract = ledger.web3_contract
    assert contract.functions.head().call() == ledger.head
    assert contract.functions.height().call() == 4
    submitted = contract.events.Submitted.get_logs(from_block=0)
    gradients = [recorded for recorded in ledger.recorded() if recorded.entry.kind is Kind.GRADIENT]
    assert [event.args.digest for event in submitted] == [each.digest for each in gradients]
    second = contract.events.Submitted.get_logs(from_block=0, argument_filters={"round": 2})
    assert [event.args.round for event in second] == [2, 2, 2]
    nobody = contract.events.Submitted.get_logs(from_block=0, argument_filters={"round": 9})
    assert nobody == [] and w3.eth.get_logs({"address": "0x" + "11" * 20, "fromBlock": 0}) == []
    with pytest.raises(ContractCustomError):
        contract.functions.register([], 1, []).call()


def test_accounts(ledger, w3):
    operator = Account.from_key(KEYS(OPERATOR)).address
    assert w3.eth.get_balance(operator) > 0
    assert w3.eth.get_transaction_count(operator) == sum(
        w3.eth.get_transaction_by_block(n, i)["from"] == operator
        for n in range(1, ledger.block_number + 1)
        for i in range(w3.eth.get_block_transaction_count(n))
    )
    assert len(w3.eth.get_code(to_checksum_address(ledger.contract_address))) > 1000
    assert w3.eth.get_storage_at(to_checksum_address(ledger.contract_address), 0)


def test_what_is_not_there_or_not_offered(w3):
    with pytest.raises(BlockNotFound):
        w3.eth.get_block(10**6)
    with pytest.raises(TransactionNotFound):
        w3.eth.get_transaction("0x" + "00" * 32)
    with pytest.raises(Web3RPCError, match="read-only"):
        w3.eth.send_raw_transaction(b"\x02")
    with pytest.raises(Web3RPCError, match="only the latest block's state"):
        w3.eth.get_balance("0x" + "11" * 20, 1)


def test_the_view_follows_the_chain():
    ledger = EvmLedger()
    ledger.open(KEYS)
    w3 = ledger.web3
    before = w3.eth.block_number
    ledger.record([model(0)])
    assert w3.eth.block_number == before + 1
