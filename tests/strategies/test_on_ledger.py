"""Flower's own strategies with everything on a ledger: nothing changes but what is written down."""

import numpy as np
import pytest
from federation import Federation, initial, record, reply, run, values, walker
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum

from flower_bfl import ConfigError, EvmLedger, MemoryLedger, Mining, OnLedger
from flower_bfl.chain_adapter import Kind, Role, digest
from flower_bfl.chain_adapter.records import Gradient, RunRules, read_model, read_report

QUIET = {"fraction_evaluate": 0.0}
MADE = {
    "FedAvg": lambda: FedAvg(**QUIET),
    "FedAdam": lambda: FedAdam(eta=0.03, **QUIET),
    "FedMedian": lambda: FedMedian(**QUIET),
    "Krum": lambda: Krum(num_malicious_nodes=1, **QUIET),
}


def devices(count=6):
    return [walker(n, named=True) for n in range(count)]


class InOrder(Federation):
    """Replies in the order of the nodes: a float sum in Flower depends on it."""

    def send_and_receive(self, messages, timeout=None):
        return [self._reply(message) for message in sorted(messages, key=self._place)]

    def _place(self, message):
        return self.nodes.index(message.metadata.dst_node_id)


def start(strategy, rounds=3, workers=None, **arguments):
    grid = InOrder(workers or devices(), seed=1)
    return values(strategy.start(grid, initial(), num_rounds=rounds, **arguments).arrays)


@pytest.mark.parametrize("name", MADE)
def test_the_strategys_models_are_unchanged_and_recorded(name):
    ledger = EvmLedger()
    wrapped = OnLedger(MADE[name](), ledger)
    model, expected = start(wrapped), start(MADE[name]())
    for array in expected:
        np.testing.assert_array_equal(model[array], expected[array])
    recorded = [entry for entry in ledger.entries() if entry.kind is Kind.MODEL]
    assert [entry.round for entry in recorded] == [0, 1, 2, 3]
    for array, value in read_model(recorded[-1].payload).items():
        np.testing.assert_array_equal(value, expected[array])
    rules = next(iter(ledger.entries()))
    assert RunRules.decode(rules.payload).strategy == name


def test_what_every_device_sent_is_recorded_under_its_account():
    ledger = EvmLedger()
    start(OnLedger(FedAvg(**QUIET), ledger), rounds=1)
    sent = values(initial())
    for entry in ledger.entries():
        if entry.kind is Kind.GRADIENT:
            gradient = Gradient.decode(entry.payload)
            answer = devices()[entry.sender.index](1, sent)
            for name, array in gradient.arrays.items():
                np.testing.assert_array_equal(array, sent[name] - answer["arrays"][name].numpy())
            assert gradient.samples == answer["metrics"]["num-examples"]


def test_the_one_aggregator_proposes_and_devices_mine():
    ledger = EvmLedger()
    strategy = OnLedger(FedAvg(**QUIET), ledger, mining=Mining(hash_rates=[1e11] * 6))
    start(strategy)
    for entry in ledger.entries():
        if entry.kind is Kind.MODEL and entry.round:
            assert (entry.sender.role, entry.sender.index) == (Role.SERVER, 0)
        if entry.kind is Kind.SEAL:
            assert str(entry.sender) == strategy.reports[entry.round].miner


def test_a_reply_that_cannot_be_recorded_is_named_and_the_strategy_still_decides():
    def no_number(_, arrays):
        return reply(arrays, num_examples=3, num_steps=1, loss=0.0, device_index=-1)

    def broken(_, arrays):
        return reply(
            {name: np.full_like(a, np.nan) for name, a in arrays.items()},
            num_examples=1,
            num_steps=1,
            loss=0.0,
            device_index=5,
        )

    ledger = EvmLedger()
    strategy = OnLedger(FedMedian(**QUIET), ledger)
    workers = [*devices(4), no_number, broken]
    model = start(strategy, workers=workers, rounds=1)
    expected = start(FedMedian(**QUIET), workers=workers, rounds=1)
    np.testing.assert_array_equal(model["head"], expected["head"])
    reports = [entry for entry in ledger.entries() if entry.kind is Kind.REPORT]
    left_out, down = read_report(reports[0].payload)
    assert len(left_out) == 2 and down == []
    assert {"'device-index' must be an integer", "its arrays must be finite"} == {
        next(rule for rule in ("'device-index' must be an integer", "its arrays must be finite")
             if rule in each.reason) for each in left_out
    }  # fmt: skip


def test_a_round_without_a_result_keeps_the_model():
    def failing(server_round, arrays):
        if server_round == 2:
            raise RuntimeError("no battery")
        return walker(0)(server_round, arrays)

    ledger = EvmLedger()
    strategy = OnLedger(FedAvg(**QUIET), ledger)
    start(strategy, workers=[failing, failing], rounds=2)
    models = [read_model(entry.payload) for entry in ledger.entries() if entry.kind is Kind.MODEL]
    for name in models[1]:
        np.testing.assert_array_equal(models[1][name], models[2][name])
    assert strategy.reports[2].devices == 0


def test_reports_and_the_run_folder(tmp_path):
    ledger = EvmLedger(tmp_path / "chain")
    strategy = OnLedger(FedAvg(), ledger, run_folder=tmp_path)
    start(strategy, rounds=2, evaluate_fn=lambda k, arrays: MetricRecord({"accuracy": k / 10}))
    assert [report.evaluate["accuracy"] for report in strategy.reports] == [0.0, 0.1, 0.2]
    assert strategy.reports[-1].evaluate_devices
    saved = (tmp_path / "model.safetensors").read_bytes()
    assert digest(saved).hex() == strategy.reports[-1].model_digest
    ledger.close()


def test_a_used_ledger_and_a_second_start_are_refused():
    ledger = MemoryLedger()
    strategy = OnLedger(FedAvg(**QUIET), ledger)
    start(strategy, rounds=1)
    with pytest.raises(ConfigError, match="must run once"):
        start(strategy)
    with pytest.raises(ConfigError, match="`ledger` must be empty"):
        run(OnLedger(FedAvg(**QUIET), ledger), devices(), arrays=record({"w": np.zeros(2, np.float32)}))
