"""Rounds of a strategy with a ClientApp in this process, for runs that need no app of their own."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp

from flower_bfl import ConsensusBFL
from flower_bfl.simulation import in_process

Note = Callable[[int, ArrayRecord], MetricRecord | None]
"""Hears each round's number and global model, from round 0 on."""


def run_rounds(
    strategy: ConsensusBFL,
    client_app: ClientApp,
    devices: int,
    model: ArrayRecord,
    rounds: int,
    note: Note | None = None,
) -> None:
    """So many rounds from this model on; what they did is in the strategy's reports."""
    with in_process(client_app, devices) as grid:
        strategy.start(
            grid=grid,  # type: ignore[arg-type]  # a Grid as far as strategies know it
            initial_arrays=model,
            num_rounds=rounds,
            evaluate_fn=note,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Flower's log, from the making of a strategy on."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
