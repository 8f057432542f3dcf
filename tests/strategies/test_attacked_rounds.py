"""Edge servers that lie: who is found, voted out and kept in quarantine, and what the audit says of it."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from attacked import (
    LINKS,
    SERVERS,
    STEPS,
    Run,
    account,
    attacked,
    homes,
    named_walkers,
    server,
    set_aside,
)

from flower_bfl import EvmLedger, Outage
from flower_bfl.attacks import (
    ALittleIsEnough,
    Attack,
    Equivocation,
    FalseAccusation,
    GaussianNoise,
    InnerProduct,
    OldValue,
    Scaling,
    SignFlip,
    Silence,
)
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind
from flower_bfl.errors import ConfigError

LIAR = 1
ATTACKED = 2  # the last round of most runs
FALSE_VALUES: dict[str, Callable[..., Attack]] = {
    "noise": GaussianNoise,
    "a little noise": lambda **where: GaussianNoise(size=1e-5, **where),
    "sign flip": SignFlip,
    "scaling": Scaling,
    "a little is enough": ALittleIsEnough,
    "inner product": InnerProduct,
    "old value": OldValue,
}
LIES = FALSE_VALUES | {
    "silence": Silence,
    "equivocation": Equivocation,
    "false accusation": lambda **where: FalseAccusation(accused=3, **where),
}
NO_MODEL = {"a little is enough", "equivocation", "false accusation"}  # of one vector the spread is 0
PLACES = (0, 1, STEPS, "model")
CASES = [
    (name, place, graph, ("count", "data")[(i + j + k) % 2])
    for i, name in enumerate(LIES)
    for j, place in enumerate(PLACES)
    for k, graph in enumerate(LINKS)
    if place != "model" or name not in NO_MODEL
]


def lied(name: str, place: int | str, graph: str, mass: str, **settings) -> Run:
    attack = LIES[name](server=LIAR, rounds={ATTACKED}, p2p_step=place)
    leader = LIAR if place == "model" else "random"
    return attacked([attack], **{"graph": graph, "mass": mass, "leader": leader, "shuffle": None} | settings)


def offence_of(name: str, place: int | str) -> str:
    if name == "silence":
        return "no model" if place == "model" else "silence"
    others = {"equivocation": "equivocation", "false accusation": "accusation"}
    return others.get(name, "model" if place == "model" else "state")


# -- one liar ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "place", "graph", "mass"), CASES)
def test_a_liar_is_found_in_its_own_round_and_nobody_else_is(name, place, graph, mass):
    run = lied(name, place, graph, mass)
    report = run.rounds[ATTACKED]
    offence = offence_of(name, place)
    told = [one for one in report.accused if one.server == LIAR]
    assert [(one.offence, one.votes, one.voted_out) for one in told] == [(offence, SERVERS - 1, True)]
    assert report.quarantined == (LIAR,)
    assert (report.true_positives, report.false_positives, report.missed) == (1, 0, 0)
    assert report.attacked and run.rounds[1].attacked == ()
    if offence not in ("accusation", "model", "no model"):
        assert told[0].step == place

    # the others begin anew without it, but for a model, whose sum was right
    aside = set() if place == "model" else set_aside(LINKS[graph], SERVERS, {LIAR})
    assert report.cut_off == tuple(sorted(aside - {LIAR}))
    home = homes(range(7), SERVERS, aside)
    assert report.server_devices == tuple(tuple(n for n in home if home[n] == m) for m in range(SERVERS))
    assert report.leader != LIAR

    # the audit tells the same from the ledger alone
    incidents = [one for one in run.incidents() if one.server == LIAR]
    assert [(one.round, one.offence, one.votes, one.voted_out, one.upheld) for one in incidents] == [
        (ATTACKED, offence, SERVERS - 1, True, True)
    ]
    assert incidents[0].step == told[0].step
    others = [one for one in run.incidents() if one.server != LIAR]
    assert [(o.server, o.votes, o.voted_out, o.upheld) for o in others] == (
        [(3, 1, False, False)] if name == "false accusation" else []
    )


@pytest.mark.parametrize(("name", "place", "graph", "mass"), CASES[::2] + CASES[1::4])
def test_without_a_defence_the_audit_names_the_account(name, place, graph, mass):
    run = lied(name, place, graph, mass, defence=None)
    report = run.rounds[ATTACKED]
    assert not report.quarantined and not run.rounds[1].missed
    assert (report.true_positives, report.false_positives, report.missed) == (0, 0, 1)
    if name == "false accusation":  # one vote bars nobody: nothing is wrong but the vote, which is on record
        assert [(o.server, o.voted_out, o.upheld) for o in run.incidents()] == [(3, False, False)]
        return
    if name == "equivocation" and place == STEPS:  # nobody mixes the last state in
        assert run.incidents() == ()
        return
    entry, who = run.blamed()
    if name == "silence":
        if place == "model":  # whoever led in its place had no right to, as far as the ledger shows
            assert (entry.kind, entry.step, who) == (Kind.MODEL, 1, account(server(LIAR + 1)))
            assert run.audit().finding.expected == f"edge server {LIAR} leads"
        else:
            assert (entry, who) == (None, f"server {LIAR}")
        return
    if name == "equivocation":
        # Honest, but no more than that: what was sent to some is not on record, so it is the first of those
        # who believed it whose state does not follow.
        neighbours = sorted({a + b - LIAR for a, b in LINKS[graph] if LIAR in (a, b)})
        assert (entry.sender, who) == (server(neighbours[0]), account(server(neighbours[0])))
        assert entry.step == place + 1
        return
    kind, step = (Kind.MODEL, 0) if place == "model" else (Kind.CONSENSUS, place)
    assert (entry.kind, entry.round, entry.step, entry.sender) == (kind, ATTACKED, step, server(LIAR))
    assert who == account(server(LIAR))


@pytest.mark.parametrize(
    ("name", "place"),
    [("noise", 1), ("silence", 0), ("silence", "model"), ("old value", "model"), ("equivocation", 1),
     ("false accusation", 1)],
)  # fmt: skip
def test_a_real_chain_takes_it_and_its_folder_follows(name, place, tmp_path):
    settings = {"edge_servers": 4, "devices": 4, "p2p_rounds": 1, "run_folder": tmp_path}
    run = lied(name, place, "ring", "count", ledger=EvmLedger(tmp_path / "chain"), **settings)
    assert run.rounds[ATTACKED].quarantined == (LIAR,)
    report = audit(Path(tmp_path))
    assert report.finding is None
    (incident,) = [one for one in report.incidents if one.server == LIAR]
    assert (incident.round, incident.offence, incident.voted_out) == (ATTACKED, offence_of(name, place), True)
    assert incident.upheld and incident.votes == 3
    if name != "silence":
        assert incident.account.startswith(account(server(LIAR)))


def test_without_a_defence_the_folder_of_a_real_chain_does_not_follow(tmp_path):
    settings = {"edge_servers": 3, "devices": 3, "p2p_rounds": 1, "run_folder": tmp_path, "defence": None}
    lied("a little noise", 0, "line", "count", ledger=EvmLedger(tmp_path / "chain"), **settings)
    assert audit(Path(tmp_path)).finding.account == account(server(LIAR))


def test_two_runs_of_one_seed_lie_and_vote_alike():
    runs = [lied("noise", 1, "ring", "data", shuffle=shuffle) for shuffle in (1, 2)]
    assert runs[0].entries == runs[1].entries
    assert runs[0].entries != lied("noise", 1, "ring", "data", seed=1).entries


# -- quarantine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarantine", [0, 1, 3])
@pytest.mark.parametrize("place", [1, "model"])
def test_quarantine_lasts_as_long_as_it_was_said_and_no_longer(place, quarantine):
    attack = GaussianNoise(server=LIAR, rounds={1}, p2p_step=place)
    run = attacked([attack], rounds=quarantine + 2, quarantine_rounds=quarantine, leader=LIAR)
    for k in range(2, quarantine + 2):
        assert run.rounds[k].quarantined == (LIAR,) and run.rounds[k].accused == ()
        assert run.rounds[k].leader == LIAR + 1  # the next one
        assert run.rounds[k].server_devices[LIAR] == () and LIAR in run.rounds[k].server_devices[LIAR + 1]
        assert not any(entry.sender == server(LIAR) for entry in run.entries if entry.round == k)
    back = run.rounds[quarantine + 2]
    assert (back.quarantined, back.leader, back.server_devices[LIAR]) == ((), LIAR, (1, 6))
    assert [(one.round, one.upheld) for one in run.incidents()] == [(1, True)]


@pytest.mark.parametrize("quarantine", [0, 2])
def test_who_lies_again_is_voted_out_again(quarantine):
    run = attacked([GaussianNoise(server=LIAR, p2p_step=1)], rounds=7, quarantine_rounds=quarantine)
    caught = [k for k in range(1, 8) if run.rounds[k].accused]
    assert caught == list(range(1, 8, quarantine + 1))
    assert [one.round for one in run.incidents()] == caught
    assert all(run.rounds[k].quarantined == (LIAR,) for k in range(1, 8))
    assert all(run.rounds[k].missed == 0 for k in range(1, 8))
    assert [run.rounds[k].true_positives for k in range(1, 8)] == [int(k in caught) for k in range(1, 8)]


@pytest.mark.parametrize("graph", ["complete", "line"])
def test_draws_pass_over_who_is_barred_or_cut_off(graph):
    run = attacked([Silence(server=LIAR, rounds={1})], rounds=9, quarantine_rounds=20, graph=graph)
    aside, passed_over = set_aside(LINKS[graph], SERVERS, {LIAR}), 0
    for k in range(1, 10):
        head = bytes.fromhex(run.rounds[k - 1].head)
        drawn = leader = int.from_bytes(sha256(head + k.to_bytes(8, "big")).digest(), "big") % SERVERS
        while leader in aside:
            leader = (leader + 1) % SERVERS
        passed_over += leader != drawn
        assert run.rounds[k].leader == leader
        assert run.of(Kind.MODEL, k)[0].step == (leader - drawn) % SERVERS
    assert passed_over
    assert len(run.incidents()) == 1


@pytest.mark.parametrize("rounds", [-1, 1.5, 2**31, True])
def test_quarantine_takes_a_number_of_rounds(rounds):
    with pytest.raises(ConfigError, match="`quarantine_rounds` must be a whole number"):
        attacked([], quarantine_rounds=rounds, rounds=1)


# -- several -------------------------------------------------------------------------------------------------


def together(colluders: list[int], accused: int, *, at: int, false_at: int | str = 1) -> list[Attack]:
    attacks: list[Attack] = [FalseAccusation(server=m, accused=accused, p2p_step=at) for m in colluders]
    return attacks + [GaussianNoise(server=m, p2p_step=false_at) for m in colluders]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("servers", [3, 4, 5, 7])
def test_fewer_than_half_of_the_others_cannot_bar_an_honest_server(servers, at):
    colluders = [*range(servers)][-((servers - 1) // 2) :]
    attacks = together(colluders, 0, at=at)
    run = attacked(attacks, rounds=3, edge_servers=servers, devices=servers + 2)
    honest = servers - len(colluders)
    for k in (1, 3):  # and between, they are barred
        report = run.rounds[k]
        assert report.quarantined == tuple(colluders) == run.rounds[2].quarantined
        assert (report.true_positives, report.false_positives, report.missed) == (len(colluders), 0, 0)
        assert all(one.votes == honest for one in report.accused if one.server in colluders)
        if at < 2:  # else they are gone before they can
            assert [one.votes for one in report.accused if one.server == 0] == [len(colluders)]
    for one in run.incidents():
        assert one.voted_out == one.upheld == (one.server in colluders)


@pytest.mark.parametrize("leader", [0, 4, "random"])
def test_leaders_in_league_are_voted_out_one_after_the_other(leader):
    run = attacked(
        [GaussianNoise(server=4, p2p_step="model"), Silence(server=0, p2p_step="model")],
        rounds=6, leader=leader, quarantine_rounds=0,
    )  # fmt: skip
    for k in range(1, 7):
        report = run.rounds[k]
        assert report.leader not in (0, 4)
        assert report.quarantined == tuple(sorted(one.server for one in report.accused))
        assert report.quarantined == {4: (0, 4), 0: (0,)}.get(leader, report.quarantined)
        assert (report.false_positives, report.missed) == (0, 0)
    assert all(one.upheld and one.voted_out for one in run.incidents())


def test_one_after_the_other_in_every_step():
    attacks = [GaussianNoise(server=3, p2p_step=0), SignFlip(server=1, p2p_step=2)]
    run = attacked(attacks, rounds=1, mass="data")
    assert [(one.server, one.step) for one in run.rounds[1].accused] == [(3, 0), (1, 2 + STEPS + 1)]
    assert [(one.server, one.upheld) for one in run.incidents()] == [(3, True), (1, True)]
    assert run.rounds[1].server_devices == ((0, 5), (), (1, 2, 6), (), (3, 4))


@pytest.mark.parametrize(  # where they only lie, half of four others are enough to bar them
    ("servers", "accuse"), [(3, True), (4, True), (5, True), (7, True), (3, False), (5, False), (7, False)]
)
def test_one_more_can_but_the_audit_says_so(servers, accuse):
    colluders = [*range(servers)][-((servers - 1) // 2 + 1) :]
    attacks = together(colluders, 0, at=0)[: None if accuse else 0] or [
        GaussianNoise(server=m, p2p_step=1) for m in colluders
    ]
    run = attacked(attacks, rounds=2, edge_servers=servers, devices=servers + 2)
    entry, who = run.blamed()
    assert entry.sender.index in colluders and who == account(entry.sender)
    if accuse:
        assert 0 in run.rounds[1].quarantined and run.rounds[1].false_positives == 1
        assert (entry.kind, entry.step) == (Kind.VOTE, 0)
    else:
        assert run.rounds[1].quarantined == () and run.rounds[1].missed == len(colluders)
        assert (entry.kind, entry.step) == (Kind.CONSENSUS, 1)


# -- what falls apart, and what fails ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "liar", "cut_off"),
    [("line", 2, (3, 4)), ("line", 1, (0,)), ("line", 3, (4,)), ("line", 0, ()), ("star", 0, (2, 3, 4)),
     ("star", 2, ()), ("ring", 2, ())],
)  # fmt: skip
def test_who_is_cut_off_stands_aside_until_the_quarantine_ends(graph, liar, cut_off):
    run = attacked([Silence(server=liar, p2p_step=1, rounds={1})], rounds=3, graph=graph, mass="data")
    assert run.rounds[3].cut_off == run.rounds[3].quarantined == ()
    for k in (1, 2):
        report = run.rounds[k]
        assert (report.quarantined, report.cut_off) == ((liar,), cut_off)
        assert report.leader not in (liar, *cut_off)
        assert all(report.server_devices[m] == () for m in (liar, *cut_off))
        assert sorted(n for group in report.server_devices for n in group) == [*range(7)]
        assert report.samples == sum(10 + 7 * n for n in range(7)) and report.left_out == ()
    assert [(one.server, one.upheld) for one in run.incidents()] == [(liar, True)]


OUTAGES = {
    "the next one, from the start": [Outage(ATTACKED, server=2)],
    "the next one, in the end": [Outage(ATTACKED, server=2, step=2)],
    "the one before, from the start": [Outage(ATTACKED, server=0)],
    "another one, in between": [Outage(ATTACKED, server=3, step=1)],
    "links": [Outage(ATTACKED, link=(0, 1), step=1), Outage(ATTACKED, link=(3, 4), step=0)],
}


@pytest.mark.parametrize("place", [0, 1, 2, "model"])
@pytest.mark.parametrize("graph", ["complete", "line"])
@pytest.mark.parametrize("outages", OUTAGES)
def test_outages_and_lies_in_one_round(outages, graph, place):
    run = lied("noise", place, graph, "data", outages=OUTAGES[outages], rounds=ATTACKED + 1)
    report = run.rounds[ATTACKED]
    assert report.down and report.quarantined == (LIAR,)
    assert (report.true_positives, report.false_positives, report.missed) == (1, 0, 0)
    assert [(one.round, one.server, one.upheld) for one in run.incidents()] == [(ATTACKED, LIAR, True)]


def test_who_is_down_does_not_lie():
    run = lied("noise", 2, "complete", "count", outages=[Outage(ATTACKED, server=LIAR, step=1)])
    report = run.rounds[ATTACKED]
    assert (report.accused, report.quarantined) == ((), ())
    assert (report.true_positives, report.false_positives, report.missed) == (0, 0, 0)
    assert run.incidents() == ()


@pytest.mark.parametrize("place", [1, "model"])
def test_who_is_down_does_not_vote(place):
    run = lied("noise", place, "complete", "count", outages=[Outage(ATTACKED, server=3)])
    assert {vote.sender.index for vote in run.of(Kind.VOTE, ATTACKED)} == {0, 2, 4}


@pytest.mark.parametrize("name", ["noise", "silence"])
def test_if_the_only_one_who_can_lead_lies_the_model_stays(name):
    settings = {"edge_servers": 3, "p2p_rounds": 0, "association": [LIAR] * 7, "rounds": 4}
    run = lied(name, "model", "complete", "data", **settings)
    assert run.rounds[ATTACKED].quarantined == (LIAR,)
    before, after = run.model_of(ATTACKED - 1), run.model_of(ATTACKED)
    assert all((before[name] == after[name]).all() for name in before)
    assert [(one.server, one.upheld) for one in run.incidents()] == [(LIAR, True)]


def test_a_round_in_which_nobody_replies_has_nothing_of_the_round_before():
    def sometimes(device):
        def train(server_round, arrays):
            if server_round == 2:
                raise RuntimeError("out of reach")
            return device(server_round, arrays)

        return train

    attack = GaussianNoise(server=LIAR, rounds={1, 2, 4}, p2p_step=1)
    run = attacked([attack], rounds=4, devices=[sometimes(device) for device in named_walkers(7)])
    assert run.of(Kind.VOTE, 2) == run.of(Kind.CONSENSUS, 2) == []
    assert run.rounds[2].quarantined == (LIAR,) and run.rounds[2].missed == 0
    assert [(one.round, one.upheld) for one in run.incidents()] == [(1, True), (4, True)]
