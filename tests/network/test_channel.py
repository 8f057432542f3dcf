"""Gains, noise and rates: by hand."""

from dataclasses import replace

import numpy as np
import pytest

from flower_bfl.network import LOCAL, Decision, NetworkConfig, NetworkState, Radio
from flower_bfl.network.channel import (
    by_device,
    by_slot,
    cross_gains,
    occupants,
    offload_rate_bps,
    path_gain,
    upload_rate_bps,
)

# 1 W of noise per hertz; most power 10 W.
UNIT = NetworkConfig(
    devices=2,
    edge_servers=2,
    sub_channels=2,
    radio=Radio(bandwidth_hz=4.0, noise_dbm_hz=30.0, noise_figure_db=0.0, power_dbm=(0.0, 40.0)),
)


def state_of(gain):
    ones = np.ones(np.shape(gain)[:-2])
    return NetworkState(ones, ones, ones, ones, gain)


def rates(slot, power_w, bandwidth_hz, gain, network=UNIT):
    """Rates by device; gain: (N, M), the same on both sub-channels."""
    nothing = np.zeros(len(slot))
    decision = Decision(slot, power_w, bandwidth_hz, nothing, nothing + 1)
    return offload_rate_bps(network, state_of(np.repeat(np.asarray(gain)[..., None], 2, axis=-1)), decision)


@pytest.mark.parametrize(
    ("power_w", "gain", "bandwidth_hz", "rate_bps"),
    [
        (1.0, 1.0, 1.0, 1),  # 1 W over 1 W: log2(2) = 1
        (1.0, 3.0, 1.0, 2),
        (0.5, 14.0, 1.0, 3),
        (3.0, 2.0, 2.0, 4),  # 6 W over 2 W: log2(4) = 2, at 2 Hz
        (7.0, 4.0, 4.0, 12),
        (1.0, 0.5, 0.5, 0.5),
    ],
)
def test_a_rate_alone(power_w, gain, bandwidth_hz, rate_bps):
    found = rates([2, LOCAL], [power_w, 9.0], [bandwidth_hz, 9.0], [[9.0, gain], [9.0, 9.0]])
    np.testing.assert_allclose(found, [rate_bps, 0], rtol=1e-12)


# Device 0 sends 6 W with gain 1 to server 0 on sub-channel 0, at 1 Hz. Device 1 is heard there with gain 1
# and at server 1 with gain 4, where device 0 is heard with gain 0.5: 6 · 0.5 = 3 W.
@pytest.mark.parametrize(
    ("slot_of_1", "interference", "expected"),
    [
        # on sub-channel 0 of server 1: 2 and 1 bit/s
        (2, True, [np.log2(1 + 6 / (1 + 1)), np.log2(1 + 4 / (1 + 3))]),
        (2, False, [np.log2(7), np.log2(5)]),
        (3, True, [np.log2(7), np.log2(5)]),  # another sub-channel
        (1, True, [np.log2(7), np.log2(2)]),  # another sub-channel of the same server, gain 1
        (LOCAL, True, [np.log2(7), 0]),
    ],
)
def test_a_rate_with_another_device_around(slot_of_1, interference, expected):
    network = replace(UNIT, radio=replace(UNIT.radio, interference=interference))
    found = rates([0, slot_of_1], [6.0, 1.0], [1.0, 1.0], [[1.0, 0.5], [1.0, 4.0]], network)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert expected[0] == 2 or slot_of_1 != 2 or not interference


def test_all_other_edge_servers_disturb_and_the_own_does_not():
    # Three servers on one sub-channel; device n at server n with 1 W. What server m hears of device n: row n.
    #   server 0: 12 over 1 + 1 + 2 = 4 W: SINR 3, 2 bit/s
    #   server 1: 35 over 1 + 3 + 1 = 5 W: SINR 7, 3 bit/s
    #   server 2:  8 over 1 + 4 + 3 = 8 W: SINR 1, 1 bit/s
    network = replace(UNIT, devices=3, edge_servers=3, sub_channels=1)
    gain = np.array([[12.0, 3.0, 4.0], [1.0, 35.0, 3.0], [2.0, 1.0, 8.0]])[..., None]
    decision = Decision([0, 1, 2], [1.0] * 3, [1.0] * 3, [0.0] * 3, [1.0] * 3)
    np.testing.assert_allclose(offload_rate_bps(network, state_of(gain), decision), [2, 3, 1], rtol=1e-12)


def test_an_upload_has_its_share_of_all_bandwidth_most_power_and_the_best_channel():
    # Four devices, two servers of 4 Hz: 4 · 2/4 = 2 Hz, 2 W of noise; 10 W · best gain.
    network = replace(UNIT, devices=4)
    gain = np.full((4, 2, 2), 0.01)
    gain[0, 1, 0], gain[1, 0, 1], gain[2, 1, 1], gain[3, 0, 0] = 0.2, 0.6, 1.4, 3.0
    np.testing.assert_allclose(
        upload_rate_bps(network, state_of(gain)), [2 * 1, 2 * 2, 2 * 3, 2 * 4], rtol=1e-12
    )


def test_an_upload_has_no_more_bandwidth_than_an_edge_server():
    network = replace(UNIT, devices=1)  # 4 Hz and not 4 · 2/1; 12 W over 4 W
    np.testing.assert_allclose(upload_rate_bps(network, state_of(np.full((1, 2, 2), 1.2))), [8], rtol=1e-12)


def test_noise_is_that_of_table_iv():
    noise_w = Radio().noise_w_hz * 20e6  # -174 dBm/Hz + 1 dB + 73.01 dB
    assert 10 * np.log10(noise_w) + 30 == pytest.approx(-100, abs=0.02)
    assert Radio(noise_figure_db=0.0).noise_w_hz == pytest.approx(10**-17.4 * 1e-3)
    assert Radio().noise_w_hz / Radio(noise_figure_db=0.0).noise_w_hz == pytest.approx(10**0.1)


def test_power_in_watts():
    np.testing.assert_allclose(Radio().power_w, (0.01, 1.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("distance_m", "loss_db"),
    [
        (1000.0, 140.7),
        (100.0, 140.7 - 36.7),
        (10_000.0, 140.7 + 36.7),
        (10.0, 140.7 - 2 * 36.7),
        (0.0, 140.7 - 2 * 36.7),  # the formula ends at 10 m
    ],
)
def test_path_loss_by_distance(distance_m, loss_db):
    # Two servers 6 and 8 tenths away from where the device is: 3-4-5 triangles.
    network = NetworkConfig(
        devices=1,
        edge_servers=2,
        server_positions_m=((0.6 * distance_m, 0.8 * distance_m), (-0.8 * distance_m, 0.6 * distance_m)),
    )
    found = path_gain(network, np.zeros((1, 2)))
    np.testing.assert_allclose(-10 * np.log10(found), [[loss_db, loss_db]], rtol=1e-12)


def test_path_loss_is_between_the_two_places():
    network = NetworkConfig(devices=2, edge_servers=1, server_positions_m=((300.0, -100.0),))
    found = path_gain(network, np.array([[0.0, 300.0], [900.0, -900.0]]))  # 500 m and 1 km
    expected = [[140.7 + 36.7 * np.log10(0.5)], [140.7]]
    np.testing.assert_allclose(-10 * np.log10(found), expected, rtol=1e-12)


def test_slots_and_devices_find_each_other():
    slot = np.array([[3, LOCAL, 0], [LOCAL, LOCAL, LOCAL]])
    in_slot = occupants(slot, 4)
    np.testing.assert_array_equal(in_slot, [[2, -1, -1, 0], [-1, -1, -1, -1]])
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    placed = by_slot(values, in_slot, UNIT)
    np.testing.assert_array_equal(placed, [[[3, 0], [0, 1]], [[0, 0], [0, 0]]])
    np.testing.assert_array_equal(by_device(placed, slot), [[1, 0, 3], [0, 0, 0]])


def test_each_edge_server_hears_the_device_in_a_slot_on_its_sub_channel():
    gain = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2) + 1
    in_slot = np.array([2, -1, 0, 1])  # device 2 in (0, 0), 0 in (1, 0), 1 in (1, 1)
    heard = cross_gains(gain, in_slot)
    assert heard.dtype == np.float64
    np.testing.assert_array_equal(heard[0, 0], gain[2, :, 0])
    np.testing.assert_array_equal(heard[0, 1], [0, 0])
    np.testing.assert_array_equal(heard[1, 0], gain[0, :, 0])
    np.testing.assert_array_equal(heard[1, 1], gain[1, :, 1])


def test_noise_and_bandwidth_of_a_single_device_against_shannons_limit():
    # With ever more bandwidth the rate tends to S/(N0·ln 2) and never exceeds it.
    limit_bps = 6 / np.log(2)
    found = [
        float(rates([0, LOCAL], [6.0, 0.0], [b, 0.0], [[1.0, 1.0]] * 2)[0]) for b in (1.0, 1e2, 1e4, 1e12)
    ]
    assert found == sorted(found) and found[-1] <= limit_bps
    assert found[-1] == pytest.approx(limit_bps, rel=1e-9)
