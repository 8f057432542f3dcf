"""A thousand devices and twenty edge servers under `flwr run`: seconds, memory, transactions and gas a round.

The devices train nothing. A controller decides, data are offloaded, everything goes to a chain on disk.
Seconds are this machine's and prove nothing; memory must be flat over the rounds.
"""

import json
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from flower_bfl._flwr_run import run_app

HERE = Path(__file__).parent
GROWTH = 1.1  # of memory, from the second round to the last


def main(devices: int = 1000, servers: int = 20, rounds: int = 5) -> int:
    with tempfile.TemporaryDirectory() as name:
        app = Path(shutil.copytree(HERE / "noop", Path(name) / "noop"))
        shutil.copy(HERE / "timing.py", app / "noop")
        folder = Path(name) / "run"
        settings = {
            "devices": devices,
            "edge-server-nodes": servers,
            "num-server-rounds": rounds,
            "note-memory": True,
            "run-folder": str(folder),
        }
        if code := run_app(app, settings, nodes=devices + servers, stream=False):
            return code
        return report(folder, devices, servers)


def report(folder: Path, devices: int, servers: int) -> int:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()][1:]
    memory = [json.loads(line)["bytes"] for line in (folder / "memory.jsonl").read_text().splitlines()][1:]
    moments = json.loads((folder / "times.json").read_text())
    print(f"{devices} devices, {servers} edge servers, nothing trained")
    print(
        "round  seconds  (report, decide, offload, train, chain)  offloaded  transactions  Mgas  MB  memory"
    )
    spans = [later - sooner for sooner, later in pairwise(moments)]
    for line, seconds, resident in zip(lines, spans, memory, strict=True):
        assert line["devices"] == devices and not line["left_out"], line["left_out"][:3]
        parts = [line[f"{name}_seconds"] for name in ("report", "decide", "offload", "train", "chain")]
        written = (line["calldata_bytes"] + line["stored_bytes"]) / 1e6
        print(
            f"{line['round']:5}  {seconds:7.1f}  ({', '.join(f'{part:.1f}' for part in parts)})"
            f"  {sum(map(len, line['server_data'])):9}  {line['transactions']:12,}  {line['gas'] / 1e6:6.0f}"
            f"  {written:3.1f}  {resident / 2**20:5.0f} MiB"
        )
    growth = memory[-1] / memory[1]
    print(f"memory, last round over second: {growth:.3f} (bar {GROWTH})")
    return int(growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
