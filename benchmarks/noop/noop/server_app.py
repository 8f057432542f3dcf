"""FedAvg or ConsensusBFL, timed; with nodes of edge servers, a controller too."""

import json
import resource
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_bfl import ConsensusBFL, EvmLedger
from flower_bfl.controller import A2CController
from flower_bfl.network import Blocks, NetworkConfig
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
        controlled = with_controller(config) if config["edge-server-nodes"] else {}
        strategy = ConsensusBFL(
            ledger=EvmLedger(folder / "chain"), run_folder=folder, **sampling, **controlled
        )

    def note_memory(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        with (folder / "memory.jsonl").open("a") as file:
            file.write(json.dumps({"round": server_round, "bytes": resident}) + "\n")
        return MetricRecord()

    weights = np.zeros(config["parameters"], np.float32)
    timed(strategy, folder).start(
        grid,
        ArrayRecord({"weights": Array(weights)}),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=note_memory if config["note-memory"] else None,
    )


def with_controller(config: dict) -> dict:
    servers = config["edge-server-nodes"]
    network = NetworkConfig(
        devices=config["devices"],
        edge_servers=servers,
        blocks=Blocks(total_hash_rate=1e12 * config["devices"]),
    )
    return {
        "edge_servers": servers,
        "graph": "ring",
        "controller": A2CController.pretrained(network, "sorted"),
        "exchange_timeout_s": 600.0,
    }
