"""Hostile records: what an audit would compare is spelt in one way, and nothing of another kind is read."""

import json

import numpy as np
import pytest
from hostile import rules_of

from flower_bfl.chain_adapter.encoding import encode
from flower_bfl.chain_adapter.records import DataSet, RunRules, read_report
from flower_bfl.errors import PayloadError


def report_of(**said: object) -> bytes:
    return encode(
        {},
        {"format": "flower-bfl 5", "round": "1", "report": json.dumps({"left_out": [], "down": []} | said)},
    )


@pytest.mark.parametrize(
    "said",
    [{"left_out": [{"who": 3, "reason": "x"}]}, {"left_out": [{"who": "\ud800", "reason": "x"}]},
    {"left_out": ["who"]},
     {"down": [{"round": 1, "server": None, "link": "ab", "step": 0}]},
     {"down": [{"round": 1.5, "server": 1, "link": None, "step": 0}]},
     {"down": [{"round": 1, "server": 1, "link": None, "step": 10**30}]}],
)  # fmt: skip
def test_a_report_of_other_kinds(said):
    with pytest.raises(PayloadError, match="must hold a report"):
        read_report(report_of(**said))


@pytest.mark.parametrize("name", ["edge-servers", "p2p-rounds", "leader"])
@pytest.mark.parametrize("text", ["1_0", " 1", "+1", "01", "\u0661", "1e3", "-1", "", "9" * 5000])
def test_numbers_of_the_rules_are_spelt_in_one_way(name, text):
    said = {"edge-servers": "1", "p2p-rounds": "1", name: text}
    with pytest.raises(PayloadError):
        RunRules.decode(rules_of(np.eye(1), **said))


@pytest.mark.parametrize("text", ["1.5", "1_0", " 1", "+1", "01", "\u0661", "1e3"])
def test_what_is_spelt_otherwise_is_not_written_so_again(text):
    """Which an audit compares."""
    payload = encode(
        {}, {"format": "flower-bfl 5", "num-examples": text, "round": "0", "data": bytes(32).hex()}
    )
    assert DataSet.decode(payload).encode(0, 0) != payload


def test_names_that_are_no_unicode_are_not_encoded():
    for arrays, metadata in (({"\ud800": np.zeros(1)}, {}), ({}, {"a": "\ud800"})):
        with pytest.raises(PayloadError, match="Unicode"):
            encode(arrays, metadata)
