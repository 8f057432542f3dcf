"""A device."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import Net, load_data
from digits.task import test as test_net
from digits.task import train as train_net

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train what came on this device's images, and send it back."""
    net = net_of(message)
    loader, _ = data_of(context)
    epochs, learning_rate = context.run_config["local-epochs"], message.content["config"]["learning-rate"]
    loss = train_net(net, loader, epochs, learning_rate)
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate what came on images that this device does not train on."""
    _, loader = data_of(context)
    loss, accuracy = test_net(net_of(message), loader)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def net_of(message: Message) -> Net:
    """The net with the weights in a message."""
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def data_of(context: Context):
    """This device's share."""
    node, config = context.node_config, context.run_config
    return load_data(node["partition-id"], node["num-partitions"], config["batch-size"])
