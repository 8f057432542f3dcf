import inspect
from typing import get_type_hints

import numpy as np
import pytest
from federation import (
    EXACT,
    assert_models_close,
    fednova,
    record,
    run,
    walker,
)
from flwr.serverapp.strategy import FedAvg

from flower_bfl import (
    ConsensusBFL,
    MemoryLedger,
    Outage,
)
from flower_bfl.chain_adapter.base import Kind, decode, draw_leader
from flower_bfl.strategies._edge_strategy import FedAvgArguments

# -- oracles -------------------------------------------------------------------------------------------


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
        arrays, metadata = decode(entry.payload) if entry.payload else ({}, {})
        flat = np.concatenate([array.reshape(-1) for array in arrays.values()]) if arrays else None
        found.setdefault((entry.kind, entry.round, entry.step), []).append((entry.sender, metadata, flat))
    rules = found[Kind.RULES, 0, 0][0]
    mixing = rules[2].reshape(3, 3)
    for k in (1, 2, 3):
        gradients = found[Kind.GRADIENT, k, 0]
        d = np.array([int(meta["num-examples"]) for _, meta, _ in gradients])
        e = np.array([int(meta["num-steps"]) for _, meta, _ in gradients])
        partials = np.zeros((3, gradients[0][2].size))
        server_of = {
            device: sender.index
            for sender, meta, _ in found[Kind.CONSENSUS, k, 0]
            for device in meta["devices"].split()
        }
        for (sender, _, g), weight in zip(gradients, d / (d.sum() * e), strict=True):
            partials[server_of[str(sender.index)]] += weight * g.astype(float)
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
        assert leader.index == draw_leader(bytes.fromhex(strategy.reports[k - 1].head), k, 3)


def test_leaders_are_drawn_evenly():
    strategy = ConsensusBFL(edge_servers=3, ledger=MemoryLedger())
    run(strategy, [walker(n) for n in range(3)], rounds=60, arrays=record({"w": np.zeros(2, np.float32)}))
    drawn = np.bincount([report.leader for report in strategy.reports[1:]], minlength=3)
    assert drawn.min() >= 8  # of 60 even draws, fewer than 8 has a chance of 0.06 %


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
