"""Hostile messages: nothing odd is signed, and nobody answers who was not asked."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from message_targets import message_from

from flower_bfl.errors import ReplyError
from flower_bfl.learning.signing import sign_updates
from flower_bfl.strategies._fleet import RollCall
from flower_bfl.strategies._offloading import DataLink
from flower_bfl.types import DATA_RECORD, OWN_RECORD


def test_a_server_that_asks_for_what_cannot_be_signed():
    mod = sign_updates(bytes(31) + b"\1")
    right = {
        "server-round": 1,
        "ledger-chain-id": 1,
        "ledger-contract": "ab" * 20,
        "ledger-learning-rate": 1.0,
    }
    for name, value in [
        ("server-round", float("inf")), ("server-round", -1), ("ledger-contract", "zz"), ("ledger-contract",
        "ab" * 40),
        ("ledger-chain-id", -1), ("ledger-learning-rate", float("nan")), ("ledger-learning-rate", 0.0),
    ]:  # fmt: skip
        arrays = ArrayRecord({"w": Array(np.ones(2, np.float32))})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(right | {name: value})})
        with pytest.raises(ReplyError):
            mod(message_from(content), None, lambda message, context: message)


class Grid:
    """Replies that are given, whoever was asked."""

    def __init__(self, *replies: Message) -> None:
        self.replies = replies

    def send_and_receive(self, messages, timeout=None):
        return list(self.replies)


def data_from(node: int, value: float = 1.0) -> Message:
    arrays = ArrayRecord({"x": Array(np.full((2, 2), value, np.float32))})
    return message_from(RecordDict({DATA_RECORD: arrays}), node)


def test_data_of_a_device_that_was_not_asked_are_not_taken():
    link = DataLink(10**6, "config", 1.0, lambda server_round, sets: {})
    nodes = {0: 10, 1: 11, 2: 12}
    configs = {node: ConfigRecord() for node in nodes.values()}
    grid = Grid(data_from(12, 9.0), data_from(99, 9.0), data_from(10), data_from(10, 9.0))
    fetched = link.fetch(1, {0: 0, 1: 1}, nodes, configs, grid)
    assert list(fetched.sets) == [0]
    np.testing.assert_array_equal(fetched.sets[0].arrays["x"], np.ones((2, 2)))  # the first that it sent
    assert fetched.gone == {1} and not fetched.refused


def test_reports_of_nodes_that_were_not_asked_are_not_taken():
    def report(node: int, index: int) -> Message:
        told = {"role": "device", "index": index, "num-examples": 1, "data-bytes": 1}
        return message_from(RecordDict({OWN_RECORD: ConfigRecord(told)}), node)

    fleet = RollCall(2, "config", 1.0).take(
        [10, 11], ConfigRecord(), Grid(report(99, 5), report(10, 0), report(10, 1), report(12, 2))
    )
    assert {index: one.node for index, one in fleet.devices.items()} == {0: 10}
    assert [one.who for one in fleet.left_out] == ["node 11"]
