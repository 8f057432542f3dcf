"""What the audit of a run says, for the banner at the top of its page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flower_bfl._ledger_view import checked_in_words
from flower_bfl.audit import AuditReport, Incident, audit


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what it rests on."""

    state: Literal["holds", "fails", "none"]
    sentence: str
    facts: tuple[tuple[str, str], ...] = ()
    incidents: tuple[Incident, ...] = ()


NOT_ASKED = Verdict("none", "Not audited: the audit was left out when this page was made.")
_NO_LEDGER = Verdict("none", "No ledger: nothing to audit.")
_ELSEWHERE = Verdict(
    "none", "The run's ledger is not in this folder: audit it where it is, with `flower-bfl audit --rpc`."
)


def verdict(folder: Path, *, on_a_ledger: bool) -> Verdict:
    """Audit the run in a folder; `on_a_ledger` is whether its rounds name blocks."""
    if not (folder / "chain" / "chain.sqlite").is_file():
        return _ELSEWHERE if on_a_ledger else _NO_LEDGER
    return of_report(audit(folder))


def of_report(report: AuditReport) -> Verdict:
    """The banner of an audit."""
    facts: list[tuple[str, str]] = []
    if (finding := report.finding) is not None:
        facts += [("where", finding.where or "the run as a whole"), ("rule", finding.rule)]
        facts += [("expected", finding.expected), ("found", finding.found)]
    facts.append(("checked", checked_in_words(report.checked)))
    facts.append(("head of the last block checked", report.head or "none"))
    facts.append(("operator", report.operator))
    facts.append(("own keys", ", ".join(report.own_keys) or "none: whoever ran it signed for everybody"))
    facts += [("note", note) for note in report.notes]
    sentence = report.verdict[:1].upper() + report.verdict[1:] + "."
    return Verdict("holds" if finding is None else "fails", sentence, tuple(facts), report.incidents)
