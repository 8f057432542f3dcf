"""What the reader refuses although nobody executed it: a forged chain is read without an EVM."""

import pytest
from makers import KEYS, OPERATOR, device, gradient, model

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, _contract, digest
from flower_bfl.chain_adapter._accounts import CHAIN_ID, Account
from flower_bfl.chain_adapter._reader import EntryReader
from flower_bfl.chain_adapter._rlp import decode, encode
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.config import ContractRules
from flower_bfl.errors import LedgerError


@pytest.fixture
def reader():
    """After the contract, one device and the initial model; difficulty 1, so that nonce 0 may well do."""
    ledger = EvmLedger()
    ledger.open(KEYS, ContractRules(edge_servers=2, difficulty_bits=1))
    ledger.record([model(0)])
    ledger.record([gradient(1, device(0))])
    reader = EntryReader(PayloadStore(), lambda block, place: b"")
    for number in range(1, ledger.block_number + 1):
        reader.read(number, ledger._block(number).transactions)
    return reader


def sent(reader, data, *, nonce=100, to=None, chain_id=CHAIN_ID, value=0):
    account = Account.of(KEYS, device(0))
    to = reader.domain[1] if to is None else to
    return account.sign(nonce, 10**6, to, data, value, chain_id=chain_id).encode()


def submission(kind=Kind.GRADIENT, step=1):
    entry = Entry(kind, 1, device(0), b"x", step)
    return _contract.submit(entry, digest(b"x"), b"x")


def test_what_is_right_is_read(reader):
    assert reader.read_one(9, 0, sent(reader, submission())).entry.payload == b"x"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"chain_id": 1}, "a transaction of chain 1"),
        ({"nonce": 0}, "nonce 0 of this account is used up"),
        ({"value": 1}, "takes no money, got 1 wei"),
    ],
)
def test_what_the_chain_would_not_take(reader, change, rule):
    with pytest.raises(LedgerError, match=rule):
        reader.read_one(9, 0, sent(reader, submission(), **change))


@pytest.mark.parametrize("kind", [Kind.MODEL, Kind.SEAL])
def test_models_and_seals_have_their_own_functions(reader, kind):
    with pytest.raises(LedgerError, match=f"WrongKind: {kind.name} to `submit`"):
        reader.read_one(9, 0, sent(reader, submission(kind, 0)))


def test_the_other_signature_of_the_same_transaction(reader):
    """Both s and n − s verify; Ethereum takes the lower one."""
    encoded = sent(reader, submission())
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    *fields, parity, r, s = decode(encoded[1:])
    high = (order - int.from_bytes(s, "big")).to_bytes(32, "big")
    turned = encoded[:1] + encode([*fields, b"" if parity else b"\1", r, high])
    with pytest.raises(LedgerError, match="the lower of its two s"):
        reader.read_one(9, 0, turned)


@pytest.mark.parametrize("depth", [1, 500, 20_000, 200_000])
def test_lists_that_are_nested_for_ever(reader, depth):
    """Decoding calls itself once for each list: at 100,000, py-evm's limit, that overflows the stack of C."""
    *fields, parity, r, s = decode(sent(reader, submission())[1:])
    nested = b""
    for _ in range(depth):
        nested = _prefix(len(nested)) + nested
    body = encode(fields[:8])[3:] + nested + encode([parity, r, s])[1:]
    with pytest.raises(LedgerError):
        reader.read_one(9, 0, b"\x02" + _prefix(len(body)) + body)


def _prefix(size: int) -> bytes:
    """RLP's prefix of a list of so many bytes."""
    if size < 56:
        return bytes([0xC0 + size])
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0xF7 + len(digits)]) + digits


def test_the_first_transaction_makes_the_contract():
    reader = EntryReader(PayloadStore(), lambda block, place: b"")
    creation = _contract.creation(ContractRules())
    encoded = Account.of(KEYS, OPERATOR).sign(0, 10**7, bytes(20), creation).encode()
    with pytest.raises(LedgerError, match="the first transaction must make the contract"):
        reader.read_one(1, 0, encoded)
