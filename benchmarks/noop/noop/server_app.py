"""FedAvg or ConsensusBFL, timed."""

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_bfl import ConsensusBFL, EvmLedger
from noop.timing import timed

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    folder = Path(config["run-folder"])
    folder.mkdir(parents=True, exist_ok=True)
    sampling = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": config["devices"],
        "min_available_nodes": config["devices"],
    }
    if config["strategy"] == "fedavg":
        strategy = FedAvg(**sampling)
    else:
        strategy = ConsensusBFL(ledger=EvmLedger(folder / "chain"), run_folder=folder, **sampling)
    weights = np.zeros(config["parameters"], np.float32)
    timed(strategy, folder).start(
        grid, ArrayRecord({"weights": Array(weights)}), num_rounds=config["num-server-rounds"]
    )
