"""The checks of a run folder in order, and whether the run can go on."""

import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from flower_bfl.doctor import _access, _record
from flower_bfl.doctor._findings import Finding, guarded
from flower_bfl.doctor._seen import CHAIN, MODEL, ROUNDS, Seen, quoted

_SOON_S = 60.0
_CHAIN_S = 1800.0  # to read it; a chain of a hundred thousand entries takes minutes
_AUDIT_S = 86_400.0


def check_run_folder(folder: Path, *, audited: bool = False) -> Iterator[Finding]:
    """Findings about what a run left behind, the verdict last; nothing in the folder is changed."""
    seen = Seen(folder)
    there = guarded("folder", partial(_access.check_folder, seen))
    yield from there
    if any(finding.state == "wrong" for finding in there):
        return
    # In the order opposite to that of writing: of a run that goes on, the chain is ahead of the rest.
    yield from guarded("folder", partial(_record.read_files, seen), _CHAIN_S)
    checks: list[tuple[str, Callable[[Seen], Iterator[Finding]], float]] = [
        ("links", _access.check_links, _SOON_S),
        ("permissions", _access.check_permissions, _SOON_S),
        ("in use", _access.check_in_use, _SOON_S),
        ("chain", _record.check_node if seen.on_node else _record.check_chain, _CHAIN_S),
        ("payloads", _record.check_payloads_of_node if seen.on_node else _record.check_payloads, _CHAIN_S),
        (ROUNDS, _record.check_rounds, _SOON_S),
        (MODEL, _record.check_model, _SOON_S),
        ("leftovers", _record.check_leftovers, _SOON_S),
        ("disk", _access.check_disk, _SOON_S),
        *([("audit", _audit, _AUDIT_S)] if audited else []),
        ("verdict", _verdict, _SOON_S),
    ]
    for what, check, limit_s in checks:
        yield from guarded(what, partial(check, seen), limit_s)


def _audit(seen: Seen) -> Iterator[Finding]:
    if not (seen.folder / CHAIN).is_file():
        yield Finding("audit", "note", "there is no chain in the folder to be audited")
        return
    from flower_bfl.audit import audit

    report = audit(seen.folder)
    if report.finding is None:
        yield Finding("audit", "ok", report.verdict)
    else:
        command = f"see all that was found:\nflower-bfl audit {quoted(seen.folder)}"
        where = report.finding.where or "the run as a whole"
        yield Finding("audit", "wrong", f"{report.verdict}: {where}: {report.finding.rule}", command)


def _verdict(seen: Seen) -> Iterator[Finding]:
    folder, chain = quoted(seen.folder.resolve()), seen.chain
    if seen.in_use:
        yield Finding("verdict", "ok", "the run goes on right now", "look again when it has ended")
    elif seen.blockers:
        told = "the run cannot go on: " + "; ".join(dict.fromkeys(seen.blockers))
        yield Finding("verdict", "note" if chain is None and not seen.on_node else "wrong", told)
    elif seen.on_node:
        told = "whether and where the run can go on, its node knows"
        yield Finding("verdict", "note", told, "`RpcLedger(URL, folder=...)` and `resume=True` go on with it")
    elif chain is not None:
        resume = shlex.quote(f'resume="{seen.folder.resolve()}"')
        last, closed = chain.last, seen.wal is None  # a killed process leaves its WAL
        if closed and not chain.open and last > 0 and len(seen.told) == last + 1:
            told = f"the run ended with round {last}, and could go on with round {last + 1}"
        elif last < 0:
            told = "the run was broken off before it had a model, and can begin anew"
        else:
            told = f"the run was broken off, and can go on with round {last + 1}"
        yield Finding(
            "verdict",
            "ok",
            told,
            "to go on, with the settings it had (in an app of your own: `resume=True`); to prove it:\n"
            f"flower-bfl run APP --run-config {resume}\nflower-bfl audit {folder}",
        )
    else:
        yield Finding("verdict", "wrong", "whether the run can go on cannot be told: its chain was not read")
