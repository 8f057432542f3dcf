"""Fuzz the parsers, guided by coverage: python tests/fuzz/fuzz.py [target ...] [--runs 100000] [--seconds S].

Each target runs in a process of its own, and gives a line: cases, seconds, crashes. A crash is an exception
that is not allowed, counted once for each place that raises it, or the end of the process: it took 2 GB of
memory, or 30 seconds for one case. Inputs that crash are kept in --folder, as are those that reached
something new, from which the next call goes on.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

_MOST_BYTES, _MOST_MB, _MOST_S = 4096, 2048, 30


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="all of them by default")
    parser.add_argument("--runs", type=int, default=100_000, help="cases for each target")
    parser.add_argument("--seconds", type=int, default=0, help="for each target, at most")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "flower-bfl-fuzz")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        _fuzz(given.targets[0], given.folder, given.runs, given.seconds)
    failed = 0
    print(f"{'target':<20} {'cases':>9} {'seconds':>8} {'crashes':>8}")
    for name in given.targets or _names():
        cases, seconds, crashes = _run(name, given)
        print(f"{name:<20} {cases:>9,} {seconds:>8.0f} {crashes:>8}", flush=True)
        failed += crashes
    return 1 if failed else 0


def _names() -> list[str]:
    """Without importing them into this process."""
    code = "from targets import TARGETS; print(*TARGETS)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    ).stdout.split()


def _run(name: str, given: argparse.Namespace) -> tuple[int, float, int]:
    """Cases, seconds and crashes of a target."""
    folder = given.folder / name
    (folder / "crashes").mkdir(parents=True, exist_ok=True)
    (folder / "corpus").mkdir(exist_ok=True)
    before = {path.name for path in (folder / "crashes").iterdir()}
    command = [sys.executable, __file__, name, "--inside", "--folder", folder]
    limits = ["--runs", str(given.runs), "--seconds", str(given.seconds)]
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        ended = subprocess.run(
            [*command, *limits],
            stderr=log,
            stdout=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    seconds = time.monotonic() - started
    told = re.findall(r"^(?:Done|#)(\d+| \d+)", (folder / "log").read_text(errors="replace"), re.MULTILINE)
    crashes = {path.name for path in (folder / "crashes").iterdir()} - before
    if ended.returncode and not crashes:
        print((folder / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
    return int(told[-1]) if told else 0, seconds, max(len(crashes), bool(ended.returncode))


def _fuzz(name: str, folder: Path, runs: int, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["flower_bfl", "safetensors"]):
        from targets import TARGETS

    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # messages are stamped with them
    known: set[str] = set()

    def case(data: bytes) -> None:
        try:
            TARGETS[name].run(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = ",".join(f"{Path(each.filename).name}:{each.lineno}" for each in frames)
            if (crash := f"{type(error).__name__},{place}") not in known:
                known.add(crash)
                (folder / "crashes" / crash).write_bytes(data)
                traceback.print_exc()

    for number, seed in enumerate(TARGETS[name].corpus):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0], f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={_MOST_BYTES}",
            f"-rss_limit_mb={_MOST_MB}", f"-timeout={_MOST_S}",
            f"-artifact_prefix={folder / 'crashes'}{os.sep}",
            "-len_control=0", "-print_final_stats=1", str(folder / "corpus"),
        ],
        case,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
