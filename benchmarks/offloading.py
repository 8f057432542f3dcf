"""Simulated time to an accuracy, with a controller and with every device training alone; and what it costs.

Real `flwr run`s of examples/offloading: Fashion-MNIST (in torchvision's layout, in the folder given first or
in FLOWER_BFL_DATA), 20 devices, 5 edge servers, all in one private Flower, seed by seed. "As little at the
edge": edge servers take no more steps and no larger batches than a device does.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from flower_bfl._flwr_run import private_flower, run_app

APP = Path(__file__).parent.parent / "examples" / "offloading"
ACCURACY = 0.75
BAR, SHARE_BAR = 0.70, 0.02
AS_LITTLE = {"edge-steps": 10, "edge-batch-size": 25}
CASES = [
    ("all-local", {"controller": "all-local"}, 16),
    ("a2c", {"controller": "a2c"}, 8),
    ("a2c, as little at the edge", {"controller": "a2c", **AS_LITTLE}, 16),
]


def main(data_folder: str = os.environ.get("FLOWER_BFL_DATA", ""), seeds: int = 3) -> int:
    if not (Path(data_folder) / "FashionMNIST").is_dir():
        print(f"not run: no Fashion-MNIST in {data_folder or 'FLOWER_BFL_DATA'}")
        return 0
    ratios: dict[str, list[float]] = {name: [] for name, *_ in CASES}
    shares: list[float] = []
    with private_flower() as environment, tempfile.TemporaryDirectory() as name:
        for seed in range(int(seeds)):
            reached: dict[str, float] = {}
            for case, settings, rounds in CASES:
                folder = Path(name) / f"{case}-{seed}"
                own = {
                    "dataset": "fashion-mnist",
                    "data-folder": str(Path(data_folder).absolute()),
                    "num-server-rounds": rounds,
                    "run-folder": str(folder),
                    "seed": seed,
                }
                if code := run_app(APP, settings | own, nodes=25, environment=environment, stream=False):
                    return code
                lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()][1:]
                reached[case] = time_to(lines)
                ratios[case].append(reached[case] / reached["all-local"])
                if case != "all-local":
                    shares += [share(line) for line in lines[1:]]
                print(f"seed {seed}, {case}: {reached[case]:.1f} simulated s to {ACCURACY:.0%}", flush=True)
    for case, found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{case}: {statistics.mean(found):.2f} of all-local's time ({spread}, bar {BAR})")
    print(f"the controller's share of a round: median {statistics.median(shares):.2%}, bar {SHARE_BAR:.0%}")
    return int(max(ratios["a2c"]) > BAR or statistics.median(shares) > SHARE_BAR)


def time_to(lines: list[dict]) -> float:
    """Simulated seconds until a round ends with the accuracy."""
    return next(
        (one["simulated_seconds"] for one in lines if one["evaluate"]["accuracy"] >= ACCURACY), float("inf")
    )


def share(line: dict) -> float:
    """Of the wall time from the roll call to the new model."""
    names = ("report", "decide", "offload", "train", "wait", "aggregate")
    return line["decide_seconds"] / sum(line[f"{name}_seconds"] for name in names)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
