"""The page of a run: its ledger, what a hostile run can make of it, runs that lack something, the command."""

import json
import re
import shutil
import sys
from base64 import b64decode
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from toy_run import Toy, server

from flower_bfl._ledger_view import Browser, open_folder
from flower_bfl.chain_adapter import Kind
from flower_bfl.errors import LedgerError, RunFolderError
from flower_bfl.report_page import page_text, read_page, write_page
from flower_bfl.report_page._ledger import read_ledger

ACCUSED = {"server": 1, "offence": "state", "step": 3, "votes": 2, "voted_out": True}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"


def a_round(number: int, **more: Any) -> dict[str, Any]:
    return {"round": number, "evaluate": {"accuracy": number / 10, "loss": 2.0 / (number + 1)}} | more


def write(folder: Path, *rounds: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in rounds)
    (folder / "rounds.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(rounds=3, own_keys=(1,), offloads={1: 0, 4: 2}).record(tmp_path_factory.mktemp("run"))


class Page(HTMLParser):
    """Elements, text and data of a page, as a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.data = ""
        self._in_data = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_data = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        if self._in_data:
            self.data += data
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# -- the ledger ----------------------------------------------------------------------------------------------


def test_every_entry_is_in_the_compact_form(toy):
    page = read_ledger(toy.folder)
    assert page is not None and not page.damage
    compact = json.loads(json.dumps(page.compact()))
    digests, hashes = b64decode(compact["digests"]), b64decode(compact["hashes"])
    told = []
    for place, row in enumerate(compact["rows"]):
        number, block, transaction, kind, step, sender, size, where, gas = row
        name, account, own_key = compact["senders"][sender]
        told.append(
            {
                "round": number, "block": block, "transaction": transaction, "step": step,
                "kind": compact["kinds"][kind].upper(), "sender": name, "account": account,
                "own_key": own_key, "bytes": size,
                "payload": compact["places"][where], "gas": gas,
                "digest": digests[32 * place :][:32].hex(), "hash": f"0x{hashes[32 * place :][:32].hex()}",
            }
        )  # fmt: skip
    chain, store = open_folder(toy.folder)
    expected = [vars(row) for k in range(4) for row in Browser(chain, store, k).transactions]
    chain.close()
    assert told == expected
    assert (page.servers, page.strategy, page.links) == (3, "Toy", ((0, 1), (1, 2)))  # a line


def test_what_there_is_no_room_for_is_counted(toy):
    page = read_ledger(toy.folder, most=10)
    whole = read_ledger(toy.folder)
    assert page is not None and whole is not None
    assert (len(page.entries), page.left_out) == (10, len(whole.entries) - 10)
    assert page.blocks == whole.blocks


def test_a_damaged_chain_is_shown_up_to_the_damage(toy):
    class Damaged:
        """A ledger whose round 2 cannot be read to its end."""

        transactions = gas = 0

        def gas_of(self, block):
            return chain.gas_of(block)

        def recorded(self):
            for at in chain.recorded():
                if (at.entry.round, at.entry.kind) == (2, Kind.MODEL):
                    raise LedgerError("block 12, transaction 0: something is odd")
                yield at

    chain, store = open_folder(toy.folder)
    with closing(chain):
        browser = Browser(Damaged(), store, whole=True)
        whole = Browser(chain, store, whole=True)
        with pytest.raises(LedgerError, match="odd"):
            Browser(Damaged(), store)
    assert browser.damage == "block 12, transaction 0: something is odd" and not whole.damage
    assert [bool(row.hash) for row in browser.rounds] == [True, True, False]
    assert browser.transactions == whole.transactions[: len(browser.transactions)] != []
    assert browser.run is not None and browser.run.strategy == "Toy"


def test_what_is_no_chain_at_all_has_a_page_that_says_so(toy, tmp_path):
    folder = Path(shutil.copytree(toy.folder, tmp_path / "run"))
    (folder / "chain" / "chain.sqlite").write_bytes(b"no database at all")
    path, verdict = write_page(folder)
    assert verdict.state == "fails"
    assert "Damaged." in Page(path.read_text(encoding="utf-8")).text


def test_a_payload_that_is_gone_is_missing(tmp_path):
    toy = Toy(rounds=1, payloads="digest").record(tmp_path)
    for file in (tmp_path / "chain" / "payloads").iterdir():
        file.unlink()
    page = read_page(toy.folder)
    assert page.ledger is not None and page.verdict.state == "fails"
    assert {row.payload for row in page.ledger.entries} == {"missing", "empty"}
    assert page.ledger.servers == 0 and page.map is None  # nobody says how many there were


# -- whole pages ---------------------------------------------------------------------------------------------


def test_a_hostile_run_stays_text(tmp_path):
    named = {"who": HOSTILE, "reason": HOSTILE}
    rounds = [
        a_round(
            k, attacked=[HOSTILE], suspected=[named], left_out=[named], kept_local=[named], down=[HOSTILE],
            accused=[ACCUSED | {"offence": HOSTILE, "votes": HOSTILE, "server": HOSTILE, "step": [HOSTILE]}],
            fallback=HOSTILE, head=HOSTILE, model_digest=HOSTILE, leader=HOSTILE, miner=HOSTILE,
            server_devices=[[0], [HOSTILE]], server_data=HOSTILE, quarantined=[HOSTILE, 0], cut_off=HOSTILE,
        )
        for k in (1, 2)
    ]  # fmt: skip
    text = page_text(read_page(write(tmp_path / "<b>run&amp;", *rounds)))
    page = Page(text)
    assert page.of("img") == [] and page.of("b") == []
    assert len(page.of("script")) == 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 10  # it is there, as text
    assert "<b>run&amp;" in page.text


def test_a_hostile_ledger_stays_text(toy, tmp_path):
    from dataclasses import replace

    page = read_page(toy.folder, audited=False)
    assert page.ledger is not None
    rows = tuple(replace(row, sender=HOSTILE, account=HOSTILE) for row in page.ledger.entries)
    hostile = replace(page.ledger, entries=rows, strategy=HOSTILE, defences=(HOSTILE,), damage=HOSTILE)
    parsed = Page(page_text(replace(page, ledger=hostile)))
    assert parsed.of("img") == [] and len(parsed.of("script")) == 2
    assert json.loads(parsed.data)["ledger"]["senders"] == [
        [HOSTILE, HOSTILE, False],
        [HOSTILE, HOSTILE, True],
    ]


def test_only_the_page_s_own_style_and_script_may_act(toy):
    from base64 import b64encode
    from hashlib import sha256

    text = page_text(read_page(toy.folder, audited=False))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        name = b64encode(sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{name}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert (
        not re.findall(r'(?:src|href)="(?!#|data:,)', text) and "url(" not in text and "@import" not in text
    )


def test_a_page_is_built_of_named_parts(toy):
    page = Page(page_text(read_page(toy.folder)))
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("main")) == len(page.of("h1")) == len(page.of("title")) == 1
    assert len(page.of("caption")) == len(page.of("table"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    pointers = ("aria-labelledby", "aria-controls", "for")
    assert {a[name] for _, a in page.elements for name in pointers if name in a} <= {*ids}
    assert {a["href"][1:] for a in page.of("a")} <= {*ids}
    for svg in page.of("svg"):
        assert svg.get("aria-label") or svg["viewbox"] in ("0 0 18 10", "0 0 14 14")  # those of a key


def test_what_the_page_says_of_a_run_is_what_the_run_did(toy):
    page = read_page(toy.folder)
    told = [json.loads(line) for line in (toy.folder / "rounds.jsonl").read_text().splitlines()]
    assert page.verdict.state == "holds" and "1 (0x" in dict(page.verdict.facts)["own keys"]
    facts = dict(page.facts)
    assert facts["head of the ledger"] == told[-1]["head"]
    assert facts["final model, SHA-256"] == told[-1]["model_digest"]
    assert facts["strategy"] == "Toy"
    assert page.figures[0] == ("3", "rounds", "")
    text = Page(page_text(page)).text
    for line in told:
        assert line["head"] in text


@pytest.mark.parametrize(
    "rounds",
    [
        [{"round": 1}],
        [{}],
        [a_round(0), a_round(1)],
        [a_round(1, server_devices=[[0, 1], [2]])],
        [a_round(2), a_round(2), a_round(1)],
        [a_round(1, latency_s={"edge": 1.0}, simulated_seconds=1.0)],
    ],
)
def test_a_run_with_few_fields_has_a_page(rounds, tmp_path):
    path, verdict = write_page(write(tmp_path, *rounds))
    assert verdict.state == "none" and "No ledger" in verdict.sentence
    assert "<h1>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["independent", "on-ledger", "consensus", "no-ledger"])
def test_every_strategy_s_run_has_a_page(scheme, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "strategies")
    import federation
    from flwr.serverapp.strategy import FedAvg

    from flower_bfl import ConsensusBFL, EvmLedger, IndependentServers, OnLedger

    devices = [federation.walker(n, named=True) for n in range(4)]
    ledger = EvmLedger(tmp_path / "run" / "chain")
    strategy = {
        "independent": lambda **folder: IndependentServers(edge_servers=2, **folder),
        "on-ledger": lambda **folder: OnLedger(FedAvg(fraction_evaluate=0.0), ledger, **folder),
        "consensus": lambda **folder: ConsensusBFL(
            edge_servers=2, ledger=ledger, fraction_evaluate=0.0, **folder
        ),
        "no-ledger": lambda **folder: ConsensusBFL(edge_servers=2, fraction_evaluate=0.0, **folder),
    }[scheme](run_folder=tmp_path / "run")
    federation.run(strategy, devices, rounds=2)
    path, verdict = write_page(tmp_path / "run")
    page, text = read_page(tmp_path / "run"), Page(path.read_text(encoding="utf-8")).text
    assert verdict.state == ("none" if scheme in ("independent", "no-ledger") else "holds")
    assert ("recorded but not recomputed" in text) == (scheme == "on-ledger")
    assert page.map is not None
    assert len(page.map.servers) == (1 if scheme == "on-ledger" else 2)
    assert page.map.links == (((0, 1),) if scheme == "consensus" else ())  # nobody records the others
    assert dict(page.facts).get("strategy") == {"on-ledger": "FedAvg", "consensus": "ConsensusBFL"}.get(
        scheme
    )
    assert page.figures[0] == ("2", "rounds", "")
    assert not (tmp_path / "run" / "network.json").exists()


def test_a_ledger_that_is_elsewhere_is_not_called_missing(tmp_path):
    _, verdict = write_page(write(tmp_path, a_round(1, head="ab" * 32)))
    assert verdict.state == "none" and "not in this folder" in verdict.sentence


@pytest.mark.parametrize("number", ["1", 1.5, True, -1, None, 10**30])
def test_a_round_without_a_number_is_an_error(number, tmp_path):
    rule = rf"`round` in line 2 of .*rounds\.jsonl must be a whole number, got {re.escape(repr(number))[:20]}"
    with pytest.raises(RunFolderError, match=rule):
        read_page(write(tmp_path, a_round(1), {"round": number}))


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_the_verdict(toy, command):
    status, printed, _ = command("report", toy.folder)
    assert status == 0
    assert printed.splitlines() == [
        "Every model follows from what was signed.",
        str(toy.folder / "report.html"),
    ]
    assert (toy.folder / "report.html").is_file()
    status, printed, _ = command("report", toy.folder, "--output", "elsewhere.html", "--no-audit")
    assert status == 0 and printed.startswith("Not audited")
    assert "Not audited" in Page(Path("elsewhere.html").read_text(encoding="utf-8")).text


def test_a_run_that_does_not_follow_has_a_page_and_status_1(command, tmp_path):
    def falsify(entry):
        from dataclasses import replace

        if (entry.kind.name, entry.round, entry.step) != ("CONSENSUS", 2, 1) or entry.sender != server(1):
            return entry
        payload = bytearray(entry.payload)
        payload[-1] ^= 1
        return replace(entry, payload=bytes(payload))

    folder = Toy(rounds=2, change=falsify).record(tmp_path / "run").folder
    status, printed, _ = command("report", folder)
    assert status == 1 and printed.startswith("Something does not follow")
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    (told,) = [fact for fact in re.findall(r"block \d+, transaction \d+, server 1 \(0x[0-9a-f]{40}\)", text)]
    assert told
    assert len(re.findall(r"digest [0-9a-f]{64}", text)) == 2  # expected and found


@pytest.mark.parametrize(
    ("content", "rule"),
    [(None, "must hold a readable"), ("", "holds no finished round"), ("[\n{}\n", "is not JSON")],
)
def test_a_folder_without_a_run_is_one_line(content, rule, command, tmp_path):
    if content is not None:
        (tmp_path / "rounds.jsonl").write_text(content)
    status, _, errors = command("report", tmp_path)
    assert status == 1 and rule in errors and "Traceback" not in errors
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(toy, command, tmp_path):
    status, _, errors = command("report", toy.folder, "--output", tmp_path / "no" / "folder.html")
    assert status == 1 and "cannot write" in errors


def test_a_missing_jinja2_is_one_line(toy, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, _, errors = command("report", toy.folder)
    assert status == 1
    assert "pip install 'flower-bfl[report]'" in errors and "Traceback" not in errors
