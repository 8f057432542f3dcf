"""What the devices and the server share: the data set, and which part of it is whose."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flower_bfl.learning.data import Dataset, load
from flower_bfl.learning.partition import partition

_CUT_BY = ("dataset", "data-folder", "partition", "seed", "labels-per-device", "alpha")


@cache
def dataset(name: str, folder: str) -> Dataset:
    """The data set, loaded once in each worker process."""
    return load(name, Path(folder) if folder else None)


def samples_of(
    device: int, devices: int, config: dict[str, Any], *, train: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A device's images and labels, of the training set or of the test set, which is cut in the same way."""
    data = dataset(config["dataset"], config["data-folder"])
    mine = _parts(train, devices, *(config[key] for key in _CUT_BY))[device]
    if train:
        return data.train_images[mine], data.train_labels[mine]
    return data.test_images[mine], data.test_labels[mine]


@cache
def _parts(
    train: bool,
    devices: int,
    name: str,
    folder: str,
    kind: str,
    seed: int,
    labels_per_device: int,
    alpha: float,
) -> list[np.ndarray]:
    data = dataset(name, folder)
    labels = data.train_labels if train else data.test_labels
    return partition(labels, devices, kind, seed=seed, labels_per_device=labels_per_device, alpha=alpha)


def training_seed(seed: int, device: int, server_round: int) -> int:
    """A seed of its own for every device and round."""
    return int(np.random.SeedSequence([seed, device, server_round]).generate_state(1)[0])
