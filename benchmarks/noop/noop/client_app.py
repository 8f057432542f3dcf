"""A client that sends back what it got, on devices and edge servers."""

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.learning.offloading import Data, offloadable

app = ClientApp()


def samples(message: Message, context: Context) -> Data:
    return {"x": np.zeros((10, 100), np.uint8)}


@offloadable(app, samples)
def train(message: Message, context: Context, data: Data) -> Message:
    metrics = {"num-examples": len(data["x"]), "num-steps": 1}
    if message.metadata.message_type == "train":
        metrics["device-index"] = context.node_config["partition-id"]
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)
