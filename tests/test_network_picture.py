"""The picture of `flower-bfl network show`: what is drawn is what was decided, and can be read."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from flower_bfl._network_picture import draw_round
from flower_bfl._network_view import PricedRound, price_round
from flower_bfl.controller import AllLocalController
from flower_bfl.network import NetworkConfig, NetworkProcess, price

PHASES = ("offload_s", "edge_s", "local_s", "upload_s")


def own_round(devices: int, kind: str, seed: int = 0) -> PricedRound:
    """A round in which all, some or none of the devices offload."""
    servers = 5 if kind != "none-local" else -(-devices // 5)
    network = NetworkConfig(devices=devices, edge_servers=servers)
    if kind != "none-local":
        return price_round(network, "greedy" if kind == "mixed" else "all-local", seed)
    process = NetworkProcess(network, np.random.default_rng(seed))
    state, positions_m = process.state, process.positions_m
    alone = AllLocalController(network).decide(state)
    decision = replace(
        alone,
        slot=np.random.default_rng(seed).permutation(network.slots)[:devices],
        power_w=np.full(devices, 0.1),
        bandwidth_hz=np.full(devices, 4e6),
        cpu_hz=np.zeros(devices),
    )
    cost = price(network, state, decision)
    return PricedRound(network, "own", seed, positions_m, state, decision, cost)


ROUNDS = [(n, kind) for n in (1, 30, 100) for kind in ("mixed", "all-local", "none-local")]


def panels(figure: Figure) -> dict:
    return {axes.get_title().split()[0].strip(":,"): axes for axes in figure.axes}


@pytest.mark.parametrize(("devices", "kind"), ROUNDS)
def test_a_line_leads_from_each_offloading_device_to_its_edge_server(devices, kind):
    priced = own_round(devices, kind)
    axes = panels(draw_round(priced))["Who"]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    squares = [line for line in axes.lines if line.get_marker() == "s"]
    assert len(dots) == devices
    assert [tuple(square.get_xydata()[0]) for square in squares] == list(map(tuple, priced.network.places_m))
    colour_of = [square.get_color() for square in squares]
    assert len(set(colour_of[:6])) == min(6, len(squares))
    ends = {tuple(line.get_xydata()[0]): line for line in lines}
    assert len(lines) == len(ends) == priced.decision.offloads.sum()
    assert len(ends) == {"all-local": 0, "none-local": devices}.get(kind, len(ends))
    for dot, place_m, slot in zip(dots, priced.positions_m, priced.decision.slot, strict=True):
        assert dot.get_xydata()[0] == pytest.approx(place_m)
        hollow = dot.get_fillstyle() == "none"
        if slot < 0:
            assert hollow
            assert tuple(place_m) not in ends
            assert dot.get_color() not in colour_of
            continue
        line = ends[tuple(place_m)]
        assert line.get_xydata()[1] == pytest.approx(priced.network.places_m[slot // 5])
        assert line.get_color() == dot.get_color() == colour_of[slot // 5]
        assert not hollow
    assert axes.get_aspect() == 1
    assert "metres" in axes.get_xlabel() and "metres" in axes.get_ylabel()


@pytest.mark.parametrize(("devices", "kind"), ROUNDS)
def test_a_bar_is_as_long_as_the_devices_seconds(devices, kind):
    priced = own_round(devices, kind)
    cost = priced.price
    axes = panels(draw_round(priced))["Learning"]
    waiting, *parts = axes.containers
    names = [label.get_text() for label in axes.get_yticklabels()]
    order = [int(name.split(" ")[0]) for name in names]
    assert sorted(order) == list(range(devices))
    assert [bar.get_width() for bar in waiting] == sorted(cost.path_s)
    begin_s = np.zeros(devices)
    for part, phase in zip(parts, PHASES, strict=True):
        assert [bar.get_x() for bar in part] == pytest.approx(begin_s)
        assert [bar.get_width() for bar in part] == pytest.approx(getattr(cost, phase)[order])
        begin_s += [bar.get_width() for bar in part]
    assert (begin_s <= cost.path_s[order] * (1 + 1e-9)).all()
    for name, device in zip(names, order, strict=True):
        slot = priced.decision.slot[device]
        assert name == (str(device) if slot < 0 else f"{device} → {slot // 5}.{slot % 5}")
    assert axes.get_xlabel() == "seconds"


def test_a_device_that_takes_ages_does_not_hide_the_others():
    priced = own_round(30, "all-local")
    slow = replace(priced.decision, cpu_hz=np.r_[1e6, priced.decision.cpu_hz[1:]])
    cost = price(priced.network, priced.state, slow)
    axes = panels(draw_round(replace(priced, decision=slow, price=cost)))["Learning"]
    assert axes.get_xlim()[1] < 20 < cost.path_s[0]
    (told,) = [text.get_text() for text in axes.texts]
    assert float(told.removesuffix(" s")) == pytest.approx(cost.path_s[0], rel=1e-3)
    assert panels(draw_round(priced))["Learning"].texts[:] == []


@pytest.mark.parametrize("objective", ["sum", "makespan"])
def test_the_phases_are_stacked_to_the_total(objective):
    priced = price_round(NetworkConfig(devices=12, objective=objective), "greedy", 1)
    axes = panels(draw_round(priced))["The"]
    bars = list(axes.patches)
    *phases, total = bars
    assert [bar.get_x() for bar in phases[1:]] == pytest.approx(
        [bar.get_x() + bar.get_width() for bar in phases[:-1]]
    )
    assert phases[-1].get_x() + phases[-1].get_width() == pytest.approx(float(priced.price.total_s))
    assert total.get_width() == pytest.approx(float(priced.price.total_s))
    assert [float(text.get_text().removesuffix(" s")) for text in axes.texts] == pytest.approx(
        [bar.get_width() for bar in bars], rel=1e-3, abs=1e-9
    )


def shown_texts(figure: Figure) -> list[Text]:
    texts = [*figure.texts]
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [axes.title, *axes.texts, *(legend.get_texts() if legend else ())]
        for axis in (axes.xaxis, axes.yaxis):
            first, last = sorted(axis.get_view_interval())
            texts += [axis.label, *(t.label1 for t in axis.get_major_ticks() if first <= t.get_loc() <= last)]
    return [text for text in texts if text.get_text().strip()]


def covered(figure: Figure) -> list[tuple[Text, Text]]:
    """Pairs of texts of which one lies over the other."""
    figure.draw_without_rendering()
    texts = shown_texts(figure)
    low, high = np.array([text.get_window_extent().get_points() for text in texts]).swapaxes(0, 1)
    assert low.min() >= 0
    assert (high <= figure.bbox.size).all()
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    height = np.minimum(*np.meshgrid(*2 * [(high - low)[:, 1]]))
    # A box is higher than the digits in it, by about a third.
    covers = (common[..., 0] > 1) & (common[..., 1] > 0.3 * height)
    return [(texts[i], texts[j]) for i, j in np.argwhere(np.triu(covers, 1))]


@pytest.mark.parametrize(
    ("devices", "kind"), [(10, "mixed"), (30, "mixed"), (100, "mixed"), (60, "none-local")]
)
def test_no_text_covers_another(devices, kind):
    figure = draw_round(own_round(devices, kind))
    assert covered(figure) == []
    assert len(shown_texts(figure)) > 2 * devices


def test_where_devices_crowd_some_numbers_are_left_out():
    priced = own_round(30, "all-local")
    figure = draw_round(replace(priced, positions_m=np.full((30, 2), 100.0)))
    assert covered(figure) == []
    assert 5 + 10 < len(panels(figure)["Who"].texts) < 5 + 30


def test_pale_colours_and_full_ones_are_told_apart():
    axes = panels(draw_round(own_round(30, "mixed")))["Learning"]
    _, offload, edge, *_ = axes.containers
    for pale, full in zip(offload, edge, strict=True):
        light = sum(to_rgb(pale.get_facecolor())) - sum(to_rgb(full.get_facecolor()))
        assert light > 0.4
        assert to_rgba(pale.get_facecolor()) != to_rgba(full.get_facecolor())
