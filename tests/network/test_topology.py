import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.errors import ConfigError
from flower_bfl.network import (
    edge_graph,
    laplacian_mixing,
    metropolis_mixing,
    mixing_matrix,
    spectral_radius,
    without,
)

GRAPHS = ["complete", "ring", "line", "star", "random"]

graphs = st.sampled_from(GRAPHS)
sizes = st.integers(1, 12)


@given(graphs, sizes, st.integers(0, 1000))
def test_named_graphs_are_connected_symmetric_and_without_loops(name, servers, seed):
    adjacency = edge_graph(name, servers, seed=seed)
    assert adjacency.shape == (servers, servers)
    assert (adjacency == adjacency.T).all() and not adjacency.diagonal().any()
    reached = np.linalg.matrix_power(np.eye(servers, dtype=int) + adjacency, servers) > 0
    assert reached.all()


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("complete", [4, 4, 4, 4, 4]),
        ("ring", [2, 2, 2, 2, 2]),
        ("line", [1, 2, 2, 2, 1]),
        ("star", [4, 1, 1, 1, 1]),
        ([(0, 1), (1, 2), (2, 3), (3, 4), (1, 4)], [1, 3, 2, 2, 2]),
    ],
)
def test_graphs_have_the_degrees_of_their_name(name, degrees):
    assert edge_graph(name, 5).sum(axis=1).tolist() == degrees


def test_a_random_graph_depends_on_its_seed_alone():
    draws = {edge_graph("random", 8, seed=seed).tobytes() for seed in range(20)}
    assert len(draws) > 10
    assert edge_graph("random", 8, seed=3).tobytes() == edge_graph("random", 8, seed=3).tobytes()


@given(graphs, sizes, st.integers(0, 1000), st.floats(0.01, 0.99), st.booleans())
def test_mixing_matrices_are_symmetric_stochastic_and_contract(name, servers, seed, share, metropolis):
    adjacency = edge_graph(name, servers, seed=seed)
    mixing = metropolis_mixing(adjacency) if metropolis else laplacian_mixing(adjacency, share / servers)
    np.testing.assert_allclose(mixing.sum(axis=1), 1, atol=1e-12)
    assert (mixing == mixing.T).all()
    assert (mixing >= 0).all()
    assert not mixing[~adjacency & ~np.eye(servers, dtype=bool)].any()
    assert spectral_radius(mixing) < 1
    # the 2-norm of a symmetric matrix is its spectral radius, by singular values instead of eigenvalues
    np.testing.assert_allclose(spectral_radius(mixing), np.linalg.norm(mixing - 1 / servers, 2), atol=1e-12)


@pytest.mark.parametrize("servers", [3, 4, 7, 10])
@pytest.mark.parametrize("d_times_m", [0.3, 0.9])
def test_laplacian_spectra_are_those_of_the_textbook(servers, d_times_m):
    d = d_times_m / servers
    angles = 2 * np.pi * np.arange(1, servers) / servers
    eigenvalues = {
        "complete": np.full(servers - 1, servers),
        "ring": 2 - 2 * np.cos(angles),
        "line": 2 - 2 * np.cos(angles / 2),
        "star": np.array([1.0] * (servers - 2) + [servers]),
    }
    for name, values in eigenvalues.items():
        mixing = laplacian_mixing(edge_graph(name, servers), d)
        np.testing.assert_allclose(spectral_radius(mixing), np.abs(1 - d * values).max(), atol=1e-12)


@given(graphs, st.integers(2, 8), st.integers(0, 100), st.data())
def test_losing_servers_and_links_keeps_a_mixing_matrix_symmetric_and_stochastic(name, servers, seed, data):
    adjacency = edge_graph(name, servers, seed=seed)
    mixing = metropolis_mixing(adjacency)
    gone = data.draw(st.sets(st.integers(0, servers - 1)))
    links = data.draw(st.lists(st.sampled_from(np.argwhere(adjacency).tolist()).map(tuple)))
    left = without(mixing, servers=gone, links=links)
    np.testing.assert_allclose(left.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(left, left.T, atol=1e-15)
    assert (left >= 0).all()
    for server in gone:
        np.testing.assert_allclose(left[server], np.eye(servers)[server], atol=1e-12)
    for a, b in links:
        assert left[a, b] == 0


def test_what_a_lost_link_carried_stays_with_its_two_ends():
    mixing = without(metropolis_mixing(edge_graph("line", 3)), links=[(0, 1)])
    third = 1 / 3
    np.testing.assert_allclose(mixing, [[1, 0, 0], [0, 2 * third, third], [0, third, 2 * third]], atol=1e-12)


ring4 = metropolis_mixing(edge_graph("ring", 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: edge_graph("complete", 0), r"`edge_servers` must be a whole number from 1 to 65535, got 0"),
        (lambda: edge_graph("mesh", 3), r"`graph` must be one of .* got 'mesh'"),
        (lambda: edge_graph([(0, 1), (2, 3)], 4), r"`graph` must be connected, got 2 .*\[0, 1\], \[2, 3\]"),
        (
            lambda: edge_graph([(0, 5)], 3),
            r"`graph` must link two different edge servers of 0..2, got \(0, 5\)",
        ),
        (lambda: edge_graph([(1, 1)], 3), r"`graph` must link two different edge servers .* got \(1, 1\)"),
        (
            lambda: laplacian_mixing(edge_graph("ring", 4), 0.25),
            r"`laplacian_step` must be in \(0, 1/4\) .* 0.25",
        ),
        (
            lambda: laplacian_mixing(edge_graph("ring", 4), 0.0),
            r"`laplacian_step` must be in \(0, 1/4\) .* 0.0",
        ),
        (lambda: mixing_matrix("magic", edge_graph("ring", 4)), r"`mixing` must be one of .* got 'magic'"),
        (lambda: mixing_matrix(np.eye(3), edge_graph("ring", 4)), r"`mixing` must have shape \(4, 4\)"),
        (
            lambda: mixing_matrix(np.eye(4), edge_graph("ring", 4)),
            r"`mixing` must have spectral radius below 1",
        ),
        (lambda: mixing_matrix(ring4 * 0.9, edge_graph("ring", 4)), r"`mixing` must have rows that sum to 1"),
        (lambda: mixing_matrix(ring4 * np.nan, edge_graph("ring", 4)), r"`mixing` must be finite"),
        (
            lambda: mixing_matrix(ring4, edge_graph("line", 4)),
            r"`mixing` must be zero where there is no link",
        ),
        (
            lambda: mixing_matrix([[0.5, 0.5, 0], [0.2, 0.5, 0.3], [0.3, 0, 0.7]], edge_graph("complete", 3)),
            r"`mixing` must be symmetric",
        ),
    ],
)
def test_bad_graphs_and_matrices_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_given_matrix_is_taken_as_it_is():
    np.testing.assert_array_equal(mixing_matrix(ring4.tolist(), edge_graph("ring", 4)), ring4)
