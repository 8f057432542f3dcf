"""What goes wrong around the server: nodes that are killed, replies, clocks, links. No round is lost."""

import os
import pickle
import random
import signal
from itertools import count, cycle

import numpy as np
import pytest
from federation import Federation, initial, values
from field import (
    Field,
    Sending,
    least_squares_app,
    new_points,
    numbered,
    roomy,
    start_weights,
    unplugged,
    when,
)
from flwr.app import Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import DEVICES, QUIET, same

from flower_bfl import (
    ConsensusBFL,
    EvmLedger,
    IndependentServers,
    MemoryLedger,
    Mining,
    OnLedger,
    Outage,
)
from flower_bfl.audit import audit
from flower_bfl.chain_adapter import Kind, decode
from flower_bfl.errors import LedgerError, RunFolderError
from flower_bfl.types import EDGE, OFFLOAD, REPORT

ROUNDS = 4
NODES, SERVERS = 5, 2
SENT_TO = {0: 0, 1: 0, 2: 1}
PARTITIONS = range(NODES + SERVERS)


# -- devices and edge servers that are killed ----------------------------------------------------------------


class Processes(Field):
    """The same federation, with a process for each node, of which some are killed while they answer.

    `deaths` has the partition, the kind of message and the round of each, and how far the node gets: it has
    read the message ("start"), is at work ("middle"), or has its reply ready ("end").
    """

    def __init__(self, apps, deaths):
        super().__init__(apps)
        self.deaths = dict(deaths)
        self.killed = 0
        self._processes: dict[int, tuple[int, int, int]] = {}

    def _reply(self, message):
        place = self.partition_of[message.metadata.dst_node_id]
        config = message.content["config"]
        death = self.deaths.get((place, message.metadata.message_type, config["server-round"]), "")
        child, to, back = self._processes.get(place) or self._fork(place)
        metadata = message.metadata
        asked = pickle.dumps((dict(message.content), metadata.message_type, metadata.dst_node_id, death))
        _write(to, asked)
        answer = _read(back)
        if answer is None:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            os.close(to)
            os.close(back)
            self.killed += 1
            del self._processes[place]
            return Message(Error(code=5, reason="Node Unavailable"), reply_to=message)
        content, told = pickle.loads(answer)
        if told:
            return Message(Error(code=2, reason=told), reply_to=message)
        return Message(RecordDict(content), reply_to=message)

    def close(self):
        for child, to, back in self._processes.values():
            os.close(to)
            os.close(back)
            os.waitpid(child, 0)

    def _fork(self, place):
        """A node that answers until its pipe ends."""
        (read, to), (back, write) = os.pipe(), os.pipe()
        others = [end for _, *ends in self._processes.values() for end in ends]
        child = os.fork()
        if child == 0:
            try:
                for end in (to, back, *others):
                    os.close(end)
                while (asked := _read(read)) is not None:
                    _write(write, self._answer(place, *pickle.loads(asked)))
            finally:
                os._exit(0)
        os.close(read)
        os.close(write)
        self._processes[place] = child, to, back
        return self._processes[place]

    def _answer(self, place, content, kind, node, death):
        def die(at):
            if death == at:
                os.kill(os.getpid(), signal.SIGKILL)

        die("start")
        if death == "middle":
            import field

            field.gradient_descent = lambda *_: die("middle")
        message = Message(RecordDict(content), dst_node_id=node, message_type=kind)
        try:
            reply, told = dict(self._apps[place](message, self._contexts[place]).content), ""
        except Exception as error:
            reply, told = {}, repr(error)
        die("end")
        if death == "middle":  # nothing was trained: it dies all the same
            die("middle")
        return pickle.dumps((reply, told))


def _write(pipe, message):
    message = len(message).to_bytes(8) + message
    while message:
        message = message[os.write(pipe, message) :]


def _read(pipe):
    size = _take(pipe, 8)
    return None if size is None else _take(pipe, int.from_bytes(size))


def _take(pipe, size):
    taken = b""
    while len(taken) < size:
        part = os.read(pipe, size - len(taken))
        if not part:
            return None
        taken += part
    return taken


def offloading(grid, folder):
    """A run on nodes that report, send data and train."""
    controller = Sending(roomy(NODES, SERVERS), SENT_TO)
    strategy = ConsensusBFL(
        edge_servers=SERVERS, p2p_rounds=1, ledger=EvmLedger(folder / "chain"), run_folder=folder,
        mining=Mining(difficulty_bits=1), controller=controller, **QUIET,
    )  # fmt: skip
    result = strategy.start(grid, start_weights(), ROUNDS)
    assert audit(folder).finding is None
    assert [report.round for report in strategy.reports] == list(range(ROUNDS + 1))
    return values(result.arrays)


def app():
    return least_squares_app(new_points, report=numbered)


ASKED = [
    *((n, "train") for n in (3, 4)),
    *((n, OFFLOAD) for n in SENT_TO),
    *((n, REPORT) for n in PARTITIONS),
    *((NODES + m, EDGE) for m in range(SERVERS)),
]
KILLS = [
    pytest.param(place, kind, server_round, at, marks=marks)
    for (place, kind), server_round, at, marks in zip(
        ASKED,
        cycle([2, 3, 4, 2, 3]),
        cycle(["start", "middle", "end"]),
        cycle([(), pytest.mark.slow]),
        strict=False,
    )
]


@pytest.mark.parametrize(("place", "kind", "server_round", "at"), KILLS)
def test_a_killed_node_is_left_out_of_its_round_and_comes_back(tmp_path, place, kind, server_round, at):
    """With the models of a run in which it did not answer that one message, bit for bit."""
    absent = Field([app()] * len(PARTITIONS), faults={place: when(kind, unplugged, rounds=[server_round])})
    expected = offloading(absent, tmp_path / "absent")
    grid = Processes([app()] * len(PARTITIONS), {(place, kind, server_round): at})
    try:
        assert same(offloading(grid, tmp_path / "killed"), expected)
    finally:
        grid.close()
    assert grid.killed == 1


# -- replies on their way ------------------------------------------------------------------------------------


class Unreliable(Federation):
    """Replies that come twice, late (with those of a later round), never, or in another order.

    As under Flower, a message has an id once it is sent, and its reply says which it was.
    """

    def __init__(self, devices, draw: random.Random | None, lost: set[tuple[int, int]]):
        super().__init__(devices)
        self._draw, self._lost, self._ids = draw, lost, count()
        self._late: list[Message] = []

    def send_and_receive(self, messages, timeout=None):
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message {next(self._ids)}"
        now = messages[0].content["config"]["server-round"] if messages else 0
        lost = {self.nodes[n] for n, k in self._lost if k == now}
        replies = super().send_and_receive([m for m in messages if m.metadata.dst_node_id not in lost])
        if (draw := self._draw) is None:
            return replies
        late, self._late = self._late, draw.sample(replies, draw.randint(0, len(replies)))
        replies += [*draw.sample(replies, draw.randint(0, len(replies))), *late]
        draw.shuffle(replies)
        return replies


def with_evaluation(ledger):
    return ConsensusBFL(edge_servers=3, p2p_rounds=2, ledger=ledger, wait_for_nodes_s=0.2)


def with_flowers_own(ledger):
    return OnLedger(FedAvg(), ledger)


def without_ledger(_):
    return IndependentServers(edge_servers=3, wait_for_nodes_s=0.2)


@pytest.mark.parametrize("make", [with_evaluation, with_flowers_own, without_ledger])
@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sets(st.tuples(st.integers(0, 6), st.integers(2, ROUNDS)), max_size=6))
def test_replies_that_come_twice_late_or_in_any_order_change_nothing(make, seed, lost):
    """And those that are lost no more than what their devices would have had to say."""

    def run(draw):
        ledger = MemoryLedger()
        strategy = make(ledger)
        result = strategy.start(Unreliable(DEVICES, draw, lost), initial(), ROUNDS)
        told = [(report.left_out, report.evaluate_devices) for report in strategy._journal.reports]
        return values(result.arrays), ledger.head, list(ledger.entries()), told

    model, *recorded = run(None)
    found, *others = run(random.Random(seed))
    assert same(found, model)
    assert others == recorded


# -- clocks and links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        [1_700_000_000, 1_600_000_000],  # set back by years
        [1_700_000_000, 1_700_000_000, 1_700_000_001],  # stands still
        [0, 2**40, -5, 1_700_000_000],  # leaps
    ],
)
def test_a_clock_may_jump(tmp_path, times):
    """Blocks and models still follow one another in time; what is learnt does not depend on it."""
    clock = cycle(times)

    def run(folder, **own):
        ledger = EvmLedger(folder / "chain", **own)
        strategy = ConsensusBFL(edge_servers=3, leader=0, ledger=ledger, run_folder=folder, **QUIET)
        return values(strategy.start(Federation(DEVICES), initial(), ROUNDS).arrays)

    model = run(tmp_path / "jumping", clock=lambda: next(clock))
    assert audit(tmp_path / "jumping").finding is None
    assert same(model, run(tmp_path / "logical"))


@pytest.mark.parametrize(
    ("cut", "parts"),
    [
        ([(1, 2)], [{0, 1}, {2, 3}]),
        ([(0, 1), (1, 2), (2, 3)], [{0}, {1}, {2}, {3}]),
        ([(0, 1), (2, 3)], [{0}, {1, 2}, {3}]),
    ],
)
def test_a_partitioned_edge_network_goes_on(tmp_path, cut, parts):
    """For two rounds each part agrees by itself: what it holds in sum stays, as of a whole network's."""
    outages = [Outage(k, link=link) for k in (2, 3) for link in cut]
    ledger = EvmLedger(tmp_path / "chain")
    strategy = ConsensusBFL(
        edge_servers=4, graph="line", p2p_rounds=3, ledger=ledger, run_folder=tmp_path, outages=outages,
        **QUIET,
    )  # fmt: skip
    strategy.start(Federation(DEVICES), initial(), ROUNDS)
    report = audit(tmp_path)
    assert report.finding is None, report.finding
    assert report.checked.models_recomputed == ROUNDS
    states = {
        (entry.round, entry.step, entry.sender.index): decode(entry.payload)[0]["head"].astype(float)
        for entry in ledger.entries()
        if entry.kind is Kind.CONSENSUS
    }
    ledger.close()

    def stays(k: int, part: set[int]) -> bool:
        first, last = (sum(states[k, step, m] for m in part) for step in (0, 3))
        return np.allclose(first, last, rtol=1e-5, atol=1e-6)

    for k in range(1, ROUNDS + 1):
        assert stays(k, {0, 1, 2, 3})
        assert [stays(k, part) for part in parts] == [k in (2, 3)] * len(parts)


# -- the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [60_000, 150_000, 300_000, 500_000])
def test_a_run_on_a_full_disk_ends_with_an_error_and_goes_on_when_there_is_room(small_disk, tmp_path, room):
    """Whatever there was no room for: the chain, a payload, a line of rounds.jsonl, the model."""

    def run(folder, **own):
        ledger = EvmLedger(folder / "chain", payloads="digest")
        strategy = ConsensusBFL(edge_servers=3, p2p_rounds=2, ledger=ledger, run_folder=folder, **QUIET | own)
        try:
            return values(strategy.start(Federation(DEVICES), initial(), ROUNDS).arrays)
        finally:
            ledger.close()

    model = run(tmp_path / "roomy")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * 2**20 - room))
    with pytest.raises((LedgerError, RunFolderError), match=r"No space left on device|disk is full|disk I/O"):
        run(small_disk / "run")
    ballast.unlink()
    assert same(run(small_disk / "run", resume=True), model)
    assert audit(small_disk / "run").finding is None
