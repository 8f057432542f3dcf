"""The server: a controller decides before each round who offloads, the rest is as in the quickstart."""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flower_bfl import ConfigError, ConsensusBFL, EvmLedger, report
from flower_bfl.controller import (
    A2CController,
    AllLocalController,
    AssignmentController,
    GreedyController,
    NearOptimalController,
    RandomController,
)
from flower_bfl.learning.models import build
from flower_bfl.learning.training import evaluate
from flower_bfl.network import NetworkConfig
from offloading.task import dataset

CONTROLLERS = {
    "a2c": partial(A2CController.pretrained, decoding="sorted"),
    "a2c-assignment": A2CController.pretrained,
    "assignment": AssignmentController,
    "near-optimal": NearOptimalController,
    "greedy": GreedyController,
    "random": lambda network: RandomController(network, np.random.default_rng(0)),
    "all-local": AllLocalController,
    "none": lambda network: None,
}

app = ServerApp()
log = logging.getLogger("flwr.offloading")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and report on them."""
    torch.set_num_threads(1)
    config = context.run_config
    name = config["resume"] or config["run-folder"] or f"runs/offloading-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(name).expanduser().absolute()
    log.info("Run folder: %s", folder)

    strategy = make_strategy(config, folder)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(build(config["dataset"], config["seed"]).state_dict()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=make_evaluation(config),
    )
    for line in report.summary(folder).splitlines():
        log.info("%s", line)
    log.info("Curves: %s", report.draw_curves(folder))


def make_strategy(config: dict[str, Any], folder: Path) -> ConsensusBFL:
    """Edge servers that agree by consensus, with a controller that decides who sends data to them."""
    if config["controller"] not in CONTROLLERS:
        known = ", ".join(CONTROLLERS)
        raise ConfigError(f"`controller` must be one of {known}, got {config['controller']!r}")
    network = NetworkConfig(
        devices=config["devices"], edge_servers=config["edge-server-nodes"], objective=config["objective"]
    )
    return ConsensusBFL(
        controller=CONTROLLERS[config["controller"]](network),
        edge_servers=config["edge-server-nodes"],
        graph="ring",
        ledger=EvmLedger(folder / "chain") if config["ledger"] else None,
        fraction_evaluate=0.0,
        seed=config["seed"],
        run_folder=folder,
        resume=bool(config["resume"]),
    )


def make_evaluation(config: dict[str, Any]) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Accuracy and loss of a global model on the whole test set."""
    data = dataset(config["dataset"], config["data-folder"])
    model = build(config["dataset"], seed=0)

    def evaluate_globally(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        result = evaluate(model, data.test_images, data.test_labels)
        return MetricRecord({"accuracy": result.accuracy, "loss": result.loss})

    return evaluate_globally
