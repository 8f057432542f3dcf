"""What a decision costs, in loops over one device, edge server and sub-channel at a time.

Written from the equations, symbol by symbol, without a look at `flower_bfl.network.pricing`: the tests hold
the fast code against it.
"""

import math
from itertools import product


def slow_price(network, state, decision):
    """Every field of `Price` for one state and one decision, from (20)-(27) and (31)."""
    n_, m_, g_ = network.devices, network.edge_servers, network.sub_channels
    devices, servers, channels = range(n_), range(m_), range(g_)
    radio, blocks = network.radio, network.blocks
    x = {(n, m, g): int(decision.slot[n]) == m * g_ + g for n, m, g in product(devices, servers, channels)}
    h = {(n, m, g): float(state.gain[n, m, g]) for n, m, g in product(devices, servers, channels)}
    data, work = [float(d) for d in state.data_bits], [float(c) for c in state.work_cycles]
    p, b = [float(one) for one in decision.power_w], [float(one) for one in decision.bandwidth_hz]
    f, psi = [float(one) for one in decision.cpu_hz], [float(one) for one in decision.hash_rate]
    n0 = 1e-3 * 10 ** (radio.noise_dbm_hz / 10) * 10 ** (radio.noise_figure_db / 10)
    p_max = 1e-3 * 10 ** (radio.power_dbm[1] / 10)
    f_edge = network.edge_cpu_hz if isinstance(network.edge_cpu_hz, tuple) else [network.edge_cpu_hz] * m_

    by_device = ["rate_bps", "offload_s", "edge_s", "local_s", "upload_s", "offload_j", "local_j", "upload_j"]
    out = {name: [0.0] * n_ for name in [*by_device, "path_s"]}
    for n, m, g in product(devices, servers, channels):  # (20)
        if x[n, m, g]:
            interference = 0.0
            for j, other in product(devices, servers):
                if radio.interference and other != m and x[j, other, g]:
                    interference += p[j] * h[j, m, g]
            sinr = p[n] * h[n, m, g] / (n0 * b[n] + interference)
            out["rate_bps"][n] = b[n] * math.log1p(sinr) / math.log(2)
            out["offload_s"][n] = data[n] / out["rate_bps"][n]
            out["offload_j"][n] = p[n] * out["offload_s"][n]
            out["edge_s"][n] = work[n] / f_edge[m]

    server_edge_s, server_path_s = [0.0] * m_, [0.0] * m_
    for m in servers:  # (21), once for everything that came
        mine = [n for n in devices if any(x[n, m, g] for g in channels)]
        server_edge_s[m] = sum(work[n] for n in mine) / f_edge[m]
        server_path_s[m] = max((out["offload_s"][n] for n in mine), default=0.0) + server_edge_s[m]
        for n in mine:
            out["path_s"][n] = server_path_s[m]

    for n in devices:
        if any(x[n, m, g] for m, g in product(servers, channels)):
            continue
        out["local_s"][n] = work[n] / f[n]  # (22)
        out["local_j"][n] = network.tasks.energy_coefficient * f[n] ** 2 * work[n]
        share = radio.bandwidth_hz * m_ / n_ if m_ < n_ else radio.bandwidth_hz  # (23)
        snr = p_max * max(h[n, m, g] for m, g in product(servers, channels)) / (n0 * share)
        out["upload_s"][n] = network.model_bits / (share * math.log1p(snr) / math.log(2))
        out["upload_j"][n] = p_max * out["upload_s"][n]
        out["path_s"][n] = out["local_s"][n] + out["upload_s"][n]

    if network.objective == "sum":  # (24)
        learning_s = sum(server_edge_s)
        for n in devices:
            learning_s += out["offload_s"][n] + out["local_s"][n] + out["upload_s"][n]
    else:
        learning_s = max(out["path_s"])

    consensus_s = 0.0  # (25)(26): each step as long as one model takes from a neighbour
    for _ in range(network.p2p_rounds):
        consensus_s += max((network.model_bits / network.edge_link_bps for _ in range(m_ - 1)), default=0.0)

    spread_s = blocks.propagation_s * (m_ + n_ - 1)  # (27)
    mining_s = [blocks.forks * (blocks.work_hashes / psi[n] + spread_s) for n in devices]
    mining_total_s = {
        "sum": sum(mining_s),
        "fastest": min(mining_s),
        "race": blocks.forks * (blocks.work_hashes / sum(psi) + spread_s),
    }[blocks.total]

    total_s = learning_s + consensus_s + mining_total_s
    return out | {
        "server_edge_s": server_edge_s,
        "mining_s": mining_s,
        "mining_j": [blocks.energy_per_hash_j * blocks.work_hashes] * n_,
        "learning_s": learning_s,
        "consensus_s": consensus_s,
        "mining_total_s": mining_total_s,
        "utility": math.exp(1 - total_s / (network.latency_bound_s * n_)) - 1,
    }
