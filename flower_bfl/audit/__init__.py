"""The audit: whether every model of a run follows from what was signed, from its ledger alone.

It trusts nobody who ran it. It needs the chain and the payloads, no network and no keys, and goes through the
run entry by entry with memory for one round. `docs/ledger.md` says what is proved and what is not.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from flower_bfl.audit._findings import account
from flower_bfl.audit._folder import AuditedFolder
from flower_bfl.audit._run import RunAudit
from flower_bfl.audit._votes import Incident as Incident
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Kind, Role
from flower_bfl.config import ContractRules
from flower_bfl.errors import LedgerError, RunFolderError

Progress = Callable[[str, int, int], object]
"""Hears what is being checked ("file" or "chain"), the block's number, and that of the last one."""


class AuditedLedger(Protocol):
    """What an audit needs of a ledger; `recorded` checks chain, signatures, contract's rules and digests."""

    @property
    def rules(self) -> ContractRules:
        """What the contract checks."""

    @property
    def block_number(self) -> int:
        """Number of the last block."""

    @property
    def domain(self) -> tuple[int, bytes]:
        """Chain id and contract address, to which a signature is bound."""

    def recorded(self) -> Iterator[Recorded]:
        """Every entry in recorded order."""


@dataclass(frozen=True)
class Finding:
    """The first thing that does not follow."""

    rule: str
    expected: str
    found: str
    block: int | None = None  # None: not a matter of one block
    transaction: int | None = None  # place in the block
    account: str = ""  # role, index and address of who signed it

    @classmethod
    def of(cls, error: LedgerError) -> "Finding":
        """What a LedgerError says."""
        place = f"block {error.block}, transaction {error.transaction}: "
        return cls(
            rule=str(error).removeprefix(place),
            expected=error.expected or "a chain that can be read",
            found=error.found or str(error),
            block=error.block,
            transaction=error.transaction,
            account=error.account,
        )

    @property
    def where(self) -> str:
        """Block, transaction and account, as far as they are known."""
        parts = [
            "" if self.block is None else f"block {self.block}",
            "" if self.transaction is None else f"transaction {self.transaction}",
            self.account,
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Checked:
    """How much was checked, up to the end or to the finding."""

    rounds: int = 0  # finished, beyond round 0
    blocks: int = 0  # those with entries
    transactions: int = 0  # those with entries
    signatures: int = 0  # of these, and of entries that were signed elsewhere
    gradients: int = 0
    gradients_not_aggregated: int = 0
    data_sets: int = 0  # that devices sent to edge servers
    data_sets_not_trained_on: int = 0
    consensus_states: int = 0
    models: int = 0
    models_recomputed: int = 0  # the initial model is given
    leaders: int = 0
    proofs_of_work: int = 0
    votes: int = 0
    payload_bytes: int = 0


@dataclass(frozen=True)
class AuditReport:
    """What came of an audit."""

    finding: Finding | None  # None: everything follows
    checked: Checked
    strategy: str  # whose models they are; empty if the run has no RULES
    recomputed: bool  # False: its models are recorded, but do not follow from (8)-(12)
    head: str  # hash of the last BFL block that was checked, in hex
    operator: str  # address of who ran it
    incidents: tuple[Incident, ...] = ()  # who was accused, and whether the ledger bears it out
    own_keys: tuple[str, ...] = ()  # whose entries came signed and were relayed; whose keys, nobody can tell
    notes: tuple[str, ...] = ()  # what is odd, and breaks no rule

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.finding is not None:
            return "something does not follow from what was signed"
        if self.recomputed:
            return "every model follows from what was signed"
        return (
            "every model was signed, in order and sealed; "
            f"how {self.strategy} makes them is not on the ledger, so they were recorded but not recomputed"
        )

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {"verdict": self.verdict} | asdict(self)


def audit(
    source: Path | str | AuditedLedger,
    *,
    head: bytes | None = None,
    progress: Progress = lambda what, block, last: None,
) -> AuditReport:
    """Check a run: the folder that it left behind, or the ledger itself.

    `head` is the hash of the last BFL block, 32 bytes, if somebody kept it: the run must end with it.
    `progress` hears of each block. Raises RunFolderError if the folder holds no run, and LedgerError if a
    ledger elsewhere cannot be reached.
    """
    walk = _Walk(head)
    try:
        if isinstance(source, Path | str):
            with closing(AuditedFolder(Path(source))) as folder:
                folder.ledger.check_file(partial(progress, "file"))
                walk.go(folder.ledger, folder, progress)
        else:
            walk.go(source, None, progress)
    except LedgerError as error:
        if not isinstance(source, Path | str) and not error.expected:
            raise
        return walk.report(Finding.of(error))
    except RunFolderError:
        raise
    except Exception as error:  # whatever a hostile record makes of a library: it is no proof
        rule = "what is recorded must be such that it can be checked"
        return walk.report(Finding(rule, expected="records in their formats", found=repr(error)))
    return walk.report(None)


class _Walk:
    """One way through a ledger, and what was seen on it."""

    def __init__(self, head: bytes | None) -> None:
        self._wanted = head
        self._wanted_round: int | None = None  # whose head it is
        self._seen: Counter[str] = Counter()
        self._run: RunAudit | None = None
        self._block = 0
        self._round = 0  # open
        self._head = self._operator = self._model = b""  # the last: digest of the model
        self._own_keys: dict[str, None] = {}
        self._notes: list[str] = []

    def go(self, ledger: AuditedLedger, folder: AuditedFolder | None, progress: Progress) -> None:
        """Check everything; raises LedgerError for the first thing that does not follow."""
        rules, last = ledger.rules, ledger.block_number
        self._run = RunAudit(rules, lambda: ledger.domain)
        unfinished = 0  # entries after the last BFL block
        for at in ledger.recorded():
            progress("chain", at.block, last)
            self._note(at, rules)
            self._run.read(at)
            unfinished = 0 if at.entry.kind is Kind.RESTART else unfinished + 1
            if at.bfl_hash:
                unfinished = 0
                self._end_round(at, folder)
        if self._run.run is None or self._round == 0:
            rule = "a run must begin with its RULES and its initial model"
            raise LedgerError(rule, expected="both", found=f"{self._seen['transactions']} entries, no model")
        if unfinished:
            self._notes.append(f"round {self._round} was not finished: {unfinished} entries, no sealed model")
        self._check_head()
        if folder is not None:
            folder.finish()
            self._notes += folder.notes

    def report(self, finding: Finding | None) -> AuditReport:
        """What came of it."""
        known = self._run.run if self._run is not None else None
        if self._run is not None:
            self._seen["gradients_not_aggregated"] = self._run.not_aggregated
            self._seen["data_sets_not_trained_on"] = self._run.not_trained_on
            self._seen["models_recomputed"] = self._run.recomputed
            if self._run.restarts:
                self._notes.append(
                    f"{self._run.void} entries do not count: their rounds were broken off and begun again, "
                    f"{self._run.restarts} in all"
                )
            if self._run.withdrawn:
                self._notes.append(
                    f"{self._run.withdrawn} models were never sealed: their leaders were voted out"
                )
        recomputed = known is not None and known.consensus is not None
        for name, what in (
            ("gradients_not_aggregated", "gradients"),
            ("data_sets_not_trained_on", "data sets"),
        ):
            if recomputed and self._seen[name]:
                self._notes.append(f"{self._seen[name]} {what} are in no model")
        return AuditReport(
            finding=finding,
            checked=Checked(**{name: self._seen[name] for name in Checked.__dataclass_fields__}),
            strategy="" if known is None else known.strategy,
            recomputed=recomputed,
            head=self._head.hex(),
            operator=f"0x{self._operator.hex()}",
            incidents=() if self._run is None else tuple(self._run.incidents),
            own_keys=tuple(self._own_keys),
            notes=tuple(self._notes),
        )

    def _note(self, at: Recorded, rules: ContractRules) -> None:
        entry, seen = at.entry, self._seen
        if at.block != self._block:
            self._block = at.block
            seen["blocks"] += 1
        seen["transactions"] += 1
        seen["signatures"] += 1
        seen["payload_bytes"] += len(entry.payload)
        if entry.signature:
            seen["signatures"] += 1
            self._own_keys[account(at)] = None
        if entry.sender.role is Role.OPERATOR:
            self._operator = at.account
        seen["gradients"] += entry.kind is Kind.GRADIENT
        seen["data_sets"] += entry.kind is Kind.DATA
        seen["consensus_states"] += entry.kind is Kind.CONSENSUS
        seen["votes"] += entry.kind is Kind.VOTE
        seen["proofs_of_work"] += entry.kind is Kind.SEAL and rules.difficulty_bits > 0
        if entry.kind is Kind.MODEL:
            self._model = at.digest
            seen["models"] += 1
            seen["leaders"] += entry.round > 0 and rules.leader != "any"

    def _end_round(self, at: Recorded, folder: AuditedFolder | None) -> None:
        self._head = at.bfl_hash
        if at.bfl_hash == self._wanted:
            self._wanted_round = self._round
        if folder is not None:
            folder.check_round(self._round, self._model, at)
        self._seen["rounds"] = self._round
        self._round += 1

    def _check_head(self) -> None:
        if self._wanted in (None, self._head):
            return
        assert self._wanted is not None
        whose = "" if self._wanted_round is None else f"; the given one is of round {self._wanted_round}"
        raise LedgerError(
            "the run must end with the head that was given",
            expected=self._wanted.hex(),
            found=f"{self._head.hex()} of round {self._round - 1}{whose}",
        )
