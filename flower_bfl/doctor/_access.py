"""Checks of a run folder's files: links, permissions, who else has them open, room for more."""

import os
from collections.abc import Iterator
from contextlib import suppress
from fcntl import LOCK_NB, LOCK_SH, flock
from pathlib import Path

from flower_bfl.doctor._findings import Finding
from flower_bfl.doctor._machine import free_bytes, size_in_words
from flower_bfl.doctor._seen import CHAIN, FILES, FOLDERS, NODE, ROUNDS, Seen, entries, quoted, some

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
    """Links, pipes and the like, which neither the audit nor a run that goes on follows."""
    inside = [path for name in FOLDERS for path in entries(seen.folder / name)]
    odd = [each for each in inside if each.is_symlink() or not (each.is_file() or each.is_dir())]
    if not odd:
        yield Finding("links", "ok", "none")
        return
    seen.blockers.append("there are links in it")
    names = [str(path.relative_to(seen.folder)) for path in odd]
    to_do = "put the file itself there: the audit and a run that goes on do not follow"
    yield Finding("links", "wrong", some(names, "is a link or no file", "are links or no files"), to_do)


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
    """Whether the run goes on right now: then its process has locked the folder."""
    folder = os.open(seen.folder, os.O_RDONLY)
    try:
        flock(folder, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        seen.in_use = True
        yield Finding("in use", "note", "a process has locked the folder: the run goes on right now")
    else:
        yield Finding("in use", "ok", "no process has locked the folder")
    finally:
        os.close(folder)


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
