"""What a decision costs: latency and energy by device and phase, (20)-(27), and the utility (31)."""

from dataclasses import dataclass

import numpy as np

from flower_bfl.errors import ConfigError
from flower_bfl.network.channel import by_slot, in_each_row, occupants, offload_rate_bps, upload_rate_bps
from flower_bfl.network.settings import Array, Blocks, NetworkConfig
from flower_bfl.network.state import Decision, NetworkState, check_fit


@dataclass(frozen=True)
class Price:
    """A round's seconds and joules by device and phase; 0 for a device without part in a phase."""

    rate_bps: Array  # R_n (20), (*batch, N)
    offload_s: Array  # T_off (20), (*batch, N)
    edge_s: Array  # the device's share of T_exe (21), (*batch, N)
    local_s: Array  # T_loc (22), (*batch, N)
    upload_s: Array  # T_up (23), (*batch, N)
    mining_s: Array  # T_n (27), (*batch, N)
    offload_j: Array  # p·T_off, (*batch, N)
    local_j: Array  # κ·f²·C, (*batch, N)
    upload_j: Array  # p_max·T_up; like the paper, (28h) leaves it out; (*batch, N)
    mining_j: Array  # Ξ·ħ, (*batch, N)
    server_edge_s: Array  # T_exe (21), (*batch, M)
    path_s: Array  # until its data are learnt, by itself with the upload, or at the edge; (*batch, N)
    learning_s: Array  # (24), or the slowest path if the objective is "makespan"; (*batch)
    consensus_s: Array  # T_cons (26), (*batch)
    mining_total_s: Array  # T_mine by the rule of `Blocks.total`, (*batch)
    utility: Array  # U (31), (*batch)

    @property
    def learning_j(self) -> Array:
        """E_learn, what (28h) sets against a device's slack, (*batch, N)."""
        return self.offload_j + self.local_j

    @property
    def total_s(self) -> Array:
        """The objective (28a), (*batch)."""
        return self.learning_s + self.consensus_s + self.mining_total_s

    @property
    def makespan_s(self) -> Array:
        """Slowest path, consensus and mining, whatever the objective is, (*batch)."""
        return np.asarray(self.path_s.max(axis=-1) + self.consensus_s + self.mining_total_s)


def price(network: NetworkConfig, state: NetworkState, decision: Decision) -> Price:
    """Latency, energy and utility of a decision, also of one that breaks a limit; `violations` says which.

    Raises:
        ConfigError: shapes do not fit, a slot is not there or taken twice, or a device has nothing to do its
            part with (an offloading one no power or bandwidth, another no CPU, any no hash rate), or so
            little that it takes for ever.
    """
    check_fit(network, state, decision)
    _check_priceable(network, decision)
    with np.errstate(all="ignore"):
        priced = _price(network, state, decision)
    _check_finite(priced)
    return priced


def _price(network: NetworkConfig, state: NetworkState, decision: Decision) -> Price:
    offloads = decision.offloads
    rate_bps = offload_rate_bps(network, state, decision)
    offload_s = np.divide(state.data_bits, rate_bps, out=np.zeros_like(rate_bps), where=offloads)
    server = np.where(offloads, decision.slot // network.sub_channels, 0)
    edge_s = np.where(offloads, state.work_cycles / network.edge_speeds_hz[server], 0.0)
    in_slot = occupants(decision.slot, network.slots)
    server_edge_s = by_slot(edge_s, in_slot, network).sum(axis=-1)
    trains = ~offloads
    local_s = np.divide(state.work_cycles, decision.cpu_hz, out=np.zeros_like(rate_bps), where=trains)
    local_j = (
        network.tasks.energy_coefficient * np.where(trains, decision.cpu_hz, 0.0) ** 2 * state.work_cycles
    )
    upload_s = np.where(offloads, 0.0, network.model_bits / upload_rate_bps(network, state))
    mining_s = mining_by_device_s(network.blocks, decision.hash_rate, network.edge_servers)
    # An edge server trains on the union, so it waits for the last data set.
    server_path_s = by_slot(offload_s, in_slot, network).max(axis=-1) + server_edge_s
    path_s = np.where(offloads, in_each_row(server_path_s, server), local_s + upload_s)
    learning_s = (
        path_s.max(axis=-1)
        if network.objective == "makespan"
        else (offload_s + edge_s + local_s + upload_s).sum(axis=-1)
    )
    steps = network.p2p_rounds if network.edge_servers > 1 else 0  # nobody to agree with
    consensus_s = np.full(state.batch, steps * network.model_bits / network.edge_link_bps)
    mining_total_s = mining_of_all_s(network.blocks, decision.hash_rate, network.edge_servers)
    return Price(
        rate_bps=rate_bps,
        offload_s=offload_s,
        edge_s=edge_s,
        local_s=local_s,
        upload_s=upload_s,
        mining_s=mining_s,
        offload_j=np.where(offloads, decision.power_w * offload_s, 0.0),
        local_j=local_j,
        upload_j=network.radio.power_w[1] * upload_s,
        mining_j=np.full_like(mining_s, network.blocks.energy_j),
        server_edge_s=server_edge_s,
        path_s=path_s,
        learning_s=learning_s,
        consensus_s=consensus_s,
        mining_total_s=mining_total_s,
        utility=utility(network, learning_s + consensus_s + mining_total_s),
    )


def utility(network: NetworkConfig, total_s: Array) -> Array:
    """U = exp(1 - T/τ) - 1 (31), from -1 (never) to e - 1 (at once)."""
    return np.asarray(np.expm1(1 - total_s / network.latency_limit_s))


def mining_by_device_s(blocks: Blocks, hash_rate: Array, edge_servers: int) -> Array:
    """T_n = ζ(ħ/Ψ_n + ξ(M + N - 1)) (27); hash_rate: (*batch, N)."""
    spread_s = blocks.propagation_s * (edge_servers + hash_rate.shape[-1] - 1)
    return np.asarray(blocks.forks * (blocks.work_hashes / hash_rate + spread_s))


def mining_of_all_s(blocks: Blocks, hash_rate: Array, edge_servers: int) -> Array:
    """T_mine: the sum of (27) as in the paper, the fastest device's, or that of the race, ħ/ΣΨ; (*batch)."""
    if blocks.total == "race":
        spread_s = blocks.propagation_s * (edge_servers + hash_rate.shape[-1] - 1)
        return np.asarray(blocks.forks * (blocks.work_hashes / hash_rate.sum(axis=-1) + spread_s))
    each_s = mining_by_device_s(blocks, hash_rate, edge_servers)
    return np.asarray(each_s.min(axis=-1) if blocks.total == "fastest" else each_s.sum(axis=-1))


def local_cpu_limit_hz(network: NetworkConfig, state: NetworkState) -> Array:
    """min(F_n, √(E_n/(κ·C_n))), what CPU and energy allow a device that trains itself, (*batch, N)."""
    by_energy_hz = np.sqrt(state.energy_slack_j / (network.tasks.energy_coefficient * state.work_cycles))
    return np.minimum(state.cpu_hz, by_energy_hz)


def _check_finite(priced: Price) -> None:
    phases = (
        ("20", "rate_bps"),
        ("20", "offload_s"),
        ("21", "edge_s"),
        ("22", "local_s"),
        ("23", "upload_s"),
        ("27", "mining_s"),
    )
    for equation, name in phases:
        values = getattr(priced, name)
        wrong = ~np.isfinite(values)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise ConfigError(
                f"({equation}): `{name}` must be finite, got {values[at]} for device {at[-1]}: "
                "what it has for its part is next to nothing, or its part without end"
            )
    if not np.isfinite(priced.total_s).all():
        raise ConfigError(f"(28a): `total_s` must be finite, got {priced.total_s}")


def _check_priceable(network: NetworkConfig, decision: Decision) -> None:
    slot, offloads = decision.slot, decision.offloads
    if slot.max(initial=-1) >= network.slots or slot.min(initial=-1) < -1:
        wrong = slot[(slot >= network.slots) | (slot < -1)][0]
        raise ConfigError(f"(28b): `slot` must be -1 or one of 0..{network.slots - 1}, got {wrong}")
    in_slot = occupants(slot, network.slots)
    holder = in_each_row(in_slot, np.where(offloads, slot, 0))
    twice = offloads & (holder != np.arange(slot.shape[-1]))
    if twice.any():
        raise ConfigError(f"(28c): `slot` must not be taken twice, got slot {slot[twice][0]} of two devices")
    needs = (
        ("28d", "power_w", offloads),
        ("28e", "bandwidth_hz", offloads),
        ("28f", "cpu_hz", ~offloads),
        ("28g", "hash_rate", np.ones_like(offloads)),
    )
    for constraint, name, who in needs:
        values = getattr(decision, name)
        wrong = who & ~((values > 0) & (values < np.inf))
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise ConfigError(
                f"({constraint}): `{name}` must be positive and finite where it is used, "
                f"got {values[at]} for device {at[-1]}"
            )
