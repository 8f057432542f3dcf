"""Arguments that break a rule, and what a run leaves behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from federation import (
    Federation,
    assert_models_close,
    initial,
    reply,
    run,
    values,
    walker,
)
from flwr.app import ConfigRecord, MetricRecord

from flower_bfl import (
    ConfigError,
    ConsensusBFL,
    EvmLedger,
    FlowerBFLError,
    IndependentServers,
    LedgerError,
    MemoryLedger,
    Outage,
)
from flower_bfl.audit import audit
from flower_bfl.chain_adapter.base import Kind
from flower_bfl.errors import RunFolderError
from flower_bfl.strategies._run_folder import RunFolder

# -- bad input -----------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ({"edge_servers": 0}, "`edge_servers` must be a whole number from 1 to 65535, got 0"),
    ({"p2p_rounds": -1}, "`p2p_rounds` must be a whole number from 0 to 65535, got -1"),
    ({"edge_servers": 2.0}, "`edge_servers` must be a whole number .* got 2.0"),
    ({"p2p_rounds": 2.5}, "`p2p_rounds` must be a whole number .* got 2.5"),
    ({"graph": [(0, 1, 2)]}, "`graph` must be a name or a list of pairs"),
    ({"mixing": "metropolis", "laplacian_step": 0.1}, "`laplacian_step` goes with mixing='laplacian' only"),
    ({"fraction_train": 1.5}, r"`fraction_train` must be in \[0, 1\], got 1.5"),
    ({"outages": [Outage(1, link=(1, 1))]}, "`outages` must name links of the graph"),
    ({"outages": [Outage(1, link=(0, 2))], "graph": "line"}, "`outages` must name links of the graph"),
    ({"mass": "weight"}, "`mass` must be one of .* got 'weight'"),
    ({"leader": 3}, "`leader` must be 'random', 'reputation' or an edge server of .* got 3"),
    ({"learning_rate": 0.0}, "`learning_rate` must be positive and finite, got 0.0"),
    ({"learning_rate": float("nan")}, "`learning_rate` must be positive and finite, got nan"),
    ({"graph": [(0, 1)]}, "`graph` must be connected"),
    ({"laplacian_step": 0.5}, r"`laplacian_step` must be in \(0, 1/3\) for 3 edge servers, got 0.5"),
    ({"mixing": "fast"}, "`mixing` must be one of"),
    ({"association": [0, 1, 5]}, "`association` must name edge servers of 0..2, got 5"),
    ({"outages": [Outage(round=1, server=4)]}, "`outages` must name edge servers of 0..2"),
    (
        {"outages": [Outage(1, m) for m in range(3)]},
        "`outages` must leave an edge server up, got none in round 1",
    ),
    ({"wait_for_nodes_s": 0}, "`wait_for_nodes_s` must be positive, got 0"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_ARGUMENTS, ids=[message for _, message in BAD_ARGUMENTS]
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ConsensusBFL(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"server": 1, "link": (0, 1)}, {"server": 1, "step": -1}])
def test_bad_outages_are_named(arguments):
    with pytest.raises(ConfigError, match="`Outage` must"):
        Outage(round=1, **arguments)


@pytest.mark.parametrize("strategy", [ConsensusBFL, IndependentServers])
@pytest.mark.parametrize("arguments", [{"edge_servers": 5}, {"edge_servers": 2, "min_available_nodes": 9}])
def test_too_few_devices_end_the_run_with_a_message(strategy, arguments):
    with pytest.raises(
        ConfigError, match=r"` must be at most the number of nodes that connect .* got \d with 4 connected"
    ):
        run(strategy(wait_for_nodes_s=0.3, **arguments), [walker(n) for n in range(4)])


def test_a_device_without_an_edge_server_is_left_out():
    strategy = ConsensusBFL(edge_servers=2, association=[0, 1, 0])
    run(strategy, [walker(n, named=True) for n in range(4)], rounds=1)
    (left_out,) = strategy.reports[1].left_out
    assert left_out.who == "device 3" and "`association` must name an edge server for it" in left_out.reason


def test_too_few_nodes_to_evaluate_skip_the_evaluation():
    strategy = ConsensusBFL(edge_servers=2, min_evaluate_nodes=9, wait_for_nodes_s=0.3)
    result = strategy.start(Federation([walker(n) for n in range(3)]), initial(), num_rounds=2)
    assert strategy.reports[2].devices == 3 and not result.evaluate_metrics_clientapp


def test_a_first_round_without_a_usable_reply_ends_the_run_and_says_why():
    def broken(server_round, arrays):
        raise RuntimeError("no such dataset")

    with pytest.raises(
        FlowerBFLError, match=r"round 1: none of 3 devices .*: the client failed: no such dataset"
    ):
        run(ConsensusBFL(edge_servers=2), [broken] * 3)


def test_a_strategy_runs_once():
    strategy = ConsensusBFL(edge_servers=2)
    run(strategy, [walker(n) for n in range(3)], rounds=1)
    with pytest.raises(ConfigError, match="a strategy must run once"):
        run(strategy, [walker(n) for n in range(3)], rounds=1)


def test_a_ledger_that_holds_a_run_is_refused_before_anybody_trains():
    ledger = MemoryLedger()
    run(ConsensusBFL(edge_servers=2, ledger=ledger), [walker(n) for n in range(3)], rounds=1)
    with pytest.raises(ConfigError, match="`ledger` must be empty, got one that holds a run"):
        run(ConsensusBFL(edge_servers=2, ledger=ledger), [walker(n) for n in range(3)], rounds=1)


# -- what a run leaves behind --------------------------------------------------------------------------


def test_the_run_folder_holds_every_round_and_the_recorded_model(tmp_path):
    folder = tmp_path / "deep" / "run"
    ledger = MemoryLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger, run_folder=folder)
    evaluate = lambda server_round, arrays: MetricRecord({"accuracy": server_round / 10})  # noqa: E731
    run(strategy, [walker(n) for n in range(4)], rounds=2, evaluate_fn=evaluate)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [line["evaluate"]["accuracy"] for line in lines] == [0.0, 0.1, 0.2]
    assert lines[2]["transactions"] == 4 + 6 * 2 + 2 and lines[2]["head"] == ledger.head.hex()
    last = [entry for entry in ledger.entries() if entry.kind is Kind.MODEL][-1]
    assert (folder / "model.safetensors").read_bytes() == last.payload


def test_a_run_folder_that_cannot_be_used_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"`run_folder` must be writable, got .*file/run: Not a directory"
    ):
        ConsensusBFL(run_folder=tmp_path / "file" / "run")
    ConsensusBFL(run_folder=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"`run_folder` must not hold a run already"):
        ConsensusBFL(run_folder=tmp_path / "run")


class FailingLedger(MemoryLedger):
    """Loses its disk in round 2."""

    def record(self, entries):
        entries = list(entries)
        if entries[0].round == 2:
            raise LedgerError("disk full")
        return super().record(entries)


def test_a_ledger_that_fails_ends_the_run_and_loses_nothing_recorded(tmp_path):
    ledger = FailingLedger()
    strategy = ConsensusBFL(edge_servers=2, ledger=ledger, run_folder=tmp_path / "run")
    with pytest.raises(LedgerError, match="disk full"):
        run(strategy, [walker(n) for n in range(4)], rounds=5)
    assert [report.round for report in strategy.reports] == [0, 1]
    assert len(Path(tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 2
    assert {entry.round for entry in ledger.entries()} == {0, 1}
    last = [entry for entry in ledger.entries() if entry.kind is Kind.MODEL][-1]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == last.payload


def test_metrics_that_are_no_numbers_are_null_in_the_run_folder(tmp_path):
    strategy = ConsensusBFL(edge_servers=2, run_folder=tmp_path / "run")
    evaluate = lambda server_round, arrays: MetricRecord({"loss": float("nan")})  # noqa: E731
    run(strategy, [walker(n) for n in range(3)], rounds=1, evaluate_fn=evaluate)
    for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["evaluate"]["loss"] is None


def test_the_callers_config_is_not_changed():
    config = ConfigRecord({"lr": 0.1})
    run(ConsensusBFL(edge_servers=2), [walker(n) for n in range(3)], train_config=config)
    assert dict(config) == {"lr": 0.1}


def test_devices_own_evaluation_enters_the_report():
    def device(n):
        def answer(server_round, arrays):
            return walker(n)(server_round, arrays)

        return answer

    strategy = ConsensusBFL(edge_servers=2)
    strategy.start(Federation([device(n) for n in range(3)]), initial(), num_rounds=1)
    assert strategy.reports[1].evaluate_devices["loss"] == pytest.approx(
        np.average([1, 1 / 2, 1 / 3], weights=[10, 17, 24])
    )


def test_metrics_that_not_all_devices_report_are_left_out_of_the_mean():
    def device(n):
        def train(server_round, arrays):
            content = walker(n)(server_round, arrays)
            if n == 0:
                content["metrics"]["extra"] = 1.0
            return content

        return train

    strategy = ConsensusBFL(edge_servers=2, fraction_evaluate=0.0)
    strategy.start(Federation([device(n) for n in range(3)]), initial(), num_rounds=1)
    assert "extra" not in strategy.reports[1].train and "loss" in strategy.reports[1].train


def test_arrays_in_any_memory_order_are_read_alike():
    def fortran(server_round, arrays):
        content = walker(0)(server_round, arrays)
        turned = {name: np.asfortranarray(array) for name, array in values(content["arrays"]).items()}
        return reply(turned, num_examples=10, num_steps=4)

    arrays = initial()
    plain = run(ConsensusBFL(edge_servers=1), [walker(0), walker(1)], rounds=1, arrays=arrays)
    turned = run(ConsensusBFL(edge_servers=1), [fortran, walker(1)], rounds=1, arrays=arrays)
    assert_models_close(turned, plain)


def test_a_run_that_dies_between_a_model_and_its_report_is_one_that_follows(tmp_path, monkeypatch):
    """The model is there before the line that names it; the other way round, the audit would find it old."""
    append = RunFolder.append

    def dying(self, report):
        if report.round == 2:
            raise RunFolderError("killed")
        append(self, report)

    monkeypatch.setattr(RunFolder, "append", dying)
    ledger = EvmLedger(tmp_path / "run" / "chain")
    strategy = ConsensusBFL(ledger=ledger, run_folder=tmp_path / "run")
    with pytest.raises(RunFolderError, match="killed"):
        run(strategy, [walker(n, named=True) for n in range(3)], rounds=2)
    ledger.close()
    report = audit(tmp_path / "run")
    assert report.finding is None and report.checked.rounds == 2
