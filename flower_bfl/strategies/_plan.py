"""What the controller decides before a round, made safe, and what it costs."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_bfl.controller.base import Controller, for_devices
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    LOCAL,
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Price,
    price,
    project,
    violations,
)
from flower_bfl.strategies._fleet import Reported

_STREAM = 20  # of random numbers, apart from those of the graph, the data and the race
_NO_LINK = 1e-25  # power gain

Settings = dict[str, bool | int | float]


@dataclass(frozen=True, eq=False)
class Plan:
    """Who does what in a round, with what; rows are those of `devices`."""

    network: NetworkConfig  # of those who take part
    devices: tuple[int, ...]  # ascending
    state: NetworkState
    decision: Decision
    price: Price
    fallback: str = ""  # why this is not what the controller decided
    decide_seconds: float = 0.0

    @property
    def offloading(self) -> dict[int, int]:
        """Edge server of each device that is to send its data."""
        servers = self.decision.slot // self.network.sub_channels
        return {self.devices[row]: int(servers[row]) for row in np.flatnonzero(self.decision.offloads)}

    @cached_property
    def homes(self) -> dict[int, int]:
        """Edge server that each device sends its data to, or its gradient, by the best channel."""
        gain = self.state.gain.reshape(len(self.devices), self.network.edge_servers, -1)
        best = gain.max(axis=-1).argmax(axis=-1)
        return dict(zip(self.devices, best.tolist(), strict=True)) | self.offloading

    @property
    def hash_rates(self) -> dict[int, float]:
        """Ψ of each device."""
        return dict(zip(self.devices, self.decision.hash_rate.tolist(), strict=True))

    def settings(self) -> dict[int, Settings]:
        """What each device has to know of the decision, for the config of its message."""
        return {device: self._settings(row, device) for row, device in enumerate(self.devices)}

    def _settings(self, row: int, device: int) -> Settings:
        decision = self.decision
        common = {"edge-server": self.homes[device], "hash-rate": float(decision.hash_rate[row])}
        if not decision.offloads[row]:
            return {"offload": False, "cpu-hz": float(decision.cpu_hz[row])} | common
        return {
            "offload": True,
            "sub-channel": int(decision.slot[row] % self.network.sub_channels),
            "power-w": float(decision.power_w[row]),
            "bandwidth-hz": float(decision.bandwidth_hz[row]),
        } | common

    def latency_s(self) -> dict[str, float]:
        """Seconds by phase, summed over devices as in (28a), the round's total and its slowest path."""
        priced = self.price
        phases = {name: getattr(priced, f"{name}_s") for name in ("offload", "edge", "local", "upload")}
        return {name: float(value.sum()) for name, value in phases.items()} | {
            "consensus": float(priced.consensus_s),
            "mining": float(priced.mining_total_s),
            "total": float(priced.total_s),
            "makespan": float(priced.makespan_s),
        }

    def energy_j(self) -> dict[str, float]:
        """Joules of all devices, by phase."""
        return {
            name: float(getattr(self.price, f"{name}_j").sum())
            for name in ("offload", "local", "upload", "mining")
        }

    def keeping(self, devices: Collection[int]) -> "Plan":
        """The plan with some devices training themselves that were to offload."""
        if not devices:
            return self
        slot = np.where(np.isin(self.devices, list(devices)), LOCAL, self.decision.slot)
        decision = project(self.network, self.state, replace(self.decision, slot=slot))
        return replace(self, decision=decision, price=price(self.network, self.state, decision))


class Planner:
    """The edge network over the rounds of a run, and the controller that decides in it.

    Devices may be fewer than the network's: the state has those that take part, and so has what the
    controller sees, less those whose data stay where they are. What it decides is checked, and if it fails or
    breaks a limit the nearest feasible decision is taken, or everybody trains alone.
    """

    def __init__(self, controller: Controller, network: NetworkConfig, seed: int) -> None:
        self.network = network
        self._controller = controller
        self._process = NetworkProcess(network, np.random.default_rng([seed, _STREAM]))
        self._spent_j = np.zeros(network.devices)
        self._rounds = 0

    def places(self) -> dict[str, object]:
        """Where edge servers and devices are, metres from the centre; devices stay there."""
        return {
            "area_m": self.network.radio.area_m,
            "edge_servers_m": self.network.places_m.round(1).tolist(),
            "devices_m": self._process.positions_m.round(1).tolist(),
        }

    def memory(self) -> dict[str, NDArray[Any]]:
        """What is needed to go on with the next round; the random numbers are the seed's."""
        slack_j = self._process.state.energy_slack_j
        return {"rounds": np.array(self._rounds), "spent-j": self._spent_j, "energy-slack-j": slack_j}

    def restore(self, memory: Mapping[str, NDArray[Any]], server_round: int) -> None:
        """Go on from what `memory` gave after a round; raises ValueError or KeyError for anything else."""
        rounds, spent_j, slack_j = int(memory["rounds"]), memory["spent-j"], memory["energy-slack-j"]
        wanted = (self.network.devices,)
        if not 0 <= rounds <= server_round or spent_j.shape != wanted or slack_j.shape != wanted:
            raise ValueError(f"{rounds} rounds, {spent_j.shape} and {slack_j.shape} devices")
        for _ in range(rounds - 1):
            self._process.advance()
        self._process.state = replace(self._process.state, energy_slack_j=slack_j)
        self._rounds, self._spent_j = rounds, spent_j

    def decide(
        self,
        devices: Sequence[int],
        reported: Mapping[int, Reported],
        servers: Collection[int],
        most_bytes: int,
    ) -> Plan:
        """A plan for the devices of a round, indices in the network; `servers` are those that can train."""
        if self._rounds:
            self._process.advance(self._spent_j)
        self._rounds += 1
        devices = tuple(sorted(devices))
        network = replace(self.network, devices=len(devices))
        state = self._state(devices, reported)
        free = [
            row
            for row, device in enumerate(devices)
            if servers
            and device in reported
            and reported[device].told.may_offload
            and reported[device].data_bytes <= most_bytes
        ]
        began = perf_counter()
        decision, fallback = self._safe(network, devices, state, free, servers)
        seconds = perf_counter() - began
        return Plan(network, devices, state, decision, price(network, state, decision), fallback, seconds)

    def carried_out(self, plan: Plan, kept: Collection[int]) -> Plan:
        """The plan with some devices training themselves after all; what it takes of energy is noted."""
        plan = plan.keeping(kept)
        self._spent_j = np.zeros(self.network.devices)
        self._spent_j[list(plan.devices)] = plan.price.learning_j
        return plan

    def _state(self, devices: tuple[int, ...], reported: Mapping[int, Reported]) -> NetworkState:
        """What the network draws for these devices, and what they say instead."""
        rows = list(devices)
        values: dict[str, NDArray[Any]] = {
            each.name: getattr(self._process.state, each.name)[rows] for each in fields(NetworkState)
        }
        for row, device in enumerate(devices):
            if device not in reported:
                continue
            values["data_bits"][row] = 8 * reported[device].data_bytes
            told = reported[device].told
            for name in ("work_cycles", "cpu_hz", "energy_slack_j"):
                if getattr(told, name) is not None:
                    values[name][row] = getattr(told, name)
            if told.gain_db is not None:
                values["gain"][row] = 10 ** (np.asarray(told.gain_db)[:, None] / 10)
        return NetworkState(**values)

    def _safe(
        self,
        network: NetworkConfig,
        devices: Sequence[int],
        state: NetworkState,
        free: Sequence[int],
        servers: Collection[int],
    ) -> tuple[Decision, str]:
        """A feasible decision, and why it is not the controller's; `free` are rows that may offload."""
        if not free:
            return _all_local(network, state), ""
        away = np.setdiff1d(np.arange(network.edge_servers), list(servers))
        seen = state.permuted(free)
        gain = seen.gain.copy()
        gain[:, away] = _NO_LINK
        seen, fewer = replace(seen, gain=gain), replace(network, devices=len(free))
        try:
            own = for_devices(self._controller, fewer.devices).decide(deepcopy(seen))
            broken = _broken(fewer, seen, own, away, [devices[row] for row in free])
            if broken:
                own = project(fewer, seen, own)
        except Exception as error:  # whatever somebody's controller makes of a state
            return _all_local(network, state), f"the controller failed: {error!r:.200}"
        if len(free) == network.devices and not away.size:
            return own, broken
        return _for_everybody(network, state, free, away, own), broken


def _broken(
    network: NetworkConfig,
    seen: NetworkState,
    own: object,
    away: NDArray[np.intp],
    devices: Sequence[int],
) -> str:
    """The first rule that a controller's decision breaks, if any; raises ConfigError if it is none."""
    if not isinstance(own, Decision):
        raise ConfigError(f"`decide` must return a Decision, got {own!r:.80}")
    rule = "the controller's decision was not feasible"
    found = violations(network, seen, own)
    lost = np.isin(own.slot // network.sub_channels, away)
    if lost.any():
        row = int(np.flatnonzero(lost)[0])
        server = own.slot[row] // network.sub_channels
        return f"{rule}: edge server {server} is not there, got device {devices[row]}'s data for it"
    if not found:
        return ""
    told, shown = f"{rule}: {found[0]}", found[0].device
    if shown is None or shown == devices[shown]:
        return told
    return f"{told}; its device {shown} is device {devices[shown]}"


def _all_local(network: NetworkConfig, state: NetworkState) -> Decision:
    """Everybody trains alone with all the CPU there is, and equal hash rates."""
    nothing = np.zeros(network.devices)
    hash_rate = nothing + network.blocks.total_hash_rate / network.devices
    return project(
        network, state, Decision(np.full(network.devices, LOCAL), nothing, nothing, nothing, hash_rate)
    )


def _for_everybody(
    network: NetworkConfig,
    state: NetworkState,
    free: Sequence[int],
    away: NDArray[np.intp],
    own: Decision,
) -> Decision:
    """The decision for some devices, with the others training alone; nobody offloads to who is away."""
    alone = _all_local(network, state)
    decided = {each.name: getattr(alone, each.name).copy() for each in fields(Decision)}
    # the controller gave its devices the whole budget: all get as much as these on average, then it is cut
    decided["hash_rate"][:] = own.hash_rate.mean()
    for name, values in decided.items():
        values[list(free)] = getattr(own, name)
    decided["slot"][np.isin(decided["slot"] // network.sub_channels, away)] = LOCAL
    return project(network, state, Decision(**decided))
