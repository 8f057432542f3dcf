"""Checks of a run folder's files: links, permissions, who else has them open, room for more."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flower_bfl.doctor._findings import Finding
from flower_bfl.doctor._machine import free_bytes, size_in_words
from flower_bfl.doctor._seen import CHAIN, FILES, FOLDERS, NODE, PAYLOADS, ROUNDS, Seen, entries, quoted, some

_AMPLE_ROUNDS = 10


def check_folder(seen: Seen) -> Iterator[Finding]:
    """Whether there is a run in it."""
    folder = seen.folder
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        yield Finding("folder", "wrong", f"{folder} {found}", "name the one that `flower-bfl run` printed")
    elif any((folder / name).exists() for name in (CHAIN, NODE, ROUNDS)):
        yield Finding("folder", "ok", str(folder.resolve()))
    elif any((folder / Path(name).name).exists() for name in (CHAIN, NODE)):
        told = f"{folder} is the chain's own folder, not the run's"
        yield Finding(
            "folder", "wrong", told, f"name the run's:\nflower-bfl doctor {quoted(folder.resolve().parent)}"
        )
    else:
        told = f"{folder} holds no run: neither {ROUNDS} nor {CHAIN} nor {NODE}"
        yield Finding(
            "folder", "wrong", told, "name the one that `flower-bfl run` printed, such as runs/NAME"
        )


def check_links(seen: Seen) -> Iterator[Finding]:
    """Links, which neither the audit nor the payload store follows."""
    names = [name for name in (*FILES, *FOLDERS[1:]) if (seen.folder / name).is_symlink()]
    names += [f"{PAYLOADS}/{path.name}" for path in entries(seen.folder / PAYLOADS) if path.is_symlink()]
    if not names:
        yield Finding("links", "ok", "none")
        return
    own = os.path.realpath(seen.folder)
    out = [name for name in names if not Path(os.path.realpath(seen.folder / name)).is_relative_to(own)]
    payloads = [name for name in names if name.startswith(f"{PAYLOADS}/")]
    bad = list(dict.fromkeys([*out, *payloads]))
    if bad:
        to_do = "put the file itself where the link is: the audit and the ledger follow none"
        yield Finding("links", "wrong", some(bad, "is a link", "are links"), to_do)
    else:
        yield Finding("links", "note", some(names, "is a link", "are links") + " within the folder")


def check_permissions(seen: Seen) -> Iterator[Finding]:
    """Whether it can be read, and gone on with, by whoever asks."""
    there = [name for name in (*FOLDERS, *FILES) if (seen.folder / name).exists()]
    unreadable = [name for name in there if not os.access(seen.folder / name, os.R_OK)]
    closed = [name for name in there if not os.access(seen.folder / name, os.W_OK)]
    if unreadable:
        seen.blockers.append("files cannot be read")
        yield Finding(
            "permissions",
            "wrong",
            some(unreadable, "cannot", "cannot") + " be read",
            "become their owner, or ask them",
        )
    elif closed:
        seen.blockers.append("it cannot be written here")
        closed = [name or "the folder" for name in closed]
        yield Finding(
            "permissions",
            "wrong",
            f"{some(closed, 'cannot', 'cannot')} be written: the run can be audited, but not go on",
            "become the owner, or go on with a copy:\n"
            f"cp -r {quoted(seen.folder)} FOLDER && chmod -R u+w FOLDER",
        )
    else:
        yield Finding("permissions", "ok", "all can be read and written")


def check_in_use(seen: Seen) -> Iterator[Finding]:
    """Whether the run goes on right now."""
    path = seen.folder / CHAIN
    if not path.is_file():
        return
    seen.writers = _writers(path)
    if seen.writers:
        told = f"{', '.join(seen.writers)} has the chain open to write: the run goes on right now"
        yield Finding("in use", "note", told)
    else:
        yield Finding("in use", "ok", "no process here has the chain open to write")


def check_disk(seen: Seen) -> Iterator[Finding]:
    """Room for more rounds like those so far."""
    size = 0
    for path in seen.folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            size += path.lstat().st_size
    rounds = max(len(seen.lines or ()) - 1, 0 if seen.chain is None else seen.chain.last, 1)
    free, each = free_bytes(seen.folder), size / rounds
    left = int(free / each) if each else 0
    told = f"{size_in_words(free)} free, {size_in_words(each)} a round so far"
    if each and left < 1:
        seen.blockers.append("the disk is full")
        yield Finding("disk", "wrong", f"{told}: not enough for another", "make space, or move the folder")
    elif each and left < _AMPLE_ROUNDS:
        yield Finding("disk", "note", f"{told}: enough for {left} more")
    else:
        yield Finding("disk", "ok", told)


def _writers(path: Path) -> list[str]:
    """Other processes that have a file open to write, by name and number; of this machine and this user."""
    found = []
    for files in Path("/proc").glob("[0-9]*/fd"):
        process = files.parent
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it has just ended, or is somebody else's
            for file in files.iterdir():
                with suppress(OSError):
                    told = (process / "fdinfo" / file.name).read_text()
                    flags = re.search(r"^flags:\s*([0-7]+)", told, re.M)
                    writes = flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
                    if writes and file.samefile(path):
                        found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
                        break
    return found
