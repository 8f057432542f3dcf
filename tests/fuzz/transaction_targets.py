"""Fuzz targets: transactions, their calldata, the reader of a chain's, and signatures."""

from contextlib import suppress
from functools import cache

from eth_hash.auto import keccak
from fuzzed import FuzzedData
from target_registry import DEVICE, KEYS, OPERATOR, nothing, structured, target

from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, _contract, _rlp
from flower_bfl.chain_adapter import signing as signatures
from flower_bfl.chain_adapter._accounts import Account, contract_of, read_transaction, recover
from flower_bfl.chain_adapter._reader import EntryReader
from flower_bfl.chain_adapter.encoding import digest
from flower_bfl.chain_adapter.store import PayloadStore
from flower_bfl.config import ContractRules
from flower_bfl.errors import LedgerError


@cache
def transactions() -> list[bytes]:
    account = Account.of(KEYS, OPERATOR)
    calls = _calldata()
    return [account.sign(k, 10**6, bytes([k]) * 20, call).encode() for k, call in enumerate(calls, start=1)]


@cache
def _calldata() -> list[bytes]:
    signed = Entry(Kind.GRADIENT, 1, DEVICE, b"x", 0, bytes(65))
    return [
        b"", _contract.register({DEVICE: bytes(range(20)), Sender(Role.DEVICE, 1): b"\1" * 20}),
        _contract.submit(Entry(Kind.GRADIENT, 1, DEVICE, b"x"), digest(b"x"), b"x"),
        _contract.submit(signed, digest(b"x"), b"x"),
        _contract.propose(Entry(Kind.MODEL, 0, OPERATOR, b"m"), digest(b"m"), b"m", bytes(32), 1_577_836_800),
        _contract.seal(Entry(Kind.SEAL, 1, DEVICE, b""), 5), _contract.piece(digest(b"pp"), 0, b"p"),
        _contract.view("head"),
    ]  # fmt: skip


def _encoded_items() -> list[bytes]:
    nested: _rlp.Item = b"x"
    for _ in range(60):
        nested = [nested]
    return [each[1:] for each in transactions()] + [_rlp.encode(nested), _rlp.encode([b"\0" * 60, [], b""])]


@target(_encoded_items, ValueError)
def rlp(encoded: bytes) -> None:
    assert _rlp.encode(_rlp.decode(encoded)) == encoded


@target(transactions, ValueError)
def transaction(encoded: bytes) -> None:
    told = read_transaction(encoded)
    assert len(told.sender) == 20 and len(told.to) in (0, 20)
    signatures._separator(told.chain_id, told.to)  # fits where it goes


@structured(nothing, ValueError)
def signed_transaction(data: FuzzedData) -> None:
    """Fields of any kind under a signature that fits them."""
    fields = _rlp.decode(data.one_of(transactions())[1:])
    for _ in range(data.whole(3)):
        odd: list[_rlp.Item] = [
            b"",
            b"\0",
            b"\0\1",
            b"\xff" * 32,
            b"\xff" * 33,
            [],
            [b""],
            [[b"\1" * 20, [b"k"]]],
        ]
        fields[data.whole(8)] = data.one_of([*odd, data.take(9)])
    signature = Account.of(KEYS, OPERATOR).sign_hash(keccak(b"\2" + _rlp.encode(fields[:9])))
    r, s, parity = signature[:32].lstrip(b"\0"), signature[32:64].lstrip(b"\0"), signature[64:].lstrip(b"\0")
    transaction(b"\2" + _rlp.encode([*fields[:9], parity, r, s]))


@target(_calldata, ValueError, LookupError)
def calldata(data: bytes) -> None:
    for read in (_contract.read_creation, _contract.read_error):
        with suppress(ValueError):
            read(data)
    call = _contract.read_call(data)
    accounts = _contract.read_register(data)
    assert call is None or accounts is None
    if accounts:
        assert _contract.register({sender: address for address, sender in accounts.items()}) == data


@target(
    lambda: [_contract.creation(ContractRules(3, 1, 4, 9)), _contract.creation(ContractRules())], ValueError
)
def creation(data: bytes) -> None:
    rules = _contract.read_creation(data)
    assert _contract.read_creation(_contract.creation(rules)) == rules


@cache
def created() -> tuple[bytes, bytes]:
    """The contract's creation and its address."""
    made = _contract.creation(ContractRules(2, difficulty_bits=1))
    operator = Account.of(KEYS, OPERATOR)
    return operator.sign(0, 10**7, b"", made).encode(), contract_of(operator.address)


@structured(nothing, LedgerError)
def reader(data: FuzzedData) -> None:
    """Calls that are changed, signed by somebody who may."""
    first, contract = created()
    sent = [first]
    read = EntryReader(PayloadStore(), lambda block, place: sent[place])
    operator, device = (Account.of(KEYS, each) for each in (OPERATOR, DEVICE))
    calls = [
        _contract.register({DEVICE: device.address}),
        *(data.mutated(data.one_of(_calldata())) for _ in "12"),
    ]
    for nonce, call in enumerate(calls, start=1):
        account = operator if nonce == 1 or data.whole(1) else device
        sent.append(account.sign(nonce, 10**6, contract, call, value=data.whole(9) // 9).encode())
    read.read(1, sent)


@target(lambda: [_signature() + digest(b"x"), bytes(97)], ValueError)
def signature(signed: bytes) -> None:
    name = signed[65:]
    with suppress(ValueError):
        assert len(recover(digest(name), signed[:65])) == 20
    assert len(signatures.signer(signed[:65], (1, bytes(20)), Kind.GRADIENT, 1, 0, name)) == 20


def _signature() -> bytes:
    return signatures.sign(KEYS(DEVICE), (1, bytes(20)), Kind.GRADIENT, 1, 0, digest(b"x"))
