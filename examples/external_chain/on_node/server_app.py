"""The server, whose ledger is on a node."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flower_bfl import ConsensusBFL, LedgerError, RpcLedger
from on_node.task import TEST, accuracy, digits, initial_weights

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    folder = config["resume"] or config["run-folder"] or f"runs/{context.run_id}"
    ledger = RpcLedger(config["rpc-url"], folder=f"{folder}/chain")
    if not ledger.web3.is_connected():
        raise LedgerError(f"{ledger}: nobody answers there; start a node, or set `rpc-url` to one")
    strategy = ConsensusBFL(
        fraction_evaluate=0.0, ledger=ledger, run_folder=folder, resume=bool(config["resume"])
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial_weights()),
        num_rounds=config["num-server-rounds"],
        evaluate_fn=evaluate,
    )
    print(f"The contract of this run: 0x{ledger.contract_address.hex()}")


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the global model on images that no device has."""
    return MetricRecord({"accuracy": accuracy(arrays.to_numpy_ndarrays(), *digits(slice(TEST)))})
