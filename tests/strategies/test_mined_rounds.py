"""Leaders and miners in whole runs, on real chains."""

import numpy as np
import pytest
from federation import record, run, walker
from scipy import stats

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, MemoryLedger, Mining, Outage
from flower_bfl.chain_adapter import Kind
from flower_bfl.chain_adapter.base import draw_leader

SMALL = {"w": np.zeros(3, np.float32)}


def entries_of(ledger, kind):
    return [entry for entry in ledger.entries() if entry.kind is kind]


def test_every_round_is_sealed_by_the_miner_that_its_report_names():
    ledger = EvmLedger()
    strategy = ConsensusBFL(ledger=ledger)
    run(strategy, [walker(n, named=True) for n in range(4)])
    seals = entries_of(ledger, Kind.SEAL)
    assert [seal.round for seal in seals] == [1, 2, 3]
    for seal, report in zip(seals, strategy.reports[1:], strict=True):
        assert str(seal.sender) == report.miner
        assert seal.step == seal.sender.index % 3  # the edge server that the miner belongs to
        assert report.mining_seconds > 0
        assert report.head.startswith("000")  # 12 bits


def test_devices_with_more_hash_power_mine_more_blocks():
    strategy = ConsensusBFL(
        edge_servers=1, p2p_rounds=0, ledger=MemoryLedger(),
        mining=Mining(hash_rates=[1e11, 1e11, 4e11], difficulty_bits=1),
    )  # fmt: skip
    run(strategy, [walker(n, named=True) for n in range(3)], rounds=300, arrays=record(SMALL))
    won = np.bincount([int(report.miner.split()[1]) for report in strategy.reports[1:]], minlength=3)
    assert stats.chisquare(won, [50, 50, 200]).pvalue > 1e-3


def test_by_reputation_the_last_miners_edge_server_leads():
    ledger = EvmLedger()
    strategy = ConsensusBFL(leader="reputation", ledger=ledger)
    run(strategy, [walker(n, named=True) for n in range(6)], rounds=8, arrays=record(SMALL))
    seals = entries_of(ledger, Kind.SEAL)
    leaders = [report.leader for report in strategy.reports[1:]]
    assert leaders[1:] == [seal.step for seal in seals[:-1]]
    assert len(set(leaders)) > 1


def test_a_leader_that_is_down_is_passed_over():
    def leaders(outages):
        ledger = EvmLedger()
        strategy = ConsensusBFL(ledger=ledger, outages=outages)
        run(strategy, [walker(n, named=True) for n in range(6)], rounds=1)
        return strategy.reports, entries_of(ledger, Kind.MODEL)[-1]

    reports, _ = leaders([])
    drawn = draw_leader(bytes.fromhex(reports[0].head), 1, 3)
    assert reports[1].leader == drawn
    reports, model = leaders([Outage(round=1, server=drawn, step=5)])
    assert (reports[1].leader, model.step) == ((drawn + 1) % 3, 1)


def test_without_mining_blocks_need_no_miner():
    ledger = EvmLedger()
    strategy = ConsensusBFL(ledger=ledger, mining=None)
    run(strategy, [walker(n) for n in range(3)])
    assert entries_of(ledger, Kind.SEAL) == []
    assert strategy.reports[-1].miner == "" and strategy.reports[-1].mining_seconds is None


@pytest.mark.parametrize("arguments", [{"ledger": None}, {"ledger": MemoryLedger(), "mining": None}])
def test_reputation_needs_miners(arguments):
    with pytest.raises(ConfigError, match="`leader` must not be 'reputation' without"):
        ConsensusBFL(leader="reputation", **arguments)


def test_a_device_without_a_hash_rate_does_not_mine_and_does_no_harm():
    def stranger(server_round, arrays):
        content = walker(0, named=True)(server_round, arrays)
        content["metrics"]["device-index"] = 77
        return content

    strategy = ConsensusBFL(ledger=EvmLedger(), mining=Mining(hash_rates=[1e11, 1e11, 1e11]))
    run(strategy, [walker(1, named=True), walker(2, named=True), stranger])
    assert strategy.reports[-1].devices == 3
    assert {report.miner for report in strategy.reports[1:]} <= {"device 1", "device 2"}
