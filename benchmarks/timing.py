"""Times the rounds of a Flower strategy from outside; benchmarks/rounds.py copies it into its apps."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any


def timed(strategy: Any, folder: Path) -> Any:
    """The strategy, which now leaves times.json: when each round began, and when the last one was over."""
    moments: list[float] = []
    configure_train, start = strategy.configure_train, strategy.start

    def configure(*args: Any, **kwargs: Any) -> Any:
        moments.append(perf_counter())
        return configure_train(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = start(*args, **kwargs)
        moments.append(perf_counter())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "times.json").write_text(json.dumps(moments))
        return result

    strategy.configure_train, strategy.start = configure, run
    return strategy
