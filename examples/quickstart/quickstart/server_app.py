"""The server: chooses strategy and ledger, evaluates the global model, draws the curves."""

import json
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum, Strategy

from flower_bfl import (
    ConfigError,
    ConsensusBFL,
    EvmLedger,
    IndependentServers,
    MemoryLedger,
    Mining,
    OnLedger,
    report,
)
from flower_bfl.learning.models import build
from flower_bfl.learning.training import evaluate
from quickstart.robustness import chosen_attacks, chosen_defences, chosen_edge_rule
from quickstart.task import dataset, samples_of

FLOWERS_OWN = {  # strategies of Flower's, with their replies and models on the ledger
    "fedadam-on-ledger": partial(FedAdam, eta=0.03),
    "krum-on-ledger": partial(Krum, num_malicious_nodes=2),
}

app = ServerApp()
log = logging.getLogger("flwr.quickstart")  # below Flower's own logger, so it comes out with its lines


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and report on them."""
    torch.set_num_threads(1)
    config = context.run_config
    folder = run_folder(config["resume"] or config["run-folder"])
    log.info("Run folder: %s", folder)
    check_settings(config)
    keep_settings(config, folder)

    model = build(config["dataset"], config["seed"])
    strategy = make_strategy(config, folder)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=make_evaluation(config),
    )
    if config["strategy"] != "fedavg":
        report_on(folder)


def run_folder(name: str) -> Path:
    """The folder that the run writes into; "" is ./runs/quickstart-<time>."""
    return Path(name or f"runs/quickstart-{datetime.now():%Y%m%d-%H%M%S}").expanduser().absolute()


def check_settings(config: dict[str, Any]) -> None:
    """Count and cut the data here once, so that a mistake ends the run before any device starts."""
    if config["edge-servers"] > config["devices"]:
        raise ConfigError(
            f"`edge-servers` must be at most `devices`, got {config['edge-servers']} and {config['devices']}"
        )
    samples_of(0, config["devices"], config, train=True)
    if config["fraction-evaluate"] > 0:
        samples_of(0, config["devices"], config, train=False)


def keep_settings(config: dict[str, Any], folder: Path) -> None:
    """Leave them in the run folder; a run that goes on must have those that are there."""
    free = {"resume", "run-folder", "data-folder", "num-server-rounds"}
    own = {name: value for name, value in sorted(config.items()) if name not in free}
    file = folder / "settings.json"
    if not config["resume"]:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(own | {"num-server-rounds": config["num-server-rounds"]}, indent=1))
            part.replace(file)
        return
    left = json.loads(file.read_text()) if file.exists() else {}
    for name, value in own.items():
        if left.get(name, value) != value:
            raise ConfigError(f"`{name}` must be that of the run that goes on, {left[name]!r}, got {value!r}")


def make_strategy(config: dict[str, Any], folder: Path) -> Strategy:
    """FedAvg, or several edge servers in its place."""
    devices = config["devices"]
    least = config["min-devices"] or devices
    sampling = {
        "fraction_train": config["fraction-train"],
        "fraction_evaluate": config["fraction-evaluate"],
        "min_train_nodes": max(1, round(config["fraction-train"] * least)),
        "min_evaluate_nodes": max(1, round(config["fraction-evaluate"] * least)),
        "min_available_nodes": least,
    }
    name = config["strategy"]
    if name == "fedavg":
        return FedAvg(**sampling)
    shared = {
        "edge_servers": config["edge-servers"],
        "run_folder": folder,
        **sampling,
    }
    resume = bool(config["resume"])
    if name == "independent":
        return IndependentServers(attacks=chosen_attacks(config), seed=config["seed"], **shared)
    if name == "consensus":
        leader = config["leader"]
        return ConsensusBFL(
            seed=config["seed"],
            graph=config["graph"],
            mixing=config["mixing"],
            p2p_rounds="auto" if config["p2p-auto"] else config["p2p-rounds"],
            ledger=make_ledger(config, folder),
            mining=make_mining(config),
            require_signatures=config["sign-updates"],
            leader=leader if leader in ("random", "reputation") else int(leader),
            attacks=chosen_attacks(config),
            defence=chosen_defences(config),
            edge_rule=chosen_edge_rule(config),
            quarantine_rounds=config["quarantine-rounds"],
            resume=resume,
            **shared,
        )
    if name in FLOWERS_OWN:
        return OnLedger(
            FLOWERS_OWN[name](**sampling),
            make_ledger(config, folder),
            mining=make_mining(config),
            require_signatures=config["sign-updates"],
            seed=config["seed"],
            run_folder=folder,
            resume=resume,
        )
    known = ", ".join(["consensus", "independent", "fedavg", *FLOWERS_OWN])
    raise ConfigError(f"`strategy` must be one of {known}, got {name!r}")


def make_mining(config: dict[str, Any]) -> Mining | None:
    """Devices race for each block with equal hash rates; difficulty 0: blocks need no miner."""
    bits = config["difficulty-bits"]
    return Mining(difficulty_bits=bits) if bits else None


def make_ledger(config: dict[str, Any], folder: Path) -> Any:
    """An EVM chain in this process, a ledger in memory, or none."""
    name = config["ledger"]
    if name == "evm":
        return EvmLedger(folder / "chain", payloads=config["payloads"])
    if name == "memory":
        return MemoryLedger()
    if name == "none":
        return None
    raise ConfigError(f"`ledger` must be one of evm, memory, none, got {name!r}")


def make_evaluation(config: dict[str, Any]) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Accuracy and loss of a global model on the whole test set."""
    data = dataset(config["dataset"], config["data-folder"])
    model = build(config["dataset"], seed=0)

    def evaluate_globally(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        result = evaluate(model, data.test_images, data.test_labels)
        return MetricRecord({"accuracy": result.accuracy, "loss": result.loss})

    return evaluate_globally


def report_on(folder: Path) -> None:
    """Log the summary and draw the curves."""
    for line in report.summary(folder).splitlines():
        log.info("%s", line)
    try:
        log.info("Curves: %s", report.draw_curves(folder))
    except ModuleNotFoundError as error:
        log.warning("No curves: %s is not installed (pip install 'flower-bfl[plots]').", error.name)
