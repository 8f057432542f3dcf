"""Runs whose chain is on a node: that goes away, forgets blocks, dies; or the server dies in between.

Each goes on from what the node still has, and ends with the very model of an undisturbed run.
"""

import os
import random
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from nodes import (  # noqa: F401  # fixtures
    Proxy,
    anvil_fixture,
    free_port,
    node_modules_fixture,
    started_anvil,
)

from flower_bfl import ConsensusBFL, MemoryLedger, Mining, RpcLedger
from flower_bfl.audit import audit
from flower_bfl.chain_adapter._rpc_node import Node
from flower_bfl.errors import LedgerError

sys.path.insert(0, str(Path(__file__).parents[1] / "strategies"))

from federation import Federation, initial, walker

ROUNDS = 3
DEVICES = [walker(n, named=True) for n in range(4)]
SETTINGS = {
    "edge_servers": 3, "p2p_rounds": 1, "leader": "reputation", "mining": Mining(difficulty_bits=2),
    "fraction_evaluate": 0.0, "wait_for_nodes_s": 0.2,
}  # fmt: skip


def go(url: str, folder: Path, before=lambda server_round: None, **options) -> None:
    """Start a run, or go on with it; `before` is called before each round's devices train."""

    class Hooked(Federation):
        def send_and_receive(self, messages, timeout=None):
            messages = list(messages)
            if messages:
                before(messages[0].content["config"]["server-round"])
            return super().send_and_receive(messages, timeout)

    ledger = RpcLedger(url, folder=folder / "chain", **{"retries": 0, "timeout_s": 5.0} | options)
    strategy = ConsensusBFL(ledger=ledger, run_folder=folder, resume=True, **SETTINGS)
    with closing(ledger):
        strategy.start(Hooked(DEVICES), initial(), ROUNDS)


@pytest.fixture(scope="module", name="model")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the undisturbed run ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ledger = MemoryLedger()
    ConsensusBFL(ledger=ledger, run_folder=folder, **SETTINGS).start(Federation(DEVICES), initial(), ROUNDS)
    return ledger.head + (folder / "model.safetensors").read_bytes()


def found(url: str, folder: Path) -> bytes:
    """What a run ended with, and that all of it follows."""
    ledger = RpcLedger(url, folder=folder / "chain")
    report = audit(ledger)
    assert report.finding is None, report.finding
    assert report.checked.rounds == ROUNDS
    assert (folder / "rounds.jsonl").read_bytes().count(b"\n") == ROUNDS + 1
    with closing(ledger):
        return ledger.head + (folder / "model.safetensors").read_bytes()


def insist(url: str, folder: Path, deaths: int = 30, **how) -> int:
    """Go on until the run is at its end; returns how often it was broken off."""
    errors = []
    for lives in range(deaths):
        try:
            go(url, folder, **how)
        except LedgerError as error:
            errors.append(str(error))
            continue
        return lives
    raise AssertionError(errors[-3:])


@pytest.mark.parametrize("fault", ["drop before", "drop after", "garbage", "500 after"])
def test_a_node_that_goes_away_at_any_time(anvil, tmp_path, model, fault):
    """Again and again, after ever more requests; transactions are in flight then, or on the chain already."""
    with closing(Proxy(anvil)) as proxy:
        wrong = {30 * k + 11 * k * k for k in range(1, 60)}
        proxy.fault = lambda calls: fault if len(proxy.requests) in wrong else None
        assert insist(proxy.url, tmp_path) > 1
        proxy.fault = lambda calls: None
        assert found(proxy.url, tmp_path) == model


@pytest.mark.parametrize("depth", [1, 3, 6, 10])
def test_a_chain_that_is_reorganised(anvil, tmp_path, model, depth):
    """The node drops its last blocks while a round is under way; finished rounds may be among them."""
    seen = []

    def drop(server_round: int) -> None:
        if server_round == 3 and not seen:
            seen.append(call(anvil, "anvil_rollback", depth))

    assert insist(anvil, tmp_path, before=drop) == 1
    assert len(seen) == 1
    assert found(anvil, tmp_path) == model


def call(url: str, method: str, *arguments: object) -> object:
    with closing(RpcLedger(url)) as ledger:
        return ledger.web3.provider.make_request(method, list(arguments))


@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_is_killed(anvil, tmp_path, model, seed):
    """Before or after any request: with transactions that nobody waits for any more."""
    draw, killed = random.Random(seed), 0
    for _ in range(12):
        left, before = draw.randrange(1, 250), draw.random() < 0.5
        child = os.fork()
        if child == 0:
            status = 1
            try:
                die_with_request(left, before)
                go(anvil, tmp_path)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        killed += 1
    else:
        go(anvil, tmp_path)
    assert killed >= 1
    assert found(anvil, tmp_path) == model


def die_with_request(left: int, before: bool) -> None:
    batch = Node.batch

    def mortal(node: Node, *asked: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = batch(node, *asked, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Node.batch = mortal


def test_a_node_that_is_killed(node_modules, tmp_path, model):
    """kill -9 of anvil, which has written its chain to the disk a while ago: later blocks are gone."""
    port, state = free_port(), tmp_path / "state.json"
    options = ("--state", str(state), "--state-interval", "1", "--preserve-historical-states")
    killed = []

    def kill(server_round: int) -> None:
        if server_round == 3 and not killed:
            time.sleep(1.5)  # by then there is a state
            os.kill(pid_at(port), signal.SIGKILL)
            killed.append(True)

    with pytest.raises(LedgerError), started_anvil(node_modules, *options, port=port) as url:
        go(url, tmp_path / "run", kill)
    assert killed
    with started_anvil(node_modules, *options, port=port) as url:
        assert insist(url, tmp_path / "run") == 0
        assert found(url, tmp_path / "run") == model


def pid_at(port: int) -> int:
    """The process whose command line has the port."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0")
        if str(port).encode() in words and any(b"anvil" in word for word in words):
            return int(folder.name)
    raise AssertionError
