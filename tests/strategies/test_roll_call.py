"""Who is there: what nodes report, what cannot be a report, and who is who from round to round."""

import math

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flower_bfl.strategies._fleet import Fleet, Reported, RollCall
from flower_bfl.types import DeviceReport, LeftOut

SERVERS = 2
CONFIG = ConfigRecord({"server-round": 4, "batch": 25})


class Answers:
    """A grid whose nodes answer with a record, an error, or not at all."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def send_and_receive(self, messages, timeout=None):
        self.timeout = timeout
        for message in messages:
            self.asked.append(message)
            answer = self.answers[message.metadata.dst_node_id]
            if answer is not None:
                content = answer if isinstance(answer, Error) else as_content(answer)
                yield Message(content, reply_to=message)


def as_content(answer):
    return answer if isinstance(answer, RecordDict) else RecordDict({"flower-bfl": ConfigRecord(answer)})


def device(index, **more):
    record = {"role": "device", "index": index, "may-offload": True, "num-examples": 7, "data-bytes": 120}
    given = {name.replace("_", "-"): value for name, value in more.items()}
    return {name: value for name, value in (record | given).items() if value is not None}


def server(index):
    return {"role": "edge-server", "index": index}


def take(answers, roll_call=None):
    """The fleet, and the nodes that were asked."""
    grid = Answers(answers)
    fleet = (roll_call or RollCall(SERVERS, "config", 9.0)).take(list(answers), CONFIG, grid)
    return fleet, [message.metadata.dst_node_id for message in grid.asked]


def test_nodes_say_who_they_are():
    told = device(3, work_cycles=8e8, cpu_hz=1e9, energy_slack_j=2.5, gain_db=[-80.0, -90.0])
    answers = {
        12: server(1),
        11: told,
        14: device(0, may_offload=False),
        13: server(0),
        10: Error(2, "what?"),
    }
    fleet, asked = take(answers)
    assert sorted(asked) == [10, 11, 12, 13, 14]
    reported = DeviceReport(True, 8e8, 1e9, 2.5, [-80.0, -90.0])
    assert fleet == Fleet(
        {0: Reported(14, 120, DeviceReport(may_offload=False)), 3: Reported(11, 120, reported)},
        {0: 13, 1: 12}, [10], (),
    )  # fmt: skip
    assert fleet.device_nodes == [14, 11, 10]


def test_the_question_has_the_config_of_the_round_and_each_node_its_own():
    grid = Answers({1: device(0), 2: server(0)})
    RollCall(SERVERS, "settings", 9.0).take([1, 2], CONFIG, grid)
    first, second = (message.content["settings"] for message in grid.asked)
    assert dict(first) == dict(second) == dict(CONFIG) | {"edge-servers": SERVERS}
    assert first is not second and grid.timeout == 9.0
    assert {message.metadata.message_type for message in grid.asked} == {"query.report"}


def test_nobody_is_asked_if_nobody_is_there():
    assert take({}) == (Fleet(plain=[]), [])


EMPTY = Array("float32", (1,), "numpy.ndarray", b"")
GARBAGE = [
    ({}, "must be of a 'device' or 'edge-server' with an index, of 2 edge servers, got None with None"),
    (device("3"), "got 'device' with '3'"),
    (device(True), "got 'device' with True"),
    (device(-1), "got 'device' with -1"),
    (device(2**31), f"got 'device' with {2**31}"),
    (device(1.0), "got 'device' with 1.0"),
    (device([1]), "got 'device' with [1]"),
    ({"role": "device"}, "got 'device' with None"),
    ({"index": 1}, "got None with 1"),
    ({"role": "Edge Server", "index": 1}, "got 'Edge Server' with 1"),
    ({"role": ["device"], "index": 1}, "got ['device'] with 1"),
    ({"role": 1, "index": 1}, "got 1 with 1"),
    (server(2), "got 'edge-server' with 2"),
    (server(-1), "got 'edge-server' with -1"),
    ({"role": "x" * 10**6, "index": 1}, "got 'xxxxx"),
    ({"failed": "ReplyError('no role')"}, "it could not report: ReplyError('no role')"),
    ({"failed": "x" * 10**6}, "it could not report: xxxxx"),
    (RecordDict(), "a report must hold 'flower-bfl', got []"),
    (RecordDict({"flower-bfl": MetricRecord({"index": 1})}), "must hold 'flower-bfl', got ['flower-bfl']"),
    (RecordDict({"flower-bfl": ArrayRecord({"role": EMPTY})}), "must hold 'flower-bfl', got ['flower-bfl']"),
    (Error(0, "killed"), "it did not report: killed"),
    (Error(1, "no such app"), "it did not report: no such app"),
    (Error(5, "node unavailable"), "it did not report: node unavailable"),
    (Error(5, "x" * 10**6), "it did not report: xxxxx"),
    (None, "no report in time"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "reason"), GARBAGE, ids=[reason[-30:] for _, reason in GARBAGE])
def test_who_cannot_say_who_it_is_is_left_out(answer, reason):
    fleet, _ = take({5: answer, 6: device(0), 7: server(1)})
    (left_out,) = fleet.left_out
    assert left_out.who == "node 5" and reason in left_out.reason
    assert len(left_out.reason) < 300  # it goes to the ledger
    assert (list(fleet.devices), fleet.servers, fleet.plain) == ([0], {1: 7}, [])


BAD_REPORTS = [
    ({"num_examples": None}, "'num-examples' must be a whole number from 1 to 2**53, got None"),
    ({"num_examples": -1}, "got -1"),
    ({"num_examples": 7.0}, "got 7.0"),
    ({"num_examples": True}, "got True"),
    ({"num_examples": "many"}, "got 'many'"),
    ({"num_examples": [7]}, "got [7]"),
    ({"num_examples": 2**60}, f"got {2**60}"),
    ({"num_examples": 0}, "it has no samples this round"),
    ({"num_examples": 0, "data_bytes": 0}, "it has no samples this round"),
    ({"data_bytes": None}, "'data-bytes' must be a whole number from 1 to 2**53, got None"),
    ({"data_bytes": 0}, "'data-bytes' must be a whole number from 1 to 2**53, got 0"),
    ({"data_bytes": -5}, "got -5"),
    ({"data_bytes": math.inf}, "got inf"),
    ({"work_cycles": -1.0}, "'work-cycles' must be from 0.001 to 1e+18, got -1.0"),
    ({"work_cycles": 0.0}, "got 0.0"),
    ({"cpu_hz": math.nan}, "'cpu-hz' must be from 0.001 to 1e+18, got nan"),
    ({"cpu_hz": math.inf}, "got inf"),
    ({"cpu_hz": "fast"}, "got 'fast'"),
    ({"cpu_hz": True}, "got True"),
    ({"energy_slack_j": 1e30}, "'energy-slack-j' must be from 0.001 to 1e+18, got 1e+30"),
    ({"energy_slack_j": [1.0]}, "got [1.0]"),
    ({"gain_db": [-80.0]}, "'gain-db' must be 2 numbers, got [-80.0]"),
    ({"gain_db": [-80.0] * 3}, "'gain-db' must be 2 numbers, got [-80.0, -80.0, -80.0]"),
    ({"gain_db": -80.0}, "'gain-db' must be 2 numbers, got -80.0"),
    ({"gain_db": []}, "'gain-db' must be 2 numbers, got []"),
    ({"gain_db": [-80.0, math.nan]}, "'gain-db' must be from -250 to 0, got nan"),
    ({"gain_db": [-80.0, 0.5]}, "'gain-db' must be from -250 to 0, got 0.5"),
    ({"gain_db": [-1e9, -80.0]}, "got -1000000000.0"),
    ({"gain_db": ["-80", "-90"]}, "got '-80'"),
    ({"gain_db": [-80.0] * 10**5}, "'gain-db' must be 2 numbers, got [-80.0"),
    ({"failed": "OSError('no disk')"}, "it could not report: OSError('no disk')"),
]


@pytest.mark.parametrize(("more", "reason"), BAD_REPORTS, ids=[reason[-40:] for _, reason in BAD_REPORTS])
def test_a_device_with_garbage_in_its_report_is_left_out_by_name(more, reason):
    fleet, _ = take({5: device(4, **more), 6: device(0)})
    (left_out,) = fleet.left_out
    assert left_out.who == "device 4" and reason in left_out.reason
    assert len(left_out.reason) < 300
    assert list(fleet.devices) == [0]


@pytest.mark.parametrize("value", [None, False, 1, "yes", [True]])
def test_only_a_plain_yes_is_consent(value):
    fleet, _ = take({5: device(4, may_offload=value)})
    assert not fleet.devices[4].told.may_offload


# -- from round to round ---------------------------------------------------------------------------------


def test_an_app_that_does_not_know_the_question_is_asked_once():
    roll_call = RollCall(SERVERS, "config", 9.0)
    first, asked = take({5: Error(2, "ValueError"), 6: device(0)}, roll_call)
    assert (first.plain, first.left_out, asked) == ([5], (), [5, 6])
    again, asked = take({5: device(1), 6: device(0)}, roll_call)
    assert (again.plain, asked) == ([5], [6])
    gone, asked = take({6: device(0)}, roll_call)
    assert (gone.plain, asked) == ([], [6])


@pytest.mark.parametrize("code", [0, 1, 3, 4, 5, 6, 7, 8])
def test_a_node_that_fell_over_is_asked_again(code):
    roll_call = RollCall(SERVERS, "config", 9.0)
    first, _ = take({5: Error(code, "down"), 6: device(0)}, roll_call)
    assert (first.plain, first.left_out) == ([], (LeftOut("node 5", "it did not report: down"),))
    again, asked = take({5: device(1), 6: device(0)}, roll_call)
    assert (list(again.devices), asked) == ([0, 1], [5, 6])


def test_a_device_that_reported_before_and_raises_is_left_out_and_asked_again():
    roll_call = RollCall(SERVERS, "config", 9.0)
    take({5: device(1)}, roll_call)
    broken, _ = take({5: Error(2, "no disk")}, roll_call)
    assert (broken.plain, broken.left_out) == ([], (LeftOut("device 1", "it did not report: no disk"),))
    assert list(take({5: device(1)}, roll_call)[0].devices) == [1]


TWICE = "it must be the only node that is {}, got 2 such nodes"


@pytest.mark.parametrize(("answer", "name"), [(device(1), "device 1"), (server(1), "edge server 1")])
def test_two_newcomers_that_claim_to_be_one_are_both_left_out(answer, name):
    roll_call = RollCall(SERVERS, "config", 9.0)
    fleet, _ = take({5: answer, 6: answer, 7: device(0)}, roll_call)
    assert fleet.left_out == (LeftOut("node 5", TWICE.format(name)), LeftOut("node 6", TWICE.format(name)))
    assert (list(fleet.devices), fleet.servers) == ([0], {})
    alone, _ = take({6: answer, 7: device(0)}, roll_call)
    assert not alone.left_out and len(alone.devices) + len(alone.servers) == 2


@pytest.mark.parametrize(("answer", "name"), [(device(1), "device 1"), (server(1), "edge server 1")])
def test_who_had_a_name_before_keeps_it(answer, name):
    roll_call = RollCall(SERVERS, "config", 9.0)
    take({6: answer}, roll_call)
    fleet, _ = take({5: answer, 6: answer}, roll_call)
    assert fleet.left_out == (LeftOut("node 5", TWICE.format(name)),)
    assert [*fleet.servers.values(), *(one.node for one in fleet.devices.values())] == [6]


@pytest.mark.parametrize("answer", [device(1), server(1)])
def test_who_comes_back_under_another_node_id_is_who_it_was(answer):
    roll_call = RollCall(SERVERS, "config", 9.0)
    take({6: answer}, roll_call)
    back, _ = take({7: answer}, roll_call)
    assert [*back.servers.values(), *(one.node for one in back.devices.values())] == [7]
    # the old connection, should it answer once more, is a second one now
    both, _ = take({6: answer, 7: answer}, roll_call)
    assert [*both.servers.values(), *(one.node for one in both.devices.values())] == [7]


@pytest.mark.parametrize(
    ("before", "after"),
    [(device(1), device(2)), (device(1), server(1)), (server(0), server(1)), (server(0), device(0))],
)
def test_nobody_becomes_somebody_else(before, after):
    roll_call = RollCall(SERVERS, "config", 9.0)
    take({5: before}, roll_call)
    fleet, _ = take({5: after}, roll_call)
    name = f"{before['role'].replace('-', ' ')} {before['index']}"
    (left_out,) = fleet.left_out
    assert left_out.who == name and "it must stay what it was, got a report of" in left_out.reason
    assert not fleet.devices and not fleet.servers


def test_devices_are_known_as_such_also_while_they_are_left_out():
    roll_call = RollCall(SERVERS, "config", 9.0)
    answers = {
        1: device(0, cpu_hz=-1.0),
        2: server(0),
        3: Error(2, "what?"),
        4: None,
        5: device(7),
        6: device(7),
    }
    take(answers, roll_call)
    assert [node for node in answers if roll_call.is_device(node)] == [1, 3]
    take(dict.fromkeys(answers), roll_call)  # nobody answers
    assert [node for node in answers if roll_call.is_device(node)] == [1, 3]


def test_what_is_told_does_not_depend_on_who_answers_first():
    answers = {9: None, 8: None, 7: device(3, cpu_hz=-1.0), 6: device(11), 5: server(1), 4: server(5)}
    answers |= {3: device(2), 2: {}}
    told = []
    for order in (list, reversed):
        roll_call = RollCall(SERVERS, "config", 9.0)
        take({8: device(4), 9: device(10)}, roll_call)
        told.append(take({node: answers[node] for node in order(sorted(answers))}, roll_call)[0])
    assert told[0] == told[1]
    assert [one.who for one in told[0].left_out] == ["device 3", "device 4", "device 10", "node 2", "node 4"]
    assert list(told[0].devices) == [2, 11]
