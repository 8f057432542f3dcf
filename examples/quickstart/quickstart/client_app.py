"""A device: trains the net it is sent on its own samples."""

from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl.attacks import poisoned
from flower_bfl.learning.models import ConvNet, build
from flower_bfl.learning.signing import sign_updates
from flower_bfl.learning.training import evaluate, train
from quickstart.task import samples_of, training_seed

# One thread a device: the devices share the machine, and the thread count changes the last bits of a sum.
torch.set_num_threads(1)

sign = sign_updates()  # with a key that each device makes for itself


def sign_if_set(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
    """Sign the update if the run's settings say so."""
    if context.run_config["sign-updates"]:
        return sign(message, context, call_next)
    return call_next(message, context)


app = ClientApp(mods=[sign_if_set])


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Train for a few steps; reply with the weights and what the edge servers need to know."""
    config = context.run_config
    device, devices = _identity(context)
    images, labels = samples_of(device, devices, config, train=True)
    images, labels = poisoned(message.content["config"], images, labels, device=device)
    model = _received_model(message, config["dataset"])
    result = train(
        model,
        images,
        labels,
        steps=config["local-steps"],
        batch_size=config["batch-size"],
        learning_rate=config["learning-rate"],
        seed=training_seed(config["seed"], device, message.content["config"]["server-round"]),
    )
    metrics = {
        "num-examples": result.examples,
        "num-steps": result.steps,
        "train-loss": result.loss,
        "device-index": device,
    }
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def on_evaluate(message: Message, context: Context) -> Message:
    """Evaluate on this device's share of the test set."""
    config = context.run_config
    device, devices = _identity(context)
    images, labels = samples_of(device, devices, config, train=False)
    result = evaluate(_received_model(message, config["dataset"]), images, labels)
    metrics = {
        "num-examples": len(labels),
        "accuracy": result.accuracy,
        "loss": result.loss,
        "device-index": device,
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _identity(context: Context) -> tuple[int, int]:
    """This device's number, which stays the same over runs unlike its node id, and how many there are."""
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def _received_model(message: Message, dataset: str) -> ConvNet:
    model = build(dataset, seed=0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model
