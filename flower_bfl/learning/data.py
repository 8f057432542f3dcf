"""The data sets: scikit-learn's digits, Fashion-MNIST and SVHN.

Images are kept as uint8, a quarter of the memory of float32, which matters where ten clients share a machine
(SVHN: 225 MB); `flower_bfl.learning.training` maps 0...255 to -1...1 batch by batch.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import ConfigError

Name = Literal["digits", "fashion-mnist", "svhn"]

FOLDER_VARIABLE = "FLOWER_BFL_DATA"

_MOST_BYTES = 1 << 32  # of a file of one's own, once it is unpacked

_DOWNLOAD_TIMEOUT_S = 20.0

_DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException, EOFError)

_Images = NDArray[np.uint8]
_Labels = NDArray[np.int64]
_Part = tuple[_Images, _Labels]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their classes, c channels of h x w pixels from 0 (black) to 255."""

    train_images: _Images  # shape (n, c, h, w)
    train_labels: _Labels  # shape (n,), 0 ... classes - 1
    test_images: _Images
    test_labels: _Labels
    classes: int


def load(name: Name, folder: Path | None = None) -> Dataset:
    """Load a data set; download it first where it is missing and a network answers.

    - "digits": 1,797 images, 1 x 8 x 8, from scikit-learn's wheel. Test set: every fifth image of each class
      in the set's own order, 355 images, so the split is stratified and fixed; writers are in both parts.
    - "fashion-mnist": 60,000 + 10,000 images, 1 x 28 x 28, in torchvision's layout `folder/FashionMNIST/raw`.
    - "svhn": 73,257 + 26,032 images, 3 x 32 x 32, from `folder/train_32x32.mat` and `folder/test_32x32.mat`.
      Files that are already there are read as they are, so a subset of your own works too; downloads are
      checked by md5.

    Args:
        name: which data set.
        folder: where the files are, or shall be kept; by default the environment variable FLOWER_BFL_DATA,
            else `~/.cache/flower-bfl`. Not used for "digits".

    Raises:
        ConfigError: no such data set; or its files are not there, not readable, and not to be downloaded.
    """
    if name not in get_args(Name):
        raise ConfigError(f"`name` must be one of {', '.join(get_args(Name))}, got {name!r}")
    if name == "digits":
        return _digits()
    folder = (folder or default_folder()).expanduser()
    part = _fashion_mnist if name == "fashion-mnist" else _svhn
    return Dataset(*part(folder, train=True), *part(folder, train=False), classes=10)


def load_file(path: Path) -> Dataset:
    """Load a data set of your own: an .npz with train_images, train_labels, test_images and test_labels.

    Images are uint8 of shape (n, c, h, w), labels whole numbers from 0 to 9 of shape (n,).

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    names = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            size = sum(file.zip.getinfo(f"{name}.npy").file_size for name in names)
            if size > _MOST_BYTES:
                raise ValueError(f"unpacked it has {size:,} bytes, and may have {_MOST_BYTES:,}")
            arrays = {name: file[name] for name in names}
    # As with SVHN's: which error numpy raises depends on the byte that is damaged.
    except Exception as error:
        raise ConfigError(f"`path` must be an .npz with {', '.join(names)}, got {path} ({error})") from error
    for images, labels in (("train_images", "train_labels"), ("test_images", "test_labels")):
        found, classes = arrays[images], arrays[labels]
        if found.dtype != np.uint8 or found.ndim != 4 or not len(found):
            raise ConfigError(
                f"`{images}` must be uint8 of shape (n, c, h, w), got {found.dtype} of shape {found.shape}"
            )
        if classes.shape != (len(found),) or classes.dtype.kind not in "iu":
            raise ConfigError(
                f"`{labels}` must be {len(found)} whole numbers, got {classes.dtype} of shape {classes.shape}"
            )
        if classes.min() < 0 or classes.max() > 9:
            raise ConfigError(f"`{labels}` must be from 0 to 9, got {classes.min()} to {classes.max()}")
        arrays[labels] = classes.astype(np.int64)
    return Dataset(**arrays, classes=10)


def default_folder() -> Path:
    """The folder from FLOWER_BFL_DATA, or `~/.cache/flower-bfl`."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "flower-bfl")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    held_out = np.zeros(labels.size, dtype=bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    return Dataset(images[~held_out], labels[~held_out], images[held_out], labels[held_out], classes=10)


def _fashion_mnist(folder: Path, *, train: bool) -> _Part:
    from torchvision.datasets import FashionMNIST  # type: ignore[import-untyped]

    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            files = FashionMNIST(folder, train=train, download=True)
    except _DOWNLOAD_ERRORS as error:
        raise _missing(
            "Fashion-MNIST's four idx files (gzipped or not), in FashionMNIST/raw", folder, error
        ) from error
    return files.data.numpy()[:, None], files.targets.numpy()


def _svhn(folder: Path, *, train: bool) -> _Part:
    split = "train" if train else "test"
    path = folder / f"{split}_32x32.mat"
    if not path.exists():
        _download_svhn(folder, split)
    return _read_svhn(path)


def _download_svhn(folder: Path, split: str) -> None:
    from torchvision.datasets import SVHN

    try:
        with _timeout(_DOWNLOAD_TIMEOUT_S):
            SVHN(folder, split=split, download=True)
    except _DOWNLOAD_ERRORS as error:
        raise _missing("SVHN's train_32x32.mat and test_32x32.mat", folder, error) from error


def _read_svhn(path: Path) -> _Part:
    """Read SVHN's "cropped digits" format: X of shape (32, 32, 3, n), y from 1 to 10, 10 for the digit 0.

    Not with torchvision, which refuses every file but the published ones.
    """
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path)
        images, labels = content["X"], content["y"].ravel().astype(np.int64)
    # Which error scipy raises for a damaged file depends on the byte that is damaged.
    except Exception as error:
        raise ConfigError(
            f"`folder` must hold SVHN's files, but {path} cannot be read; remove it to have it downloaded "
            f"anew ({error!r})"
        ) from error
    if images.shape != (32, 32, 3, labels.size) or images.dtype != np.uint8:
        raise ConfigError(
            f"`folder` must hold SVHN's files, but X in {path} is {images.dtype} of shape {images.shape} "
            f"for {labels.size} labels, not uint8 of shape (32, 32, 3, {labels.size})"
        )
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels % 10


def _missing(what: str, folder: Path, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines() or [repr(error)]
    return ConfigError(
        f"`folder` must hold {what}, or a network must be there to download them, got {folder.absolute()}; "
        f"put the files there, or name another folder by {FOLDER_VARIABLE} ({reason[-1]})"
    )


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit every wait for the network; torchvision's downloads have no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
