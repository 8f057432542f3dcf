"""Rounds with too few devices, or none; outages of edge servers; nodes that claim to be somebody else."""

import pytest
from checked_run import DEVICES, EDGE_0, EDGE_1, SENT_TO, SERVERS, checked_run, usual
from field import (
    Field,
    Sending,
    answering,
    failing,
    least_squares_app,
    new_points,
    numbered,
    roomy,
    silent,
    start_weights,
    when,
)
from flwr.app import ConfigRecord

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, FlowerBFLError, Outage
from flower_bfl.chain_adapter import Kind
from flower_bfl.types import LeftOut

# -- nobody, and outages ---------------------------------------------------------------------------------


def test_the_first_round_waits_for_devices_that_report_late():
    def late(place):
        asked = []

        def reply(message):
            asked.append(message)
            if message.metadata.message_type == "query.report" and len(asked) < 3:
                return None
            raise LookupError

        return reply

    grid = Field([least_squares_app(new_points)] * 7, faults={place: late(place) for place in range(7)})
    strategy = ConsensusBFL(edge_servers=2, controller=Sending(roomy(5, 2), {}), wait_for_nodes_s=30)
    strategy.start(grid, start_weights(), num_rounds=1)
    assert (strategy.reports[1].devices, strategy.reports[1].left_out) == (5, ())


def test_a_round_in_which_nobody_reports_keeps_the_model(tmp_path, caplog):
    faults = {n: when("query.report", silent, rounds=[2]) for n in range(DEVICES)}
    strategy, grid = checked_run(tmp_path, faults=faults)
    report = strategy.reports[2]
    assert report.left_out == tuple(LeftOut(f"device {n}", "no report in time") for n in range(DEVICES))
    assert report.devices == 0 and not grid.told("train", 2)
    assert "round 2: nobody trains, 0 devices of 2 report" in caplog.text
    assert usual(strategy.reports[3])


def test_a_round_with_fewer_devices_than_it_needs_keeps_the_model(tmp_path):
    faults = {n: when("query.report", silent, rounds=[2]) for n in range(DEVICES - 1)}
    grid = Field([least_squares_app(new_points)] * (DEVICES + SERVERS), faults=faults)
    strategy = ConsensusBFL(
        edge_servers=SERVERS, controller=Sending(roomy(DEVICES, SERVERS), {}), wait_for_nodes_s=0.1
    )
    strategy.start(grid, start_weights(), num_rounds=3)
    assert [report.devices for report in strategy.reports[1:]] == [5, 0, 5]
    assert not grid.told("train", 2)


def test_a_round_in_which_all_fail_keeps_the_model(tmp_path):
    faults = {n: when("train", failing("no memory"), rounds=[2]) for n in (3, 4)}
    faults |= {place: when("train.edge", silent, rounds=[2]) for place in (EDGE_0, EDGE_1)}
    strategy, _ = checked_run(tmp_path, faults=faults)
    entries = EvmLedger(tmp_path / "chain").entries()
    sent = [entry.sender.index for entry in entries if (entry.kind, entry.round) == (Kind.DATA, 2)]
    assert sent == [0, 1, 2]  # that is on the ledger, whatever became of it
    assert [one.who for one in strategy.reports[2].left_out] == [
        "device 3", "device 4", "edge server 0", "device 0", "device 1", "edge server 1", "device 2"
    ]  # fmt: skip
    assert usual(strategy.reports[3])


def test_a_first_round_goes_on_with_those_who_are_left(tmp_path):
    faults = {EDGE_0: when("train.edge", silent, rounds=[1]), 3: when("train", failing(), rounds=[1])}
    faults[2] = when("query.offload", silent, rounds=[1])
    strategy, _ = checked_run(tmp_path, faults=faults)
    assert (strategy.reports[1].devices, strategy.reports[1].server_data) == (1, ((), ()))
    assert usual(strategy.reports[2])


def test_a_first_round_that_nobody_is_left_of_ends_the_run(tmp_path):
    faults = {n: when("train", failing("no memory")) for n in (3, 4)}
    faults |= {place: when("train.edge", silent) for place in (EDGE_0, EDGE_1)}
    with pytest.raises(FlowerBFLError, match=r"round 1: none of 7 .* device 3: the client failed: no memory"):
        checked_run(tmp_path, faults=faults)


def test_a_first_round_for_which_nobody_reports_ends_the_run_and_says_why(tmp_path):
    def broken(message, context):
        raise ValueError("no such file")

    with pytest.raises(ConfigError, match=r"devices that report, got 2 with 0; device 0: .*no such file"):
        checked_run(tmp_path, data=broken)


OUTAGES = [
    ("before devices send", Outage(round=2, server=0), ((), (2,)), 2),
    ("after step 0", Outage(round=2, server=0, step=1), ((0, 1), (2,)), 0),
    ("link", Outage(round=2, link=(0, 1)), ((0, 1), (2,)), 0),
]


@pytest.mark.parametrize(
    ("outage", "server_data", "lost"), [each[1:] for each in OUTAGES], ids=[e[0] for e in OUTAGES]
)
def test_an_outage_of_an_edge_server_takes_its_data_along(outage, server_data, lost, tmp_path):
    strategy, _ = checked_run(tmp_path, outages=[outage])
    report = strategy.reports[2]
    assert report.server_data == server_data
    gone = [one for one in report.left_out if one.reason == "edge server 0 had its data and was left out"]
    assert [one.who for one in gone] == ["device 0", "device 1"][:lost]
    assert (LeftOut("edge server 0", "it is down") in report.left_out) == bool(lost)
    assert usual(strategy.reports[3])


# -- who claims to be somebody else ----------------------------------------------------------------------


def unchecked_run(faults):
    """Reports of three rounds; whatever is learnt."""
    grid = Field([least_squares_app(new_points, report=numbered)] * (DEVICES + SERVERS), faults=faults)
    controller = Sending(roomy(DEVICES, SERVERS), SENT_TO)
    strategy = ConsensusBFL(edge_servers=SERVERS, controller=controller, fraction_evaluate=0.0)
    strategy.start(grid, start_weights(), num_rounds=3)
    return strategy.reports


@pytest.mark.parametrize(("role", "index"), [("device", 1), ("edge-server", 0)])
def test_two_nodes_that_claim_to_be_one_are_both_left_out_unless_one_had_it_before(role, index):
    name = "device 1" if role == "device" else "edge server 0"
    claim = answering(flower_bfl=ConfigRecord(
        {"role": role, "index": index, "may-offload": True, "num-examples": 9, "data-bytes": 99}
    ))  # fmt: skip
    reason = f"it must be the only node that is {name}, got 2 such nodes"

    def of(rounds, rule):
        return unchecked_run({4: when("query.report", rule, rounds=rounds)})

    first = of([1], claim)[1]
    assert [(one.who.split()[0], one.reason) for one in first.left_out[:2]] == [("node", reason)] * 2
    silent_first = {4: lambda message: silent_then(message, claim)}
    later = unchecked_run(silent_first)[2]
    (impostor,) = later.left_out
    assert impostor.who.startswith("node ") and impostor.reason == reason
    assert later.server_data == ((0, 1), (2,))


def silent_then(message, claim):
    """Not there in round 1, and a claim from then on."""
    if message.metadata.message_type != "query.report":
        raise LookupError
    return None if message.content["config"]["server-round"] == 1 else claim(message)
