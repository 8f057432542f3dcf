"""What every ledger must do, whatever is behind it; a ledger's tests inherit `LedgerConformance`."""

import threading
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from flower_bfl.chain_adapter import Entry, Kind, Ledger, Role, Sender, encode, simulated_keys
from flower_bfl.errors import ConfigError, LedgerError, RejectedError

KEYS = simulated_keys(7)
EPOCH_S = 1_577_836_800  # docs/ledger.md: logical time of round 0
OPERATOR = Sender(Role.OPERATOR)


def device(index: int) -> Sender:
    return Sender(Role.DEVICE, index)


def server(index: int) -> Sender:
    return Sender(Role.SERVER, index)


def payload(seed: int, size: int = 40) -> bytes:
    return encode(
        {"w": np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)}, {"seed": str(seed)}
    )


def gradient(server_round: int, sender: Sender, size: int = 40) -> Entry:
    return Entry(Kind.GRADIENT, server_round, sender, payload(1000 * server_round + sender.index, size))


def model(server_round: int) -> Entry:
    sender = OPERATOR if server_round == 0 else server(server_round % 2)
    return Entry(Kind.MODEL, server_round, sender, payload(server_round, 200))


def run_of(rounds: int) -> list[list[Entry]]:
    """Phases of a small run: 3 devices, 2 servers, 2 consensus steps a round."""
    phases = [[Entry(Kind.RULES, 0, OPERATOR, payload(99)), model(0)]]
    for k in range(1, rounds + 1):
        phases.append([gradient(k, device(n)) for n in range(3)])
        for step in range(2):
            phases.append(
                [Entry(Kind.CONSENSUS, k, server(m), payload(k + 10 * step + m), step) for m in range(2)]
            )
        phases.append([Entry(Kind.REPORT, k, OPERATOR, b"none"), model(k)])
    return phases


def head_of(models: list[Entry]) -> bytes:
    """Head of the BFL blocks by the formula in docs/ledger.md, written out once more."""
    head = bytes(32)
    for k, entry in enumerate(models):
        block = head + (EPOCH_S + k).to_bytes(8, "big") + bytes(8) + sha256(entry.payload).digest()
        head = sha256(block).digest()
    return head


class LedgerConformance:
    """Tests for a ledger; a subclass says how it is made."""

    stays_on_disk = False

    def make(self, folder: Path) -> Ledger:
        raise NotImplementedError

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Iterator[Ledger]:
        ledger = self.make(tmp_path / "run")
        ledger.open(KEYS)
        yield ledger
        ledger.close()

    def test_entries_come_back_in_recorded_order(self, ledger):
        phases = run_of(3)
        for phase in phases:
            ledger.record(iter(phase))
        assert list(ledger.entries()) == [entry for phase in phases for entry in phase]

    def test_a_receipt_says_what_the_phase_cost(self, ledger):
        first, second = (ledger.record(phase) for phase in run_of(1)[:2])
        assert second.block == first.block + 1
        assert len(second.block_hash) == 32 and second.block_hash != first.block_hash
        assert second.transactions >= 3
        assert second.calldata_bytes + second.stored_bytes == sum(
            len(entry.payload) for entry in run_of(1)[1]
        )

    def test_head_is_zero_before_the_first_model_and_then_the_chain_of_models(self, ledger):
        assert ledger.head == bytes(32)
        models: list[Entry] = []
        for phase in run_of(3):
            ledger.record(phase)
            models += [entry for entry in phase if entry.kind is Kind.MODEL]
            assert ledger.head == head_of(models)

    def test_several_models_in_one_phase(self, ledger):
        ledger.record([model(0), model(1), model(2)])
        assert ledger.head == head_of([model(0), model(1), model(2)])

    @pytest.mark.parametrize(
        ("kind", "server_round", "sender"),
        [
            (Kind.RULES, 0, device(1)),
            (Kind.RULES, 0, server(1)),
            (Kind.REPORT, 1, device(1)),
            (Kind.REPORT, 1, server(1)),
            (Kind.GRADIENT, 1, OPERATOR),
            (Kind.CONSENSUS, 1, OPERATOR),
            (Kind.CONSENSUS, 1, device(1)),
            (Kind.MODEL, 0, device(1)),
            (Kind.MODEL, 0, server(1)),
            (Kind.MODEL, 1, OPERATOR),
            (Kind.MODEL, 1, device(1)),
        ],
    )
    def test_a_wrong_role_is_refused(self, ledger, kind, server_round, sender):
        if kind is Kind.MODEL and server_round == 1:
            ledger.record([model(0)])
        before = list(ledger.entries())
        with pytest.raises(
            RejectedError, match=f"WrongRole: {sender}, kind {kind.name}, round {server_round}, step 0"
        ):
            ledger.record([Entry(kind, server_round, sender, b"x")])
        assert list(ledger.entries()) == before

    def test_all_right_roles_are_taken(self, ledger):
        entries = [
            Entry(Kind.RULES, 0, OPERATOR, b"a"),
            Entry(Kind.REPORT, 1, OPERATOR, b"b"),
            Entry(Kind.GRADIENT, 1, device(0), b"c"),
            Entry(Kind.GRADIENT, 1, server(0), b"d"),
            Entry(Kind.CONSENSUS, 1, server(0), b"e", step=5),
            Entry(Kind.MODEL, 0, OPERATOR, b"f"),
            Entry(Kind.MODEL, 1, server(0), b"g"),
        ]
        ledger.record(entries)
        assert list(ledger.entries()) == entries

    @pytest.mark.parametrize("in_one_phase", [True, False])
    def test_a_second_submission_is_refused(self, ledger, in_one_phase):
        first = gradient(1, device(0))
        second = Entry(Kind.GRADIENT, 1, device(0), b"another")
        with pytest.raises(RejectedError, match="AlreadySubmitted: device 0, kind GRADIENT, round 1, step 0"):
            if in_one_phase:
                ledger.record([first, second])
            else:
                ledger.record([first])
                ledger.record([second])
        assert list(ledger.entries()) == ([] if in_one_phase else [first])

    def test_the_same_payload_in_another_round_step_or_by_another_sender_is_no_second_submission(
        self, ledger
    ):
        entries = [
            Entry(Kind.CONSENSUS, server_round, server(m), b"same", step)
            for server_round in (1, 2)
            for step in (0, 1)
            for m in (0, 1)
        ]
        ledger.record(entries)
        assert list(ledger.entries()) == entries

    def test_rules_are_given_once_whatever_the_round(self, ledger):
        ledger.record([Entry(Kind.RULES, 0, OPERATOR, b"rules")])
        with pytest.raises(RejectedError, match="AlreadySubmitted"):
            ledger.record([Entry(Kind.RULES, 4, OPERATOR, b"other rules", step=2)])

    @pytest.mark.parametrize(("recorded", "attempted"), [(0, 1), (1, 0), (2, 1), (2, 3)])
    def test_a_model_must_belong_to_the_next_round(self, ledger, recorded, attempted):
        ledger.record([model(k) for k in range(recorded)])
        with pytest.raises(RejectedError, match=rf"WrongRound \(expected {recorded}, got {attempted}\): "):
            ledger.record([model(attempted)])
        assert ledger.head == head_of([model(k) for k in range(recorded)])

    def test_a_refused_phase_leaves_nothing(self, ledger):
        """Neither its good entries, nor a model, nor the registration of who was new, nor a used nonce."""
        start = run_of(1)[0]
        ledger.record(start)
        head = ledger.head
        good = [gradient(1, device(0)), model(1), gradient(1, device(9), size=100_000)]
        with pytest.raises(RejectedError, match="WrongRole"):
            ledger.record([*good, Entry(Kind.CONSENSUS, 1, device(0), b"no", step=1)])
        assert ledger.head == head
        assert list(ledger.entries()) == start
        ledger.record(good)
        assert list(ledger.entries()) == [*start, *good]

    def test_an_empty_phase_changes_nothing(self, ledger):
        receipt = ledger.record([gradient(1, device(0))])
        empty = ledger.record([])
        assert (empty.block, empty.block_hash, empty.transactions, empty.gas) == (
            receipt.block, receipt.block_hash, 0, 0,
        )  # fmt: skip

    def test_an_error_in_the_callers_iterator_leaves_nothing(self, ledger):
        def entries():
            yield gradient(1, device(0))
            raise RuntimeError("the caller's own")

        with pytest.raises(RuntimeError, match="the caller's own"):
            ledger.record(entries())
        assert list(ledger.entries()) == []

    def test_senders_may_appear_at_any_time_and_in_any_order(self, ledger):
        entries = [gradient(1, device(5)), gradient(1, server(1)), gradient(1, device(2))]
        later = [gradient(2, device(3)), gradient(2, device(5)), model(0), gradient(2, server(0))]
        ledger.record(entries)
        ledger.record(later)
        assert list(ledger.entries()) == entries + later

    @pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 24_000, 24_001, 80_000, 80_001, 200_000])
    def test_payloads_of_any_size_and_content(self, ledger, size):
        """Not only canonical ones; all zeros and all ones are the two ends of what calldata costs."""
        entries = [
            Entry(Kind.GRADIENT, 1, device(index), byte * size) for index, byte in enumerate([b"\0", b"\xff"])
        ]
        ledger.record(entries)
        assert list(ledger.entries()) == entries

    def test_a_large_payload_may_come_again(self, ledger):
        """A server without contributions submits the same zeros round after round."""
        large = payload(1, 170_000)
        entries = [
            Entry(Kind.CONSENSUS, k, server(m), large, step)
            for k in (1, 2)
            for step in (0, 1)
            for m in (0, 1)
        ]
        ledger.record(entries[:4])
        ledger.record(entries[4:])
        assert list(ledger.entries()) == entries

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                Entry(Kind.REPORT, -1, OPERATOR, b""),
                "`round` of a REPORT entry by operator must be in .*, got -1",
            ),
            (Entry(Kind.REPORT, 2**32, OPERATOR, b""), "`round`"),
            (Entry(Kind.CONSENSUS, 1, server(0), b"", step=2**16), "`step`.*got 65536"),
            (Entry(Kind.MODEL, 0, OPERATOR, b"", step=1), r"`step`.*\[0, 0\], got 1"),
            (Entry(Kind.GRADIENT, 1, device(2**32), b""), "`sender.index`"),
            (Entry(Kind.REPORT, 1, Sender(Role.OPERATOR, 1), b""), r"`sender.index`.*\[0, 0\], got 1"),
        ],
    )
    def test_numbers_out_of_bounds(self, ledger, entry, message):
        with pytest.raises(ConfigError, match=message):
            ledger.record([gradient(1, device(0)), entry])
        assert list(ledger.entries()) == []

    def test_the_largest_numbers_are_taken(self, ledger):
        entries = [
            Entry(Kind.CONSENSUS, 2**32 - 2, server(2**32 - 1), b"x", step=2**16 - 1),
            Entry(Kind.REPORT, 2**32 - 2, OPERATOR, b"x", step=2**16 - 1),
        ]
        ledger.record(entries)
        assert list(ledger.entries()) == entries

    def test_recording_needs_an_open_ledger(self, tmp_path):
        ledger = self.make(tmp_path / "run")
        with pytest.raises(LedgerError, match=r"call `open\(keys\)` first"):
            ledger.record([model(0)])
        assert ledger.head == bytes(32)
        assert list(ledger.entries()) == []
        ledger.open(KEYS)
        ledger.close()
        with pytest.raises(LedgerError, match=r"call `open\(keys\)` first"):
            ledger.record([model(0)])

    def test_a_closed_ledger_can_be_read_and_opened_again(self, tmp_path):
        ledger = self.make(tmp_path / "run")
        phases = run_of(2)
        for phase in phases:
            ledger.open(KEYS)
            ledger.record(phase)
            ledger.close()
            if self.stays_on_disk:
                ledger = self.make(tmp_path / "run")
        everything = [entry for phase in phases for entry in phase]
        assert list(ledger.entries()) == everything
        assert ledger.head == head_of([entry for entry in everything if entry.kind is Kind.MODEL])
        ledger.open(KEYS)
        with pytest.raises(RejectedError, match="AlreadySubmitted"):
            ledger.record([phases[1][0]])
        ledger.close()

    def test_entries_may_be_read_while_recording_goes_on(self, ledger):
        ledger.record([gradient(1, device(n)) for n in range(3)])
        reading = ledger.entries()
        read = list(islice(reading, 1))
        ledger.record([gradient(2, device(0))])
        assert [*read, *reading] == [gradient(1, device(n)) for n in range(3)]
        assert len(list(ledger.entries())) == 4

    def test_threads_take_turns(self, ledger):
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for k in range(1, 4):
                    ledger.record([gradient(k, device(index)), gradient(k, server(index))])
                    assert sum(1 for _ in ledger.entries()) >= 2 * k
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(list(ledger.entries())) == 24
