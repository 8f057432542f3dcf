"""Aggregation plus consensus against FedAvg's aggregation of the same replies, in one process.

100 devices, 1M parameters, 10 edge servers, 10 consensus steps; both run in turn and the median of the ratios
counts. Peak memory is that of a child process each, the replies included.
"""

import logging
import resource
import statistics
import subprocess
import sys
from time import perf_counter

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity

from flower_bfl import ConsensusBFL

DEVICES, EDGE_SERVERS, STEPS, PAIRS = 100, 10, 10, 9
SHAPES = {
    "conv": (64, 3, 5, 5),
    "dense1": (900, 800),
    "bias1": (800,),
    "dense2": (800, 343),
}  # 1 000 000 in all


class Nodes:
    """A grid that knows its nodes and sends nothing."""

    def get_node_ids(self) -> list[int]:
        return list(range(1, DEVICES + 1))


def model(rng: np.random.Generator) -> ArrayRecord:
    return ArrayRecord({k: Array(rng.standard_normal(s, dtype=np.float32)) for k, s in SHAPES.items()})


def replies(rng: np.random.Generator) -> list[Message]:
    made = []
    for node in range(1, DEVICES + 1):
        metrics = MetricRecord(
            {"num-examples": 100 + node, "num-steps": 10, "device-index": node - 1, "loss": 0.5}
        )
        instruction = Message(RecordDict(), dst_node_id=node, message_type="train")
        made.append(Message(RecordDict({"arrays": model(rng), "metrics": metrics}), reply_to=instruction))
    return made


def seconds(strategy: Strategy, initial: ArrayRecord, trained: list[Message]) -> float:
    strategy.configure_train(1, initial, ConfigRecord(), Nodes())
    started = perf_counter()
    strategy.aggregate_train(1, trained)
    return perf_counter() - started


def ours(**arguments: object) -> ConsensusBFL:
    return ConsensusBFL(edge_servers=EDGE_SERVERS, p2p_rounds=STEPS, **arguments)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    initial, trained = model(rng), replies(rng)
    if len(sys.argv) > 1:
        seconds(ours() if sys.argv[1] == "ours" else FedAvg(), initial, trained)
        print(peak_gb())
        return
    seconds(FedAvg(), initial, trained), seconds(ours(), initial, trained)  # warm-up
    pairs = [(seconds(FedAvg(), initial, trained), seconds(ours(), initial, trained)) for _ in range(PAIRS)]
    theirs, own = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{DEVICES} devices x 1M parameters, {EDGE_SERVERS} edge servers, {STEPS} steps, {PAIRS} pairs")
    print(f"  FedAvg {theirs:.3f} s, ConsensusBFL {own:.3f} s, ratio {ratio:.2f} (bar: 2)")
    memory = {
        name: float(subprocess.run([sys.executable, __file__, name], capture_output=True, check=True).stdout)
        for name in ("fedavg", "ours")
    }
    print(f"  peak memory: FedAvg {memory['fedavg']:.2f} GB, ConsensusBFL {memory['ours']:.2f} GB (bar: 1.5)")


if __name__ == "__main__":
    main()
