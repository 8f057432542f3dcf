"""Updates that clients sign themselves, from the ClientApp's mod to the contract."""

import numpy as np
import pytest
from coincurve import PrivateKey
from federation import initial, record, walker
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, FlowerBFLError, MemoryLedger, OnLedger
from flower_bfl.chain_adapter import Kind, Role, Sender, simulated_keys
from flower_bfl.learning.signing import ADDRESS_KEY, SIGNATURE_KEY, own_key, sign_updates
from flower_bfl.strategies import _replies

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class SigningGrid:
    """Clients that are real ClientApps with the mod, in one process."""

    def __init__(self, devices, keys, tamper=None):
        self.nodes = list(range(100, 100 + len(devices)))
        self._tamper = tamper
        self.contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in self.nodes}
        self._apps = {
            node: self._app(device, key) for node, device, key in zip(self.nodes, devices, keys, strict=True)
        }

    def get_node_ids(self):
        return self.nodes

    def send_and_receive(self, messages, timeout=None):
        return [self._reply(message) for message in messages]

    def _app(self, device, key):
        app = ClientApp(mods=[] if key is None else [sign_updates(key if isinstance(key, bytes) else None)])

        @app.train()
        def train(message: Message, context: Context) -> Message:
            arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
            content = device(message.content["config"]["server-round"], arrays)
            return Message(content, reply_to=message)

        return app

    def _reply(self, message):
        node = message.metadata.dst_node_id
        reply = self._apps[node](message, self.contexts[node])
        return reply if self._tamper is None else self._tamper(reply)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def address(private_key: bytes) -> bytes:
    from eth_hash.auto import keccak

    return keccak(PrivateKey(private_key).public_key.format(compressed=False)[1:])[12:]


def devices(count=4):
    return [walker(n, named=True) for n in range(count)]


def start(strategy, grid, rounds=2, arrays=None):
    return strategy.start(grid, arrays or initial(), num_rounds=rounds)


QUIET = {"fraction_evaluate": 0.0}


def test_the_two_sides_agree_on_the_name_of_the_record():
    assert (SIGNATURE_KEY, ADDRESS_KEY) == (_replies.SIGNATURE_KEY, _replies.ADDRESS_KEY)


@pytest.mark.parametrize("learning_rate", [1.0, 0.1])
def test_the_chain_says_that_the_devices_keys_signed(learning_rate):
    ledger = EvmLedger()
    keys = [key(n + 1) for n in range(4)]
    strategy = ConsensusBFL(ledger=ledger, learning_rate=learning_rate, require_signatures=True, **QUIET)
    start(strategy, SigningGrid(devices(), keys))
    assert [report.signed_devices for report in strategy.reports[1:]] == [(0, 1, 2, 3)] * 2
    gradients = [r for r in ledger.recorded() if r.entry.kind is Kind.GRADIENT]
    assert [r.account for r in gradients] == [address(each) for each in keys] * 2
    derived = {address(simulated_keys(0)(r.entry.sender)) for r in gradients}
    assert derived.isdisjoint(r.account for r in gradients)


def test_a_signed_run_has_the_models_of_an_unsigned_one():
    strategies = [ConsensusBFL(leader=0, ledger=EvmLedger(), **QUIET) for _ in range(2)]
    signed = start(strategies[0], SigningGrid(devices(), map(key, range(1, 5))))
    unsigned = start(strategies[1], SigningGrid(devices(), [None] * 4))
    for name, array in signed.arrays.items():
        np.testing.assert_array_equal(array.numpy(), unsigned.arrays[name].numpy())


def test_where_all_devices_keep_their_keys_the_leader_seals():
    ledger = EvmLedger()
    strategy = ConsensusBFL(ledger=ledger, **QUIET)
    start(strategy, SigningGrid(devices(), map(key, range(1, 5))))
    seals = [entry for entry in ledger.entries() if entry.kind is Kind.SEAL]
    assert [seal.sender.index for seal in seals] == [report.leader for report in strategy.reports[1:]]
    assert all(seal.sender.role is Role.SERVER for seal in seals)


def test_some_may_sign_and_others_not():
    ledger = EvmLedger()
    strategy = ConsensusBFL(ledger=ledger, **QUIET)
    start(strategy, SigningGrid(devices(), [key(1), None, key(3), None]))
    assert strategy.reports[-1].signed_devices == (0, 2)
    assert strategy.reports[-1].miner in ("device 1", "device 3")


def test_a_client_makes_a_key_of_its_own_and_keeps_it():
    ledger = EvmLedger()
    grid = SigningGrid(devices(2), [True, True])
    start(ConsensusBFL(edge_servers=2, ledger=ledger, **QUIET), grid, rounds=3)
    made = [address(own_key(context)) for context in grid.contexts.values()]
    recorded = [r.account for r in ledger.recorded() if r.entry.kind is Kind.GRADIENT]
    assert recorded == made * 3 and len(set(made)) == 2


def test_one_changed_weight_on_the_way_is_left_out():
    def tamper(reply):
        if reply.content["metrics"]["device-index"] == 2:
            arrays = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}
            arrays["head"][0, 0] += np.float32(1e-3)
            reply.content["arrays"] = record(arrays)
        return reply

    ledger = EvmLedger()
    strategy = ConsensusBFL(ledger=ledger, **QUIET)
    start(strategy, SigningGrid(devices(), map(key, range(1, 5)), tamper))
    for report in strategy.reports[1:]:
        assert report.signed_devices == (0, 1, 3)
        assert report.left_out[0].who == "device 2"
    senders = {e.sender.index for e in ledger.entries() if e.kind is Kind.GRADIENT}
    assert senders == {0, 1, 3}


@pytest.mark.parametrize("metric", ["num-examples", "num-steps"])
def test_a_changed_weight_of_the_update_is_noticed_too(metric):
    def tamper(reply):
        reply.content["metrics"][metric] += 1
        return reply

    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    with pytest.raises(FlowerBFLError, match=r"its signature must be one of this update"):
        start(strategy, SigningGrid(devices(), map(key, range(1, 5)), tamper))


def strip(server_round, devices=4):
    """Take device 1's signature away from this round on."""
    seen = []

    def tamper(reply):
        if reply.content["metrics"]["device-index"] == 1 and len(seen) // devices + 1 >= server_round:
            del reply.content["flower-bfl"]
        seen.append(reply)
        return reply

    return tamper


def test_a_device_that_signed_once_must_go_on_signing():
    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    start(strategy, SigningGrid(devices(), map(key, range(1, 5)), strip(2)), rounds=2)
    assert strategy.reports[1].signed_devices == (0, 1, 2, 3)
    assert strategy.reports[2].signed_devices == (0, 2, 3)
    assert "must sign with its first key, 0x" in strategy.reports[2].left_out[0].reason


def test_require_signatures_leaves_out_who_does_not_sign():
    strategy = ConsensusBFL(ledger=EvmLedger(), require_signatures=True, **QUIET)
    start(strategy, SigningGrid(devices(), [key(1), key(2), None, key(4)]))
    assert strategy.reports[-1].signed_devices == (0, 1, 3)
    assert "must sign its update, got none" in strategy.reports[-1].left_out[0].reason


def test_one_key_is_not_for_two_devices():
    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    start(strategy, SigningGrid(devices(), [key(1), key(2), key(1), key(4)]))
    assert strategy.reports[-1].signed_devices == (0, 1, 3)
    assert "must have a key of its own" in strategy.reports[-1].left_out[0].reason


def test_garbage_in_place_of_a_signature_is_left_out():
    def tamper(reply):
        if reply.content["metrics"]["device-index"] == 0:
            reply.content["flower-bfl"] = ConfigRecord({SIGNATURE_KEY: "no bytes"})
        return reply

    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    start(strategy, SigningGrid(devices(), map(key, range(1, 5)), tamper))
    assert "'flower-bfl-signature' must be 65 bytes" in strategy.reports[-1].left_out[0].reason


def test_without_a_ledger_nobody_is_asked_to_sign():
    result = start(ConsensusBFL(**QUIET), SigningGrid(devices(), map(key, range(1, 5))))
    assert result.arrays
    with pytest.raises(ConfigError, match="`require_signatures` needs a `ledger`"):
        ConsensusBFL(require_signatures=True)


def test_any_flower_strategy_gets_signed_updates():
    from flwr.serverapp.strategy import FedAvg

    ledger = MemoryLedger()
    strategy = OnLedger(FedAvg(fraction_evaluate=0.0), ledger, require_signatures=True)
    start(strategy, SigningGrid(devices(), [key(1), key(2), None, key(4)]))
    assert strategy.reports[-1].signed_devices == (0, 1, 3)


def replacing_signature(number, record):
    def tamper(reply):
        if reply.content["metrics"]["device-index"] == number:
            reply.content["flower-bfl"] = ConfigRecord(record)
        return reply

    return tamper


def test_a_void_signature_without_an_address_does_not_end_the_run():
    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    tamper = replacing_signature(0, {SIGNATURE_KEY: bytes(65)})
    start(strategy, SigningGrid(devices(), [None] * 4, tamper))
    assert [report.devices for report in strategy.reports[1:]] == [3, 3]
    assert "its signature must be one of this update by none" in strategy.reports[1].left_out[0].reason


@pytest.mark.parametrize("whose", [(Role.OPERATOR, 0), (Role.SERVER, 1), (Role.DEVICE, 3)], ids=str)
def test_nobody_signs_with_a_key_that_somebody_else_has(whose):
    """Who knows the seed knows the derived keys; that must not end a run."""
    stolen = simulated_keys(0)(Sender(*whose))
    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    start(strategy, SigningGrid(devices(), [stolen, None, None, None]))
    assert [report.devices for report in strategy.reports[1:]] == [3, 3]
    assert "must have a key of its own" in strategy.reports[1].left_out[0].reason


def test_a_device_that_begins_to_sign_later_is_left_out():
    """Its account is registered with the derived key by then."""
    seen = []

    def tamper(reply):
        seen.append(reply)
        if len(seen) <= 4:
            del reply.content["flower-bfl"]
        return reply

    strategy = ConsensusBFL(ledger=EvmLedger(), **QUIET)
    start(strategy, SigningGrid(devices(), map(key, range(1, 5)), tamper))
    assert strategy.reports[1].devices == 4
    assert "must sign with its first key" in strategy.reports[2].left_out[0].reason


def test_a_signature_holds_for_one_model_only():
    """An update to another model than the recorded one is not what the device signed."""
    grids = [SigningGrid(devices(), map(key, range(1, 5))) for _ in range(2)]
    ledgers = [EvmLedger(), EvmLedger()]
    for seed, (grid, ledger) in enumerate(zip(grids, ledgers, strict=True)):
        start(ConsensusBFL(leader=0, ledger=ledger, **QUIET), grid, arrays=initial(seed))
    first, second = ([entry.signature for entry in ledger.entries() if entry.signature] for ledger in ledgers)
    assert ledgers[0].domain == ledgers[1].domain
    assert set(first).isdisjoint(second)


def test_keys_of_devices_that_sign_themselves_are_not_asked_for():
    """A key folder of operator and edge servers has none of them, and must not be made to make some."""

    def held(sender):
        assert sender.role is not Role.DEVICE
        return simulated_keys(3)(sender)

    strategy = ConsensusBFL(ledger=EvmLedger(), keys=held, require_signatures=True, **QUIET)
    start(strategy, SigningGrid(devices(), [key(1), None, key(3), key(4)]))
    assert [report.signed_devices for report in strategy.reports[1:]] == [(0, 2, 3)] * 2
