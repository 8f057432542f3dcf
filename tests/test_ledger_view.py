"""The commands `flower-bfl ledger` and `flower-bfl audit`, as a person and as a program see them."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from eth_hash.auto import keccak
from toy_run import OPERATOR, Toy, device, server

from flower_bfl import cli
from flower_bfl._ledger_view import print_audit
from flower_bfl.audit import AuditReport, Checked, Finding, Incident
from flower_bfl.chain_adapter import EvmLedger, Kind, digest
from flower_bfl.chain_adapter._accounts import read_transaction


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(rounds=3, own_keys=(1,), offloads={1: 0, 4: 2}, payloads="auto")
    return toy.record(tmp_path_factory.mktemp("run"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Status and output of `flower-bfl` with these arguments, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["flower-bfl", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, capsys.readouterr().out

    return call


def read(call, *arguments: object) -> dict:
    status, output = call(*arguments, "--json")
    assert status == 0
    return json.loads(output)


# -- ledger --------------------------------------------------------------------------------------------------


def test_the_summary_is_that_of_the_ledger(call, toy):
    said = read(call, "ledger", toy.folder)["summary"]
    entries = list(toy.ledger.entries())
    assert said["rounds"] == 3
    assert said["blocks"] == toy.ledger.block_number
    assert (said["transactions"], said["gas"]) == (toy.ledger.transactions, toy.ledger.gas)
    assert said["payload_bytes"] == sum(len(entry.payload) for entry in entries)
    assert said["calldata_bytes"] == said["payload_bytes"]
    assert (said["devices"], said["servers"]) == (toy.devices, toy.servers)
    miners = Counter(str(entry.sender) for entry in entries if entry.kind is Kind.SEAL)
    assert said["rewards"] == dict(miners)
    assert said["head"] == toy.ledger.head.hex()


def test_the_rounds_are_those_of_the_ledger(call, toy):
    rounds = read(call, "ledger", toy.folder)["rounds"]
    told = [json.loads(line) for line in (toy.folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["hash"] for row in rounds] == [line["head"] for line in told]
    assert [row["model_digest"] for row in rounds[1:]] == [line["model_digest"] for line in told[1:]]
    models = {entry.round: entry for entry in toy.ledger.entries() if entry.kind is Kind.MODEL}
    seals = {entry.round: entry for entry in toy.ledger.entries() if entry.kind is Kind.SEAL}
    assert [row["leader"] for row in rounds] == [str(models[k].sender) for k in range(4)]
    assert [row["passed_over"] for row in rounds] == [models[k].step for k in range(4)]
    assert [row["miner"] for row in rounds] == ["", *(str(seals[k].sender) for k in (1, 2, 3))]
    assert sum(row["gas"] for row in rounds) == toy.ledger.gas
    assert sum(row["transactions"] for row in rounds) == toy.ledger.transactions
    assert [row["block"] for row in rounds] == [2, 7, 12, 17]  # 5 blocks a round


def test_a_nonce_is_the_one_that_seals_its_block(call, toy):
    """By the formula in docs/ledger.md, once more."""
    from hashlib import sha256

    head = bytes(32)
    for row in read(call, "ledger", toy.folder)["rounds"]:
        k = row["round"]
        miner = 1 << 32 | int(row["miner"].split()[1]) if row["miner"] else 0
        numbers = b"".join(number.to_bytes(8, "big") for number in (1_577_836_800 + k, miner, row["nonce"]))
        head = sha256(head + numbers + bytes.fromhex(row["model_digest"])).digest()
        assert row["hash"] == head.hex()
        assert k == 0 or head[0] < 16  # 4 leading zero bits


def test_the_transactions_of_a_round(call, toy):
    rows = read(call, "ledger", toy.folder, "--round", 2)["transactions"]
    entries = [entry for entry in toy.ledger.entries() if entry.round == 2]
    assert [(r["kind"], r["step"], r["sender"], r["bytes"], r["digest"]) for r in rows] == [
        (e.kind.name, e.step, str(e.sender), len(e.payload), digest(e.payload).hex()) for e in entries
    ]
    assert [row["own_key"] for row in rows] == [e.sender == device(1) for e in entries]
    for row in rows:
        encoded = toy.ledger._block(row["block"]).transactions[row["transaction"]]
        assert row["hash"] == f"0x{keccak(encoded).hex()}"
        if not row["own_key"]:
            assert row["account"] == f"0x{read_transaction(encoded).sender.hex()}"
    receipts = {row["block"]: toy.ledger.gas_of(row["block"]) for row in rows}
    assert [row["gas"] for row in rows] == [receipts[row["block"]][row["transaction"]] for row in rows]


def test_data_are_shown_with_the_edge_server_that_they_went_to(call, toy):
    rows = read(call, "ledger", toy.folder, "--round", 3)["transactions"]
    data = [row for row in rows if row["kind"] == "DATA"]
    assert [(row["sender"], row["step"], row["own_key"]) for row in data] == [
        ("device 1", 0, True), ("device 4", 2, False),
    ]  # fmt: skip
    status, output = call("ledger", toy.folder, "--round", 3)
    assert status == 0
    shown = [line.split() for line in output.splitlines() if " data " in line]
    assert [words[2:6] for words in shown] == [["data", "0", "device", "1*"], ["data", "2", "device", "4"]]
    said = [digest(entry.payload).hex() for entry in toy.ledger.entries() if entry.kind is Kind.DATA][-2:]
    assert [row["digest"] for row in data] == said
    assert all(name[:8] in words for name, words in zip(said, shown, strict=True))


def test_the_gas_of_transactions_adds_up_to_that_of_their_block(toy):
    for number in range(1, toy.ledger.block_number + 1):
        gas = toy.ledger.gas_of(number)
        assert sum(gas) == toy.ledger._block(number).gas
        assert min(gas) >= 21_000  # what any transaction takes


@pytest.mark.parametrize(
    ("payloads", "place"),
    [("auto", "calldata"), ("digest", "store"), ("full", "pieces"), ("gone", "missing")],
)
def test_where_a_payload_is(payloads, place, call, tmp_path):
    """A piece has 80,000 bytes, so what is kept in pieces is larger."""
    size = 30_000 if payloads == "full" else 15
    Toy(rounds=1, devices=3, steps=1, size=size, payloads=payloads.replace("gone", "digest")).record(tmp_path)
    if payloads == "gone":
        for file in (tmp_path / "chain" / "payloads").iterdir():
            file.unlink()
    rows = read(call, "ledger", tmp_path, "--round", 1)["transactions"]
    assert {row["payload"] for row in rows} == {place, "empty"}
    assert [row["payload"] for row in rows if row["kind"] == "SEAL"] == ["empty"]


def test_a_round_that_is_not_finished(call, toy, tmp_path):
    import shutil

    from toy_run import KEYS

    from flower_bfl.chain_adapter import Entry

    folder = Path(shutil.copytree(toy.folder, tmp_path / "run"))
    ledger = EvmLedger(folder / "chain")
    ledger.open(KEYS)
    ledger.record([Entry(Kind.REPORT, 4, OPERATOR, b"soon")])
    ledger.close()
    said = read(call, "ledger", folder)
    assert said["summary"]["rounds"] == 3 and said["summary"]["head"] == toy.ledger.head.hex()
    assert (said["rounds"][4]["hash"], said["rounds"][4]["transactions"]) == ("", 1)
    status, output = call("ledger", folder)
    assert status == 0 and " open " in output


def test_the_tables_fit_a_terminal(call, toy):
    for arguments in (["ledger", toy.folder], ["ledger", toy.folder, "--round", 1], ["audit", toy.folder]):
        status, output = call(*arguments)
        assert status == 0
        assert max(len(line.rstrip()) for line in output.splitlines()) <= 80
        assert "…" not in output
    _, rounds = call("ledger", toy.folder)
    assert f"{toy.ledger.gas:,}" in rounds and "device 1" not in rounds.split("rewards")[1].splitlines()[0]
    _, one = call("ledger", toy.folder, "--round", 1)
    assert "device 1*" in one and "* signed elsewhere" in one


@pytest.mark.parametrize("command", ["ledger", "audit"])
def test_arguments_that_do_not_go_together(command, call, tmp_path):
    url = ["--rpc", "http://127.0.0.1:1"]
    for arguments in ([], url, [tmp_path, *url], [tmp_path, "--payloads", tmp_path]):
        assert call(command, *arguments)[0] == 2
    assert call(command, tmp_path)[0] == 1  # no run there


def test_a_round_that_there_is_not(call, toy):
    assert call("ledger", toy.folder, "--round", 9)[0] == 2


# -- audit ---------------------------------------------------------------------------------------------------


def test_an_audit_that_finds_nothing(call, toy):
    status, output = call("audit", toy.folder, "--head", toy.ledger.head.hex())
    assert status == 0
    assert "every model follows from what was signed" in output
    assert toy.ledger.head.hex() in output and "device 1 (0x" in output
    assert "6 data sets" in " ".join(output.split())
    said = read(call, "audit", toy.folder)
    assert said["finding"] is None and said["checked"]["models_recomputed"] == 3
    assert said["checked"]["data_sets"] == 6


def test_an_audit_that_finds_something(call, tmp_path):
    from dataclasses import replace

    from flower_bfl.chain_adapter import Entry

    def change(entry: Entry) -> Entry:
        wanted = (Kind.CONSENSUS, 2, server(1), 1)
        found = (entry.kind, entry.round, entry.sender, entry.step)
        return replace(entry, payload=b"[red]false[/red]") if found == wanted else entry

    Toy(change=change).record(tmp_path)
    status, output = call("audit", tmp_path)
    assert status == 1
    assert "something does not follow" in output
    assert "block 10, transaction 1, server 1" in output and "x^(1) must be" in output
    assert digest(b"[red]false[/red]").hex() in output.replace("\n", "").replace(" ", "")
    status, output = call("audit", tmp_path, "--json")
    assert status == 1
    finding = json.loads(output)["finding"]
    assert (finding["block"], finding["transaction"]) == (10, 1)


@pytest.mark.parametrize("head", ["12", "x" * 64, "0x"])
def test_a_head_must_be_a_hash(head, call, toy):
    assert call("audit", toy.folder, "--head", head)[0] == 2


def test_another_head_is_a_finding(call, toy):
    status, output = call("audit", toy.folder, "--head", "0x" + "ab" * 32)
    assert status == 1 and "must end with the head" in output


def test_importing_the_pure_functions_loads_no_flower():
    """An audit needs neither Flower nor a network."""
    import subprocess

    script = (
        "import sys, flower_bfl.audit\n"
        "print([name for name in ('flwr', 'torch', 'ray', 'web3', 'networkx', 'matplotlib') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["\x1b[2K✓ every model follows", "[green]all is well[/green]", "a\rb"])
def test_what_a_record_says_is_printed_as_text(text, capsys):
    """Neither a terminal's command nor markup: a forged run must not print its own verdict."""
    finding = Finding(rule=text, expected=text, found=text, account=text)
    print_audit(AuditReport(finding, Checked(), text, False, "", "", notes=(text,)), as_json=False)
    printed = capsys.readouterr().out
    assert not {"\x1b", "\r"} & set(printed)
    shown = text.replace("\x1b", "\\x1b").replace("\r", "\\r")
    assert printed.count(shown) == 5  # where, rule, expected, found, note


def test_who_was_accused_is_told_with_the_verdict(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    one = Incident(2, 1, "server 1 (0xab)", "state", 3, 2, voted_out=True, upheld=True)
    false = Incident(2, 0, "server 0 (0xcd)", "accusation", 4, 1, voted_out=False, upheld=False)
    print_audit(AuditReport(None, Checked(), "Toy", True, "", "", incidents=(one, false)), as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "round 2 server 1 (0xab) voted out by 2 for its state in step 3, which the ledger bears out"
        in printed
    )
    assert (
        "server 0 (0xcd) accused by 1 for accusing edge server 4 without reason, "
        "which the ledger does not bear out" in printed
    )
    print_audit(AuditReport(None, Checked(), "Toy", True, "", "", incidents=(one,)), as_json=True)
    assert json.loads(capsys.readouterr().out)["incidents"][0]["account"] == "server 1 (0xab)"
