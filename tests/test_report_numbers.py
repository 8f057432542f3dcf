"""The numbers behind the page of a run, and where they are drawn, by hand."""

from typing import Any

import numpy as np
import pytest

from flower_bfl.audit import Incident
from flower_bfl.report_page._charts import BOTTOM, TOP, Chart, Series, drawn, ticks
from flower_bfl.report_page._curves import curves
from flower_bfl.report_page._events import Event, absences, incidents, strip
from flower_bfl.report_page._map import Positions, network_map, read_positions


def a_round(number: int, **more: Any) -> dict[str, Any]:
    return {"round": number, "evaluate": {"accuracy": number / 10, "loss": 2.0 / (number + 1)}} | more


# -- axes and marks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 104, [0, 50, 100]),
        (3, 17, [5, 10, 15]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (0, 47e6, [0, 10e6, 20e6, 30e6, 40e6]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


def test_a_line_is_drawn_to_scale_and_has_gaps():
    chart = Chart("t", "round", (0.0, 1.0, 2.0, 4.0), (Series("a", (0.0, 1.0, None, 2.0)),))
    figure = drawn(chart)
    height = BOTTOM - TOP
    # the axis goes from 0 to 2 and 4 % more; x from 52 to 344
    y = [BOTTOM - value / 2.08 * height for value in (0, 1, 2)]
    assert figure.paths == (f"M52.0,{y[0]:.1f}L125.0,{y[1]:.1f}M344.0,{y[2]:.1f}",)
    assert [row.at for row in figure.rows] == [52.0, 125.0, 198.0, 344.0]
    assert [row.cells for row in figure.rows] == [("0",), ("1",), ("",), ("2",)]
    assert [tick.label for tick in figure.x_ticks] == ["0", "1", "2", "3", "4"]


def test_bars_stand_on_each_other():
    chart = Chart("t", "round", (1.0, 2.0), (Series("a", (1.0, 2.0)), Series("b", (3.0, None))), kind="bars")
    bars = drawn(chart).bars
    unit = (BOTTOM - TOP) / 4.16  # the tallest stack is 4
    shapes = [(bar.series, bar.y, bar.height) for bar in bars]
    expected = [
        (0, BOTTOM - unit, unit),
        (1, BOTTOM - 4 * unit, 3 * unit),
        (0, BOTTOM - 2 * unit, 2 * unit),
    ]
    assert [shape[0] for shape in shapes] == [shape[0] for shape in expected]
    np.testing.assert_allclose([s[1:] for s in shapes], [s[1:] for s in expected], atol=0.01)


def test_a_logarithmic_axis_has_whole_decades():
    chart = Chart("t", "round", (1.0, 2.0), (Series("a", (0.002, 30.0)),), log=True)
    figure = drawn(chart)
    assert [tick.label for tick in figure.y_ticks] == ["0.001", "0.1", "10"]  # five decades, every second
    assert (figure.y_ticks[0].at, figure.y_ticks[-1].at) == (BOTTOM, pytest.approx(BOTTOM - 0.8 * 174))


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e300, 5e-324])
def test_a_single_value_can_be_drawn(value):
    for more in ({}, {"kind": "bars"}, {"from_zero": False}, *([{"log": True}] if value > 1e-16 else [])):
        figure = drawn(Chart("t", "round", (7.0,), (Series("a", (value,)),), **more))
        assert figure.rows[0].x == "7" and len(figure.y_ticks) >= 1


# -- which charts --------------------------------------------------------------------------------------------


def test_the_charts_of_a_run_with_a_controller():
    rounds = [a_round(0)] + [
        a_round(
            k,
            simulated_seconds=5.0 * k,
            latency_s={
                "offload": 1.0,
                "edge": 2.0,
                "local": 0.0,
                "consensus": 0.5,
                "mining": 1.5,
                "total": 5.0,
            },
            energy_j={"offload": 0.1, "local": 0.0, "upload": 0.0, "mining": 900.0},
            gas=1000 * k,
            transactions=k,
            consensus_error=[1e-3, 0.0][k - 1],
            consensus_bound=[1e-2, 1e-80][k - 1],
            train_seconds=0.25,
            chain_seconds=0.5,
        )
        for k in (1, 2)
    ]
    found = curves(rounds)
    accuracy, loss = found.quality
    assert (accuracy.xs, accuracy.series) == ((0.0, 1.0, 2.0), (Series("accuracy", (0.0, 0.1, 0.2)),))
    assert loss.series[0].values == (2.0, 1.0, 2 / 3)
    assert [chart.xs for chart in found.by_clock] == [(0.0, 5.0, 10.0)] * 2
    error, gas, transactions, wall = found.costs
    assert error.series == (Series("measured", (1e-3,)), Series("bound", (1e-2,))) and "Gaps" in error.note
    assert gas.series[0].values == (1000.0, 3000.0)  # cumulative
    assert transactions.series[0].values == (1.0, 2.0)
    assert [each.name for each in wall.series] == ["training", "chain"]
    latency, learning, mining = found.phases
    assert [each.name for each in latency.series] == ["offload", "edge", "consensus", "mining"]
    assert [sum(values) for values in zip(*(s.values for s in latency.series), strict=True)] == [5.0, 5.0]
    assert [each.name for each in learning.series] == ["offload"]
    assert mining.series == (Series("mining", (900.0, 900.0)),)


def test_what_has_no_numbers_is_not_drawn():
    assert curves([{"round": 1}, {"round": 2, "evaluate": "none", "gas": None, "latency_s": []}]) == curves(
        []
    )
    assert curves([]).quality == ()


def test_numbers_that_are_none_are_left_out():
    rounds = [
        a_round(1, gas=10**400),
        a_round(2, gas=float("inf")),
        a_round(3, gas=7),
        {"round": 4, "gas": "8"},
    ]
    (gas,) = curves(rounds).costs
    assert (gas.xs, gas.series[0].values) == ((3.0,), (7.0,))


# -- who was attacked, accused, left out ---------------------------------------------------------------------

ACCUSED = {"server": 1, "offence": "state", "step": 3, "votes": 2, "voted_out": True}


def test_votes_are_told_with_what_the_ledger_says_of_them():
    rounds = [
        a_round(1),
        a_round(2, attacked=["Noise by edge server 1"], accused=[ACCUSED], quarantined=[1]),
        a_round(3, quarantined=[1], suspected=[{"who": "device 4", "reason": "it deviates"}]),
        a_round(4, accused=[ACCUSED | {"server": 0, "offence": "model", "votes": 1, "voted_out": False}]),
        a_round(5, quarantined=[1], cut_off=[2]),
    ]
    audited = [
        Incident(2, 1, "server 1 (0x12)", "state", 3, 2, voted_out=True, upheld=True),
        Incident(9, 0, "server 0 (0x34)", "silence", 1, 1, voted_out=False, upheld=False),
    ]
    assert incidents(rounds, audited) == (
        Event("2", "attacker", "Noise by edge server 1"),
        Event("2", "edge server 1", "its state in step 3", "voted out by 2 votes; the ledger bears it out"),
        Event("2 to 3", "edge server 1", "in quarantine"),
        Event("3", "device 4", "it deviates", "suspected, left out"),
        Event("4", "edge server 0", "its model", "accused by 1 vote, not enough"),
        Event("5", "edge server 1", "in quarantine"),
        Event("5", "edge server 2", "cut off by the others' quarantine"),
        Event(
            "9",
            "edge server 0",
            "its silence in step 1",
            "accused by 1 vote, not enough; the ledger does not bear it out",
        ),
    )
    states = strip(rounds, 2)
    assert states is not None and states.rounds == (1, 2, 3, 4, 5)
    assert states.states == (("",) * 5, ("", "out", "quarantined", "", "quarantined"))


def test_leaders_are_shown_where_somebody_was_accused_only():
    assert strip([a_round(1, leader=0)], 2) is None
    states = strip([a_round(1, leader=0), a_round(2, leader=1, accused=[ACCUSED | {"server": 0}])], 2)
    assert states is not None and states.states == (("leader", "out"), ("", "leader"))


def test_absences_have_their_reasons():
    rounds = [
        a_round(1, left_out=[{"who": "device 3", "reason": "NaN"}], down=["edge server 1 from step 2"]),
        a_round(2, kept_local=[{"who": "device 0", "reason": "too large"}], fallback="not feasible"),
    ]
    assert absences(rounds) == (
        Event("1", "device 3", "NaN", "left out"),
        Event("1", "edge server 1 from step 2", "", "down"),
        Event("2", "device 0", "too large", "kept its data"),
        Event("2", "controller", "not feasible", "another decision"),
    )


# -- the map -------------------------------------------------------------------------------------------------

TRAINED = {"server_devices": [[0, 2], [3]], "server_data": [[], [1]], "leader": 1}


def test_positions_are_drawn_to_scale_with_north_up():
    places = Positions(
        1000.0, ((-500.0, 0.0), (500.0, 500.0)), ((0.0, 0.0), (0.0, 250.0), (1.0, 1.0), (2.0, 2.0))
    )
    found = network_map([a_round(1, **TRAINED)], [(0, 1)], 2, places)
    assert found is not None and found.measured
    # 500 m are 140: half of the shorter side, less the margin of 20; the centre is at (180, 160)
    assert found.servers == ((40.0, 160.0), (320.0, 20.0))
    assert (found.devices[0], found.devices[1]) == ((180.0, 160.0), (180.0, 90.0))


def test_without_positions_devices_stand_beside_their_edge_server():
    found = network_map([a_round(1, **TRAINED)], [(0, 1), (1, 7)], 2, None)
    assert found is not None and not found.measured
    assert found.links == ((0, 1),)  # there is no server 7
    for device, home in ((0, 0), (1, 1), (2, 0), (3, 1)):
        distances = [np.hypot(*np.subtract(found.devices[device], at)) for at in found.servers]
        assert np.argmin(distances) == home
    assert found.compact()["rounds"] == [[1, ((0, 2), (3,)), ((), (1,)), 1, ()]]


@pytest.mark.parametrize("servers", [1, 2, 3, 7, 20])
def test_nothing_stands_outside_of_the_picture_or_upon_another(servers):
    devices = [list(range(m, 40, servers)) for m in range(servers)]
    found = network_map([a_round(1, server_devices=devices, server_data=[])], [], servers, None)
    assert found is not None and len(found.devices) == 40
    at = np.array([*found.devices.values()])
    assert (at > 7).all() and (at[:, 0] < 353).all() and (at[:, 1] < 313).all()
    apart = np.linalg.norm(at[:, None] - at, axis=2) + 100 * np.eye(40)
    assert apart.min() > 10


def test_a_thousand_devices_are_counted_and_not_drawn():
    groups = [list(range(600)), list(range(600, 1000))]
    found = network_map([a_round(1, server_devices=groups, server_data=[])], [], 2, None)
    assert found is not None and (found.count, found.devices) == (1000, {})
    assert found.compact()["rounds"] == [[1, [600, 400], [], None, ()]]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"area_m": 1, "edge_servers_m": [[0]], "devices_m": []}', "[" * 10_000,
             '{"area_m": 1, "edge_servers_m": [[0, NaN]], "devices_m": []}'],
)  # fmt: skip
def test_a_damaged_network_file_is_none(text, tmp_path):
    (tmp_path / "network.json").write_text(text, encoding="utf-8")
    assert read_positions(tmp_path) is None
