"""A device."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from on_node.task import TEST, digits, train

app = ClientApp()


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Train what came on this device's images, and send it back."""
    node = context.node_config
    images, labels = digits(slice(TEST + node["partition-id"], None, node["num-partitions"]))
    weights = message.content["arrays"].to_numpy_ndarrays()
    weights = train(weights, images, labels, context.run_config["learning-rate"])
    content = {"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": len(labels)})}
    return Message(RecordDict(content), reply_to=message)
