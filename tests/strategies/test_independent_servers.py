import numpy as np
import pytest
from federation import Federation, initial, values, walker
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
