"""Policies that choose for each device in turn where it trains and with what: numpy only, so that deciding
needs no PyTorch. `flower_bfl.controller.actors` has the same weights under the same names.

A choice is 0 for training at home, or 1 + k for the k-th slot on offer; its parameters are those of
`flower_bfl.controller.encoding.PARAMETERS`, before they are clipped to [0, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from flower_bfl.controller.encoding import PARAMETERS, observation_shape, observe
from flower_bfl.controller.placement import (
    CANDIDATES,
    FEATURES,
    OUTLOOK,
    Floats,
    Placement,
    Whole,
    turn_order,
)
from flower_bfl.errors import ConfigError
from flower_bfl.network import LOCAL, NetworkConfig, NetworkState
from flower_bfl.network.settings import Array

Weights = Mapping[str, NDArray[Any]]
Architecture = Literal["shared", "paper"]
Decoding = Literal["ordered", "sorted", "assignment"]

NEVER = -1e9  # score of a choice that is not allowed
_ORDER_NOISE_S = 0.1  # while learning, turns are not always in the same order
_ASSIGNMENTS = 5  # that are tried
# An assignment moves everybody at once: it scores as in a late turn, with nobody in the way.
_LATE_TURN = {"to_come": 0.0, "open": 0.2, "bumped_s": 0.0, "is_held": 0.0}
_INERTIA = 0.5  # of scores from one assignment to the next, without which they swing to and fro


@dataclass(frozen=True)
class Play:
    """What a policy saw and did in B rounds: its turns, for learning, and what follows for each device."""

    inputs: dict[str, NDArray[Any]]  # by turn: what the network that is trained is given, (B, N, ...)
    outlook: Floats  # what the critic is given, (B, turns, any)
    choice: Whole  # by turn, (B, N)
    drawn: Floats  # parameters by turn, (B, N, 4)
    slot: Whole  # by device, LOCAL = -1 or a slot, (B, N)
    parameters: Array  # by device, in [0, 1], (B, N, 4)


class Policy(Protocol):
    """Plays rounds, at random to learn or as well as it can."""

    architecture: Architecture
    weights: Weights

    def play(
        self,
        network: NetworkConfig,
        state: NetworkState,
        rng: np.random.Generator | None = None,
        decoding: Decoding = "sorted",
    ) -> Play:
        """Rounds of a batch (B,): drawn with `rng`, else the likeliest choices and mean parameters."""

    def proposals(self, network: NetworkConfig, state: NetworkState) -> list[tuple[Whole, Array]]:
        """Slots (B, N) and parameters (B, N, 4) by assignment of all devices at once, to be compared."""


def make_policy(architecture: str, weights: Weights) -> Policy:
    """The policy with these weights; raises ConfigError if they are not of that architecture."""
    if architecture not in get_args(Architecture):
        raise ConfigError(f"`architecture` must be one of {get_args(Architecture)}, got {architecture!r}")
    kind = SharedPolicy if architecture == "shared" else PaperPolicy
    wrong = sorted(set(kind.NAMES).symmetric_difference(weights))
    if wrong:
        raise ConfigError(f"`weights` must be {sorted(kind.NAMES)} for {architecture!r}, not so {wrong}")
    return kind(weights)


def _layers(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias"))


def _perceptron(weights: Weights, name: str, x: NDArray[Any]) -> NDArray[Any]:
    """Two hidden layers with tanh; x: (..., inputs). Products are as exact as the weights.

    tanh is always that of float32, which is four times as fast.
    """
    x = x.astype(weights[f"{name}.0.weight"].dtype, copy=False)
    for layer in (0, 2, 4):
        x = x @ weights[f"{name}.{layer}.weight"].T
        x += weights[f"{name}.{layer}.bias"]
        if layer < 4:
            x = np.tanh(x.astype(np.float32, copy=False)).astype(x.dtype, copy=False)
    return x


def _pick(score: NDArray[Any], uniform: Floats | None) -> Whole:
    """A choice a row of (B, C): drawn by softmax(score) with uniform numbers (B,), or the best."""
    if uniform is None:
        return np.asarray(score.argmax(axis=1))
    chance = np.exp(score - score.max(axis=1, keepdims=True)).cumsum(axis=1)
    drawn = (chance <= uniform[:, None] * chance[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(drawn, score.shape[1] - 1))


def _watts(network: NetworkConfig, power: NDArray[Any]) -> Floats:
    least, most = network.radio.power_dbm
    dbm = least + (most - least) * np.clip(power, 0, 1)
    return np.asarray(10 ** (dbm / 10 - 3), dtype=np.float32)


def _assigned(score: Array) -> Whole:
    """The slots of the best matching; score: (N, M·G), what is below 0 is worse than none; returns (N,)."""
    slot = np.full(len(score), LOCAL)
    device, place = linear_sum_assignment(-np.maximum(score, 0))
    good = score[device, place] > 0
    slot[device[good]] = place[good]
    return slot


class SharedPolicy:
    """One small network scores (device, slot) pairs one by one: any N, M and G, and no order among devices.

    What it is given is in `placement.FEATURES`. Training at home scores 0; a pair's power and bandwidth come
    with its score; CPU and hash rate are two numbers for all.
    """

    NAMES = (*_layers("pair"), "own", "log_std")
    architecture: Architecture = "shared"

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        inputs = weights["pair.0.weight"].shape[-1]
        if inputs != len(FEATURES):
            raise ConfigError(f"`weights` must be for {len(FEATURES)} features of a pair, got {inputs}")

    def play(
        self,
        network: NetworkConfig,
        state: NetworkState,
        rng: np.random.Generator | None = None,
        decoding: Decoding = "sorted",
    ) -> Play:
        """As `Policy.play`; "ordered" takes devices by their numbers, "sorted" by what they can save."""
        placement = Placement(network, state, _order(network, state, rng, decoding))
        placement.place_tentatively()
        return self._pass(placement, rng)

    def proposals(self, network: NetworkConfig, state: NetworkState) -> list[tuple[Whole, Array]]:
        """As `Policy.proposals`: a pass of turns, then assignments by the scores, a pass after each."""
        placement = Placement(network, state, turn_order(network, state))
        placement.place_tentatively()
        played = [self._pass(placement, None)]
        score = np.zeros(())
        for attempt in range(_ASSIGNMENTS):
            fresh = self._score_all(placement)
            score = fresh if attempt == 0 else _INERTIA * score + (1 - _INERTIA) * fresh
            self._reassign(placement, np.stack([_assigned(one) for one in score]))
            played.append(self._pass(placement, None))
        return [(one.slot, one.parameters) for one in played]

    def _pass(self, placement: Placement, rng: np.random.Generator | None) -> Play:
        rounds, devices = placement.order.shape
        candidates = min(CANDIDATES, placement.network.slots)
        features = np.zeros((rounds, devices, candidates, len(FEATURES)), np.float32)
        allowed = np.zeros((rounds, devices, candidates), dtype=bool)
        outlook = np.zeros((rounds, devices, len(OUTLOOK)), np.float32)
        choice = np.zeros((rounds, devices), np.int64)
        drawn = np.zeros((rounds, devices, len(PARAMETERS)), np.float32)
        noise = np.zeros_like(drawn)
        uniform: Floats | None = None
        if rng is not None:
            noise = np.exp(self.weights["log_std"]) * rng.standard_normal(drawn.shape, dtype=np.float32)
            uniform = rng.random(choice.shape, dtype=np.float32)
        rows = np.arange(rounds)
        placement.begin()
        for turn in range(devices):
            offers = placement.offers(turn, candidates)
            made = _perceptron(self.weights, "pair", offers.features)
            score = np.zeros((rounds, 1 + candidates), made.dtype)
            score[:, 1:] = np.where(offers.allowed, made[..., 0], NEVER)
            chosen = _pick(score, None if uniform is None else uniform[:, turn])
            at = np.maximum(chosen - 1, 0)
            drawn[:, turn, :2] = made[rows, at, 1:]
            drawn[:, turn, 2:] = self.weights["own"]
            drawn[:, turn] += noise[:, turn]
            slot = np.where(chosen > 0, offers.slot[rows, at], LOCAL)
            placement.settle(turn, slot, _watts(placement.network, drawn[:, turn, 0]))
            features[:, turn], allowed[:, turn] = offers.features, offers.allowed
            outlook[:, turn], choice[:, turn] = offers.outlook, chosen
        return Play(
            inputs={"features": features, "allowed": allowed},
            outlook=outlook,
            choice=choice,
            drawn=drawn,
            slot=placement.by_device(placement.slot).astype(np.int64),
            parameters=np.clip(placement.by_device(drawn), 0, 1).astype(np.float64),
        )

    def _score_all(self, placement: Placement) -> Array:
        """Of all pairs, each with everybody else where they are; (B, N, M·G)."""
        rounds, devices = placement.order.shape
        slots = placement.network.slots
        score = np.full((rounds, devices, slots), NEVER)
        placement.begin()
        for turn in range(devices):
            slot, power_w = placement.slot[:, turn].copy(), placement.power_w[:, turn].copy()
            offers = placement.offers(turn, slots)
            features = offers.features.copy()
            for name, value in _LATE_TURN.items():
                features[..., FEATURES.index(name)] = value
            made = _perceptron(self.weights, "pair", features)[..., 0]
            np.put_along_axis(score[:, turn], offers.slot, made, axis=1)
            placement.put(turn, slot, power_w)
        return score

    def _reassign(self, placement: Placement, slot: Whole) -> None:
        rounds, devices = placement.order.shape
        power_w = np.full(rounds, placement.network.radio.power_w[1], np.float32)
        placement.clear()
        for turn in range(devices):
            placement.put(turn, slot[:, turn], power_w)


class PaperPolicy:
    """The paper's two networks, {64, 32} for choices and {128, 64} for parameters, of all devices at once.

    They are given the whole observation, so they know one N, M and G. Slots that are taken are masked.
    """

    NAMES = (*_layers("choose"), *_layers("allocate"), "log_std")
    architecture: Architecture = "paper"

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def play(
        self,
        network: NetworkConfig,
        state: NetworkState,
        rng: np.random.Generator | None = None,
        decoding: Decoding = "ordered",
    ) -> Play:
        """As `Policy.play`; "sorted" begins with who is surest to gain. Learning is always "ordered"."""
        seen = self._observe(network, state)
        score, mean = self._score(network, seen), self._mean(network, seen)
        rounds, devices = score.shape[:2]
        order = np.broadcast_to(np.arange(devices), (rounds, devices))
        if rng is None and decoding == "sorted":
            order = np.argsort(score[..., 0] - score[..., 1:].max(axis=-1), axis=1, kind="stable")
        noise: Any = 0.0
        uniform: Floats | None = None
        if rng is not None:
            noise = np.exp(self.weights["log_std"]) * rng.standard_normal(mean.shape, dtype=np.float32)
            uniform = rng.random((rounds, devices), dtype=np.float32)
        choice = np.zeros((rounds, devices), np.int64)
        allowed = np.ones(score.shape, dtype=bool)
        free = np.ones((rounds, score.shape[-1]), dtype=bool)
        rows = np.arange(rounds)
        for turn in range(devices):
            device = order[:, turn]
            allowed[rows, device] = free
            open_score = np.where(free, score[rows, device], NEVER)
            chosen = _pick(open_score, None if uniform is None else uniform[:, turn])
            choice[rows, device] = chosen
            free[rows, chosen] = chosen == 0
        drawn = (mean + noise).astype(np.float32)
        return Play(
            inputs={"seen": seen, "allowed": allowed},
            outlook=seen[:, None],
            choice=choice,
            drawn=drawn,
            slot=choice - 1,
            parameters=np.clip(drawn, 0, 1).astype(np.float64),
        )

    def proposals(self, network: NetworkConfig, state: NetworkState) -> list[tuple[Whole, Array]]:
        """As `Policy.proposals`: the turns in order of gain, and the best matching by the scores."""
        first = self.play(network, state, None, "sorted")
        score = self._score(network, self._observe(network, state))
        slot = np.stack([_assigned(one) for one in score[..., 1:] - score[..., :1]])
        return [(first.slot, first.parameters), (slot, first.parameters)]

    def _observe(self, network: NetworkConfig, state: NetworkState) -> Floats:
        rows, columns = observation_shape(network)
        # Both, for N·columns may be the same of other N and M·G.
        trained = self.weights["choose.0.weight"].shape[-1], len(self.weights["choose.4.bias"])
        asked = rows * columns, rows * (1 + network.slots)
        if asked != trained:
            raise ConfigError(
                f"`network` must have as many devices and slots as the policy was trained for, "
                f"{trained} numbers in an observation and scores, got {asked}"
            )
        return observe(network, state).reshape(*state.batch, rows * columns)

    def _score(self, network: NetworkConfig, seen: Floats) -> NDArray[Any]:
        made = _perceptron(self.weights, "choose", seen)
        return made.reshape(len(seen), network.devices, 1 + network.slots)

    def _mean(self, network: NetworkConfig, seen: Floats) -> NDArray[Any]:
        made = _perceptron(self.weights, "allocate", seen)
        return np.reshape((1 + np.tanh(made)) / 2, (len(seen), network.devices, len(PARAMETERS)))


def _order(
    network: NetworkConfig, state: NetworkState, rng: np.random.Generator | None, decoding: Decoding
) -> Whole:
    if decoding == "ordered":
        return np.broadcast_to(np.arange(network.devices), state.data_bits.shape).copy()
    return turn_order(network, state, rng, _ORDER_NOISE_S)
