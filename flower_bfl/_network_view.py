"""One round of an edge network on a terminal: tables that fit 80 columns, and JSON for programs."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flower_bfl._views import CONTROLLERS, count, finite, size_of
from flower_bfl.controller import AssignmentController, NearOptimalController, Solution
from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    Decision,
    NetworkConfig,
    NetworkProcess,
    NetworkState,
    Price,
    Violation,
    price,
    violations,
)
from flower_bfl.network.settings import Array

_OVER_DEVICES = {
    "sum": "sum over devices",
    "fastest": "the fastest device",
    "race": "all devices race for one block",
}


@dataclass(frozen=True)
class PricedRound:
    """A round of a network drawn at random, what a controller decided, and what it costs."""

    network: NetworkConfig
    controller: str
    seed: int
    positions_m: Array  # of the devices, from the centre, (N, 2)
    state: NetworkState
    decision: Decision
    price: Price
    solution: Solution | None = None  # with its lower bound, if the controller finds one

    @property
    def title(self) -> str:
        """Which round it is, in a line."""
        network = self.network
        return f"{size_of(network)}, {self.controller} controller, seed {self.seed}"

    @property
    def gap(self) -> float | None:
        """By how much learning may at most take longer than it has to, as a share of that."""
        if self.solution is None or not self.solution.learning_bound_s > 0:
            return None
        return self.solution.gap

    @property
    def broken(self) -> list[Violation]:
        """The limits that the decision breaks."""
        return violations(self.network, self.state, self.decision)

    def devices_of(self, server: int) -> list[int]:
        """Who offloads to an edge server."""
        return np.flatnonzero(self.decision.slot // self.network.sub_channels == server).tolist()

    def place_of(self, device: int) -> tuple[int, int] | None:
        """Edge server and sub-channel to which a device offloads; None if it trains itself."""
        slot = int(self.decision.slot[device])
        return divmod(slot, self.network.sub_channels) if slot >= 0 else None


def read_network(path: Path | None, devices: int | None = None, servers: int | None = None) -> NetworkConfig:
    """The network in a TOML file, or that of Table IV, perhaps with another number of devices or servers.

    Raises:
        ConfigError: the file cannot be read or breaks a rule, or does so with these numbers.
        InfeasibleError: the hash budget is less than what the devices take at the least.
    """
    network = NetworkConfig() if path is None else NetworkConfig.from_toml(path)
    network = network if devices is None else replace(network, devices=devices)
    return network if servers is None else replace(network, edge_servers=servers)


def price_round(network: NetworkConfig, controller: str, seed: int) -> PricedRound:
    """Draw a round, have it decided and price it; raises ConfigError if there is no such controller."""
    if controller not in CONTROLLERS:
        raise ConfigError(f"`--controller` must be one of {', '.join(CONTROLLERS)}, got {controller!r}")
    rng = np.random.default_rng(seed)
    process = NetworkProcess(network, rng)
    decider = CONTROLLERS[controller](network, rng)
    state, solution = process.state, None
    if isinstance(decider, AssignmentController | NearOptimalController):
        solution = decider.solve(state)
    decision = decider.decide(state) if solution is None else solution.decision
    priced = price(network, state, decision)
    return PricedRound(network, controller, seed, process.positions_m, state, decision, priced, solution)


def print_round(priced: PricedRound, *, as_json: bool) -> None:
    """Devices, edge servers and phases as tables, or all there is as one JSON object."""
    if as_json:
        Console().print_json(data=finite(_as_json(priced)), allow_nan=False)
        return
    console = Console(highlight=False)
    console.print(f"[bold]{priced.title}[/bold]", soft_wrap=True)
    for table in (_devices_table(priced), _servers_table(priced), _phases_table(priced)):
        console.print()
        console.print(table)
    for one in priced.broken:
        console.print(f"breaks {one}", style="red", soft_wrap=True)


# --- tables -------------------------------------------------------------------------------------------------


def _devices_table(priced: PricedRound) -> Table:
    cost = priced.price
    table = _table("dev", "where", "rate\nMbit/s", "offload\ns", "edge\ns", "local\ns", "upload\ns")
    table.add_column("mining\ns", justify="right", no_wrap=True)
    table.add_column("learning,\nJ of limit", justify="right", no_wrap=True)
    phases = (cost.rate_bps / 1e6, cost.offload_s, cost.edge_s, cost.local_s, cost.upload_s, cost.mining_s)
    for device in range(priced.network.devices):
        place = priced.place_of(device)
        spent_j, slack_j = cost.learning_j[device], priced.state.energy_slack_j[device]
        table.add_row(
            str(device),
            "local" if place is None else "server {}, ch {}".format(*place),
            *(_short(each[device]) for each in phases),
            f"{_energy(spent_j)} of {_energy(slack_j):>5}",
        )
    return table


def _servers_table(priced: PricedRound) -> Table:
    network, cost = priced.network, priced.price
    table = _table("server", "at x, y\nm", "used\nMHz", "CPU\nGHz", "data in\ns", "edge work\ns", "learnt\ns")
    table.add_column("devices", overflow="fold")
    for server, (x_m, y_m) in enumerate(network.places_m):
        who = priced.devices_of(server)
        arrived_s, edge_s = cost.offload_s[who].max(initial=0.0), cost.server_edge_s[server]
        table.add_row(
            str(server),
            f"{x_m:.0f}, {y_m:.0f}",
            _short(priced.decision.bandwidth_hz[who].sum() / 1e6),
            f"{network.edge_speeds_hz[server] / 1e9:.3g}",
            *(_short(seconds) for seconds in (arrived_s, edge_s, arrived_s + edge_s)),
            ", ".join(map(str, who)) or "none",
        )
    return table


def _phases_table(priced: PricedRound) -> Table:
    network, cost = priced.network, priced.price
    slowest = network.objective == "makespan"
    offloading = int(priced.decision.offloads.sum())
    own = network.devices - offloading
    table = _table("phase", "seconds", "joules")
    table.add_column("")
    rows: list[tuple[str, Any, Any, str]] = [
        ("offload", cost.offload_s.sum(), cost.offload_j.sum(), f"data of {count(offloading, 'device')}"),
        ("edge work", cost.edge_s.sum(), 0, "on these data"),
        ("local work", cost.local_s.sum(), cost.local_j.sum(), f"{count(own, 'device')} on their own data"),
        ("upload", cost.upload_s.sum(), cost.upload_j.sum(), "their models; not in the limit of energy"),
        (
            "learning",
            cost.learning_s,
            cost.learning_j.sum(),
            "the slowest path" if slowest else "sum of these",
        ),
        ("consensus", cost.consensus_s, 0, f"{count(network.p2p_rounds, 'step')} between the edge servers"),
        ("mining", cost.mining_total_s, cost.mining_j.sum(), _OVER_DEVICES[network.blocks.total]),
    ]
    for name, seconds, joules, note in rows:
        table.add_row(name, _short(seconds), f"{joules:,.2f}" if joules else "-", f"[dim]{note}[/dim]")
    total = f"[bold]{_short(cost.total_s)}[/bold]"
    table.add_row("[bold]total[/bold]", total, "", "[dim]learning, consensus and mining: the objective[/dim]")
    if priced.solution is not None and priced.gap is not None:
        note = f"[dim]no total is less; gap of learning {priced.gap:.2%}[/dim]"
        table.add_row("lower bound", _short(priced.solution.lower_bound_s), "", note)
    table.add_row(
        "makespan", _short(cost.makespan_s), "", "[dim]the slowest path, consensus and mining[/dim]"
    )
    limit = f"[dim]exp(1 - total / {network.latency_limit_s:g} s) - 1[/dim]"
    table.add_row("utility", f"{float(cost.utility):.3f}", "", limit)
    return table


def _table(*columns: str) -> Table:
    """Columns of numbers; one that begins with a word of another kind stands to the left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        left = column in ("where", "phase")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    return table


def _short(value: Any) -> str:
    """Few digits; a dash for 0, which is to have no part."""
    number = float(value)
    if number == 0:
        return "-"
    digits = ".3f" if 5e-4 <= number < 100 else ".1f" if 100 <= number < 1e5 else ".2g"
    return format(number, digits)


def _energy(joules: float) -> str:
    return format(joules, ".2f" if joules < 100 else ".3g")


# --- JSON ---------------------------------------------------------------------------------------------------


def _as_json(priced: PricedRound) -> dict[str, Any]:
    network, cost = priced.network, priced.price
    by_phase = (
        "offload_s",
        "edge_s",
        "local_s",
        "upload_s",
        "offload_j",
        "local_j",
        "upload_j",
        "learning_j",
    )
    return {
        "settings": network.to_dict(),
        "controller": priced.controller,
        "seed": priced.seed,
        "devices": [_device_as_json(priced, device) for device in range(network.devices)],
        "edge_servers": [_server_as_json(priced, server) for server in range(network.edge_servers)],
        "totals": {
            **{name: float(getattr(cost, name).sum()) for name in by_phase},
            "mining_j": float(cost.mining_j.sum()),
            "learning_s": float(cost.learning_s),
            "consensus_s": float(cost.consensus_s),
            "mining_s": float(cost.mining_total_s),
            "total_s": float(cost.total_s),
            "makespan_s": float(cost.makespan_s),
        },
        "utility": float(cost.utility),
        "lower_bound_s": None if priced.solution is None else priced.solution.lower_bound_s,
        "gap": priced.gap,
        "violations": [str(one) for one in priced.broken],
    }


def _device_as_json(priced: PricedRound, device: int) -> dict[str, Any]:
    place = priced.place_of(device)

    def row(owner: Any) -> dict[str, Any]:
        values = {each.name: getattr(owner, each.name) for each in fields(owner)}
        by_device = (name for name in values if values[name].ndim == 1 and not name.startswith("server"))
        return {name: values[name][device].item() for name in by_device}

    return {
        "device": device,
        "position_m": priced.positions_m[device].tolist(),
        "server": None if place is None else place[0],
        "sub_channel": None if place is None else place[1],
        "state": row(priced.state),
        "decision": row(priced.decision),
        "price": row(priced.price) | {"learning_j": float(priced.price.learning_j[device])},
    }


def _server_as_json(priced: PricedRound, server: int) -> dict[str, Any]:
    who = priced.devices_of(server)
    return {
        "server": server,
        "position_m": priced.network.places_m[server].tolist(),
        "devices": who,
        "bandwidth_hz": float(priced.decision.bandwidth_hz[who].sum()),
        "offload_s": float(priced.price.offload_s[who].max(initial=0.0)),
        "edge_s": float(priced.price.server_edge_s[server]),
    }
