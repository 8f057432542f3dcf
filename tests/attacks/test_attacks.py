"""What each attack publishes, in closed form, and which attacks and defences cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from flower_bfl import ConsensusBFL, IndependentServers, MemoryLedger
from flower_bfl.attacks import (
    ALittleIsEnough,
    Attack,
    Equivocation,
    FalseAccusation,
    Falsification,
    GaussianNoise,
    InnerProduct,
    OldValue,
    Scaling,
    SignFlip,
    Silence,
    Turn,
)
from flower_bfl.defences import Deviation, Replay
from flower_bfl.errors import ConfigError

HONEST = np.array([3.0, -4.0, 0.0], np.float32)  # of length 5
ALL = np.stack([HONEST, HONEST + 2, HONEST - 2]).astype(np.float32)  # mean HONEST, spread √(8/3)
TURN = Turn(2, HONEST, ALL)


def lie(attack: Falsification, turn: Turn = TURN, seed: int = 0) -> np.ndarray:
    return attack.falsified(turn, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(server=1), -HONEST),
        (SignFlip(server=1, size=2.5), -2.5 * HONEST),
        (Scaling(server=1, factor=0.5), HONEST / 2),
        (Scaling(server=1), 10 * HONEST),
        (ALittleIsEnough(server=1), HONEST - 1.5 * np.sqrt(8 / 3)),
        (ALittleIsEnough(server=1, z=0.3), HONEST - 0.3 * np.sqrt(8 / 3)),
        (InnerProduct(server=1), -HONEST / 2),
        (InnerProduct(devices={1, 2}, epsilon=2.0), -2 * HONEST),
        (OldValue(server=1), 0 * HONEST),  # nothing is older
    ],
)
def test_what_an_attack_publishes(attack, expected):
    given_before = HONEST.copy(), ALL.copy()
    found = lie(attack)
    assert found.dtype == np.float32 and found.shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (given_before[0] == HONEST).all() and (given_before[1] == ALL).all()  # arguments stay


def test_an_old_value_is_that_of_the_round_before_or_the_model_that_was():
    old, model = HONEST + 1, HONEST + 2
    assert (lie(OldValue(server=1), Turn(2, HONEST, ALL, before=old)) == old).all()
    assert (lie(OldValue(server=1, p2p_step="model"), Turn(2, HONEST, ALL, old, model)) == model).all()
    found = lie(OldValue(server=1), Turn(2, HONEST, ALL, before=old))
    found[0] = 99  # not the one that is remembered
    assert old[0] == 4


@given(
    st.floats(1e-5, 1e3),
    any_array(np.float32, st.integers(50, 200), elements=st.integers(-100, 100)),
    st.integers(0, 99),
)
def test_noise_is_as_long_as_it_was_said_and_goes_anywhere(size, honest, seed):
    turn = Turn(1, honest, honest[None])
    noise = lie(GaussianNoise(server=0, size=size), turn, seed).astype(float) - honest
    length = np.linalg.norm(honest.astype(float)) or 1.0
    rounding = 2**-23 * (length + size * length)
    assert np.linalg.norm(noise) == pytest.approx(size * length, rel=1e-3, abs=rounding)
    other = lie(GaussianNoise(server=0, size=size), turn, seed + 1).astype(float) - honest
    if size > 1e-3:  # else float32 says little about its direction
        assert abs(noise @ other) < 0.8 * np.linalg.norm(noise) * np.linalg.norm(other)
    again = lie(GaussianNoise(server=0, size=size), turn, seed)
    assert (again.astype(float) - honest == noise).all()


def test_an_equivocator_sends_what_gaussian_noise_would():
    sent = lie(Equivocation(server=1, size=0.1))
    assert np.linalg.norm(sent - HONEST) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(("rounds", "acts"), [(None, [1, 2, 3]), ({2}, [2]), ([1, 3, 3], [1, 3]), ((), [])])
def test_rounds_in_which_it_acts(rounds, acts):
    assert [k for k in (1, 2, 3) if Silence(server=0, rounds=rounds).acts(k)] == acts


def test_attacks_say_who_they_are_of():
    assert str(Silence(server=3, p2p_step="model")) == "Silence by edge server 3 in the model"
    assert str(SignFlip(server=3, p2p_step=2)) == "SignFlip by edge server 3 in step 2"
    assert str(SignFlip(devices=[4, 2])) == "SignFlip by devices [2, 4]"


# -- what cannot be ------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
WRONG_ATTACKS = [
    (lambda: GaussianNoise(), ("GaussianNoise", "either `server` or `devices`", "None")),
    (lambda: SignFlip(server=1, devices={2}), ("SignFlip", "either `server` or `devices`", "2")),
    (lambda: Silence(devices={1}), ("Silence", "`server`", "1")),
    (lambda: Equivocation(devices={1}), ("Equivocation", "`server`", "1")),
    (lambda: FalseAccusation(devices={1}, accused=2), ("FalseAccusation", "`server`", "1")),
    (lambda: SignFlip(server=-1), ("server", "SignFlip", "-1")),
    (lambda: SignFlip(server=True), ("server", "SignFlip", "True")),
    (lambda: SignFlip(server="one"), ("server", "SignFlip", "'one'")),
    (lambda: SignFlip(server=2**16), ("server", "SignFlip", "65535", "65536")),
    (lambda: SignFlip(devices={-1}), ("devices", "SignFlip", "-1")),
    (lambda: SignFlip(devices=3), ("devices", "SignFlip", "3")),
    (lambda: SignFlip(server=1, rounds={0}), ("rounds", "SignFlip", "from 1", "got 0")),
    (lambda: SignFlip(server=1, rounds={1.5}), ("rounds", "SignFlip", "1.5")),
    (lambda: SignFlip(server=1, rounds=2), ("rounds", "SignFlip", "collection", "2")),
    (lambda: SignFlip(server=1, p2p_step=-1), ("p2p_step", "SignFlip", "-1")),
    (lambda: SignFlip(server=1, p2p_step="last"), ("p2p_step", "SignFlip", "'last'")),
    (lambda: SignFlip(devices={1}, p2p_step="model"), ("p2p_step", "SignFlip", "`server`", "'model'")),
    (lambda: Equivocation(server=1, p2p_step="model"), ("p2p_step", "Equivocation", "'model'")),
    (lambda: ALittleIsEnough(server=1, p2p_step="model"), ("p2p_step", "ALittleIsEnough", "'model'")),
    (lambda: FalseAccusation(server=1, accused=2, p2p_step="model"), ("FalseAccusation", "'model'")),
    (lambda: FalseAccusation(server=1, accused=1), ("accused", "another", "got 1")),
    (lambda: FalseAccusation(server=1, accused=-2), ("accused", "FalseAccusation", "-2")),
    (lambda: Scaling(server=1, factor=1), ("factor", "Scaling", "1")),
]
SIZES = {
    GaussianNoise: "size",
    SignFlip: "size",
    Scaling: "factor",
    InnerProduct: "epsilon",
    ALittleIsEnough: "z",
}


@pytest.mark.parametrize("value", [0, -1.0, NAN, INF, "much", True, None])
@pytest.mark.parametrize("kind", SIZES)
def test_sizes_are_positive_numbers(kind, value):
    with pytest.raises(ConfigError) as error:
        kind(server=1, **{SIZES[kind]: value})
    assert all(word in str(error.value) for word in (SIZES[kind], kind.__name__, "positive", repr(value)))


@pytest.mark.parametrize(("make", "words"), WRONG_ATTACKS)
def test_an_attack_that_breaks_a_rule_says_which(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert all(word in str(error.value) for word in words)


class NotAnAttack:
    """Something else."""


WRONG_RUNS = [
    ({"attacks": [SignFlip(server=3)]}, ("`attacks`", "0..2", "edge server 3")),
    ({"attacks": [FalseAccusation(server=0, accused=3)]}, ("`attacks`", "0..2")),
    ({"attacks": [SignFlip(server=1, p2p_step=6)]}, ("`attacks`", "0..5", "'model'", "step 6")),
    ({"attacks": [SignFlip(server=1, p2p_step=1)], "p2p_rounds": 0}, ("`attacks`", "0..0", "step 1")),
    ({"attacks": [NotAnAttack()]}, ("`attacks`", "flower_bfl.attacks", "NotAnAttack")),
    ({"defence": Replay(), "ledger": None}, ("`defence`", "Replay", "`ledger`", "`mining`", "got none")),
    ({"defence": Replay(), "mining": None}, ("`defence`", "Replay", "`mining`", "got none")),
    ({"defence": [Replay(), Deviation()], "ledger": None}, ("`defence`", "Replay", "`ledger`")),
    ({"defence": Replay(), "edge_servers": 2}, ("`edge_servers`", "at least 3", "got 2")),
    ({"defence": Replay(), "edge_servers": 1}, ("`edge_servers`", "at least 3", "got 1")),
    ({"defence": Replay(), "p2p_rounds": 21845}, ("`edge_servers`", "`p2p_rounds`", "65536", "65538")),
    ({"defence": [Replay(), Replay()]}, ("`defence`", "Replay(), Deviation(), or both", "Replay")),
    ({"defence": [Deviation(), Deviation()]}, ("`defence`", "Deviation")),
    ({"defence": "replay"}, ("`defence`", "'replay'")),
    ({"defence": Replay}, ("`defence`", "Replay")),
    ({"defence": [None]}, ("`defence`", "None")),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG_RUNS)
def test_a_strategy_refuses_what_cannot_work(arguments, words):
    with pytest.raises(ConfigError) as error:
        ConsensusBFL(**{"edge_servers": 3, "ledger": MemoryLedger()} | arguments)
    assert all(word in str(error.value) for word in words)


def test_the_most_steps_that_replay_allows_are_allowed():
    ConsensusBFL(edge_servers=4, p2p_rounds=2**14 - 1, ledger=MemoryLedger(), defence=Replay())
    with pytest.raises(ConfigError):
        ConsensusBFL(edge_servers=4, p2p_rounds=2**14, ledger=MemoryLedger(), defence=Replay())


def test_attacks_need_neither_ledger_nor_defence():
    ConsensusBFL(edge_servers=1, attacks=[SignFlip(server=0, p2p_step="model")])


@pytest.mark.parametrize("arithmetic", ["float64", "", None, 32])
def test_replay_knows_two_arithmetics(arithmetic):
    with pytest.raises(ConfigError) as error:
        Replay(arithmetic)
    assert all(word in str(error.value) for word in ("arithmetic", "exact", "float32", repr(arithmetic)))


def test_a_single_attack_is_taken_as_a_single_defence_is():
    attack: Attack = SignFlip(server=1)
    assert ConsensusBFL(edge_servers=3, attacks=attack).attacks == (attack,)
    assert IndependentServers(edge_servers=3, attacks=attack).attacks == (attack,)
