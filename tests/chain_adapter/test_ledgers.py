"""The conformance suite on every ledger and payload mode, and what they have in common."""

from pathlib import Path

import pytest
from conformance import LedgerConformance
from makers import KEYS, MINED, head_of, of_phases, run_of

from flower_bfl.chain_adapter import EvmLedger, Ledger, MemoryLedger


class TestMemoryLedger(LedgerConformance):
    takes_signatures = False

    def make(self, folder: Path) -> Ledger:
        return MemoryLedger()


class TestEvmLedgerInMemory(LedgerConformance):
    def make(self, folder: Path) -> Ledger:
        return EvmLedger()


@pytest.mark.slow
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


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("payloads", ["auto", "full", "digest"])
def test_the_same_entries_give_the_same_head_everywhere(tmp_path, payloads, mined):
    ledgers: list[Ledger] = [
        MemoryLedger(), EvmLedger(payloads=payloads), EvmLedger(tmp_path / "run", payloads=payloads),
    ]  # fmt: skip
    for ledger in ledgers:
        ledger.open(KEYS, MINED if mined else None)
        for phase in run_of(2, mined=mined):
            ledger.record(phase)
    bits = MINED.difficulty_bits if mined else 0
    assert {ledger.head for ledger in ledgers} == {head_of(of_phases(run_of(2, mined=mined)), bits)}
    for ledger in ledgers:
        ledger.close()
