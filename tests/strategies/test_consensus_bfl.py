import inspect
import json
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from federation import Federation, initial, record, reply, values, walker
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from flower_bfl import (
    ConfigError,
    ConsensusBFL,
    FlowerBFLError,
    IndependentServers,
    LedgerError,
    MemoryLedger,
    Outage,
)
from flower_bfl.chain_adapter.base import Kind, decode, draw_leader
from flower_bfl.errors import RunFolderError
from flower_bfl.strategies._edge_strategy import FedAvgArguments

EXACT = {"graph": "complete", "mixing": "metropolis", "p2p_rounds": 1}  # one step of it is the exact mean


def run(strategy, devices, rounds=3, arrays=None, seed=None, **start):
    result = strategy.start(Federation(devices, seed), arrays or initial(), num_rounds=rounds, **start)
    return values(result.arrays)


def assert_models_close(model, expected):
    assert list(model) == list(expected)
    for name in model:
        assert model[name].dtype == expected[name].dtype
        np.testing.assert_allclose(model[name], expected[name], rtol=2e-5, atol=2e-6)


# -- oracles -------------------------------------------------------------------------------------------


def fednova(devices, rounds):
    """Wang et al., Tackling the objective inconsistency problem in heterogeneous FL, 2020, for vanilla SGD:
    w ← w − τ_eff Σ_i p_i d_i, d_i = (w − w_i)/τ_i, τ_eff = Σ_i p_i τ_i, written out in float64."""
    model = {name: array.astype(float) for name, array in values(initial()).items()}
    for server_round in range(1, rounds + 1):
        sent = {name: array.astype(np.float32) for name, array in model.items()}
        trained = [device(server_round, sent) for device in devices]
        n = np.array([r["metrics"]["num-examples"] for r in trained], float)
        tau = np.array([r["metrics"]["num-steps"] for r in trained], float)
        p = n / n.sum()
        for name in model:
            after = np.array([r["arrays"][name].numpy() for r in trained], float)
            direction = np.tensordot(p / tau, sent[name] - after, axes=1)
            model[name] = sent[name] - (p * tau).sum() * direction
    return {name: array.astype(np.float32) for name, array in model.items()}


@pytest.mark.parametrize("learning_rate", [1.0, 0.01])
@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize("servers", [1, 3, 7])
def test_exact_consensus_is_fednova(servers, mass, learning_rate):
    devices = [walker(n, steps=1 + n % 4) for n in range(7)]
    strategy = ConsensusBFL(edge_servers=servers, mass=mass, learning_rate=learning_rate, **EXACT)
    assert_models_close(run(strategy, devices), fednova(devices, 3))


def test_exact_consensus_with_equal_steps_is_flowers_own_fedavg():
    devices = [walker(n) for n in range(9)]
    assert_models_close(run(ConsensusBFL(edge_servers=4, **EXACT), devices), run(FedAvg(), devices))


def test_devices_that_do_not_count_their_steps_count_as_one_step():
    def silent(n):
        def train(server_round, arrays):
            content = walker(n)(server_round, arrays)
            del content["metrics"]["num-steps"]
            return content

        return train

    devices = [silent(n) for n in range(5)]
    strategy = ConsensusBFL(edge_servers=2, **EXACT)
    assert_models_close(run(strategy, devices), run(FedAvg(), devices))
    assert strategy.reports[1].boost == 1.0


@pytest.mark.parametrize("leader", [0, 1, 2])
def test_without_consensus_the_leaders_own_mean_is_the_global_model(leader):
    devices = [walker(n, named=True) for n in range(6)]
    own = [devices[n] for n in range(6) if n % 3 == leader]
    alone = run(FedAvg(), own, rounds=1)
    strategy = ConsensusBFL(edge_servers=3, p2p_rounds=0, leader=leader)
    assert_models_close(run(strategy, devices, rounds=1), alone)


def test_more_steps_come_closer_to_exact_consensus():
    devices = [walker(n, named=True) for n in range(10)]
    exact = fednova(devices, 1)
    misses = []
    for steps in (1, 3, 9, 60):
        strategy = ConsensusBFL(edge_servers=5, graph="ring", p2p_rounds=steps, leader=0)
        model = run(strategy, devices, rounds=1)
        misses.append(sum(np.abs(model[name] - exact[name]).max() for name in model))
        report = strategy.reports[1]
        assert report.consensus_error <= report.consensus_bound + 1e-5
    assert misses == sorted(misses, reverse=True) and misses[-1] < 1e-5


def test_counters_come_from_the_device_with_the_most_samples():
    arrays = record({"w": np.zeros(3, np.float32), "batches": np.array(0, np.int64)})
    devices = [walker(n, samples=100 if n == 2 else 5) for n in range(4)]
    model = run(ConsensusBFL(edge_servers=2), devices, rounds=1, arrays=arrays)
    assert model["batches"] == 2 and model["batches"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_models_keep_their_dtype(dtype):
    arrays = record({"w": np.ones((2, 2), dtype)})
    model = run(ConsensusBFL(edge_servers=2), [walker(n) for n in range(4)], arrays=arrays)
    assert model["w"].dtype == dtype


def test_an_unchanged_app_needs_nothing_but_another_name():
    ours = get_type_hints(FedAvgArguments)
    theirs = [name for name in inspect.signature(FedAvg).parameters]
    assert sorted(ours) == sorted(theirs)
    strategy = ConsensusBFL(fraction_train=0.5, min_train_nodes=3, weighted_by_key="loss-weight")
    assert (strategy.fraction_train, strategy.min_train_nodes) == (0.5, 3)
    assert strategy.weighted_by_key == "loss-weight"


# -- one seed, one run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_node_ids_and_the_order_of_replies_leave_no_trace(named):
    runs = []
    for shuffle in range(3):
        ledger = MemoryLedger()
        strategy = ConsensusBFL(edge_servers=3, graph="line", p2p_rounds=2, ledger=ledger, seed=5)
        model = run(strategy, [walker(n, named=named) for n in range(8)], seed=shuffle)
        entries = [(entry.kind, entry.sender, entry.payload) for entry in ledger.entries()]
        runs.append((ledger.head, entries, {name: array.tobytes() for name, array in model.items()}))
    assert runs[0] == runs[1] == runs[2]


def test_every_model_follows_from_the_recorded_gradients():
    """The whole chain of (8), (9), (11), (12) and the leaders' draws, recomputed from the ledger alone."""
    ledger = MemoryLedger()
    strategy = ConsensusBFL(edge_servers=3, graph="line", p2p_rounds=3, ledger=ledger, learning_rate=0.1)
    run(strategy, [walker(n, steps=1 + n, named=True) for n in range(7)])
    found = {}
    for entry in ledger.entries():
        arrays, metadata = decode(entry.payload)
        flat = np.concatenate([array.reshape(-1) for array in arrays.values()]) if arrays else None
        found.setdefault((entry.kind, entry.round, entry.step), []).append((entry.sender, metadata, flat))
    rules = found[Kind.RULES, 0, 0][0]
    mixing = rules[2].reshape(3, 3)
    for k in (1, 2, 3):
        gradients = found[Kind.GRADIENT, k, 0]
        d = np.array([int(meta["num-examples"]) for _, meta, _ in gradients])
        e = np.array([int(meta["num-steps"]) for _, meta, _ in gradients])
        partials = np.zeros((3, gradients[0][2].size))
        for (_, meta, g), weight in zip(gradients, d / (d.sum() * e), strict=True):
            partials[int(meta["server"])] += weight * g.astype(float)
        state = partials.astype(np.float32)
        for step in range(4):
            recorded = np.array([x for _, _, x in found[Kind.CONSENSUS, k, step]])
            np.testing.assert_array_equal(state, recorded)
            following = np.zeros(state.shape)
            for m, other in np.argwhere(mixing):
                following[m] += mixing[m, other] * state[other].astype(float)
            state, last = following.astype(np.float32), state
        leader, _, model = found[Kind.MODEL, k, 0][0]
        before = found[Kind.MODEL, k - 1, 0][0][2]
        factor = 0.1 * ((d * e).sum() / d.sum()) / (1 / 3)
        np.testing.assert_array_equal(
            model, (before - factor * last[leader.index].astype(float)).astype(np.float32)
        )
        assert leader.index == strategy.reports[k].leader
        assert leader.index == draw_leader(bytes.fromhex(strategy.reports[k - 1].head), k, [0, 1, 2])


def test_leaders_are_drawn_evenly():
    strategy = ConsensusBFL(edge_servers=3, ledger=MemoryLedger())
    run(strategy, [walker(n) for n in range(3)], rounds=60, arrays=record({"w": np.zeros(2, np.float32)}))
    drawn = np.bincount([report.leader for report in strategy.reports[1:]], minlength=3)
    assert drawn.min() >= 8  # of 60 even draws, fewer than 8 has a chance of 0.06 %


# -- bad replies ---------------------------------------------------------------------------------------


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


# -- devices and edge servers --------------------------------------------------------------------------


def test_devices_are_dealt_out_in_turn_or_as_given():
    devices = [walker(n, named=True) for n in range(7)]
    balanced = ConsensusBFL(edge_servers=3)
    run(balanced, devices, rounds=1)
    assert balanced.reports[1].server_devices == ((0, 3, 6), (1, 4), (2, 5))
    given = ConsensusBFL(edge_servers=3, association=[0, 0, 0, 0, 2, 2, 2])
    run(given, devices, rounds=1)
    assert given.reports[1].server_devices == ((0, 1, 2, 3), (), (4, 5, 6))
    assert_models_close(
        run(ConsensusBFL(edge_servers=3, association=[0, 0, 0, 0, 2, 2, 2], **EXACT), devices),
        fednova(devices, 3),
    )


def test_ratio_consensus_hurts_unequal_servers_less():
    """One server has nine of ten devices, and one step on a line: M·x is far off, x/s is near."""
    devices = [walker(n, samples=50, named=True) for n in range(10)]
    exact = fednova(devices, 1)
    misses = {}
    for mass in ("count", "data"):
        strategy = ConsensusBFL(
            edge_servers=3, graph="line", p2p_rounds=1, mass=mass, leader=0, association=[0] * 9 + [2]
        )
        model = run(strategy, devices, rounds=1)
        misses[mass] = sum(np.linalg.norm(model[name] - exact[name]) for name in model)
    assert misses["data"] < misses["count"] / 2


def test_an_edge_server_that_is_down_loses_its_devices_for_the_round_and_no_more():
    devices = [walker(n, named=True) for n in range(6)]
    ledger = MemoryLedger()
    strategy = ConsensusBFL(
        edge_servers=3, ledger=ledger, outages=[Outage(round=2, server=1)], **EXACT | {"p2p_rounds": 30}
    )
    run(strategy, devices, rounds=3)
    report = strategy.reports[2]
    assert report.server_devices == ((0, 3), (), (2, 5))
    assert {left_out.who for left_out in report.left_out} == {"device 1", "device 4"}
    assert report.down == ("edge server 1 from step 0",) and report.leader != 1
    assert report.consensus_error < 1e-5
    assert strategy.reports[3].devices == 6
    senders = {e.sender.index for e in ledger.entries() if e.kind is Kind.CONSENSUS and e.round == 2}
    assert senders == {0, 2}


@pytest.mark.parametrize("mass", ["count", "data"])
def test_an_edge_server_that_fails_during_consensus_leaves_its_devices_gradients_with_the_others(mass):
    devices = [walker(n, named=True) for n in range(6)]
    strategy = ConsensusBFL(
        edge_servers=3,
        graph="complete",
        mixing="metropolis",
        p2p_rounds=9,
        mass=mass,
        outages=[Outage(round=1, server=2, step=1), Outage(round=1, link=(0, 1), step=5)],
    )
    assert_models_close(run(strategy, devices, rounds=1), fednova(devices, 1))
    assert strategy.reports[1].leader in (0, 1)


def test_a_sample_of_the_devices_is_enough():
    strategy = ConsensusBFL(edge_servers=2, fraction_train=0.5, min_train_nodes=2, ledger=MemoryLedger())
    run(strategy, [walker(n) for n in range(8)], rounds=4)
    assert [report.devices for report in strategy.reports[1:]] == [4, 4, 4, 4]


# -- bad input -----------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"edge_servers": 0}, "`edge_servers` must be a whole number from 1 to 65535, got 0"),
    ({"p2p_rounds": -1}, "`p2p_rounds` must be a whole number from 0 to 65535, got -1"),
    ({"edge_servers": 2.0}, "`edge_servers` must be a whole number .* got 2.0"),
    ({"p2p_rounds": 2.5}, "`p2p_rounds` must be a whole number .* got 2.5"),
    ({"graph": [(0, 1, 2)]}, "`graph` must be a name or a list of pairs"),
    ({"mixing": "metropolis", "laplacian_step": 0.1}, "`laplacian_step` goes with mixing='laplacian' only"),
    ({"fraction_train": 1.5}, r"`fraction_train` must be in \[0, 1\], got 1.5"),
    ({"outages": [Outage(1, link=(1, 1))]}, "`outages` must name links of the graph"),
    ({"outages": [Outage(1, link=(0, 2))], "graph": "line"}, "`outages` must name links of the graph"),
    ({"mass": "weight"}, "`mass` must be one of .* got 'weight'"),
    ({"leader": 3}, "`leader` must be 'random' or an edge server of .* got 3"),
    ({"learning_rate": 0.0}, "`learning_rate` must be positive and finite, got 0.0"),
    ({"learning_rate": float("nan")}, "`learning_rate` must be positive and finite, got nan"),
    ({"graph": [(0, 1)]}, "`graph` must be connected"),
    ({"laplacian_step": 0.5}, r"`laplacian_step` must be in \(0, 1/3\) for 3 edge servers, got 0.5"),
    ({"mixing": "fast"}, "`mixing` must be one of"),
    ({"association": [0, 1, 5]}, "`association` must name edge servers of 0..2, got 5"),
    ({"outages": [Outage(round=1, server=4)]}, "`outages` must name edge servers of 0..2"),
    (
        {"outages": [Outage(1, m) for m in range(3)]},
        "`outages` must leave an edge server up, got none in round 1",
    ),
    ({"wait_for_nodes_s": 0}, "`wait_for_nodes_s` must be positive, got 0"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_ARGUMENTS, ids=[message for _, message in BAD_ARGUMENTS]
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ConsensusBFL(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"server": 1, "link": (0, 1)}, {"server": 1, "step": -1}])
def test_bad_outages_are_named(arguments):
    with pytest.raises(ConfigError, match="`Outage` must"):
        Outage(round=1, **arguments)


@pytest.mark.parametrize("strategy", [ConsensusBFL, IndependentServers])
@pytest.mark.parametrize("arguments", [{"edge_servers": 5}, {"edge_servers": 2, "min_available_nodes": 9}])
def test_too_few_devices_end_the_run_with_a_message(strategy, arguments):
    with pytest.raises(
        ConfigError, match=r"` must be at most the number of nodes that connect .* got \d with 4 connected"
    ):
        run(strategy(wait_for_nodes_s=0.3, **arguments), [walker(n) for n in range(4)])


def test_a_device_without_an_edge_server_is_left_out():
    strategy = ConsensusBFL(edge_servers=2, association=[0, 1, 0])
    run(strategy, [walker(n, named=True) for n in range(4)], rounds=1)
    (left_out,) = strategy.reports[1].left_out
    assert left_out.who == "device 3" and "`association` must name an edge server for it" in left_out.reason


def test_too_few_nodes_to_evaluate_skip_the_evaluation():
    strategy = ConsensusBFL(edge_servers=2, min_evaluate_nodes=9, wait_for_nodes_s=0.3)
    result = strategy.start(Federation([walker(n) for n in range(3)]), initial(), num_rounds=2)
    assert strategy.reports[2].devices == 3 and not result.evaluate_metrics_clientapp


def test_a_first_round_without_a_usable_reply_ends_the_run_and_says_why():
    def broken(server_round, arrays):
        raise RuntimeError("no such dataset")

    with pytest.raises(
        FlowerBFLError, match=r"round 1: none of 3 devices .*: the client failed: no such dataset"
    ):
        run(ConsensusBFL(edge_servers=2), [broken] * 3)


def test_a_strategy_runs_once():
    strategy = ConsensusBFL(edge_servers=2)
    run(strategy, [walker(n) for n in range(3)], rounds=1)
    with pytest.raises(ConfigError, match="a strategy must run once"):
        run(strategy, [walker(n) for n in range(3)], rounds=1)


def test_a_ledger_that_holds_a_run_is_refused_before_anybody_trains():
    ledger = MemoryLedger()
    run(ConsensusBFL(edge_servers=2, ledger=ledger), [walker(n) for n in range(3)], rounds=1)
    with pytest.raises(ConfigError, match="`ledger` must be empty, got one that holds a run"):
        run(ConsensusBFL(edge_servers=2, ledger=ledger), [walker(n) for n in range(3)], rounds=1)


# -- what a run leaves behind --------------------------------------------------------------------------


def test_the_run_folder_holds_every_round_and_the_recorded_model(tmp_path):
    folder = tmp_path / "deep" / "run"
    ledger = MemoryLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger, run_folder=folder)
    evaluate = lambda server_round, arrays: MetricRecord({"accuracy": server_round / 10})  # noqa: E731
    run(strategy, [walker(n) for n in range(4)], rounds=2, evaluate_fn=evaluate)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [line["evaluate"]["accuracy"] for line in lines] == [0.0, 0.1, 0.2]
    assert lines[2]["transactions"] == 4 + 6 * 2 + 1 and lines[2]["head"] == ledger.head.hex()
    last = [entry for entry in ledger.entries() if entry.kind is Kind.MODEL][-1]
    assert (folder / "model.safetensors").read_bytes() == last.payload


def test_a_run_folder_that_cannot_be_used_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"`run_folder` must be writable, got .*file/run: Not a directory"
    ):
        ConsensusBFL(run_folder=tmp_path / "file" / "run")
    ConsensusBFL(run_folder=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"`run_folder` must not hold a run already"):
        ConsensusBFL(run_folder=tmp_path / "run")


class FailingLedger(MemoryLedger):
    """Loses its disk in round 2."""

    def record(self, entries):
        entries = list(entries)
        if entries[0].round == 2:
            raise LedgerError("disk full")
        return super().record(entries)


def test_a_ledger_that_fails_ends_the_run_and_loses_nothing_recorded(tmp_path):
    ledger = FailingLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger, run_folder=tmp_path / "run")
    with pytest.raises(LedgerError, match="disk full"):
        run(strategy, [walker(n) for n in range(4)], rounds=5)
    assert [report.round for report in strategy.reports] == [0, 1]
    assert len(Path(tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 2
    assert {entry.round for entry in ledger.entries()} == {0, 1}
    last = [entry for entry in ledger.entries() if entry.kind is Kind.MODEL][-1]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == last.payload


def test_metrics_that_are_no_numbers_are_null_in_the_run_folder(tmp_path):
    strategy = ConsensusBFL(edge_servers=2, run_folder=tmp_path / "run")
    evaluate = lambda server_round, arrays: MetricRecord({"loss": float("nan")})  # noqa: E731
    run(strategy, [walker(n) for n in range(3)], rounds=1, evaluate_fn=evaluate)
    for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["evaluate"]["loss"] is None


def test_the_callers_config_is_not_changed():
    config = ConfigRecord({"lr": 0.1})
    run(ConsensusBFL(edge_servers=2), [walker(n) for n in range(3)], train_config=config)
    assert dict(config) == {"lr": 0.1}


def test_devices_own_evaluation_enters_the_report():
    def device(n):
        def answer(server_round, arrays):
            return walker(n)(server_round, arrays)

        return answer

    strategy = ConsensusBFL(edge_servers=2)
    strategy.start(Federation([device(n) for n in range(3)]), initial(), num_rounds=1)
    assert strategy.reports[1].evaluate_devices["loss"] == pytest.approx(
        np.average([1, 1 / 2, 1 / 3], weights=[10, 17, 24])
    )


def test_metrics_that_not_all_devices_report_are_left_out_of_the_mean():
    def device(n):
        def train(server_round, arrays):
            content = walker(n)(server_round, arrays)
            if n == 0:
                content["metrics"]["extra"] = 1.0
            return content

        return train

    strategy = ConsensusBFL(edge_servers=2, fraction_evaluate=0.0)
    strategy.start(Federation([device(n) for n in range(3)]), initial(), num_rounds=1)
    assert "extra" not in strategy.reports[1].train and "loss" in strategy.reports[1].train


def test_arrays_in_any_memory_order_are_read_alike():
    def fortran(server_round, arrays):
        content = walker(0)(server_round, arrays)
        turned = {name: np.asfortranarray(array) for name, array in values(content["arrays"]).items()}
        return reply(turned, num_examples=10, num_steps=4)

    arrays = initial()
    plain = run(ConsensusBFL(edge_servers=1), [walker(0), walker(1)], rounds=1, arrays=arrays)
    turned = run(ConsensusBFL(edge_servers=1), [fortran, walker(1)], rounds=1, arrays=arrays)
    assert_models_close(turned, plain)
