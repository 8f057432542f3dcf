"""A Flower app in this process behaves as it does under Flower."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from flower_bfl import ConsensusBFL
from flower_bfl.errors import ConfigError
from flower_bfl.simulation import in_process, simulate

DEVICES = 4
FAILS = 2  # a device


def model(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(3, value, np.float32))})


def counting(mods=None) -> ClientApp:
    """Each device adds 1 to the model, and counts its rounds in its context."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        device = int(context.node_config["partition-id"])
        before = context.state.metric_records.get("count", MetricRecord({"rounds": 0}))
        context.state["count"] = MetricRecord({"rounds": before["rounds"] + 1})
        if device == context.run_config.get("fails", -1):
            raise RuntimeError("no battery")
        weights = message.content["arrays"]["w"].numpy() + 1
        told = {"num-examples": 10, "num-steps": 1, "device-index": device}
        told |= {"rounds": context.state["count"]["rounds"], "nodes": context.node_config["num-partitions"]}
        content = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord(told)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        value = float(message.content["arrays"]["w"].numpy()[0])
        content = {"metrics": MetricRecord({"num-examples": 10, "value": value})}
        return Message(RecordDict(content), reply_to=message)

    return app


def train_messages(grid) -> list[Message]:
    content = RecordDict({"arrays": model(), "config": ConfigRecord({"server-round": 1})})
    return [Message(content, node, "train") for node in grid.get_node_ids()]


def device_of(reply: Message) -> int:
    return int(reply.content["metrics"]["device-index"])


def test_a_nodes_state_stays():
    with in_process(counting(), DEVICES) as grid:
        for round_ in (1, 2, 3):
            replies = grid.send_and_receive(train_messages(grid), timeout=1.0)
            assert {reply.content["metrics"]["rounds"] for reply in replies} == {round_}
            assert sorted(map(device_of, replies)) == [0, 1, 2, 3]
            assert {reply.content["metrics"]["nodes"] for reply in replies} == {DEVICES}


def test_ids_are_random_and_replies_come_in_any_order():
    ids, orders = [], set()
    for _ in range(2):
        with in_process(counting(), DEVICES) as grid:
            ids.append(set(grid.get_node_ids()))
            for _ in range(20):  # all alike: once in 24^19
                orders.add(tuple(map(device_of, grid.send_and_receive(train_messages(grid)))))
    assert len(ids[0]) == len(ids[1]) == DEVICES and not ids[0] & ids[1]
    assert len(orders) > 1


def test_an_exception_is_a_reply_with_an_error():
    with in_process(counting(), DEVICES, {"fails": FAILS}) as grid:
        messages = train_messages(grid)
        replies = grid.send_and_receive(messages)
    (failed,) = [reply for reply in replies if reply.has_error()]
    assert "RuntimeError('no battery')" in failed.error.reason
    assert failed.metadata.src_node_id == messages[FAILS].metadata.dst_node_id
    assert len(replies) == DEVICES


def started(app: ClientApp, rounds: int = 2, evaluated: float = 0.0, **settings):
    strategy = ConsensusBFL(edge_servers=2, graph="complete", fraction_evaluate=evaluated, seed=0)
    with in_process(app, DEVICES, settings) as grid:
        result = strategy.start(grid=grid, initial_arrays=model(), num_rounds=rounds)
    return strategy, result


def test_a_strategy_goes_on_without_a_device_that_fails():
    strategy, result = started(counting(), fails=FAILS)
    for report in strategy.reports[1:]:
        (left,) = report.left_out
        assert "no battery" in left.reason
        assert report.devices == DEVICES - 1
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0)


def test_devices_evaluate():
    """After round k every weight is k."""
    _, result = started(counting(), evaluated=1.0)
    assert {k: metrics["value"] for k, metrics in result.evaluate_metrics_clientapp.items()} == {
        1: 1.0,
        2: 2.0,
    }


def test_mods_run():
    seen = []

    def mod(message: Message, context: Context, call_next) -> Message:
        seen.append(message.metadata.message_type)
        reply = call_next(message, context)
        reply.content["metrics"]["num-steps"] = 7
        return reply

    with in_process(counting([mod]), DEVICES) as grid:
        replies = grid.send_and_receive(train_messages(grid))
    assert seen == ["train"] * DEVICES
    assert {reply.content["metrics"]["num-steps"] for reply in replies} == {7}


def test_what_a_node_does_to_a_message_no_other_sees():
    """Strategies send one record to all, which under Flower arrives as a copy at each."""
    app, kept = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert message.content["config"]["server-round"] == 1
        message.content["config"]["server-round"] = 99
        del message.content["arrays"]
        reply = Message(RecordDict({"own": MetricRecord({"x": 1})}), reply_to=message)
        kept.append(reply)
        return reply

    with in_process(app, DEVICES) as grid:
        messages = train_messages(grid)
        replies = grid.send_and_receive(messages)
    assert [reply.has_error() for reply in replies] == [False] * DEVICES
    assert messages[0].content["config"]["server-round"] == 1 and "arrays" in messages[0].content
    replies[0].content["own"]["x"] = 2
    assert {reply.content["own"]["x"] for reply in kept} == {1}


@pytest.mark.parametrize("fails", [False, True])
def test_flowers_identity_is_afterwards_what_it_was(fails, monkeypatch):
    for name, value in (("_run_id", 7), ("_task_id", None), ("_node_id", 9)):
        monkeypatch.setattr(TaskIdentity, name, value)
    with pytest.raises(ZeroDivisionError) if fails else in_process(counting(), 1):
        if fails:
            with in_process(counting(), 1):
                assert TaskIdentity.run_id == TaskIdentity.task_id == TaskIdentity.node_id == 1
                raise ZeroDivisionError
    assert (TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id) == (7, None, 9)


@pytest.mark.parametrize("nodes", [0, -1, 2.0, True])
def test_so_many_nodes_there_cannot_be(nodes):
    with pytest.raises(ConfigError, match=rf"`nodes` must be a whole number from 1 .*got {nodes}"):
        simulate(ServerApp(), ClientApp(), nodes=nodes, settings={})
    assert TaskIdentity.run_id == 1


def test_a_server_app_gets_the_settings():
    server_app, seen = ServerApp(), {}

    @server_app.main()
    def main(grid, context: Context) -> None:
        seen.update(context.run_config, nodes=len(list(grid.get_node_ids())))
        context.run_config["rate"] = 0.0

    settings = {"rate": 0.1, "name": "x"}
    simulate(server_app, ClientApp(), nodes=3, settings=settings)
    assert seen == {"rate": 0.1, "name": "x", "nodes": 3}
    assert settings["rate"] == 0.1
