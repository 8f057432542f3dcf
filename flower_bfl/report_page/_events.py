"""Who was attacked, accused, suspected, voted out or left out, round by round."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flower_bfl.audit import Incident
from flower_bfl.report import Round, round_numbers
from flower_bfl.types import in_words

_MOST_SERVERS = 64  # that are shown round by round


@dataclass(frozen=True)
class Event:
    """Something that happened to somebody."""

    rounds: str  # "4", or "4 to 13"
    who: str
    what: str
    outcome: str = ""


@dataclass(frozen=True)
class Strip:
    """The edge servers over the rounds: "leader", "out" (voted out), "quarantined" or ""."""

    rounds: tuple[int, ...]
    states: tuple[tuple[str, ...], ...]  # of each edge server, in each of the rounds


def incidents(rounds: Sequence[Round], audited: Iterable[Incident]) -> tuple[Event, ...]:
    """Attacks, accusations, suspicions and quarantine, in the order of rounds."""
    upheld = {(one.round, f"{one.server} {one.offence} {one.step}"): one for one in audited}
    found: list[tuple[int, Event]] = []
    for number, one in zip(round_numbers(list(rounds)), rounds, strict=True):
        found += [(number, Event(str(number), "attacker", text)) for text in texts(one, "attacked")]
        for each in dicts(one, "accused"):
            key = f"{each.get('server')} {each.get('offence')} {each.get('step')}"
            found.append((number, _accused(number, each, upheld.pop((number, key), None))))
        for each in dicts(one, "suspected"):
            why = str(each.get("reason", ""))
            found.append((number, Event(str(number), str(each.get("who", "")), why, "suspected, left out")))
    for left in upheld.values():  # on the ledger, and not in rounds.jsonl
        told = {"server": left.server, "offence": left.offence, "step": left.step, "votes": left.votes}
        found.append((left.round, _accused(left.round, told | {"voted_out": left.voted_out}, left)))
    for key, what in (("quarantined", "in quarantine"), ("cut_off", "cut off by the others' quarantine")):
        found += [(first, Event(span, f"edge server {m}", what)) for first, span, m in _spans(rounds, key)]
    return tuple(event for _, event in sorted(found, key=lambda pair: pair[0]))


def absences(rounds: Sequence[Round]) -> tuple[Event, ...]:
    """Who was left out, kept its data or was down, and rounds without their controller."""
    found = []
    for number, one in zip(round_numbers(list(rounds)), rounds, strict=True):
        for key, what in (("left_out", "left out"), ("kept_local", "kept its data")):
            for each in dicts(one, key):
                who, why = str(each.get("who", "")), str(each.get("reason", ""))
                found.append(Event(str(number), who, why, what))
        found += [Event(str(number), text, "", "down") for text in texts(one, "down")]
        if one.get("fallback"):
            found.append(Event(str(number), "controller", str(one["fallback"]), "another decision"))
    return tuple(found)


def strip(rounds: Sequence[Round], servers: int) -> Strip | None:
    """Leaders and quarantine over the rounds; None if nobody was accused or barred, or they are too many."""
    later = [(n, one) for n, one in zip(round_numbers(list(rounds)), rounds, strict=True) if n > 0]
    if not 0 < servers <= _MOST_SERVERS or not any(
        one.get("accused") or one.get("quarantined") for _, one in later
    ):
        return None
    return Strip(
        tuple(number for number, _ in later),
        tuple(tuple(_state(one, server) for _, one in later) for server in range(servers)),
    )


def _state(one: Round, server: int) -> str:
    if any(each.get("voted_out") and each.get("server") == server for each in dicts(one, "accused")):
        return "out"
    if server in numbers(one.get("quarantined")):
        return "quarantined"
    return "leader" if one.get("leader") == server else ""


def _accused(number: int, told: dict[str, Any], incident: Incident | None) -> Event:
    step = told.get("step")
    what = in_words(str(told.get("offence", "")), step if isinstance(step, int) else 0)
    votes = told.get("votes")
    by = f" by {votes} votes" if votes is not None and votes != 1 else " by 1 vote" if votes else ""
    outcome = f"voted out{by}" if told.get("voted_out") else f"accused{by}, not enough"
    if incident is not None:
        outcome += "; the ledger bears it out" if incident.upheld else "; the ledger does not bear it out"
    return Event(str(number), f"edge server {told.get('server')}", what, outcome)


def _spans(rounds: Sequence[Round], key: str) -> list[tuple[int, str, int]]:
    """First round, rounds in words and edge server, for each run of rounds in which the key names it."""
    listed = list(zip(round_numbers(list(rounds)), (numbers(one.get(key)) for one in rounds), strict=True))
    found = []
    for server in sorted({m for _, named in listed for m in named}):
        for is_in, group in groupby(listed, key=lambda pair: server in pair[1]):
            if is_in:
                span = [number for number, _ in group]
                words = str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}"
                found.append((span[0], words, server))
    return found


# -- what may be anything in a file that somebody else wrote -------------------------------------------------


def dicts(one: Round, key: str) -> list[dict[str, Any]]:
    """The objects in a list."""
    found = one.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def texts(one: Round, key: str) -> list[str]:
    """The strings in a list."""
    found = one.get(key)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def numbers(found: object) -> list[int]:
    """The whole numbers in a list that can be those of a device or an edge server."""
    if not isinstance(found, list):
        return []
    return [each for each in found if type(each) is int and 0 <= each < 2**31]
