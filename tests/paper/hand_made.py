"""Experiments that are quick to run, and results without a run."""

import math
from pathlib import Path
from typing import Any

from flower_bfl.paper.experiment import Experiment, parsed
from flower_bfl.paper.results import Results

SETTINGS = {"devices": 4, "states": 2, "steps": 1, "algorithm": "all-local"}


def latency(*grids: dict[str, list[Any]], name: str = "tiny", **entries: Any) -> Experiment:
    """An experiment of kind "latency": no run takes more than milliseconds."""
    settings = SETTINGS | entries.pop("settings", {})
    vary = grids or ({"devices": [3, 5], "algorithm": ["all-local", "greedy"]},)
    content = {
        "title": "Tiny",
        "run": "latency",
        "settings": settings,
        "grid": [{"vary": each} for each in vary],
        "panel": [{"title": "total", "x": "devices", "y": "total_s", "curves": "algorithm"}],
    }
    return parsed(name, content | entries)


def row(**columns: float | str) -> dict[str, float | str]:
    """A row with all columns of its kind; those not given are one half."""
    return dict.fromkeys(("total_s", "learning_s", "mining_s", "consensus_s", "utility"), 0.5) | columns


def filled(experiment: Experiment, folder: Path, totals: dict[tuple[Any, ...], list[float]]) -> Results:
    """Results with a run for each value, by the varied settings: seeds from 0 on, NaN for no run."""
    results = Results(experiment, folder)
    for key, values in totals.items():
        settings = dict(zip(experiment.varied, key, strict=True))
        for seed, total in enumerate(values):
            if not math.isnan(total):
                results.add({**settings, "seed": seed}, [row(total_s=total)], 1.0)
    return results


def without_seconds(file: Path) -> list[str]:
    """A results file but for its last column, the wall time."""
    return [line.rpartition(",")[0] for line in file.read_text(encoding="utf-8").splitlines()]
