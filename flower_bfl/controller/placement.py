"""Devices get their slots in turn: what each slot would cost whoever has its turn, and everybody else.

Before the first turn everybody is placed tentatively, by these estimates alone. A turn takes its device out
and places it for good, so that a policy sees a whole round at every turn, and not only who came before.
All estimates are for W/G of bandwidth a device, from which T_off at an edge server follows as if bandwidth
were shared best: Σ T_off ≈ (Σ √T_nominal)²/G. They guide a policy; what counts in the end is `price`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_bfl.controller.alone import Alone, nominal_bandwidth_hz
from flower_bfl.controller.heuristics import equal_hash_rates
from flower_bfl.network import LOCAL, NetworkConfig, NetworkState
from flower_bfl.network.pricing import mining_of_all_s, utility
from flower_bfl.network.settings import Array

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]

VERSION = 1  # of what policies are given; a policy trained for another one does not fit
CANDIDATES = 4  # slots that a device may choose from in its turn, the cheapest by estimate

FEATURES = (
    "own_s",  # T_loc + T_up if the device trains itself
    "ln_own_s",
    "ln_offload_s",  # T_off with what is heard in the slot
    "ln_alone_s",  # T_off if nothing were heard
    "edge_s",  # C/f_m, times 5
    "log10_harm_s",  # seconds that others on the sub-channel lose, at most power
    "added_s",  # to Σ T_off at the edge server
    "saved_s",  # own_s less all of that
    "others",  # at the edge server, of G
    "to_come",  # share of the devices whose turn comes later
    "open",  # share of the slots that nobody has for good
    "bumped_s",  # what the slot's tentative holder saves there
    "log10_leak",  # log10 of how strongly other edge servers hear the device, against this one
    "log10_best_power",  # T·φ / seconds lost per watt: the fixed point's power
    "power_slope",  # φ = dlnR/dlnp
    "is_held",  # tentatively
    "held",  # share of the slots
    "saved_nominal_s",  # own_s less T_off, edge_s, harm and a share of what others at the server lose
)
OUTLOOK = (
    "utility",  # (31) if all stayed as it is
    "done",  # share of the turns
    "held",
    "settled",
    "own_s",
    "best_saved_s",
    "mean_own_s",
    "mean_own_to_come_s",
    "std_ln_own_s",
    "mean_best_s",  # what the best slot saves if nobody else is there
    "std_best_s",
    "mean_ln_data",
    "mean_leak",
)  # what a critic is given at every turn

_HARM_WEIGHT, _BUMP_WEIGHT = np.float32(0.3), np.float32(0.5)  # of all that is uncertain, by a few trials
_LONGEST_S = np.float32(1e6)
_WEAKEST = np.float32(1e-12)  # signal to noise
_LARGEST = 10.0  # feature
_NEVER = np.float32(-1e9)


@dataclass(frozen=True)
class Offers:
    """What a device may choose from in its turn, in each of B rounds; K candidates."""

    slot: Whole  # (B, K)
    allowed: NDArray[np.bool_]  # whether the slot is still open, (B, K)
    features: Floats  # by `FEATURES`, (B, K, len(FEATURES))
    outlook: Floats  # by `OUTLOOK`, (B, len(OUTLOOK))


@dataclass(frozen=True)
class _Nominal:
    """For whoever has its turn, by slot, (B, M, G), if each device has its nominal share of bandwidth."""

    noise_w: Floats
    used: NDArray[np.bool_]
    held_s: Floats  # T_off of who is in the slot
    held_slope: Floats  # its φ
    others: Floats  # at the edge server
    snr: Floats  # of the device at most power
    log: Floats  # ln(1 + snr)
    offload_s: Floats
    with_loss_s: Floats  # T_off, and a share of what others at the edge server lose
    loss_s_w: Floats  # seconds that others on the sub-channel lose per watt

    @property
    def power_slope(self) -> Floats:
        """φ = dlnR/dlnp of the device."""
        return np.asarray(self.snr / ((1 + self.snr) * self.log))


@dataclass(frozen=True)
class _Shared:
    """The same if those at an edge server share its bandwidth best."""

    added_s: Floats
    loss_s_w: Floats
    bumped_s: Floats
    learning_s: Floats  # of all devices as they are placed, (B,)


def turn_order(
    network: NetworkConfig, state: NetworkState, rng: np.random.Generator | None = None, noise: float = 0.0
) -> Whole:
    """Who comes first: those that the best slot would save most, (B, N); noise, in seconds, varies it."""
    saved_s = Alone.of(network, state).saved_s.max(axis=(-2, -1))
    if rng is not None and noise > 0:
        saved_s = saved_s + noise * rng.gumbel(size=saved_s.shape)
    return np.argsort(-saved_s, axis=-1, kind="stable")


def _in_turns(state: NetworkState, order: Whole) -> NetworkState:
    """The state with the devices of each round in an order of their own; order: (B, N)."""
    return NetworkState(
        data_bits=np.take_along_axis(state.data_bits, order, axis=1),
        work_cycles=np.take_along_axis(state.work_cycles, order, axis=1),
        cpu_hz=np.take_along_axis(state.cpu_hz, order, axis=1),
        energy_slack_j=np.take_along_axis(state.energy_slack_j, order, axis=1),
        gain=np.take_along_axis(state.gain, order[..., None, None], axis=1),
    )


def _over_channels(of_slot: Floats) -> Floats:
    """Sum of each edge server, (B, M, 1): `einsum` is much faster than `sum` along so short an axis."""
    return np.asarray(np.einsum("bmg->bm", of_slot))[..., None]


def _over_servers(of_slot: Floats) -> Floats:
    """Sum of each sub-channel, (B, 1, G)."""
    return np.asarray(np.einsum("bmg->bg", of_slot))[:, None]


def _share_of(of_slot: NDArray[np.bool_]) -> Array:
    """How many of the slots, as share of all, (B,)."""
    return np.asarray(np.count_nonzero(of_slot, axis=1) / of_slot.shape[1])


class Placement:
    """Who is in which slot, in B rounds at once; devices are numbered by their turns.

    Args:
        network: N, M, G and the rest.
        state: a batch of shape (B,).
        order: order[b, i] is the device whose turn is the i-th in round b, (B, N).
    """

    def __init__(self, network: NetworkConfig, state: NetworkState, order: Whole) -> None:
        self.network = network
        self.order = order
        rounds, self.turns = order.shape
        self._rows = np.arange(rounds)
        self._shape = (rounds, network.edge_servers, network.sub_channels)
        share_hz = nominal_bandwidth_hz(network)
        self._is_shared = network.radio.sharing == "shared"
        self._most_w = np.float32(network.radio.power_w[1])
        self._noise_w = np.float32(network.radio.noise_w_hz * share_hz)
        self._read(_in_turns(state, order), share_hz)
        self.slot = np.full(order.shape, LOCAL)  # by turn, (B, N)
        self.power_w = np.zeros(order.shape, np.float32)
        self._holder = np.full((rounds, network.slots), -1)  # by turn, (B, M·G)
        self._settled = np.zeros((rounds, network.slots), dtype=bool)
        # By slot, 0 where there is nobody:
        self._heard_w, self._signal_w, self._data_s, self._local_less_edge_s = np.zeros(
            (4, *self._shape), np.float32
        )
        self._to_come = self.turns

    def _read(self, state: NetworkState, share_hz: float) -> None:
        network = self.network
        alone = Alone.of(network, state)
        self._alone_s, self._own_s = alone.offload_s.astype(np.float32), alone.home_s.astype(np.float32)
        self._unit_s = (state.data_bits * np.log(2) / share_hz).astype(np.float32)
        self._edge_s = alone.edge_s.astype(np.float32)
        self._gain = state.gain.astype(np.float32, copy=False)
        others = self._gain.sum(axis=2, keepdims=True) - self._gain
        self._leak = np.log10(np.maximum(others, 0) / self._gain + np.float32(1e-6))
        self._own_sum_s = self._own_s.sum(axis=1)
        rates = equal_hash_rates(network, (network.devices,))
        self._mining_s = float(mining_of_all_s(network.blocks, rates, network.edge_servers))
        self._own_later_s = np.cumsum(self._own_s[:, ::-1], axis=1)[:, ::-1] / np.arange(self.turns, 0, -1)
        best_s = np.maximum(alone.saved_s.max(axis=(2, 3)), 0)
        with np.errstate(all="ignore"):
            summary = (
                self._own_s.mean(axis=1),
                np.log(self._own_s).std(axis=1),
                best_s.mean(axis=1),
                best_s.std(axis=1),
                np.log(self._unit_s).mean(axis=1),
                self._leak.mean(axis=(1, 2, 3)),
            )
        self._summary = [each.astype(np.float32) for each in summary]

    def place_tentatively(self) -> None:
        """Everybody takes the slot that saves most by estimate, if any does."""
        power_w = np.full(self._shape[0], self._most_w)
        for turn in range(self.turns):
            saved_s = self._worth(turn, self._nominal(turn))
            saved_s[self._holder >= 0] = _NEVER
            best = saved_s.argmax(axis=1)
            self.put(turn, np.where(saved_s[self._rows, best] > 0, best, LOCAL), power_w)

    def begin(self) -> None:
        """Nobody has a slot for good: a new pass of turns begins."""
        self._settled[:] = False
        self._to_come = self.turns

    def clear(self) -> None:
        """Nobody is anywhere."""
        self.slot[:], self._holder[:], self._settled[:] = LOCAL, -1, False
        for of_slot in (self._heard_w, self._signal_w, self._data_s, self._local_less_edge_s):
            of_slot[:] = 0.0

    def offers(self, turn: int, candidates: int = CANDIDATES) -> Offers:
        """Take the device out, and say what it may choose from: the open slots that are cheapest."""
        here = self.slot[:, turn] >= 0
        self._take_out(np.flatnonzero(here), np.full(int(here.sum()), turn))
        self._to_come -= 1
        nominal = self._nominal(turn)
        shared = self._share(turn, nominal)
        worth = self._worth(turn, nominal) - _BUMP_WEIGHT * self._flat(shared.bumped_s)
        worth[self._settled] = _NEVER
        slots = self.network.slots
        if candidates < slots:
            slot = np.argpartition(worth, slots - candidates, axis=1)[:, slots - candidates :]
        else:
            slot = np.broadcast_to(np.arange(slots), worth.shape)
        place = slot + self._rows[:, None] * slots
        shares = _share_of(self._holder >= 0), _share_of(self._settled)
        features = self._features(turn, nominal, shared, place, shares)
        allowed = worth.ravel()[place] > _NEVER / 2
        return Offers(slot, allowed, features, self._outlook(turn, shared, features, allowed, shares))

    def settle(self, turn: int, slot: Whole, power_w: Floats) -> None:
        """The device takes a slot for good, or none (LOCAL); slot and power_w: (B,)."""
        self.put(turn, slot, power_w)
        taken = np.flatnonzero(slot >= 0)
        self._settled[taken, slot[taken]] = True

    def put(self, turn: int, slot: Whole, power_w: Floats) -> None:
        """The device, which must have none, takes a slot tentatively; whoever holds it goes."""
        rows = np.flatnonzero(slot >= 0)
        if not len(rows):
            return
        where = slot[rows]
        holder = self._holder[rows, where]
        self._take_out(rows[holder >= 0], holder[holder >= 0])
        turns = np.full(len(rows), turn)
        self.slot[rows, turn], self._holder[rows, where] = where, turn
        self.power_w[rows, turn] = power_w[rows]
        self._radiate(rows, turns, where, power_w[rows])
        place = (rows, *np.divmod(where, self._shape[2]))
        self._signal_w[place] = self._gain[rows, turn, place[1], place[2]] * power_w[rows]
        self._data_s[place] = self._unit_s[rows, turn]
        self._local_less_edge_s[place] = self._own_s[rows, turn] - self._edge_s[rows, turn, place[1]]

    def by_device(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values by turn, (B, N, ...), as values by device."""
        back = np.argsort(self.order, axis=1).reshape(*self.order.shape, *[1] * (values.ndim - 2))
        return np.take_along_axis(values, back, axis=1)

    def _take_out(self, rows: Whole, turns: Whole) -> None:
        if not len(rows):
            return
        where = self.slot[rows, turns]
        self._radiate(rows, turns, where, -self.power_w[rows, turns])
        self.slot[rows, turns], self._holder[rows, where] = LOCAL, -1
        self._settled[rows, where] = False
        place = (rows, *np.divmod(where, self._shape[2]))
        for of_slot in (self._signal_w, self._data_s, self._local_less_edge_s):
            of_slot[place] = 0.0

    def _radiate(self, rows: Whole, turns: Whole, slot: Whole, power_w: Floats) -> None:
        if not self.network.radio.interference:
            return
        server, channel = np.divmod(slot, self._shape[2])
        heard = self._gain[rows, turns, :, channel] * power_w[:, None]
        heard[np.arange(len(rows)), server] = 0.0
        self._heard_w[rows, :, channel] += heard

    def _nominal(self, turn: int) -> _Nominal:
        np.maximum(self._heard_w, 0, out=self._heard_w)  # what is left of taking out may be below 0
        noise_w = self._noise_w + self._heard_w
        used = self._data_s > 0
        held_snr = np.maximum(self._signal_w / noise_w, _WEAKEST)
        held_log = np.log1p(held_snr)
        held_s = np.minimum(self._data_s / held_log, _LONGEST_S)
        held_slope = held_snr / ((1 + held_snr) * held_log)
        gain = self._gain[:, turn]
        snr = np.maximum(self._most_w * gain / noise_w, _WEAKEST)
        log = np.log1p(snr)
        offload_s = with_loss_s = np.minimum(self._unit_s[:, turn, None, None] / log, _LONGEST_S)
        others = _over_channels(used.astype(np.float32)) - used
        if self._is_shared:
            lost_s = held_s * (1 - held_slope * self._noise_w / noise_w) * used
            lost_s = (_over_channels(lost_s) - lost_s) / np.maximum(others, 1)
            fullness = np.clip((others - 1) / max(self._shape[2] - 2, 1), 0, 1)
            with_loss_s = offload_s + lost_s * fullness
        return _Nominal(
            noise_w=noise_w,
            used=used,
            held_s=held_s,
            held_slope=held_slope,
            others=others,
            snr=snr,
            log=log,
            offload_s=offload_s,
            with_loss_s=with_loss_s,
            loss_s_w=self._lost_by_others(held_s * held_slope / noise_w, gain),
        )

    def _share(self, turn: int, nominal: _Nominal) -> _Shared:
        channels = np.float32(self._shape[2] if self._is_shared else 1)
        held_s, used = nominal.held_s, nominal.used
        root = np.sqrt(held_s)
        roots = _over_channels(root) if self._is_shared else root
        others_root = roots - root
        loss = held_s * nominal.held_slope / nominal.noise_w
        loss = np.where(used, loss * roots / np.maximum(root, np.float32(1e-3)) / channels, 0)
        holder_s = (2 * others_root * root + held_s) / channels
        return _Shared(
            added_s=(2 * others_root * np.sqrt(nominal.offload_s) + nominal.offload_s) / channels,
            loss_s_w=self._lost_by_others(loss, self._gain[:, turn]),
            bumped_s=np.maximum(self._local_less_edge_s - holder_s, 0) * used,
            learning_s=self._learning_s(roots, channels),
        )

    def _lost_by_others(self, loss_s_w: Floats, gain: Floats) -> Floats:
        """Of a slot, from what the devices on its sub-channel lose per watt that they hear."""
        if not self.network.radio.interference:
            return np.zeros_like(loss_s_w)
        lost = loss_s_w * gain
        return np.asarray(np.maximum(_over_servers(lost) - lost, 0))

    def _learning_s(self, roots: Floats, channels: np.float32) -> Floats:
        offload_s = roots**2 / channels
        saved_s = np.einsum("bmg->b", self._local_less_edge_s)  # 0 where there is nobody
        return np.asarray(self._own_sum_s + np.einsum("bmg->b", offload_s) - saved_s)

    def _worth(self, turn: int, nominal: _Nominal) -> Floats:
        """Seconds that each slot saves by estimate, (B, M·G)."""
        harm_s = _HARM_WEIGHT * self._most_w * nominal.loss_s_w
        local_s = (self._own_s[:, turn, None] - self._edge_s[:, turn])[..., None]
        return self._flat(local_s - nominal.with_loss_s - harm_s)

    def _flat(self, of_slot: Floats) -> Floats:
        return np.reshape(of_slot, (self._shape[0], -1))

    def _features(
        self, turn: int, nominal: _Nominal, shared: _Shared, place: Whole, shares: tuple[Array, Array]
    ) -> Floats:
        held, settled = shares  # of the slots
        channels = self._shape[2]
        features = np.empty((*place.shape, len(FEATURES)), np.float32)
        own_s = self._own_s[:, turn, None]
        of_server = place // channels
        edge_s = self._edge_s[:, turn].ravel()[of_server]
        offload_s, loss = nominal.offload_s.ravel()[place], shared.loss_s_w.ravel()[place]
        added_s, slope = shared.added_s.ravel()[place], nominal.power_slope.ravel()[place]
        harm_s = self._most_w * loss
        nominal_s = nominal.with_loss_s.ravel()[place]
        is_held = self._holder.ravel()[place] >= 0
        tiny = np.float32(1e-4)
        columns = (
            own_s,
            np.log(own_s),
            np.log(offload_s),
            np.log(self._alone_s[:, turn].ravel()[place]),
            5 * edge_s,
            np.log10(harm_s + tiny),
            added_s,
            np.clip(own_s - edge_s - added_s - harm_s, -4, 4),
            nominal.others.ravel()[place] / channels,
            self._to_come / self.turns,
            1 - settled[:, None],
            np.minimum(shared.bumped_s.ravel()[place], 4),
            self._leak[:, turn].ravel()[place],
            np.clip(np.log10(offload_s * slope / (loss + tiny)), -3, 3),
            slope,
            is_held,
            held[:, None],
            np.clip(own_s - edge_s - nominal_s - harm_s, -4, 4),
        )
        for i, column in enumerate(columns):
            features[..., i] = column
        np.nan_to_num(features, copy=False)  # of links that float32 does not know, such as 1e-50
        return np.clip(features, -_LARGEST, _LARGEST, out=features)

    def _outlook(
        self,
        turn: int,
        shared: _Shared,
        features: Floats,
        allowed: NDArray[np.bool_],
        shares: tuple[Array, Array],
    ) -> Floats:
        held, settled = shares
        saved_s = np.where(allowed, features[..., FEATURES.index("saved_s")], 0).max(axis=1)
        mean_own, std_own, mean_best, std_best, mean_data, mean_leak = self._summary
        columns = (
            utility(self.network, shared.learning_s.astype(np.float64) + self._mining_s),
            1 - (self._to_come + 1) / self.turns,
            held,
            settled,
            self._own_s[:, turn],
            saved_s,
            mean_own,
            self._own_later_s[:, turn],
            std_own,
            mean_best,
            std_best,
            mean_data,
            mean_leak,
        )
        outlook = np.empty((self._shape[0], len(OUTLOOK)), np.float32)
        for i, column in enumerate(columns):
            outlook[:, i] = column
        return np.clip(outlook, -_LARGEST, _LARGEST, out=outlook)
