"""Networks as settings: Table IV, files and what is refused."""

import tomllib
from dataclasses import fields, replace

import numpy as np
import pytest
from drawn import networks
from hypothesis import given, settings

from flower_bfl.errors import ConfigError, InfeasibleError
from flower_bfl.network import Blocks, NetworkConfig, Radio, Tasks

BIG = 10**400  # a whole number beyond any float


def test_defaults_are_those_of_table_iv():
    network = NetworkConfig()
    assert (network.devices, network.edge_servers, network.sub_channels, network.slots) == (30, 5, 5, 25)
    assert network.radio.bandwidth_hz == 20e6
    assert network.tasks.data_bits == (0.5 * 8e6, 2 * 8e6)  # MB
    assert network.model_bits == 5e3 * 8  # KB
    assert network.edge_link_bps == 5e6 * 10
    assert network.blocks.energy_j == pytest.approx(2500)
    assert network.latency_limit_s == 3.0 * 30
    np.testing.assert_array_equal(network.edge_speeds_hz, [5e9] * 5)


@pytest.mark.parametrize(
    ("servers", "places"),
    [
        (1, [(0, 0)]),
        (2, [(350, 0), (-350, 0)]),
        (4, [(350, 0), (0, 350), (-350, 0), (0, -350)]),
        (5, [(0, 0), (350, 350), (-350, 350), (-350, -350), (350, -350)]),
    ],
)
def test_where_the_edge_servers_are(servers, places):
    np.testing.assert_allclose(NetworkConfig(edge_servers=servers).places_m, places, atol=1e-9)
    double = NetworkConfig(edge_servers=servers, radio=Radio(area_m=2000.0))
    np.testing.assert_allclose(double.places_m, 2 * np.array(places), atol=1e-9)


def test_places_and_speeds_of_edge_servers_may_be_given():
    network = NetworkConfig(
        edge_servers=2, server_positions_m=((1.0, 2.0), (3.0, 4.0)), edge_cpu_hz=(1e9, 2e9)
    )
    np.testing.assert_array_equal(network.places_m, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(network.edge_speeds_hz, [1e9, 2e9])


@given(networks())
@settings(max_examples=30)
def test_a_network_comes_back_from_its_file(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("network") / "network.toml"
    path.write_text(network.to_toml(), encoding="utf-8")
    assert NetworkConfig.from_toml(path) == network
    assert NetworkConfig.from_dict(network.to_dict()) == network
    assert tomllib.loads(network.to_toml()) == network.to_dict()


def test_a_file_says_only_what_differs(tmp_path):
    path = tmp_path / "network.toml"
    path.write_text(
        """
        devices = 8
        edge_servers = 2
        edge_cpu_hz = [5e9, 8e9]
        server_positions_m = [[-100, 0], [100.0, 0]]
        [radio]
        power_dbm = [0, 20]
        interference = false
        [tasks]
        battery = true
        [blocks]
        total = "race"
        """,
        encoding="utf-8",
    )
    assert NetworkConfig.from_toml(path) == NetworkConfig(
        devices=8,
        edge_servers=2,
        edge_cpu_hz=(5e9, 8e9),
        server_positions_m=((-100.0, 0.0), (100.0, 0.0)),
        radio=Radio(power_dbm=(0.0, 20.0), interference=False),
        tasks=Tasks(battery=True),
        blocks=Blocks(total="race"),
    )
    assert NetworkConfig.from_toml(str(path)) == NetworkConfig.from_toml(path)


def test_nothing_in_a_file_means_the_defaults(tmp_path):
    (tmp_path / "empty.toml").touch()
    assert NetworkConfig.from_toml(tmp_path / "empty.toml") == NetworkConfig()


POSITIVE = "must be positive and finite"
PAIR = "must be a pair of numbers positive and finite"
EACH = "must be a positive number, or a tuple of 5, one for each edge server"
PLACES = "must be a tuple of 5 pairs of finite numbers, one for each edge server"
NOT_NEGATIVE = "must be finite and not negative"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # whole numbers
        ("devices = 0", r"`devices` must be a whole number from 1 to 65535, got 0"),
        ("devices = 2.0", r"`devices` must be a whole number from 1 to 65535, got 2.0"),
        ("devices = true", r"`devices` must be a whole number .* got True"),
        ('devices = "3"', r"`devices` must be a whole number .* got '3'"),
        ("edge_servers = 0", r"`edge_servers` must be a whole number from 1 .* got 0"),
        ("sub_channels = 0", r"`sub_channels` must be a whole number from 1 .* got 0"),
        ("sub_channels = 65536", r"`sub_channels` must be a whole number from 1 to 65535, got 65536"),
        ("p2p_rounds = -1", r"`p2p_rounds` must be a whole number from 0 .* got -1"),
        # numbers
        ("model_bits = 0", rf"`model_bits` {POSITIVE}, got 0"),
        ("model_bits = nan", rf"`model_bits` {POSITIVE}, got nan"),
        ("edge_link_bps = -1.0", rf"`edge_link_bps` {POSITIVE}, got -1.0"),
        ("latency_bound_s = inf", rf"`latency_bound_s` {POSITIVE}, got inf"),
        ("latency_bound_s = true", rf"`latency_bound_s` {POSITIVE}, got True"),
        ('latency_bound_s = "3 s"', rf"`latency_bound_s` {POSITIVE}, got '3 s'"),
        (f"model_bits = {BIG}", rf"`model_bits` {POSITIVE}, got 1000"),
        ('objective = "mean"', r"`objective` must be one of \('sum', 'makespan'\), got 'mean'"),
        # of each edge server
        ("edge_cpu_hz = [1e9, 2e9]", rf"`edge_cpu_hz` {EACH}, got \(1000000000.0, 2"),
        ("edge_cpu_hz = [1e9, 1e9, 1e9, 1e9, 0]", rf"`edge_cpu_hz` {EACH}, got 0"),
        ("edge_cpu_hz = [[1e9, 1e9], [1e9, 1e9], 1, 1, 1]", rf"`edge_cpu_hz` {EACH}, got \(1000000000.0, "),
        ("edge_cpu_hz = -5e9", rf"`edge_cpu_hz` {EACH}, got -5000000000.0"),
        ('edge_cpu_hz = "5e9"', rf"`edge_cpu_hz` {EACH}, got '5e9'"),
        ("edge_cpu_hz = true", rf"`edge_cpu_hz` {EACH}, got True"),
        ("edge_cpu_hz = { first = 1e9 }", r"`edge_cpu_hz` must be a positive number, .* got \{'first'"),
        ("server_positions_m = [[0, 0]]", rf"`server_positions_m` {PLACES}, got \(\(0, 0\),\)"),
        ("server_positions_m = [0, 0, 0, 0, 0]", rf"`server_positions_m` {PLACES}, got 0 in it"),
        (
            "server_positions_m = [[0, 1], [0, 1], [0, 1], [0, 1], [0, 1, 2]]",
            rf"`server_positions_m` {PLACES}, got \(0, 1, 2\) in it",
        ),
        (
            "server_positions_m = [[0, 1], [0, 1], [0, nan], [0, 1], [0, 1]]",
            rf"`server_positions_m` {PLACES}, got nan",
        ),
        ('server_positions_m = "centre"', rf"`server_positions_m` {PLACES}, got centre"),
        # tables
        ("radio.bandwidth_hz = 0", rf"`radio.bandwidth_hz` {POSITIVE}, got 0"),
        ('radio.bandwidth_hz = "20 MHz"', rf"`radio.bandwidth_hz` {POSITIVE}, got '20 MHz'"),
        ("radio.bandwidth_hz.least = 1", rf"`radio.bandwidth_hz` {POSITIVE}, got \{{'least': 1\}}"),
        ("radio.area_m = -1", rf"`radio.area_m` {POSITIVE}, got -1"),
        ("radio.noise_dbm_hz = -4000", r"`radio.noise_dbm_hz` must be from -1000 to 1000 dB, got -4000"),
        ("radio.noise_figure_db = nan", r"`radio.noise_figure_db` must be from -1000 to 1000 dB, got nan"),
        ('radio.loss_at_km_db = "high"', r"`radio.loss_at_km_db` must be from -1000 to 1000 dB, got 'high'"),
        ("radio.loss_per_decade_db = -1", rf"`radio.loss_per_decade_db` {NOT_NEGATIVE}, got -1"),
        ("radio.shadowing_db = -8", rf"`radio.shadowing_db` {NOT_NEGATIVE}, got -8"),
        ("radio.power_dbm = 20", r"`radio.power_dbm` must be a pair \(least, most\), got 20"),
        (
            "radio.power_dbm = [10, 20, 30]",
            r"`radio.power_dbm` must be a pair \(least, most\), got \(10, 20, 30\)",
        ),
        ("radio.power_dbm = [30, 10]", r"`radio.power_dbm` must be a pair \(least, most\), got \(30, 10\)"),
        (
            "radio.power_dbm = [10, 4000]",
            r"`radio.power_dbm` must be a pair of numbers from -1000 to 1000 dBm, got 4000",
        ),
        ('radio.power_dbm = ["10", "30"]', r"`radio.power_dbm` must be a pair of numbers .* got '10'"),
        ("radio.power_dbm = [nan, 30]", r"`radio.power_dbm` must be a pair of numbers .* got nan"),
        ('radio.sharing = "none"', r"`radio.sharing` must be one of \('shared', 'per_device'\), got 'none'"),
        ('radio.interference = "no"', r"`radio.interference` must be one of \(True, False\), got 'no'"),
        ("radio.fading_correlation = 1.1", r"`radio.fading_correlation` must be in \[0, 1\], got 1.1"),
        ("radio.fading_correlation = nan", r"`radio.fading_correlation` must be in \[0, 1\], got nan"),
        ('radio.fading_correlation = "0.9"', r"`radio.fading_correlation` must be in \[0, 1\], got '0.9'"),
        ("tasks.data_bits = [0, 1]", rf"`tasks.data_bits` {PAIR}, got 0"),
        ("tasks.data_bits = [1, inf]", rf"`tasks.data_bits` {PAIR}, got inf"),
        ("tasks.work_cycles = [-1, 1]", r"`tasks.work_cycles` must be a pair of numbers .* got -1"),
        (
            "tasks.cpu_hz = [2e9, 1e9]",
            r"`tasks.cpu_hz` must be a pair \(least, most\), got \(2000000000.0, 1",
        ),
        ("tasks.cpu_hz = []", r"`tasks.cpu_hz` must be a pair \(least, most\), got \(\)"),
        ("tasks.energy_slack_j = [0.0, 5.0]", rf"`tasks.energy_slack_j` {PAIR}, got 0.0"),
        ("tasks.energy_coefficient = 0", rf"`tasks.energy_coefficient` {POSITIVE}, got 0"),
        ("tasks.drift = -0.1", rf"`tasks.drift` {NOT_NEGATIVE}, got -0.1"),
        ("tasks.battery = 2", r"`tasks.battery` must be one of \(True, False\), got 2"),
        (
            "tasks = { battery = true, battery_capacity_j = 9 }",
            r"`tasks.battery_capacity_j` must be at least 10.0, .* got 9",
        ),
        ("tasks.battery_capacity_j = -1", rf"`tasks.battery_capacity_j` {POSITIVE}, got -1"),
        ('blocks.total = "mean"', r"`blocks.total` must be one of \('sum', 'fastest', 'race'\), got 'mean'"),
        ("blocks.hash_rate = [0, 1e12]", rf"`blocks.hash_rate` {PAIR}, got 0"),
        ("blocks.hash_rate = [1e12, 1e11]", r"`blocks.hash_rate` must be a pair \(least, most\), got"),
        ("blocks.total_hash_rate = 0.0", rf"`blocks.total_hash_rate` {POSITIVE}, got 0.0"),
        ("blocks.work_hashes = -1", rf"`blocks.work_hashes` {POSITIVE}, got -1"),
        ("blocks.forks = 0", rf"`blocks.forks` {POSITIVE}, got 0"),
        ("blocks.energy_per_hash_j = -1", rf"`blocks.energy_per_hash_j` {NOT_NEGATIVE}, got -1"),
        ("blocks.propagation_s = nan", rf"`blocks.propagation_s` {NOT_NEGATIVE}, got nan"),
        # names
        ("colour = 3", r"`colour` is no setting of a network, known are \[.*'devices'"),
        ("radio.colour = 3", r"`radio.colour` is no setting of a network, known are \[.*'bandwidth_hz'"),
        ("[weather]\nwind = 3", r"`weather` is no setting of a network"),
        ("[radio.antenna]\nheight = 3", r"`radio.antenna` is no setting of a network"),
        ("radio = 3", r"`radio` must be a table of settings, got 3"),
        ("blocks = []", r"`blocks` must be a table of settings, got \[\]"),
        ("devices 3", r"`path` must be a readable TOML file, got .*network.toml \("),
    ],
)
def test_a_bad_file_is_refused_by_the_name_that_is_in_it(tmp_path, line, message):
    path = tmp_path / "network.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^{message}"):
        NetworkConfig.from_toml(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("nowhere.toml", ".", "bytes.toml"):
        with pytest.raises(ConfigError, match=r"`path` must be a readable TOML file, got "):
            NetworkConfig.from_toml(tmp_path / name)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Radio(bandwidth_hz=-1.0), r"^`bandwidth_hz` must be positive"),
        (lambda: Radio(power_dbm=[10.0, 30.0]), r"^`power_dbm` must be a pair .* got \[10.0, 30.0\]"),
        (lambda: Radio(fading_correlation=None), r"^`fading_correlation` must be in \[0, 1\], got None"),
        (lambda: NetworkConfig(edge_cpu_hz=[5e9] * 5), r"^`edge_cpu_hz` .* a tuple of 5"),
        (lambda: NetworkConfig(edge_cpu_hz=None), r"^`edge_cpu_hz` must be a positive number.* got None"),
        (lambda: NetworkConfig(radio={"bandwidth_hz": 1e6}), r"^`radio` must be a Radio, got \{"),
        (lambda: NetworkConfig(blocks=None), r"^`blocks` must be a Blocks, got None"),
        (lambda: replace(NetworkConfig(), edge_servers=3, edge_cpu_hz=(5e9,) * 5), r"^`edge_cpu_hz` .* 3"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_hash_rates_that_the_budget_cannot_pay_are_infeasible(tmp_path):
    # 200 devices at 0.1 THash/s take all of 20 THash/s.
    assert NetworkConfig(devices=200).devices == 200
    message = r"\(28g\): 201 devices take at least 2.01e\+13 hashes/s, `total_hash_rate` .* got 2e\+13"
    with pytest.raises(InfeasibleError, match=message):
        NetworkConfig(devices=201)
    (tmp_path / "network.toml").write_text("devices = 201", encoding="utf-8")
    with pytest.raises(InfeasibleError, match=message):
        NetworkConfig.from_toml(tmp_path / "network.toml")


def test_a_budget_that_is_met_to_the_last_hash_is_met():
    blocks = Blocks(hash_rate=(0.1, 1.0), total_hash_rate=0.3)  # 3 · 0.1 is above 0.3 as a float
    assert 3 * 0.1 > 0.3
    assert NetworkConfig(devices=3, blocks=blocks).devices == 3


def test_every_setting_is_checked():
    """A string passes nowhere, so no field is without a check."""
    for kind in (Radio, Tasks, Blocks, NetworkConfig):
        for each in fields(kind):
            with pytest.raises(ConfigError, match=f"`{each.name}`"):
                kind(**{each.name: "much"})
