"""Payload formats: what is written is read again, and garbage is a PayloadError, nothing else."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_bfl.chain_adapter import Role, Sender, decode, encode
from flower_bfl.chain_adapter.records import (
    FORMAT,
    DataSet,
    DataUnion,
    Gradient,
    RunRules,
    consensus_payload,
    model_payload,
    read_consensus,
    read_model,
    read_report,
    report_payload,
)
from flower_bfl.config import AutoRounds, Consensus, Outage
from flower_bfl.errors import PayloadError
from flower_bfl.types import LeftOut

rounds = st.integers(0, 2**32 - 2)
texts = st.text(st.characters(codec="utf-8"), max_size=30)
arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=3), elements=st.floats(-1, 1, width=32)),
    max_size=3,
)
digests = st.binary(min_size=32, max_size=32)
data_sets = st.builds(DataSet, st.integers(1, 2**53), digests)
READERS = [RunRules.decode, DataSet.decode, Gradient.decode, read_consensus, read_report, read_model]


def same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


@given(arrays, st.floats(0.001, 2**53), st.integers(1, 2**31 - 1), rounds)
def test_gradients(values, samples, steps, server_round):
    gradient = Gradient.decode(Gradient(values, samples, steps).encode(server_round, bytes(32)))
    same(gradient.arrays, values)
    assert (gradient.samples, gradient.steps) == (samples, steps)


@given(
    arrays,
    st.integers(1, 2**53),
    st.integers(1, 2**31 - 1),
    rounds,
    st.lists(st.integers()),
    digests,
)
def test_gradients_of_edge_servers(values, samples, steps, server_round, devices, union):
    written = Gradient(values, samples, steps, DataUnion(tuple(devices), union))
    found = Gradient.decode(written.encode(server_round, bytes(32)))
    same(found.arrays, values)
    assert (found.samples, found.steps, found.union) == (samples, steps, written.union)


@given(data_sets, rounds, st.integers(0, 2**16 - 1))
def test_data_sets(data, server_round, server):
    assert DataSet.decode(data.encode(server_round, server)) == data


def test_a_data_set_is_known_by_the_bytes_of_its_arrays():
    """Written out by docs/ledger.md: length and text of the header, then the values, little-endian."""
    data = {"x": np.array([[1, 2], [3, 4], [5, 6]], np.uint8), "y": np.array([0, 1, 258], np.int16)}
    header = (
        b'{"x":{"dtype":"U8","shape":[3,2],"data_offsets":[0,6]},'
        b'"y":{"dtype":"I16","shape":[3],"data_offsets":[6,12]}}'
    )
    header += b" " * (-len(header) % 8)
    values = bytes([1, 2, 3, 4, 5, 6]) + bytes([0, 0, 1, 0, 2, 1])
    expected = sha256(len(header).to_bytes(8, "little") + header + values).digest()
    assert DataSet.of(data) == DataSet(3, expected)
    transposed = data | {"x": np.asfortranarray(data["x"])}
    assert DataSet.of(transposed) == DataSet(3, expected)
    other_order = {"y": data["y"], "x": data["x"]}
    for other in (other_order, data | {"y": data["y"].astype(np.int32)}, data | {"x": data["x"][::-1]}):
        assert DataSet.of(other).digest != expected


def test_a_data_set_as_it_is_written():
    payload = DataSet(20, bytes(range(32))).encode(7, 2)
    said = {"round": "7", "server": "2", "num-examples": "20", "data": bytes(range(32)).hex()}
    assert decode(payload) == ({}, said)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x": np.zeros((0, 3))},
        {"x": np.array(1.0)},
        {"x": np.zeros(3), "y": np.zeros(4)},
        {"x": np.zeros(3), "y": np.array(1.0)},
        {"x": np.array(["a", "b"])},
        {"x": np.array([None, None])},
        {"x": np.zeros(3, complex)},
    ],
    ids=str,
)
def test_what_is_no_data_set(arrays):
    with pytest.raises(PayloadError, match=r"a row for each sample|must have one of the dtypes"):
        DataSet.of(arrays)


@given(st.dictionaries(st.integers(0, 2**31), data_sets, max_size=5))
def test_a_union_is_of_its_data_sets_in_the_order_of_the_devices(sets):
    joined = sha256()
    for device in sorted(sets):
        joined.update(sets[device].digest)
    for order in (sets, dict(reversed(sets.items()))):
        assert DataUnion.of(order) == DataUnion(tuple(sorted(sets)), joined.digest())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "ab" * 31), ("data", "ab" * 33), ("data", ""), ("data", "x" * 64), ("data", None),
        ("num-examples", "0"), ("num-examples", "-3"), ("num-examples", "nan"), ("num-examples", "many"),
        ("num-examples", str(2**53 + 2)), ("num-examples", None),
    ],
)  # fmt: skip
def test_data_that_do_not_say_what_they_are(name, value):
    _, said = decode(DataSet(20, bytes(32)).encode(1, 0))
    changed = {key: text for key, text in (said | {name: value}).items() if text is not None}
    with pytest.raises(PayloadError, match="a DATA payload must say examples and digest"):
        DataSet.decode(encode({}, changed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "ab" * 31), ("data", "ab" * 33), ("data", ""), ("data", "x" * 64), ("devices", None),
        ("devices", "1 x"), ("devices", "1,2"), ("devices", "9" * 5000),
    ],
)  # fmt: skip
def test_unions_that_do_not_say_what_they_are(name, value):
    _, said = decode(Gradient({}, 20, 1, DataUnion((1, 2), bytes(32))).encode(1, bytes(32)))
    changed = {key: text for key, text in (said | {name: value}).items() if text is not None}
    with pytest.raises(PayloadError, match="a GRADIENT payload must say what it was made from"):
        Gradient.decode(encode({}, changed))


@given(arrays, rounds, st.integers(0, 9), st.integers(0, 9), st.lists(st.integers(0, 2**31)))
def test_consensus_states(values, server_round, step, server, devices):
    for own in ([], [Sender(Role.SERVER, server)]):
        members = [Sender(Role.DEVICE, device) for device in devices] + own
        found, named = read_consensus(consensus_payload(server_round, step, server, values, members))
        same(found, values)
        assert named == members
    found, named = read_consensus(consensus_payload(server_round, step, server, values))
    same(found, values)
    assert named == []


outages = st.one_of(
    st.builds(Outage, st.integers(1, 99), st.integers(0, 9), st.none(), st.integers(0, 9)),
    st.builds(
        Outage,
        st.integers(1, 99),
        st.none(),
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        st.integers(0, 9),
    ),
)


@given(rounds, st.lists(st.builds(LeftOut, texts, texts), max_size=3), st.lists(outages, max_size=3))
def test_reports(server_round, left_out, down):
    assert read_report(report_payload(server_round, left_out, down)) == (left_out, down)


@given(arrays, rounds)
def test_models(values, server_round):
    same(read_model(model_payload(server_round, values)), values)


@pytest.mark.parametrize("steps", [4, AutoRounds(0.5, rounds=20)], ids=str)
@pytest.mark.parametrize("leader", ["random", "reputation", 2])
def test_rules(leader, steps):
    consensus = Consensus(3, steps, "data", leader, 0.1)
    mixing = np.random.default_rng(1).random((3, 3))
    rules = RunRules.decode(RunRules("ConsensusBFL", consensus, mixing).encode())
    assert (rules.strategy, rules.consensus) == ("ConsensusBFL", consensus)
    np.testing.assert_array_equal(rules.mixing, mixing)
    assert RunRules.decode(RunRules("FedAdam").encode()).consensus is None


@given(st.binary(max_size=200))
def test_any_bytes(data):
    for read in READERS:
        with pytest.raises(PayloadError):
            read(data)


keys = st.sampled_from([
    "format", "strategy", "edge-servers", "p2p-rounds", "mass", "leader", "learning-rate", "num-examples",
    "num-steps", "devices", "report", "round", "data", "itself", "server", "step", "tolerance", "rounds",
    "most-p2p-rounds", "absolute",
])  # fmt: skip
values = st.one_of(
    texts,
    st.sampled_from([
        FORMAT, "auto", "0.5", "ab" * 32, "AB" * 32, "ab", "yes", "3", "-1", "nan", "inf", "1e400",
        "9" * 5000,
        "random", "count", "1 2 x", "[]", "{}", "null",
        '{"left_out": [], "down": [{"round": 1}]}', '{"left_out": 1, "down": 2}', "[" * 100_000,
        '{"left_out": [], "down": [{"round": "1", "server": 0, "link": null, "step": 0}]}',
    ]),
)  # fmt: skip


@given(st.dictionaries(keys, values), st.booleans())
def test_any_metadata(metadata, with_mixing):
    payload = encode({"mixing": np.zeros((3, 3))} if with_mixing else {}, metadata)
    for read in READERS:
        try:
            read(payload)
        except PayloadError as error:
            assert str(error)


@pytest.mark.parametrize("name", ["", "two words", "\x1b[2K✓ every model follows", "a\nb"])
def test_a_strategy_is_named_by_the_name_of_a_class(name):
    """It becomes part of what an audit prints."""
    with pytest.raises(PayloadError, match="strategy must be the name of a class"):
        RunRules.decode(RunRules(name).encode())


def test_a_gradient_between_two_models_is_in_float32_and_copies_what_it_cannot_move():
    before = {"n": np.array([5]), "w": np.array([1.0, 2.0]), "h": np.array([1], np.float16)}
    after = {"n": np.array([7]), "w": np.array([0.5, 2.25]), "h": np.array([3], np.float16)}
    found = Gradient.between(before, after, 10, 2, learning_rate=0.5).arrays
    assert list(found) == ["w", "h", "n"]
    np.testing.assert_array_equal(found["w"], np.array([1.0, -0.5], np.float32))
    np.testing.assert_array_equal(found["h"], np.array([-4], np.float32))
    np.testing.assert_array_equal(found["n"], [7])
    assert found["w"].dtype == found["h"].dtype == np.float32
    decode(Gradient(found, 10, 2).encode(1, bytes(32)))
