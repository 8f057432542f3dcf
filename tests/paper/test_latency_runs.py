"""Latencies: the library's prices of the same states, on the network that the settings describe."""

from dataclasses import replace

import numpy as np
import pytest

from flower_bfl.controller import AllLocalController, GreedyController, NearOptimalController
from flower_bfl.controller.baselines import train_baseline
from flower_bfl.errors import ConfigError
from flower_bfl.network import NetworkConfig, draw_states, price
from flower_bfl.paper._latency import COLUMNS, check, run

SETTINGS = {"devices": 4, "states": 3, "steps": 640, "algorithm": "greedy", "seed": 5}


def priced(network: NetworkConfig, controller, states: int = 3, seed: int = 5) -> dict[str, float]:
    drawn = draw_states(network, states, np.random.default_rng([2026, seed]))
    found = price(network, drawn, controller.decide(drawn))
    names = ("total_s", "learning_s", "mining_total_s", "consensus_s", "utility")
    return {column: float(getattr(found, name).mean()) for column, name in zip(COLUMNS, names, strict=True)}


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("all-local", AllLocalController),
        ("greedy", GreedyController),
        ("near-optimal", NearOptimalController),
    ],
)
def test_a_row_is_the_mean_price(algorithm, make):
    network = NetworkConfig(devices=4)
    assert run({**SETTINGS, "algorithm": algorithm}) == [priced(network, make(network))]


def test_seeds_are_other_states_and_the_same_for_everybody():
    network = NetworkConfig(devices=4)
    (one,), (other,) = (run({**SETTINGS, "seed": seed}) for seed in (5, 6))
    assert one != other
    assert one == priced(network, GreedyController(network))
    assert other == priced(network, GreedyController(network), seed=6)


def test_what_learns_is_trained_first():
    network = NetworkConfig(devices=4)
    trained = train_baseline("a2c-relaxed", network, 640, 5).controller
    assert run({**SETTINGS, "algorithm": "a2c-relaxed"}) == [priced(network, trained)]


TABLE_IV = NetworkConfig(devices=4)


@pytest.mark.parametrize(
    ("setting", "network"),
    [
        ({"devices": 7}, NetworkConfig(devices=7)),
        ({"p2p-rounds": 20}, replace(TABLE_IV, p2p_rounds=20)),
        ({"bandwidth-mhz": 30.0}, replace(TABLE_IV, radio=replace(TABLE_IV.radio, bandwidth_hz=30e6))),
        ({"max-power-dbm": 20.0}, replace(TABLE_IV, radio=replace(TABLE_IV.radio, power_dbm=(10.0, 20.0)))),
        ({"max-power-dbm": 5.0}, replace(TABLE_IV, radio=replace(TABLE_IV.radio, power_dbm=(5.0, 5.0)))),
        ({"hash-budget-ths": 2.0}, replace(TABLE_IV, blocks=replace(TABLE_IV.blocks, total_hash_rate=2e12))),
        (
            {"p2p-rounds": 5, "bandwidth-mhz": 20.0, "max-power-dbm": 30.0, "hash-budget-ths": 20.0},
            TABLE_IV,  # the paper's, as figures 9 and 10 write them down
        ),
    ],
)
def test_settings_reach_the_network(setting, network):
    """Greedy's rates depend on the bandwidth and power, its shares on the hash budget."""
    check(SETTINGS | setting)
    found = run(SETTINGS | setting)
    assert found == [priced(network, GreedyController(network))]
    assert (found == run(SETTINGS)) == (network == TABLE_IV)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwith-mhz": 3.0}, "`settings` may have .*got 'bandwith-mhz'"),
        ({"step-scale": 3.0}, "`settings` may have .*got 'step-scale'"),
        ({"algorithm": "shared"}, "`algorithm` must be one of ours, .*got 'shared'"),
        ({"devices": 0}, "`devices` .*got 0"),
        ({"bandwidth-mhz": -1.0}, "got -1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(SETTINGS | settings)


@pytest.mark.parametrize("name", ["algorithm", "states", "steps"])
def test_missing_settings_are_told(name):
    with pytest.raises(ConfigError, match=f"`settings` must have {name}"):
        check({key: value for key, value in SETTINGS.items() if key != name})
