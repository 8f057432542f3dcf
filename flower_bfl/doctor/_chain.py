"""A run's chain as it is now."""

from dataclasses import dataclass, field
from pathlib import Path

from flower_bfl.audit._folder import AuditedStore
from flower_bfl.chain_adapter.base import Kind
from flower_bfl.chain_adapter.pyevm import EvmLedger
from flower_bfl.chain_adapter.records import RunRules
from flower_bfl.errors import LedgerError, PayloadError


@dataclass
class Chain:
    """What is on a chain."""

    sealed: list[tuple[str, str]] = field(default_factory=list)  # digest of the model and head, by round
    open: int = 0  # entries of the round after them, as far as they count
    rules: str = ""  # what is wrong with its RULES
    payloads: int = 0  # that it has in the store
    bad: dict[str, str] = field(default_factory=dict)  # file, what is wrong with it
    unasked: list[str] = field(default_factory=list)  # names in the payload folder to which nothing refers
    damage: str = ""  # where reading ended
    end: str = ""  # what is wrong where the run would go on

    @property
    def last(self) -> int:
        """The last finished round; -1: not even the initial model is there."""
        return len(self.sealed) - 1


def read_chain(folder: Path) -> Chain:
    """Everything that the chain of a run has, with payloads that may be missing."""
    chain, model = Chain(), ""
    store = _Store(folder / "payloads")
    ledger = EvmLedger(folder, store=store, read_only=True)
    try:
        for at in ledger.recorded():
            chain.open = 0 if at.entry.kind is Kind.RESTART else chain.open + 1
            if at.entry.kind is Kind.MODEL:
                model = at.digest.hex()
            elif at.entry.kind is Kind.RULES and at.entry.payload:
                chain.rules = _wrong_with(at.entry.payload)
            if at.bfl_hash:
                chain.sealed.append((model, at.bfl_hash.hex()))
                chain.open = 0
    except LedgerError as error:
        chain.damage = str(error)
    finally:
        ledger.close()
    chain.payloads, chain.bad, chain.unasked = len(store.asked), store.bad, store.unasked()
    chain.end = _wrong_at_the_end(folder)
    return chain


def _wrong_at_the_end(folder: Path) -> str:
    """What would keep a run from going on: it reads its last finished round, and the open one."""
    ledger = EvmLedger(folder, store=AuditedStore(folder / "payloads"), read_only=True)
    try:
        ledger.recent()
    except LedgerError as error:
        return str(error)
    finally:
        ledger.close()
    return ""


def _wrong_with(rules: bytes) -> str:
    try:
        RunRules.decode(rules)
    except LedgerError as error:
        return str(error)
    return ""


class _Store(AuditedStore):
    """Payloads that may be missing, or other ones: then they are empty, and noted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: set[bytes] = set()
        self.bad: dict[str, str] = {}

    def read(self, digest: bytes) -> bytes:
        self.asked.add(digest)
        try:
            return super().read(digest)
        except PayloadError as error:
            path = self._path(digest)
            unread = error.found.startswith(("missing", "not readable"))
            self.bad[path.name] = "a link" if path.is_symlink() else error.found if unread else "changed"
            return b""
