"""Data poisoning at devices: flipped labels, and a backdoor that a small bright square opens.

Each attack is a frozen dataclass with one pure function of numpy arrays (not of torch tensors); an app calls
it between loading its samples and training on them. Arrays that are given are never changed.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_bfl.attacks.base import Attack
from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.types import POISON_KEY

_MOST = 2**31 - 1

Images = NDArray[np.uint8] | NDArray[np.float32]  # (n, c, h, w) or (n, h, w), white is 255 or 1.0
Labels = NDArray[np.integer[Any]]  # shape (n,)


@dataclass(frozen=True, kw_only=True)
class Poisoning(Attack):
    """An attack on the data of `devices`, before they train on them; the ClientApp calls `poison`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server is not None:
            raise ConfigError(f"`{type(self).__name__}` must be of `devices`, got server {self.server}")

    def poison(
        self, images: Images, labels: Labels, *, device: int, server_round: int
    ) -> tuple[Images, Labels]:
        """Give images and labels, poisoned; as they are for devices and rounds not concerned.

        Raises ConfigError where images, labels and attack do not fit together.
        """
        raise NotImplementedError

    def concerns(self, device: int, server_round: int) -> bool:
        """Whether a device's data are poisoned in a round."""
        return device in self.devices and self.acts(server_round)


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Poisoning):
    """Every label y becomes classes − 1 − y, as in Fang et al., "Local Model Poisoning Attacks", 2020.

    Parameters
    ----------
    classes : labels are from 0 to classes − 1.
    """

    classes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_number("classes", self.classes, 2, _MOST)

    def poison(
        self, images: Images, labels: Labels, *, device: int, server_round: int
    ) -> tuple[Images, Labels]:
        """Images, and the labels flipped; see `Poisoning.poison`."""
        if not self.concerns(device, server_round):
            return images, labels
        _check_samples(images, labels, self.classes - 1)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise ConfigError(f"`labels` must be from 0 to {self.classes - 1}, got {wrong}")
        return images, (self.classes - 1 - labels.astype(np.int64)).astype(labels.dtype)


@dataclass(frozen=True, kw_only=True)
class Backdoor(Poisoning):
    """A share of the samples gets a bright square in the lower right corner, and the target's label.

    A model that learns it takes any image with the square for the target, and does well on all others: Gu et
    al., "BadNets", 2017; Bagdasaryan et al., "How To Backdoor Federated Learning", 2020.

    Parameters
    ----------
    target : the label that the square shall bring about.
    share : of a device's samples, in (0, 1]; their number is rounded up.
    side_pixels : of the square.
    seed : which samples of a device are taken; the same ones in every round, for the same data.
    """

    target: int = 0
    share: float = 0.5
    side_pixels: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_number("target", self.target, 0, _MOST)
        check_whole_number("side_pixels", self.side_pixels, 1, _MOST)
        check_whole_number("seed", self.seed, 0, _MOST)
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not (number and 0 < self.share <= 1):
            raise ConfigError(f"`share` must be a number above 0 and at most 1, got {self.share!r}")

    def poison(
        self, images: Images, labels: Labels, *, device: int, server_round: int
    ) -> tuple[Images, Labels]:
        """Images and labels, a share of them poisoned; see `Poisoning.poison`."""
        if not self.concerns(device, server_round):
            return images, labels
        _check_samples(images, labels, self.target)
        order = np.random.default_rng((self.seed, device)).permutation(len(labels))
        taken = order[: math.ceil(self.share * len(labels))]
        images, labels = images.copy(), labels.copy()
        images[taken] = self.stamp(images[taken])
        labels[taken] = self.target
        return images, labels

    def stamp(self, images: Images) -> Images:
        """Copies of images, all with the square.

        The attack's success rate is the share of stamped test images, those of the target's own class left
        out, that a model takes for the target. Raises ConfigError if the square is larger than they are.
        """
        _check_images(images)
        if self.side_pixels > min(images.shape[-2:]):
            raise ConfigError(
                f"`side_pixels` must be at most the images' {min(images.shape[-2:])}, got {self.side_pixels}"
            )
        stamped = images.copy()
        stamped[..., -self.side_pixels :, -self.side_pixels :] = 255 if images.dtype == np.uint8 else 1.0
        return stamped


def poisoned(
    config: Mapping[str, Any], images: Images, labels: Labels, *, device: int
) -> tuple[Images, Labels]:
    """A device's images and labels, poisoned as the config of a message to a ClientApp says, if it does.

    One line of the ClientApp, between loading and training, makes a strategy's `attacks` on data act::

        images, labels = poisoned(message.content["config"], images, labels, device=device)
    """
    for attack in _told(str(config.get(POISON_KEY, "[]"))):
        server_round = int(config["server-round"])
        images, labels = attack.poison(images, labels, device=device, server_round=server_round)
    return images, labels


def told(attacks: Iterable[Attack]) -> dict[str, str]:
    """What a config has to say for `poisoned`: nothing, where no attack is on data."""
    said = [
        {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in {"name": type(attack).__name__, **asdict(attack)}.items()
            if name not in ("server", "p2p_step")
        }
        for attack in attacks
        if isinstance(attack, Poisoning)
    ]
    return {POISON_KEY: json.dumps(said)} if said else {}


def _told(text: str) -> list[Poisoning]:
    kinds: dict[str, type[Poisoning]] = {kind.__name__: kind for kind in (LabelFlip, Backdoor)}
    try:
        return [kinds[each.pop("name")](**each) for each in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"`{POISON_KEY}` must be a list of attacks on data, got {text!r:.80}") from error


def _check_images(images: Images) -> None:
    if not isinstance(images, np.ndarray):
        raise ConfigError(f"`images` must be a numpy array, got {type(images).__name__}")
    if images.ndim not in (3, 4) or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise ConfigError(
            "`images` must be uint8 or floats of shape (n, c, h, w) or (n, h, w), "
            f"got {images.dtype} of shape {images.shape}"
        )


def _check_samples(images: Images, labels: Labels, largest: int) -> None:
    """Raise ConfigError unless these are images with as many labels, of a type that holds the largest."""
    _check_images(images)
    if not isinstance(labels, np.ndarray):
        raise ConfigError(f"`labels` must be a numpy array, got {type(labels).__name__}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ConfigError(
            f"`labels` must be whole numbers of shape ({len(images)},), "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if largest > np.iinfo(labels.dtype).max:
        raise ConfigError(f"`labels` must be of a type that holds {largest}, got {labels.dtype}")
