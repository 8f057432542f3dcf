"""The doctor: every finding comes with the damage, and not without; and nothing on the disk is changed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from test_docs import blocks

from flower_bfl import ConsensusBFL, EvmLedger, Mining
from flower_bfl.doctor import Finding, _access, _installation, _machine, check_installation, check_run_folder
from flower_bfl.doctor._findings import guarded

STRATEGIES = Path(__file__).parent / "strategies"
ROUNDS = 3
PHASES = 5  # of a round: gradients, three states, the model
SETTINGS = {"edge_servers": 3, "p2p_rounds": 2, "mining": Mining(difficulty_bits=2), "wait_for_nodes_s": 0.2}

MORTAL = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {strategies!r}]
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
from test_doctor import EvmLedger, go

class Mortal(EvmLedger):
    left = {phases}
    def record(self, entries):
        receipt = super().record(entries)
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return receipt

go({folder!r}, 3, make=Mortal)
"""

WRITING = """
import sys
from flower_bfl.chain_adapter import EvmLedger, simulated_keys
ledger = EvmLedger(sys.argv[1])
ledger.open(simulated_keys(0))
print("open", flush=True)
sys.stdin.read()
"""


def go(folder, rounds: int, make: Callable = EvmLedger, **settings) -> None:
    """A run, or the rest of one; its payloads are in files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STRATEGIES)
        from federation import Federation, initial, walker

    folder = Path(folder)
    ledger = make(folder / "chain", payloads="digest")
    strategy = ConsensusBFL(ledger=ledger, run_folder=folder, fraction_evaluate=0.0, **SETTINGS | settings)
    devices = [walker(n, named=True) for n in range(4)]
    strategy.start(Federation(devices), initial(), num_rounds=rounds)
    ledger.close()


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


def killed(folder: Path, phases: int) -> Path:
    """A run whose process died with SIGKILL once it had recorded so many phases."""
    tests = str(Path(__file__).parent)
    script = MORTAL.format(tests=tests, strategies=str(STRATEGIES), phases=phases, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    return folder


def everything(folder: Path) -> dict[str, tuple[object, ...]]:
    """Names, contents and times of all files."""
    return {
        str(path): (
            path.lstat().st_mtime_ns,
            str(path.readlink()) if path.is_symlink() else "",
            sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
        if folder.exists()
    }


def look(folder: Path, **options) -> dict[str, Finding]:
    """The findings by what was looked at, with nothing changed."""
    before = everything(folder)
    found = list(check_run_folder(folder, **options))
    assert everything(folder) == before
    names = [finding.what for finding in found]
    assert len(set(names)) == len(names)
    return {finding.what: finding for finding in found}


def wrong(found: dict[str, Finding]) -> set[str]:
    return {what for what, finding in found.items() if finding.state == "wrong"}


def one_payload(run: Path) -> Path:
    """The last model."""
    return payload_of(run, -1)


def payload_of(run: Path, server_round: int) -> Path:
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[server_round])
    return run / "chain" / "payloads" / f"{line['model_digest']}.safetensors"


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


@dataclass
class Damage:
    do: Callable[[Path], object]
    what: str
    state: str
    told: str
    verdict: str = ""  # part of it, where the run cannot go on


def cut(name: str, lines: int, rest: bytes = b"") -> Callable[[Path], object]:
    def do(run: Path) -> None:
        whole = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(whole[:lines]) + rest)

    return do


def linked(name: str) -> Callable[[Path], object]:
    def do(run: Path) -> None:
        (run / name).rename(run.parent / "elsewhere")
        (run / name).symlink_to(run.parent / "elsewhere")

    return do


def replaced(run: Path, old: bytes, new: bytes) -> None:
    text = (run / "rounds.jsonl").read_bytes()
    assert old in text
    (run / "rounds.jsonl").write_bytes(text.replace(old, new, 1))


def head_of(run: Path, server_round: int) -> bytes:
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[server_round])
    return line["head"].encode()


def scribble(run: Path) -> None:
    with (run / "chain" / "chain.sqlite").open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 60_000)


def foreign_link(run: Path) -> None:
    payload = one_payload(run)
    shutil.copy(payload, run.parent / "elsewhere")
    payload.unlink()
    payload.symlink_to(run.parent / "elsewhere")


HEX = "ab" * 32
DAMAGES = {
    "payload missing": Damage(
        lambda run: one_payload(run).unlink(), "payloads", "wrong", ", 1 missing", "1 payload is"
    ),
    "old payload missing": Damage(
        lambda run: payload_of(run, 1).unlink(), "payloads", "wrong", "cannot be proved, but go on"
    ),
    "payload changed": Damage(
        lambda run: one_payload(run).write_bytes(b"x"), "payloads", "wrong", ", 1 changed", "1 payload is"
    ),
    "payload a link": Damage(foreign_link, "payloads", "wrong", ", 1 a link", "1 payload is"),
    "payload a link, as such": Damage(foreign_link, "links", "wrong", "is a link", "1 payload is"),
    "model a link": Damage(linked("model.safetensors"), "links", "wrong", "model.safetensors is a link"),
    "chain damaged": Damage(scribble, "chain", "wrong", "cannot be read", "the chain cannot be read"),
    "chain no database": Damage(
        lambda run: (run / "chain" / "chain.sqlite").write_bytes(b"no database" * 999),
        "chain", "wrong", "cannot be read", "the chain cannot be read",
    ),
    "chain gone": Damage(
        lambda run: (run / "chain" / "chain.sqlite").unlink(), "chain", "note", "there is no", "no chain"
    ),
    "reports gone": Damage(
        lambda run: (run / "rounds.jsonl").unlink(), "rounds.jsonl", "wrong", "there is none", "there is no"
    ),
    "last line cut off": Damage(
        cut("rounds.jsonl", 3, b'{"round": 3'), "rounds.jsonl", "note", "the line of round 3 is cut off"
    ),
    "last line missing": Damage(
        cut("rounds.jsonl", 3), "rounds.jsonl", "note", "the line of round 3 is missing"
    ),
    "line begun": Damage(cut("rounds.jsonl", 4, b"{"), "rounds.jsonl", "note", "the last is cut off"),
    "line missing": Damage(
        cut("rounds.jsonl", 2), "rounds.jsonl", "wrong", "2 lines; that of round 2 is missing", "lines of"
    ),
    "lines missing": Damage(
        cut("rounds.jsonl", 1, b"{"),
        "rounds.jsonl", "wrong", "1 line; the last is cut off; those of rounds 1 to 2 are", "lines of",
    ),
    "line unreadable": Damage(
        lambda run: replaced(run, b'{"round": 1', b'{"round": 1,,'),
        "rounds.jsonl", "wrong", "line 2 cannot be read", "does not fit the chain",
    ),
    "line twice": Damage(
        lambda run: replaced(run, b'{"round": 1', b'{"round": 2'),
        "rounds.jsonl", "wrong", "line 2 is of round 2, not 1", "does not fit the chain",
    ),
    "line of another run": Damage(
        lambda run: replaced(run, head_of(run, 2), HEX.encode()),
        "rounds.jsonl", "wrong", "line 3 has another head", "does not fit the chain",
    ),
    "model gone": Damage(
        lambda run: (run / "model.safetensors").unlink(), "model.safetensors", "wrong", "there is none"
    ),
    "model old": Damage(
        lambda run: shutil.copy(payload_of(run, 1), run / "model.safetensors"),
        "model.safetensors", "wrong", "is that of round 1, not 3",
    ),
    "model foreign": Damage(
        lambda run: (run / "model.safetensors").write_bytes(b"x"),
        "model.safetensors", "wrong", "is no model of this run's chain",
    ),
    "part left": Damage(
        lambda run: (run / "model.safetensors.part").touch(), "leftovers", "note", "1 temporary file,"
    ),
    "half a payload left": Damage(
        lambda run: (run / "chain" / "payloads" / f".{HEX}-1-2").touch(), "leftovers", "note", "1 temporary"
    ),
    "payload too many": Damage(
        lambda run: (run / "chain" / "payloads" / f"{HEX}.safetensors").touch(),
        "leftovers", "note", "1 payload file to which nothing refers",
    ),
}  # fmt: skip


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
def writing(run: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the chain open."""
    command = [sys.executable, "-c", WRITING, str(run / "chain")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    with process:
        process.stdout.readline()
        yield process
        process.stdin.close()


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="needs /proc")
def test_another_process_has_the_chain(run: Path, writing: subprocess.Popen) -> None:
    found = look(run)
    assert found["in use"].state == "note" and f"({writing.pid})" in found["in use"].told
    assert found["verdict"].told == "the run goes on right now"


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


# -- the installation ----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch) -> None:
    """Everything loads, at once."""
    monkeypatch.setattr(_installation, "try_out", lambda names: dict.fromkeys(names))


def installation(place: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_installation(place)}


def test_of_this_installation_nothing_is_wrong(tmp_path: Path) -> None:
    """This one loads what is there."""
    found = installation(tmp_path)
    assert not wrong(found), found
    assert {
        "Python",
        "flwr",
        "packages",
        "simulation",
        "EVM",
        "policies",
        "extra torch",
        "disk",
    } <= found.keys()


def test_what_is_tried_may_break_end_or_hang(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "breaks.py").write_text("raise ImportError('no such symbol')")
    (tmp_path / "ends.py").write_text("import os\nprint('x')\nos._exit(3)")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)")
    (tmp_path / "chats.py").write_text("print('hello', end='')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    told = _installation.try_out(["breaks", "chats", "ends", "json", "hangs", "csv"], 10)
    assert time.monotonic() - began < 60
    assert told == {
        "breaks": "ImportError: no such symbol",
        "chats": None,
        "ends": "ends Python with status 3",
        "json": None,
        "hangs": "does not end within 5 s",
        "csv": None,
    }
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("ray", "simulation"),
        ("flwr", "flwr"),
        ("trial:evm", "EVM"),
        ("trial:policies", "policies"),
        ("torch", "extra torch"),
        ("matplotlib", "extra plots"),
        ("web3", "extra web3"),
    ],
)
def test_what_does_not_load_is_named(broken: str, what: str, monkeypatch, tmp_path: Path) -> None:
    def try_out(names: list[str]) -> dict[str, str | None]:
        return dict.fromkeys(names) | {broken: "ImportError: undefined symbol"}

    monkeypatch.setattr(_installation, "try_out", try_out)
    found = list(_installation.check_what_loads())
    (finding,) = [each for each in found if each.what == what]
    assert finding.state == "wrong" and "ImportError: undefined symbol" in finding.told
    assert "\npip install --force-reinstall " in finding.to_do


def test_what_is_absent_is_named(quick, monkeypatch) -> None:
    def version_without(name: str) -> str:
        if name in ("torch", "torchvision", "scikit-learn", "tensorboard", "ray", "scipy"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(_installation, "version", version_without)
    found = {each.what: each for each in _installation.check_what_loads()}
    assert found["extra torch"].state == found["extra train"].state == "note"
    assert found["extra torch"].told.startswith("absent, for the examples")
    assert found["extra torch"].told.endswith("pip install 'flower-bfl[torch]'")
    assert found["extra train"].told.startswith("absent tensorboard, for ")
    assert found["extra plots"].state == "ok"
    assert "install --force-reinstall 'flwr[simulation]<1.42,>=1.41'" in found["simulation"].to_do
    needed = {each.what: each for each in _installation.check_packages(["scipy>=1.13", "numpy>=2.0"])}
    assert (needed["scipy"].state, needed["scipy"].told) == ("wrong", "absent; >=1.13 is needed")
    assert needed["scipy"].to_do.endswith("\npip install 'scipy>=1.13'")


def test_without_flower_the_rest_is_checked_still(monkeypatch, tmp_path: Path) -> None:
    def version_without(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_installation, "version", version_without)
    found = installation(tmp_path)
    assert wrong(found) == {"flwr"} and {"disk", "processes"} <= found.keys()
    assert found["flwr"].to_do.endswith("'flwr[simulation]<1.42,>=1.41'")


def test_versions_are_held_against_those_asked_for(monkeypatch) -> None:
    wanted = ["flwr[simulation]<1.42,>=1.41", "py-evm<0.13,>=0.12.1b1", "torch>=2; extra == 'torch'"]
    found = list(_installation.check_packages(wanted))
    assert [each.state for each in found] == ["ok", "ok"] and found[1].told.startswith("2 in versions")
    monkeypatch.setattr(_installation, "version", lambda name: "1.42.0" if name == "flwr" else version(name))
    found = list(_installation.check_packages(wanted))
    assert found[0].told == "1.42.0; <1.42,>=1.41 is needed"
    assert found[0].to_do.endswith("\npip install 'flwr[simulation]<1.42,>=1.41'")


def test_flowers_command_and_home(tmp_path: Path, monkeypatch) -> None:
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(scripts))
    assert next(_installation.check_flwr_command()).state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on the PATH" in next(_installation.check_flwr_command()).told
    (tmp_path / "flwr").write_text("#!/bin/sh\n")
    (tmp_path / "flwr").chmod(0o755)
    assert "of another environment" in next(_installation.check_flwr_command()).told
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "made" / "later"))
    assert "made at the first" in next(_installation.check_flwr_home()).told
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr" / "below-a-file"))
    assert next(_installation.check_flwr_home()).state == "wrong"


def test_the_machine(tmp_path: Path, monkeypatch) -> None:
    for free, state in ((2**31, "ok"), (2**29, "note"), (2**20, "wrong")):
        monkeypatch.setattr(_machine, "free_bytes", lambda path, free=free: free)
        assert next(_machine.check_space(tmp_path)).state == state
    for available, state in ((2**31, "ok"), (2**20, "note"), (None, "ok")):
        monkeypatch.setattr(_machine, "_available_bytes", lambda available=available: available)
        assert next(_machine.check_cores_and_memory()).state == state
    assert _machine.free_bytes(tmp_path / "not" / "yet") > 0


def test_what_runs_already_is_named_by_its_command(monkeypatch) -> None:
    running = [
        (7, 2_000_000, "/usr/bin/python /v/bin/flower-superlink --insecure"),
        (8, 1_000_000, "ray::ClientAppActor.run"),
        (9, 1_000_000, "vim notes-on-anvil.txt"),
    ]
    monkeypatch.setattr(_machine, "_processes", lambda: iter(running))
    finding = next(_machine.check_processes())
    assert finding.state == "note"
    assert finding.told.startswith("flower-superlink (7), ray::ClientAppActor.run (8) hold 3.0 MB")
    monkeypatch.setattr(_machine, "_processes", lambda: iter(running[2:]))
    assert next(_machine.check_processes()).state == "ok"


def test_a_check_that_fails_or_hangs_is_a_finding() -> None:
    def ends() -> list[Finding]:
        raise SystemExit(3)

    def hangs() -> list[Finding]:
        time.sleep(5)
        return []

    assert guarded("x", ends) == [Finding("x", "wrong", "could not be checked: SystemExit(3)")]
    assert guarded("x", hangs, 0.1) == [Finding("x", "wrong", "no answer within 0.1 s")]


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
