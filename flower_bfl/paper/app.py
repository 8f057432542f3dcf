"""One run of the paper's experiments with federated learning, as a Flower app: a device, and the server.

Settings are those of flower_app/pyproject.toml. What a run did is in the rounds.jsonl of its run folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flower_bfl import AutoRounds, ConsensusBFL, IndependentServers, MemoryLedger, Mining, attacks, defences
from flower_bfl._views import CONTROLLERS
from flower_bfl.attacks import Attack, Falsification, Turn
from flower_bfl.errors import ConfigError
from flower_bfl.learning.data import Dataset, load, load_file
from flower_bfl.learning.models import ConvNet, build
from flower_bfl.learning.offloading import Data, identity, offloadable
from flower_bfl.learning.partition import partition
from flower_bfl.learning.training import evaluate, train
from flower_bfl.network import NetworkConfig
from flower_bfl.types import Vector

SCHEMES: Final = ("ours", "consensus", "without-consensus", "independent", "centralised")
ATTACKS: Final[dict[str, Callable[..., Attack]]] = {
    "gaussian-noise": partial(attacks.GaussianNoise, size=5.0),
    "sign-flip": partial(attacks.SignFlip, size=5.0),
    "scaling": attacks.Scaling,
    "a-little-is-enough": attacks.ALittleIsEnough,
    "inner-product": attacks.InnerProduct,
    "old-value": attacks.OldValue,
    "silence": attacks.Silence,
    "equivocation": attacks.Equivocation,
}
_ATTACKER = 1  # the edge server that is compromised
_OWN_IMAGES = (3, 32, 32)  # of a file: what SVHN's network takes

Config = dict[str, Any]


# --- a device, and an edge server that trains -------------------------------------------------------------

client_app = ClientApp()


def _samples(message: Message, context: Context) -> Data:
    config: Config = dict(context.run_config)
    _, device = identity(context, _edge_nodes(config))
    data, own = _data(config), _parts(config)[device]
    return {"images": data.train_images[own], "labels": data.train_labels[own]}


@offloadable(client_app, _samples)
def _on_train(message: Message, context: Context, data: Data) -> Message:
    torch.set_num_threads(1)  # the number of threads changes the last bits of a sum
    config: Config = dict(context.run_config)
    content: Any = message.content
    server_round = int(content["config"]["server-round"])
    role, index = identity(context, _edge_nodes(config))
    at_edge = role == "edge-server"
    model = _net(config)
    model.load_state_dict(content["arrays"].to_torch_state_dict())
    result = train(
        model,
        data["images"],  # type: ignore[arg-type]
        data["labels"],  # type: ignore[arg-type]
        steps=config["edge-steps" if at_edge else "local-steps"],
        batch_size=config["edge-batch-size" if at_edge else "batch-size"],
        learning_rate=config["learning-rate"],
        seed=int(np.random.SeedSequence([config["seed"], at_edge, index, server_round]).generate_state(1)[0]),
    )
    told = MetricRecord(
        {"num-examples": result.examples, "num-steps": result.steps, "train-loss": result.loss}
    )
    if not at_edge:
        told["device-index"] = index
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": told}), reply_to=message)


# --- the server -------------------------------------------------------------------------------------------

server_app = ServerApp()


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    config: Config = dict(context.run_config)
    strategy = make_strategy(config)
    model = _net(config, config["seed"])
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=config["rounds"],
        evaluate_fn=partial(_test, config, model),
    )


def make_strategy(config: Config) -> ConsensusBFL | IndependentServers:
    """The scheme that the settings name.

    Raises:
        ConfigError: no such scheme, attack, defence or controller, or whatever the strategy says.
    """
    scheme = _known("scheme", config["scheme"], SCHEMES)
    common: dict[str, Any] = {
        "attacks": _attacks(config),
        "edge_servers": 1 if scheme == "centralised" else config["edge-servers"],
        "fraction_evaluate": 0.0,
        "min_available_nodes": config["devices"],
        "run_folder": config["run-folder"] or None,
        "seed": config["seed"],
    }
    if scheme in ("independent", "centralised"):
        return IndependentServers(**common)
    most = config["p2p-rounds"]
    steps = AutoRounds(most=most) if config["p2p-auto"] else most
    common |= {"graph": config["graph"], "p2p_rounds": steps}
    if scheme == "without-consensus":
        return ConsensusBFL(**common | {"p2p_rounds": 0})
    if name := config["controller"]:
        network = NetworkConfig(devices=config["devices"], edge_servers=config["edge-servers"])
        make = CONTROLLERS[_known("controller", name, CONTROLLERS)]
        common |= {"controller": make(network, np.random.default_rng(config["seed"]))}
    if scheme == "ours":
        # The ledger in memory has the chain's rules and entries; what they cost on it is another figure's.
        common |= {"ledger": MemoryLedger(), "mining": Mining(difficulty_bits=1)}
        common |= {"defence": defences.Replay() if config["defence"] == "replay" else None}
    return ConsensusBFL(**common)


@dataclass(frozen=True, kw_only=True)
class ModelNoise(Falsification):
    """The paper's attack: Gaussian noise of standard deviation `noise` in every weight of a model.

    gain: how far the model moves with the vector that is attacked.
    """

    noise: float
    gain: float = 1.0

    def falsified(self, turn: Turn, rng: np.random.Generator) -> Vector:
        """The honest vector and noise."""
        noise = self.noise / self.gain * rng.standard_normal(turn.honest.size)
        return np.asarray(turn.honest + noise, np.float32)


def _attacks(config: Config) -> list[Attack]:
    """In the consensus, or in the model where there is none: whoever leads then is compromised."""
    rounds = [int(word) for word in config["attack-rounds"].split()]
    if not rounds or config["attack"] == "none":
        return []
    if config["attack"] != "model-noise":
        make = ATTACKS[_known("attack", config["attack"], ("none", "model-noise", *ATTACKS))]
        return [make(server=_ATTACKER, rounds=rounds, p2p_step=config["attack-step"])]
    noise, servers = config["noise"], config["edge-servers"]
    if config["scheme"] in ("ours", "consensus"):
        gain = config["local-steps"] * servers  # τ·M of (12), for equally many steps at each device
        place = {"server": _ATTACKER, "p2p_step": config["attack-step"], "gain": gain}
        return [ModelNoise(rounds=rounds, noise=noise, **place)]
    who = range(1 if config["scheme"] == "centralised" else servers)
    return [ModelNoise(server=m, rounds=rounds, p2p_step="model", noise=noise) for m in who]


def _test(config: Config, model: ConvNet, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
    if server_round % config["test-every"] and server_round != config["rounds"]:
        return None
    data = _data(config)
    model.load_state_dict(arrays.to_torch_state_dict())
    result = evaluate(model, data.test_images, data.test_labels)
    return MetricRecord({"accuracy": result.accuracy, "loss": result.loss})


# --- what both know ---------------------------------------------------------------------------------------


def _edge_nodes(config: Config) -> int:
    """Edge servers that are nodes: with a controller they train."""
    return int(config["edge-servers"]) if config["controller"] else 0


def nodes(config: Config) -> int:
    """How many nodes a run with these settings has."""
    return int(config["devices"]) + _edge_nodes(config)


def _data(config: Config) -> Dataset:
    return loaded(config["dataset"], config["data-folder"])


@cache
def loaded(name: str, folder: str) -> Dataset:
    """The data set, once in each process; "file" is an .npz."""
    if name == "file":
        data = load_file(Path(folder))
        for images in (data.train_images, data.test_images):
            if images.shape[1:] != _OWN_IMAGES:
                raise ConfigError(
                    f"`data-folder` must be a file of images of shape {_OWN_IMAGES}, got {images.shape[1:]}"
                )
        return data
    return load(name, Path(folder) if folder else None)  # type: ignore[arg-type]  # which it checks


def _net(config: Config, seed: int = 0) -> ConvNet:
    return build("svhn" if config["dataset"] == "file" else config["dataset"], seed)


def _parts(config: Config) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    names = ("dataset", "data-folder", "devices", "partition", "labels-per-device", "seed")
    return _cut(*(config[name] for name in names))


@cache
def _cut(
    name: str, folder: str, devices: int, kind: str, labels_per_device: int, seed: int
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    labels = loaded(name, folder).train_labels
    by: Any = kind  # which it checks
    return partition(labels, devices, by, seed=seed, labels_per_device=labels_per_device)


def _known(setting: str, name: str, known: Any) -> str:
    if name not in known:
        raise ConfigError(f"`{setting}` must be one of {', '.join(known)}, got {name!r}")
    return name
