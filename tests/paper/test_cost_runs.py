"""What a round costs on the chain: by the formulas of Ethereum, and by counting what is recorded."""

from math import ceil

import pytest

from flower_bfl import EvmLedger
from flower_bfl.errors import ConfigError
from flower_bfl.paper import _cost
from flower_bfl.paper.runs import KINDS

N, M, PHI = 4, 2, 2
SETTINGS = {
    "devices": N, "edge-servers": M, "p2p-rounds": PHI, "rounds": 3, "parameters": 1000, "payloads": "auto",
    "seed": 0,
}  # fmt: skip
PAYLOADS = N + M * (PHI + 1) + 1  # gradients, states x^(0) to x^(φ), the model
HEADER = 300  # bytes that a payload may have beside its numbers


def run(**settings):
    kind = KINDS["cost"]
    kind.check({**SETTINGS, **settings})
    (row,) = kind.run({**SETTINGS, **settings})
    assert set(row) == set(kind.columns)
    return row


@pytest.mark.parametrize(
    ("parameters", "payloads", "on_chain"),
    [(1000, "auto", True), (1000, "full", True), (10_000, "auto", False), (10_000, "full", True)],
)
def test_bytes_are_four_for_each_number_and_a_small_header(parameters, payloads, on_chain):
    row = run(parameters=parameters, payloads=payloads)
    here, elsewhere = row["calldata_bytes"], row["stored_bytes"]
    if not on_chain:
        here, elsewhere = elsewhere, here
    assert elsewhere == 0
    assert 0 < here - 4 * parameters * PAYLOADS < HEADER * PAYLOADS


def test_a_transaction_for_each_payload_and_the_seal():
    assert run()["transactions"] == PAYLOADS + 1


def test_large_payloads_take_a_transaction_for_each_80_000_bytes_as_well():
    row = run(parameters=45_000, payloads="full")
    assert row["transactions"] == PAYLOADS + 1 + PAYLOADS * ceil(4 * 45_000 / 80_000)


def test_gas_in_calldata_is_that_of_eip_7623(monkeypatch):
    """21,000 a transaction, 10 gas a zero byte, 40 any other; all else is small beside a large payload."""
    floors = {}

    class Noting(EvmLedger):
        def record(self, entries):
            entries = list(entries)
            for entry in entries:
                zeros = entry.payload.count(0)
                floor = 21_000 + 10 * zeros + 40 * (len(entry.payload) - zeros)
                floors[entry.round] = floors.get(entry.round, 0) + floor
            return super().record(entries)

    monkeypatch.setattr(_cost, "EvmLedger", Noting)
    gas = run(parameters=5000)["gas"]
    floor = (floors[2] + floors[3]) / 2
    assert floor < gas < 1.05 * floor


def test_gas_by_digest_does_not_grow_with_the_model():
    small, large = (run(parameters=parameters)["gas"] for parameters in (7_000, 50_000))
    assert small == pytest.approx(large, rel=1e-3)
    # docs/ledger.md: an entry, the model, the seal.
    assert small == pytest.approx(52_500 * (PAYLOADS - 1) + 80_412 + 108_036, rel=0.03)


def test_the_first_round_which_registers_accounts_does_not_count():
    assert run(rounds=2)["transactions"] == run(rounds=4)["transactions"]


def test_a_seed_gives_one_chain_and_only_seconds_differ():
    first, second = run(), run()
    assert first.pop("chain_seconds") > 0 and second.pop("chain_seconds") > 0
    assert first == second
    assert run(seed=1)["gas"] == pytest.approx(first["gas"], rel=5e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"payloads": "none"}, "`payloads` must be one of"),
        ({"rounds": 1}, "`rounds` must be a whole number from 2"),
        ({"parameters": 0}, "`parameters` must be a whole number from 1"),
    ],
)
def test_settings_that_break_a_rule(wrong, said):
    with pytest.raises(ConfigError, match=said):
        KINDS["cost"].check({**SETTINGS, **wrong})
