"""One HTML page about a run, from what its folder holds: it needs no network, and no server.

The numbers are worked out first (`_curves`, `_events`, `_map`, `_ledger`, `_verdict`), then placed
(`_charts`), and last written into `page.html.jinja` with `page.css` and `page.js`. Everything that comes from
a run is text there: Jinja escapes it, and a policy in the page lets only its own style and script act.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from flower_bfl.errors import RunFolderError
from flower_bfl.report import Round, finished_rounds, round_numbers, series
from flower_bfl.report_page._charts import drawn
from flower_bfl.report_page._curves import Curves, curves
from flower_bfl.report_page._events import Event, Strip, absences, incidents, strip
from flower_bfl.report_page._ledger import LedgerPage, read_ledger
from flower_bfl.report_page._map import NetworkMap, network_map, read_positions
from flower_bfl.report_page._verdict import NOT_ASKED, Verdict, verdict

PAGE = "report.html"

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class RunPage:
    """Everything that the page says."""

    name: str  # of the folder
    figures: tuple[tuple[str, str, str], ...]  # value, what it is, more about it
    facts: tuple[tuple[str, str], ...]
    verdict: Verdict
    curves: Curves
    map: NetworkMap | None
    strip: Strip | None
    incidents: tuple[Event, ...]
    absences: tuple[Event, ...]
    ledger: LedgerPage | None


def write_page(folder: Path, output: Path | None = None, *, audited: bool = True) -> tuple[Path, Verdict]:
    """Write the page of the run in a folder, and say what the audit came to.

    Args:
        folder: what a run left behind.
        output: where to write; None: `report.html` in the folder.
        audited: whether to audit the run, if it has a ledger.

    Raises:
        RunFolderError: there is no finished round, a line of `rounds.jsonl` is damaged, or the page cannot be
            written.
        ModuleNotFoundError: jinja2 is not installed (`pip install 'flower-bfl[report]'`).
    """
    path = folder / PAGE if output is None else output
    page = read_page(folder, audited=audited)
    text = page_text(page)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {path} ({error})") from error
    return path, page.verdict


def read_page(folder: Path, *, audited: bool = True) -> RunPage:
    """What there is to say about the run in a folder; raises RunFolderError as `write_page`."""
    rounds = _checked_rounds(folder)
    ledger = read_ledger(folder)
    on_a_ledger = any(one.get("head") for one in rounds)
    said = verdict(folder, on_a_ledger=on_a_ledger) if audited else NOT_ASKED
    links = () if ledger is None else ledger.links
    servers = _edge_servers(rounds, ledger)
    written = datetime.fromtimestamp((folder / "rounds.jsonl").stat().st_mtime, UTC)
    return RunPage(
        name=folder.resolve().name,
        figures=_figures(rounds, servers),
        facts=_facts(rounds, ledger, f"{written:%Y-%m-%d %H:%M} UTC"),
        verdict=said,
        curves=curves(rounds),
        map=network_map(rounds, links, servers, read_positions(folder)),
        strip=strip(rounds, servers),
        incidents=incidents(rounds, said.incidents),
        absences=absences(rounds),
        ledger=ledger,
    )


def page_text(page: RunPage) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = {
        "ledger": None if page.ledger is None else page.ledger.compact(),
        "map": None if page.map is None else page.map.compact(),
    }
    return environment.get_template("page.html.jinja").render(
        page=page,
        drawn=drawn,
        data=data,
        style=Markup(style),  # ours, from the file beside this one
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _hash(text: str) -> str:
    """The name of an inline style or script in the page's policy."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _checked_rounds(folder: Path) -> list[Round]:
    rounds = finished_rounds(folder)
    for line, one in enumerate(rounds, start=1):
        number = one.get("round", line)
        if type(number) is not int or not 0 <= number < 2**31:
            where = f"line {line} of {folder / 'rounds.jsonl'}"
            raise RunFolderError(f"`round` in {where} must be a whole number, got {number!r:.40}")
    return rounds


def _edge_servers(rounds: Sequence[Round], ledger: LedgerPage | None) -> int:
    if ledger is not None and ledger.servers:
        return ledger.servers
    found = [one[key] for one in rounds for key in ("server_devices", "server_data") if one.get(key)]
    return max((len(each) for each in found if isinstance(each, list)), default=0)


def _figures(rounds: list[Round], servers: int) -> tuple[tuple[str, str, str], ...]:
    """The run in a few numbers."""
    found = [(str(max(round_numbers(rounds))), "rounds", "")]
    numbers, accuracy = series(rounds, "evaluate", "accuracy")
    if accuracy.size:
        best = int(accuracy.argmax())
        found.append((f"{accuracy[-1]:.2%}", "accuracy", f"best {accuracy[best]:.2%}, round {numbers[best]}"))
    if servers:
        found.append((str(servers), "edge server" if servers == 1 else "edge servers", ""))
    _, devices = series(rounds, "devices")
    if devices.any():
        found.append((f"{devices.max():.0f}", "devices", "most in one round"))
    _, transactions = series(rounds, "transactions")
    if transactions.any():
        _, gas = series(rounds, "gas")
        found.append((f"{transactions.sum():,.0f}", "transactions", f"{gas.sum() / 1e6:,.1f} Mgas"))
    _, clock = series(rounds, "simulated_seconds")
    if clock.size:
        found.append((f"{clock[-1]:,.1f} s", "simulated time", f"{clock[-1] / clock.size:,.2f} s a round"))
    return tuple(found)


def _facts(rounds: Sequence[Round], ledger: LedgerPage | None, written: str) -> tuple[tuple[str, str], ...]:
    """What the run was, and the names of what came of it."""
    found = [("last written", written)]
    if ledger is not None and ledger.strategy:
        found.insert(0, ("strategy", ledger.strategy))
    if ledger is not None and ledger.defences:
        found.append(("defences", "; ".join(ledger.defences)))
    for name, key in (("final model, SHA-256", "model_digest"), ("head of the ledger", "head")):
        last = next((one[key] for one in reversed(rounds) if one.get(key)), None)
        if last is not None:
            found.append((name, str(last)))
    return tuple(found)
