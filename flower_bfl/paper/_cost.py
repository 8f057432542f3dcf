"""What a round costs on a chain on disk, by the model's size: means over the rounds from the second on.

Devices move the weights by random steps: that costs the chain what training does, and no time. In the first
round accounts are registered, which no other round has.
"""

import tempfile
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl import ConsensusBFL, EvmLedger
from flower_bfl.config import check_whole_number
from flower_bfl.paper._in_process import quiet, run_rounds
from flower_bfl.paper.experiment import Settings
from flower_bfl.types import LedgerCost

COLUMNS: Final = ("transactions", "gas", "calldata_bytes", "stored_bytes", "chain_seconds")


def check(settings: Settings) -> None:
    """Raise ConfigError if such a run cannot be made."""
    check_whole_number("rounds", settings["rounds"], 2, 2**31 - 1)
    check_whole_number("parameters", settings["parameters"], 1, 2**31 - 1)
    _ledger(None, settings)


@quiet()
def run(settings: Settings) -> list[dict[str, Any]]:
    """A few rounds on a chain in a folder of their own."""
    seed = int(settings["seed"])
    with tempfile.TemporaryDirectory() as folder:
        strategy = ConsensusBFL(
            edge_servers=int(settings["edge-servers"]),
            p2p_rounds=int(settings["p2p-rounds"]),
            ledger=_ledger(folder, settings),
            seed=seed,
            fraction_evaluate=0.0,
        )
        weights = np.random.default_rng(seed).standard_normal(int(settings["parameters"]))
        devices, rounds = int(settings["devices"]), int(settings["rounds"])
        run_rounds(strategy, walkers(seed), devices, _record(weights), rounds)
    return [_mean([report.ledger for report in strategy.reports[2:]])]


def _ledger(folder: str | None, settings: Settings) -> EvmLedger:
    payloads: Any = settings["payloads"]  # which it checks
    return EvmLedger(folder, payloads=payloads)


def walkers(seed: int) -> ClientApp:
    """Devices that move every weight by a random step."""
    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        content: Any = message.content
        device, server_round = int(context.node_config["partition-id"]), content["config"]["server-round"]
        before = content["arrays"]["w"].numpy()
        step = np.random.default_rng([seed, device, server_round]).standard_normal(before.size)
        told = MetricRecord({"num-examples": 600, "num-steps": 10, "device-index": device})
        arrays = _record(before + 0.01 * step)
        return Message(RecordDict({"arrays": arrays, "metrics": told}), reply_to=message)

    return app


def _mean(costs: list[LedgerCost]) -> dict[str, Any]:
    row = {
        "transactions": [cost.transactions for cost in costs],
        "gas": [cost.gas for cost in costs],
        "calldata_bytes": [cost.calldata_bytes for cost in costs],
        "stored_bytes": [cost.stored_bytes for cost in costs],
        "chain_seconds": [cost.seconds for cost in costs],
    }
    return {name: float(np.mean(np.array(values))) for name, values in row.items()}


def _record(weights: np.ndarray[Any, Any]) -> ArrayRecord:
    return ArrayRecord({"w": Array(weights.astype(np.float32))})
