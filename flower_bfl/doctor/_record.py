"""Checks of what a run folder holds: chain, payloads, reports, the model, and what a kill left over."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import file_digest
from typing import TYPE_CHECKING

from flower_bfl.doctor._findings import Finding
from flower_bfl.doctor._seen import (
    CHAIN,
    FOLDERS,
    MODEL,
    NODE,
    PAYLOADS,
    ROUNDS,
    Seen,
    count,
    entries,
    quoted,
    some,
    wal_of,
)
from flower_bfl.types import RoundReport

if TYPE_CHECKING:
    from flower_bfl.doctor._chain import Chain

_TEMPORARY = re.compile(r".*\.part|\.[0-9a-f]{64}-\d+-\d+|\.chain\.json-\d+")
_LISTED = 10
_PAYLOAD = re.compile(r"([0-9a-f]{64})\.safetensors")


def read_files(seen: Seen) -> Iterator[Finding]:
    """Reports and model, to be held against the chain."""
    rounds, model = seen.folder / ROUNDS, seen.folder / MODEL
    if rounds.is_file():
        seen.lines = rounds.read_bytes().splitlines(keepends=True)
    if model.is_file():
        with model.open("rb") as file:
            seen.model = file_digest(file, "sha256").hexdigest()
    seen.wal = wal_of(seen.folder)
    yield from ()


def check_node(seen: Seen) -> Iterator[Finding]:
    """What the file says about a chain on a node."""
    try:
        fields = json.loads((seen.folder / NODE).read_bytes())
        contract, chain_id = fields["contract"], fields["chain_id"]
        if not re.fullmatch("0x[0-9a-fA-F]{40}", contract) or type(chain_id) is not int:
            raise ValueError(f"no contract and chain: {contract!r:.60}, {chain_id!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        seen.blockers.append(f"{NODE} cannot be read")
        yield Finding("chain", "wrong", f"{NODE} cannot be read: {error!r}", "restore it from a backup")
        return
    payloads = quoted(seen.folder / PAYLOADS)
    yield Finding(
        "chain",
        "note",
        f"on a node, chain {chain_id}, contract {contract}",
        f"ask the node:\nflower-bfl ledger --rpc URL --contract {contract} --payloads {payloads}",
    )


def check_chain(seen: Seen) -> Iterator[Finding]:
    """How far the chain goes, and whether it can be read."""
    if not (seen.folder / CHAIN).is_file():
        seen.blockers.append("there is no chain")
        yield Finding("chain", "note", f"there is no {CHAIN}: the run had no ledger, or one in memory")
        return
    from flower_bfl.doctor._chain import read_chain

    chain = seen.chain = read_chain(seen.folder / "chain")
    last = chain.last
    if seen.wal != wal_of(seen.folder) and not seen.in_use:
        seen.in_use = True  # without a run folder, or on another machine
        yield Finding("in use", "note", "the chain grows while it is read: the run goes on right now")
    finished = f"round {last} is finished" if last >= 0 else "no round is finished"
    if chain.damage:
        seen.blockers.append("the chain cannot be read")
        yield Finding(
            "chain",
            "wrong",
            f"cannot be read beyond round {last}: {chain.damage}"
            if last >= 0
            else f"cannot be read: {chain.damage}",
            "restore the folder chain/ from a backup; if another version of flower-bfl made it, use that one",
        )
    elif chain.rules:
        seen.blockers.append("its RULES are of another version")
        yield Finding(
            "chain",
            "wrong",
            f"{finished}, but its RULES cannot be read: {chain.rules}",
            "use the version that made it",
        )
    elif chain.open and not seen.in_use:
        told = f"{finished}, round {last + 1} was broken off after {count(chain.open, 'entry', 'entries')}"
        yield Finding("chain", "note", told)
    elif chain.open:
        yield Finding("chain", "ok", f"{finished}, round {last + 1} under way")
    else:
        yield Finding("chain", "ok", f"{finished}, none is open")


def check_payloads(seen: Seen) -> Iterator[Finding]:
    """Whether the payloads that the chain names are there."""
    chain = seen.chain
    if chain is None:
        return
    if chain.bad:
        told_of = count(len(chain.bad), "payload is", "payloads are") + " missing or changed"
        seen.blockers += [told_of] if chain.end else []
        kinds = Counter(found.partition(":")[0] for found in chain.bad.values())
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        files = [f"{PAYLOADS}/{name}  # {found}" for name, found in list(chain.bad.items())[:_LISTED]]
        if len(chain.bad) > _LISTED:
            files.append(f"# and {len(chain.bad) - _LISTED} more")
        yield Finding(
            "payloads",
            "wrong",
            f"of {chain.payloads} that the chain names, {told}: the run cannot be proved"
            + (", nor go on" if chain.end else ", but go on"),
            "\n".join(["restore them from a backup; the name is the SHA-256 of what a file holds:", *files]),
        )
    else:
        if not chain.payloads:
            yield Finding("payloads", "ok", "all are on the chain itself")
            return
        until = " as far as the chain could be read" if chain.damage else ""
        yield Finding(
            "payloads", "ok", f"{count(chain.payloads, 'file is', 'files are')} there and unchanged{until}"
        )


def check_payloads_of_node(seen: Seen) -> Iterator[Finding]:
    """What can be said without the chain: whether each file has the digest that is its name."""
    bad, good = [], 0
    for path in entries(seen.folder / PAYLOADS):
        if (name := _PAYLOAD.fullmatch(path.name)) and path.is_file():
            with path.open("rb") as file:
                fits = file_digest(file, "sha256").hexdigest() == name[1]
            good += fits
            bad += [] if fits else [path.name]
    if bad:
        seen.blockers.append("payloads are changed")
        to_do = f"restore the files in {PAYLOADS} from a backup"
        yield Finding(
            "payloads", "wrong", some(bad, "does not have", "do not have") + " the digest in the name", to_do
        )
    else:
        yield Finding(
            "payloads",
            "ok",
            f"{count(good, 'file', 'files')} unchanged; the node knows whether any is missing",
        )


def check_rounds(seen: Seen) -> Iterator[Finding]:
    """Whether rounds.jsonl fits the chain; the line of the last round may be still to come."""
    chain, told = seen.chain, len(seen.told)
    torn = seen.lines is not None and told < len(seen.lines)
    lines, end = count(told, "line", "lines"), "; the last is cut off" if torn else ""
    if seen.lines is None and seen.model is None:
        yield Finding(ROUNDS, "note", "there is none: the run kept a ledger alone")
    elif seen.lines is None:
        seen.blockers.append(f"there is no {ROUNDS}")
        yield Finding(ROUNDS, "wrong", "there is none", "restore it from a backup")
    elif seen.in_use:
        yield Finding(ROUNDS, "ok", f"{lines} so far")
    elif chain is None or chain.damage:
        yield Finding(ROUNDS, "note" if torn else "ok", f"{lines}{end}")
    elif trouble := next(filter(None, (_trouble(*each, chain) for each in enumerate(seen.told))), ""):
        seen.blockers.append(f"{ROUNDS} does not fit the chain")
        yield Finding(
            ROUNDS, "wrong", trouble, "restore it from a backup, or the folder chain/: which is older?"
        )
    elif told < chain.last:
        seen.blockers.append(f"lines of {ROUNDS} are missing")
        last = chain.last - 1
        rounds = f"that of round {last} is" if told == last else f"those of rounds {told} to {last} are"
        missing = f"{lines}{end}; {rounds} missing, which the chain has"
        yield Finding(ROUNDS, "wrong", missing, "restore it from a backup")
    elif told == chain.last:
        how = "cut off" if torn else "missing"
        yield Finding(
            ROUNDS, "note", f"the line of round {told} is {how}: it is written anew when the run goes on"
        )
    elif torn:
        yield Finding(ROUNDS, "note", f"{lines}{end}: it is taken away when the run goes on")
    else:
        yield Finding(ROUNDS, "ok", f"{lines}, as on the chain")


def _trouble(k: int, line: bytes, chain: "Chain") -> str:
    """What is wrong with the line of round k."""
    if k > chain.last:
        return f"goes on after round {chain.last}, with which the chain ends: an older copy, or cut short"
    try:
        report = RoundReport.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"line {k + 1} cannot be read: {error!r}"
    model, head = chain.sealed[k]
    if report.round != k:
        return f"line {k + 1} is of round {report.round}, not {k}"
    if report.head != head:
        return f"line {k + 1} has another head than the chain"
    if k and report.model_digest != model:  # the line of round 0 names no model
        return f"line {k + 1} has another model than the chain"
    return ""


def check_model(seen: Seen) -> Iterator[Finding]:
    """Whether model.safetensors is the last model; the one before it, where the last was not reported yet."""
    chain, told = seen.chain, len(seen.told) - 1
    if chain is None or chain.damage or chain.last < 0 or (seen.lines is None and seen.model is None):
        return
    digests = [model for model, _ in chain.sealed]
    own = seen.folder / PAYLOADS / f"{digests[-1]}.safetensors"
    mend = "go on with the run, which writes it anew"
    if own.is_file():
        mend = f"it is among the payloads:\ncp {quoted(own)} {quoted(seen.folder / MODEL)}"
    if seen.in_use:
        yield Finding(MODEL, "ok", "is kept up to date")
    elif seen.model is None and told < 1:
        yield Finding(MODEL, "note", "there is none yet: it comes with the first round that is reported")
    elif seen.model is None:
        yield Finding(MODEL, "wrong", "there is none", mend)
    elif seen.model == digests[-1]:
        yield Finding(MODEL, "ok", f"is that of round {chain.last}")
    elif seen.model in digests:
        k = digests.index(seen.model)
        old = f"is that of round {k}, not {chain.last}"
        if k < told:
            yield Finding(MODEL, "wrong", old, mend)
        else:
            yield Finding(MODEL, "note", f"{old}: it is written anew when the run goes on")
    else:
        yield Finding(MODEL, "wrong", "is no model of this run's chain", mend)


def check_leftovers(seen: Seen) -> Iterator[Finding]:
    """What a killed process leaves lying about."""
    places = [path for name in FOLDERS for path in entries(seen.folder / name)]
    temporary = [path.name for path in places if _TEMPORARY.fullmatch(path.name)]
    unasked = seen.chain.unasked if seen.chain is not None and not seen.chain.damage else []
    unasked = [name for name in unasked if not _TEMPORARY.fullmatch(name)]
    told = []
    if temporary:
        told.append(count(len(temporary), "temporary file", "temporary files"))
    if unasked:
        told.append(count(len(unasked), "payload file", "payload files") + " to which nothing refers")
    if not told or seen.in_use:
        yield Finding("leftovers", "ok", "none")
    else:
        example = f", such as {[*temporary, *unasked][0]}"
        yield Finding("leftovers", "note", f"{' and '.join(told)}, harmless after a kill{example}")
