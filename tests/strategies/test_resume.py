"""A run that is broken off goes on from its ledger, and ends with the very model of one that was not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from attacked import OnPaper
from federation import Federation, initial, record, values, walker
from field import Field, Scripted, least_squares_app, new_points, roomy, start_weights
from flwr.app import MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
)
from test_signed_updates import SigningGrid

from flower_bfl import (
    AutoRounds,
    ConfigError,
    ConsensusBFL,
    EvmLedger,
    MemoryLedger,
    Mining,
    OnLedger,
    Outage,
)
from flower_bfl.attacks import Equivocation, GaussianNoise, OldValue, SignFlip
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind, encode, simulated_keys
from flower_bfl.defences import Deviation, Replay
from flower_bfl.errors import LedgerError, PayloadError, RunFolderError
from flower_bfl.network.settings import Tasks
from flower_bfl.strategies._memory import Memory
from flower_bfl.types import Accusation, LedgerCost, LeftOut, RoundReport

ROUNDS = 3
QUIET = {"fraction_evaluate": 0.0, "wait_for_nodes_s": 0.2}


class BrokenOffError(RuntimeError):
    """The end of a server, as far as a test in its process can have one."""


class Mortal:
    """A ledger whose owner dies with the n-th phase, before it is recorded or right after."""

    def __init__(self, ledger, phase=None, *, recorded=False):
        self.ledger, self.phases = ledger, 0
        self._phase, self._recorded = phase, recorded

    def __getattr__(self, name):
        return getattr(self.ledger, name)

    def record(self, entries):
        self.phases += 1
        last = self.phases == self._phase
        if last and not self._recorded:
            raise BrokenOffError
        receipt = self.ledger.record(entries)
        if last:
            raise BrokenOffError
        return receipt


def consensus(**settings):
    given = {"edge_servers": 4, "graph": "ring", "p2p_rounds": 2, "mining": Mining(difficulty_bits=2)}
    return lambda **own: ConsensusBFL(**QUIET | given | settings | own)


def on_ledger(make, **settings):
    return lambda **own: OnLedger(make(fraction_evaluate=0.0), **settings | own)


def absent(device, rounds):
    """A device whose replies of some rounds cannot be used."""

    def train(server_round, arrays):
        if server_round in rounds:
            raise RuntimeError("no power")
        return device(server_round, arrays)

    return train


DEVICES = [walker(n, named=True, steps=1 + n % 3) for n in range(7)]
LIES = [
    GaussianNoise(server=1, size=0.1, p2p_step=1, rounds=(1,)),
    SignFlip(server=2, p2p_step="model", rounds=(2,)),
]
OLD = [
    OldValue(server=1, p2p_step=1),
    OldValue(devices=(3,)),
    OldValue(server=2, p2p_step="model"),
]
MIXED = [
    Equivocation(server=0, p2p_step=1, size=0.2, rounds=(2, 3)),
    GaussianNoise(devices=(2,), size=5.0),
]
OUTAGES = [Outage(2, server=1, step=1), Outage(3, link=(0, 1))]
MOMENTUM = {"server_momentum": 0.9, "server_learning_rate": 0.5}
MAKERS = {
    "reputation": consensus(leader="reputation"),
    "drawn leader, nobody mines": consensus(mining=None, mass="data"),
    "no consensus": consensus(p2p_rounds=0),
    "as many steps as needed": consensus(p2p_rounds=AutoRounds(1.0)),
    "absences": consensus(outages=OUTAGES),
    "quarantine": consensus(attacks=LIES, defence=Replay(), quarantine_rounds=1),
    "old values": consensus(attacks=OLD),
    "all defences": consensus(attacks=MIXED, defence=[Replay(), Deviation()], quarantine_rounds=0),
    "FedAvg on a ledger": on_ledger(FedAvg),
    "FedMedian on a ledger": on_ledger(FedMedian, mining=None),
    "FedAdam on a ledger": on_ledger(FedAdam),
    "FedYogi on a ledger": on_ledger(FedYogi),
    "FedAvgM on a ledger": on_ledger(lambda **own: FedAvgM(**MOMENTUM | own)),
}
ABSENT = [*DEVICES[:5], *(absent(device, {2, 3}) for device in DEVICES[5:])]
VARIANTS = {name: (make, ABSENT if name == "absences" else DEVICES) for name, make in MAKERS.items()}


def go(variant, ledger, **own):
    make, devices = VARIANTS[variant]
    strategy = make(ledger=ledger, **own)
    result = strategy.start(Federation(devices), initial(), ROUNDS)
    return strategy, values(result.arrays)


def same(model, other):
    return list(model) == list(other) and all(np.array_equal(model[name], other[name]) for name in model)


def told(report):
    """What an audit finds, if it finds anything: attacks that nobody defends against, for one."""
    return report.finding and (report.finding.rule, report.finding.expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_wherever_a_run_is_broken_off_it_ends_with_the_same_model(variant):
    """At every phase of the ledger, before it is recorded or right after, in turn."""
    whole = Mortal(MemoryLedger())
    strategy, model = go(variant, whole)
    rules = whole.ledger._book.rules
    found_in_whole = told(audit(OnPaper(rules, list(whole.ledger.entries()))))
    for phase in range(1, whole.phases + 1):
        recorded = phase % 2 == 0
        ledger = MemoryLedger()
        with pytest.raises(BrokenOffError):
            go(variant, Mortal(ledger, phase, recorded=recorded))
        there = list(ledger.entries())
        again, found = go(variant, ledger, resume=True)
        assert same(found, model)
        assert ledger.head == whole.ledger.head
        entries = list(ledger.entries())
        assert entries[: len(there)] == there
        report = audit(OnPaper(rules, entries))
        assert told(report) == found_in_whole
        assert again.reports[-1].round == ROUNDS
        assert again.reports[-1].model_digest == strategy.reports[-1].model_digest
        broken = [entry for entry in entries if entry.kind is Kind.RESTART]
        assert len(broken) <= 1
        if report.finding is None:
            assert len(broken) == sum("broken off and begun again, 1 in all" in n for n in report.notes)


# -- with a controller ---------------------------------------------------------------------------------------


def controlled(ledger, folder=None, *, rounds=5, resume=False):
    """Offloading in a network whose batteries run down, on data that change from round to round."""
    tasks = Tasks(energy_slack_j=(0.5, 10.0), battery=True)
    network = roomy(5, 2, tasks=tasks)
    controller = Scripted(network, [0, None, 1, None, 0])
    strategy = ConsensusBFL(
        edge_servers=2, p2p_rounds=1, ledger=ledger, run_folder=folder, mining=Mining(difficulty_bits=1),
        controller=controller, resume=resume, **QUIET,
    )  # fmt: skip
    grid = Field([least_squares_app(new_points)] * 7)
    result = strategy.start(grid, start_weights(), rounds)
    return strategy, values(result.arrays), controller.seen


def test_the_network_goes_on_as_well(tmp_path):
    """Channels, tasks and batteries are those that the rounds would have had, and so is the clock."""
    whole = Mortal(MemoryLedger())
    strategy, model, seen = controlled(whole)
    for phase in (2, 7, 8, 11, whole.phases):
        ledger = MemoryLedger()
        with pytest.raises(BrokenOffError):
            controlled(Mortal(ledger, phase))
        again, found, states = controlled(ledger, resume=True)
        assert same(found, model)
        assert ledger.head == whole.ledger.head
        assert len(states) < len(seen) or phase == 2
        for state, wanted in zip(states, seen[-len(states) :], strict=True):
            for name in vars(wanted):
                np.testing.assert_array_equal(getattr(state, name), getattr(wanted, name))
        assert again.reports[-1].simulated_seconds == strategy.reports[-1].simulated_seconds
        assert again.reports[-1].energy_j == strategy.reports[-1].energy_j


# -- what is on the disk -------------------------------------------------------------------------------------


def on_disk(folder, *, resume=False, rounds=ROUNDS, phase=None, evaluate=True, **settings):
    own = {"leader": "reputation"} | settings
    ledger = Mortal(EvmLedger(folder / "chain"), phase)
    strategy = consensus(**own)(ledger=ledger, run_folder=folder, resume=resume)

    def central(server_round, arrays):
        return MetricRecord({"loss": float(np.abs(arrays["head"].numpy()).sum())})

    result = strategy.start(Federation(DEVICES), initial(), rounds, evaluate_fn=central if evaluate else None)
    return strategy, result


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


KEPT = ("round", "model_digest", "head", "evaluate", "devices", "samples", "leader", "miner")


def timeless(line):
    return {name: value for name, value in line.items() if not name.endswith("seconds")}


def test_the_run_folder_is_as_if_nothing_had_happened(tmp_path):
    """All but wall times, and what the killed server alone knew of its last round."""
    on_disk(tmp_path / "whole")
    for phase in range(1, 17, 3):
        folder = tmp_path / str(phase)
        with pytest.raises(BrokenOffError):
            on_disk(folder, phase=phase)
        written = lines(folder)
        strategy, result = on_disk(folder, resume=True)
        assert audit(folder).finding is None
        assert (folder / "model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()
        now, wanted = lines(folder), lines(tmp_path / "whole")
        assert len(now) == ROUNDS + 1
        assert now[: len(written)] == written
        for line, other in zip(now, wanted, strict=True):
            for name in (
                "round",
                "model_digest",
                "head",
                "evaluate",
                "devices",
                "samples",
                "leader",
                "miner",
            ):
                assert line[name] == other[name], name
        assert [timeless(line) for line in now[-1:]] == [timeless(line) for line in wanted[-1:]]
        assert [report.round for report in strategy.reports] == list(range(ROUNDS + 1))
        assert sorted(result.evaluate_metrics_serverapp) == list(range(ROUNDS + 1))
        told = {line["round"] for line in written if line["round"]} | {now[-1]["round"]}
        assert told <= {*result.train_metrics_clientapp} <= set(range(1, ROUNDS + 1))


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    _, whole = on_disk(tmp_path)
    before = (tmp_path / "rounds.jsonl").read_bytes()
    strategy, result = on_disk(tmp_path, resume=True)
    assert same(values(result.arrays), values(whole.arrays))
    assert (tmp_path / "rounds.jsonl").read_bytes() == before
    assert len(strategy.reports) == ROUNDS + 1
    longer, _ = on_disk(tmp_path, resume=True, rounds=ROUNDS + 2)
    assert len(longer.reports) == ROUNDS + 3
    assert audit(tmp_path).finding is None


def test_resuming_nothing_begins(tmp_path):
    strategy, result = on_disk(tmp_path, resume=True)
    _, other = on_disk(tmp_path / "other")
    assert same(values(result.arrays), values(other.arrays))
    assert len(strategy.reports) == ROUNDS + 1


@pytest.mark.parametrize("torn", [b'{"round": 3, "dev', b"{", b'{"round": 3}', b"\xff\xfe"])
def test_a_torn_last_line_is_written_anew(tmp_path, torn):
    on_disk(tmp_path)
    file = tmp_path / "rounds.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole[:-1]) + torn)
    on_disk(tmp_path, resume=True, rounds=ROUNDS + 1)
    assert [line["round"] for line in lines(tmp_path)] == list(range(ROUNDS + 2))
    assert audit(tmp_path).finding is None


def test_lines_of_rounds_that_the_ledger_lost_are_taken_back(tmp_path):
    """After a power cut the file may be ahead of the chain."""
    on_disk(tmp_path)
    file = tmp_path / "rounds.jsonl"
    content = file.read_bytes()
    extra = json.loads(content.splitlines()[-1]) | {"round": ROUNDS + 1}
    file.write_bytes(content + json.dumps(extra).encode() + b"\n")
    on_disk(tmp_path, resume=True)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda whole: whole[:-2], r"must have a line for each round of the run, up to 2 at least, got 2"),
        (lambda whole: [whole[0], b"[]\n", *whole[2:]], r"line 2 of .*rounds.jsonl must be round 1's"),
        (lambda whole: [whole[1], whole[0], *whole[2:]], r"line 1 of .* must be round 0's: it is of round 1"),
        (lambda whole: [whole[0], b"[" * 10**5 + b"\n", *whole[2:]], r"line 2 of .* must be round 1's"),
        (lambda whole: [whole[0], b'{"round": 1}\n', *whole[2:]], r"line 2 of .* must be round 1's"),
    ],
)
def test_other_damage_to_the_reports_is_named(tmp_path, spoil, told):
    on_disk(tmp_path)
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(b"".join(spoil(file.read_bytes().splitlines(keepends=True))))
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match=told):
        on_disk(tmp_path, resume=True)
    assert file.read_bytes() == before


def test_a_report_can_be_read_back():
    report = RoundReport(
        3, 5, 2.5, left_out=(LeftOut("device 1", "no"),), server_devices=((0, 1), (2,)),
        accused=(Accusation(1, "state", 2, 3, True),), ledger=LedgerCost(1, 2, 3, 4, 5, 0.5),
        miner="device 1", latency_s={"total": 1.5}, train={"loss": 0.5},
    )  # fmt: skip
    assert RoundReport.from_json(json.loads(json.dumps(report.as_json()))) == report


# -- what does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"p2p_rounds": 3}, r"settings must be those of the run that goes on: p2p_rounds 2, got 3"),
        ({"learning_rate": 0.5}, r"learning_rate 1.0, got 0.5"),
        ({"graph": "line"}, r"mixing \[\["),
        ({"defence": Replay()}, r"defences \(\), got .*Replay"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, told):
    on_disk(tmp_path)
    with pytest.raises(ConfigError, match=told):
        on_disk(tmp_path, resume=True, **settings)


@pytest.mark.parametrize("settings", [{"leader": 1}, {"quarantine_rounds": 3}, {"edge_servers": 5}])
def test_other_rules_of_the_contract_are_refused(tmp_path, settings):
    on_disk(tmp_path)
    with pytest.raises(LedgerError, match="`rules` must be those of"):
        on_disk(tmp_path, resume=True, **settings)


def test_another_operator_is_refused(tmp_path):
    on_disk(tmp_path)
    with pytest.raises(LedgerError, match="`keys` must be those of the chain"):
        on_disk(tmp_path, resume=True, keys=simulated_keys(5))


def test_another_model_is_refused(tmp_path):
    on_disk(tmp_path)
    strategy = consensus(leader="reputation")(ledger=EvmLedger(tmp_path / "chain"), resume=True)
    other = record({"layer.weight": np.zeros((6, 4), np.float32)})
    with pytest.raises(ConfigError, match=r"got 'head' with nothing for \[5, 3\] floats"):
        strategy.start(Federation(DEVICES), other, ROUNDS)


def test_a_run_goes_on_from_a_ledger_only():
    with pytest.raises(ConfigError, match="`resume` needs a `ledger`, got none"):
        ConsensusBFL(resume=True)


def test_without_resume_a_run_is_not_gone_on_with(tmp_path):
    on_disk(tmp_path)
    with pytest.raises(RunFolderError, match="must not hold a run already"):
        on_disk(tmp_path)
    strategy = consensus(leader="reputation")(ledger=EvmLedger(tmp_path / "chain"))
    with pytest.raises(ConfigError, match="or set `resume` to go on with that one"):
        strategy.start(Federation(DEVICES), initial(), ROUNDS)


def test_a_payload_that_was_changed_is_noticed_before_anything_else(tmp_path):
    ledger = EvmLedger(tmp_path / "chain", payloads="digest")
    consensus()(ledger=ledger, run_folder=tmp_path).start(Federation(DEVICES), initial(), 2)
    payload = sorted((tmp_path / "chain/payloads").iterdir())[0]
    payload.write_bytes(payload.read_bytes()[:-1] + b"!")
    asked = []

    class Watched(Federation):
        def send_and_receive(self, messages, timeout=None):
            asked.extend(messages)
            return super().send_and_receive(messages, timeout)

    again = consensus()(ledger=EvmLedger(tmp_path / "chain"), run_folder=tmp_path, resume=True)
    with pytest.raises(PayloadError, match="must have digest"):
        again.start(Watched(DEVICES), initial(), 3)
    assert asked == []


def network(rounds, devices):
    state = {"rounds": np.array(rounds), "spent-j": np.zeros(devices), "energy-slack-j": np.zeros(5)}
    return {f"network/{name}": array for name, array in (state | {"clock-s": np.array(0.0)}).items()}


HOSTILE = [
    {"adversary/SERVER": np.zeros(3)},
    {"adversary/KING 1 2": np.zeros(3)},
    {"network/rounds": np.array(1)},
    network(10**9, 5),
    network(1, 4),
]


@pytest.mark.parametrize("state", HOSTILE)
def test_a_state_that_is_none_of_ours_is_refused(state):
    ledger = MemoryLedger()
    with pytest.raises(BrokenOffError):
        controlled(Mortal(ledger, 6, recorded=True))
    forged = MemoryLedger()
    forged.open(simulated_keys(0), ledger._book.rules)
    for entry in ledger.entries():
        if entry.kind is Kind.STATE:
            entry = replace(entry, payload=encode(state, {"round": str(entry.round)}))
        forged.record([entry])
    with pytest.raises(PayloadError, match="a STATE payload must"):
        controlled(forged, resume=True)


@pytest.mark.parametrize(
    "name",
    [
        "__class__ number", "aggregate_train array", "m_t magic x", "strategy number",
        "strategy.aggregate_train array",
        "fraction_train.x number", "strategy.evaluate_metrics_aggr_fn number", "accountant state",
    ],
)  # fmt: skip
def test_a_state_sets_nothing_but_values(name):
    """No method, no strategy, no function, nothing of what is no strategy."""
    inner = FedAdam(evaluate_metrics_aggr_fn=lambda replies, key: MetricRecord({}))
    strategy = DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 1.0, 3)
    with pytest.raises(PayloadError, match="a STATE payload must be of Diff"):
        Memory(strategy).restore({name: np.array(1.0)})


class Keeping(FedAvg):
    """A strategy with attributes of many kinds, some of which it makes late."""

    velocity = None

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 1:
            self.velocity = {name: array.numpy() * 0 for name, array in arrays.items()}
            self.late, self.single, self.name_of, self.huge = [np.ones(2)], np.float32(0.5), "x", 2**70
            self.of_node = {7: 1.5}
        for name, array in arrays.items():
            self.velocity[name] *= 0.9  # in place
            self.velocity[name] += array.numpy()
        self.late[0] += 1
        self.single = np.float32(self.single * 1.5)
        moved = {name: array * self.single + self.late[0][0] for name, array in self.velocity.items()}
        return record({name: moved[name].astype(np.float32) for name in arrays}), metrics


def test_attributes_of_many_kinds_go_on(caplog):
    """And what cannot is named, once."""
    whole, ledger = MemoryLedger(), MemoryLedger()

    def run(ledger, rounds, **own):
        strategy = OnLedger(Keeping(fraction_evaluate=0.0), ledger, **own)
        return values(strategy.start(Federation(DEVICES), initial(), rounds).arrays)

    model = run(whole, 4)
    run(ledger, 2)
    assert same(run(ledger, 4, resume=True), model)
    assert caplog.text.count("what `Keeping.huge` keeps is not on the ledger") == 0  # it does not change


def test_models_of_whole_numbers_and_growing_ones_go_on():
    """A mean of whole numbers is none, and FedAvg's model has floats from then on."""
    arrays = record({"w": np.ones(3, np.float32), "count": np.array([4, 5])})

    def run(ledger, rounds, **own):
        strategy = OnLedger(FedAvg(fraction_evaluate=0.0), ledger, **own)
        result = strategy.start(Federation(DEVICES), arrays, rounds)
        assert not any(report.left_out for report in strategy.reports)
        return values(result.arrays)

    whole, ledger = MemoryLedger(), MemoryLedger()
    model = run(whole, 3)
    run(ledger, 2)
    assert same(run(ledger, 3, resume=True), model)
    assert ledger.head == whole.head


def test_a_privacy_budget_is_not_forgotten():
    """Flower's accountant counts the releases of the rounds before, too."""
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3)

    class Accountant:
        def __init__(self):
            self.releases = 0

        def state_dict(self):
            return {"releases": self.releases}

        def load_state_dict(self, state):
            self.releases = state["releases"]

    strategy.accountant = Accountant()
    memory = Memory(strategy)
    strategy.accountant.releases = 5
    kept = memory.changed()
    strategy.accountant.releases = 0
    memory.restore(kept)
    assert strategy.accountant.releases == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_device_keeps_its_key_when_a_run_goes_on():
    """Who signed with a key of its own is not taken for somebody without one, nor the other way round."""
    ledger, keys = EvmLedger(), [own_key(1), own_key(2), None, None]

    def go_on(keys, rounds, **own):
        strategy = ConsensusBFL(ledger=ledger, fraction_evaluate=0.0, **own)
        strategy.start(SigningGrid(DEVICES[:4], keys), initial(), rounds)
        return strategy.reports[-1]

    assert go_on(keys, 1).signed_devices == (0, 1)
    report = go_on([own_key(1), own_key(3), None, own_key(4)], 2, resume=True)
    assert report.signed_devices == (0,)
    assert [one.who for one in report.left_out] == ["device 1", "device 3"]
    assert all("must sign with its first key" in one.reason for one in report.left_out)


def own_key(number):
    return number.to_bytes(32, "big")
