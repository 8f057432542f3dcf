"""What may befall a run folder, and what the doctor says of it."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def one_payload(run: Path) -> Path:
    """The last model."""
    return payload_of(run, -1)


def payload_of(run: Path, server_round: int) -> Path:
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[server_round])
    return run / "chain" / "payloads" / f"{line['model_digest']}.safetensors"


@dataclass
class Damage:
    do: Callable[[Path], object]
    what: str
    state: str
    told: str
    verdict: str = ""  # part of it, where the run cannot go on


def cut(name: str, lines: int, rest: bytes = b"") -> Callable[[Path], object]:
    def do(run: Path) -> None:
        whole = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(whole[:lines]) + rest)

    return do


def linked(name: str) -> Callable[[Path], object]:
    def do(run: Path) -> None:
        (run / name).rename(run.parent / "elsewhere")
        (run / name).symlink_to(run.parent / "elsewhere")

    return do


def replaced(run: Path, old: bytes, new: bytes) -> None:
    text = (run / "rounds.jsonl").read_bytes()
    assert old in text
    (run / "rounds.jsonl").write_bytes(text.replace(old, new, 1))


def head_of(run: Path, server_round: int) -> bytes:
    line = json.loads((run / "rounds.jsonl").read_text().splitlines()[server_round])
    return line["head"].encode()


def scribble(run: Path) -> None:
    with (run / "chain" / "chain.sqlite").open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 60_000)


def foreign_link(run: Path) -> None:
    payload = one_payload(run)
    shutil.copy(payload, run.parent / "elsewhere")
    payload.unlink()
    payload.symlink_to(run.parent / "elsewhere")


HEX = "ab" * 32


DAMAGES = {
    "payload missing": Damage(
        lambda run: one_payload(run).unlink(), "payloads", "wrong", ", 1 missing", "1 payload is"
    ),
    "old payload missing": Damage(
        lambda run: payload_of(run, 1).unlink(), "payloads", "wrong", "cannot be proved, but go on"
    ),
    "payload changed": Damage(
        lambda run: one_payload(run).write_bytes(b"x"), "payloads", "wrong", ", 1 changed", "1 payload is"
    ),
    "payload a link": Damage(foreign_link, "payloads", "wrong", ", 1 a link", "1 payload is"),
    "payload a link, as such": Damage(foreign_link, "links", "wrong", "is a link", "1 payload is"),
    "model a link": Damage(
        linked("model.safetensors"), "links", "wrong", "model.safetensors is a link", "there are links in it"
    ),
    "chain a link": Damage(
        linked("chain"), "links", "wrong", "chain is a link or no file", "there are links in it"
    ),
    "a pipe": Damage(
        lambda run: os.mkfifo(run / "chain" / "pipe"),
        "links", "wrong", "chain/pipe is a link or no file", "there are links in it",
    ),
    "chain damaged": Damage(scribble, "chain", "wrong", "cannot be read", "the chain cannot be read"),
    "chain no database": Damage(
        lambda run: (run / "chain" / "chain.sqlite").write_bytes(b"no database" * 999),
        "chain", "wrong", "cannot be read", "the chain cannot be read",
    ),
    "chain gone": Damage(
        lambda run: (run / "chain" / "chain.sqlite").unlink(), "chain", "note", "there is no", "no chain"
    ),
    "reports gone": Damage(
        lambda run: (run / "rounds.jsonl").unlink(), "rounds.jsonl", "wrong", "there is none", "there is no"
    ),
    "last line cut off": Damage(
        cut("rounds.jsonl", 3, b'{"round": 3'), "rounds.jsonl", "note", "the line of round 3 is cut off"
    ),
    "last line missing": Damage(
        cut("rounds.jsonl", 3), "rounds.jsonl", "note", "the line of round 3 is missing"
    ),
    "line begun": Damage(cut("rounds.jsonl", 4, b"{"), "rounds.jsonl", "note", "the last is cut off"),
    "line missing": Damage(
        cut("rounds.jsonl", 2), "rounds.jsonl", "wrong", "2 lines; that of round 2 is missing", "lines of"
    ),
    "lines missing": Damage(
        cut("rounds.jsonl", 1, b"{"),
        "rounds.jsonl", "wrong", "1 line; the last is cut off; those of rounds 1 to 2 are", "lines of",
    ),
    "line unreadable": Damage(
        lambda run: replaced(run, b'{"round": 1', b'{"round": 1,,'),
        "rounds.jsonl", "wrong", "line 2 cannot be read", "does not fit the chain",
    ),
    "line twice": Damage(
        lambda run: replaced(run, b'{"round": 1', b'{"round": 2'),
        "rounds.jsonl", "wrong", "line 2 is of round 2, not 1", "does not fit the chain",
    ),
    "line of another run": Damage(
        lambda run: replaced(run, head_of(run, 2), HEX.encode()),
        "rounds.jsonl", "wrong", "line 3 has another head", "does not fit the chain",
    ),
    "model gone": Damage(
        lambda run: (run / "model.safetensors").unlink(), "model.safetensors", "wrong", "there is none"
    ),
    "model old": Damage(
        lambda run: shutil.copy(payload_of(run, 1), run / "model.safetensors"),
        "model.safetensors", "wrong", "is that of round 1, not 3",
    ),
    "model foreign": Damage(
        lambda run: (run / "model.safetensors").write_bytes(b"x"),
        "model.safetensors", "wrong", "is no model of this run's chain",
    ),
    "part left": Damage(
        lambda run: (run / "model.safetensors.part").touch(), "leftovers", "note", "1 temporary file,"
    ),
    "half a payload left": Damage(
        lambda run: (run / "chain" / "payloads" / f".{HEX}-1-2").touch(), "leftovers", "note", "1 temporary"
    ),
    "payload too many": Damage(
        lambda run: (run / "chain" / "payloads" / f"{HEX}.safetensors").touch(),
        "leftovers", "note", "1 payload file to which nothing refers",
    ),
}  # fmt: skip
