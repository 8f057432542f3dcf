"""Which device holds which samples: IID, a few labels a device, or Dirichlet."""

from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ConfigError

Kind = Literal["iid", "labels", "dirichlet"]

_DIRICHLET_DRAWS = 100

_Indices = NDArray[np.int64]


def partition(
    labels: NDArray[np.integer[Any]],
    devices: int,
    kind: Kind = "iid",
    *,
    seed: int,
    labels_per_device: int = 2,
    alpha: float = 0.5,
) -> list[_Indices]:
    """Split the samples among the devices; the same seed gives the same parts.

    A device's labels ("labels") and its shares of each label ("dirichlet") are drawn before any sample is, so
    a training and a test set of the same classes give a device the same ones (unless Dirichlet had to draw
    again).

    Args:
        labels: the class of every sample, shape (n,).
        devices: how many parts to make, N.
        kind: "iid": shuffled and cut into N parts whose sizes differ by at most one.
            "labels": every device holds exactly `labels_per_device` labels (the paper's non-IID setting: 2
            for Fashion-MNIST, 3 for SVHN). Labels are handed out evenly, and a label is shared equally among
            the devices that hold it. Where N·labels_per_device is below the number of classes, the samples
            of the labels that nobody holds are left out.
            "dirichlet": of each label, device n holds a share p_n with p ~ Dir(alpha, ..., alpha), after Hsu,
            Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
            Classification", 2019.
        seed: a non-negative integer.
        labels_per_device: for "labels" only.
        alpha: for "dirichlet" only; small is uneven, large is nearly IID.

    Returns:
        N disjoint arrays of indices into `labels`, int64 and ascending, none of them empty.

    Raises:
        ConfigError: an argument breaks a rule, or a device would be left without samples.
    """
    labels = np.asarray(labels)
    _check(labels, devices, kind, seed)
    rng = np.random.default_rng(seed)
    if kind == "iid":
        parts = np.array_split(rng.permutation(labels.size), devices)
    elif kind == "labels":
        parts = _by_labels(labels, devices, labels_per_device, rng)
    else:
        parts = _by_dirichlet(labels, devices, alpha, rng)
    return [np.sort(part).astype(np.int64) for part in parts]


def _check(labels: NDArray[Any], devices: int, kind: str, seed: int) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"`labels` must be a one-dimensional integer array, got {labels.dtype} of shape {labels.shape}"
        )
    if kind not in get_args(Kind):
        raise ConfigError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if seed < 0:
        raise ConfigError(f"`seed` must be at least 0, got {seed}")
    if devices < 1:
        raise ConfigError(f"`devices` must be at least 1, got {devices}")
    if devices > labels.size:
        raise ConfigError(f"`devices` must be at most the number of samples, {labels.size}, got {devices}")


def _by_labels(
    labels: NDArray[Any], devices: int, labels_per_device: int, rng: np.random.Generator
) -> list[_Indices]:
    classes = np.unique(labels)
    if not 1 <= labels_per_device <= classes.size:
        raise ConfigError(
            f"`labels_per_device` must be from 1 to the number of classes, {classes.size}, "
            f"got {labels_per_device}"
        )
    holders = _hand_out(classes.size, devices, labels_per_device, rng)
    parts: list[list[_Indices]] = [[] for _ in range(devices)]
    for label, holding in zip(classes, holders, strict=True):
        samples = rng.permutation(np.flatnonzero(labels == label))
        if samples.size < len(holding):
            raise ConfigError(
                f"`devices` must leave every device a sample of each of its labels: label {label} has "
                f"{samples.size} samples for {len(holding)} devices, got devices={devices}"
            )
        for device, share in zip(holding, np.array_split(samples, max(1, len(holding))), strict=False):
            parts[device].append(share)
    return [np.concatenate(shares) for shares in parts]


def _hand_out(
    classes: int, devices: int, labels_per_device: int, rng: np.random.Generator
) -> list[list[int]]:
    """The devices that hold each label: every device takes the labels least taken so far, ties by lot."""
    holders: list[list[int]] = [[] for _ in range(classes)]
    for device in range(devices):
        taken = np.array([len(holding) for holding in holders])
        for label in np.lexsort((rng.random(classes), taken))[:labels_per_device]:
            holders[label].append(device)
    return holders


def _by_dirichlet(
    labels: NDArray[Any], devices: int, alpha: float, rng: np.random.Generator
) -> list[_Indices]:
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"`alpha` must be a finite number above 0, got {alpha}")
    samples = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_DIRICHLET_DRAWS):
        shares = rng.dirichlet(np.full(devices, alpha), size=len(samples))
        cuts = [_cuts(share, indices.size) for share, indices in zip(shares, samples, strict=True)]
        sizes = np.sum([np.diff(cut) for cut in cuts], axis=0)
        if sizes.min() > 0:
            break
    else:
        raise ConfigError(
            f"`alpha` must leave no device without samples: none of {_DIRICHLET_DRAWS} draws "
            f"for {devices} devices and {labels.size} samples did, got {alpha}"
        )
    shuffled = [rng.permutation(indices) for indices in samples]
    pieces = [[indices[a:b] for a, b in pairwise(cut)] for indices, cut in zip(shuffled, cuts, strict=True)]
    return [np.concatenate(of_device) for of_device in zip(*pieces, strict=True)]


def _cuts(share: NDArray[np.float64], samples: int) -> _Indices:
    """Where to cut a label's samples to give each device its share; shape (N + 1,), from 0 to `samples`."""
    inner = np.rint(np.cumsum(share)[:-1] * samples).astype(np.int64)
    return np.concatenate(([0], np.minimum(inner, samples), [samples]))
