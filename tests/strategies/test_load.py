"""What a long run takes: handles, threads and memory stay, and the ledger is as large as it is on paper."""

import functools
import gc
import importlib.util
import logging
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

FILE = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.fixture(scope="module")
def load():
    """The benchmark, as a module."""
    spec = importlib.util.spec_from_file_location("load_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)  # it imports load_on_paper, which is beside it
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def paper(load):
    """What the benchmark predicts with, as a module."""
    return sys.modules["load_on_paper"]


def written(ledger, reports):
    """Transactions and bytes, as recording them counted them."""
    costs = [report.ledger for report in reports]
    return (
        getattr(ledger, "transactions", sum(cost.transactions for cost in costs)),
        sum(cost.calldata_bytes for cost in costs),
        sum(cost.stored_bytes for cost in costs),
    )


def on_paper(size):
    return size.transactions, size.calldata_bytes, size.stored_bytes


def bounded_caches():
    """Those of functions; full, they stay as they are, but that takes some hundred rounds."""
    found = (each for each in gc.get_objects() if type(each) is functools._lru_cache_wrapper)
    return [each for each in found if each.__module__.split(".")[0] in ("eth", "trie", "flower_bfl")]


@pytest.mark.slow
def test_forty_rounds_leave_nothing_behind_but_reports(load, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "flwr")  # pytest keeps what is logged
    monkeypatch.setattr("flower_bfl.chain_adapter._sqlite._CACHED_VALUES", 0)  # only the last block's
    setting = load.Setting(rounds=40, devices=4, servers=3, steps=1, shape=(80, 80), fsync=False)
    traced, warm_up, caches = 15, 20, []

    def note(server_round):
        if server_round == traced:
            caches.extend(bounded_caches())
            gc.freeze()  # what is there need not be looked through each time
            tracemalloc.start()
        for cache in caches:
            cache.cache_clear()
        gc.collect()
        return load.sample(), tracemalloc.get_traced_memory()[0]

    try:
        done = load.run(setting, tmp_path, note)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    samples, heap = zip(*done.noted, strict=True)
    assert len(samples) == setting.rounds + 1
    for name in ("handles", "threads"):  # others' may go meanwhile
        counts = [getattr(each, name) for each in samples]
        assert max(counts[-20:]) <= max(counts[:-20])

    # Flower's Result and the reports have an item for each round. Beyond them a round may keep 2 KB,
    # less than a tenth of a payload, or than the keys of 12 transactions in a cache.
    kept = load.deep_bytes([done.result, done.strategy.reports]) / setting.rounds
    growth, width = load.slope(heap[warm_up:])
    assert growth + width < kept + 2048

    expected = load.predicted(setting)
    assert written(done.ledger, done.strategy.reports) == on_paper(expected)
    files = list((tmp_path / "chain" / "payloads").iterdir())
    assert sum(file.stat().st_size for file in files) == expected.stored_bytes
    assert len(files) == 1 + setting.rounds * (4 + 2 * 3 + 1)  # all payloads but RULES; seals have none
    assert done.ledger.gas == pytest.approx(expected.gas, rel=0.02)
    done.ledger.close()
    assert (tmp_path / "chain" / "chain.sqlite").stat().st_size == pytest.approx(expected.file_bytes, rel=0.1)


@pytest.mark.parametrize("variant", ["full", "memory", "on-ledger", "offloading", "attack"])
def test_ledger_is_as_large_as_on_paper(load, variant, tmp_path):
    shape = (150, 150) if variant == "full" else (80, 80)  # 90 KB are two pieces
    setting = load.Setting(rounds=3, devices=7, variant=variant, servers=4, steps=2, shape=shape, fsync=False)
    done = load.run(setting, tmp_path, lambda server_round: None)
    reports = done.strategy.reports
    assert not any(report.left_out or report.fallback for report in reports)
    if variant == "offloading":
        assert all(any(report.server_data) for report in reports[1:])
    if variant == "attack":
        assert [len(report.accused) for report in reports] == [0, 1, 0, 0]
    assert written(done.ledger, reports) == on_paper(load.predicted(setting, reports))
    done.ledger.close()


def test_a_prediction_notices_one_byte(paper):
    setting = paper.Setting(rounds=2, devices=5, servers=3, steps=1, shape=(80, 80))
    more = replace(setting, devices=6)
    assert paper.predicted(more).transactions == paper.predicted(setting).transactions + 2
    one, other = paper.predicted(setting).stored_bytes, paper.predicted(more).stored_bytes
    assert other - one == 2 * paper.encoded_bytes(
        {"model": "0" * 64, "num-examples": paper.samples_of(5), "num-steps": paper.steps_of(5), "round": 1},
        paper.model(setting),
    )


def test_interval_of_a_slope_holds_it_though_neighbours_are_alike(load):
    rng, missed = np.random.default_rng(0), 0
    for _ in range(200):
        noise = lfilter([1.0], [1.0, -0.8], rng.standard_normal(450))
        growth, width = load.slope(3.0 * np.arange(450) + noise)
        missed += abs(growth - 3.0) > width
    assert missed < 20  # 10 of 200 are to be expected


@pytest.mark.slow
def test_memory_stays_over_five_hundred_rounds():
    """Exits with 1 unless resident memory grows by less than 50 KB a round and all else stays."""
    done = subprocess.run([sys.executable, FILE, "500", "50"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
