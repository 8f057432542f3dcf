"""The commands `flower-bfl network show` and `flower-bfl network settings`, and the picture."""

import json
import sys
from dataclasses import fields, replace
from functools import partial
from typing import NoReturn

import numpy as np
import pytest
from matplotlib.image import imread

from flower_bfl._network_view import price_round, print_round
from flower_bfl.controller import GreedyController
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Blocks,
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Price,
    Radio,
    Tasks,
    is_feasible,
    price,
)

CONTROLLERS = ["all-local", "random", "greedy", "assignment", "a2c-sorted", "a2c", "near-optimal"]
PHASES = ("offload_s", "edge_s", "local_s", "upload_s")


@pytest.fixture
def call(command):
    """Status, output and errors of `flower-bfl network` with these arguments, in an empty folder."""
    return partial(command, "network")


def no_constant(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


def read(call, *arguments: object) -> dict:
    status, output, errors = call("show", *arguments, "--no-picture", "--json")
    assert (status, errors) == (0, "")
    return json.loads(output, parse_constant=no_constant)


def drawn(network: NetworkConfig, seed: int) -> tuple[NetworkState, np.ndarray]:
    process = NetworkProcess(network, np.random.default_rng(seed))
    return process.state, process.positions_m


def greedy(network: NetworkConfig, seed: int) -> tuple[NetworkState, Decision, Price]:
    state, _ = drawn(network, seed)
    decision = GreedyController(network).decide(state)
    return state, decision, price(network, state, decision)


def number(text: str) -> float:
    return 0.0 if text == "-" else float(text.replace(",", ""))


def close(text: str, value: float) -> bool:
    """Whether the text is the value, rounded to two decimals or more, or to two digits."""
    return number(text) == pytest.approx(value, rel=0.05 if value < 1e-3 else 1e-4, abs=5.1e-4)


def phase_rows(output: str) -> dict[str, list[str]]:
    """Words after the name, of each row of the last table."""
    table = output[output.index("\nphase") :]
    names = ("offload", "edge work", "local work", "upload", "learning", "consensus", "mining", "total")
    names += ("lower bound", "makespan", "utility")
    lines = table.splitlines()
    return {
        name: line.removeprefix(name).split() for name in names for line in lines if line.startswith(name)
    }


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("devices", "seed"), [(1, 0), (12, 3), (100, 1)])
def test_the_table_says_what_the_price_is(call, devices, seed):
    network = NetworkConfig(devices=devices)
    state, decision, cost = greedy(network, seed)
    arguments = ("--devices", devices, "--seed", seed, "--controller", "greedy", "--no-picture")
    status, output, errors = call("show", *arguments)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("dev where")) + 1
    for device, line in enumerate(lines[first : first + devices]):
        *words, spent_j, of, slack_j = line.replace("server ", "").replace(" ch ", "").split()
        slot = decision.slot[device]
        where = "local" if slot < 0 else f"{slot // 5},{slot % 5}"
        assert (words[0], words[1], of) == (str(device), where, "of")
        values = [cost.rate_bps / 1e6, *(getattr(cost, name) for name in PHASES), cost.mining_s]
        assert len(words) == 2 + len(values)
        assert all(close(text, each[device]) for text, each in zip(words[2:], values, strict=True)), line
        assert float(spent_j) == pytest.approx(cost.offload_j[device] + cost.local_j[device], abs=5.1e-3)
        assert float(slack_j) == pytest.approx(state.energy_slack_j[device], abs=5.1e-3)
    assert not lines[first + devices].strip()


@pytest.mark.parametrize("objective", ["sum", "makespan"])
@pytest.mark.parametrize("total", ["sum", "fastest", "race"])
def test_the_phases_are_those_of_the_price(call, tmp_path, objective, total):
    network = NetworkConfig(objective=objective, blocks=Blocks(total=total))
    (tmp_path / "network.toml").write_text(network.to_toml())
    _, decision, cost = greedy(network, 2)
    rows = phase_rows(call("show", "network.toml", "--seed", 2, "--controller", "greedy", "--no-picture")[1])
    seconds = {
        "offload": cost.offload_s.sum(),
        "edge work": cost.edge_s.sum(),
        "local work": cost.local_s.sum(),
        "upload": cost.upload_s.sum(),
        "learning": cost.learning_s,
        "consensus": 5 * 40e3 / 50e6,
        "mining": cost.mining_total_s,
        "total": cost.learning_s + cost.consensus_s + cost.mining_total_s,
        "makespan": cost.path_s.max() + cost.consensus_s + cost.mining_total_s,
        "utility": np.exp(1 - cost.total_s / 90) - 1,
    }
    assert rows.keys() == seconds.keys()
    assert all(close(rows[name][0], float(value)) for name, value in seconds.items()), rows
    joules = {"offload": cost.offload_j.sum(), "local work": cost.local_j.sum(), "mining": 30 * 2500}
    for name, value in joules.items():
        assert number(rows[name][1]) == pytest.approx(value, abs=5.1e-3)
    assert rows["offload"][2:] == ["data", "of", str(decision.offloads.sum()), "devices"]
    assert rows["learning"][2:] == ("sum of these" if objective == "sum" else "the slowest path").split()


def test_every_edge_server_has_a_row_also_one_with_nothing_to_do(call):
    network = NetworkConfig(devices=3)
    _, decision, cost = greedy(network, 0)
    arguments = ("--devices", 3, "--controller", "greedy", "--no-picture")
    lines = call("show", *arguments)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("server ")) + 1
    for server, line in enumerate(lines[first : first + 5]):
        who = np.flatnonzero(decision.slot // 5 == server)
        words = line.replace(", ", ",").split()
        assert words[0] == str(server)
        assert words[1] == "{:.0f},{:.0f}".format(*network.places_m[server])
        assert words[-1] == (",".join(map(str, who)) or "none")
        assert close(words[2], decision.bandwidth_hz[who].sum() / 1e6)
        assert close(words[4], cost.offload_s[who].max(initial=0))
        assert close(words[5], cost.edge_s[who].sum())
        assert close(words[6], cost.path_s[who].max(initial=0))
    assert sum(line.rstrip().endswith("none") for line in lines) >= 2


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("devices", [1, 100, 200])
def test_the_tables_fit(call, monkeypatch, columns, devices):
    monkeypatch.setenv("COLUMNS", str(columns))
    output = call("show", "--devices", devices, "--controller", "random", "--no-picture")[1]
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output


@pytest.mark.parametrize("controller", ["assignment", "near-optimal"])
def test_the_lower_bound_and_the_gap(call, controller):
    arguments = ("--controller", controller, "--devices", 8)
    told = read(call, *arguments)
    total_s, bound_s = told["totals"]["total_s"], told["lower_bound_s"]
    assert 0 < bound_s <= total_s
    learning_s = told["totals"]["learning_s"]  # all that a decision can change
    assert told["gap"] == pytest.approx((total_s - bound_s) / (learning_s - (total_s - bound_s)))
    row = phase_rows(call("show", *arguments, "--no-picture")[1])["lower bound"]
    assert close(row[0], bound_s)
    assert float(row[-1].removesuffix("%")) == pytest.approx(100 * told["gap"], abs=5.1e-3)


def test_a_bound_that_says_nothing_is_no_gap(capsys):
    priced = price_round(NetworkConfig(devices=4), "assignment", 0)
    assert priced.solution is not None
    loose = replace(priced, solution=replace(priced.solution, learning_bound_s=-100.0))
    assert loose.gap is None
    print_round(loose, as_json=False)
    assert "lower bound" not in capsys.readouterr().out


def test_a_decision_that_breaks_a_limit_is_told(capsys):
    priced = price_round(NetworkConfig(devices=4), "all-local", 0)
    broken = replace(priced.decision, cpu_hz=2 * priced.decision.cpu_hz)
    print_round(replace(priced, decision=broken), as_json=False)
    assert "breaks (28f) device 0: `cpu_hz` must be" in capsys.readouterr().out
    print_round(replace(priced, decision=broken), as_json=True)
    assert any("(28f) device 3" in one for one in json.loads(capsys.readouterr().out)["violations"])


# --- JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_json_is_a_round_that_can_be_priced_again(call, controller):
    told = read(call, "--devices", 5, "--seed", 7, "--controller", controller)
    network = NetworkConfig.from_dict(told["settings"])
    assert network == NetworkConfig(devices=5)
    state, positions_m = drawn(network, told["seed"])
    rows = told["devices"]

    def column(group: str, name: str) -> np.ndarray:
        return np.array([row[group][name] for row in rows])

    for name in ("data_bits", "work_cycles", "cpu_hz", "energy_slack_j"):
        assert column("state", name) == pytest.approx(getattr(state, name))
    decision = Decision(**{each.name: column("decision", each.name) for each in fields(Decision)})
    assert is_feasible(network, state, decision)
    assert told["violations"] == []
    cost = price(network, state, decision)
    by_device = {each.name for each in fields(Price) if getattr(cost, each.name).shape == (5,)}
    by_device -= {"server_edge_s"}
    assert rows[0]["price"].keys() == by_device | {"learning_j"}
    for name in by_device:
        assert column("price", name) == pytest.approx(getattr(cost, name))
    assert np.array([row["position_m"] for row in rows]) == pytest.approx(positions_m)
    assert told["totals"]["learning_s"] == pytest.approx(sum(told["totals"][name] for name in PHASES))
    assert told["totals"]["total_s"] == pytest.approx(float(cost.total_s))
    assert told["totals"]["makespan_s"] == pytest.approx(float(cost.makespan_s))
    assert told["utility"] == pytest.approx(float(cost.utility))
    assert (told["lower_bound_s"] is None) == (controller not in ("assignment", "near-optimal"))
    for server in told["edge_servers"]:
        assert server["devices"] == [row["device"] for row in rows if row["server"] == server["server"]]
        assert server["edge_s"] == pytest.approx(cost.server_edge_s[server["server"]])
    slots = [-1 if row["server"] is None else 5 * row["server"] + row["sub_channel"] for row in rows]
    assert slots == decision.slot.tolist()


def test_json_has_null_for_what_is_no_number(capsys):
    priced = price_round(NetworkConfig(devices=2), "all-local", 0)
    endless = replace(priced.price, path_s=np.array([np.inf, np.nan]))
    print_round(replace(priced, price=endless), as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert [row["price"]["path_s"] for row in told["devices"]] == [None, None]


def test_the_same_seed_is_the_same_round(call):
    assert read(call, "--controller", "random") == read(call, "--controller", "random", "--seed", 0)
    assert read(call, "--controller", "random") != read(call, "--controller", "random", "--seed", 1)


# --- settings -----------------------------------------------------------------------------------------------

UNUSUAL = NetworkConfig(
    devices=7,
    edge_servers=2,
    sub_channels=3,
    objective="makespan",
    edge_cpu_hz=(2e9, 7e9),
    server_positions_m=((-10.5, 0.0), (1e3, 3e2)),
    radio=Radio(sharing="per_device", interference=False),
    tasks=Tasks(battery=True, cpu_hz=(1e9, 1e9)),
    blocks=Blocks(total="race"),
)


@pytest.mark.parametrize("network", [NetworkConfig(), UNUSUAL])
def test_settings_are_read_again(call, tmp_path, network):
    (tmp_path / "given.toml").write_text(network.to_toml())
    status, text, errors = call("settings", "given.toml")
    assert (status, errors) == (0, "")
    (tmp_path / "printed.toml").write_text(text)
    assert NetworkConfig.from_toml(tmp_path / "printed.toml") == network
    assert NetworkConfig.from_dict(read(call, "printed.toml")["settings"]) == network


def test_settings_without_a_file_are_the_defaults_all_of_them(call):
    text = call("settings")[1]
    for owner in (NetworkConfig(), Radio(), Tasks(), Blocks()):
        for each in fields(owner):
            if getattr(owner, each.name) is not None:
                assert f"\n{each.name} = " in f"\n{text}" or f"[{each.name}]" in text
    assert call("settings")[1] == NetworkConfig().to_toml()


def test_devices_and_servers_come_before_the_file(call, tmp_path):
    (tmp_path / "network.toml").write_text("devices = 9\nsub_channels = 2\n")
    assert len(read(call, "network.toml")["devices"]) == 9
    told = read(call, "network.toml", "--devices", 4, "--servers", 3)
    assert (len(told["devices"]), len(told["edge_servers"])) == (4, 3)
    assert told["settings"]["sub_channels"] == 2


@pytest.mark.parametrize(
    ("text", "arguments", "status", "said"),
    [
        ("device = 3", (), 2, "`device` is no setting of a network"),
        ("[radio]\nbandwidth = 3", (), 2, "`radio.bandwidth` is no setting of a network"),
        ("devices = 'many'", (), 2, "`devices` must be"),
        ("radio = 7", (), 2, "`radio` must be a table of settings, got 7"),
        ("[tasks]\ndata_bits = 5", (), 2, "data_bits` must be a pair"),
        ("devices = ", (), 2, "`path` must be a readable TOML file"),
        ("\x00", (), 2, "`path` must be a readable TOML file"),
        ("server_positions_m = [[0, 0]]\nedge_servers = 1", ("--servers", 2), 2, "`server_positions_m` must"),
        ("edge_cpu_hz = [1e9, 2e9]\nedge_servers = 2", ("--servers", 3), 2, "`edge_cpu_hz` must be"),
        ("", ("--devices", 0), 2, "`devices` must be"),
        ("", ("--devices", 201), 1, "(28g): 201 devices take at least"),
        ("", ("--controller", "best"), 2, "`--controller` must be one of all-local, random, greedy"),
        (None, (), 2, "`path` must be a readable TOML file, got network.toml"),
    ],
)
def test_what_cannot_be_read_is_one_line(call, tmp_path, text, arguments, status, said):
    if text is not None:
        (tmp_path / "network.toml").write_text(text)
    found, output, errors = call("show", "network.toml", *arguments)
    assert (found, output) == (status, "")
    assert errors.startswith("Error: ")
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "network.png").exists()
    if not arguments:
        assert call("settings", "network.toml") == (status, "", errors)


def test_the_help_names_every_controller(call):
    _, output, _ = call("show", "--help")
    assert all(name in output for name in CONTROLLERS)
    with pytest.raises(ConfigError, match=rf"must be one of {', '.join(CONTROLLERS)}, got 'x'"):
        price_round(NetworkConfig(), "x", 0)


# --- picture ------------------------------------------------------------------------------------------------


def test_the_picture_is_written_and_opens(call, tmp_path):
    status, output, errors = call("show", "--controller", "greedy")
    assert (status, errors) == (0, "")
    assert output.endswith("\nPicture: network.png\n")
    pixels = imread(tmp_path / "network.png")
    assert pixels.shape[0] >= 800
    assert pixels.shape[1] >= 1200
    assert pixels[..., :3].std() > 0.1  # not a blank page
    assert [path.name for path in tmp_path.iterdir()] == ["network.png"]


def test_with_json_the_picture_is_told_beside_it(call, tmp_path):
    status, output, errors = call("show", "--json", "--controller", "greedy", "--picture", "here")
    assert status == 0
    assert json.loads(output)["controller"] == "greedy"
    assert errors == "Picture: here\n"
    assert (tmp_path / "here").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("picture", [".", "nowhere/a.png", "a.odd"])
def test_a_picture_that_cannot_be_written_is_one_line_after_the_table(call, picture):
    status, output, errors = call("show", "--controller", "greedy", "--picture", picture)
    assert status == 2
    assert "makespan" in output
    assert errors.startswith(
        f"Error: `--picture` must be a path where a picture can be written, got {picture}"
    )
    assert errors.count("\n") == 1


def test_without_matplotlib_there_is_a_table_and_a_hint(call, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "flower_bfl._network_picture")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, output, errors = call("show", "--controller", "greedy")
    assert status == 0
    assert "makespan" in output
    assert errors == "No picture: this takes matplotlib, pip install 'flower-bfl[plots]'\n"
    assert list(tmp_path.iterdir()) == []
    assert call("show", "--controller", "greedy", "--no-picture") == (0, output, "")
