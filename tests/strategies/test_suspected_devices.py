"""Devices that poison: what they send, who is suspected, what robust rules and the audit make of it."""

import dataclasses

import numpy as np
import pytest
from checked_run import DEVICES, Sending
from false_entries import Replayed
from federation import EXACT, Federation, initial, record, run, values, walker
from field import Field, least_squares_app, new_points, numbered, roomy, start_weights
from flwr.app import RecordDict

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, IndependentServers, MemoryLedger, Mining
from flower_bfl.attacks import (
    ALittleIsEnough,
    Backdoor,
    Falsification,
    GaussianNoise,
    LabelFlip,
    OldValue,
    Scaling,
    SignFlip,
    poisoned,
)
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind, Role, Sender
from flower_bfl.chain_adapter.records import Gradient, RunRules
from flower_bfl.defences import (
    CentredClipping,
    Deviation,
    Krum,
    Median,
    MultiKrum,
    Replay,
    TrimmedMean,
    described,
)
from flower_bfl.strategies._adversary import Adversary
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._replies import Contribution
from flower_bfl.strategies._roster import Trained

FAR = GaussianNoise(devices={3, 4}, rounds={2}, size=20)


def strategy(folder=None, **arguments):
    ledger = MemoryLedger() if folder is None else EvmLedger(folder / "chain")
    return ConsensusBFL(
        edge_servers=3, ledger=ledger, run_folder=folder, fraction_evaluate=0.0,
        mining=Mining(difficulty_bits=1), **EXACT | arguments,
    )  # fmt: skip


def honest(devices=range(8)):
    return [walker(n, named=True) for n in devices]


def start(chosen, devices, rounds=3):
    result = chosen.start(Federation(devices, seed=3), initial(), rounds)
    return values(result.arrays)


# -- attacks at devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "falsified"),
    [
        (SignFlip(devices={1}, size=2), lambda g, now, before: -2 * g[1]),
        (Scaling(devices={1}, factor=3), lambda g, now, before: 3 * g[1]),
        (ALittleIsEnough(devices={1}, z=2), lambda g, now, before: g.mean(0) - 2 * g.std(0)),
        (OldValue(devices={1}), lambda g, now, before: before[1]),
    ],
)
def test_what_a_malicious_device_sends_is_what_the_attack_says(attack, falsified):
    """Against plain sums over what the devices would have sent."""
    chosen = strategy(attacks=[attack])
    start(chosen, honest(range(4)), rounds=2)
    entries = [entry for entry in chosen._journal.ledger.entries() if entry.kind is Kind.GRADIENT]
    sent = {}
    for entry in entries:
        arrays = Gradient.decode(entry.payload).arrays
        vector = np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)
        sent[entry.round, entry.sender.index] = vector
    draws = {}
    for k in (1, 2):  # the walkers' steps do not depend on where they start
        for n in range(4):
            rng = np.random.default_rng([n, k])
            steps = [rng.standard_normal(shape) for shape in ((6, 5), (5,), (5, 3))]
            draws[k, n] = -0.1 * np.concatenate([step.ravel() for step in steps])
    for k in (1, 2):
        g = np.array([draws[k, n] for n in range(4)])
        old = {1: draws[1, 1] if k == 2 else np.zeros(50)}
        for n in range(4):
            expected = falsified(g, k, old) if n == 1 else g[n]
            np.testing.assert_allclose(sent[k, n], expected, atol=2e-6)


def test_devices_that_sign_themselves_cannot_be_made_to_lie():
    model = {"w": np.zeros(3, np.float32)}
    signed = Contribution(1, 1, 10.0, 1, model, b"s" * 65, b"a" * 20, RecordDict())
    group = Trained((Sender(Role.DEVICE, 1),), (signed,), np.zeros(1, np.int64))
    adversary = Adversary([SignFlip(devices={1})], 0)
    with pytest.raises(ConfigError, match="must not be by devices that sign themselves, got SignFlip"):
        adversary.poisoned(Role.DEVICE, 1, group, lambda node: model, Layout.of(model))


def test_attacks_on_data_reach_the_clients_config():
    attacks = [LabelFlip(devices={1}, rounds={2}), Backdoor(devices={0, 2}, target=3), SignFlip(devices={1})]
    seen = []

    class Listening(Federation):
        def _reply(self, message):
            seen.append(dict(message.content["config"]))
            return super()._reply(message)

    chosen = ConsensusBFL(edge_servers=2, attacks=attacks, fraction_evaluate=0.0)
    chosen.start(Listening(honest(range(4))), initial(), 2)
    images, labels = np.zeros((6, 4, 4), np.float32), np.arange(6)
    for config in seen:
        k = config["server-round"]
        for device in range(4):
            found = poisoned(config, images, labels, device=device)
            expected = images, labels
            for attack in attacks[:2]:
                expected = attack.poison(*expected, device=device, server_round=k)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    assert poisoned({"server-round": 1}, images, labels, device=1) == (images, labels)


@pytest.mark.parametrize(
    "text", ["", "3", "[3]", '[{"name": "SignFlip"}]', '[{"name": "LabelFlip", "x": 1}]']
)
def test_a_config_that_says_no_attack_is_refused(text):
    with pytest.raises(ConfigError, match="must be a list of attacks on data"):
        poisoned({"flower-bfl-poison": text, "server-round": 1}, np.zeros(1), np.zeros(1), device=0)


def test_independent_servers_are_attacked_too():
    """Where nobody notices: one server's model is another one from its round on, the others' are not."""
    runs = {}
    for name, attacks in {
        "none": [],
        "model": [GaussianNoise(server=1, rounds={2}, p2p_step="model")],
    }.items():
        chosen = IndependentServers(edge_servers=3, attacks=attacks, fraction_evaluate=0.0)
        start(chosen, honest(), rounds=2)
        runs[name] = chosen
    for m in range(3):
        same = all(
            np.array_equal(runs["none"].models[m][name], runs["model"].models[m][name])
            for name in runs["none"].models[m]
        )
        assert same == (m != 1)
    assert [report.attacked for report in runs["model"].reports] == [
        (), (), ("GaussianNoise by edge server 1 in the model",),
    ]  # fmt: skip


# -- deviation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defence", [Deviation(), [Replay(), Deviation()]])
def test_who_deviates_is_recorded_and_left_out(tmp_path, defence):
    """The model is that of the others alone, by a mean of their updates."""
    chosen = strategy(tmp_path, attacks=[FAR], defence=defence)
    model = start(chosen, honest(), rounds=2)
    report = chosen.reports[2]
    assert [one.who for one in report.suspected] == ["device 3", "device 4"]
    assert set(report.suspected) <= set(report.left_out)
    assert (report.true_positives, report.false_positives, report.missed) == (2, 0, 0)
    assert {n for group in report.server_devices for n in group} == {0, 1, 2, 5, 6, 7}
    assert report.defend_seconds > 0
    others = strategy()

    def failing(device):
        def train(server_round, arrays):
            if server_round == 2 and device in (3, 4):
                raise RuntimeError("not there")
            return walker(device, named=True)(server_round, arrays)

        return train

    result = others.start(Federation([failing(n) for n in range(8)], seed=3), initial(), 2)
    for name, array in values(result.arrays).items():
        np.testing.assert_allclose(model[name], array, atol=1e-6)
    found = audit(tmp_path)
    assert (found.finding, found.checked.gradients_not_aggregated) == (None, 2)


def recorded_run(folder, **arguments):
    """Entries of an attacked run, and the contract's rules."""
    chosen = strategy(folder, **arguments)
    start(chosen, honest(), rounds=2)
    ledger = EvmLedger(folder / "chain", read_only=True)
    return ledger.rules, list(ledger.recorded())


def with_defences(recorded, defences):
    """The same entries under RULES that name other defences."""
    changed = []
    for at in recorded:
        if at.entry.kind is Kind.RULES:
            rules = dataclasses.replace(
                RunRules.decode(at.entry.payload), defences=tuple(map(described, defences))
            )
            at = dataclasses.replace(at, entry=dataclasses.replace(at.entry, payload=rules.encode()))
        changed.append(at)
    return changed


def test_the_audit_sees_who_was_not_left_out(tmp_path):
    rules, recorded = recorded_run(tmp_path, attacks=[FAR])
    assert audit(Replayed(rules, recorded)).finding is None
    finding = audit(Replayed(rules, with_defences(recorded, [Deviation()]))).finding
    assert finding.rule == "gradients must be summed up, but for those that deviate"
    assert finding.account.startswith("device 3 ")
    assert (finding.expected, finding.found) == ("not in a sum", "in one")


@pytest.mark.parametrize("rules_name", [[Replay()], [Deviation(threshold=1e6)]])
def test_the_audit_sees_who_was_left_out_for_nothing(tmp_path, rules_name):
    rules, recorded = recorded_run(tmp_path, attacks=[FAR], defence=Deviation())
    assert audit(Replayed(rules, recorded)).finding is None
    finding = audit(Replayed(rules, with_defences(recorded, rules_name))).finding
    assert finding.account.startswith("device 3 ")
    assert (finding.expected, finding.found) == ("in one", "not in a sum")


@pytest.mark.parametrize("text", ["", "{}", '{"name": "Median"}', '{"name": "Replay"}', "x" * 5000])
def test_rules_with_unknown_defences_are_a_finding(tmp_path, text):
    rules, recorded = recorded_run(tmp_path)
    changed = []
    for at in recorded:
        if at.entry.kind is Kind.RULES:
            said = dataclasses.replace(RunRules.decode(at.entry.payload), defences=(text, text))
            at = dataclasses.replace(at, entry=dataclasses.replace(at.entry, payload=said.encode()))
        changed.append(at)
    assert audit(Replayed(rules, changed)).finding.rule == "RULES must hold defences in their format"


# -- robust rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(0.3), Krum(0.3), MultiKrum(0.3), CentredClipping()])
def test_a_robust_rule_takes_the_means_place(tmp_path, rule):
    """a_m = (Σ D_y / D) · rule(g_y / e_y), summed up and applied by hand."""
    chosen = strategy(tmp_path, edge_rule=rule, attacks=[FAR], defence=Replay())
    before = values(initial())
    model = start(chosen, honest(), rounds=1)
    samples = np.array([10 + 7 * n for n in range(8)], float)
    rows = []
    for n in range(8):
        rng = np.random.default_rng([n, 1])
        rows.append(
            np.concatenate([-0.1 * rng.standard_normal(a.shape).ravel() for a in before.values()]) / 4
        )
    rows = np.array(rows, np.float32)
    total = np.zeros(rows.shape[1])
    for m in range(3):
        own = np.arange(8) % 3 == m
        total += samples[own].sum() / samples.sum() * rule.combine(rows[own]).astype(float)
    expected = np.concatenate([array.ravel() for array in before.values()]) - 4 * total
    found = np.concatenate([array.ravel() for array in model.values()])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert audit(tmp_path).finding is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edge_rule": Deviation()}, "`edge_rule` must be a rule of flower_bfl.defences, got Deviation"),
        ({"edge_rule": "median"}, "`edge_rule` must be a rule of flower_bfl.defences, got 'median'"),
        ({"attacks": GaussianNoise}, "`attacks` must be attacks of flower_bfl.attacks, got <class"),
        ({"attacks": [Falsification(server=1)]}, "`attacks` must be attacks of flower_bfl.attacks, got Fals"),
        ({"quarantine_rounds": -1}, "`quarantine_rounds` must be a whole number from 0 to"),
        ({"quarantine_rounds": 1.5}, "`quarantine_rounds` must be a whole number from 0 to"),
    ],
)
def test_arguments_that_break_a_rule(arguments, message):
    with pytest.raises(ConfigError, match=message):
        strategy(**arguments)


def test_the_audit_goes_by_the_rule_of_the_run(tmp_path):
    rules, recorded = recorded_run(tmp_path, edge_rule=Median())
    assert audit(Replayed(rules, recorded)).finding is None
    changed = []
    for at in recorded:
        if at.entry.kind is Kind.RULES:
            said = dataclasses.replace(RunRules.decode(at.entry.payload), edge_rule=described(Krum()))
            at = dataclasses.replace(at, entry=dataclasses.replace(at.entry, payload=said.encode()))
        changed.append(at)
    assert audit(Replayed(rules, changed)).finding.rule == "x^(0) must be a_m of the gradients, eq. (8)"


def test_a_robust_rule_meets_nan_as_the_mean_does():
    def broken(server_round, arrays):
        reply = walker(5, named=True)(server_round, arrays)
        arrays = values(reply["arrays"])
        reply["arrays"] = record(arrays | {"head": np.full((5, 3), np.nan, np.float32)})
        return reply

    for arguments in ({"edge_rule": Median()}, {"defence": Deviation()}):
        chosen = strategy(**arguments)
        run(chosen, [*honest(range(5)), broken], rounds=1)
        (left,) = chosen.reports[1].left_out
        assert left.who == "device 5" and "finite" in left.reason


# -- with a controller ----------------------------------------------------------------------------------


def test_nobody_offloads_to_an_edge_server_in_quarantine(tmp_path):
    app = least_squares_app(new_points, report=numbered)
    chosen = ConsensusBFL(
        edge_servers=3, p2p_rounds=2, ledger=EvmLedger(tmp_path / "chain"), run_folder=tmp_path,
        mining=Mining(difficulty_bits=1), fraction_evaluate=0.0, wait_for_nodes_s=0.1,
        controller=Sending(roomy(DEVICES, 3), {0: 0, 1: 1, 2: 1}), defence=Replay(), quarantine_rounds=1,
        attacks=[GaussianNoise(server=1, rounds={2}, p2p_step=1)],
    )  # fmt: skip
    chosen.start(Field([app] * (DEVICES + 3)), start_weights(), 4)
    first, attacked, barred, after = chosen.reports[1:]
    assert first.server_data == after.server_data == ((0,), (1, 2), ())
    # what the liar trained itself is out, and with it the data that it had
    assert attacked.server_data == ((0,), (), ())
    assert [one.who for one in attacked.left_out] == ["edge server 1", "device 1", "device 2"]
    # and then nobody sends it anything
    assert barred.server_data == ((0,), (), ()) and not barred.left_out
    assert {n for group in barred.server_devices for n in group} == {1, 2, 3, 4}
    found = audit(tmp_path)
    assert found.finding is None
    assert [(one.round, one.server, one.upheld) for one in found.incidents] == [(2, 1, True)]


@pytest.mark.parametrize("defence", [None, Deviation()])
def test_what_an_edge_server_trained_itself_is_judged_like_a_device(tmp_path, defence):
    app = least_squares_app(new_points, report=numbered)
    chosen = ConsensusBFL(
        edge_servers=3, p2p_rounds=2, ledger=EvmLedger(tmp_path / "chain"), run_folder=tmp_path,
        mining=Mining(difficulty_bits=1), fraction_evaluate=0.0, wait_for_nodes_s=0.1,
        controller=Sending(roomy(DEVICES, 3), {0: 0, 1: 1, 2: 1}), defence=defence,
        attacks=[Scaling(server=1, rounds={2}, factor=1e4, p2p_step="training")],
    )  # fmt: skip
    chosen.start(Field([app] * (DEVICES + 3)), start_weights(), 2)
    report = chosen.reports[2]
    if defence is None:
        assert (report.true_positives, report.false_positives, report.missed) == (0, 0, 1)
        assert report.server_data == ((0,), (1, 2), ())
    else:
        assert "edge server 1" in [one.who for one in report.suspected]
        assert (report.true_positives, report.missed) == (1, 0)
        assert {"edge server 1", "device 1", "device 2"} <= {one.who for one in report.left_out}
        assert report.server_data[1] == ()
    assert audit(tmp_path).finding is None


def test_old_values_of_devices_are_those_of_the_round_before():
    """Also where the attack acts in one round only."""
    chosen = strategy(attacks=[OldValue(devices={1}, rounds={3})])
    start(chosen, honest(range(4)), rounds=3)
    sent = {}
    for entry in chosen._journal.ledger.entries():
        if entry.kind is Kind.GRADIENT and entry.sender == Sender(Role.DEVICE, 1):
            sent[entry.round] = Gradient.decode(entry.payload).arrays
    for name, array in sent[2].items():
        np.testing.assert_allclose(sent[3][name], array, atol=1e-6)
        assert not np.allclose(sent[1][name], array, atol=1e-2)
