"""The ledger and its audit on a terminal: tables that fit 80 columns, and JSON for programs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flower_bfl.audit import AuditedLedger, AuditReport, Checked
from flower_bfl.audit import Progress as AuditProgress
from flower_bfl.audit._folder import AuditedStore
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Kind, Role, Sender, digest
from flower_bfl.chain_adapter.pyevm import EvmLedger
from flower_bfl.chain_adapter.records import RunRules
from flower_bfl.errors import ConfigError, LedgerError, PayloadError, RunFolderError
from flower_bfl.types import in_words

_DIGITS = 8  # of a hash or an address in a table
_EMPTY = digest(b"")
_STAGES = ("file", "chain")  # of an audit


class BrowsedLedger(AuditedLedger, Protocol):
    """What there is to see of a ledger."""

    @property
    def transactions(self) -> int:
        """How many there are; making the contract and registering accounts count too."""

    @property
    def gas(self) -> int:
        """What all of them took."""

    def close(self) -> None:
        """Release what it holds open."""


class BrowsedStore(AuditedStore):
    """Payloads that may be missing: a ledger can be looked at without them."""

    def read(self, digest: bytes) -> bytes:
        """The payload with this digest; nothing if there is none that has it."""
        try:
            return super().read(digest)
        except PayloadError:
            return b""


def open_folder(folder: Path) -> tuple[EvmLedger, BrowsedStore]:
    """The chain of a run folder, to be looked at; raises RunFolderError if there is none."""
    if not (folder / "chain" / "chain.sqlite").is_file():
        raise RunFolderError(f"`run_folder` must hold a run with a chain, chain/chain.sqlite, got {folder}")
    store = BrowsedStore(folder / "chain" / "payloads")
    return EvmLedger(folder / "chain", store=store, read_only=True), store


def open_node(url: str, contract: str, payloads: Path) -> tuple[BrowsedLedger, AuditedStore]:
    """The chain of a run on a JSON-RPC node; raises LedgerError if it cannot be reached."""
    from flower_bfl.chain_adapter.rpc import RpcLedger  # loads web3.py

    store = AuditedStore(payloads)
    return RpcLedger(url, contract=contract, store=store), store


@dataclass
class BlockRow:
    """A BFL block, and what was recorded in its round."""

    round: int
    block: int = 0  # the EVM block that completed it
    leader: str = ""
    passed_over: int = 0
    miner: str = ""  # empty if nobody mined it
    nonce: int = 0
    hash: str = ""  # empty while the round is open
    model_digest: str = ""
    transactions: int = 0
    gas: int | None = None  # None if the ledger does not say
    payload_bytes: int = 0


@dataclass(frozen=True)
class TransactionRow:
    """A recorded entry and what it cost."""

    round: int
    block: int
    transaction: int
    hash: str
    kind: str
    step: int
    sender: str
    account: str
    own_key: bool  # came signed, and was relayed by the operator
    bytes: int
    payload: str  # where it is: "calldata", "pieces" or "store"; or "empty", or "missing"
    digest: str
    gas: int | None


class Browser:
    """Reads a ledger once and keeps a row for each round, and for each transaction of one round.

    A round's transactions and gas include those that register accounts, if the ledger has `gas_of` to tell.
    With `whole` the transactions of all rounds are kept, and reading ends at what is damaged, which
    `damage` then says.
    """

    def __init__(
        self,
        ledger: BrowsedLedger,
        store: AuditedStore,
        server_round: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.rounds: list[BlockRow] = []  # the last may be open
        self.transactions: list[TransactionRow] = []
        self.run: RunRules | None = None  # what the ledger says of the run, if that can be read
        self.damage = ""
        self._ledger, self._store = ledger, store
        self._gas_of: Callable[[int], list[int]] | None = getattr(ledger, "gas_of", None)
        self._wanted, self._whole = server_round, whole
        self._block, self._gas = 0, list[int]()
        self._blocks = 0
        self._accounts: dict[Sender, str] = {}
        self._calldata_bytes = 0
        try:
            self._read_all()
        except LedgerError as error:
            if not whole:
                raise
            self.damage = str(error)
        if server_round is not None and not self.transactions:
            raise ConfigError(
                f"`round` must be one of the ledger's, 0 to {self.last_round}, got {server_round}"
            )

    @property
    def last_round(self) -> int:
        """The last round that has a BFL block, or -1."""
        return max((row.round for row in self.rounds if row.hash), default=-1)

    def summary(self) -> dict[str, object]:
        """The ledger in a few numbers."""
        roles = Counter(sender.role for sender in self._accounts)
        return {
            "rounds": self.last_round,
            "blocks": self._blocks,
            "transactions": self._ledger.transactions,
            "gas": self._ledger.gas,
            "payload_bytes": sum(row.payload_bytes for row in self.rounds),
            "calldata_bytes": self._calldata_bytes,
            "operator": self._accounts.get(Sender(Role.OPERATOR), ""),
            "devices": roles[Role.DEVICE],
            "servers": roles[Role.SERVER],
            "rewards": dict(Counter(row.miner for row in self.rounds if row.miner).most_common()),
            "head": next((row.hash for row in reversed(self.rounds) if row.hash), ""),
        }

    def _read_all(self) -> None:
        row = BlockRow(0)
        try:
            for at in self._ledger.recorded():
                self._read(at, row)
                if row.hash:
                    self.rounds.append(row)
                    row = BlockRow(row.round + 1)
        finally:
            if row.transactions:
                self.rounds.append(row)

    def _read(self, at: Recorded, row: BlockRow) -> None:
        entry = at.entry
        while self._gas_of is not None and self._block < at.block:
            self._block, self._blocks = self._block + 1, self._blocks + 1
            self._gas = self._gas_of(self._block)
            row.transactions += len(self._gas)
            row.gas = (row.gas or 0) + sum(self._gas)
        if self._block != at.block:  # of a node, to which others write too
            self._block, self._blocks = at.block, self._blocks + 1
        row.transactions += self._gas_of is None
        row.payload_bytes += len(entry.payload)
        self._calldata_bytes += at.calldata_bytes
        self._accounts[entry.sender] = f"0x{at.account.hex()}"
        if entry.kind is Kind.MODEL:
            row.leader, row.passed_over, row.model_digest = str(entry.sender), entry.step, at.digest.hex()
        elif entry.kind is Kind.SEAL:
            row.miner, row.nonce = str(entry.sender), at.nonce
        elif entry.kind is Kind.RULES:
            with suppress(PayloadError):
                self.run = RunRules.decode(entry.payload)
        if self._whole or entry.round == self._wanted:
            self.transactions.append(self._row(at))
        row.block, row.hash = at.block, at.bfl_hash.hex()

    def _row(self, at: Recorded) -> TransactionRow:
        entry = at.entry
        if at.digest == _EMPTY:
            place = "empty"
        elif at.calldata_bytes:
            place = "calldata"
        elif not entry.payload:
            place = "missing"
        else:
            place = "store" if at.digest in self._store else "pieces"
        return TransactionRow(
            round=entry.round,
            block=at.block,
            transaction=at.transaction,
            hash=f"0x{at.transaction_hash.hex()}",
            kind=entry.kind.name,
            step=entry.step,
            sender=str(entry.sender),
            account=f"0x{at.account.hex()}",
            own_key=bool(entry.signature),
            bytes=len(entry.payload),
            payload=place,
            digest=at.digest.hex(),
            gas=self._gas[at.transaction] if self._gas else None,
        )


# -- the ledger ----------------------------------------------------------------------------------------------


def print_ledger(browser: Browser, server_round: int | None, *, as_json: bool) -> None:
    """The summary and a table of rounds, or the transactions of one round."""
    if as_json:
        rounds = [asdict(row) for row in browser.rounds]
        transactions = [asdict(row) for row in browser.transactions]
        whole = {"summary": browser.summary(), "rounds": rounds}
        one = {"round": server_round, "transactions": transactions}
        print_json(whole if server_round is None else one)
        return
    console = Console()
    if server_round is not None:
        console.print(f"[bold]round {server_round}[/bold], {len(browser.transactions)} entries")
        console.print(_transactions_table(browser.transactions))
        return
    _print_summary(console, browser.summary())
    console.print(_rounds_table(browser.rounds))


def _print_summary(console: Console, summary: dict[str, object]) -> None:
    rewards = summary["rewards"]
    in_calldata = decimal(int(str(summary["calldata_bytes"])))
    payloads = f"{decimal(int(str(summary['payload_bytes'])))}, {in_calldata} of it in calldata"
    rows = {
        "rounds": f"{summary['rounds']}, {summary['blocks']} blocks, {summary['transactions']} transactions",
        "gas": f"{summary['gas']:,}",
        "payloads": payloads,
        "accounts": f"{summary['devices']} devices, {summary['servers']} edge servers, operator",
        "operator": summary["operator"],
        "head": summary["head"],
    }
    if isinstance(rewards, dict) and rewards:
        rows["rewards"] = ", ".join(f"{miner}: {blocks}" for miner, blocks in rewards.items())
    console.print(_facts(rows))


def _rounds_table(rounds: list[BlockRow]) -> Table:
    table = _table("round", "block", "leader", "passed", "miner", "nonce", "hash", "gas", "tx")
    for row in rounds:
        mined = [row.miner, f"{row.nonce:,}"] if row.miner else ["-", "-"]
        done = (
            [row.leader, str(row.passed_over), *mined, row.hash[:_DIGITS]] if row.hash else ["open", *"----"]
        )
        table.add_row(str(row.round), str(row.block), *done, _number(row.gas), str(row.transactions))
    return table


def _transactions_table(transactions: list[TransactionRow]) -> Table:
    table = _table("block", "tx", "kind", "step", "by", "account", "size", "payload", "digest", "gas")
    for row in transactions:
        key = "*" if row.own_key else ""
        table.add_row(
            str(row.block),
            str(row.transaction),
            row.kind.lower(),
            str(row.step),
            row.sender + key,
            row.account[2 : 2 + _DIGITS],
            decimal(row.bytes).replace(" bytes", " B"),
            row.payload,
            row.digest[:_DIGITS],
            _number(row.gas),
        )
    if any(row.own_key for row in transactions):
        table.caption = "* signed elsewhere, with a key of its own"
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=bool(columns))
    for column in columns:
        right = column in ("round", "block", "passed", "nonce", "gas", "tx", "step", "size")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table


def _facts(rows: Mapping[str, object]) -> Table:
    table = _table()
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, _plain(value))
    return table


def _plain(value: object) -> str:
    """Text that no record can make a terminal's command or rich's markup of."""
    return escape("".join(each if each.isprintable() else repr(each)[1:-1] for each in str(value)))


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


# -- the audit -----------------------------------------------------------------------------------------------


@contextmanager
def audit_progress() -> Iterator[AuditProgress]:
    """A bar on standard error, for `audit`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {what: bar.add_task(f"checking the {what}", total=None, visible=False) for what in _STAGES}

        def hear(what: str, block: int, last: int) -> None:
            bar.update(tasks[what], completed=block, total=last, visible=True)

        yield hear


def print_audit(report: AuditReport, *, as_json: bool) -> None:
    """The verdict with its numbers, or what does not follow."""
    if as_json:
        print_json(report.as_json())
        return
    console = Console(highlight=False)
    checked, finding = report.checked, report.finding
    rows: dict[str, str] = {}
    if finding is None:
        console.print(f"[green]✓ {_plain(report.verdict)}[/green]", soft_wrap=True)
    else:
        console.print(f"[red]✗ {_plain(report.verdict)}[/red]", soft_wrap=True)
        rows |= {"where": finding.where or "the run as a whole", "rule": finding.rule}
        rows |= {"expected": finding.expected, "found": finding.found}
    rows["checked"] = checked_in_words(checked)
    rows |= {"operator": report.operator, "head": report.head or "none"}
    rows["own keys"] = ", ".join(report.own_keys) or "none: whoever ran it signed for everybody"
    for incident in report.incidents:
        fate = "voted out" if incident.voted_out else "accused"
        holds = "which the ledger bears out" if incident.upheld else "which the ledger does not bear out"
        name = f"round {incident.round}"
        what = in_words(incident.offence, incident.step)
        told = f"{incident.account} {fate} by {incident.votes} for {what}, {holds}"
        rows[name] = f"{rows[name]}; {told}" if name in rows else told
    for place, note in enumerate(report.notes):
        rows[f"note {place + 1}" if len(report.notes) > 1 else "note"] = note
    console.print(_facts(rows))


def checked_in_words(checked: Checked) -> str:
    """How much an audit checked."""
    counts = {
        "rounds": checked.rounds,
        "blocks": checked.blocks,
        "transactions": checked.transactions,
        "signatures": checked.signatures,
        "gradients": checked.gradients,
        "data sets": checked.data_sets,
        "consensus states": checked.consensus_states,
        "models": checked.models,
        "of these recomputed": checked.models_recomputed,
        "leaders": checked.leaders,
        "proofs of work": checked.proofs_of_work,
        "votes": checked.votes,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f"{said}, {decimal(checked.payload_bytes)} of payloads" if said else "nothing"


def print_json(value: object) -> None:
    """For programs."""
    Console().print_json(data=value)
