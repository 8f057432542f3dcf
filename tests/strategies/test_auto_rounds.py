"""Runs with p2p_rounds="auto": a round takes the steps that plain loops give, the audit wants no others."""

from dataclasses import replace

import numpy as np
import pytest
from attacked import LINKS, SERVERS, account, attacked, named_walkers, server
from checked_run import DEVICES, SENT_TO
from enough import enough, laplacian, metropolis, sums_of
from federation import Federation, initial, record, reply, walker
from field import Field, Sending, least_squares_app, new_points, numbered, roomy, start_weights
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl import AutoRounds, ConsensusBFL, EvmLedger, MemoryLedger, Mining, Outage
from flower_bfl.attacks import Equivocation, GaussianNoise, Scaling, Silence
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind, decode, encode
from flower_bfl.chain_adapter.records import RunRules
from flower_bfl.config import Consensus
from flower_bfl.defences import Deviation, Median, Replay
from flower_bfl.errors import ConfigError, PayloadError
from flower_bfl.strategies import _attempt, _unwatched
from flower_bfl.strategies._enough_steps import Planned, planned

ROUNDS = 3


def recorded_steps(run, k):
    """The steps of a round in which somebody recorded a state."""
    return sorted({entry.step for entry in run.of(Kind.CONSENSUS, k)})


def by_hand(run, k, *, links, mass="count", first=0, most=64, weights=None, rounds=ROUNDS, **how):
    sums, shares = sums_of(run.entries, k, first)
    if mass == "count":
        shares = {m: 1 / len(sums) for m in sums}
    weights = weights or [laplacian(links, SERVERS)] * most
    return enough(sums, shares, weights, rounds=rounds, **how)


# -- the steps of a round ------------------------------------------------------------------------------------

CASES = [
    (graph, mass, defence, tolerance)
    for i, graph in enumerate(LINKS)
    for mass, defence, tolerance in [
        ("count", None, 0.1), ("data", None, 10.0),
        ("count", Replay(), 1e-3 * 10**i), ("data", Replay(), 1.0),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("graph", "mass", "defence", "tolerance"), CASES)
def test_every_round_takes_the_steps_that_its_gradients_ask_for(graph, mass, defence, tolerance):
    auto = AutoRounds(tolerance)
    run = attacked(p2p_rounds=auto, graph=graph, mass=mass, defence=defence, rounds=ROUNDS)
    for k in range(1, ROUNDS + 1):
        phi, target = by_hand(run, k, links=LINKS[graph], mass=mass, tolerance=tolerance)
        report = run.rounds[k]
        assert report.p2p_rounds == phi
        assert report.consensus_target == pytest.approx(target)
        assert report.consensus_error <= target * (1 + 1e-5)
        assert recorded_steps(run, k) == list(range(phi + 1))
    assert run.audit().finding is None


def test_rounds_take_different_numbers_of_steps():
    """Devices that move apart, round by round."""

    def device(n):
        def train(k, arrays):
            own = {name: array - 1 - k * (-1) ** n for name, array in arrays.items()}
            return reply(own, num_examples=10, num_steps=1, device_index=n)

        return train

    run = attacked(p2p_rounds="auto", graph="ring", devices=[device(n) for n in range(SERVERS)], rounds=4)
    steps = [report.p2p_rounds for report in run.strategy.reports[1:]]
    assert steps == sorted(steps) and len({*steps}) > 1
    assert run.audit().finding is None


def test_without_a_ledger_the_steps_are_the_same():
    found = []
    for ledger in (None, MemoryLedger()):
        strategy = ConsensusBFL(
            edge_servers=SERVERS,
            graph="ring",
            p2p_rounds="auto",
            ledger=ledger,
            leader=2,
            fraction_evaluate=0.0,
        )
        strategy.start(Federation(named_walkers(7), 1), initial(), ROUNDS)
        found.append([report.p2p_rounds for report in strategy.reports[1:]])
    assert found[0] == found[1]
    assert all(found[0])


def test_on_an_evm_chain_the_audit_accepts_it_and_says_so(tmp_path):
    ledger = EvmLedger(tmp_path / "chain")
    run = attacked(p2p_rounds="auto", graph="line", ledger=ledger, run_folder=tmp_path, rounds=ROUNDS)
    rules = RunRules.decode(run.of(Kind.RULES, 0)[0].payload)
    assert rules.consensus.p2p_rounds == AutoRounds(rounds=ROUNDS)
    ledger.close()
    report = audit(tmp_path)
    assert report.finding is None and report.checked.models_recomputed == ROUNDS
    expected = [by_hand(run, k, links=LINKS["line"])[0] for k in range(1, ROUNDS + 1)]
    assert [one.p2p_rounds for one in run.strategy.reports[1:]] == expected


def test_an_absolute_tolerance_is_the_same_in_every_round():
    run = attacked(p2p_rounds=AutoRounds(4.0, absolute=True), graph="star", rounds=ROUNDS)
    for k in range(1, ROUNDS + 1):
        phi, _ = by_hand(run, k, links=LINKS["star"], tolerance=4.0, absolute=True)
        assert run.rounds[k].p2p_rounds == phi
        assert run.rounds[k].consensus_target == pytest.approx((4 / ROUNDS**0.5) ** 0.5)
    assert run.audit().finding is None


@pytest.mark.parametrize("defence", [None, Replay()])
def test_where_the_most_is_not_enough_the_report_says_so(defence):
    run = attacked(p2p_rounds=AutoRounds(1e-6, most=3), graph="line", rounds=2, defence=defence)
    report = run.rounds[2]
    assert (report.p2p_rounds, recorded_steps(run, 2)) == (3, [0, 1, 2, 3])
    assert report.consensus_bound > report.consensus_target
    assert "after 3 steps (not enough: its bound" in report.as_line()
    assert run.audit().finding is None
    fine = attacked(p2p_rounds="auto", graph="complete", rounds=1).rounds[1]
    assert f"after {fine.p2p_rounds} steps (target" in fine.as_line()
    assert "steps (" not in attacked(p2p_rounds=2, rounds=1).rounds[1].as_line()


def test_devices_that_all_say_the_same_need_no_step():
    def device(n):
        def train(_, arrays):
            moved = {name: array + 1 for name, array in arrays.items()}
            return reply(moved, num_examples=10, num_steps=1, device_index=n)

        return train

    run = attacked(p2p_rounds="auto", graph="line", devices=[device(n) for n in range(SERVERS)])
    assert [report.p2p_rounds for report in run.strategy.reports[1:]] == [0, 0]
    assert run.audit().finding is None
    for name, array in run.model_of(2).items():
        np.testing.assert_allclose(array, initial_values()[name] + 2, rtol=1e-5)


def initial_values():
    return {name: array.numpy() for name, array in initial().items()}


@pytest.mark.parametrize("mass", ["count", "data"])
def test_one_edge_server_takes_no_step(mass):
    run = attacked(p2p_rounds="auto", edge_servers=1, devices=3, defence=None, mass=mass)
    assert [report.p2p_rounds for report in run.strategy.reports[1:]] == [0, 0]
    assert run.audit().finding is None


@pytest.mark.parametrize("extra", [{"edge_rule": Median()}, {"defence": [Replay("float32"), Deviation()]}])
def test_robust_rules_and_other_arithmetic_go_with_it(extra):
    run = attacked(p2p_rounds="auto", graph="ring", **extra)
    assert run.audit().finding is None
    assert all(report.consensus_error <= report.consensus_target for report in run.strategy.reports[1:])


def test_it_goes_with_a_controller_which_counts_with_the_most(tmp_path):
    grid = Field([least_squares_app(new_points, report=numbered)] * (DEVICES + 2))
    latencies = []
    for steps in (AutoRounds(1e-3, most=20), 20):
        folder = tmp_path / str(steps)
        ledger = EvmLedger(folder / "chain")
        strategy = ConsensusBFL(
            edge_servers=2, p2p_rounds=steps, ledger=ledger, controller=Sending(roomy(DEVICES, 2), SENT_TO),
            mining=Mining(difficulty_bits=1), wait_for_nodes_s=0.1, fraction_evaluate=0.0, run_folder=folder,
        )  # fmt: skip
        strategy.start(grid, start_weights(), 2)
        ledger.close()
        latencies.append([report.latency_s["consensus"] for report in strategy.reports[1:]])
        assert strategy.reports[1].server_data == ((0, 1), (2,))
        assert audit(folder).finding is None
        assert steps == 20 or all(0 < report.p2p_rounds < 20 for report in strategy.reports[1:])
    assert latencies[0] == latencies[1]


# -- what fails, and who lies --------------------------------------------------------------------------------


@st.composite
def outages(draw):
    links = draw(st.sampled_from(sorted(LINKS)))
    found, step = [], st.integers(0, 6)
    for _ in range(draw(st.integers(0, 2))):
        found.append(Outage(2, link=draw(st.sampled_from(sorted(LINKS[links]))), step=draw(step)))
    if draw(st.booleans()):
        found.append(Outage(2, server=draw(st.integers(0, SERVERS - 1)), step=draw(step)))
    return links, found


@given(outages(), st.sampled_from(["count", "data"]), st.sampled_from([0.01, 0.3, 3.0]), st.booleans())
@settings(max_examples=80, derandomize=True)
def test_outages_are_counted_from_the_step_in_which_they_begin(case, mass, tolerance, watched):
    graph, down = case
    run = attacked(
        p2p_rounds=AutoRounds(tolerance, most=30), graph=graph, mass=mass, outages=down, rounds=ROUNDS,
        defence=Replay() if watched else None,
    )  # fmt: skip
    weights, gone = [], []
    for step in range(30):
        matrix = laplacian(LINKS[graph], SERVERS)
        gone.append({one.server for one in down if one.server is not None and one.step <= step})
        cut = [one.link for one in down if one.link is not None and one.step <= step]
        for a, b in {*cut, *(link for link in LINKS[graph] if {*link} & gone[-1])}:
            for one, other in ((a, b), (b, a)):
                matrix[one][one] += matrix[one][other]
                matrix[one][other] = 0.0
        weights.append(matrix)
    for k in (1, 2):
        now = {"weights": weights, "gone": gone} if k == 2 else {}
        phi, target = by_hand(run, k, links=LINKS[graph], mass=mass, tolerance=tolerance, most=30, **now)
        assert run.rounds[k].p2p_rounds == phi
        lost = [one for one in down if one.server is not None and 0 < one.step <= phi]
        if phi < 30 and not (lost and k == 2):
            assert run.rounds[k].consensus_error <= target * (1 + 1e-5)
            assert run.rounds[k].consensus_bound <= target * (1 + 1e-5)
    assert run.audit().finding is None


LIES = {
    "in its sum": GaussianNoise(server=1, rounds={2}),
    "in step 1": Scaling(server=1, rounds={2}, p2p_step=1),
    "silence": Silence(server=1, rounds={2}, p2p_step=0),
    "silence later": Silence(server=1, rounds={2}, p2p_step=2),
    "equivocation": Equivocation(server=1, rounds={2}, p2p_step=1),
    "in the model": GaussianNoise(server=1, rounds={2}, p2p_step="model"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("graph", ["ring", "complete"])
def test_anew_without_a_liar_the_steps_are_those_of_the_rest(lie, graph):
    run = attacked([LIES[lie]], p2p_rounds=AutoRounds(1e-3, most=40), graph=graph, rounds=ROUNDS, leader=1)
    report = run.rounds[2]
    assert [(one.server, one.voted_out) for one in report.accused] == [(1, True)]
    if lie == "in the model":
        phi, _ = by_hand(run, 2, links=LINKS[graph], most=40, tolerance=1e-3)
        assert (recorded_steps(run, 2), report.p2p_rounds) == (list(range(phi + 1)), phi)
    else:
        rest = metropolis([link for link in LINKS[graph] if 1 not in link], SERVERS)
        phi, target = by_hand(
            run, 2, links=(), first=41, weights=[rest] * 40, gone=[{1}], tolerance=1e-3
        )  # fmt: skip
        assert [step for step in recorded_steps(run, 2) if step > 40] == list(range(41, 42 + phi))
        assert max(step for step in recorded_steps(run, 2) if step <= 40) <= 2
        assert report.p2p_rounds == phi
        assert report.consensus_error <= target * (1 + 1e-5)
    assert [(one.server, one.upheld) for one in run.incidents()] == [(1, True)]


@pytest.mark.parametrize(("step", "votes"), [(1, False), (30, True)])
def test_who_failed_before_the_last_step_has_no_vote_on_the_model(step, votes):
    lie, outage = GaussianNoise(server=1, rounds={2}, p2p_step="model"), Outage(2, server=3, step=step)
    run = attacked([lie], p2p_rounds="auto", leader=1, outages=[outage])
    assert 1 <= run.rounds[2].p2p_rounds < 30
    voters = {vote.sender.index for vote in run.votes()}
    assert voters == ({0, 2, 3, 4} if votes else {0, 2, 4})
    assert run.audit().finding is None


def test_an_attack_after_the_last_step_does_not_happen():
    lie = GaussianNoise(server=1, p2p_step=30)
    run = attacked([lie], p2p_rounds="auto", graph="complete")
    for report in run.strategy.reports[1:]:
        assert 0 < report.p2p_rounds < 30
        assert (report.accused, report.true_positives, report.missed) == ((), 0, 0)
    assert run.audit().finding is None
    with pytest.raises(ConfigError, match=r"must act in steps 0\.\.64"):
        attacked([replace(lie, p2p_step=65)], p2p_rounds="auto")


# -- what the audit says of another number of steps ----------------------------------------------------------


@pytest.mark.parametrize("defence", [None, Replay()])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_run_with_a_step_fewer_or_more_is_found(defence, more, monkeypatch):
    """Everything else about it is right: the model follows from the last state that there is."""

    def other(auto, partials, size, mass, mixings, down):
        plan = planned(auto, partials, size, mass, mixings, down)
        return Planned(mixings[: len(plan.mixings) + more], plan.target)

    module = _unwatched if defence is None else _attempt
    with monkeypatch.context() as patched:
        patched.setattr(module, "planned", other)
        run = attacked(p2p_rounds="auto", graph="ring", defence=defence, leader=3)
    finding = run.audit().finding
    phi, _ = by_hand(run, 1, links=LINKS["ring"], rounds=2)
    assert run.rounds[1].p2p_rounds == phi + more
    if more > 0:
        assert f"must take {phi} steps" in finding.rule
        entry = run.entries[finding.block]
        assert (entry.kind, entry.round, entry.step) == (Kind.CONSENSUS, 1, phi + 1)
        assert finding.account == account(entry.sender)
    else:
        assert f"must record x^({phi})" in finding.rule and finding.account == "server 0"


@pytest.mark.parametrize(
    "said",
    [
        {"tolerance": "5.0"},
        {"rounds": "99999"},
        {"absolute": "yes"},
        {"most-p2p-rounds": "2"},
        {"p2p-rounds": "5"},
    ],
    ids=str,
)
def test_rules_that_are_not_those_of_the_run_are_found(said):
    run = attacked(p2p_rounds="auto", graph="ring")
    assert run.audit().finding is None
    arrays, metadata = decode(run.entries[0].payload)
    if said == {"p2p-rounds": "5"}:
        for name in ("tolerance", "rounds", "most-p2p-rounds"):
            del metadata[name]
    run.entries[0] = replace(run.entries[0], payload=encode(arrays, metadata | said))
    finding = run.audit().finding
    assert "must record x^(" in finding.rule or "must take" in finding.rule


@pytest.mark.parametrize("said", [{"tolerance": "0.10"}, {"momentum": "1"}, {"absolute": "no"}], ids=str)
def test_rules_have_one_form(said):
    run = attacked(p2p_rounds="auto", graph="ring")
    arrays, metadata = decode(run.entries[0].payload)
    run.entries[0] = replace(run.entries[0], payload=encode(arrays, metadata | said))
    assert "nothing else" in run.audit().finding.rule


def test_what_nobody_summed_up_rightly_is_found_before_its_steps():
    run = attacked(p2p_rounds="auto", graph="ring")
    place = next(i for i, e in enumerate(run.entries) if (e.kind, e.round, e.step) == (Kind.CONSENSUS, 1, 0))
    entry = run.entries[place]
    arrays, said = decode(entry.payload)
    twice = {name: 2 * array for name, array in arrays.items()}
    run.entries[place] = replace(entry, payload=encode(twice, said))
    finding = run.audit().finding
    assert "eq. (8)" in finding.rule and run.entries[finding.block].sender == server(0)


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AutoRounds(0), "`tolerance` must be positive and finite, got 0"),
        (lambda: AutoRounds(float("nan")), "`tolerance` must be positive and finite, got nan"),
        (lambda: AutoRounds(float("inf")), "`tolerance` must be positive and finite, got inf"),
        (lambda: AutoRounds(most=0), "`most` must be a whole number from 1 to 65535, got 0"),
        (lambda: AutoRounds(rounds=0), "`rounds` must be a whole number from 1 .* got 0"),
        (lambda: ConsensusBFL(p2p_rounds="many"), "`p2p_rounds` must be a whole number, 'auto' or .* 'many'"),
        (lambda: ConsensusBFL(edge_servers=4, p2p_rounds=AutoRounds(most=2**14), defence=Replay(),
                              ledger=MemoryLedger()), "`p2p_rounds` [+] 1 must be at most 65536"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_without_start_somebody_must_say_how_many_rounds_there_are():
    grid = Federation([walker(n, named=True) for n in range(3)], 1)
    with pytest.raises(ConfigError, match="`p2p_rounds` must say how many `rounds`"):
        list(ConsensusBFL(p2p_rounds="auto").configure_train(1, initial(), ConfigRecord(), grid))
    strategy = ConsensusBFL(p2p_rounds=AutoRounds(rounds=10), graph="line")
    replies = grid.send_and_receive(strategy.configure_train(1, initial(), ConfigRecord(), grid))
    strategy.aggregate_train(1, replies)
    strategy.finish()
    assert strategy.reports[-1].p2p_rounds > 0
    assert strategy.consensus.p2p_rounds.rounds == 10


def test_a_tolerance_that_is_a_whole_number_is_recorded_like_any_other():
    run = attacked(p2p_rounds=AutoRounds(1), graph="line")
    assert run.audit().finding is None


@pytest.mark.parametrize("auto", [AutoRounds(0.3, True, 9, 5), AutoRounds(1e-300, rounds=2**31)])
def test_rules_say_how_steps_are_counted(auto):
    consensus = Consensus(3, auto, "data", 1, 0.5)
    rules = RunRules.decode(RunRules("ConsensusBFL", consensus, np.eye(3)).encode())
    assert rules.consensus == consensus


@pytest.mark.parametrize("lost", ["tolerance", "rounds", "most-p2p-rounds"])
def test_rules_without_a_constant_are_none(lost):
    payload = RunRules("ConsensusBFL", Consensus(3, AutoRounds(rounds=5)), np.eye(3)).encode()
    arrays, metadata = decode(payload)
    del metadata[lost]
    with pytest.raises(PayloadError, match="does not say how models are made"):
        RunRules.decode(encode(arrays, metadata))


def test_rules_of_the_format_before_say_so():
    arrays, metadata = decode(RunRules("ConsensusBFL", Consensus(), np.eye(3)).encode())
    assert metadata["format"] == "flower-bfl 5"
    with pytest.raises(PayloadError, match="format must be 'flower-bfl 5', got 'flower-bfl 4'"):
        RunRules.decode(encode(arrays, metadata | {"format": "flower-bfl 4"}))


def test_a_model_without_numbers_to_train_takes_no_step():
    devices = [walker(n, named=True) for n in range(3)]
    strategy = ConsensusBFL(p2p_rounds="auto", mining=Mining(difficulty_bits=1), fraction_evaluate=0.0)
    strategy.start(Federation(devices, 1), record({"count": np.array([3])}), 1)
    assert strategy.reports[1].p2p_rounds == 0
