"""What clients and server share: the data set, and what a device has of it in a round."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flower_bfl.learning.data import Dataset, load
from flower_bfl.learning.partition import partition


@cache
def dataset(name: str, folder: str) -> Dataset:
    """The data set, loaded once in each worker process."""
    return load(name, Path(folder) if folder else None)


def samples_of(device: int, server_round: int, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A device's images and labels in a round: those that have arrived, less those that it does not keep."""
    data = dataset(config["dataset"], config["data-folder"])
    names = ("devices", "partition", "seed", "labels-per-device", "dataset", "data-folder")
    own = _parts(*(config[name] for name in names))[device]
    arrived = min(len(own), round(server_round * config["arrivals"] * len(own)))
    first = max(0, arrived - round(config["kept"] * len(own)))
    return {"images": data.train_images[own[first:arrived]], "labels": data.train_labels[own[first:arrived]]}


@cache
def _parts(
    devices: int, kind: str, seed: int, labels_per_device: int, name: str, folder: str
) -> list[np.ndarray]:
    labels = dataset(name, folder).train_labels
    parts = partition(labels, devices, kind, seed=seed, labels_per_device=labels_per_device)
    rng = np.random.default_rng(seed)
    return [rng.permutation(part) for part in parts]  # in the order in which they arrive
