"""Time per round of a run of Fig. 5: under Flower's simulation, and in this process, alone and two at a time.

    python benchmarks/paper.py DATA_FOLDER [ROUNDS]

All three in turn, three times over; the median of the ratios counts. What is timed lies between the test of
the model of round 1 and that of the last; start-up is left out. Ray has all cores, each run in process one.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import time

from flower_bfl._flwr_run import private_flower
from flower_bfl.paper import _training, app

MOMENTS = "FLOWER_BFL_MOMENTS"  # the file that moments go into
PAIRS, BAR = 3, 1.5
SETTINGS = {"dataset": "fashion-mnist", "scheme": "ours", "test-every": 1}


def note_moments() -> None:
    """Write down when models were tested."""
    test = app._test

    def timed(config, model, server_round, arrays):
        found = test(config, model, server_round, arrays)
        with Path(os.environ[MOMENTS]).open("a") as file:
            file.write(f"{server_round} {time()}\n")
        return found

    app._test = timed


def seconds_a_round(moments: Path, rounds: int) -> float:
    lines = [line.split() for line in moments.read_text().splitlines()]
    at = {int(number): float(moment) for number, moment in lines}
    return (at[rounds] - at[1]) / (rounds - 1)


def under_flower(settings: dict, folder: Path, environment: dict[str, str]) -> float:
    moments = folder / "flower"
    os.environ[MOMENTS] = str(moments)  # the private Flower was started with this very name
    moments.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as run_folder:
        config = _training.whole(settings) | {"run-folder": run_folder}
        _training.run_under_flower(config, environment)
    return seconds_a_round(moments, settings["rounds"])


def in_process(settings: dict, folder: Path, runs: int) -> float:
    """Seconds a round of a run, when so many go on side by side."""
    moments = [folder / f"process-{k}" for k in range(runs)]
    children = []
    for seed, file in enumerate(moments):
        file.unlink(missing_ok=True)
        words = [f"{name}={value}" for name, value in (settings | {"seed": seed}).items()]
        environment = os.environ | {MOMENTS: str(file), "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen([sys.executable, __file__, "--child", *words], env=environment))
    if any(child.wait() for child in children):
        sys.exit("a run failed")
    return statistics.mean(seconds_a_round(file, settings["rounds"]) for file in moments) / runs


def child(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words)
    kinds = _training.whole({})
    note_moments()
    _training.run({name: type(kinds[name])(value) for name, value in settings.items()})


def main(data_folder: str, rounds: str = "20") -> None:
    if not (Path(data_folder) / "FashionMNIST").is_dir():
        print(f"not run: no Fashion-MNIST in {data_folder}")
        return
    settings = SETTINGS | {"data-folder": str(Path(data_folder).absolute()), "rounds": int(rounds)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[MOMENTS] = str(folder / "flower")
        own = folder / "app"
        _copy_app(own)
        _training.APP = own
        with private_flower() as environment:
            found = []
            for _ in range(PAIRS):
                ray = under_flower(settings, folder, environment)
                found.append((ray, in_process(settings, folder, 1), in_process(settings, folder, 2)))
                print("  ".join(f"{seconds:.3f} s" for seconds in found[-1]), flush=True)
    for place, what in ((1, "alone"), (2, "two at a time")):
        ratios = [each[0] / each[place] for each in found]
        print(
            f"a round under Ray over one in process, {what}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}, bar {BAR})"
        )


def _copy_app(folder: Path) -> None:
    """The experiments' app, with a server that writes down moments."""
    import shutil

    shutil.copytree(_training.APP, folder)
    module = folder / "paper_app" / "__init__.py"
    first = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport paper\n"
    module.write_text(f"{first}paper.note_moments()\n{module.read_text()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main(*(sys.argv[1:] or [os.environ.get("FLOWER_BFL_DATA", "")]))
