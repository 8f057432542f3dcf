"""Local training and evaluation, on the CPU and reproducible.

Images are uint8, mapped from 0...255 to -1...1, or float32, used as they are.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flower_bfl.errors import ConfigError

_EVALUATION_BATCH = 250

Images = NDArray[np.uint8] | NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class TrainResult:
    """What a device says of its local training."""

    loss: float  # mean cross-entropy over the batches trained on
    steps: int  # e_y, SGD steps taken
    examples: int  # D_y, samples held


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a set of samples."""

    loss: float  # mean cross-entropy
    accuracy: float  # share of samples classified right, 0 ... 1


def train(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    steps: int = 10,
    batch_size: int = 25,
    learning_rate: float = 0.001,
    seed: int,
) -> TrainResult:
    """Train the model in place with Adam, as the paper does: 10 steps with batches of 25.

    Adam starts afresh in every call: a device keeps no state between rounds. Each batch is a fresh draw
    without replacement, the sampling that Theorem 1's term 1 - B_y/D_y stands for; a set smaller than a batch
    is used whole. The same seed and number of torch threads give the same weights, bit for bit, and torch's
    global random state stays as it was.

    Args:
        model: the net; its weights change.
        images: shape (n, c, h, w).
        labels: shape (n,).
        steps: e_y, SGD steps.
        batch_size: B_y, samples a step.
        learning_rate: η; the paper does not say which, 0.001 is Adam's usual one.
        seed: a non-negative integer.

    Raises:
        ConfigError: no samples, unequal lengths, or an argument out of its range.
    """
    _check_samples(images, labels)
    if steps < 1:
        raise ConfigError(f"`steps` must be at least 1, got {steps}")
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}")
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"`learning_rate` must be a finite number above 0, got {learning_rate}")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    draws = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    # The global generator is seeded too, for layers that draw from it, such as dropout.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            batch = torch.randperm(len(labels), generator=draws)[:batch_size].numpy()
            optimizer.zero_grad()
            loss = cross_entropy(model(to_tensor(images[batch])), torch.from_numpy(labels[batch]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    return TrainResult(loss=float(np.mean(losses)), steps=steps, examples=len(labels))


def evaluate(model: nn.Module, images: Images, labels: Labels) -> Evaluation:
    """Loss and accuracy on images (n, c, h, w) and labels (n,).

    Raises:
        ConfigError: no samples, or unequal lengths.
    """
    _check_samples(images, labels)
    loss, right = 0.0, 0
    model = deepcopy(model).to(memory_format=torch.channels_last).eval()  # twice as fast
    with torch.inference_mode():
        for start in range(0, len(labels), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            logits = model(to_tensor(images[part]))
            expected = torch.from_numpy(labels[part])
            loss += cross_entropy(logits, expected, reduction="sum").item()
            right += int((logits.argmax(dim=1) == expected).sum())
    return Evaluation(loss=loss / len(labels), accuracy=right / len(labels))


def to_tensor(images: Images) -> Tensor:
    """A float32 tensor of the images: uint8 from 0...255 to -1...1, float32 unchanged."""
    if images.dtype == np.uint8:
        return torch.from_numpy(images).float().div_(127.5).sub_(1.0)
    return torch.from_numpy(images.astype(np.float32, copy=False))


def _check_samples(images: Images, labels: Labels) -> None:
    if len(labels) == 0:
        raise ConfigError("`labels` must not be empty, got 0 samples")
    if len(images) != len(labels):
        raise ConfigError(f"`images` must be as many as labels, {len(labels)}, got {len(images)}")
