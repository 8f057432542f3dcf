"""The paper's convolutional networks, one for each data set.

Two convolutions, each followed by 2 x 2 max-pooling and ReLU, then fully connected layers. The paper gives
the hidden layers as "256 and 72 units" for SVHN and "320 and 50" for Fashion-MNIST. There, 320 is what 20
filters leave after the second pooling (20 x 4 x 4), so the net is 320-50-10 with 21,840 parameters. A 32 x 32
image comes down to 5 x 5 a filter, and no number of filters makes 256 of that: for SVHN, 256 and 72 are read
as two fully connected layers after the 500 values (20 x 5 x 5) that the same filters leave, 500-256-72-10.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from flower_bfl.errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """What tells one of the nets from another."""

    channels: int
    side: int  # pixels; images are square
    kernel: int  # of both convolutions
    padding: int
    hidden: tuple[int, ...]  # units of the fully connected layers between the convolutions and the classes
    filters: tuple[int, int] = (10, 20)
    classes: int = 10


ARCHITECTURES = {
    # 4,842 parameters, 19 KB: a whole update fits into a transaction's calldata.
    "digits": Architecture(channels=1, side=8, kernel=3, padding=1, hidden=(32,)),
    "fashion-mnist": Architecture(channels=1, side=28, kernel=5, padding=0, hidden=(50,)),
    "svhn": Architecture(channels=3, side=32, kernel=5, padding=0, hidden=(256, 72)),
}


class ConvNet(nn.Module):
    """Two convolutions, then fully connected layers."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        first, second = architecture.filters
        kernel, padding = architecture.kernel, architecture.padding
        self.conv1 = nn.Conv2d(architecture.channels, first, kernel, padding=padding)
        self.conv2 = nn.Conv2d(first, second, kernel, padding=padding)
        side = architecture.side
        for _ in range(2):
            side = (side + 2 * padding - kernel + 1) // 2
        sizes = (second * side * side, *architecture.hidden, architecture.classes)
        self.full = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, classes), of images (n, channels, side, side) in float32."""
        x = relu(max_pool2d(self.conv1(images), 2))
        x = relu(max_pool2d(self.conv2(x), 2)).flatten(1)
        for layer in self.full[:-1]:
            x = relu(layer(x))
        logits: Tensor = self.full[-1](x)
        return logits


def build(name: str, seed: int) -> ConvNet:
    """Build a data set's net; the same seed gives the same weights, and torch's global seed stays as it was.

    Raises:
        ConfigError: no such data set.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"`name` must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(ARCHITECTURES[name])
