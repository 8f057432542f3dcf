"""A client that sends back what it got."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    metrics = MetricRecord(
        {"num-examples": 10, "num-steps": 1, "device-index": context.node_config["partition-id"]}
    )
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)
