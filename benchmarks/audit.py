"""How long a run takes, and how long its audit: whole commands, one after the other.

    python benchmarks/audit.py [--rounds 100] [--data-folder ../shared/data]

10 devices, 3 edge servers, 5 consensus steps, the 87 KB network for Fashion-MNIST; without that data set, the
20 KB network for digits.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BAR = 10


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--data-folder", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    settings = f"num-server-rounds={arguments.rounds}"
    if (arguments.data_folder / "FashionMNIST").is_dir():
        settings += f' dataset="fashion-mnist" data-folder="{arguments.data_folder.absolute()}"'
    command = [sys.executable, "-m", "flower_bfl.cli"]
    with tempfile.TemporaryDirectory() as folder:
        run = seconds(
            [
                *command,
                "run",
                "examples/quickstart",
                "--run-folder",
                f"{folder}/run",
                "--run-config",
                settings,
            ]
        )
        audit = seconds([*command, "audit", f"{folder}/run"])
        size = (Path(folder) / "run" / "model.safetensors").stat().st_size
        shutil.rmtree(f"{folder}/run")
    print(
        f"{arguments.rounds} rounds, {size:,} bytes a model: run {run:.1f} s, audit {audit:.1f} s, "
        f"ratio {run / audit:.1f} (bar {BAR})"
    )


if __name__ == "__main__":
    main()
