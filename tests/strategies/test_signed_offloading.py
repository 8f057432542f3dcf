"""Data sets that devices sign themselves, from the ClientApp's mod to the audit."""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from coincurve import PrivateKey
from eth_account import Account
from eth_hash.auto import keccak
from field import (
    Field,
    Scripted,
    Sending,
    least_squares_app,
    new_points,
    numbered,
    own_points,
    points,
    roomy,
    start_weights,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl import ConsensusBFL, EvmLedger, Mining
from flower_bfl.audit import AuditReport, audit
from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, decode, encode, simulated_keys
from flower_bfl.learning.signing import ADDRESS_KEY, SIGNATURE_KEY, own_key, sign_updates

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DEVICES, SERVERS = 5, 2
SENT_TO = {0: 0, 1: 0, 2: 1}  # devices 0 and 1 to edge server 0, device 2 to 1; 3 and 4 train alone
ROW = [SENT_TO.get(n) for n in range(DEVICES)]

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def key(number: int) -> bytes:
    return (number + 1).to_bytes(32)


def address(private_key: bytes) -> bytes:
    return keccak(PrivateKey(private_key).public_key.format(compressed=False)[1:])[12:]


def field(mods: dict[int, list[Mod]], data=own_points) -> Field:
    """A federation whose devices have these mods; edge servers sign as well as they can."""
    apps = [least_squares_app(data, report=numbered, mods=mods.get(n, [])) for n in range(DEVICES)]
    return Field([*apps, *[least_squares_app(data, mods=[sign_updates()])] * SERVERS])


def signing() -> dict[int, list[Mod]]:
    return {n: [sign_updates(key(n))] for n in range(DEVICES)}


def run(folder, grid, *, rounds=2, controller=None, **arguments) -> tuple[ConsensusBFL, AuditReport]:
    """A run, and its audit, which finds nothing."""
    ledger = EvmLedger(folder / "chain")
    strategy = ConsensusBFL(
        edge_servers=SERVERS, p2p_rounds=1, ledger=ledger, run_folder=folder,
        mining=Mining(difficulty_bits=1), controller=controller or Sending(roomy(DEVICES, SERVERS), SENT_TO),
        **{"wait_for_nodes_s": 0.1, "fraction_evaluate": 0.0, "require_signatures": True} | arguments,
    )  # fmt: skip
    strategy.start(grid, start_weights(), num_rounds=rounds)
    report = audit(folder)
    assert (report.finding, report.checked.models_recomputed) == (None, rounds)
    return strategy, report


def entries(folder, kind: Kind, server_round: int | None = None) -> list[Entry]:
    found = EvmLedger(folder / "chain", read_only=True).entries()
    return [entry for entry in found if entry.kind is kind and server_round in (None, entry.round)]


def accounts(folder, kind: Kind) -> list[tuple[Sender, bytes]]:
    recorded = EvmLedger(folder / "chain", read_only=True).recorded()
    return [(at.entry.sender, at.account) for at in recorded if at.entry.kind is kind]


def device(index: int) -> Sender:
    return Sender(Role.DEVICE, index)


# -- who signs what ------------------------------------------------------------------------------------------


def test_devices_that_offload_sign_with_keys_of_their_own(tmp_path):
    strategy, report = run(tmp_path, field(signing()))
    assert [one.server_data for one in strategy.reports[1:]] == [((0, 1), (2,))] * 2
    assert [one.kept_local for one in strategy.reports[1:]] == [()] * 2
    assert [one.signed_devices for one in strategy.reports[1:]] == [tuple(range(DEVICES))] * 2
    assert accounts(tmp_path, Kind.DATA) == [(device(n), address(key(n))) for n in SENT_TO] * 2
    expected = [f"{device(n)} (0x{address(key(n)).hex()})" for n in range(DEVICES)]
    assert sorted(report.own_keys) == expected
    assert report.checked.data_sets == 6


def test_where_all_devices_keep_their_keys_the_leader_seals(tmp_path):
    strategy, _ = run(tmp_path, field(signing()))
    sealed = [entry.sender for entry in entries(tmp_path, Kind.SEAL)]
    assert sealed == [Sender(Role.SERVER, one.leader) for one in strategy.reports[1:]]


def test_what_is_signed_is_the_digest_of_the_data(tmp_path):
    """Worked out from the data by hand, as docs/audit.md says; so is the digest of a union."""
    run(tmp_path, field(signing()), rounds=1)
    digests = {n: sha256(encode(points(n))).digest() for n in SENT_TO}
    for entry in entries(tmp_path, Kind.DATA):
        n = entry.sender.index
        said = {"round": "1", "server": str(SENT_TO[n]), "data": digests[n].hex()}
        assert decode(entry.payload) == ({}, said | {"num-examples": str(len(points(n)["y"]))})
        assert entry.step == SENT_TO[n]
    unions = [e for e in entries(tmp_path, Kind.GRADIENT) if e.sender.role is Role.SERVER]
    said = [decode(entry.payload)[1] for entry in unions]
    assert [each["devices"] for each in said] == ["0 1", "2"]
    assert [each["data"] for each in said] == [
        sha256(digests[0] + digests[1]).hexdigest(), sha256(digests[2]).hexdigest(),
    ]  # fmt: skip


def test_what_the_page_about_the_audit_shows_finds_ones_own_data(tmp_path, monkeypatch, capsys):
    run(tmp_path / "run", field(signing()), rounds=1)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "audit.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    digests = [sha256(encode(points(n))).digest() for n in (0, 1)]
    names = dict(points(1))
    exec(example, names)  # what a reader would paste
    assert names["mine"] == digests[1]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "round 1: device 1 sent them to server 0"
    assert (
        said[1] == f"round 1: server 0 trained on data of 0 1, union {sha256(b''.join(digests)).hexdigest()}"
    )
    assert len(said) == 3


def test_a_client_signs_data_and_updates_with_the_one_key_that_it_made(tmp_path):
    grid = field({n: [sign_updates()] for n in range(DEVICES)})
    script = Scripted(roomy(DEVICES, SERVERS), ROW, [None] * DEVICES)
    run(tmp_path, grid, controller=script)
    contexts = {grid.partition_of[context.node_id]: context for context in grid._contexts}
    assert [n for n, context in contexts.items() if context.state] == list(range(DEVICES))
    made = [address(own_key(contexts[n])) for n in range(DEVICES)]
    assert len({*made}) == DEVICES
    assert accounts(tmp_path, Kind.DATA) == [(device(n), made[n]) for n in SENT_TO]
    signed = [each for each in accounts(tmp_path, Kind.GRADIENT) if each[0].role is Role.DEVICE]
    assert signed == [(device(n), made[n]) for n in (3, 4, *range(DEVICES))]


def test_some_may_sign_and_others_not(tmp_path):
    """Device 0 signs its data and device 3 its update; the others race for the block."""
    mods = {n: [sign_updates(key(n))] for n in (0, 3)}
    strategy, report = run(tmp_path, field(mods), require_signatures=False)
    assert [name.split(" (")[0] for name in report.own_keys] == ["device 0", "device 3"]
    derived = [(device(n), address(simulated_keys(0)(device(n)))) for n in (1, 2)]
    assert accounts(tmp_path, Kind.DATA) == [(device(0), address(key(0))), *derived] * 2
    assert {one.miner for one in strategy.reports[1:]} <= {"device 1", "device 2", "device 4"}


def test_keys_of_devices_that_sign_themselves_are_not_asked_for(tmp_path):
    """A key folder of operator and edge servers has none of them, and must not be made to make some."""

    def held(sender: Sender) -> bytes:
        assert sender.role is not Role.DEVICE
        return simulated_keys(3)(sender)

    strategy, _ = run(tmp_path, field(signing()), keys=held, rounds=1)
    assert strategy.reports[1].server_data == ((0, 1), (2,))


def test_without_a_ledger_nobody_is_asked_to_sign():
    grid = field(signing())
    controller = Sending(roomy(DEVICES, SERVERS), SENT_TO)
    strategy = ConsensusBFL(
        edge_servers=SERVERS, controller=controller, wait_for_nodes_s=0.1, fraction_evaluate=0.0
    )
    strategy.start(grid, start_weights(), num_rounds=1)
    assert strategy.reports[1].server_data == ((0, 1), (2,))
    assert not any("ledger-contract" in message.content["config"] for _, message in grid.sent)


def test_a_wallet_signs_as_well(tmp_path):
    """By eth_account, from what docs/keys.md says is signed."""
    mods = signing() | {1: [instead(by_wallet(key(1))), sign_updates(key(60))]}
    strategy, report = run(tmp_path, field(mods), rounds=1)
    assert strategy.reports[1].server_data == ((0, 1), (2,))
    assert f"device 1 (0x{address(key(1)).hex()})" in report.own_keys


def test_the_mod_by_itself():
    """A message with all that is needed to sign, and one of a server without a ledger."""
    samples = [np.ones((4, 2), np.float32), np.arange(4.0)]
    app = ClientApp(mods=[sign_updates(key(7))])

    @app.query("offload")
    def send(message: Message, context: Context) -> Message:
        return Message(RecordDict({"flower-bfl-data": ArrayRecord(samples)}), reply_to=message)

    context = Context(1, 5, {}, RecordDict(), {})
    config = {"server-round": 4, "edge-server": 1, "most-bytes": 10_000}
    ledger = {"ledger-chain-id": 11, "ledger-contract": "ab" * 20, "ledger-learning-rate": 1.0}
    plain = app(Message(RecordDict({"config": ConfigRecord(config)}), 5, "query.offload"), context)
    assert [*plain.content] == ["flower-bfl-data"]
    signed = app(Message(RecordDict({"config": ConfigRecord(config | ledger)}), 5, "query.offload"), context)
    assert [*signed.content] == ["flower-bfl-data", "flower-bfl"]
    named = {name: array.numpy() for name, array in signed.content["flower-bfl-data"].items()}
    payload = data_payload(named, 4, 1)
    right = wallet_signature(key(7), (11, bytes.fromhex("ab" * 20)), 4, 1, payload)
    assert signed.content["flower-bfl"] == {SIGNATURE_KEY: right, ADDRESS_KEY: address(key(7))}


# -- who does not sign as it has to --------------------------------------------------------------------------

TYPES = {
    "Entry": [
        {"name": "kind", "type": "uint8"}, {"name": "round", "type": "uint32"},
        {"name": "step", "type": "uint16"}, {"name": "digest", "type": "bytes32"},
    ],
}  # fmt: skip

Change = Callable[[Message, Message], None]
"""What happens to a reply on its way, and to which message it is one."""


def instead(change: Change) -> Mod:
    """Something happens to the data set that a device sends, once it is signed."""

    def mod(message: Message, context: Context, call_next) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == "query.offload":
            change(reply, message)
        return reply

    return mod


def data_payload(arrays: dict[str, np.ndarray], server_round: int, server: int) -> bytes:
    """By docs/ledger.md."""
    rows = {len(array) for array in arrays.values()}
    said = {"round": server_round, "server": server, "num-examples": rows.pop()}
    digest = sha256(encode(arrays)).hexdigest()
    return encode({}, {name: str(value) for name, value in said.items()} | {"data": digest})


def wallet_signature(
    private_key: bytes, domain: tuple[int, bytes], server_round: int, step: int, payload: bytes, kind: int = 7
) -> bytes:
    contract = {"chainId": domain[0], "verifyingContract": domain[1]}
    entry = {"kind": kind, "round": server_round, "step": step, "digest": sha256(payload).digest()}
    named = {"name": "FlowerBFL", "version": "1"} | contract
    return bytes(Account.sign_typed_data(private_key, named, TYPES, entry).signature)


def by_wallet(private_key: bytes, address_of: bytes | None = None, chain_id: int = 0, **other: int) -> Change:
    """Signed anew: by another key, or for something else."""

    def change(reply: Message, message: Message) -> None:
        config = message.content["config"]
        domain = int(config["ledger-chain-id"]) + chain_id, bytes.fromhex(str(config["ledger-contract"]))
        arrays = {name: array.numpy() for name, array in reply.content["flower-bfl-data"].items()}
        server_round, server = int(config["server-round"]), int(config["edge-server"])
        payload = data_payload(arrays, server_round, other.get("server", server))
        entry = {"server_round": server_round, "step": server} | {
            name: value for name, value in other.items() if name != "server"
        }
        signature = wallet_signature(private_key, domain, payload=payload, **entry)
        told = {SIGNATURE_KEY: signature, ADDRESS_KEY: address(address_of or private_key)}
        reply.content["flower-bfl"] = ConfigRecord(told)

    return change


def missing(reply: Message, message: Message) -> None:
    del reply.content["flower-bfl"]


def forged(reply: Message, message: Message) -> None:
    signature = bytearray(reply.content["flower-bfl"][SIGNATURE_KEY])
    signature[10] ^= 1
    reply.content["flower-bfl"][SIGNATURE_KEY] = bytes(signature)


def void(reply: Message, message: Message) -> None:
    reply.content["flower-bfl"] = ConfigRecord({SIGNATURE_KEY: bytes(65)})


def short(reply: Message, message: Message) -> None:
    reply.content["flower-bfl"] = ConfigRecord({SIGNATURE_KEY: b"short"})


def with_data(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Change:
    def new(reply: Message, message: Message) -> None:
        arrays = {name: array.numpy() for name, array in reply.content["flower-bfl-data"].items()}
        changed = {name: Array(np.ascontiguousarray(array)) for name, array in change(arrays).items()}
        reply.content["flower-bfl-data"] = ArrayRecord(changed)

    return new


OTHERS = "its signature must be one of this update by"
KEPT: dict[str, tuple[Change, str]] = {
    "no signature": (missing, "must sign its update, got none"),
    "a forged one": (forged, OTHERS),
    "a void one": (void, OTHERS),
    "bytes that are none": (short, "'flower-bfl-signature' must be 65 bytes"),
    "one by another key than it says": (by_wallet(key(50), key(1)), OTHERS),
    "one by another device's key": (by_wallet(key(0)), "must have a key of its own"),
    "one by an edge server's key": (
        by_wallet(simulated_keys(0)(Sender(Role.SERVER, 1))), "must have a key of its own",
    ),
    "one for another edge server": (by_wallet(key(1), step=1, server=1), OTHERS),
    "one for another edge server, of these data": (by_wallet(key(1), step=1), OTHERS),
    "one for this edge server, of other data": (by_wallet(key(1), server=1), OTHERS),
    "one for another round": (by_wallet(key(1), server_round=2), OTHERS),
    "one of an update": (by_wallet(key(1), kind=2), OTHERS),
    "one for another chain": (by_wallet(key(1), chain_id=1), OTHERS),
    "one of other values": (with_data(lambda data: data | {"y": data["y"] + np.float32(1e-3)}), OTHERS),
    "one of more data": (
        with_data(lambda data: {name: np.append(array, array[:1], 0) for name, array in data.items()}),
        OTHERS,
    ),
    "one of data in another order": (
        with_data(lambda data: {name: array[::-1] for name, array in data.items()}), OTHERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_a_device_whose_data_are_not_signed_as_they_have_to_be_trains_itself(what, tmp_path):
    """Device 1; it signs its update as always, and the others' data are trained on without it."""
    change, reason = KEPT[what]
    grid = field(signing() | {1: [instead(change), sign_updates(key(1))]})
    strategy, report = run(tmp_path, grid, rounds=1)
    told = strategy.reports[1]
    assert [one.who for one in told.kept_local] == ["device 1"]
    assert reason in told.kept_local[0].reason
    assert told.left_out == ()
    assert (told.devices, told.server_data) == (DEVICES, ((0,), (2,)))
    assert 1 in sum(told.server_devices, ())
    assert grid.kinds(1) == ["query.report", "query.offload", "train"]
    assert [sender for sender, _ in accounts(tmp_path, Kind.DATA)] == [device(0), device(2)]
    assert (device(1), address(key(1))) in accounts(tmp_path, Kind.GRADIENT)
    assert f"device 1 (0x{address(key(1)).hex()})" in report.own_keys


def test_a_device_that_has_signed_offloads_again_once_it_signs_again(tmp_path):
    """Unsigned in round 2 only: it keeps its data then, also where signatures are not required."""

    def seldom(reply: Message, message: Message) -> None:
        if message.content["config"]["server-round"] == 2:
            missing(reply, message)

    grid = field(signing() | {1: [instead(seldom), sign_updates(key(1))]}, new_points)
    strategy, _ = run(tmp_path, grid, rounds=3, require_signatures=False)
    assert [one.server_data[0] for one in strategy.reports[1:]] == [(0, 1), (0,), (0, 1)]
    assert "must sign with its first key, 0x" in strategy.reports[2].kept_local[0].reason
    assert strategy.reports[2].left_out == ()


def test_a_device_that_begins_to_sign_later_is_known_by_its_first_key(tmp_path):
    """Its account is registered with the derived key by then: neither its data nor its updates are taken."""

    def later(message: Message, context: Context, call_next) -> Message:
        reply = call_next(message, context)
        if message.content["config"]["server-round"] == 1 and "flower-bfl" in reply.content:
            signed = reply.content["flower-bfl"]
            if SIGNATURE_KEY in signed:
                del reply.content["flower-bfl"]
        return reply

    grid = field({1: [later, sign_updates(key(1))]}, new_points)
    strategy, _ = run(tmp_path, grid, require_signatures=False)
    second = strategy.reports[2]
    assert [one.who for one in second.kept_local] == [one.who for one in second.left_out] == ["device 1"]
    for one in (*second.kept_local, *second.left_out):
        assert "must sign with its first key" in one.reason
    assert second.devices == DEVICES - 1


def test_data_and_updates_are_signed_with_one_key(tmp_path):
    """Another key for the update, in a later round, is not the device's."""
    two = sign_updates(key(1)), sign_updates(key(60))

    def either(message: Message, context: Context, call_next) -> Message:
        chosen = two[message.metadata.message_type == "train"]
        return chosen(message, context, call_next)

    script = Scripted(roomy(DEVICES, SERVERS), ROW, [None] * DEVICES)
    strategy, _ = run(tmp_path, field(signing() | {1: [either]}), controller=script)
    assert strategy.reports[1].server_data == ((0, 1), (2,))
    (left_out,) = strategy.reports[2].left_out
    assert left_out.who == "device 1" and "must sign with its first key" in left_out.reason


def test_all_that_do_not_sign_train_themselves_and_are_left_out(tmp_path):
    """Required signatures, and devices without the mod: nothing of theirs is taken."""
    mods = signing() | {0: [], 2: []}
    strategy, report = run(tmp_path, field(mods), rounds=1)
    told = strategy.reports[1]
    assert [one.who for one in told.kept_local] == ["device 0", "device 2"]
    assert sorted(one.who for one in told.left_out) == ["device 0", "device 2"]
    assert (told.devices, told.server_data) == (3, ((1,), ()))
    assert len(report.own_keys) == 3
