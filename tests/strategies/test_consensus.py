import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.network import edge_graph, laplacian_mixing, metropolis_mixing, spectral_radius, without
from flower_bfl.strategies.consensus import agree, mix, reach_consensus

GRAPHS = ["complete", "ring", "line", "star", "random"]


def partials(servers, size=40, seed=0):
    return np.random.default_rng(seed).standard_normal((servers, size), dtype=np.float32)


def agreed(values, mixings, server, *, mass=None, keep_states=True):
    mass = np.full(len(values), 1 / len(values)) if mass is None else mass
    rows = values if values.ndim == 2 else values[:, None]

    class Blocks:
        def __getitem__(self, part):
            return rows[:, part]

    states = np.empty((len(mixings) + 1, *rows.shape), np.float32) if keep_states else None
    return agree(Blocks(), rows.shape[1], mass, mixings, server, states=states)


def test_every_step_multiplies_by_the_mixing_matrix():
    values, mixing = partials(4), laplacian_mixing(edge_graph("line", 4))
    states = reach_consensus(values, [mixing] * 6)
    assert states.shape == (7, 4, 40) and states.dtype == np.float32
    for step in range(7):
        expected = np.linalg.matrix_power(mixing, step) @ values.astype(float)
        np.testing.assert_allclose(states[step], expected, rtol=1e-5, atol=1e-6)


def test_one_step_from_recorded_states_gives_the_next_ones_bit_for_bit():
    """What an auditor relies on: x^(l+1) follows from the float32 states that were exchanged."""
    mixing = metropolis_mixing(edge_graph("ring", 5))
    states = reach_consensus(partials(5, 300_000), [mixing] * 3)
    for step in range(3):
        again = np.zeros((5, 300_000))
        for m in range(5):
            for other in range(5):
                if mixing[m, other]:
                    again[m] += mixing[m, other] * states[step, other].astype(np.float64)
        np.testing.assert_array_equal(states[step + 1], again.astype(np.float32))


def test_a_complete_graph_with_metropolis_weights_agrees_in_one_step():
    values = partials(6)
    states = reach_consensus(values, [metropolis_mixing(edge_graph("complete", 6))])
    np.testing.assert_allclose(states[1], np.tile(values.mean(axis=0), (6, 1)), rtol=1e-5, atol=1e-6)


@given(st.sampled_from(GRAPHS), st.integers(1, 8), st.integers(0, 12), st.integers(0, 99), st.booleans())
@settings(max_examples=150)
def test_the_error_stays_within_its_bound(name, servers, steps, seed, by_data):
    mixing = laplacian_mixing(edge_graph(name, servers, seed=seed))
    values = partials(servers, seed=seed)
    shares = (
        np.random.default_rng(seed).dirichlet(np.ones(servers)) if by_data else np.full(servers, 1 / servers)
    )
    mixings = [mixing] * steps
    masses = np.linalg.matrix_power(mixing, steps) @ shares
    for server in range(servers):
        agreement = agreed(values, mixings, server, mass=shares)
        direct = np.linalg.norm(agreement.state / masses[server] - values.astype(float).sum(axis=0))
        assert agreement.mass == pytest.approx(masses[server])
        assert agreement.error == pytest.approx(direct)
        assert agreement.error <= agreement.bound + 1e-5 * (steps + 1) / masses.min()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_error_decays_like_the_spectral_radius_to_the_steps(name):
    """Along the slowest eigenvector nothing is lost in the bound: the error is exactly λ^φ of what it was."""
    mixing = laplacian_mixing(edge_graph(name, 5, seed=1), 0.1)
    values, vectors = np.linalg.eigh(mixing - 1 / 5)
    slowest = vectors[:, np.abs(values).argmax()].astype(np.float32)[:, None]
    radius = spectral_radius(mixing)
    server = int(np.abs(slowest).argmax())
    start = agreed(slowest, [], server).error
    for steps in (1, 5, 20):
        error = agreed(slowest, [mixing] * steps, server).error
        assert error == pytest.approx(radius**steps * start, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("server", range(4))
def test_skipping_the_steps_gives_the_same_state(server):
    mixings = [laplacian_mixing(edge_graph("line", 4)), metropolis_mixing(edge_graph("ring", 4))] * 3
    values = partials(4, 200_000)
    step_by_step = agreed(values, mixings, server)
    np.testing.assert_array_equal(step_by_step.states, reach_consensus(values, mixings))
    at_once = agreed(values, mixings, server, keep_states=False)
    assert at_once.states is None
    np.testing.assert_allclose(at_once.state, step_by_step.state, rtol=1e-5, atol=1e-6)
    assert at_once.error == pytest.approx(step_by_step.error, rel=1e-4)
    assert at_once.bound == step_by_step.bound


def test_without_steps_an_edge_server_has_what_it_started_with():
    values = partials(3)
    agreement = agreed(values, [], 2)
    np.testing.assert_array_equal(agreement.state, values[2])
    assert agreement.states is not None and agreement.states.shape == (1, 3, 40)
    assert agreement.error <= agreement.bound


def test_ratio_consensus_is_exact_where_servers_hold_proportional_sums():
    """If every server's aggregate is its share of one mean, x/s is that mean after any number of steps."""
    shares, mean = np.array([0.5, 0.3, 0.2]), partials(1)[0]
    values = (shares[:, None] * mean).astype(np.float32)
    mixing = laplacian_mixing(edge_graph("line", 3))
    for steps in range(4):
        agreement = agreed(values, [mixing] * steps, 1, mass=shares, keep_states=False)
        np.testing.assert_allclose(agreement.state / agreement.mass, mean, rtol=1e-5, atol=1e-6)
        assert agreement.error < 1e-5


def test_a_server_that_fails_between_steps_keeps_its_state_and_the_others_go_on():
    whole = metropolis_mixing(edge_graph("complete", 3))
    values = partials(3)
    states = reach_consensus(values, [whole, without(whole, servers=[1]), without(whole, servers=[1])])
    np.testing.assert_array_equal(states[3, 1], states[1, 1])
    np.testing.assert_allclose(states[3].mean(axis=0), values.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_zero_weights_hide_what_is_not_linked():
    values = np.array([[1.0], [np.inf], [3.0]])
    np.testing.assert_array_equal(mix(np.array([[0.5, 0.0, 0.5]]), values), [[2.0]])
