"""The quickstart as a newcomer runs it: real processes, real training, a real chain on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flower_bfl import EvmLedger
from flower_bfl.audit import audit
from flower_bfl.chain_adapter.base import Kind, digest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
ROUNDS = 3


def quickstart(folder: Path, settings: str) -> str:
    command = [
        sys.executable,
        "-m",
        "flower_bfl.cli",
        "run",
        "examples/quickstart",
        "--run-folder",
        str(folder),
    ]
    done = subprocess.run(
        [*command, "--run-config", settings], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    return folder, quickstart(folder, f"num-server-rounds={ROUNDS}")


def rounds_of(folder: Path) -> list[dict]:
    file = folder / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_it_learns_and_says_so(run):
    folder, output = run
    lines = rounds_of(folder)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    accuracies = [line["evaluate"]["accuracy"] for line in lines]
    assert accuracies[0] < 0.3 < 0.6 < accuracies[-1]
    for words in ("accuracy", "loss", "consensus error", "transactions", "gas", "chain"):
        assert words in output.lower()
    for line in lines[1:]:
        assert line["devices"] == 10 and line["left_out"] == []
        assert line["transactions"] >= 10 + 3 * 6 + 2
        assert line["miner"].startswith("device ") and line["head"].startswith("000")
        assert line["consensus_error"] <= line["consensus_bound"] * (1 + 1e-3) + 1e-6


def test_the_chain_in_the_folder_holds_every_update(run):
    folder, _ = run
    ledger = EvmLedger(folder / "chain")
    entries = list(ledger.entries())
    counts = {kind: sum(entry.kind is kind for entry in entries) for kind in Kind}
    assert counts == {
        Kind.RULES: 1,
        Kind.REPORT: 0,
        Kind.GRADIENT: 10 * ROUNDS,
        Kind.CONSENSUS: 3 * 6 * ROUNDS,
        Kind.MODEL: 1 + ROUNDS,
        Kind.VOTE: 0,
        Kind.SEAL: ROUNDS,
        Kind.DATA: 0,
        Kind.RESTART: 0,
        Kind.STATE: 0,
    }
    last = [entry for entry in entries if entry.kind is Kind.MODEL][-1]
    assert (folder / "model.safetensors").read_bytes() == last.payload
    assert rounds_of(folder)[-1]["model_digest"] == digest(last.payload).hex()
    assert rounds_of(folder)[-1]["head"] == ledger.head.hex()
    ledger.close()


def test_it_leaves_a_picture(run):
    folder, _ = run
    picture = (folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


@pytest.mark.slow
def test_the_same_seed_gives_the_same_chain_bit_for_bit(run, tmp_path):
    folder, _ = run
    quickstart(tmp_path / "run", f"num-server-rounds={ROUNDS}")
    chains = [EvmLedger(each / "chain") for each in (folder, tmp_path / "run")]
    assert chains[0].head == chains[1].head
    assert chains[0].block_hash == chains[1].block_hash
    models = [(each / "model.safetensors").read_bytes() for each in (folder, tmp_path / "run")]
    assert models[0] == models[1]
    for chain in chains:
        chain.close()


@pytest.mark.slow
def test_a_killed_server_goes_on_with_the_same_model_and_chain(run, tmp_path):
    """kill -9 of Flower's process that the ServerApp runs in, after the first round."""
    folder = tmp_path / "run"
    words = ["run", "examples/quickstart", "--run-folder", str(folder)]
    words += ["--run-config", f"num-server-rounds={ROUNDS}"]
    command = [sys.executable, "-m", "flower_bfl.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
        until = time.monotonic() + 250
        while len(rounds_of(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(below(server.pid, "flwr-simulation"), signal.SIGKILL)
        _, told = server.communicate(timeout=250)
    assert server.returncode == 1
    assert f"""--run-config 'resume="{folder}"'""" in told.decode()
    assert len(rounds_of(folder)) <= ROUNDS
    quickstart(folder, f'resume="{folder}"')
    assert len(rounds_of(folder)) == ROUNDS + 1
    assert (folder / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()
    assert audit(folder).head == audit(run[0]).head
    assert audit(folder).finding is None


def below(pid: int, name: str) -> int:
    """A descendant of a process that has a word in its command line."""
    waiting = [pid]
    for each in waiting:
        children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
        waiting += map(int, children)
        if name.encode() in Path(f"/proc/{each}/cmdline").read_bytes():
            return each
    raise AssertionError(f"no {name} below {pid}")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "signed"), [("fedadam", True), ("krum", False)])
def test_flowers_own_strategies_on_the_ledger(tmp_path, strategy, signed):
    """In a real run, with devices that sign with keys of their own or with derived ones."""
    sign = str(signed).lower()
    settings = f'strategy="{strategy}-on-ledger" sign-updates={sign} num-server-rounds={ROUNDS}'
    quickstart(tmp_path / "run", settings)
    lines = rounds_of(tmp_path / "run")
    assert lines[-1]["evaluate"]["loss"] < lines[0]["evaluate"]["loss"]
    ledger = EvmLedger(tmp_path / "run" / "chain")
    recorded = list(ledger.recorded())
    kinds = [each.entry.kind for each in recorded]
    assert (kinds.count(Kind.GRADIENT), kinds.count(Kind.MODEL), kinds.count(Kind.SEAL)) == (30, 4, 3)
    assert {bool(r.entry.signature) for r in recorded if r.entry.kind is Kind.GRADIENT} == {signed}
    assert digest((tmp_path / "run" / "model.safetensors").read_bytes()).hex() == lines[-1]["model_digest"]
    ledger.close()


@pytest.mark.slow
def test_an_edge_server_that_lies_is_voted_out(tmp_path):
    settings = (
        f'num-server-rounds={ROUNDS} attack="gaussian-noise" attacked-servers="1" attack-rounds="2" '
        'attack-step="3" defence="replay deviation" quarantine-rounds=0'
    )
    output = quickstart(tmp_path / "run", settings)
    lines = rounds_of(tmp_path / "run")
    accused = [{"server": 1, "offence": "state", "step": 3, "votes": 2, "voted_out": True}]
    assert [line["accused"] for line in lines] == [[], [], accused, []]
    assert [line["true_positives"] for line in lines[1:]] == [0, 1, 0]
    assert lines[2]["server_devices"][1] == [] != lines[3]["server_devices"][1]
    assert "edge server 1 in round 2" in output
    found = audit(tmp_path / "run")
    (incident,) = found.incidents
    assert found.finding is None and incident.upheld
    assert incident.account.startswith("server 1 (0x")


@pytest.mark.slow
def test_poisoned_data_reach_the_devices(tmp_path):
    """All labels flipped: what is learned is the flipped ones."""
    devices = " ".join(map(str, range(10)))
    quickstart(
        tmp_path / "run", f'num-server-rounds={ROUNDS} attack="label-flip" attacked-devices="{devices}"'
    )
    assert rounds_of(tmp_path / "run")[-1]["evaluate"]["accuracy"] < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "FashionMNIST").is_dir(), reason="no Fashion-MNIST in ../shared/data")
def test_fashion_mnist_with_two_labels_a_device_learns(tmp_path):
    settings = f'dataset="fashion-mnist" partition="labels" data-folder="{DATA}" num-server-rounds=10'
    quickstart(tmp_path / "run", settings)
    assert rounds_of(tmp_path / "run")[-1]["evaluate"]["accuracy"] > 0.5
    ledger = EvmLedger(tmp_path / "run" / "chain")
    assert sum(1 for _ in ledger.entries()) == 2 + 10 * (10 + 18 + 2)
    ledger.close()
