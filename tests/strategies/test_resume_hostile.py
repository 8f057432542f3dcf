"""Going on with a run whose folder somebody else had: nothing forged is believed, nothing overwritten."""

import os
import shutil

import numpy as np
import pytest
from federation import Federation, initial, values, walker
from field import Field, Scripted, least_squares_app, roomy, start_weights
from test_resume import DEVICES, QUIET, absent, consensus, controlled, on_disk, own_key, same
from test_signed_updates import SigningGrid

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, MemoryLedger, Mining
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Role, Sender, simulated_keys
from flower_bfl.chain_adapter._accounts import contract_of
from flower_bfl.chain_adapter._chain import EvmChain
from flower_bfl.errors import LedgerError, RunFolderError

OPERATOR = Sender(Role.OPERATOR)


# -- a ledger that somebody forged ---------------------------------------------------------------------------


def test_a_chain_that_somebody_else_sealed_is_refused(tmp_path, monkeypatch):
    """Who has the folder can write any state and seal it, but not as whoever made the contract."""
    on_disk(tmp_path)
    reader = EvmLedger(tmp_path / "chain")
    own = reader.contract_address
    reader.close()
    with monkeypatch.context() as forging:
        # a ledger that lets itself be opened by another operator, and whose contract takes all that it says
        forging.setattr("flower_bfl.chain_adapter.pyevm.contract_of", lambda operator: own)
        ledger = EvmLedger(tmp_path / "chain")
        ledger.open(simulated_keys(666))
        block = EvmChain(ledger._database).begin(None)
        block.seal(ledger._account(OPERATOR).sign_hash)
        ledger._database.commit()
        ledger.close()
    with pytest.raises(LedgerError, match="must be sealed by the operator"):
        on_disk(tmp_path, resume=True)


def test_an_operator_that_did_not_make_the_contract_is_refused(tmp_path, monkeypatch):
    """Even if the contract's state says so."""
    on_disk(tmp_path)
    ledger = EvmLedger(tmp_path / "chain")
    mallory = contract_of(b"\1" * 20)
    from flower_bfl.chain_adapter import _end

    asked = _end.ContractState.address
    monkeypatch.setattr(
        _end.ContractState, "address", lambda state, who: mallory if who == OPERATOR else asked(state, who)
    )
    with pytest.raises(LedgerError, match="the operator must be who made the contract"):
        ledger.recent()
    ledger.close()


# -- a folder that leads elsewhere ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.safetensors.part", "rounds.jsonl.part", "rounds.jsonl", "model.safetensors", "chain", "chain/x"],
)
def test_nothing_is_written_through_a_link(tmp_path, name):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    on_disk(folder)
    victim.write_text("precious")
    target = folder / name
    if name == "chain":
        shutil.move(target, tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target.unlink(missing_ok=True)
        target.symlink_to(victim)
    with pytest.raises(RunFolderError, match="must hold files and folders of its own"):
        on_disk(folder, resume=True, rounds=4)
    assert victim.read_text() == "precious"


def test_a_pipe_is_no_file(tmp_path):
    on_disk(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors.part")
    with pytest.raises(RunFolderError, match="must hold files and folders of its own"):
        on_disk(tmp_path, resume=True)


# -- two servers, and ledgers that are not the folder's ------------------------------------------------------


def test_two_servers_do_not_go_on_with_one_run(tmp_path):
    """Neither at once in one process nor in two; the first is not disturbed."""
    on_disk(tmp_path / "whole")
    tried = []

    def second(server_round, arrays):
        if server_round == 2:
            with pytest.raises(RunFolderError, match="one process's at a time"):
                on_disk(tmp_path / "run", resume=True)
            tried.append(True)

    strategy = consensus(leader="reputation")(
        ledger=EvmLedger(tmp_path / "run/chain"), run_folder=tmp_path / "run"
    )
    result = strategy.start(Federation(DEVICES), initial(), 3, evaluate_fn=second)
    assert tried
    whole = (tmp_path / "whole/model.safetensors").read_bytes()
    assert (tmp_path / "run/model.safetensors").read_bytes() == whole
    assert len(values(result.arrays)) == 3
    assert audit(tmp_path / "run").finding is None


def test_a_ledger_that_lost_rounds_is_noticed(tmp_path, caplog):
    """What the folder knew of them is kept."""
    on_disk(tmp_path, rounds=1)
    shutil.copytree(tmp_path / "chain", tmp_path / "old")
    on_disk(tmp_path, resume=True, rounds=3)
    before = (tmp_path / "rounds.jsonl").read_text()
    shutil.rmtree(tmp_path / "chain")
    shutil.move(tmp_path / "old", tmp_path / "chain")
    on_disk(tmp_path, resume=True, rounds=3)
    assert "the ledger ends with round 1" in caplog.text
    assert (tmp_path / "rounds-before.jsonl").read_text() == before
    assert audit(tmp_path).finding is None


def test_an_empty_ledger_does_not_begin_a_second_run_in_a_folder(tmp_path):
    on_disk(tmp_path)
    before = (tmp_path / "rounds.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "chain")
    with pytest.raises(RunFolderError, match="`ledger` must be that of the run in"):
        on_disk(tmp_path, resume=True)
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_a_round_that_is_finished_is_not_asked_for_again(tmp_path):
    on_disk(tmp_path)
    strategy = consensus(leader="reputation")(ledger=EvmLedger(tmp_path / "chain"), resume=True)
    from flwr.app import ConfigRecord

    with pytest.raises(
        ConfigError, match="`server_round` must be at least 4, with which the run goes on, got 1"
    ):
        strategy.configure_train(1, initial(), ConfigRecord(), Federation(DEVICES))


# -- what else a round remembers -----------------------------------------------------------------------------


def test_a_key_of_a_device_that_is_away_is_still_its_own():
    """Also if it has not been there since the run went on."""
    ledger = EvmLedger()

    def go(devices, keys, rounds, **own):
        strategy = ConsensusBFL(ledger=ledger, fraction_evaluate=0.0, **own)
        strategy.start(SigningGrid(devices, keys), initial(), rounds)
        return strategy.reports[-1]

    go(DEVICES[:3], [own_key(n) for n in (1, 2, 3)], 1)
    impostor = walker(5, named=True)
    report = go([*DEVICES[:2], impostor], [own_key(n) for n in (1, 2, 3)], 2, resume=True)
    assert [one.who for one in report.left_out] == ["device 5"]
    assert "must have a key of its own" in report.left_out[0].reason


def test_a_round_without_replies_is_skipped_as_before():
    """Not taken for the first one, in which somebody has to train."""
    ledger = MemoryLedger()
    devices = [absent(device, {2, 3}) for device in DEVICES]
    for rounds in (2, 3):
        strategy = consensus()(ledger=ledger, resume=True)
        strategy.start(Federation(devices), initial(), rounds)
    assert strategy.reports[-1].round == 3
    assert strategy.reports[-1].devices == 0


def test_what_data_sets_looked_like_is_remembered():
    """Most devices' arrays are the usual ones, also those of devices that send none this round."""

    def go(ledger, rounds, **own):
        def data(message, context):
            device = int(context.node_config["partition-id"])
            x = np.ones((6, 4), np.float64 if device == 0 else np.float32)
            return {"x": x * (1 + device), "y": np.arange(6, dtype=np.float32)}

        controller = Scripted(roomy(4, 2), [None, 0, 1, 0], [None, 0, 1, 0], [0, None, None, None])
        controller.seen.extend([None] * own.pop("past", 0))
        strategy = ConsensusBFL(
            edge_servers=2, p2p_rounds=1, ledger=ledger, mining=Mining(difficulty_bits=1),
            controller=controller, **QUIET | own,
        )  # fmt: skip
        result = strategy.start(Field([least_squares_app(data)] * 6), start_weights(), rounds)
        return values(result.arrays), strategy.reports[-1]

    whole, ledger = MemoryLedger(), MemoryLedger()
    model, report = go(whole, 3)
    assert [one.who for one in report.kept_local] == ["device 0"]
    go(ledger, 2)
    found, again = go(ledger, 3, resume=True, past=2)
    assert again.kept_local == report.kept_local
    assert same(found, model)


def test_the_round_after_a_resume_may_lack_nodes():
    """With a controller, too few devices in the first round end a run; in any later one nobody trains."""
    ledger = MemoryLedger()
    controlled(ledger, rounds=2)
    controller = Scripted(roomy(5, 2), [0, None, 1, None, 0])
    strategy = ConsensusBFL(
        edge_servers=2, p2p_rounds=1, ledger=ledger, mining=Mining(difficulty_bits=1), controller=controller,
        resume=True, min_available_nodes=5, **QUIET,
    )  # fmt: skip
    grid = Field([least_squares_app()] * 7)
    grid.gone |= {0, 1, 2}
    strategy.start(grid, start_weights(), 3)
    assert (strategy.reports[-1].round, strategy.reports[-1].devices) == (3, 0)
