"""Whatever devices and edge servers do: the round goes on and says so, and the audit follows."""

from io import BytesIO

import numpy as np
import pytest
from checked_run import DEVICES, EDGE_0, EDGE_1, SERVERS, checked_run, usual
from field import (
    Field,
    Scripted,
    answering,
    arrived,
    failing,
    in_turn,
    least_squares_app,
    new_points,
    roomy,
    silent,
    start_weights,
    unplugged,
    when,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from flower_bfl import ConsensusBFL
from flower_bfl.types import LeftOut

# -- devices ---------------------------------------------------------------------------------------------


def array(values, **metadata):
    """As Flower sends it, also what its client would not: objects, archives, whatever bytes."""
    if isinstance(values, bytes):
        return Array(metadata.get("dtype", "float32"), (1,), "numpy.ndarray", values)
    return Array(np.asarray(values))


def stored(save, *arguments, **keywords):
    stream = BytesIO()
    save(stream, *arguments, **keywords)
    return stream.getvalue()


def spoiled(values, value):
    values = values.copy()
    values.flat[3] = value
    return values


def data(**arrays):
    return answering(flower_bfl_data=ArrayRecord({name: array(values) for name, values in arrays.items()}))


X, Y = arrived(0, 2)["x"], arrived(0, 2)["y"]
ROW = "must be arrays with a row for each sample"
ALIKE = "must be alike, x float32[4], y float32[], got "
OBJECTS = stored(np.save, np.array([{}, {}], object), allow_pickle=True)

BAD_DATA = [
    ("raises", failing("no, thanks"), "it did not send its data: no, thanks"),
    ("a long name", data(**{"z" * 10**5: Y.astype(str)}), "array 'zzzz"),
    ("nothing", answering(), "must hold the arrays 'flower-bfl-data', got []"),
    ("metrics", answering(flower_bfl_data=MetricRecord({"x": 1.0})), "must hold the arrays"),
    ("no arrays", data(), ROW),
    ("shape", data(x=X[:, :3], y=Y), ALIKE + "x float32[3], y float32[]"),
    ("more axes", data(x=X[..., None], y=Y), ALIKE + "x float32[4, 1]"),
    ("dtype", data(x=X.astype(float), y=Y), ALIKE + "x float64[4]"),
    ("byte order", data(x=X.astype(">f4"), y=Y), ALIKE + "x >f4[4]"),
    ("names", data(x=X, label=Y), ALIKE + "label float32[], x float32[4]"),
    ("one array too many", data(x=X, y=Y, z=Y), ALIKE),
    ("one array too few", data(x=X), ALIKE),
    ("unequal lengths", data(x=X, y=Y[1:]), ROW),
    ("no samples", data(x=X[:0], y=Y[:0]), ROW),
    ("rows of nothing", data(x=np.zeros((10**12, 0), np.float32), y=np.zeros((10**12, 0), np.float32)), ROW),
    ("no axes", data(x=np.float32(1), y=np.float32(1)), ROW),
    ("NaN", data(x=spoiled(X, np.nan), y=Y), "array 'x' of a data set must be finite"),
    ("infinity", data(x=X, y=spoiled(Y, -np.inf)), "array 'y' of a data set must be finite"),
    ("complex", data(x=X.astype(complex), y=Y), "must have one of the dtypes"),
    ("unicode", data(x=X, y=Y.astype(str)), "must have one of the dtypes"),
    ("objects", data(x=X, y=OBJECTS), "must be readable as numpy arrays"),
    ("archive", data(x=stored(np.savez, x=X), y=Y), "must be numpy arrays, got an archive as 'x'"),
    ("cut off", data(x=stored(np.save, X)[:-1], y=Y), "must be readable as numpy arrays"),
    ("no numpy", data(x=b"\x00" * 200, y=Y), "must be readable as numpy arrays"),
    ("reserved name", data(__metadata__=Y), "must not be named '__metadata__'"),
    ("too large", data(x=np.zeros((10**4, 4)), y=np.zeros(10**4)), "at most 100000 bytes"),
    ("signature", answering(
        flower_bfl_data=ArrayRecord({"x": array(X), "y": array(Y)}),
        flower_bfl=ConfigRecord({"flower-bfl-signature": b"short"}),
     ), "'flower-bfl-signature' must be 65 bytes"),
]  # fmt: skip


def test_a_device_whose_data_cannot_be_used_trains_alone(tmp_path, caplog):
    strategy, grid = checked_run(
        tmp_path,
        faults={0: in_turn("query.offload", [fault for _, fault, _ in BAD_DATA])},
        rounds=len(BAD_DATA) + 1,
        most_offloaded_bytes=100_000,
    )
    for k, (what, _, reason) in enumerate(BAD_DATA, start=1):
        report = strategy.reports[k]
        (kept,) = report.kept_local
        assert kept.who == "device 0" and reason in kept.reason and len(kept.reason) <= 300, what
        assert f"round {k}: device 0 keeps its data: {kept.reason}" in caplog.text
        assert report.server_data == ((1,), (2,)) and not report.left_out
        assert (report.train["kept-local"], report.train["offloaded"]) == (1, 2)
        told = grid.told("train", k)[0]
        assert told["offload"] is False and told["cpu-hz"] > 0 and "power-w" not in told
    assert usual(strategy.reports[-1])


SILENT = [
    ("silent", silent, "it did not send its data in time"),
    ("unplugged", unplugged, "it did not send its data in time"),
    ("gone", failing("node unavailable", code=5), "it did not send its data: node unavailable"),
    ("crashed", failing("killed", code=8), "it did not send its data: killed"),
]


def test_a_device_that_is_gone_when_its_data_are_asked_for_is_left_out(tmp_path, caplog):
    faults = {0: in_turn("query.offload", [fault for _, fault, _ in SILENT])}
    strategy, grid = checked_run(tmp_path, faults=faults, rounds=1 + len(SILENT))
    for k, (_, _, reason) in enumerate(SILENT, start=1):
        assert strategy.reports[k].left_out == (LeftOut("device 0", reason),)
        assert f"round {k}: device 0 left out: {reason}" in caplog.text
        assert 0 not in grid.told("train", k)
    assert usual(strategy.reports[-1])


def LOOK_AWAY(message):  # noqa: N802
    raise LookupError


NO_REPORT = [
    ("silent", silent, "no report in time"),
    ("unplugged", unplugged, "no report in time"),
    ("gone", failing("node unavailable", code=5), "it did not report: node unavailable"),
    ("raises", failing("no idea"), "it did not report: no idea"),
    ("garbage", answering(flower_bfl=ConfigRecord({"role": "device", "index": -1})), "got 'device' with -1"),
    ("no samples", answering(flower_bfl=ConfigRecord({"role": "device", "index": 0, "num-examples": 0})),
     "it has no samples this round"),
    ("no bytes", answering(flower_bfl=ConfigRecord(
        {"role": "device", "index": 0, "num-examples": 7, "data-bytes": 0})), "'data-bytes' must be"),
]  # fmt: skip


def test_a_device_that_does_not_report_sits_the_round_out(tmp_path, caplog):
    faults = {0: in_turn("query.report", [LOOK_AWAY, *(fault for _, fault, _ in NO_REPORT)])}
    strategy, grid = checked_run(tmp_path, faults=faults, rounds=len(NO_REPORT) + 2)
    for k, (_, _, reason) in enumerate(NO_REPORT, start=2):
        (left_out,) = strategy.reports[k].left_out
        assert left_out.who == "device 0" and reason in left_out.reason
        assert f"round {k}: device 0 left out: {left_out.reason}" in caplog.text
        assert not any(0 in grid.told(kind, k) for kind in ("train", "query.offload"))
    assert usual(strategy.reports[1]) and usual(strategy.reports[-1])


@pytest.mark.parametrize(
    ("fault", "reason"), [each[1:] for each in NO_REPORT], ids=[each[0] for each in NO_REPORT]
)
def test_a_device_that_does_not_report_in_the_first_round_is_asked_again(fault, reason, tmp_path):
    faults = {0: when("query.report", fault, rounds=[1])}
    strategy, grid = checked_run(tmp_path, faults=faults, rounds=2)
    if "no idea" in reason:  # an app that raises is one without offloading
        assert strategy.reports[2].server_data == ((1,), (2,)) and grid.kinds(0).count("query.report") == 1
        return
    (left_out,) = strategy.reports[1].left_out
    assert left_out.who in ("device 0", f"node {grid.get_node_ids()[0]}") and reason in left_out.reason
    assert usual(strategy.reports[2])


def test_a_device_that_claims_more_data_than_may_be_offloaded_keeps_them(tmp_path):
    def claiming(message):
        record = {"role": "device", "index": 0, "may-offload": True, "num-examples": 9, "data-bytes": 10**10}
        return answering(flower_bfl=ConfigRecord(record))(message)

    strategy, grid = checked_run(tmp_path, faults={0: when("query.report", claiming)})
    for report in strategy.reports[1:]:
        assert (report.server_data, report.left_out, report.fallback) == (((1,), (2,)), (), "")
    assert "query.offload" not in grid.kinds(0)


def test_arrays_in_another_order_are_the_same_data(tmp_path):
    strategy, _ = checked_run(tmp_path, faults={0: when("query.offload", data(y=Y, x=X), rounds=[2])})
    assert usual(strategy.reports[2])


def test_one_odd_device_that_was_the_first_does_not_keep_the_others_from_offloading(tmp_path):
    faults = {0: when("query.offload", data(x=X[:, :3], y=Y))}
    script = [0] + [None] * 4, [0, 0, 0, 1, 1]
    strategy, _ = checked_run(tmp_path, faults=faults, controller=Scripted(roomy(DEVICES, SERVERS), *script))
    # in the first round nobody can tell: its data are sent, and are of no use to the model
    assert [one.who for one in strategy.reports[1].left_out] == ["edge server 0", "device 0"]
    for report in strategy.reports[2:]:
        assert report.server_data == ((1, 2), (3, 4))
        assert [one.who for one in report.kept_local] == ["device 0"]


def test_what_most_devices_sent_last_says_what_data_are_like(tmp_path):
    """Also in a round in which only an odd one sends."""
    faults = {0: when("query.offload", data(x=X[:, :3], y=Y), rounds=[2])}
    script = [0, 0, 1, None, None], [0] + [None] * 4
    strategy, _ = checked_run(
        tmp_path, faults=faults, controller=Scripted(roomy(DEVICES, SERVERS), *script), rounds=2
    )
    assert [one.who for one in strategy.reports[2].kept_local] == ["device 0"]


@pytest.mark.parametrize("seed", range(4))
def test_of_two_unlike_data_sets_the_first_device_s_counts(seed):
    grid = Field([least_squares_app(new_points)] * 4, seed=seed)
    grid.faults[1] = when("query.offload", data(x=X[:, :3], y=Y))
    strategy = ConsensusBFL(edge_servers=2, controller=Scripted(roomy(2, 2), [0, 0]), fraction_evaluate=0.0)
    strategy.start(grid, start_weights(), num_rounds=1)
    assert strategy.reports[1].server_data == ((0,), ())


# -- edge servers ----------------------------------------------------------------------------------------


def weights(values, samples=None, steps=3):
    """What an edge server makes of the data that it got; `samples`: how many it says there were."""

    def reply(message):
        got = len(message.content["flower-bfl-data"]["y"].numpy()) if samples is None else samples
        metrics = MetricRecord({"num-examples": got, "num-steps": steps, "loss": 0.0})
        model = ArrayRecord({"w": array(stored(np.savez, w=X[0]) if values is None else np.float32(values))})
        return answering(arrays=model, metrics=metrics)(message)

    return reply


BAD_EDGE = [
    ("silent", silent, "no reply in time"),
    ("unplugged", unplugged, "no reply in time"),
    ("raises", failing("no memory"), "the client failed: no memory"),
    ("raises at length", failing("no " * 10**5), "the client failed: no no no"),
    ("gone", failing("node unavailable", code=5), "the client failed: node unavailable"),
    ("NaN", weights([1, np.nan, 1, 1]), "must be finite, got NaN or infinity"),
    ("shape", weights([1, 1]), "array 'w' must have shape (4,), got (2,)"),
    ("too few samples", weights([1] * 4, samples=3), " samples sent, got 3"),
    ("too many", weights([1] * 4, samples=2**50), " samples sent, got 1.1259e+15"),
    ("no samples", weights([1] * 4, samples=0), "'num-examples' must be a positive number"),
    ("no steps", weights([1] * 4, steps=0), "'num-steps' must be"),
    ("archive", weights(None), "arrays must be numpy arrays, got an archive as 'w'"),
    ("nothing", answering(), "a reply must hold one MetricRecord, got 0"),
]


def test_an_edge_server_that_fails_is_left_out_with_the_data_that_it_had(tmp_path, caplog):
    faults = {EDGE_0: in_turn("train.edge", [fault for _, fault, _ in BAD_EDGE])}
    strategy, _ = checked_run(tmp_path, faults=faults, rounds=len(BAD_EDGE) + 1)
    had = "edge server 0 had its data and was left out"
    for k, (_, _, reason) in enumerate(BAD_EDGE, start=1):
        report = strategy.reports[k]
        edge, *devices = report.left_out
        assert edge.who == "edge server 0" and reason in edge.reason and len(edge.reason) <= 300
        assert devices == [LeftOut("device 0", had), LeftOut("device 1", had)]
        assert f"round {k}: edge server 0 left out: {edge.reason}" in caplog.text
        assert report.server_data == ((), (2,)) and report.devices == 3
    assert usual(strategy.reports[-1])


def test_an_edge_server_that_calls_itself_a_device_and_signs_as_one_is_none(tmp_path):
    def mod(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "train.edge":
            reply.content["metrics"]["device-index"] = 3
            signed = {"flower-bfl-signature": b"s" * 65, "flower-bfl-address": b"a" * 20}
            reply.content["flower-bfl"] = ConfigRecord(signed)
        return reply

    strategy, _ = checked_run(tmp_path, mods=[mod])
    for report in strategy.reports[1:]:
        assert usual(report) and sorted(sum(report.server_devices, ())) == [3, 4]


NOT_THERE = (
    "the controller's decision was not feasible: edge server 0 is not there, got device 0's data for it"
)


def test_an_edge_server_that_was_never_there_gets_no_data(tmp_path):
    strategy, _ = checked_run(tmp_path, gone=[EDGE_0])
    for report in strategy.reports[1:]:
        assert (report.server_data, report.fallback) == (((), (2,)), NOT_THERE)
        assert report.devices == DEVICES and not report.left_out  # its part in consensus goes on
        assert len(report.server_devices[0]) + len(report.server_devices[1]) == 4


def test_an_edge_server_that_goes_gets_no_data_until_it_is_back(tmp_path):
    strategy, _ = checked_run(tmp_path, faults={EDGE_0: when("query.report", silent, rounds=[2])})
    assert strategy.reports[2].left_out == (LeftOut("edge server 0", "no report in time"),)
    assert (strategy.reports[2].server_data, strategy.reports[2].fallback) == (((), (2,)), NOT_THERE)
    assert usual(strategy.reports[1]) and usual(strategy.reports[3])


def test_without_edge_servers_everybody_trains_alone(tmp_path):
    strategy, _ = checked_run(tmp_path, gone=[EDGE_0, EDGE_1])
    for report in strategy.reports[1:]:
        assert (report.server_data, report.devices, report.fallback) == (((), ()), DEVICES, "")
