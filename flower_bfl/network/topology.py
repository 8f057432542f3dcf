"""Graphs between edge servers and the mixing matrices Λ that consensus (9) runs on.

A graph is an adjacency matrix, shape (m, m), bool, symmetric, without loops. A mixing matrix has shape
(m, m), float64, is symmetric, has rows that sum to 1 and zeros where there is no link.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError

GraphName = Literal["complete", "ring", "line", "star", "random"]
Graph = GraphName | Sequence[tuple[int, int]]
MixingName = Literal["laplacian", "metropolis"]
Mixing = NDArray[np.float64]

_TOLERANCE = 1e-9


def edge_graph(graph: Graph, servers: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """Adjacency of a named graph or of given links, over `servers` edge servers; connected or ConfigError.

    `random` is a random tree plus every other link with probability 1/2, drawn from `seed`.
    """
    import networkx as nx

    check_whole_number("edge_servers", servers, 1, 2**16 - 1)
    links = _named_links(graph, servers, seed) if isinstance(graph, str) else graph
    network: nx.Graph = nx.Graph()
    network.add_nodes_from(range(servers))
    for link in links:
        if len(link) != 2:
            raise ConfigError(f"`graph` must be a name or a list of pairs, got {tuple(link)} in it")
        a, b = link
        if a == b or not (0 <= a < servers and 0 <= b < servers):
            raise ConfigError(
                f"`graph` must link two different edge servers of 0..{servers - 1}, got {tuple(link)}"
            )
        network.add_edge(int(a), int(b))
    if not nx.is_connected(network):
        parts = [sorted(part) for part in nx.connected_components(network)]
        raise ConfigError(f"`graph` must be connected, got {len(parts)} separate parts {parts}")
    return np.asarray(nx.to_numpy_array(network, nodelist=range(servers)), dtype=bool)


def _named_links(name: str, servers: int, seed: int) -> Iterable[tuple[int, int]]:
    import networkx as nx

    if name not in get_args(GraphName):
        raise ConfigError(f"`graph` must be one of {get_args(GraphName)} or a list of links, got {name!r}")
    if name == "random":
        tree = nx.random_labeled_tree(servers, seed=seed)
        return list(nx.compose(tree, nx.gnp_random_graph(servers, 0.5, seed=seed)).edges)
    if name == "star":
        return [(0, server) for server in range(1, servers)]
    if name == "complete":
        return list(nx.complete_graph(servers).edges)
    line = [(server, server + 1) for server in range(servers - 1)]
    return [*line, (servers - 1, 0)] if name == "ring" and servers > 2 else line


def laplacian_mixing(adjacency: NDArray[np.bool_], step: float | None = None) -> Mixing:
    """The paper's Λ = I − d·L, L the graph's Laplacian, 0 < d < 1/M; `step` is d, by default 0.9/M."""
    servers = len(adjacency)
    d = 0.9 / servers if step is None else step
    if not 0 < d < 1 / servers:
        raise ConfigError(
            f"`laplacian_step` must be in (0, 1/{servers}) for {servers} edge servers, got {step}"
        )
    links = adjacency.astype(np.float64)
    mixing: Mixing = d * links
    np.fill_diagonal(mixing, 1 - d * links.sum(axis=1))
    return mixing


def metropolis_mixing(adjacency: NDArray[np.bool_]) -> Mixing:
    """Metropolis–Hastings weights: 1 / (1 + the larger degree) on links, the rest on the diagonal.

    L. Xiao, S. Boyd, S.-J. Kim, Distributed average consensus with least-mean-square deviation, 2007.
    """
    degrees = adjacency.sum(axis=1)
    mixing: Mixing = np.where(adjacency, 1 / (1 + np.maximum.outer(degrees, degrees)), 0.0)
    np.fill_diagonal(mixing, 1 - mixing.sum(axis=1))
    return mixing


def mixing_matrix(
    mixing: MixingName | ArrayLike, adjacency: NDArray[np.bool_], *, laplacian_step: float | None = None
) -> Mixing:
    """Λ by name, or the given matrix once it is shown to be one for this graph (ConfigError if it is not)."""
    if isinstance(mixing, str):
        if mixing not in get_args(MixingName):
            raise ConfigError(f"`mixing` must be one of {get_args(MixingName)} or a matrix, got {mixing!r}")
        if mixing == "laplacian":
            return laplacian_mixing(adjacency, laplacian_step)
    if laplacian_step is not None:
        raise ConfigError(f"`laplacian_step` goes with mixing='laplacian' only, got {laplacian_step}")
    if isinstance(mixing, str):
        return metropolis_mixing(adjacency)
    given: Mixing = np.array(mixing, dtype=np.float64)
    _check(given, adjacency)
    return given


def _check(mixing: Mixing, adjacency: NDArray[np.bool_]) -> None:
    servers = len(adjacency)
    stray = ~adjacency & ~np.eye(servers, dtype=bool)
    rules: list[tuple[str, Any]] = [
        (f"have shape ({servers}, {servers})", mixing.shape == adjacency.shape or mixing.shape),
        ("be finite", bool(np.isfinite(mixing).all()) or mixing.tolist()),
    ]
    if all(met is True for _, met in rules):
        sums = mixing.sum(axis=1)
        rules += [
            ("be symmetric", bool(np.allclose(mixing, mixing.T, atol=_TOLERANCE)) or mixing.tolist()),
            ("have rows that sum to 1", bool(np.allclose(sums, 1, atol=_TOLERANCE)) or sums.tolist()),
            (
                "be zero where there is no link",
                not mixing[stray].any() or np.argwhere(stray & (mixing != 0)).tolist(),
            ),
            ("have spectral radius below 1", (radius := spectral_radius(mixing)) < 1 or radius),
        ]
    for rule, met in rules:
        if met is not True:
            raise ConfigError(f"`mixing` must {rule}, got {met}")


def spectral_radius(mixing: Mixing) -> float:
    """λ, largest absolute eigenvalue of Λ − 11ᵀ/M: how much of a disagreement is left after one step (9)."""
    centred = mixing - 1 / len(mixing)
    return float(np.abs(np.linalg.eigvalsh((centred + centred.T) / 2)).max())


def without(mixing: Mixing, *, servers: Iterable[int] = (), links: Iterable[tuple[int, int]] = ()) -> Mixing:
    """Λ after edge servers or links have failed: each neighbour keeps the weight of a lost link for itself.

    Rows still sum to 1 and the matrix stays symmetric; a failed server's row is that of the identity.
    """
    left = mixing.copy()
    lost = [
        *links,
        *((server, other) for server in servers for other in range(len(mixing)) if other != server),
    ]
    for a, b in lost:
        for own, other in ((a, b), (b, a)):
            left[own, own] += left[own, other]
            left[own, other] = 0.0
    return left
