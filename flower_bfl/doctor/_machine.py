"""The machine: space, cores, memory, and what earlier runs left running."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flower_bfl.doctor._findings import Finding

_TIGHT_BYTES, _FULL_BYTES = 2**30, 100 * 2**20
_FLOWER = re.compile(r"(^|[/\s])(flower-super\w+|flwr-\w+|raylet|gcs_server|ray::\S*|anvil)(?=\s|$)")


def size_in_words(size: float) -> str:
    """As in 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def free_bytes(path: Path) -> int:
    """Free space where a file would go, whether its folder is there yet or not."""
    place = next(each for each in (path, *path.parents) if each.exists())
    return shutil.disk_usage(place).free


def check_space(path: Path) -> Iterator[Finding]:
    """Free space in a folder."""
    free = free_bytes(path.absolute())
    told = f"{size_in_words(free)} free in {path.absolute()}"
    if free < _FULL_BYTES:
        yield Finding("disk", "wrong", told, "make space: a run needs some for its chain and payloads")
    else:
        yield Finding("disk", "note" if free < _TIGHT_BYTES else "ok", told)


def check_cores_and_memory() -> Iterator[Finding]:
    """What simulated nodes share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{cores} core" if cores == 1 else f"{cores} cores"
    available = _available_bytes()
    if available is None:
        yield Finding("cores, memory", "ok", told)
        return
    told += f", {size_in_words(available)} of memory available"
    if available < _TIGHT_BYTES:
        yield Finding(
            "cores, memory", "note", f"{told}: little for a simulation, which loads torch in each core"
        )
    else:
        yield Finding("cores, memory", "ok", told)


def check_processes() -> Iterator[Finding]:
    """Flower's, Ray's and anvil's processes: of a run that goes on, or left over."""
    found = []
    for pid, size, command in _processes():
        if pid != os.getpid() and (match := _FLOWER.search(command[:300])):
            found.append((pid, size, match[2]))
    if not found:
        yield Finding("processes", "ok", "no SuperLink, Ray or anvil runs here")
        return
    names = ", ".join(f"{name} ({pid})" for pid, _, name in sorted(found)[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    held = size_in_words(sum(size for _, size, _ in found))
    yield Finding(
        "processes",
        "note",
        f"{names}{more} hold {held} of memory: of a run that goes on, or left over from one",
    )


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, resident bytes and command line of each process."""
    if Path("/proc/self/statm").exists():
        page = os.sysconf("SC_PAGE_SIZE")
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it has just ended
                if entry.name.isdigit():
                    pages = int((entry / "statm").read_text().split()[1])
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    yield int(entry.name), pages * page, command.decode(errors="replace")
        return
    done = subprocess.run(
        ["ps", "-axww", "-o", "pid=,rss=,command="],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=20,
    )
    for row in done.stdout.splitlines():
        pid, size, words = row.split(maxsplit=2)
        yield int(pid), int(size) * 1024, words


def _available_bytes() -> int | None:
    """Memory that is available, also below a container's limit; None where nobody tells."""
    told: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        (line,) = re.findall(r"^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
        told.append(int(line) * 1024)
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max" is no limit
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        told.append(max(int(limit) - int(used), 0))
    return min(told, default=None)
