"""Whatever a minority of edge servers does: nobody honest is barred, and the audit passes."""

import numpy as np
from attacked import attacked
from federation import record, walker
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl import AutoRounds, FlowerBFLError, Mining, Outage
from flower_bfl.attacks import (
    Equivocation,
    FalseAccusation,
    GaussianNoise,
    InnerProduct,
    OldValue,
    Scaling,
    Silence,
)
from flower_bfl.defences import Deviation, Krum, Median, Replay

ROUNDS = 3


@st.composite
def settings_of_runs(draw):
    """Arguments of a run with at most ⌊(M−1)/2⌋ edge servers that are compromised or down."""
    servers, steps = draw(st.integers(3, 6)), draw(st.integers(0, 3))
    bad = draw(st.lists(st.integers(0, servers - 1), max_size=(servers - 1) // 2, unique=True))
    failing = draw(st.sampled_from([*bad, None])) if bad else None
    attacks = []
    for server in (m for m in bad if m != failing):
        for _ in range(draw(st.integers(1, 2))):
            rounds = draw(st.sets(st.integers(1, ROUNDS), min_size=1))
            place = draw(st.sampled_from([*range(steps + 1), "model"]))
            kind = draw(
                st.sampled_from([GaussianNoise, InnerProduct, OldValue, Scaling, Silence, "step only"])
            )
            if kind == "step only" and place != "model":
                victim = draw(st.sampled_from([m for m in range(servers) if m != server]))
                attacks.append(
                    Equivocation(server=server, rounds=rounds, p2p_step=place)
                    if draw(st.booleans())
                    else FalseAccusation(server=server, rounds=rounds, p2p_step=place, accused=victim)
                )
            elif kind is Scaling:
                factor = draw(st.sampled_from([1 + 1e-5, 10, 1e300]))
                attacks.append(Scaling(server=server, rounds=rounds, p2p_step=place, factor=factor))
            elif kind != "step only":
                attacks.append(kind(server=server, rounds=rounds, p2p_step=place))
    outages = []
    if failing is not None:
        at = draw(st.integers(1, ROUNDS)), draw(st.integers(0, steps))
        outages.append(Outage(at[0], server=failing, step=at[1]))
    return attacks, {
        "edge_servers": servers,
        "p2p_rounds": draw(st.sampled_from([steps, steps, AutoRounds(draw(TOLERANCES), most=max(steps, 1))])),
        "graph": draw(st.sampled_from(["complete", "ring", "line", "star", "random"])),
        "mass": draw(st.sampled_from(["count", "data"])),
        "leader": draw(st.sampled_from(["random", "reputation", 0, servers - 1])),
        "quarantine_rounds": draw(st.integers(0, 3)),
        "outages": outages,
        "defence": draw(st.sampled_from([Replay(), Replay("float32"), [Replay(), Deviation()]])),
        "edge_rule": draw(st.sampled_from([None, None, Median(), Krum()])),
        "devices": [device(n, draw(FATES)) for n in range(draw(st.sampled_from([servers, servers + 4])))],
        "mining": Mining(difficulty_bits=1),
        "wait_for_nodes_s": 0.1,
        "rounds": ROUNDS,
    }


TOLERANCES = st.sampled_from([1e-4, 0.3, 10.0])
FATES = st.sampled_from(["well", "well", "well", "fails", "NaN", "huge"])


def device(number, fate):
    """One that does well, or badly from round 2 on."""
    own = walker(number, named=True, steps=1 + number % 3)

    def train(server_round, arrays):
        if fate == "fails" and server_round > 1:
            raise RuntimeError("out of battery")
        reply = own(server_round, arrays)
        if fate in ("NaN", "huge") and server_round > 1:
            value = np.nan if fate == "NaN" else -3e38
            reply["arrays"] = record({name: np.full_like(array, value) for name, array in arrays.items()})
        return reply

    return train


@settings(max_examples=150, derandomize=True)  # the same ones everywhere
@given(settings_of_runs())
def test_a_minority_gets_nowhere(run):
    attacks, arguments = run
    try:
        run = attacked(attacks, **arguments)
    except FlowerBFLError as error:  # what quarantine and an outage leave may be nobody
        assert "no edge server is left" in str(error) or "can be used" in str(error)
        return
    compromised = {attack.server for attack in attacks}
    for report in run.strategy.reports:
        assert {one.server for one in report.accused if one.voted_out} <= compromised
        assert set(report.quarantined) <= compromised
    assert run.audit().finding is None
