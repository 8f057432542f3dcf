"""Time per round under `flwr run`: ConsensusBFL with an EVM chain on disk against FedAvg, same app and nodes.

Both run in turn in one private Flower; the median of the ratios counts. A round's time is what lies between
the beginning of round 2 and the end of the run, when the last blocks are on the chain,
divided by the number of rounds.
"""

import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from flower_bfl._flwr_run import private_flower, run_app

HERE = Path(__file__).parent
TIMED_SERVER = """
from quickstart import server_app
from quickstart.timing import timed

make_strategy = server_app.make_strategy
server_app.make_strategy = lambda config, folder: timed(make_strategy(config, folder), folder)
app = server_app.app
"""


@dataclass(frozen=True)
class Case:
    name: str
    app: str
    bar: float
    nodes: int
    rounds: int
    settings: dict[str, int] = field(default_factory=dict)


CASES = [
    Case("quickstart training, 10 devices", "quickstart", 1.25, 10, 15),
    Case("no-op, 10 devices, 5 KB", "noop", 2.0, 10, 30, {"parameters": 1250}),
    Case("no-op, 100 devices, 5 KB", "noop", 2.0, 100, 12, {"parameters": 1250}),
    Case("no-op, 10 devices, 1M parameters", "noop", 1.3, 10, 12, {"parameters": 1_000_000}),
]


def timed_apps(folder: Path) -> dict[str, Path]:
    """Copies of the two apps whose rounds are timed."""
    noop = shutil.copytree(HERE / "noop", folder / "noop")
    shutil.copy(HERE / "timing.py", noop / "noop")
    quickstart = shutil.copytree(HERE.parent / "examples" / "quickstart", folder / "quickstart")
    shutil.copy(HERE / "timing.py", quickstart / "quickstart")
    (quickstart / "quickstart" / "timed_server.py").write_text(TIMED_SERVER)
    project = quickstart / "pyproject.toml"
    project.write_text(
        project.read_text().replace("quickstart.server_app:app", "quickstart.timed_server:app")
    )
    return {"noop": noop, "quickstart": quickstart}


def seconds_a_round(case: Case, strategy: str, app: Path, environment: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "strategy": strategy,
            "num-server-rounds": case.rounds,
            "devices": case.nodes,
            "run-folder": folder + "/run",
            **case.settings,
        }
        code = run_app(app, settings, nodes=case.nodes, stream=False, environment=environment)
        if code:
            sys.exit(f"{case.name} with {strategy} failed")
        moments = json.loads(Path(folder, "run", "times.json").read_text())
    return (moments[-1] - moments[1]) / (case.rounds - 1)


def main(pairs: int = 3) -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, private_flower() as environment:
        apps = timed_apps(Path(folder))
        for case in CASES:
            if wanted and not any(word in case.name for word in wanted):
                continue
            ratios, times = [], []
            for _ in range(pairs):
                theirs, own = (
                    seconds_a_round(case, strategy, apps[case.app], environment)
                    for strategy in ("fedavg", "consensus")
                )
                ratios.append(own / theirs)
                times.append((theirs, own))
            theirs, own = (statistics.median(side) for side in zip(*times, strict=True))
            print(
                f"{case.name}: FedAvg {theirs:.3f} s, ConsensusBFL {own:.3f} s a round, "
                f"ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}, bar {case.bar})",
                flush=True,
            )


if __name__ == "__main__":
    main()
