"""A reply that a round cannot use is left out, reported and recorded; the run goes on."""

import json

import numpy as np
import pytest
from federation import (
    EXACT,
    Federation,
    assert_models_close,
    fednova,
    initial,
    record,
    reply,
    run,
    values,
    walker,
)
from flwr.app import Array, RecordDict
from flwr.serverapp.strategy import FedAvg

from flower_bfl import (
    ConsensusBFL,
    MemoryLedger,
)
from flower_bfl.chain_adapter.base import Kind, decode


def spoiled(change):
    def train(server_round, arrays):
        content = walker(2)(server_round, arrays)
        return change(content, arrays) or content

    return train


def set_metric(name, value):
    def change(content, arrays):
        content["metrics"][name] = value

    return change


def set_array(name, array):
    def change(content, arrays):
        arrays = {**values(content["arrays"]), name: array}
        return RecordDict({"arrays": record(arrays), "metrics": content["metrics"]})

    return change


def no_examples(content, arrays):
    del content["metrics"]["num-examples"]


def fails(content, arrays):
    raise RuntimeError("out of battery")


BAD_REPLIES = [
    (fails, "the client failed: out of battery"),
    (no_examples, "the MetricRecord must have the key 'num-examples', got ['loss', 'num-steps']"),
    (set_metric("num-examples", 0), "'num-examples' must be a positive number of at most 2**53, got 0"),
    (
        set_metric("num-examples", float("nan")),
        "'num-examples' must be a positive number of at most 2**53, got nan",
    ),
    (
        set_metric("num-examples", [3, 4]),
        "'num-examples' must be a positive number of at most 2**53, got [3, 4]",
    ),
    (set_metric("num-steps", 2.5), "'num-steps' must be a whole number from 1 to 2**31 - 1, got 2.5"),
    (set_metric("device-index", -1), "'device-index' must be an integer of at least 0, got -1"),
    (set_metric("device-index", 1.0), "'device-index' must be an integer of at least 0, got 1.0"),
    (
        set_array("head", np.full((5, 3), np.nan, np.float32)),
        "its gradient, and the model made with it, must be finite, got NaN or infinity",
    ),
    (
        set_array("head", np.full((5, 3), np.inf, np.float32)),
        "its gradient, and the model made with it, must be finite, got NaN or infinity",
    ),
    (set_array("head", np.zeros((3, 5), np.float32)), "array 'head' must have shape (5, 3), got (3, 5)"),
    (set_array("head", np.zeros((5, 3), np.int32)), "array 'head' must have dtype float32, got int32"),
    (
        set_array("tail", np.zeros(1, np.float32)),
        "arrays must be the model's, got [] missing and ['tail'] too many",
    ),
    (
        lambda content, arrays: RecordDict({"metrics": content["metrics"]}),
        "a reply must hold one ArrayRecord, got 0",
    ),
]


@pytest.mark.parametrize(("change", "reason"), BAD_REPLIES, ids=[reason[:60] for _, reason in BAD_REPLIES])
def test_a_bad_reply_is_left_out_reported_and_recorded(change, reason):
    good = [walker(n) for n in (0, 1, 3, 4)]
    ledger = MemoryLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger, **EXACT)
    result = strategy.start(Federation([*good, spoiled(change)]), initial(), num_rounds=2)
    assert_models_close(values(result.arrays), fednova(good, 2))
    for server_round in (1, 2):
        assert result.train_metrics_clientapp[server_round]["left-out"] == 1
        (left_out,) = strategy.reports[server_round].left_out
        assert left_out.reason == reason
    recorded = [decode(entry.payload)[1] for entry in ledger.entries() if entry.kind is Kind.REPORT]
    assert [json.loads(metadata["report"])["left_out"][0]["reason"] for metadata in recorded] == [
        reason,
        reason,
    ]


def test_two_nodes_that_claim_one_device_are_both_left_out_unless_one_had_it_before():
    honest = [walker(n, named=True) for n in range(4)]

    def late_impostor(server_round, arrays):
        if server_round == 1:
            raise RuntimeError("not here yet")
        return reply(arrays, num_examples=9, num_steps=1, loss=0.0, device_index=0)

    strategy = ConsensusBFL(edge_servers=2, **EXACT)
    run(strategy, [*honest, late_impostor], rounds=2)
    (left_out,) = strategy.reports[2].left_out
    assert "must be the only node that reports device 0, got 2 such nodes" in left_out.reason
    assert sum(len(devices) for devices in strategy.reports[2].server_devices) == 4

    first_round = ConsensusBFL(edge_servers=2, **EXACT)
    run(first_round, [*honest, walker(0, named=True)], rounds=1)
    assert len(first_round.reports[1].left_out) == 2
    assert first_round.reports[1].server_devices == ((2,), (1, 3))


def test_a_device_cannot_take_over_the_index_of_another():
    def greedy(server_round, arrays):
        content = walker(1, named=True)(server_round, arrays)
        content["metrics"]["device-index"] = 1 if server_round == 1 else 0
        return content

    def asleep(server_round, arrays):
        if server_round == 2:
            raise RuntimeError("asleep")
        return walker(0, named=True)(server_round, arrays)

    strategy = ConsensusBFL(edge_servers=2)
    run(strategy, [asleep, greedy, walker(2, named=True)], rounds=3)
    assert [report.server_devices for report in strategy.reports[1:]] == [
        ((0, 2), (1,)),
        ((2,), ()),
        ((0, 2), ()),
    ]
    assert "must keep the index 1 that it had before, got 0" in strategy.reports[3].left_out[0].reason


def test_a_device_that_comes_back_under_another_node_id_keeps_its_index():
    federation = Federation([walker(n, named=True) for n in range(3)])

    def reconnect(server_round, arrays):
        old = federation.nodes[2]
        federation.nodes[2] = old + 1
        federation._devices[old + 1] = federation._devices.pop(old)

    strategy = ConsensusBFL(edge_servers=2)
    strategy.start(federation, initial(), num_rounds=3, evaluate_fn=reconnect)
    assert [report.server_devices for report in strategy.reports[1:]] == [((0, 2), (1,))] * 3


def scaled(factor, dtype=np.float32, **metrics):
    def train(server_round, arrays):
        content = walker(2)(server_round, arrays)
        spoiled = {name: (array * 0 + factor).astype(dtype) for name, array in arrays.items()}
        record_ = content["metrics"]
        for name, value in metrics.items():
            record_[name.replace("_", "-")] = value
        return RecordDict({"arrays": record(spoiled), "metrics": record_})

    return train


@pytest.mark.parametrize(
    ("dtype", "factor", "arguments"),
    [
        (np.float64, 1e300, {}),  # infinite as float32
        (np.float32, 1e37, {"learning_rate": 1e-3}),  # infinite once divided by the step size
    ],
)
def test_a_reply_that_overflows_later_is_left_out_too(dtype, factor, arguments):
    arrays = record({name: array.astype(dtype) for name, array in values(initial()).items()})
    good = [walker(n) for n in (0, 1, 3, 4)]
    strategy = ConsensusBFL(edge_servers=2, **arguments, **EXACT)
    model = run(strategy, [*good, scaled(factor, dtype)], rounds=2, arrays=arrays)
    assert_models_close({name: array.astype(np.float32) for name, array in model.items()}, fednova(good, 2))
    assert "must be finite" in strategy.reports[1].left_out[0].reason


def test_a_model_that_overflows_is_not_published():
    arrays = record({"w": np.ones((2, 2), np.float16)})

    def device(n):
        def train(server_round, arrays):
            factor = 60000 if server_round == 2 else 1.5
            return reply({"w": np.full((2, 2), factor, np.float16)}, num_examples=1, num_steps=1 + 9 * n)

        return train

    strategy = ConsensusBFL(edge_servers=2)
    model = run(strategy, [device(n) for n in range(4)], rounds=3, arrays=arrays)
    assert np.isfinite(model["w"]).all()
    assert strategy.reports[2].devices == 0 and len(strategy.reports[2].left_out) == 4


@pytest.mark.parametrize("metric", ["num-steps", "num-examples"])
def test_huge_counts_are_left_out(metric):
    def boastful(content, arrays):
        content["metrics"][metric] = 2**62

    good = [walker(n) for n in (0, 1, 3)]
    model = run(ConsensusBFL(edge_servers=2, **EXACT), [*good, spoiled(boastful)], rounds=1)
    assert_models_close(model, fednova(good, 1))


def test_weights_need_not_be_whole_numbers():
    def device(n):
        def train(server_round, arrays):
            content = walker(n)(server_round, arrays)
            content["metrics"]["weight"] = 0.5 + n
            return content

        return train

    devices = [device(n) for n in range(4)]
    ours = run(ConsensusBFL(edge_servers=2, weighted_by_key="weight", **EXACT), devices)
    assert_models_close(ours, run(FedAvg(weighted_by_key="weight"), devices))


def test_bytes_that_are_no_array_are_left_out():
    def zipped(content, arrays):
        content["arrays"]["head"] = Array(
            "float32", (5, 3), "numpy.ndarray", b"PK\x03\x04 not a zip file at all"
        )

    def enormous(content, arrays):
        data = content["arrays"]["head"].data.replace(b"(5, 3), ", b"(10000000000000000000, 3), ")
        content["arrays"]["head"] = Array("float32", (5, 3), "numpy.ndarray", data)

    good = [walker(n) for n in (0, 1, 3)]
    model = run(ConsensusBFL(edge_servers=2, **EXACT), [*good, spoiled(zipped), spoiled(enormous)], rounds=1)
    assert_models_close(model, fednova(good, 1))


def test_a_metric_of_another_kind_is_left_out_of_the_mean():
    def listed(content, arrays):
        content["metrics"]["loss"] = [1.0, 2.0]

    strategy = ConsensusBFL(edge_servers=2)
    run(strategy, [walker(0), walker(1), spoiled(listed)], rounds=1)
    assert strategy.reports[1].devices == 3 and "loss" not in strategy.reports[1].train


def test_a_node_that_does_not_answer_is_reported():
    class Lossy(Federation):
        def send_and_receive(self, messages, timeout=None):
            return super().send_and_receive(messages, timeout)[:2]

    strategy = ConsensusBFL(edge_servers=2)
    strategy.start(Lossy([walker(n) for n in range(4)]), initial(), num_rounds=1)
    assert [left_out.reason for left_out in strategy.reports[1].left_out] == ["no reply in time"] * 2


def test_a_round_without_a_usable_reply_keeps_the_model_and_the_run_goes_on():
    def sometimes(n):
        def train(server_round, arrays):
            if server_round == 2:
                raise RuntimeError("asleep")
            return walker(n)(server_round, arrays)

        return train

    ledger = MemoryLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger)
    run(strategy, [sometimes(n) for n in range(3)], rounds=3)
    assert [report.devices for report in strategy.reports] == [0, 3, 0, 3]
    assert len(strategy.reports[2].left_out) == 3
    models = {e.round: decode(e.payload)[0] for e in ledger.entries() if e.kind is Kind.MODEL}
    np.testing.assert_array_equal(models[1]["head"], models[2]["head"])
    assert (models[3]["head"] != models[2]["head"]).any()
