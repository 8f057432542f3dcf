"""The conformance suite on every ledger and payload mode, and what they have in common."""

from pathlib import Path

import pytest
from conformance import KEYS, LedgerConformance, head_of, model, run_of

from flower_bfl.chain_adapter import EvmLedger, Ledger, MemoryLedger


class TestMemoryLedger(LedgerConformance):
    def make(self, folder: Path) -> Ledger:
        return MemoryLedger()


class TestEvmLedgerInMemory(LedgerConformance):
    def make(self, folder: Path) -> Ledger:
        return EvmLedger()


class TestEvmLedgerInMemoryFull(LedgerConformance):
    def make(self, folder: Path) -> Ledger:
        return EvmLedger(payloads="full")


class TestEvmLedgerOnDisk(LedgerConformance):
    stays_on_disk = True

    def make(self, folder: Path) -> Ledger:
        return EvmLedger(folder)


class TestEvmLedgerOnDiskFull(LedgerConformance):
    stays_on_disk = True

    def make(self, folder: Path) -> Ledger:
        return EvmLedger(str(folder), payloads="full")


class TestEvmLedgerOnDiskDigest(LedgerConformance):
    stays_on_disk = True

    def make(self, folder: Path) -> Ledger:
        return EvmLedger(folder, payloads="digest")


@pytest.mark.parametrize("payloads", ["auto", "full", "digest"])
def test_the_same_entries_give_the_same_head_everywhere(tmp_path, payloads):
    ledgers: list[Ledger] = [
        MemoryLedger(), EvmLedger(payloads=payloads), EvmLedger(tmp_path / "run", payloads=payloads),
    ]  # fmt: skip
    for ledger in ledgers:
        ledger.open(KEYS)
        for phase in run_of(2):
            ledger.record(phase)
    assert {ledger.head for ledger in ledgers} == {head_of([model(k) for k in range(3)])}
    for ledger in ledgers:
        ledger.close()
