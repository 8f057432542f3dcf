"""Entries that others relay, at the contract itself, signed by eth_account as a wallet would."""

import pytest
from bench import ADDRESSES, STRANGER, A, B, Bench, relay
from eth_account import Account
from makers import KEYS, OPERATOR, device, gradient, model, server

from flower_bfl.chain_adapter import EvmLedger, Kind, Sender

RIGHT = {"kind": int(Kind.GRADIENT), "round": 1, "step": 3, "digest": A}
TYPES = {
    "Entry": [
        {"name": "kind", "type": "uint8"}, {"name": "round", "type": "uint32"},
        {"name": "step", "type": "uint16"}, {"name": "digest", "type": "bytes32"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def ledger():
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([model(0), gradient(1, device(0)), gradient(1, server(0))])
    return ledger


@pytest.fixture
def bench(ledger):
    return Bench(ledger)


def signed(ledger: EvmLedger, sender: Sender, domain: dict[str, object] | None = None, **changed: object):
    chain_id, contract = ledger.domain
    usual = {"name": "FlowerBFL", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    return bytes(
        Account.sign_typed_data(KEYS(sender), usual | (domain or {}), TYPES, RIGHT | changed).signature
    )


def relayed(signature: bytes) -> bytes:
    return relay(Kind.GRADIENT, 1, 3, A, b"a", signature)


def digest_of(bench: Bench, sender: Sender) -> bytes:
    arguments = (Kind.GRADIENT, 1, 3, ADDRESSES[sender])
    return bench.ask("digestOf(uint8,uint32,uint16,address)", "bytes32", *arguments)[0]


@pytest.mark.parametrize("relayer", [OPERATOR, device(0), server(0), STRANGER])
def test_anybody_relays_in_the_name_of_the_signer_only(ledger, bench, relayer):
    bench.send(relayer, relayed(signed(ledger, device(0))))
    assert digest_of(bench, device(0)) == A
    assert relayer == device(0) or digest_of(bench, relayer) == bytes(32)
    assert bench.refusal(relayer, relayed(signed(ledger, device(0)))) == "AlreadySubmitted"
    assert bench.refusal(relayer, relayed(signed(ledger, server(0)))) == ""


@pytest.mark.parametrize(
    ("domain", "changed"),
    [
        ({"chainId": 1}, {}),
        ({"verifyingContract": "0x" + "11" * 20}, {}),
        ({"name": "FlowerBFL2"}, {}),
        ({"version": "2"}, {}),
        ({}, {"kind": 3}),
        ({}, {"round": 2}),
        ({}, {"step": 4}),
        ({}, {"digest": B}),
    ],
)
def test_a_signature_is_for_one_entry_of_one_contract(ledger, bench, domain, changed):
    assert bench.refusal(OPERATOR, relayed(signed(ledger, device(0), domain, **changed))) == "BadSignature"


def test_what_is_no_signature(ledger, bench):
    right = signed(ledger, device(0))
    assert right[64] in (27, 28)
    for wrong in (
        b"", right[:-1], right + b"\0", right[:64] + bytes([right[64] - 27]),
        right[:64] + bytes([55 - right[64]]), bytes(65), bytes(64) + b"\x1b", signed(ledger, STRANGER),
    ):  # fmt: skip
        assert bench.refusal(OPERATOR, relayed(wrong)) == "BadSignature"


def test_the_signer_is_held_to_the_rules(ledger, bench):
    """Role, round and digest, as if it had sent the entry itself."""

    def refusal(sender: Sender, kind: int, server_round: int, payload: bytes = b"a") -> str:
        signature = signed(ledger, sender, kind=kind, round=server_round)
        return bench.refusal(STRANGER, relay(kind, server_round, 3, A, payload, signature))

    assert refusal(device(0), Kind.CONSENSUS, 1) == "WrongRole"
    assert refusal(device(0), Kind.REPORT, 1) == "WrongRole"
    assert refusal(OPERATOR, Kind.REPORT, 1) == ""
    assert refusal(device(0), Kind.DATA, 1) == ""
    assert refusal(server(0), Kind.DATA, 1) == "WrongRole"
    assert refusal(device(0), Kind.MODEL, 1) == "WrongKind"
    assert refusal(device(0), Kind.GRADIENT, 2) == "WrongRound (expected 1, got 2)"
    assert refusal(device(0), Kind.GRADIENT, 1, b"other") == "DigestMismatch"


def test_the_domain_is_that_of_the_standard(ledger, bench):
    """By eth_account's own hash of it."""
    from eth_account.messages import encode_typed_data

    chain_id, contract = ledger.domain
    domain = {"name": "FlowerBFL", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    header = encode_typed_data(domain, TYPES, RIGHT).header
    assert bench.ask("domainSeparator()", "bytes32") == (header,)
