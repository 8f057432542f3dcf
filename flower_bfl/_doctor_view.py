"""The doctor's findings on a terminal: a line a check, what to do beneath; and JSON for programs."""

import textwrap
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from flower_bfl.doctor import Finding

_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
_STATE, _WHAT = 6, 19  # widths

Part = tuple[str, Callable[[], Iterable[Finding]]]
"""A heading, and what makes the findings beneath it."""


def print_findings(parts: Iterable[Part], *, as_json: bool) -> bool:
    """Print findings as they come; whether nothing is wrong."""
    console = Console(highlight=False)
    kept: dict[str, list[Finding]] = {}
    with nullcontext() if as_json else console.status("checking"):
        for heading, findings in parts:
            if not as_json:
                console.print(Text(heading, "bold"))
            kept[heading] = []
            for finding in findings():
                kept[heading].append(finding)
                if not as_json:
                    _print(console, finding)
    wrong = sum(finding.state == "wrong" for found in kept.values() for finding in found)
    if as_json:
        found = [{"part": part} | asdict(finding) for part, own in kept.items() for finding in own]
        console.print_json(data={"wrong": wrong, "findings": found})
    else:
        told = "Nothing is wrong." if not wrong else f"{wrong} wrong: what to do is beneath each."
        console.print(Text(told, _STYLES["wrong" if wrong else "ok"]))
    return not wrong


def _print(console: Console, finding: Finding) -> None:
    margin = " " * (_STATE + _WHAT)
    lines = _wrapped(console, finding.told)
    state = (finding.state.ljust(_STATE), _STYLES[finding.state])
    console.print(Text.assemble(state, f"{finding.what.ljust(_WHAT - 1)} {lines[0]}"), soft_wrap=True)
    for line in lines[1:]:
        console.print(Text(margin + line), soft_wrap=True)
    sentence, *commands = _plain(finding.to_do).split("\n")
    for place, line in enumerate(_wrapped(console, sentence, "-> ") if sentence else []):
        console.print(Text(margin + ("   " if place else "") + line), soft_wrap=True)
    for command in commands:  # each in one line, to be copied
        console.print(Text(f"{' ' * _STATE}{command}", "bold"), soft_wrap=True)


def _wrapped(console: Console, text: str, mark: str = "") -> list[str]:
    width = max(console.width - _STATE - _WHAT - len(mark), 30)
    return textwrap.wrap(mark + _plain(text).replace("\n", " "), width, break_on_hyphens=False) or [""]


def _plain(text: str) -> str:
    """Text that no file's name can make a terminal's command of."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
