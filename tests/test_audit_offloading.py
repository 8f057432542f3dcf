"""The audit of runs in which devices send their data to edge servers: DATA, unions, who is in which sum."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from false_entries import (
    Place,
    Replayed,
    also,
    assert_names,
    changing,
    gone,
    junk,
    mutations,
    name_of,
    not_finite,
    nudged,
    with_arrays,
    with_fields,
    with_metadata,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_run import (
    Change,
    Toy,
    data_digest,
    data_payload,
    device,
    own_key,
    samples_of,
    server,
    texts,
    union_of,
)

from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, decode, encode
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.config import ContractRules, Outage

# Edge server 0 sums up devices 0, 3 and 6, and trains on the data of 1 and 4; edge server 1 sums up device 7;
# edge server 2 sums up device 5, and trains on the data of 2.
OFFLOADS = {1: 0, 4: 0, 2: 2}
EVERYBODY = {n: n % 3 for n in range(5)}
TWO = np.array([[0.6, 0.4], [0.4, 0.6]])


def run(**changed) -> Toy:
    return Toy(devices=8, offloads=OFFLOADS, leader=1, **changed)


# -- runs that follow ----------------------------------------------------------------------------------------

TRUE_RUNS: dict[str, tuple[Toy, int]] = {  # and how many data sets are in no model
    "as it comes": (Toy(devices=8, offloads=OFFLOADS, rounds=3), 0),
    "mass by data": (Toy(devices=8, offloads=OFFLOADS, mass="data"), 0),
    "payloads in the store": (Toy(devices=8, offloads=OFFLOADS, payloads="digest"), 0),
    "own keys": (Toy(devices=8, offloads=OFFLOADS, own_keys=(1, 2, 3)), 0),
    "everybody offloads": (Toy(offloads=EVERYBODY, leader="reputation", rounds=3), 0),
    "everybody to one server": (Toy(offloads=dict.fromkeys(range(5), 1), mass="data", steps=0), 0),
    "one edge server": (Toy(offloads={0: 0}, mixing=np.array([[1.0]]), devices=2), 0),
    "nobody trains": (Toy(offloads=OFFLOADS, idle=(1,)), 0),
    "an edge server that is down": (Toy(devices=8, offloads=OFFLOADS, outages=(Outage(1, server=0),)), 2),
    "an edge server that goes down": (
        Toy(devices=8, offloads=OFFLOADS, outages=(Outage(1, server=0, step=1),)), 0,
    ),
    "the only one that trained is down": (
        Toy(offloads=dict.fromkeys(range(5), 0), outages=(Outage(2, server=0),), difficulty_bits=0), 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUE_RUNS)
def test_a_true_run_follows(name, tmp_path):
    toy, lost = TRUE_RUNS[name]
    toy.record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.checked.models_recomputed == toy.rounds
    assert report.checked.data_sets == (toy.rounds - len(toy.idle)) * len(toy.offloads)
    assert report.checked.data_sets_not_trained_on == lost
    assert report.checked.gradients_not_aggregated == 0
    assert report.notes == ((f"{lost} data sets are in no model",) if lost else ())
    expected = {name_of(device(n), own_key(n)) for n in toy.own_keys}
    assert {*report.own_keys} == expected


def test_the_counts_are_those_of_the_run(tmp_path):
    run(rounds=2, own_keys=(1, 3)).record(tmp_path)
    checked = audit(tmp_path).checked
    # a round: 3 data sets; 5 gradients of devices and 2 of edge servers; 3 states at 3 steps; model and seal
    assert (checked.data_sets, checked.gradients, checked.consensus_states) == (6, 14, 18)
    assert checked.transactions == 2 + 2 * (3 + 7 + 9 + 2)
    assert checked.signatures == checked.transactions + 2 * 2


def test_data_that_nobody_trained_on_are_told(tmp_path):
    """They broke no rule, whatever they are. But a device's data left it for nothing."""
    extra = also(sender=device(9), step=1, payload=b"anything")
    run(change=changing(*DATA, extra)).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert (report.checked.data_sets, report.checked.data_sets_not_trained_on) == (7, 1)
    assert report.notes == ("1 data sets are in no model",)


def test_an_edge_servers_gradient_that_nobody_took_is_told(tmp_path):
    extra = also(sender=server(1), payload=b"anything")
    run(change=changing(*UNION, extra)).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.checked.gradients_not_aggregated == 1
    assert report.notes == ("1 gradients are in no model",)


def test_data_that_come_after_the_model_change_nothing(tmp_path):
    """On a node of somebody else's, no device shall spoil a run by what it sends late."""
    late = also(kind=Kind.DATA, sender=device(4), step=2, payload=b"anything")
    run(change=changing(*MODEL, late)).record(tmp_path)
    report = audit(tmp_path)
    assert report.finding is None
    assert report.checked.data_sets_not_trained_on == 1


# -- false entries by somebody who has all the keys ----------------------------------------------------------


def says(k: int, devices: list[int]) -> Callable[[Entry], Entry]:
    """An edge server trained on these devices' data."""
    return with_metadata(num_examples=str(sum(map(samples_of, devices))), **union_of(k, devices))


def doubled(entry: Entry) -> Entry:
    return with_arrays(entry, lambda arrays: {name: 2 * array for name, array in arrays.items()})


def with_union_digest(*parts: bytes) -> Callable[[Entry], Entry]:
    return with_metadata(data=sha256(b"".join(parts)).hexdigest())


DATA = (Kind.DATA, 2, device(4), 0)
UNION = (Kind.GRADIENT, 2, server(0), 0)
UNION_2 = (Kind.GRADIENT, 2, server(2), 0)
LOCAL = (Kind.GRADIENT, 2, device(3), 0)
STATE_0, STATE_1, STATE_2 = ((Kind.CONSENSUS, 2, server(m), 0) for m in range(3))
MODEL = (Kind.MODEL, 2, server(1), 0)
ONE, FOUR = data_digest(2, 1), data_digest(2, 4)
NOT_SENT = "that a device says it sent to it"
NOT_THE_SETS = "a union must be the data sets"

# what is recorded in place of what, and the entry that the audit must name with the rule that it breaks
FALSE_ENTRIES: dict[str, tuple[Place, Change, Place, str]] = {
    "data that were not sent": (DATA, gone, UNION, NOT_SENT),
    "data that another device sent": (DATA, with_fields(sender=device(9)), UNION, NOT_SENT),
    "data of a device that sent none": (UNION, says(2, [1, 4, 9]), UNION, NOT_SENT),
    "data of who trained itself": (UNION, says(2, [1, 3, 4]), UNION, "not both"),
    "data of another server's": (UNION, says(2, [1, 2, 4]), UNION, NOT_SENT),
    "data sent to another server": (
        DATA, with_fields(step=1, payload=data_payload(2, 4, 1)), UNION, NOT_SENT,
    ),
    "data sent twice": (DATA, also(step=1, payload=data_payload(2, 4, 1)), (*DATA[:3], 1), "one edge server"),
    "data sent once more, by nobody in a union": (
        DATA, lambda e: [e, *(Entry(Kind.DATA, 2, device(9), b"", m) for m in (2, 0))],
        (Kind.DATA, 2, device(9), 0), "one edge server",
    ),
    "data that are none": (DATA, junk, DATA, "must be in its format"),
    "data of no samples": (DATA, with_metadata(num_examples="0"), DATA, "must be in its format"),
    "data of half a sample": (DATA, with_metadata(num_examples="22.5"), DATA, "of its round and edge server"),
    "data of samples written otherwise": (
        DATA, with_metadata(num_examples="22.0"), DATA, "of its round and edge server",
    ),
    "data of more samples": (DATA, with_metadata(num_examples="23"), UNION, NOT_THE_SETS),
    "data of no number of samples": (DATA, with_metadata(num_examples=None), DATA, "must be in its format"),
    "data of another digest": (DATA, with_metadata(data="ab" * 32), UNION, NOT_THE_SETS),
    "data of a digest too short": (DATA, with_metadata(data="ab" * 31), DATA, "must be in its format"),
    "data of a digest too long": (DATA, with_metadata(data="ab" * 33), DATA, "must be in its format"),
    "data of no digest": (DATA, with_metadata(data=None), DATA, "must be in its format"),
    "data of a digest in capitals": (
        DATA, with_metadata(data=FOUR.hex().upper()), DATA, "of its round and edge server",
    ),
    "data of another round": (DATA, with_metadata(round="1"), DATA, "of its round and edge server"),
    "data for another server": (DATA, with_metadata(server="1"), DATA, "of its round and edge server"),
    "data that say more": (DATA, with_metadata(labels="3"), DATA, "of its round and edge server"),
    "data with the data in them": (
        DATA, lambda e: with_arrays(e, lambda _: {"x": np.zeros(22)}), DATA, "of its round and edge server",
    ),
    "a union's digest": (UNION, with_metadata(data="ab" * 32), UNION, NOT_THE_SETS),
    "a union's digest in another order": (UNION, with_union_digest(FOUR, ONE), UNION, NOT_THE_SETS),
    "a union's digest of one": (UNION, with_union_digest(ONE), UNION, NOT_THE_SETS),
    "a union's digest of its data": (UNION_2, with_metadata(data=data_digest(2, 2).hex()), UNION_2, "union"),
    "a union's digest too short": (UNION, with_metadata(data="ab"), UNION, "must be in its format"),
    "a union's digest that is none": (UNION, with_metadata(data="x"), UNION, "must be in its format"),
    "a union's samples": (UNION, with_metadata(num_examples="36"), UNION, NOT_THE_SETS),
    "a union's samples, none": (UNION, with_metadata(num_examples="0"), UNION, "must be in its format"),
    "a union of less": (UNION, says(2, [1]), STATE_0, "eq. (8)"),
    "a union of less than its digest": (UNION, with_metadata(devices="1"), UNION, NOT_THE_SETS),
    "a union of nobody": (UNION, with_metadata(**union_of(2, [])), UNION, NOT_THE_SETS),
    "a union in another order": (UNION, says(2, [4, 1]), UNION, NOT_THE_SETS),
    "a union of one twice": (UNION, says(2, [1, 4, 4]), UNION, NOT_THE_SETS),
    "a union with other spaces": (UNION, with_metadata(devices="1  4"), UNION, "its round and model"),
    "a union with other numbers": (UNION, with_metadata(devices="1 04"), UNION, "its round and model"),
    "a union of no numbers": (UNION, with_metadata(devices="1 x"), UNION, "must be in its format"),
    "a union of numbers below zero": (UNION, says(2, [-1, 1, 4]), UNION, NOT_SENT),
    "a union without devices": (UNION, with_metadata(devices=None), UNION, "must be in its format"),
    "a union without a digest": (UNION, with_metadata(data=None), UNION, "its round and model"),
    "an edge server's own data": (UNION, with_metadata(devices=None, data=None), UNION, "on its own data"),
    "a device's union": (LOCAL, says(2, [3]), LOCAL, "on its own data"),
    "a device's union of offloaded data": (LOCAL, says(2, [1, 4]), LOCAL, "on its own data"),
    "an edge server's gradient": (UNION, doubled, STATE_0, "eq. (8)"),
    "its steps": (UNION, with_metadata(num_steps="9"), STATE_0, "eq. (8)"),
    "its model": (UNION, with_metadata(model="00" * 32), UNION, "its round and model"),
    "its round": (UNION, with_metadata(round="1"), UNION, "its round and model"),
    "its values, not finite": (UNION, not_finite, UNION, "must be finite"),
    "its values, none": (UNION, junk, UNION, "must be in its format"),
    "no edge server's gradient": (UNION, gone, STATE_0, "recorded gradients"),
    "another edge server's gradient": (UNION, with_fields(sender=server(1)), STATE_0, "recorded gradients"),
    "not itself": (STATE_0, with_metadata(itself=None), STATE_0, "eq. (8)"),
    "not itself, beside one device": (STATE_2, with_metadata(itself=None), STATE_2, "eq. (8)"),
    "itself without a gradient": (STATE_1, with_metadata(itself="yes"), STATE_1, "recorded gradients"),
    "itself in another word": (STATE_0, with_metadata(itself="no"), STATE_0, "eq. (8)"),
    "itself at a later step": (
        (*STATE_0[:3], 1), with_metadata(itself="yes"), (*STATE_0[:3], 1), "eq. (9)",
    ),
    "another server's gradient in a sum": (
        STATE_1, with_metadata(server="0", itself="yes"), STATE_1, "no other's gradient",
    ),
    "itself of no number": (STATE_0, with_metadata(server="x"), STATE_0, "must be in its format"),
    "itself of no server": (STATE_0, with_metadata(server=None), STATE_0, "must be in its format"),
    "a device in the sum whose data are in the union": (
        STATE_0, with_metadata(devices="0 3 4 6"), STATE_0, "recorded gradients",
    ),
    "a state": (STATE_2, nudged, STATE_2, "eq. (8)"),
    "a model": (MODEL, nudged, MODEL, "(10)-(12)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def true_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[ContractRules, list[Recorded]]:
    toy = run().record(tmp_path_factory.mktemp("run"))
    return toy.ledger.rules, list(toy.ledger.recorded())


def changed(recorded: list[Recorded], change: Change) -> list[Recorded]:
    """What would be read if the changed entries had been recorded; the others do not depend on them."""
    read: list[Recorded] = []
    for at in recorded:
        result = change(at.entry)
        for entry in result if isinstance(result, list) else [result]:
            account = at.account if entry.sender == at.entry.sender else address(entry.sender)
            place = read[-1].transaction + 1 if read and read[-1].block == at.block else 0
            digest = sha256(entry.payload).digest()
            read.append(replace(at, entry=entry, digest=digest, account=account, transaction=place))
    return read


def address(sender: Sender) -> bytes:
    return bytes.fromhex(name_of(sender).split("0x")[1].rstrip(")"))


@pytest.mark.parametrize("what", FALSE_ENTRIES)
def test_one_false_entry_is_named(what, true_run):
    place, new, named, rule = FALSE_ENTRIES[what]
    rules, recorded = true_run
    read = changed(recorded, changing(*place, new))
    finding = audit(Replayed(rules, read)).finding
    assert finding is not None
    assert rule in finding.rule
    (at,) = [at for at in read if (at.entry.kind, at.entry.round, at.entry.sender, at.entry.step) == named]
    assert (finding.block, finding.transaction) == (at.block, at.transaction)
    assert finding.account == name_of(named[2])
    assert finding.expected != finding.found


def test_a_true_run_that_is_read_again_follows(true_run):
    """Else the test above would show that what it reads is broken, not that a change is noticed."""
    rules, recorded = true_run
    assert audit(Replayed(rules, changed(recorded, lambda entry: entry))).finding is None


def together(first: Change, second: Change) -> Change:
    """Both changes, of different entries."""

    def change(entry: Entry) -> Entry | list[Entry]:
        changed = first(entry)
        return second(entry) if changed is entry else changed

    return change


def local(entry: Entry) -> list[Entry]:
    """The entry, and a GRADIENT of device 4's own."""
    arrays, metadata = decode(entry.payload)
    said = {"round": 2, "model": metadata["model"], "num-examples": samples_of(4), "num-steps": 1}
    return [entry, Entry(Kind.GRADIENT, 2, device(4), encode(arrays, texts(said)))]


def late(entry: Entry) -> list[Entry]:
    return [entry, Entry(Kind.DATA, 2, device(4), data_payload(2, 4, 0))]


def data_of_3(entry: Entry) -> list[Entry]:
    return [entry, Entry(Kind.DATA, 2, device(3), data_payload(2, 3, 0))]


FALSE_PAIRS: dict[str, tuple[tuple[Place, Change], tuple[Place, Change], Place, str]] = {
    "data signed once the model was there": ((DATA, gone), (MODEL, late), UNION, NOT_SENT),
    "a device that offloads and is summed up by the same server": (
        (UNION, local), (STATE_0, with_metadata(devices="0 3 4 6")), UNION, "not both",
    ),
    "a device that offloads and is summed up by another server": (
        (UNION, local), (STATE_1, with_metadata(devices="4 7")), UNION, "not both",
    ),
    "a device that trained and whose data are in a union": (
        (DATA, data_of_3), (UNION, says(2, [1, 3, 4])), UNION, "not both",
    ),
    "an edge server's gradient in the sum of another in place of its own": (
        (STATE_0, with_metadata(itself=None)), (STATE_1, with_metadata(itself="yes", server="0")),
        STATE_1, "no other's gradient",
    ),
    "a digest that is short in data and union": (
        (DATA, with_metadata(data="ab")), (UNION, with_union_digest(ONE, b"\xab")), DATA, "in its format",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FALSE_PAIRS)
def test_false_entries_that_belong_together_are_named(what, tmp_path):
    (place, new), (other_place, other_new), named, rule = FALSE_PAIRS[what]
    changes = changing(*place, new), changing(*other_place, other_new)
    run(change=together(*changes)).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, named, rule)


def test_an_edge_server_that_leaves_out_itself_alone_is_named(tmp_path):
    """Nothing else is in its sum, whose direction could give it away."""
    change = changing(*STATE_2, with_metadata(itself=None))
    Toy(offloads={2: 2}, leader=1, change=change).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, STATE_2, "eq. (8)")


def test_what_an_edge_server_that_is_down_trained_on_is_in_no_sum(tmp_path):
    """Its gradient may be there; that it summed it up cannot be."""
    down = Outage(2, server=2)
    arrays = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    said = {"round": 2, "step": 0, "server": 2, "devices": ""}
    false = Entry(Kind.CONSENSUS, 2, server(2), encode(arrays, texts(said)))
    run(outages=(down,), change=changing(*STATE_1, lambda e: [e, false])).record(tmp_path)
    assert_names(audit(tmp_path), tmp_path, STATE_2, "that is down must not record")


# -- any payload at all --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> tuple[ContractRules, list[Recorded]]:
    toy = Toy(rounds=1, devices=4, steps=1, mixing=TWO, offloads={1: 0, 2: 0, 3: 1})
    toy.record(tmp_path_factory.mktemp("run"))
    return toy.ledger.rules, list(toy.ledger.recorded())


def altered(recorded: list[Recorded], place: int, **fields: object) -> list[Recorded]:
    at = recorded[place]
    return [*recorded[:place], replace(at, entry=replace(at.entry, **fields)), *recorded[place + 1 :]]


@settings(max_examples=200)
@given(data=st.data())
def test_any_other_payload_is_a_finding(entries, data):
    """Of what the data are, and of what edge servers say of them: no change is without a meaning."""
    rules, recorded = entries
    of_data = [
        place
        for place, at in enumerate(recorded)
        if at.entry.kind in (Kind.DATA, Kind.CONSENSUS)
        or (at.entry.kind is Kind.GRADIENT and at.entry.sender.role is Role.SERVER)
    ]
    place = data.draw(st.sampled_from(of_data))
    at = recorded[place].entry
    payload = data.draw(mutations(at.payload))
    finding = audit(Replayed(rules, altered(recorded, place, payload=payload))).finding
    if payload == at.payload:
        assert finding is None
        return
    if at.kind is Kind.GRADIENT and only_values_differ(payload, at.payload):
        return  # rounding may swallow the last bit of a value
    assert finding is not None
    named = next(other.entry for other in recorded if name_of(other.entry.sender) == finding.account)
    assert finding.expected != "records in their formats"
    allowed = {at.sender} | ({server(at.step)} if at.kind is Kind.DATA else set())
    assert named.sender in allowed | ({server(0), server(1)} if at.kind is Kind.GRADIENT else set())


def only_values_differ(payload: bytes, other: bytes) -> bool:
    start = 8 + int.from_bytes(other[:8], "little")
    return payload[:start] == other[:start]


@settings(max_examples=60)
@given(data=st.data())
def test_any_other_sender_or_step_is_a_finding(entries, data):
    """What the signatures would tell as well, but that the training has to follow from the entries alone."""
    rules, recorded = entries
    of_data = [
        place
        for place, at in enumerate(recorded)
        if at.entry.kind is Kind.DATA or (at.entry.kind is Kind.GRADIENT and at.entry.sender == server(0))
    ]
    place = data.draw(st.sampled_from(of_data))
    entry = recorded[place].entry
    if data.draw(st.booleans()):
        fields = {"step": data.draw(st.integers(0, 3).filter(lambda step: step != entry.step))}
    else:
        others = [device(n) for n in range(6)] if entry.kind is Kind.DATA else [device(0), server(1)]
        fields = {"sender": data.draw(st.sampled_from([y for y in others if y != entry.sender]))}
    assert audit(Replayed(rules, altered(recorded, place, **fields))).finding is not None
