"""A device, or an edge server: trains the net on the data that it has been given."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.learning.models import build
from flower_bfl.learning.offloading import Data, identity, offloadable
from flower_bfl.learning.training import train
from offloading.task import samples_of

torch.set_num_threads(1)

app = ClientApp()


def samples(message: Message, context: Context) -> Data:
    """What this device has in this round."""
    config = context.run_config
    _, device = identity(context, config["edge-server-nodes"])
    return samples_of(device, message.content["config"]["server-round"], config)


@offloadable(app, samples)  # instead of @app.train()
def on_train(message: Message, context: Context, data: Data) -> Message:
    """Train on a device's own data, or at an edge server on what devices sent to it."""
    config, server_round = context.run_config, message.content["config"]["server-round"]
    role, index = identity(context, config["edge-server-nodes"])
    at_edge = role == "edge-server"
    model = build(config["dataset"], seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    result = train(
        model,
        data["images"],
        data["labels"],
        steps=config["edge-steps" if at_edge else "local-steps"],
        batch_size=config["edge-batch-size" if at_edge else "batch-size"],
        learning_rate=config["learning-rate"],
        seed=int(np.random.SeedSequence([config["seed"], at_edge, index, server_round]).generate_state(1)[0]),
    )
    metrics = {"num-examples": result.examples, "num-steps": result.steps, "train-loss": result.loss}
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)
