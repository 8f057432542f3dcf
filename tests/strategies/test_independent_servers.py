import numpy as np
import pytest
from federation import Federation, initial, record, values, walker
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg

from flower_bfl import IndependentServers


def test_every_server_runs_fedavg_with_its_own_devices():
    devices = [walker(n, named=True) for n in range(7)]
    strategy = IndependentServers(edge_servers=3)
    strategy.start(Federation(devices), initial(), num_rounds=4)
    for server in range(3):
        own = [devices[n] for n in range(7) if n % 3 == server]
        alone = FedAvg().start(Federation(own), initial(), num_rounds=4)
        for name, array in values(alone.arrays).items():
            np.testing.assert_allclose(strategy.models[server][name], array, rtol=2e-5, atol=2e-6)


def test_central_metrics_are_means_over_the_servers_models():
    seen = []

    def evaluate(server_round, arrays):
        seen.append((server_round, float(arrays["head"].numpy().sum())))
        return MetricRecord({"sum": seen[-1][1], "all": [1, 2]})

    strategy = IndependentServers(edge_servers=2)
    devices = [walker(n) for n in range(4)]
    result = strategy.start(Federation(devices), initial(), num_rounds=1, evaluate_fn=evaluate)
    sums = [value for server_round, value in seen if server_round == 1]
    assert len(sums) == 2 and sums[0] != sums[1]
    assert result.evaluate_metrics_serverapp[1]["sum"] == pytest.approx(np.mean(sums))


def test_a_server_whose_devices_are_silent_keeps_its_model():
    def silent(server_round, arrays):
        if server_round == 2:
            raise RuntimeError("asleep")
        return walker(1, named=True)(server_round, arrays)

    strategy = IndependentServers(edge_servers=2)
    after = []

    def evaluate(server_round, arrays):
        if strategy.models:
            after.append((server_round, strategy.models[1]["head"].copy()))
        return None

    strategy.start(
        Federation([walker(0, named=True), silent, walker(2, named=True)]),
        initial(),
        num_rounds=2,
        evaluate_fn=evaluate,
    )
    first, second = (next(model for k, model in after if k == server_round) for server_round in (1, 2))
    np.testing.assert_array_equal(first, second)
    assert strategy.reports[2].left_out[0].reason == "the client failed: asleep"


def test_a_late_device_joins_its_server_with_its_second_reply():
    def late(server_round, arrays):
        if server_round == 1:
            raise RuntimeError("not here yet")
        return walker(1, named=True)(server_round, arrays)

    strategy = IndependentServers(edge_servers=2)
    strategy.start(Federation([walker(0, named=True), late, walker(3, named=True)]), initial(), num_rounds=3)
    assert [report.server_devices for report in strategy.reports[1:]] == [
        ((0,), (3,)),
        ((0,), (3,)),
        ((0,), (1, 3)),
    ]
    assert "it trained another edge server's model" in strategy.reports[2].left_out[0].reason


def test_a_gradient_that_is_not_finite_is_left_out():
    def spoiled(server_round, arrays):
        content = walker(3, named=True)(server_round, arrays)
        for name in arrays:
            content["arrays"][name] = record({name: np.full_like(arrays[name], np.nan)})[name]
        return content

    strategy = IndependentServers(edge_servers=2)
    strategy.start(Federation([*(walker(n, named=True) for n in range(3)), spoiled]), initial(), num_rounds=1)
    assert [left_out.who for left_out in strategy.reports[1].left_out] == ["device 3"]
    assert all(np.isfinite(model["head"]).all() for model in strategy.models)
