"""Rounds with a controller: what is learnt is Algorithm 1's."""

from dataclasses import replace

import numpy as np
import pytest
from algorithm_1 import Constants, Round, algorithm_1, laplacian_weights, links_of, metropolis_weights
from field import (
    EDGE_STEPS,
    RATE,
    Field,
    Scripted,
    arrived,
    decision,
    least_squares_app,
    local_steps,
    new_points,
    roomy,
    start_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl import ConsensusBFL, MemoryLedger, Mining
from flower_bfl.network import price

DEVICES = 6


def weights_of(graph, mixing, servers):
    links = links_of(graph, servers)
    if mixing == "metropolis":
        return metropolis_weights(links, servers)
    return laplacian_weights(links, servers, 0.9 / servers)


def learnt(strategy, grid, rounds, **start):
    """The model after each round."""
    models = []
    strategy.start(
        grid,
        start_weights(),
        num_rounds=rounds,
        evaluate_fn=lambda k, arrays: models.append(arrays["w"].numpy()),
        **start,
    )
    return models[1:]


def by_the_paper(strategy, controller, script, weights, homes=None):
    """The models that Algorithm 1 gives for a script, with the leaders that were drawn."""
    servers = len(weights)
    rounds = [
        Round(
            data=[tuple(arrived(device, k).values()) for device in range(DEVICES)],
            offloads_to=script[k - 1],
            # without a given edge server, the one with the best channel
            homes=homes or state.gain.max(axis=-1).argmax(axis=-1).tolist(),
            leader=report.leader,
        )
        for k, (state, report) in enumerate(zip(controller.seen, strategy.reports[1:], strict=True), start=1)
    ]
    constants = Constants(
        local_steps=[local_steps(device) for device in range(DEVICES)],
        edge_steps=[EDGE_STEPS + server for server in range(servers)],
        learning_rate=RATE,
        mixing=weights,
        consensus_rounds=strategy.consensus.p2p_rounds,
        mass=strategy.consensus.mass,
    )
    return algorithm_1(np.zeros(4), rounds, constants)


def script_for(servers):
    """Decisions that change from round to round."""
    last = servers - 1
    return [
        [None] * DEVICES,  # nobody offloads
        [device % servers for device in range(DEVICES)],  # everybody
        [last] * DEVICES,  # one edge server gets all
        [None, last, None, last, last, None],  # edge server 0 gets none
        [0, None, min(1, last), None, 0, last],
        [None, None, 0, None, None, None],  # one edge server trains on the data of one device
    ]


NETWORKS = [
    # servers, graph, mixing, φ, mass, leader, whether `association` is given
    (1, "complete", "laplacian", 5, "count", 0, False),
    (2, "complete", "laplacian", 1, "count", 1, False),
    (2, "complete", "metropolis", 0, "data", 0, True),
    (3, "complete", "laplacian", 0, "count", 2, False),
    (3, "ring", "laplacian", 5, "count", "random", False),
    (3, "line", "metropolis", 3, "data", 2, True),
    (3, "star", "laplacian", 2, "count", 1, False),
    (4, {(0, 1), (1, 2), (2, 3), (0, 2)}, "metropolis", 3, "count", 3, True),
    (5, "ring", "metropolis", 4, "count", 3, False),
    (5, "line", "laplacian", 10, "data", "random", False),
    (5, "star", "metropolis", 0, "data", 4, False),
]


@pytest.mark.parametrize(("servers", "graph", "mixing", "steps", "mass", "leader", "given_homes"), NETWORKS)
def test_the_models_are_those_of_algorithm_1(servers, graph, mixing, steps, mass, leader, given_homes):
    script, homes = script_for(servers), [(2 * n + 1) % servers for n in range(DEVICES)]
    controller = Scripted(roomy(DEVICES, servers), *script)
    strategy = ConsensusBFL(
        edge_servers=servers, graph=graph if isinstance(graph, str) else sorted(graph), mixing=mixing,
        p2p_rounds=steps, mass=mass, leader=leader, controller=controller, learning_rate=0.3,
        association=homes if given_homes else None,
    )  # fmt: skip
    grid = Field([least_squares_app(new_points)] * (DEVICES + servers))
    models = learnt(strategy, grid, len(script))
    expected = by_the_paper(
        strategy, controller, script, weights_of(graph, mixing, servers), homes if given_homes else None
    )
    np.testing.assert_allclose(models, expected, rtol=2e-5, atol=2e-6)
    for report, sent_to in zip(strategy.reports[1:], script, strict=True):
        assert report.server_data == tuple(
            tuple(n for n in range(DEVICES) if sent_to[n] == m) for m in range(servers)
        )
        assert (report.devices, report.fallback, report.left_out) == (DEVICES, "", ())


@settings(max_examples=20)
@given(data=st.data())
def test_any_decisions_give_the_models_of_algorithm_1(data):
    servers = data.draw(st.integers(1, 4))
    where = st.none() | st.integers(0, servers - 1)
    script = data.draw(st.lists(st.tuples(*[where] * DEVICES), min_size=2, max_size=2))
    controller = Scripted(roomy(DEVICES, servers), *script)
    strategy = ConsensusBFL(
        edge_servers=servers,
        p2p_rounds=data.draw(st.integers(0, 3)),
        mass=data.draw(st.sampled_from(["count", "data"])),
        controller=controller,
        seed=data.draw(st.integers(0, 3)),
    )
    models = learnt(strategy, Field([least_squares_app(new_points)] * (DEVICES + servers)), 2)
    expected = by_the_paper(strategy, controller, script, weights_of("complete", "laplacian", servers))
    np.testing.assert_allclose(models, expected, rtol=2e-5, atol=2e-6)


def test_simulated_time_adds_up_what_was_carried_out():
    """The report's latency is that of the executed decision, with the strategy's own consensus steps."""
    network = roomy(DEVICES, 2)
    controller = Scripted(network, *script_for(2))
    strategy = ConsensusBFL(edge_servers=2, p2p_rounds=3, controller=controller)
    learnt(strategy, Field([least_squares_app(new_points)] * (DEVICES + 2)), 6)
    clock = 0.0
    for state, servers, report in zip(controller.seen, script_for(2), strategy.reports[1:], strict=True):
        expected = price(replace(network, p2p_rounds=3), state, decision(network, state, servers))
        assert report.latency_s["total"] == expected.total_s == report.train["latency-s"]
        assert report.latency_s["consensus"] == 3 * network.model_bits / network.edge_link_bps
        assert report.energy_j["local"] == expected.local_j.sum()
        clock += expected.total_s
        assert report.simulated_seconds == pytest.approx(clock) == report.train["simulated-seconds"]
        assert report.train["offloaded"] == sum(server is not None for server in servers)
        assert min(report.report_seconds, report.decide_seconds, report.offload_seconds) >= 0


def test_devices_race_with_the_hash_rates_decided_also_those_that_sent_their_data():
    rates = np.array([1e11, 2e11, 3e11, 4e11, 5e11, 6e11])

    class Unequal(Scripted):
        def decide(self, state):
            return replace(super().decide(state), hash_rate=rates)

    controller = Unequal(roomy(DEVICES, 2), [0, None, 1, None, 0, 1])
    strategy = ConsensusBFL(
        edge_servers=2, p2p_rounds=0, controller=controller, ledger=MemoryLedger(), seed=5,
        mining=Mining(hash_rates=1.0, difficulty_bits=1),
    )  # fmt: skip
    learnt(strategy, Field([least_squares_app(new_points)] * (DEVICES + 2)), 12)
    for report in (one for one in strategy.reports[1:] if not one.forks):
        seconds = np.random.default_rng([5, report.round, 27]).exponential(5e10 / rates)
        assert report.miner == f"device {seconds.argmin()}"
        assert report.mining_seconds == pytest.approx(seconds.min())
    assert len({report.miner for report in strategy.reports[1:]}) > 2
