"""What a check comes to."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Parameters
    ----------
    what : was looked at.
    state : "note" is worth knowing, and nothing is wrong.
    told : what was found.
    to_do : about it. The first line is a sentence, those after it are commands or files.
    """

    what: str
    state: State
    told: str
    to_do: str = ""


def guarded(what: str, check: Callable[[], Iterable[Finding]], limit_s: float = 60.0) -> list[Finding]:
    """What a check finds; that it failed, or did not end in time, is a finding as well."""
    found: list[Finding] = []

    def attempt() -> None:
        try:
            found.extend(check())
        except BaseException as error:  # a broken library may raise anything
            found.append(Finding(what, "wrong", f"could not be checked: {error!r}"))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [*found, Finding(what, "wrong", f"no answer within {limit_s:g} s")]
    return found
