"""What every ledger must do, whatever is behind it; a ledger's tests inherit `LedgerConformance`."""

import threading
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from typing import ClassVar

import pytest
from conformance_rules import RulesConformance, refuses
from makers import (
    KEYS,
    MINED,
    OPERATOR,
    data,
    device,
    gradient,
    head_of,
    model,
    of_phases,
    payload,
    run_of,
    seal,
    server,
    vote,
)

from flower_bfl.chain_adapter import Entry, Kind, Ledger, Role, Sender
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, LedgerError, RejectedError


class LedgerConformance(RulesConformance):
    """Tests for a ledger; a subclass says how it is made, and what of it is too dear to try."""

    payload_sizes: ClassVar[tuple[int, ...]] = (
        0, 1, 31, 32, 33, 24_000, 24_001, 80_000, 80_001, 200_000,
    )  # fmt: skip
    large_payload: ClassVar[int] = 170_000

    def test_entries_come_back_in_recorded_order(self, ledger):
        phases = run_of(3)
        for phase in phases:
            ledger.record(iter(phase))
        assert list(ledger.entries()) == of_phases(phases)

    def test_a_mined_run_comes_back(self, opened):
        ledger = opened(MINED)
        phases = run_of(2, mined=True)
        for phase in phases:
            ledger.record(iter(phase))
        assert list(ledger.entries()) == of_phases(phases)
        assert ledger.head == head_of(of_phases(phases), MINED.difficulty_bits)

    def test_a_receipt_says_what_the_phase_cost(self, ledger):
        first, second = (ledger.record(phase) for phase in run_of(1)[:2])
        assert second.block > first.block
        assert len(second.block_hash) == 32 and second.block_hash != first.block_hash
        assert second.transactions >= 3
        assert second.calldata_bytes + second.stored_bytes == sum(
            len(entry.payload) for entry in run_of(1)[1]
        )

    def test_head_is_zero_before_the_first_model_and_then_the_chain_of_models(self, ledger):
        assert ledger.head == bytes(32)
        recorded: list[Entry] = []
        for phase in run_of(2):
            ledger.record(phase)
            recorded += phase
            assert ledger.head == head_of(recorded)

    def test_several_models_in_one_phase(self, ledger):
        ledger.record([model(0), model(1), model(2)])
        assert ledger.head == head_of([model(0), model(1), model(2)])

    def test_a_refused_phase_leaves_nothing(self, ledger):
        """Neither its good entries, nor a model, nor the registration of who was new, nor a used nonce."""
        start = run_of(1)[0]
        ledger.record(start)
        head = ledger.head
        good = [gradient(1, device(0)), model(1), gradient(2, device(9), size=self.large_payload)]
        with pytest.raises(RejectedError, match="WrongRole"):
            ledger.record([*good, Entry(Kind.CONSENSUS, 2, device(0), b"no", step=1)])
        assert ledger.head == head
        assert list(ledger.entries()) == start
        ledger.record(good)
        assert list(ledger.entries()) == [*start, *good]

    def test_a_refused_seal_leaves_no_model(self, opened):
        ledger = opened(MINED)
        ledger.record([model(0)])
        with pytest.raises(RejectedError, match="UnknownServer"):
            ledger.record([model(1), seal(1, device(0), of_server=7)])
        ledger.record([model(1), seal(1, device(0))])
        assert list(ledger.entries()) == [model(0), model(1), seal(1, device(0))]

    def test_an_empty_phase_changes_nothing(self, ledger):
        receipt = ledger.record([gradient(0, device(0))])
        empty = ledger.record([])
        assert (empty.block, empty.block_hash, empty.transactions, empty.gas) == (
            receipt.block, receipt.block_hash, 0, 0,
        )  # fmt: skip

    def test_an_error_in_the_callers_iterator_leaves_nothing(self, ledger):
        def entries():
            yield gradient(0, device(0))
            raise RuntimeError("the caller's own")

        with pytest.raises(RuntimeError, match="the caller's own"):
            ledger.record(entries())
        assert list(ledger.entries()) == []

    def test_senders_may_appear_at_any_time_and_in_any_order(self, ledger):
        entries = [gradient(0, device(5)), gradient(0, server(1)), gradient(0, device(2)), model(0)]
        later = [gradient(1, device(3)), gradient(1, device(5)), model(1), gradient(2, server(0))]
        ledger.record(entries)
        ledger.record(later)
        assert list(ledger.entries()) == entries + later

    def test_payloads_of_any_size_and_content(self, ledger):
        """Not only canonical ones; all zeros and all ones are the two ends of what calldata costs."""
        entries = [
            Entry(Kind.GRADIENT, 0, device(index), byte * size, step)
            for step, size in enumerate(self.payload_sizes)
            for index, byte in enumerate([b"\0", b"\xff"])
        ]
        ledger.record(entries)
        assert list(ledger.entries()) == entries

    def test_a_large_payload_may_come_again(self, ledger):
        """A server without contributions submits the same zeros round after round."""
        large = payload(1, self.large_payload)
        phases = [
            [Entry(Kind.CONSENSUS, k, server(m), large, step) for step in (0, 1) for m in (0, 1)]
            for k in (0, 1)
        ]
        ledger.record([*phases[0], model(0)])
        ledger.record(phases[1])
        assert list(ledger.entries()) == [*phases[0], model(0), *phases[1]]

    def test_numbers_out_of_bounds(self, ledger):
        for entry, message in (
            (Entry(Kind.REPORT, -1, OPERATOR, b""), "`round` of a REPORT entry by operator .*, got -1"),
            (Entry(Kind.REPORT, 2**32 - 1, OPERATOR, b""), "`round`.*got 4294967295"),
            (Entry(Kind.CONSENSUS, 0, server(0), b"", step=2**16), "`step`.*got 65536"),
            (Entry(Kind.MODEL, 0, OPERATOR, b"", step=-1), "`step`.*got -1"),
            (Entry(Kind.GRADIENT, 0, device(2**32), b""), "`sender.index`"),
            (Entry(Kind.REPORT, 0, Sender(Role.OPERATOR, 1), b""), r"`sender.index`.*\[0, 0\], got 1"),
            (Entry(Kind.SEAL, 0, device(0), b"no"), "`payload` of a SEAL entry must be empty, got 2 bytes"),
            (Entry(Kind.GRADIENT, 0, device(0), b"", 0, bytes(64)), "`signature` must be 65 bytes.*got 64"),
            (Entry(Kind.MODEL, 0, OPERATOR, b"", 0, bytes(65)), "`signature`.* of a MODEL entry"),
            (Entry(Kind.SEAL, 0, device(0), b"", 0, bytes(65)), "`signature`.* of a SEAL entry"),
        ):
            with pytest.raises(ConfigError, match=message):
                ledger.record([gradient(0, device(1)), entry])
        assert list(ledger.entries()) == []

    def test_the_largest_numbers_are_taken(self, ledger):
        entries = [
            Entry(Kind.CONSENSUS, 0, server(2**32 - 1), b"x", step=2**16 - 1),
            Entry(Kind.REPORT, 0, OPERATOR, b"x", step=2**16 - 1),
            model(0),
            model(1, server(2**32 - 1), passed=2**16 - 1),
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
        phases = run_of(2, mined=True)
        for phase in phases:
            ledger.open(KEYS, MINED)
            ledger.record(phase)
            ledger.close()
            if self.stays_on_disk:
                ledger = self.make(tmp_path / "run")
        everything = of_phases(phases)
        assert list(ledger.entries()) == everything
        assert ledger.head == head_of(everything, MINED.difficulty_bits)
        ledger.open(KEYS)
        refuses(ledger, phases[0][0], "WrongRound (expected 3, got 0)")
        ledger.close()

    def test_a_ledger_opened_again_knows_what_waits_and_who_is_barred(self, tmp_path):
        ledger = self.make(tmp_path / "run")
        against = vote(1, 0, 1)
        phases = [[model(0), gradient(1, server(1))], [model(1, server(0))], [against]]
        for phase in phases:
            ledger.open(KEYS, MINED)
            ledger.record(phase)
            ledger.close()
            if self.stays_on_disk:
                ledger = self.make(tmp_path / "run")
        ledger.open(KEYS, MINED)
        refuses(ledger, phases[0][1], "ServerQuarantined (until 12)")
        refuses(ledger, against, "AlreadySubmitted")
        refuses(ledger, model(1, server(0)), "AlreadySubmitted")
        ledger.record([seal(1, device(0))])
        assert ledger.head == head_of([*of_phases(phases), seal(1, device(0))], MINED.difficulty_bits)
        ledger.close()

    def test_entries_may_be_read_while_recording_goes_on(self, ledger):
        ledger.record([gradient(0, device(n)) for n in range(3)])
        reading = ledger.entries()
        read = list(islice(reading, 1))
        ledger.record([gradient(0, device(0), step=1)])
        assert [*read, *reading] == [gradient(0, device(n)) for n in range(3)]
        assert len(list(ledger.entries())) == 4

    def test_threads_take_turns(self, ledger):
        errors: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for step in range(3):
                    ledger.record(
                        [gradient(0, device(index), step=step), gradient(0, server(index), 9, step)]
                    )
                    assert sum(1 for _ in ledger.entries()) >= 2 * (step + 1)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(list(ledger.entries())) == 24

    def test_an_entry_signed_elsewhere_is_relayed(self, opened):
        if not self.takes_signatures:
            pytest.skip("this ledger knows no signatures")

        def keys(sender: Sender) -> bytes:
            assert sender in (OPERATOR, server(0)), f"{sender} keeps its key to itself"
            return KEYS(sender)

        ledger = opened(ContractRules(edge_servers=2), keys)
        entries = [
            self.signed(ledger, gradient(0, device(3))), self.signed(ledger, gradient(0, device(4), 30_000)),
            gradient(0, server(0)), self.signed(ledger, Entry(Kind.CONSENSUS, 0, server(1), b"state", 2)),
            self.signed(ledger, data(0, device(5), 1)), self.signed(ledger, data(0, device(3), 0)),
        ]  # fmt: skip
        ledger.record(entries[:1])
        ledger.record(entries[1:])
        assert list(ledger.entries()) == entries
        refuses(ledger, self.signed(ledger, gradient(0, device(3))), "AlreadySubmitted")
        refuses(ledger, self.signed(ledger, gradient(1, device(3))), "WrongRound (expected 0, got 1)")
        refuses(ledger, self.signed(ledger, Entry(Kind.CONSENSUS, 0, device(3), b"")), "WrongRole")
        refuses(ledger, self.signed(ledger, data(0, device(5), 1)), "AlreadySubmitted")
        refuses(ledger, self.signed(ledger, data(0, server(1), 1)), "WrongRole")
        ledger.record([self.signed(ledger, vote(0, 1, 0))])
        refuses(ledger, gradient(0, server(0), step=1), "ServerQuarantined (until 11)")

    def test_a_relayed_entry_cannot_be_changed(self, opened):
        if not self.takes_signatures:
            pytest.skip("this ledger knows no signatures")
        ledger = opened()
        right = self.signed(ledger, gradient(0, device(3)))
        other = self.signed(ledger, gradient(0, device(4)))
        ledger.record([right, other])
        new = self.signed(ledger, gradient(0, device(3), step=1))
        sent = self.signed(ledger, data(0, device(3), 0))
        elsewhere = (ledger.domain[0] + 1, ledger.domain[1]), (ledger.domain[0], bytes(20))
        for changed in (
            replace(new, payload=b"other"), replace(new, step=2), replace(new, kind=Kind.CONSENSUS),
            replace(new, sender=device(4)), replace(new, signature=bytes(65)),
            replace(new, signature=new.signature[:64] + b"\x02"), replace(new, signature=other.signature),
            *(self.signed(ledger, gradient(0, device(3), step=1), domain) for domain in elsewhere),
            replace(sent, step=1), replace(sent, kind=Kind.GRADIENT),
        ):  # fmt: skip
            with pytest.raises(RejectedError, match=r"^entry refused, BadSignature"):
                ledger.record([changed])
        ledger.record([new])
        assert list(ledger.entries()) == [right, other, new]

    def signed(self, ledger: Ledger, entry: Entry, domain: tuple[int, bytes] | None = None) -> Entry:
        from flower_bfl.chain_adapter.signing import sign

        name = sha256(entry.payload).digest()
        where = ledger.domain if domain is None else domain
        signature = sign(KEYS(entry.sender), where, entry.kind, entry.round, entry.step, name)
        return replace(entry, signature=signature)
