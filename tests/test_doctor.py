"""The doctor of a run: a finding comes with the damage, and not without; nothing on the disk is changed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from damages import DAMAGES, one_payload
from doctored import PHASES, ROUNDS, go, killed, look, quick_fixture, wrong  # noqa: F401  # fixtures
from test_docs import blocks

from flower_bfl import EvmLedger
from flower_bfl.doctor import Finding, _access, check_run_folder
from flower_bfl.strategies._run_folder import RunFolder

RUNNING = """
import sys
from flower_bfl.strategies._run_folder import RunFolder
folder = RunFolder(sys.argv[1], resume=True)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(folder, ROUNDS)
    return folder


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after fewer rounds."""
    folder = tmp_path_factory.mktemp("shorter") / "run"
    go(folder, 1)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


# -- a whole run ---------------------------------------------------------------------------------------------


def test_of_a_whole_run_everything_is_ok(run: Path) -> None:
    found = look(run)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["chain"].told == "round 3 is finished, none is open"
    assert found["verdict"].told == "the run ended with round 3, and could go on with round 4"
    payloads = len(list((run / "chain" / "payloads").iterdir()))
    assert found["payloads"].told == f"{payloads} files are there and unchanged"


def test_the_audit_comes_on_demand(run: Path) -> None:
    assert look(run, audited=True)["audit"] == Finding(
        "audit", "ok", "every model follows from what was signed"
    )
    (run / "model.safetensors").write_bytes(b"another")
    found = look(run, audited=True)["audit"]
    assert (found.state, found.to_do.split("\n")[1]) == ("wrong", f"flower-bfl audit {run}")


def test_payloads_in_calldata_are_no_files(tmp_path: Path) -> None:
    from toy_run import Toy

    found = look(Toy(rounds=1).record(tmp_path / "toy").folder)
    assert found["payloads"] == Finding("payloads", "ok", "all are on the chain itself")


# -- damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(name: str, run: Path) -> None:
    damage = DAMAGES[name]
    assert damage.told not in look(run)[damage.what].told
    damage.do(run)
    found = look(run)
    assert found[damage.what].state == damage.state
    assert damage.told in found[damage.what].told
    assert (damage.state != "wrong") or found[damage.what].to_do
    if damage.verdict:
        assert found["verdict"].told.startswith("the run cannot go on: ")
        assert damage.verdict in found["verdict"].told
    else:
        assert "can go on with round 4" in found["verdict"].told or "could go on" in found["verdict"].told
    others = wrong(found) - {damage.what, "verdict", "links", "payloads"}
    assert not others


@pytest.mark.parametrize("what", ["line missing", "line unreadable", "payload missing", "chain damaged"])
def test_a_run_that_cannot_go_on_does_not(what: str, run: Path) -> None:
    from flower_bfl import FlowerBFLError

    DAMAGES[what].do(run)
    with pytest.raises(FlowerBFLError):
        go(run, ROUNDS + 1, resume=True)


def test_an_older_copy_of_the_chain_is_told(run: Path, shorter: Path) -> None:
    shutil.copy(shorter / "chain" / "chain.sqlite", run / "chain")
    found = look(run)
    assert found["chain"].told == "round 1 is finished, none is open"
    assert "goes on after round 1" in found["rounds.jsonl"].told
    assert wrong(found) == {"rounds.jsonl", "model.safetensors", "verdict"}


def test_the_model_can_be_mended_by_the_command(run: Path) -> None:
    good = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(b"x")
    subprocess.run(shlex.split(look(run)["model.safetensors"].to_do.split("\n")[1]), check=True)
    assert (run / "model.safetensors").read_bytes() == good


@pytest.mark.parametrize(("mode", "told"), [(os.W_OK, "be written"), (os.R_OK, "be read")])
def test_what_may_not_be_touched_is_named(mode: int, told: str, run: Path, monkeypatch) -> None:
    """By asking for it: who runs the tests may be root, who may do everything."""
    assert "cannot" not in look(run)["permissions"].told
    monkeypatch.setattr(os, "access", lambda path, wanted: wanted != mode)
    found = look(run)
    assert found["permissions"].state == "wrong" and told in found["permissions"].told
    assert "the run cannot go on" in found["verdict"].told


@pytest.mark.parametrize(("rounds", "state"), [(0.5, "wrong"), (5, "note"), (50, "ok")])
def test_space_is_held_against_what_a_round_took(rounds: float, state: str, run: Path, monkeypatch) -> None:
    size = sum(path.lstat().st_size for path in run.rglob("*"))
    monkeypatch.setattr(_access, "free_bytes", lambda path: int(rounds * size / ROUNDS))
    assert look(run)["disk"].state == state
    assert ("the disk is full" in look(run)["verdict"].told) == (state == "wrong")


# -- a run that was killed, or goes on -----------------------------------------------------------------------


def test_between_rounds(tmp_path: Path) -> None:
    """The model of round 2 is on the chain, its report was to follow with the next round."""
    folder = killed(tmp_path / "run", 1 + 2 * PHASES)
    assert (folder / "chain" / "chain.sqlite-shm").exists()
    found = look(folder)
    assert found["chain"].told == "round 2 is finished, none is open"
    assert found["rounds.jsonl"].told.startswith("the line of round 2 is missing")
    assert not wrong(found)
    assert found["verdict"].told == "the run was broken off, and can go on with round 3"
    assert shlex.split(found["verdict"].to_do.split("\n")[1])[-1] == f'resume="{folder}"'


def test_in_a_round(tmp_path: Path) -> None:
    folder = killed(tmp_path / "run", 1 + PHASES + 2)
    (folder / "chain" / "chain.sqlite-shm").unlink()  # of a copy that was made without it
    found = look(folder)
    assert found["chain"] == Finding(
        "chain", "note", "round 1 is finished, round 2 was broken off after 7 entries"
    )
    assert found["verdict"].told == "the run was broken off, and can go on with round 2"
    go(folder, ROUNDS, resume=True)
    assert look(folder)["verdict"].told == "the run ended with round 3, and could go on with round 4"


def test_before_the_first_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "rounds.jsonl").touch()
    from flower_bfl.chain_adapter import simulated_keys

    ledger = EvmLedger(folder / "chain")
    ledger.open(simulated_keys(0))
    ledger.close()
    found = look(folder)
    assert found["chain"].told == "no round is finished, none is open"
    assert "can begin anew" in found["verdict"].told and not wrong(found)


@pytest.fixture
def running(run: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the folder."""
    command = [sys.executable, "-c", RUNNING, str(run)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    with process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def test_another_process_has_the_folder(run: Path, running: subprocess.Popen) -> None:
    for _ in range(2):  # to look leaves no lock behind
        found = look(run)
        assert found["in use"].state == "note" and found["verdict"].told == "the run goes on right now"
    running.communicate()
    assert look(run)["in use"] == Finding("in use", "ok", "no process has locked the folder")
    RunFolder(run, resume=True).close()


def test_a_chain_that_grows_elsewhere(run: Path, monkeypatch) -> None:
    wal = iter([(1, 1), (2, 2)])
    monkeypatch.setattr("flower_bfl.doctor._record.wal_of", lambda folder: next(wal))
    found = list(check_run_folder(run))
    assert [each.told for each in found if each.what == "verdict"] == ["the run goes on right now"]


# -- other folders -------------------------------------------------------------------------------------------


def test_a_folder_without_a_run(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run" in look(tmp_path / "empty")["folder"].told
    assert "does not exist" in look(tmp_path / "nowhere")["folder"].told
    assert "is no folder" in look(run / "rounds.jsonl")["folder"].told
    assert look(run / "chain")["folder"].to_do.endswith(f"flower-bfl doctor {run}")


def test_a_chain_on_a_node(run: Path) -> None:
    (run / "chain" / "chain.sqlite").unlink()
    where = {"format": "flower-bfl chain 1", "chain_id": 1, "contract": "0x" + "5f" * 20, "first_block": 0}
    (run / "chain" / "chain.json").write_text(json.dumps(where))
    found = look(run)
    assert not wrong(found) and found["chain"].state == "note"
    assert f"flower-bfl ledger --rpc URL --contract 0x{'5f' * 20} --payloads {run}" in found["chain"].to_do
    one_payload(run).write_bytes(b"x")
    assert wrong(look(run)) == {"payloads", "verdict"}
    (run / "chain" / "chain.json").write_text("{")
    assert wrong(look(run)) == {"chain", "payloads", "verdict"}


def test_a_chain_that_cannot_be_looked_at_does_not_end_the_doctor(run: Path, monkeypatch) -> None:
    def fails(folder: Path) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("flower_bfl.doctor._chain.read_chain", fails)
    found = look(run)
    assert "out of luck" in found["chain"].told
    assert "cannot be told" in found["verdict"].told


# -- the command and its page --------------------------------------------------------------------------------


def test_the_command_says_it_in_80_columns(quick, command, run: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    status, output, _ = command("doctor", run)
    assert status == 0 and "\x1b" not in output
    lines = output.splitlines()
    assert lines[0] == "Installation" and f"Run {run}" in lines and lines[-1] == "Nothing is wrong."
    assert "ok    chain              round 3 is finished, none is open" in lines
    assert all(len(line) <= 80 for line in lines if str(run.parent) not in line and "flower-bfl" not in line)
    assert any(re.fullmatch(r" +flower-bfl audit \S+", line) for line in lines)

    lost = one_payload(run)
    lost.unlink()
    status, output, _ = command("doctor", run)
    assert f"\n      chain/payloads/{lost.name}  # missing\n" in output
    assert status == 1 and "wrong payloads " in output and "-> restore them from a backup;" in output
    assert output.splitlines()[-1] == "2 wrong: what to do is beneath each."


def test_json_says_the_same(quick, command, run: Path) -> None:
    status, output, _ = command("doctor", run, "--json", "--audit")
    said = json.loads(output)
    assert (status, said["wrong"]) == (0, 0)
    found = {(each["part"], each["what"]): each["state"] for each in said["findings"]}
    assert (
        found["Installation", "EVM"] == found[f"Run {run}", "verdict"] == found[f"Run {run}", "audit"] == "ok"
    )
    (run / "model.safetensors").unlink()
    status, output, _ = command("doctor", run, "--json")
    assert (status, json.loads(output)["wrong"]) == (1, 1)


def test_an_audit_needs_a_run(command) -> None:
    status, _, errors = command("doctor", "--audit")
    assert status == 2 and "`--audit` needs a `RUN_FOLDER`" in errors


def test_a_files_name_commands_no_terminal(quick, command, run: Path) -> None:
    (run / "\x1b[31m[red].part").touch()
    _, output, _ = command("doctor", run)
    assert "\\x1b[31m[red].part" in output.replace("\n" + " " * 25, "")


def test_the_examples_of_the_page_run(quick, command, whole: Path, capsys) -> None:
    shutil.copytree(whole, "runs/NAME")
    page = Path(__file__).parents[1] / "docs" / "doctor.md"
    for line in "".join(blocks(page, "sh")).splitlines():
        status, _, errors = command(*shlex.split(line, comments=True)[1:])
        assert (status, errors) == (0, "")
    (example,) = blocks(page, "python")
    exec(example, {})
    assert capsys.readouterr().out == ""
    (Path("runs/NAME") / "model.safetensors").unlink()
    exec(example, {})
    assert capsys.readouterr().out.startswith("model.safetensors there is none")
