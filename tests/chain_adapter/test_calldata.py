"""Calldata: what we write is what the general codec writes, and what we read is what the contract reads."""

from hashlib import sha256

import pytest
from bench import A, B, Bench, calldata, piece, propose, register, relay, seal, submit
from eth_abi import decode as abi_decode
from eth_abi import encode as abi_encode
from makers import KEYS, device, gradient, model, server

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind, _contract
from flower_bfl.chain_adapter import digest as digest_of
from flower_bfl.config import ContractRules


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 5000])
def test_our_calldata_is_that_of_the_general_codec(size):
    data = bytes(range(256)) * 20
    payload, name = data[:size], sha256(data[:size]).digest()
    entry = Entry(Kind.CONSENSUS, 300, server(2), payload, step=70)
    signed = Entry(Kind.CONSENSUS, 300, server(2), payload, step=70, signature=data[:65])
    cases = [
        (_contract.submit(entry, name, payload), submit(3, 300, 70, name, payload), "submit"),
        (_contract.submit(signed, name, payload), relay(3, 300, 70, name, payload, data[:65]), "relay"),
        (
            _contract.propose(entry, name, payload, B, 10**12),
            propose(B, 300, 70, 10**12, name, payload),
            "propose",
        ),
        (_contract.seal(entry, 2**64 - 1), seal(2**64 - 1, 300, 70), "seal"),
        (
            _contract.piece(name, 4, payload),
            calldata("piece(bytes32,uint32,bytes)", name, 4, payload),
            "piece",
        ),
    ]
    for ours, theirs, function in cases:
        assert ours == theirs
        call = _contract.read_call(theirs)
        assert call.function == function
        assert call.payload == (b"" if function == "seal" else payload)
        assert call.digest == (digest_of(b"") if function == "seal" else name)
        assert (call.round, call.step) == ((0, 0) if function == "piece" else (300, 70))
    accounts = {server(index): bytes([index]) * 20 for index in range(size % 7 + 1)}
    expected = register(list(accounts.values()), 2, [sender.index for sender in accounts])
    assert _contract.register(accounts) == expected
    assert _contract.read_register(expected) == {address: sender for sender, address in accounts.items()}


def test_calls_are_read_with_all_they_say():
    call = _contract.read_call(propose(B, 3, 2, 77))
    assert (call.kind, call.parent, call.timestamp_s) == (Kind.MODEL, B, 77)
    assert _contract.read_call(seal(2**64 - 1, 9, 4)).nonce == 2**64 - 1
    assert _contract.read_call(seal(5)).kind is Kind.SEAL
    assert _contract.read_call(relay(2, 1, 0, A, b"a", b"s" * 65)).signature == b"s" * 65
    assert _contract.read_call(piece(6)).index == 6
    assert _contract.read_call(calldata("height()")) is None
    assert _contract.read_call(b"") is None
    assert _contract.read_register(submit(2)) is None


def test_calldata_that_is_cut_off_is_an_error():
    for data in (submit(2), relay(2, 1, 0, A, b"a", b"s" * 65), propose(B), piece(0, b"long" * 20)):
        for size in range(4, len(data) - 31):
            with pytest.raises(ValueError, match="cut off"):
                _contract.read_call(data[:size])


def test_calldata_that_the_contract_cannot_read_is_an_error():
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([model(0), gradient(1, device(0))])
    bench = Bench(ledger)

    def with_word(data: bytes, place: int, value: int) -> bytes:
        return data[: 4 + 32 * place] + value.to_bytes(32) + data[36 + 32 * place :]

    for data in (
        with_word(submit(Kind.GRADIENT, step=1), 1, 2**32 + 1), with_word(submit(Kind.GRADIENT), 2, 2**16),
        with_word(submit(Kind.GRADIENT, step=1), 4, 2**255), with_word(seal(5), 2, 2**64),
        with_word(propose(B), 3, 2**64), with_word(piece(0), 1, 2**32), submit(Kind.GRADIENT, 1, 1)[:-64],
    ):  # fmt: skip
        with pytest.raises(ValueError, match="calldata"):
            _contract.read_call(data)
        assert bench.refusal(device(0), data) == "revert without a known reason (0x)"


def test_a_registration_in_another_form_is_an_error():
    """Its offsets may make the contract read other accounts than those at the usual places."""
    usual = register([b"\1" * 20, b"\2" * 20], 1, [5, 6])
    accounts, indices = usual[100:196], usual[196:]
    other = usual[:4] + b"".join(word.to_bytes(32) for word in (192, 1, 96)) + indices + accounts
    assert abi_decode(["address[]", "uint8", "uint32[]"], other[4:]) == abi_decode(
        ["address[]", "uint8", "uint32[]"], usual[4:]
    )
    for data in (other, usual + b"\0", usual[:-1], usual[:68]):
        with pytest.raises((ValueError, IndexError)):
            _contract.read_register(data)


@pytest.mark.parametrize(
    "rules",
    [
        ContractRules(),
        ContractRules(3, 1, 4, 2),
        ContractRules(7, "random"),
        ContractRules(2**16 - 1, "reputation", 64, 2**31 - 1),
    ],
)
def test_the_creation_says_the_rules(rules):
    leaders = {"any": (0, 0), "random": (1, 0), "reputation": (2, 0), 1: (3, 1)}
    types = ["uint16", "uint8", "uint16", "uint8", "uint32"]
    numbers = (rules.edge_servers, *leaders[rules.leader], rules.difficulty_bits, rules.quarantine_rounds)
    assert _contract.creation(rules) == _contract.BYTECODE + abi_encode(types, numbers)
    assert _contract.read_creation(_contract.creation(rules)) == rules
    for other in (b"", b"x", _contract.creation(rules)[:-1], b"\0" + _contract.creation(rules)):
        with pytest.raises(ValueError, match="not the creation of this version"):
            _contract.read_creation(other)
