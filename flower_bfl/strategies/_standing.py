"""Where a run stands, by its ledger: what a strategy needs to go on with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flower_bfl.chain_adapter.base import Entry, Kind, Recent, Role, Sender, digest
from flower_bfl.chain_adapter.records import (
    Gradient,
    NamedArrays,
    RunRules,
    read_model,
    read_report,
    read_state,
)
from flower_bfl.errors import ConfigError, LedgerError
from flower_bfl.strategies._layout import Layout
from flower_bfl.types import RoundReport


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a run stands. A round counts once its model is sealed."""

    rules: bytes  # payload of RULES; empty: there are none
    round: int  # the last that is finished; -1: not even the initial model is there
    last: Sequence[Entry]  # its entries, as far as they count
    open: Sequence[Entry]  # those of the round after it
    restarts: int  # of that round
    quarantined_until: Mapping[int, int]  # by edge server

    @classmethod
    def of(cls, recent: Recent) -> "Standing":
        """What the end of a run comes to."""
        done = recent.height - 1
        last, _ = _counting(entry for entry in recent.entries if entry.round == done)
        now, restarts = _counting(entry for entry in recent.entries if entry.round > done)
        return cls(recent.rules, done, last, now, restarts, recent.quarantined_until)

    @property
    def model(self) -> NamedArrays:
        """The last model."""
        return read_model(self._one(Kind.MODEL).payload)

    @property
    def model_payload(self) -> bytes:
        """The last model as it was recorded."""
        return self._one(Kind.MODEL).payload

    @property
    def state(self) -> NamedArrays:
        """What the next round depends on beside the model."""
        kept = [entry for entry in self.last if entry.kind is Kind.STATE]
        return read_state(kept[-1].payload) if kept else {}

    @property
    def miners_server(self) -> int | None:
        """Edge server of the last round's miner."""
        seals = [entry.step for entry in self.last if entry.kind is Kind.SEAL]
        return seals[-1] if seals else None

    def check_rules(self, wanted: bytes) -> None:
        """Raise ConfigError unless the run has these RULES."""
        if self.rules == wanted:
            return
        found, own = (_told(payload) for payload in (self.rules, wanted))
        names = [name for name in own if own[name] != found.get(name)]
        said = "; ".join(f"{name} {found.get(name)!r}, got {own[name]!r}" for name in names)
        raise ConfigError(f"settings must be those of the run that goes on: {said or 'other RULES'}")

    def report(self, head: bytes) -> RoundReport:
        """What the ledger says of the last round: not its times, nor its metrics."""
        model = self._one(Kind.MODEL)
        gradients = [Gradient.decode(each.payload) for each in self.last if each.kind is Kind.GRADIENT]
        devices = sum(1 if each.union is None else len(each.union.devices) for each in gradients)
        reports = [read_report(entry.payload) for entry in self.last if entry.kind is Kind.REPORT]
        left_out, down = reports[-1] if reports else ([], [])
        miners = [str(entry.sender) for entry in self.last if entry.kind is Kind.SEAL]
        return RoundReport(
            round=self.round,
            devices=devices,
            samples=sum(each.samples for each in gradients),
            left_out=tuple(left_out),
            down=tuple(map(str, down)),
            leader=model.sender.index if model.sender.role is Role.SERVER else None,
            miner=miners[-1] if miners else "",
            model_digest=digest(model.payload).hex(),
            head=head.hex(),
        )

    def _one(self, kind: Kind) -> Entry:
        found = [entry for entry in self.last if entry.kind is kind]
        if not found:
            raise LedgerError(f"round {self.round} of the ledger must have a {kind.name} entry, got none")
        return found[-1]


def _counting(entries: Iterable[Entry]) -> tuple[list[Entry], int]:
    """The entries of a round that count, and how often it began again."""
    counting: list[Entry] = []
    restarts = 0
    for entry in entries:
        if entry.kind is Kind.RESTART:
            counting, restarts = [], entry.step
        else:
            counting.append(entry)
    return counting, restarts


def restart_entry(standing: Standing) -> Entry:
    """The entry with which the open round begins again."""
    return Entry(Kind.RESTART, standing.round + 1, Sender(Role.OPERATOR), b"", standing.restarts + 1)


def check_arrays(layout: Layout, model: NamedArrays, *, shapes: bool = True) -> None:
    """Raise ConfigError unless a run's model has the arrays of this layout, whatever their precision.

    Without `shapes` only their names count: not every strategy gives back what it got.
    """
    found = Layout.of(model)
    names = {*layout.shapes, *found.shapes}
    if not shapes:
        names = layout.shapes.keys() ^ found.shapes.keys()
    odd = sorted(name for name in names if _array(layout, name) != _array(found, name))
    if odd:
        raise ConfigError(
            f"`initial_arrays` must be like those of the run that goes on, got {odd[0]!r} with "
            f"{_array(layout, odd[0])} for {_array(found, odd[0])}"
        )


def _array(layout: Layout, name: str) -> str:
    if name not in layout.shapes:
        return "nothing"
    kinds = {"f": "floats", "b": "truth values"}
    return f"{list(layout.shapes[name])} {kinds.get(layout.dtypes[name].kind, 'whole numbers')}"


def _told(payload: bytes) -> Mapping[str, object]:
    """What RULES say, by name."""
    try:
        rules = RunRules.decode(payload)
    except LedgerError as error:
        return {"RULES": str(error)}
    consensus = {} if rules.consensus is None else vars(rules.consensus)
    mixing = None if rules.mixing is None else rules.mixing.round(3).tolist()
    own = {"strategy": rules.strategy, "defences": rules.defences, "edge_rule": rules.edge_rule}
    return own | consensus | {"mixing": mixing}
