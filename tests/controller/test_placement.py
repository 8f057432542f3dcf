"""What policies are shown, against loops over one pair at a time, prices, and placements made afresh."""

import itertools
import math
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flower_bfl.controller import AssignmentController
from flower_bfl.controller.heuristics import equal_hash_rates
from flower_bfl.controller.placement import CANDIDATES, FEATURES, OUTLOOK, Placement, turn_order
from flower_bfl.network import (
    LOCAL,
    Blocks,
    Decision,
    NetworkConfig,
    NetworkState,
    Radio,
    Tasks,
    draw_states,
    price,
)
from flower_bfl.network.pricing import local_cpu_limit_hz

seeds = st.integers(0, 2**32)
SMALL = NetworkConfig(devices=6, edge_servers=3, sub_channels=2)
NETWORKS = {
    "shared": NetworkConfig(devices=8, edge_servers=3, sub_channels=4),
    "for each": NetworkConfig(devices=8, edge_servers=3, sub_channels=3, radio=Radio(sharing="per_device")),
    "no interference": NetworkConfig(
        devices=7, edge_servers=2, sub_channels=3, radio=Radio(interference=False)
    ),
    "for each, no interference": replace(SMALL, radio=Radio(sharing="per_device", interference=False)),
    "unequal edge servers": replace(SMALL, edge_cpu_hz=(1e9, 5e9, 20e9)),
    "one sub-channel": replace(SMALL, sub_channels=1),
    "one edge server": replace(SMALL, edge_servers=1, sub_channels=5),
    "more devices than slots": replace(SMALL, devices=12),
    "less power": replace(SMALL, radio=Radio(power_dbm=(0.0, 17.0), bandwidth_hz=5e6)),
    "race": replace(SMALL, blocks=Blocks(total="race", total_hash_rate=1.5e12)),
    "fastest": replace(SMALL, blocks=Blocks(total="fastest", total_hash_rate=1.2e12)),
}
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


# --- in loops -----------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """One round, one pair at a time, in double precision; derivatives are differences.

    Devices are those of the state. `held` says who is in which slot with what power.
    """

    network: NetworkConfig
    state: NetworkState
    held: dict[int, tuple[int, float]]  # by slot m·G + g

    def __post_init__(self):
        radio = self.network.radio
        self.most_w = 1e-3 * 10 ** (radio.power_dbm[1] / 10)
        self.share_hz = radio.bandwidth_hz
        if radio.sharing == "shared":
            self.share_hz /= self.network.sub_channels
        self.noise_w_hz = 1e-3 * 10 ** ((radio.noise_dbm_hz + radio.noise_figure_db) / 10)

    def gain(self, n, m, g):
        return float(self.state.gain[n, m, g])

    def own_s(self, n):
        """Training at home and the upload, (22)(23)."""
        network, work = self.network, self.state.work_cycles[n]
        by_energy = math.sqrt(self.state.energy_slack_j[n] / (network.tasks.energy_coefficient * work))
        band = network.radio.bandwidth_hz * min(1, network.edge_servers / network.devices)
        best = max(float(h) for h in self.state.gain[n].ravel())
        rate = band * math.log2(1 + self.most_w * best / (self.noise_w_hz * band))
        return work / min(self.state.cpu_hz[n], by_energy) + network.model_bits / rate

    def edge_s(self, n, m):
        speeds = self.network.edge_cpu_hz
        return self.state.work_cycles[n] / (speeds[m] if isinstance(speeds, tuple) else speeds)

    def heard_w(self, m, g):
        if not self.network.radio.interference:
            return 0.0
        others = (other for other in range(self.network.edge_servers) if other != m)
        slots = (other * self.network.sub_channels + g for other in others)
        return sum(self.held[s][1] * self.gain(self.held[s][0], m, g) for s in slots if s in self.held)

    def offload_s(self, n, power_w, m, g, band=None, more_w=0.0, alone=False):
        """(20) with W/G, or with another bandwidth, and more interference."""
        band = band or self.share_hz
        noise = self.noise_w_hz * band + (0.0 if alone else self.heard_w(m, g)) + more_w
        return self.state.data_bits[n] / (
            band * math.log1p(power_w * self.gain(n, m, g) / noise) / math.log(2)
        )

    def at_server_s(self, m, taking=None, leaving=None, more_w=None):
        """Σ T_off at an edge server if bandwidth is shared best, (Σ √T)²/G; or the sum of what each takes.

        taking: (device, slot) that comes with most power. leaving: a slot that falls free. more_w: what is
        heard besides, by slot.
        """
        channels = self.network.sub_channels
        times = []
        for slot, (n, power_w) in self.held.items():
            if slot // channels == m and slot != leaving:
                more = (more_w or {}).get(slot, 0.0)
                times.append(self.offload_s(n, power_w, *divmod(slot, channels), more_w=more))
        if taking is not None:
            times.append(self.offload_s(taking[0], self.most_w, *divmod(taking[1], channels)))
        if self.network.radio.sharing == "per_device":
            return sum(times)
        return sum(math.sqrt(t) for t in times) ** 2 / channels

    def lost_s_w(self, n, m, g, *, nominal):
        """Seconds per watt of device n that others on the sub-channel lose, and that all there lose."""
        lost = [0.0] * self.network.edge_servers
        for other in range(self.network.edge_servers):
            slot = other * self.network.sub_channels + g
            if slot not in self.held or not self.network.radio.interference:
                continue
            holder, power_w = self.held[slot]
            step_w = 1e-5 * (self.noise_w_hz * self.share_hz + self.heard_w(other, g))
            if nominal:
                times = [self.offload_s(holder, power_w, other, g, more_w=x) for x in (-step_w, step_w)]
            else:
                times = [self.at_server_s(other, more_w={slot: x}) for x in (-step_w, step_w)]
            lost[other] = (times[1] - times[0]) / (2 * step_w) * self.gain(n, other, g)
        return sum(lost) - lost[m], sum(lost)

    def sharing_s(self, m, g):
        """What a newcomer in (m, g) takes from the others at a shared edge server; all of it if that is full.

        Per cent of bandwidth lost, seconds lost, by difference; their mean.
        """
        channels = self.network.sub_channels
        lost = []
        for slot, (n, power_w) in self.held.items():
            if slot // channels == m and slot % channels != g:
                where = divmod(slot, channels)
                less, more = (
                    self.offload_s(n, power_w, *where, band=self.share_hz * (1 + x)) for x in (-1e-5, 1e-5)
                )
                lost.append((less - more) / 2e-5)
        if not lost or self.network.radio.sharing == "per_device":
            return 0.0
        full = min(max((len(lost) - 1) / max(channels - 2, 1), 0), 1)
        return full * sum(lost) / len(lost)

    def leak(self, n, m, g, error=0.0):
        here = self.gain(n, m, g)
        away = sum(self.gain(n, other, g) for other in range(self.network.edge_servers) if other != m)
        return math.log10(max(away + error * (here + away), 0) / here + 1e-6)

    def saved_alone_s(self, n):
        """By the best slot, if nobody else is there."""
        places = itertools.product(range(self.network.edge_servers), range(self.network.sub_channels))
        return max(
            self.own_s(n) - self.offload_s(n, self.most_w, m, g, alone=True) - self.edge_s(n, m)
            for m, g in places
        )

    def bumped_s(self, slot):
        """What a slot's holder saves there, if anything."""
        if slot not in self.held:
            return 0.0
        holder, m = self.held[slot][0], slot // self.network.sub_channels
        takes_s = self.at_server_s(m) - self.at_server_s(m, leaving=slot)
        return max(self.own_s(holder) - self.edge_s(holder, m) - takes_s, 0.0)

    def pair(self, n, slot, error=0.0):
        """What depends on device and slot; the device is nowhere.

        Floats of single precision take what a device itself has from sums that may be much larger: an `error`
        of that sum is added to harm and leak.
        """
        channels = self.network.sub_channels
        m, g = divmod(slot, channels)
        own_s, edge_s = self.own_s(n), self.edge_s(n, m)
        offload_s = min(self.offload_s(n, self.most_w, m, g), 1e6)
        times = [self.offload_s(n, self.most_w * math.exp(x), m, g) for x in (-1e-5, 1e-5)]
        slope = math.log(times[0] / times[1]) / 2e-5
        others_s = self.at_server_s(m, leaving=slot)
        added_s = self.at_server_s(m, taking=(n, slot), leaving=slot) - others_s
        lost, of_all = self.lost_s_w(n, m, g, nominal=False)
        loss = max(lost + error * of_all, 0)
        harm_s = self.most_w * loss
        nominal_s = offload_s + self.sharing_s(m, g)
        features = {
            "own_s": own_s,
            "ln_own_s": math.log(own_s),
            "ln_offload_s": math.log(offload_s),
            "ln_alone_s": math.log(self.offload_s(n, self.most_w, m, g, alone=True)),
            "edge_s": 5 * edge_s,
            "log10_harm_s": math.log10(harm_s + 1e-4),
            "added_s": added_s,
            "saved_s": clip(own_s - edge_s - added_s - harm_s, 4),
            "others": sum(s // channels == m and s != slot for s in self.held) / channels,
            "bumped_s": clip(self.bumped_s(slot), 4),
            "log10_leak": self.leak(n, m, g, error),
            "log10_best_power": clip(math.log10(offload_s * slope / (loss + 1e-4)), 3),
            "power_slope": slope,
            "is_held": float(slot in self.held),
            "held": len(self.held) / self.network.slots,
            "saved_nominal_s": clip(own_s - edge_s - nominal_s - harm_s, 4),
        }
        return {name: clip(value, 10) for name, value in features.items()}

    def worth_s(self, n, slot, *, bump_weight, error=0.0):
        """By which slots are compared: what is saved, but for shares of what is uncertain."""
        m, g = divmod(slot, self.network.sub_channels)
        nominal_s = min(self.offload_s(n, self.most_w, m, g), 1e6) + self.sharing_s(m, g)
        lost, of_all = self.lost_s_w(n, m, g, nominal=True)
        harm_s = self.most_w * max(lost + error * of_all, 0)
        worth_s = self.own_s(n) - self.edge_s(n, m) - nominal_s - 0.3 * harm_s
        return worth_s - bump_weight * self.bumped_s(slot)

    def learning_s(self):
        """As if bandwidth were shared best."""
        inside = {n: slot for slot, (n, _) in self.held.items()}
        outside = (n for n in range(self.network.devices) if n not in inside)
        return (
            sum(self.own_s(n) for n in outside)
            + sum(self.edge_s(n, slot // self.network.sub_channels) for n, slot in inside.items())
            + sum(self.at_server_s(m) for m in range(self.network.edge_servers))
        )

    def mining_s(self):
        """(27) with the best hash rates."""
        blocks, devices = self.network.blocks, self.network.devices
        least, most = blocks.hash_rate
        spread_s = blocks.propagation_s * (self.network.edge_servers + devices - 1)
        rate = min(most, blocks.total_hash_rate / devices)
        if blocks.total == "fastest":
            rate = min(most, blocks.total_hash_rate - least * (devices - 1))
        one_s = blocks.forks * (blocks.work_hashes / rate + spread_s)
        if blocks.total == "race":
            return blocks.forks * (blocks.work_hashes / (devices * rate) + spread_s)
        return one_s if blocks.total == "fastest" else devices * one_s

    def summary(self):
        """What the critic is given of the whole round."""
        network = self.network
        everybody = range(network.devices)
        own = [self.own_s(n) for n in everybody]
        best = [max(self.saved_alone_s(n), 0) for n in everybody]
        pairs = itertools.product(everybody, range(network.edge_servers), range(network.sub_channels))
        return {
            "mean_own_s": np.mean(own),
            "std_ln_own_s": np.std(np.log(own)),
            "mean_best_s": np.mean(best),
            "std_best_s": np.std(best),
            "mean_ln_data": np.mean(
                [math.log(d * math.log(2) / self.share_hz) for d in self.state.data_bits]
            ),
            "mean_leak": np.mean([self.leak(*pair) for pair in pairs]),
        }


def clip(value, most):
    return min(max(value, -most), most)


def slow(placement, states, row):
    """The same round in loops, as the devices are placed."""
    order, slots = placement.order[row], placement.slot[row]
    held = {
        int(slot): (int(order[turn]), float(placement.power_w[row, turn]))
        for turn, slot in enumerate(slots)
        if slot >= 0
    }
    return Slow(placement.network, states[row], held)


def any_order(network, rows, rng):
    return rng.permuted(np.broadcast_to(np.arange(network.devices), (rows, network.devices)), axis=1)


def any_open(offers, rng):
    """A slot that is allowed in each round, or none; those that take or cost minutes are left alone."""
    chosen = np.full(len(offers.slot), LOCAL)
    takes, harm = (offers.features[..., FEATURES.index(name)] for name in ("ln_offload_s", "log10_harm_s"))
    good = offers.allowed & (takes < math.log(100)) & (harm < 2)
    for row in np.flatnonzero(good.any(axis=1) & (rng.random(len(good)) < 0.7)):
        chosen[row] = rng.choice(offers.slot[row][good[row]])
    return chosen


def any_power(network, rows, rng):
    return (network.radio.power_w[1] * 10 ** rng.uniform(-2, 0, rows)).astype(np.float32)


def turns(network, seed, candidates, rows=2):
    """All turns of a pass over tentative placements: placement, states, settled slots, turn and offers."""
    rng = np.random.default_rng(seed)
    states = draw_states(network, rows, rng)
    placement = Placement(network, states, any_order(network, rows, rng))
    if seed % 3:  # else the first turns see empty slots
        placement.place_tentatively()
    placement.begin()
    settled = [set() for _ in range(rows)]
    for turn in range(network.devices):
        offers = placement.offers(turn, candidates)
        yield placement, states, settled, turn, offers
        slot = any_open(offers, rng)
        placement.settle(turn, slot, any_power(network, rows, rng))
        for row in np.flatnonzero(slot >= 0):
            settled[row].add(int(slot[row]))


@every_network
def test_features_are_those_of_loops_over_pairs(network):
    for seed in range(3):
        for placement, states, settled, turn, offers in turns(network, seed, network.slots):
            for row in range(2):
                found, device = slow(placement, states, row), placement.order[row, turn]
                of_turn = {
                    "to_come": (network.devices - 1 - turn) / network.devices,
                    "open": 1 - len(settled[row]) / network.slots,
                }
                for k, slot in enumerate(offers.slot[row].tolist()):
                    ends = [found.pair(device, slot, error) | of_turn for error in (-1e-6, 1e-6)]
                    assert ends[0].keys() == set(FEATURES)
                    least, most = (np.array([end[name] for name in FEATURES]) for end in ends)
                    slack = 2e-3 + 1e-3 * np.abs(most)
                    features = offers.features[row, k]
                    good = (features > np.minimum(least, most) - slack) & (
                        features < np.maximum(least, most) + slack
                    )
                    assert good.all(), (
                        np.array(FEATURES)[~good].tolist(),
                        features[~good],
                        least[~good],
                        most[~good],
                    )


@every_network
def test_the_outlook_is_that_of_loops(network):
    for seed in range(3):
        for placement, states, settled, turn, offers in turns(network, seed, CANDIDATES):
            for row in range(2):
                found, order = slow(placement, states, row), placement.order[row]
                total_s = found.learning_s() + found.mining_s()
                # By the features, which loops confirm above; what is not allowed saves nothing.
                saved_s = offers.features[row, :, FEATURES.index("saved_s")]
                open_ones = [slot not in settled[row] for slot in offers.slot[row].tolist()]
                expected = found.summary() | {
                    "utility": math.expm1(1 - total_s / (network.latency_bound_s * network.devices)),
                    "done": turn / network.devices,
                    "held": len(found.held) / network.slots,
                    "settled": len(settled[row]) / network.slots,
                    "own_s": found.own_s(order[turn]),
                    "best_saved_s": np.where(open_ones, saved_s, 0).max(),
                    "mean_own_to_come_s": np.mean([found.own_s(n) for n in order[turn:]]),
                }
                assert expected.keys() == set(OUTLOOK)
                np.testing.assert_allclose(
                    offers.outlook[row], [clip(expected[name], 10) for name in OUTLOOK], rtol=1e-3, atol=1e-3
                )


@every_network
def test_candidates_are_the_best_open_slots_by_estimate(network):
    for seed in range(3):
        for placement, states, settled, turn, offers in turns(network, seed, min(CANDIDATES, network.slots)):
            for row in range(2):
                found, device = slow(placement, states, row), placement.order[row, turn]
                offered, open_ones = set(offers.slot[row].tolist()), set(range(network.slots)) - settled[row]
                assert len(offered) == min(CANDIDATES, network.slots)
                assert set(offers.slot[row][offers.allowed[row]].tolist()) == offered & open_ones
                if offered - open_ones:  # there are no others
                    assert open_ones <= offered
                least, most = (
                    {slot: found.worth_s(device, slot, bump_weight=0.5, error=error) for slot in open_ones}
                    for error in (1e-6, -1e-6)
                )
                for slot, other in itertools.product(offered & open_ones, open_ones - offered):
                    assert most[slot] + 1e-3 + 1e-3 * abs(most[slot]) >= least[other]


@every_network
def test_everybody_is_placed_tentatively_where_most_is_saved_by_estimate(network):
    states = draw_states(network, 8, np.random.default_rng(1))
    placement = Placement(network, states, turn_order(network, states))
    placement.place_tentatively()
    offloading = 0
    for row in range(8):
        found = Slow(network, states[row], {})
        for turn, device in enumerate(placement.order[row].tolist()):
            worth_s = {
                slot: found.worth_s(device, slot, bump_weight=0)
                for slot in range(network.slots)
                if slot not in found.held
            }
            best = max(worth_s, key=worth_s.get, default=LOCAL)
            if best == LOCAL or worth_s[best] <= 0:
                best = LOCAL
            else:
                found.held[best] = device, found.most_w
                offloading += 1
            assert placement.slot[row, turn] == best
    assert offloading > 8


def test_a_turn_for_nobody_placed_is_worth_what_one_gets_by_hand():
    # One edge server and sub-channel, so that W/G is all of W; noise is N0·NF·W, 1e-13 W, and the gain is
    # such that the signal is three times that: 2 bit/s/Hz, 40 Mbit/s.
    noise_w = 1e-3 * 10 ** ((-174 + 1) / 10) * 20e6
    network = NetworkConfig(devices=2, edge_servers=1, sub_channels=1, edge_cpu_hz=10e9)
    state = NetworkState(
        [[8e6] * 2], [[1e9] * 2], [[0.5e9] * 2], [[10.0] * 2], np.full((1, 2, 1, 1), 3 * noise_w)
    )
    offers = Placement(network, state, np.array([[1, 0]])).offers(0)
    snr = 1e-3 * 10**3 * 3 * noise_w / noise_w
    upload_s = 40e3 / (10e6 * math.log2(1 + 2 * 3))  # half of the band hears half of the noise
    expected = {
        "own_s": 2.0 + upload_s,
        "ln_offload_s": math.log(0.2),
        "added_s": 0.2,
        "edge_s": 5 * 0.1,
        "saved_s": 2.0 + upload_s - 0.2 - 0.1,
        "power_slope": snr / (1 + snr) / math.log(1 + snr),
        "log10_harm_s": -4.0,
        "log10_leak": -6.0,
        "to_come": 0.5,
        "open": 1.0,
        "is_held": 0.0,
    }
    found = dict(zip(FEATURES, offers.features[0, 0].tolist(), strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert offers.slot.tolist() == [[0]] and offers.allowed.all()


# --- against prices -----------------------------------------------------------------------------------------


def priced(network, states, placement):
    """As it is placed, with all the bandwidth for each, all the CPU and the best hash rates."""
    slot = placement.by_device(placement.slot)
    offloads = slot >= 0
    decision = Decision(
        slot=slot,
        power_w=np.where(offloads, placement.by_device(placement.power_w), 0.0),
        bandwidth_hz=np.where(offloads, network.radio.bandwidth_hz, 0.0),
        cpu_hz=local_cpu_limit_hz(network, states),
        hash_rate=equal_hash_rates(network, slot.shape),
    )
    return price(network, states, decision)


EXACT = NetworkConfig(devices=6, edge_servers=3, sub_channels=1, p2p_rounds=0)


@pytest.mark.parametrize(
    "network",
    [
        EXACT,
        replace(EXACT, radio=Radio(interference=False)),
        replace(EXACT, sub_channels=3, radio=Radio(sharing="per_device")),
        replace(EXACT, edge_cpu_hz=(1e9, 5e9, 9e9), blocks=Blocks(total="race")),
    ],
)
def test_the_estimate_of_the_whole_is_the_price_where_nobody_shares_bandwidth(network):
    # Consensus, which the estimate leaves out, takes no steps here.
    for seed in range(6):
        rng = np.random.default_rng(seed)
        states = draw_states(network, 4, rng)
        placement = Placement(network, states, any_order(network, 4, rng))
        placement.place_tentatively()
        for turn in range(network.devices):
            offers = placement.offers(turn, network.slots)  # with the device itself at home
            expected = priced(network, states, placement).utility
            np.testing.assert_allclose(offers.outlook[:, 0], np.clip(expected, -10, 10), atol=1e-4)
            placement.put(turn, any_open(offers, rng), any_power(network, 4, rng))


def test_what_a_slot_saves_is_what_prices_say_if_nobody_is_in_the_way():
    network = replace(EXACT, radio=Radio(interference=False))
    most_w, column = np.float32(network.radio.power_w[1]), FEATURES.index("saved_s")
    compared = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        states = draw_states(network, 8, rng)
        placement = Placement(network, states, any_order(network, 8, rng))
        for turn in range(network.devices):
            offers = placement.offers(turn, network.slots)
            before_s = priced(network, states, placement).learning_s
            free = offers.features[..., FEATURES.index("is_held")] == 0
            choice = np.where(free, rng.random(free.shape), -1.0).argmax(axis=1)
            is_free = free[np.arange(8), choice]
            placement.put(
                turn, np.where(is_free, offers.slot[np.arange(8), choice], LOCAL), np.full(8, most_w)
            )
            saved_s = before_s - priced(network, states, placement).learning_s
            found = offers.features[np.arange(8), choice, column][is_free]
            np.testing.assert_allclose(found, np.clip(saved_s[is_free], -4, 4), rtol=1e-4, atol=1e-4)
            compared += np.count_nonzero(np.abs(found) < 4)
    assert compared > 50


def test_the_estimate_is_close_to_the_price_of_a_good_decision():
    network = NetworkConfig(devices=20, p2p_rounds=0)
    states = draw_states(network, 4, np.random.default_rng(0))
    decision = AssignmentController(network).decide(states)
    total = price(network, states, decision)
    placement = Placement(network, states, np.tile(np.arange(20), (4, 1)))
    for turn in range(20):
        placement.put(turn, decision.slot[:, turn], decision.power_w[:, turn].astype(np.float32))
    compared = 0
    for turn in range(20):
        home = decision.slot[:, turn] == LOCAL
        if home.any():
            slot, power_w = placement.slot[:, turn].copy(), placement.power_w[:, turn].copy()
            estimate_s = 60 * (1 - np.log1p(placement.offers(turn).outlook[:, 0].astype(float)))
            error_s = (estimate_s - total.total_s)[home]
            assert (np.abs(error_s) < 0.06 * total.learning_s[home]).all()
            compared += np.count_nonzero(home)
            placement.put(turn, slot, power_w)
    assert compared > 8


# --- who is where -------------------------------------------------------------------------------------------


class Told:
    """What a placement was told, by round: who is in which slot, and which slots are settled."""

    def __init__(self, rows):
        self.holder = [{} for _ in range(rows)]
        self.power_w = [{} for _ in range(rows)]  # by turn
        self.settled = [set() for _ in range(rows)]

    def take_out(self, turn):
        for holder, settled in zip(self.holder, self.settled, strict=True):
            for slot in [slot for slot, who in holder.items() if who == turn]:
                del holder[slot]
                settled.discard(slot)

    def put(self, turn, slots, power_w):
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                self.holder[row][slot] = turn
                self.power_w[row][turn] = power_w[row]
                self.settled[row].discard(slot)

    def settle(self, turn, slots, power_w):
        self.put(turn, slots, power_w)
        for row in np.flatnonzero(slots >= 0):
            self.settled[row].add(int(slots[row]))


def check_told(placement, told):
    for row, holder in enumerate(told.holder):
        slot = np.full(placement.turns, LOCAL)
        slot[list(holder.values())] = list(holder)
        assert placement.slot[row].tolist() == slot.tolist()
        by_slot = np.full(placement.network.slots, -1)
        by_slot[list(holder)] = list(holder.values())
        assert placement._holder[row].tolist() == by_slot.tolist()
        assert set(np.flatnonzero(placement._settled[row]).tolist()) == told.settled[row]
        for turn in holder.values():
            assert placement.power_w[row, turn] == told.power_w[row][turn]


def check_as_fresh(placement, states):
    fresh = Placement(placement.network, states, placement.order)
    for turn in range(fresh.turns):
        fresh.put(turn, placement.slot[:, turn], placement.power_w[:, turn])
    for name in ("_holder", "_signal_w", "_data_s", "_local_less_edge_s"):
        np.testing.assert_array_equal(getattr(placement, name), getattr(fresh, name), err_msg=name)
    loudest_w = float(states.gain.max()) * placement.network.radio.power_w[1]
    np.testing.assert_allclose(placement._heard_w, fresh._heard_w, rtol=1e-5, atol=1e-6 * loudest_w)


STEPS = ("put", "settle", "back", "begin", "clear", "tentatively")


@settings(max_examples=60, derandomize=True)
@given(
    seeds,
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), max_size=30),
    st.sampled_from(list(NETWORKS)),
)
def test_after_any_steps_a_placement_is_as_one_made_afresh(seed, steps, name):
    network, rng, rows = NETWORKS[name], np.random.default_rng(seed), 3
    states = draw_states(network, rows, rng)
    placement, told = Placement(network, states, any_order(network, rows, rng)), Told(rows)
    to_come = network.devices
    for step, number in steps:
        turn = number % network.devices
        if step in ("put", "settle", "back"):
            slot, power_w = placement.slot[:, turn].copy(), placement.power_w[:, turn].copy()
            offers = placement.offers(turn, 1 + number % network.slots)
            told.take_out(turn)
            to_come -= 1
            column = offers.features[0, 0, FEATURES.index("to_come")]
            assert column == pytest.approx(max(to_come / network.devices, -10))
            for row in range(rows):
                offered = set(offers.slot[row][offers.allowed[row]].tolist())
                assert not offered & told.settled[row]
                assert len(set(offers.slot[row].tolist())) == 1 + number % network.slots
            if step == "put":
                slot, power_w = rng.integers(LOCAL, network.slots, rows), any_power(network, rows, rng)
            if step == "settle":
                slot, power_w = any_open(offers, rng), any_power(network, rows, rng)
                placement.settle(turn, slot, power_w)
                told.settle(turn, slot, power_w)
            else:
                placement.put(turn, slot, power_w)
                told.put(turn, slot, power_w)
        elif step == "begin":
            placement.begin()
            told.settled = [set() for _ in range(rows)]
            to_come = network.devices
        else:
            placement.clear()
            told = Told(rows)
            if step == "tentatively":
                placement.place_tentatively()
                for turn in range(network.devices):
                    told.put(turn, placement.slot[:, turn], placement.power_w[:, turn])
        check_told(placement, told)
    check_as_fresh(placement, states)


def test_whoever_holds_a_slot_goes_when_another_takes_it():
    states = draw_states(SMALL, 1, np.random.default_rng(0))
    placement, power_w = Placement(SMALL, states, np.arange(6)[None]), np.ones(1, np.float32)
    placement.settle(2, np.array([4]), power_w)
    placement.put(5, np.array([4]), power_w)
    assert placement.slot[0].tolist() == [LOCAL] * 5 + [4]
    check_as_fresh(placement, states)
    offers = placement.offers(0, SMALL.slots)
    assert offers.allowed[0].all()


def test_rounds_of_a_batch_do_not_mix():
    rng = np.random.default_rng(0)
    states, order = draw_states(SMALL, 3, rng), any_order(SMALL, 3, rng)
    together = Placement(SMALL, states, order)
    alone = [Placement(SMALL, states[row : row + 1], order[row : row + 1]) for row in range(3)]
    for each in (together, *alone):
        each.place_tentatively()
        each.begin()
    for turn in range(6):
        offers, offers_alone = together.offers(turn), [each.offers(turn) for each in alone]
        slot, power_w = any_open(offers, rng), any_power(SMALL, 3, rng)
        for row, one in enumerate(offers_alone):
            np.testing.assert_array_equal(one.slot[0], offers.slot[row])
            np.testing.assert_allclose(one.features[0], offers.features[row], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(one.outlook[0], offers.outlook[row], rtol=1e-5, atol=1e-6)
            alone[row].settle(turn, slot[row : row + 1], power_w[row : row + 1])
        together.settle(turn, slot, power_w)


# --- turns --------------------------------------------------------------------------------------------------


@every_network
def test_those_who_can_save_most_come_first(network):
    states = draw_states(network, 4, np.random.default_rng(2))
    order = turn_order(network, states)
    for row in range(4):
        saved_s = [Slow(network, states[row], {}).saved_alone_s(n) for n in order[row]]
        assert sorted(order[row].tolist()) == list(range(network.devices))
        assert saved_s == sorted(saved_s, reverse=True)


def test_noise_varies_who_comes_first_like_a_softmax():
    # Gumbel noise: the first is drawn by softmax(saved/noise).
    network = NetworkConfig(devices=3, edge_servers=2, sub_channels=1)
    state = draw_states(network, 1, np.random.default_rng(3))
    many = NetworkState(*(np.repeat(getattr(state, each.name), 4000, axis=0) for each in fields(state)))
    saved_s = np.array([Slow(network, state[0], {}).saved_alone_s(n) for n in range(3)])
    noise = float(np.ptp(saved_s)) / 2
    chance = np.exp(saved_s / noise) / np.exp(saved_s / noise).sum()
    first = turn_order(network, many, np.random.default_rng(4), noise)[:, 0]
    assert stats.chisquare(np.bincount(first, minlength=3), 4000 * chance).pvalue > 0.01
    np.testing.assert_array_equal(
        turn_order(network, many, np.random.default_rng(4), 0.0)[:1], turn_order(network, state)
    )


@settings(max_examples=30, derandomize=True)
@given(seeds, st.sampled_from([(), (2,), (3, 2)]))
def test_values_by_turn_go_back_to_their_devices(seed, more):
    rng = np.random.default_rng(seed)
    states, order = draw_states(SMALL, 3, rng), any_order(SMALL, 3, rng)
    values = rng.random((3, 6, *more))
    found = Placement(SMALL, states, order).by_device(values)
    for row, turn in itertools.product(range(3), range(6)):
        np.testing.assert_array_equal(found[row, order[row, turn]], values[row, turn])


# --- extremes -----------------------------------------------------------------------------------------------

EXTREMES = {
    "gains next to nothing": replace(SMALL, radio=Radio(loss_at_km_db=300.0)),
    "gains of 1": replace(SMALL, radio=Radio(loss_at_km_db=-300.0)),
    "gains of any size": replace(SMALL, radio=Radio(shadowing_db=100.0)),
    "any size, for each": replace(SMALL, radio=Radio(shadowing_db=100.0, sharing="per_device")),
    "huge own times": replace(SMALL, tasks=Tasks(cpu_hz=(1.0, 1.0))),
    "no own time": replace(SMALL, tasks=Tasks(cpu_hz=(1e30, 1e30), energy_slack_j=(1e30, 1e30))),
    "hardly any energy": replace(SMALL, tasks=Tasks(energy_slack_j=(1e-30, 1e-30))),
    "large model": replace(SMALL, model_bits=1e12),
    "much data": replace(SMALL, tasks=Tasks(data_bits=(1e20, 1e20))),
    "no data": replace(SMALL, tasks=Tasks(data_bits=(1e-6, 1e-6))),
    "narrow band": replace(SMALL, radio=Radio(bandwidth_hz=1e-3)),
    "wide band": replace(SMALL, radio=Radio(bandwidth_hz=1e15)),
    "least power": replace(SMALL, radio=Radio(power_dbm=(-300.0, -300.0))),
    "most power": replace(SMALL, radio=Radio(power_dbm=(10.0, 200.0))),
    "slow edge": replace(SMALL, edge_cpu_hz=1e-3),
    "one of everything": NetworkConfig(devices=1, edge_servers=1, sub_channels=1),
    "short limit": replace(SMALL, latency_bound_s=1e-300),
}


@pytest.mark.parametrize("network", EXTREMES.values(), ids=EXTREMES)
def test_numbers_are_finite_and_small_whatever_the_network(network):
    rng = np.random.default_rng(5)
    states = draw_states(network, 8, rng)
    placement = Placement(network, states, turn_order(network, states))
    for crowded in (False, True):
        placement.begin()
        for turn in range(network.devices):
            offers = placement.offers(turn, network.slots)
            assert offers.features.dtype == offers.outlook.dtype == np.float32
            for numbers in (offers.features, offers.outlook):
                assert np.isfinite(numbers).all() and np.abs(numbers).max() <= 10
            # Whoever comes takes any slot, however bad it is, from others at first.
            chosen = np.where(offers.allowed, rng.random(offers.allowed.shape), -1).argmax(axis=1)
            slot = np.where(offers.allowed.any(axis=1), offers.slot[np.arange(8), chosen], LOCAL)
            act = placement.settle if crowded else placement.put
            act(turn, slot, any_power(network, 8, rng))
    placement.clear()
    placement.place_tentatively()
    for row in placement.slot:
        assert np.unique(row[row >= 0]).size == np.count_nonzero(row >= 0)
