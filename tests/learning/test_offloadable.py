"""What an offloadable ClientApp answers: who it is, what it has, and its data only if they may go."""

import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.errors import ReplyError
from flower_bfl.learning.offloading import identity, offloadable
from flower_bfl.types import DeviceReport

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.arange(4)
SAMPLES = {"x": X, "y": Y}


class Client:
    """A node that runs an app, and remembers what the app's functions were called with."""

    def __init__(self, data=SAMPLES, told=None, mods=None, **node_config):
        self.asked, self.trained = [], []
        self.context = Context(
            1, 77, node_config or {"partition-id": 2, "num-partitions": 6}, RecordDict(), {}
        )
        self.app = ClientApp(mods=mods)

        def samples(message, context):
            self.asked.append(message.metadata.message_type)
            assert context is self.context
            return data(message) if callable(data) else data

        report = None if told is None else lambda message, context: told(message) if callable(told) else told

        @offloadable(self.app, samples, report=report)
        def train(message, context, data):
            self.trained.append((message, data))
            metrics = MetricRecord({"num-examples": len(data["y"])})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def get(self, kind, config=None, *, key="config", **records):
        config = {"server-round": 1, "edge-servers": 2, "most-bytes": 10**6} | (config or {})
        content = RecordDict({key: ConfigRecord(config), **records})
        return self.app(Message(content, dst_node_id=77, message_type=kind), self.context)

    def report(self, **arguments):
        return dict(self.get("query.report", **arguments).content["flower-bfl"])


# -- who it is ----------------------------------------

IDENTITIES = [
    # node config, edge servers, role and index
    ({"partition-id": 0, "num-partitions": 5}, 2, ("device", 0)),
    ({"partition-id": 2, "num-partitions": 5}, 2, ("device", 2)),
    ({"partition-id": 3, "num-partitions": 5}, 2, ("edge-server", 0)),
    ({"partition-id": 4, "num-partitions": 5}, 2, ("edge-server", 1)),
    ({"partition-id": 4, "num-partitions": 5}, 1, ("edge-server", 0)),
    ({"role": "device", "index": 7}, 2, ("device", 7)),
    ({"role": "edge-server", "index": 1}, 2, ("edge-server", 1)),
    ({"role": "device", "partition-id": 4, "num-partitions": 5}, 2, ("device", 4)),
    ({"role": "edge-server", "partition-id": 1, "num-partitions": 5}, 2, ("edge-server", 1)),
    ({"role": "device", "index": 3, "partition-id": 4, "num-partitions": 5}, 2, ("device", 3)),
    ({"index": 9, "partition-id": 2, "num-partitions": 5}, 2, ("device", 9)),
    ({"index": 9, "partition-id": 3, "num-partitions": 5}, 2, ("edge-server", 0)),
]


@pytest.mark.parametrize(("config", "servers", "expected"), IDENTITIES)
def test_a_node_knows_who_it_is_by_its_config_or_its_partition(config, servers, expected):
    assert identity(Context(1, 77, config, RecordDict(), {}), servers) == expected
    record = Client(**config).report(config={"edge-servers": servers})
    assert (record["role"], record["index"]) == expected


NOBODY = [
    {"a": 1},
    {"partition-id": 3},  # of how many?
    {"index": 3},
    {"role": "device"},
    {"role": "edge-server", "index": "1"},
    {"role": "edge-server", "index": True},
    {"role": "edge-server", "index": 1.0},
    {"role": "server", "index": 1},
    {"role": 1, "index": 1},
]


@pytest.mark.parametrize("config", NOBODY)
def test_a_node_that_does_not_know_who_it_is_says_so(config):
    with pytest.raises(ReplyError, match="a node config must have a `role`"):
        identity(Context(1, 77, config, RecordDict(), {}), 2)
    client = Client(**config)
    record = client.report()
    assert list(record) == ["failed"] and "a node config must have a `role`" in record["failed"]
    assert not client.asked


# -- what it says of itself ----------------------------------------


def test_a_device_says_how_much_it_has():
    client = Client()
    assert client.report() == {
        "role": "device", "index": 2, "may-offload": True, "num-examples": 4, "data-bytes": 4 * 12 + 8 * 4
    }  # fmt: skip
    assert client.asked == ["query.report"]


def test_an_edge_server_has_no_data_of_its_own():
    client = Client(
        data=lambda message: pytest.fail("asked for data"), told=lambda message: pytest.fail("asked")
    )
    client.context.node_config["partition-id"] = 5
    assert client.report() == {"role": "edge-server", "index": 1}


def test_a_device_says_what_its_report_says():
    told = DeviceReport(True, work_cycles=10**9, cpu_hz=np.float32(2.5), gain_db=np.array([-80, -90]))
    record = Client(told=told).report()
    assert {name: record.get(name) for name in ("work-cycles", "cpu-hz", "energy-slack-j", "gain-db")} == {
        "work-cycles": 1e9, "cpu-hz": 2.5, "energy-slack-j": None, "gain-db": [-80.0, -90.0]
    }  # fmt: skip
    assert all(type(gain) is float for gain in record["gain-db"])


@pytest.mark.parametrize(
    ("data", "samples", "size"),
    [
        ({"x": X[:0], "y": Y[:0]}, 0, 0),
        ({"text": np.array(["a", "bc"])}, 2, 16),
        ({"x": [[1.0], [2.0]], "y": (0, 1)}, 2, 32),  # whatever becomes an array
        (lambda message: {"y": np.ones(message.content["config"]["server-round"] + 6, np.int8)}, 7, 7),
    ],
)
def test_sizes_are_those_of_the_arrays(data, samples, size):
    record = Client(data).report()
    assert (record["num-examples"], record["data-bytes"]) == (samples, size)


ODD = [
    ({}, "must be arrays with a row for each sample"),
    ({"x": X, "y": Y[1:]}, "{'x': 4, 'y': 3}"),
    ({"x": X, "y": 3}, "{'x': 4, 'y': None}"),
    ({"x": 3, "y": 3}, "must be arrays with a row for each sample"),
    ({"x": X, "y": [[1], [2, 3]]}, "inhomogeneous"),
    (None, "has no attribute 'items'"),
    (lambda message: 1 / 0, "ZeroDivisionError"),
    (lambda message: {}["x" * 10**6], "KeyError('xxxx"),
]


@pytest.mark.parametrize(("data", "reason"), ODD)
def test_a_device_that_cannot_say_what_it_has_says_so_by_name(data, reason, caplog):
    """An error would make the server take it for an app that does not know the question."""
    record = Client(data).report()
    assert (record["role"], record["index"]) == ("device", 2)
    assert reason in record["failed"] and len(record["failed"]) <= 200
    assert "Traceback" in caplog.text


def test_a_report_that_fails_is_no_consent():
    record = Client(told=lambda message: 1 / 0).report()
    assert "ZeroDivisionError" in record["failed"] and "may-offload" not in record


# -- consent ----------------------------------------

CONSENT = [
    # node config, report, whether data may go
    ({}, None, True),
    ({}, DeviceReport(), True),
    ({}, DeviceReport(may_offload=False), False),
    ({}, DeviceReport(may_offload=np.False_), False),
    ({}, DeviceReport(may_offload=np.True_), True),
    ({"may-offload": True}, None, True),
    ({"may-offload": False}, None, False),
    ({"may-offload": False}, DeviceReport(), False),
    ({"may-offload": True}, DeviceReport(may_offload=False), False),
    ({"may-offload": "false"}, None, False),
    ({"may-offload": "no"}, DeviceReport(), False),
    ({"may-offload": "true"}, None, False),  # in doubt they stay
    ({"may-offload": 0}, None, False),
]


@pytest.mark.parametrize(("config", "told", "expected"), CONSENT)
def test_data_go_only_with_consent_of_node_and_report(config, told, expected):
    client = Client(told=told, **{"role": "device", "index": 2} | config)
    assert client.report()["may-offload"] is expected
    if expected:
        assert "flower-bfl-data" in client.get("query.offload").content
        return
    client.asked.clear()
    with pytest.raises(ReplyError, match="must stay where they are"):
        client.get("query.offload")
    assert not client.asked  # not even looked at


# -- data ----------------------------------------


def sent(client, **arguments):
    return {name: array.numpy() for name, array in client.get("query.offload", **arguments).content[
        "flower-bfl-data"].items()}  # fmt: skip


def test_what_is_sent_is_what_there_is():
    arrays = sent(Client({"x": X[:, ::2], "f": np.asfortranarray(X), "y": [1, 2, 3, 4]}))
    assert list(arrays) == ["x", "f", "y"]
    np.testing.assert_array_equal(arrays["x"], X[:, ::2])
    np.testing.assert_array_equal(arrays["f"], X)
    np.testing.assert_array_equal(arrays["y"], [1, 2, 3, 4])


@pytest.mark.parametrize(("most", "fits"), [(80, True), (79, False)])
def test_a_data_set_that_is_too_large_is_not_sent(most, fits):
    client = Client()
    if fits:
        assert len(sent(client, config={"most-bytes": most})) == 2
    else:
        with pytest.raises(ReplyError, match="must have at most 79 bytes to be offloaded, got 80"):
            client.get("query.offload", {"most-bytes": most})


@pytest.mark.parametrize("config", [{"most-bytes": "many"}, {"most-bytes": 1.5}])
def test_a_question_must_say_how_much_may_be_sent(config):
    with pytest.raises(ReplyError, match="a message must have the whole number 'most-bytes'"):
        Client().get("query.offload", config)


def test_settings_may_be_under_any_name():
    client = Client()
    assert client.report(key="settings")["index"] == 2
    assert len(sent(client, key="settings")) == 2


@pytest.mark.parametrize("data", [{"x": np.array([{}, {}])}, {}, {"x": X, "y": Y[1:]}])
def test_data_that_are_no_samples_are_not_sent(data):
    with pytest.raises((ReplyError, ValueError)):
        Client(data).get("query.offload")


# -- training ----------------------------------------


def test_a_device_trains_on_its_own_data_as_arrays():
    client = Client({"x": X.tolist(), "y": Y})
    reply = client.get("train")
    ((message, data),) = client.trained
    assert reply.content["metrics"]["num-examples"] == 4
    assert message.metadata.message_type == "train"
    assert all(isinstance(array, np.ndarray) for array in data.values())
    np.testing.assert_array_equal(data["x"], X)


def test_an_edge_server_trains_on_what_came_and_its_message_is_as_any_other():
    client = Client(data=lambda message: pytest.fail("asked for data"))
    arrays = ArrayRecord({"w": Array(np.ones(2))})
    union = ArrayRecord({"x": Array(X), "y": Array(Y)})
    client.get("train.edge", {"devices": [0, 1]}, arrays=arrays, **{"flower-bfl-data": union})
    ((message, data),) = client.trained
    assert sorted(message.content) == ["arrays", "config"]
    assert list(message.content["config"]["devices"]) == [0, 1]
    assert message.metadata.message_type == "train.edge"
    for name, expected in SAMPLES.items():
        np.testing.assert_array_equal(data[name], expected)


def test_mods_see_every_message():
    seen = []

    def mod(message, context, call_next):
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    client = Client(mods=[mod])
    union = {"flower-bfl-data": ArrayRecord({"y": Array(Y)})}
    for kind in ("query.report", "query.offload", "train"):
        client.get(kind)
    client.get("train.edge", **union)
    assert seen == ["query.report", "query.offload", "train", "train.edge"]


def test_the_train_function_stays_a_function():
    app = ClientApp()

    def train(message, context, data):
        return None

    assert offloadable(app, lambda message, context: SAMPLES)(train) is train


@pytest.mark.parametrize("module", ["flower_bfl.learning.offloading", "flower_bfl.strategies.consensus_bfl"])
def test_neither_side_needs_pytorch(module):
    program = (
        f"import sys, {module}; "
        "print([name for name in ('torch', 'gymnasium', 'eth', 'web3') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-1] == "[]"
