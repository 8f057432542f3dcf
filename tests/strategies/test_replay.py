"""What a round with liars comes to, by hand; and that nobody who is honest is ever accused."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from attacked import (
    LINKS,
    SERVERS,
    Down,
    Run,
    assert_same,
    attacked,
    round_by_hand,
    server,
    set_aside,
    trained_on,
)
from federation import walker
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl import Outage
from flower_bfl.attacks import Falsification, GaussianNoise, Scaling, SignFlip, Silence, Turn
from flower_bfl.defences import Median, Replay
from flower_bfl.defences.replay import rounding_bound

LIAR, LAST = 1, 2

# -- what it comes to ----------------------------------------------------------------------------------------

LIES = {
    "noise at once": [GaussianNoise(server=LIAR, rounds={LAST})],
    "noise in the last step": [GaussianNoise(server=LIAR, rounds={LAST}, p2p_step=2)],
    "silence": [Silence(server=LIAR, rounds={LAST}, p2p_step=1)],
    "two, one after the other": [
        Scaling(server=LIAR, rounds={LAST}, p2p_step=1),
        SignFlip(server=4, rounds={LAST}, p2p_step=2),
    ],
    "two at once": [Scaling(server=m, rounds={LAST}, p2p_step=1) for m in (LIAR, 2)],
    "since the round before": [Silence(server=LIAR, rounds={1})],
    "nobody": [],
}


def came_to(run: Run, graph: str, mass: str, barred: set[int], **by_hand) -> None:
    before = run.model_of(LAST - 1)
    aside = set_aside(LINKS[graph], SERVERS, barred)
    devices = by_hand.pop("devices", range(7))
    trained = trained_on(before, LAST, devices)
    leader, model = round_by_hand(before, trained, LINKS[graph], mass=mass, aside=aside, **by_hand)
    assert run.rounds[LAST].leader == leader
    assert_same(run.model, model)


@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize("graph", LINKS)
def test_the_round_begins_anew_without_the_liars(graph, mass, lies):
    leader = LIAR if mass == "count" else 3
    run = attacked(LIES[lies], graph=graph, mass=mass, leader=leader)
    barred = {attack.server for attack in LIES[lies]}
    assert set(run.rounds[LAST].quarantined) == barred
    came_to(run, graph, mass, barred, first_leader=leader)


@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize("graph", LINKS)
def test_the_next_one_leads_with_its_own_estimate_where_the_leader_lies(graph, mass):
    lies = [GaussianNoise(server=LIAR, rounds={LAST}, p2p_step="model")]
    run = attacked(lies, graph=graph, mass=mass, leader=LIAR)
    before = run.model_of(LAST - 1)
    leader, model = round_by_hand(
        before, trained_on(before, LAST, range(7)), LINKS[graph], first_leader=LIAR, mass=mass,
        no_leaders={LIAR},
    )  # fmt: skip
    assert run.rounds[LAST].leader == leader == LIAR + 1
    assert_same(run.model, model)


@pytest.mark.parametrize("mass", ["count", "data"])
def test_what_has_failed_before_a_lie_stays_down(mass):
    outages = [Outage(LAST, link=(0, 4), step=1), Outage(LAST, link=(2, 3), step=2)]
    lies = [GaussianNoise(server=LIAR, rounds={LAST}, p2p_step=1)]
    run = attacked(lies, mass=mass, leader=0, outages=outages)
    down = [Down((0, 4), 0), Down((2, 3), 2)]
    came_to(run, "complete", mass, {LIAR}, first_leader=0, down=down)
    if mass == "data":  # else the estimates hang on the weights alone
        with pytest.raises(AssertionError):
            came_to(run, "complete", mass, {LIAR}, first_leader=0)


@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize(
    ("outage", "step", "devices"),
    [(0, 0, (1, 2, 3, 4, 6)),  # before it hears of its devices, 0 and 5
     (3, 1, range(7)),  # 3 had heard from its devices, and their gradients are on record
     (2, 0, (0, 1, 3, 4, 5, 6))],  # 1's next one
)  # fmt: skip
def test_devices_go_to_the_next_server_that_is_up(outage, step, devices, mass):
    lies = [GaussianNoise(server=LIAR, rounds={LAST}, p2p_step=1)]
    run = attacked(lies, mass=mass, leader=4, outages=[Outage(LAST, server=outage, step=step)])
    before = run.model_of(LAST - 1)
    _, model = round_by_hand(
        before, trained_on(before, LAST, devices), LINKS["complete"], first_leader=4, mass=mass,
        aside={LIAR}, down=[Down(outage)],  # it is known to be down when the consensus begins anew
    )  # fmt: skip
    assert_same(run.model, model)
    assert len(run.incidents()) == 1


@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize("graph", ["complete", "ring"])
def test_with_many_steps_it_is_the_model_that_nobody_attacked(graph, mass):
    lies = [GaussianNoise(server=LIAR, p2p_step=3), Scaling(server=2, p2p_step=0, rounds={2})]
    settings = {"graph": graph, "mass": mass, "p2p_rounds": 90}
    peaceful, defended = attacked([], defence=None, **settings), attacked(lies, **settings)
    assert defended.rounds[1].quarantined and defended.rounds[2].quarantined == (LIAR, 2)
    assert_same(defended.model, peaceful.model, 1e-5)
    undefended = attacked(lies, defence=None, **settings)
    with pytest.raises(AssertionError):
        assert_same(undefended.model, peaceful.model, 1e-2)


# -- nobody honest is accused --------------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> dict:
    """A connected graph, devices with any data, some of which do not reply, outages, a leader rule."""
    servers = draw(st.integers(3, 6))
    tree = {(draw(st.integers(0, b - 1)), b) for b in range(1, servers)}
    more = draw(st.sets(st.sampled_from(sorted(combinations(range(servers), 2)))))
    steps = draw(st.integers(0, 3))
    devices = [
        (draw(st.integers(1, 10**6)), draw(st.integers(1, 40)), draw(st.booleans()) and n > 0)
        for n in range(draw(st.integers(servers, servers + 5)))
    ]
    outages = [Outage(2, server=m, step=draw(st.integers(0, 3))) for m in draw(st.sets(
        st.integers(1, servers - 1), max_size=servers - 2))]  # fmt: skip
    outages += [Outage(1, link=link, step=draw(st.integers(0, 3))) for link in draw(st.sets(
        st.sampled_from(sorted(tree))))]  # fmt: skip
    return {
        "edge_servers": servers,
        "graph": sorted(tree | more),
        "p2p_rounds": steps,
        "mass": draw(st.sampled_from(["count", "data"])),
        "mixing": draw(st.sampled_from(["laplacian", "metropolis"])),
        "leader": draw(st.sampled_from(["random", "reputation", 0, servers - 1])),
        "learning_rate": draw(st.sampled_from([1.0, 0.01, 3.0])),
        "devices": [_device(n, *device) for n, device in enumerate(devices)],
        "outages": outages,
        "seed": draw(st.integers(0, 99)),
    }


def _device(n: int, samples: int, steps: int, fails: bool):
    train = walker(n, samples=samples, steps=steps, named=True)

    def unreliable(server_round, arrays):
        if fails and server_round == 1:
            raise RuntimeError("out of reach")
        return train(server_round, arrays)

    return unreliable


@settings(max_examples=25)
@given(networks(), st.integers(0, 99), st.sampled_from(["exact", "float32"]))
def test_an_honest_run_is_the_same_with_a_defence_as_without(network, shuffle, arithmetic):
    defended = attacked([], defence=Replay(arithmetic), shuffle=shuffle, **network)
    plain = attacked([], defence=None, shuffle=shuffle, **network)
    assert defended.votes() == []
    assert all(not report.accused and not report.quarantined for report in defended.rounds.values())
    assert defended.incidents() == ()
    assert defended.entries[1:] == plain.entries[1:]  # all but RULES, which say that it is defended


@dataclass(frozen=True, kw_only=True)
class InFloat32(Falsification):
    """An honest server that sums up in float32, in any order, and a little off if it is told to."""

    off: float = 0.0

    def falsified(self, turn: Turn, rng: np.random.Generator) -> np.ndarray:
        total = np.zeros(turn.honest.size, np.float32)
        for place in rng.permutation(len(turn.terms)):
            weight, row = turn.terms[place]
            total += np.float32(weight) * row[0 : turn.honest.size]
        return (total * np.float32(1 + self.off)).astype(np.float32)


def in_float32(servers: list[int], off: float = 0.0, rounds=None) -> list[InFloat32]:
    return [
        InFloat32(server=m, p2p_step=place, off=off, rounds=rounds)
        for m in servers
        for place in (0, 1, 2, "model")
    ]


@pytest.mark.parametrize("mass", ["count", "data"])
@pytest.mark.parametrize("graph", LINKS)
@pytest.mark.parametrize("seed", range(2))
def test_replay_in_float32_lets_any_order_pass_and_so_does_the_audit(graph, mass, seed):
    settings = {"graph": graph, "mass": mass, "seed": seed, "leader": 0, "devices": 14, "rounds": 3}
    run = attacked(in_float32([0, 1, 2, 3]), defence=Replay("float32"), **settings)
    assert run.votes() == [] and run.incidents() == ()
    assert all(report.quarantined == () for report in run.rounds.values())
    exact = attacked([], **settings)
    assert_same(run.model, exact.model)
    assert any((run.model[name] != exact.model[name]).any() for name in exact.model)


def test_exact_replay_tells_a_bit_and_so_does_the_audit():
    settings = {"devices": 14, "rounds": 1, "quarantine_rounds": 5}
    run = attacked(in_float32([1, 2]), **settings)
    assert run.rounds[1].quarantined == (1, 2) and run.rounds[1].missed == 0
    assert {(one.server, one.upheld, one.voted_out) for one in run.incidents()} == {
        (1, True, True), (2, True, True)}  # fmt: skip
    believed = attacked(in_float32([1, 2]), **settings, defence=None)
    entry, _ = believed.blamed()
    assert entry.sender.index in (1, 2)


@pytest.mark.parametrize("place", [0, 1, 2, "model"])
@pytest.mark.parametrize("off", [1e-5, -1e-5])
def test_replay_in_float32_finds_what_is_further_off_than_rounding(place, off):
    lie = InFloat32(server=LIAR, p2p_step=place, off=off, rounds={LAST})
    honest = in_float32([0])
    run = attacked([lie, *honest], defence=Replay("float32"), devices=14, leader=LIAR)
    assert run.rounds[LAST].quarantined == (LIAR,)
    (told,) = run.rounds[LAST].accused
    assert told.offence == ("model" if place == "model" else "state")
    assert [(one.server, one.upheld) for one in run.incidents()] == [(LIAR, True)]
    noise = GaussianNoise(server=LIAR, p2p_step=place, size=1e-5, rounds={LAST})
    run = attacked([noise, *honest], defence=Replay("float32"), devices=14, leader=LIAR)
    assert run.rounds[LAST].quarantined == (LIAR,) and len(run.incidents()) == 1


@dataclass(frozen=True, kw_only=True)
class OneBit(Falsification):
    """The neighbouring float32 of every value."""

    def falsified(self, turn: Turn, rng: np.random.Generator) -> np.ndarray:
        return np.nextafter(turn.honest, np.float32(9))


@pytest.mark.parametrize("place", [0, 1, 2, "model"])
def test_exact_replay_finds_the_smallest_difference(place):
    run = attacked([OneBit(server=LIAR, p2p_step=place, rounds={LAST})], leader=LIAR)
    assert run.rounds[LAST].quarantined == (LIAR,) and len(run.incidents()) == 1


def test_exact_replay_finds_the_sign_of_a_zero():
    """A server without devices has a sum of zeros, and so has every server where no gradient goes."""
    association = [0, 1, 2, 3, 0, 1, 2]
    run = attacked([SignFlip(server=4, rounds={LAST})], association=association)
    assert run.rounds[LAST].quarantined == (4,)
    assert len(run.incidents()) == 1


def test_who_changes_but_the_sign_of_a_zero_is_guilty():
    run = attacked([SignFlip(server=4, rounds={LAST})], association=[0, 1, 2, 3, 0, 1, 2])
    assert (run.rounds[LAST].true_positives, run.rounds[LAST].false_positives) == (1, 0)


def test_what_no_server_minds_under_an_edge_rule_the_audit_does_not_mind():
    lie = OneBit(server=LIAR, rounds={LAST})
    run = attacked([lie], defence=Replay("float32"), edge_rule=Median())
    assert run.audit().finding is None


def test_who_is_named_where_a_lie_overflows():
    """Nobody defends: the leader's model is not finite, so that the round has none."""
    run = attacked([Scaling(server=LIAR, factor=1e300, p2p_step=1, rounds={LAST})], defence=None)
    entry, _ = run.blamed()
    assert entry.sender == server(LIAR)


@pytest.mark.parametrize("place", [0, 1, 2, "model"])
def test_a_lie_that_overflows_is_found(place):
    run = attacked([Scaling(server=LIAR, factor=1e300, p2p_step=place, rounds={LAST})], leader=LIAR)
    assert run.rounds[LAST].quarantined == (LIAR,) and len(run.incidents()) == 1
    assert all(np.isfinite(array).all() for array in run.model.values())


# -- the bound -----------------------------------------------------------------------------------------------


def every_sum(terms: list[np.float32]) -> set[np.float32]:
    """What float32 can make of a sum: any two terms are added first, then any two of what is left."""
    if len(terms) == 1:
        return set(terms)
    found = set()
    for a, b in combinations(range(len(terms)), 2):
        rest = [term for y, term in enumerate(terms) if y not in (a, b)]
        found |= every_sum([*rest, np.float32(terms[a] + terms[b])])
    return found


FLOATS = st.floats(-(2.0**30), 2.0**30, width=32) | st.floats(-(2.0**-120), 2.0**-120, width=32)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.floats(2.0**-20, 8.0) | st.just(1.0), FLOATS), min_size=1, max_size=4))
def test_no_order_of_adding_is_further_off_than_the_bound(terms):
    rows = [(weight, np.array([value], np.float32)) for weight, value in terms]
    exact = float(sum(Fraction(weight) * Fraction(value) for weight, value in terms))
    with np.errstate(all="ignore"):
        products = [np.float32(weight) * np.float32(value) for weight, value in terms]
        found = every_sum(products)
    (bound,) = rounding_bound(rows, 1)
    expected = np.float32(exact)
    assert max(abs(float(one) - float(expected)) for one in found) <= bound
    # and it is no more than a few roundings of the largest sum there is
    assert bound <= 20 * 2.0**-24 * sum(abs(weight * value) for weight, value in terms) + 10 * 2.0**-149
    replay = Replay("float32")
    assert all(replay.accepts(np.array([one]), np.array([expected]), rows) for one in found)


def test_the_bound_is_one_for_each_parameter():
    rows = [(0.5, np.array([1.0, 1e6, 0.0], np.float32)), (0.5, np.array([-1.0, 1e6, 0.0], np.float32))]
    bound = rounding_bound(rows, 3)
    assert bound[1] / bound[0] == pytest.approx(1e6) and 0 < bound[2] < 1e-40
    replay, expected = Replay("float32"), np.array([0.0, 1e6, 0.0], np.float32)
    assert replay.accepts(expected + np.array([0, 0.5, 0], np.float32), expected, rows)
    assert not replay.accepts(expected + np.array([0.5, 0, 0], np.float32), expected, rows)
    assert not replay.accepts(expected + np.array([0, 0, 1e-30], np.float32), expected, rows)
    assert not replay.accepts(expected * np.float32(np.nan), expected, rows)
    assert not replay.accepts(expected[:2], expected, rows)
    assert not Replay().accepts(expected + np.array([0, 0.0625, 0], np.float32), expected, rows)
