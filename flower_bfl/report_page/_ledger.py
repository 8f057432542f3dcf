"""The ledger for the page: a row for each BFL block, and every entry in a form that takes little room."""

import json
from base64 import b64encode
from collections.abc import Hashable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flower_bfl._ledger_view import BlockRow, Browser, TransactionRow, open_folder
from flower_bfl.errors import LedgerError

_MOST_ENTRIES = 15_000  # on a page: about two megabytes of it
_FALLBACK = "the chain cannot be read"


@dataclass(frozen=True)
class LedgerPage:
    """What the page shows of a ledger."""

    summary: dict[str, object]
    blocks: tuple[BlockRow, ...]
    entries: tuple[TransactionRow, ...]
    left_out: int  # entries for which there is no room
    links: tuple[tuple[int, int], ...]  # of the edge servers' graph
    servers: int  # 0 if the ledger does not say
    strategy: str
    defences: tuple[str, ...]
    damage: str  # why reading ended early

    def compact(self) -> dict[str, object]:
        """For the page's script: repeated words once, digests and hashes as one string of bytes each.

        A row is: round, block, place in it, kind, step, sender, bytes, where the payload is, gas.
        """
        kinds, senders, places = _Words(), _Words(), _Words()
        rows = [
            [
                row.round,
                row.block,
                row.transaction,
                kinds.place(row.kind.lower()),
                row.step,
                senders.place((row.sender, row.account, row.own_key)),
                row.bytes,
                places.place(row.payload),
                row.gas,
            ]
            for row in self.entries
        ]
        return {
            "kinds": kinds.words,
            "senders": senders.words,
            "places": places.words,
            "rows": rows,
            "digests": _packed(row.digest for row in self.entries),
            "hashes": _packed(row.hash.removeprefix("0x") for row in self.entries),
        }


def read_ledger(folder: Path, most: int = _MOST_ENTRIES) -> LedgerPage | None:
    """The ledger of a run folder, as far as it can be read; None if there is none."""
    if not (folder / "chain" / "chain.sqlite").is_file():
        return None
    try:
        chain, store = open_folder(folder)
        with closing(chain):
            browser = Browser(chain, store, whole=True)
            return _page(browser, most)
    except LedgerError as error:
        return _unreadable(str(error))
    except Exception as error:  # whatever a damaged file makes of a library
        return _unreadable(f"{_FALLBACK}: {error!r:.200}")


def _page(browser: Browser, most: int) -> LedgerPage:
    run = browser.run
    mixing = None if run is None else run.mixing
    pairs = () if mixing is None else np.argwhere(np.triu(mixing, 1) != 0).tolist()
    described = [] if run is None else [*run.defences, run.edge_rule]
    described = [each for each in described if each]
    return LedgerPage(
        summary=browser.summary(),
        blocks=tuple(browser.rounds),
        entries=tuple(browser.transactions[:most]),
        left_out=max(0, len(browser.transactions) - most),
        links=tuple((int(a), int(b)) for a, b in pairs),
        servers=0 if mixing is None else len(mixing),
        strategy="" if run is None else run.strategy,
        defences=tuple(map(_in_words, described)),
        damage=browser.damage,
    )


def _in_words(description: str) -> str:
    """A defence's description in JSON, as in "Replay, arithmetic exact"."""
    try:
        fields = dict(json.loads(description))
        name = fields.pop("name")
    except (ValueError, TypeError, KeyError, RecursionError):
        return description
    return ", ".join([str(name), *(f"{field} {value}" for field, value in fields.items())])


def _unreadable(damage: str) -> LedgerPage:
    return LedgerPage({}, (), (), 0, (), 0, "", (), damage)


class _Words:
    """Words in the order in which they first came, and the place of each."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}

    @property
    def words(self) -> Sequence[Hashable]:
        return list(self._places)

    def place(self, word: Hashable) -> int:
        return self._places.setdefault(word, len(self._places))


def _packed(digests: Iterable[str]) -> str:
    return b64encode(bytes.fromhex("".join(digests))).decode()
