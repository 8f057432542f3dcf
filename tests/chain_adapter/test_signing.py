"""Signatures that others relay, against eth_account's own EIP-712, and against the contract."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import KEYS, device, model, payload

from flower_bfl.chain_adapter import Entry, EvmLedger, Kind
from flower_bfl.chain_adapter.signing import address, sign, signer
from flower_bfl.errors import RejectedError

eth_account = pytest.importorskip("eth_account")

KEY = sha256(b"a client's own key").digest()
TYPES = {
    "Entry": [
        {"name": "kind", "type": "uint8"},
        {"name": "round", "type": "uint32"},
        {"name": "step", "type": "uint16"},
        {"name": "digest", "type": "bytes32"},
    ]
}
signable = st.tuples(
    st.tuples(st.integers(0, 2**64), st.binary(min_size=20, max_size=20)),
    st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1),
    st.binary(min_size=32, max_size=32),
)  # fmt: skip


@given(signable)
def test_wallets_sign_the_same(entry):
    (chain_id, contract), kind, server_round, step, digest = entry
    domain = {
        "name": "FlowerBFL", "version": "1", "chainId": chain_id, "verifyingContract": "0x" + contract.hex(),
    }  # fmt: skip
    message = {"kind": int(kind), "round": server_round, "step": step, "digest": digest}
    wallet = eth_account.Account.from_key(KEY)
    expected = wallet.sign_typed_data(domain, TYPES, message).signature
    assert sign(KEY, *entry) == bytes(expected)
    assert "0x" + address(KEY).hex() == wallet.address.lower()


@given(signable)
def test_the_signer_is_recovered(entry):
    assert signer(sign(KEY, *entry), *entry) == address(KEY)


@given(st.binary(max_size=70))
def test_garbage_is_somebody_elses_signature_or_none(signature):
    entry = ((1, bytes(20)), Kind.GRADIENT, 1, 0, bytes(32))
    try:
        assert signer(signature, *entry) != address(KEY)
    except ValueError as error:
        assert str(error)


@pytest.fixture
def ledger():
    ledger = EvmLedger()
    ledger.open(KEYS)
    ledger.record([model(0)])
    return ledger


def relayed(domain, signed_for=(1, 0), sent_as=(1, 0), content=b"update", signed=b"update"):
    signature = sign(KEY, domain, Kind.GRADIENT, *signed_for, sha256(signed).digest())
    server_round, step = sent_as
    return Entry(Kind.GRADIENT, server_round, device(0), content, step, signature)


def test_the_contract_takes_what_the_client_signed(ledger):
    entry = relayed(ledger.domain)
    ledger.record([entry])
    (recorded,) = [each for each in ledger.recorded() if each.entry.kind is Kind.GRADIENT]
    assert recorded.account == address(KEY) and recorded.entry == entry


def test_what_the_client_did_not_sign_is_nobodys_entry(ledger):
    """Once the account is known, a signature of something else is one of a stranger."""
    ledger.record([relayed(ledger.domain)])
    chain_id, contract = ledger.domain
    for entry in (
        relayed((chain_id + 1, contract), (1, 1), (1, 1)),
        relayed((chain_id, bytes(20)), (1, 1), (1, 1)),
        relayed(ledger.domain, (2, 1), (1, 1)),
        relayed(ledger.domain, (1, 2), (1, 1)),
        relayed(ledger.domain, (1, 1), (1, 1), content=b"another"),
    ):
        with pytest.raises(RejectedError, match=r"BadSignature|IndexTaken"):
            ledger.record([entry])


def test_a_signature_counts_once(ledger):
    entry = relayed(ledger.domain)
    ledger.record([entry])
    with pytest.raises(RejectedError, match="AlreadySubmitted"):
        ledger.record([entry])


@pytest.mark.parametrize("size", [10, 30_000, 200_000])
@pytest.mark.parametrize("payloads", ["auto", "full", "digest"])
def test_signed_payloads_go_where_others_go(payloads, size):
    ledger = EvmLedger(payloads=payloads)
    ledger.open(KEYS)
    ledger.record([model(0)])
    content = payload(1, size)
    entry = relayed(ledger.domain, content=content, signed=content)
    ledger.record([entry])
    assert list(ledger.entries())[-1] == entry
