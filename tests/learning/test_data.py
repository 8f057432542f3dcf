"""The loaders: shapes, the fixed split, SVHN's own format, and what they say when files are missing."""

import os
import socket
import struct
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from scipy.io import savemat

from flower_bfl.errors import ConfigError
from flower_bfl.learning.data import FOLDER_VARIABLE, load, load_file

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Every download fails at once; gives the time limits that were set when it was tried."""
    limits: list[float | None] = []

    def refuse(*_: Any, **__: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return limits


def write_svhn(folder: Path, train: int = 30, test: int = 20) -> dict[str, np.ndarray]:
    """Files in SVHN's own format: X (32, 32, 3, n), y (n, 1) from 1 to 10."""
    rng = np.random.default_rng(0)
    images = {}
    for split, samples in (("train", train), ("test", test)):
        images[split] = rng.integers(0, 256, (32, 32, 3, samples), dtype=np.uint8)
        labels = (np.arange(samples, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images[split], "y": labels})
    return images


def test_digits_has_a_fixed_stratified_split() -> None:
    data = load("digits")
    assert data.train_images.shape == (1442, 1, 8, 8)
    assert data.test_images.shape == (355, 1, 8, 8)
    assert data.train_images.dtype == np.uint8
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    assert data.classes == 10
    # Published counts a class, e.g. 178 zeros; a fifth of each, rounded down, is for testing.
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(data.test_labels).tolist() == [count // 5 for count in counts]
    assert np.bincount(data.train_labels).tolist() == [count - count // 5 for count in counts]
    again = load("digits")
    assert np.array_equal(data.test_images, again.test_images)


def test_svhn_reads_its_own_format(tmp_path: Path) -> None:
    images = write_svhn(tmp_path)
    data = load("svhn", tmp_path)
    assert data.train_images.shape == (30, 3, 32, 32)
    assert data.test_images.shape == (20, 3, 32, 32)
    assert data.train_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 3
    assert data.train_images[4, 2, 7, 9] == images["train"][7, 9, 2, 4]


def test_svhn_that_is_damaged_says_so(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"test_32x32\.mat cannot be read; remove it"):
        load("svhn", tmp_path)


def test_svhn_of_another_shape_says_so(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    small = {"X": np.zeros((28, 28, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)}
    savemat(tmp_path / "train_32x32.mat", small)
    with pytest.raises(ConfigError, match=r"not uint8 of shape \(32, 32, 3, 2\)"):
        load("svhn", tmp_path)


def write_fashion_mnist(folder: Path) -> None:
    """Tiny files in the idx format that Fashion-MNIST is published in."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, samples in (("train", 6), ("t10k", 4)):
        pixels = np.arange(samples * 784, dtype=np.uint32).astype(np.uint8)
        images = struct.pack(">IIII", 0x803, samples, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 0x801, samples) + bytes(range(samples))
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{split}-{name}-ubyte").write_bytes(content)


def test_fashion_mnist_reads_torchvisions_layout(tmp_path: Path, no_network: list[float | None]) -> None:
    write_fashion_mnist(tmp_path)
    data = load("fashion-mnist", tmp_path)
    assert data.train_images.shape == (6, 1, 28, 28)
    assert data.train_images.dtype == np.uint8
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert data.train_images[1, 0, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert no_network == []


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="Fashion-MNIST's files are not in ../shared/data")
def test_fashion_mnist_itself() -> None:
    data = load("fashion-mnist", SHARED_DATA)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    # Published: balanced classes.
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10


@pytest.mark.parametrize("name", ["fashion-mnist", "svhn"])
def test_without_files_and_network_it_says_what_to_do(
    name: str, tmp_path: Path, no_network: list[float | None]
) -> None:
    with pytest.raises(
        ConfigError, match=r"`folder` must hold .* put the files there, or name another"
    ) as raised:
        load(name, tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert no_network
    assert all(limit is not None and limit <= 30 for limit in no_network)
    assert socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="`folder` must hold"):
        load("svhn", tmp_path / "file")


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, os.fspath(tmp_path))
    assert load("svhn").train_labels.size == 30


def test_the_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    folder = tmp_path / ".cache" / "flower-bfl"
    folder.mkdir(parents=True)
    write_svhn(folder)
    assert load("svhn").train_labels.size == 30


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="`name` must be one of digits, fashion-mnist, svhn, got 'mnist'"):
        load("mnist")


# --- a file of one's own ------------------------------------------------------------------------------------


def own_arrays(**changed: Any) -> dict[str, Any]:
    """Three images to train on, two to test with."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (3, 1, 4, 5), dtype=np.uint8),
        "train_labels": np.array([0, 9, 4], np.int32),
        "test_images": rng.integers(0, 256, (2, 1, 4, 5), dtype=np.uint8),
        "test_labels": np.array([7, 7], np.uint8),
    }
    return {name: value for name, value in (arrays | changed).items() if value is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_of_ones_own(save: Any, tmp_path: Path) -> None:
    arrays = own_arrays()
    save(tmp_path / "own.npz", **arrays, more=np.zeros(3))
    data = load_file(tmp_path / "own.npz")
    for name, array in arrays.items():
        assert np.array_equal(getattr(data, name), array)
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.train_images.dtype == np.uint8
    assert data.classes == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_labels": None}, r"`path` must be an \.npz with train_images, .*got .*own\.npz"),
        ({"train_images": np.zeros((3, 1, 4, 5))}, r"`train_images` must be uint8 .*got float64 of shape"),
        (
            {"test_images": np.zeros((2, 4, 5), np.uint8)},
            r"`test_images` must be .*got uint8 of shape \(2, 4, 5\)",
        ),
        ({"test_images": np.zeros((0, 1, 4, 5), np.uint8)}, r"`test_images` must be .*got .*\(0, 1, 4, 5\)"),
        ({"test_images": np.uint8(3)}, r"`test_images` must be .*got uint8 of shape \(\)"),
        (
            {"train_labels": np.zeros(4, int)},
            r"`train_labels` must be 3 whole numbers, got int64 of shape \(4,\)",
        ),
        ({"train_labels": np.zeros((3, 1), int)}, r"`train_labels` must be 3 whole numbers, got .*\(3, 1\)"),
        ({"train_labels": np.zeros(3)}, r"`train_labels` must be 3 whole numbers, got float64"),
        ({"train_labels": np.zeros(3, bool)}, r"`train_labels` must be 3 whole numbers, got bool"),
        ({"test_labels": np.array([0, 10])}, r"`test_labels` must be from 0 to 9, got 0 to 10"),
        ({"test_labels": np.array([-1, 1])}, r"`test_labels` must be from 0 to 9, got -1 to 1"),
    ],
)
def test_a_file_with_something_else(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **own_arrays(**changed))
    with pytest.raises(ConfigError, match=message):
        load_file(tmp_path / "own.npz")


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    objects = np.array([Touches(harm)] * 3, dtype=object)
    np.savez(tmp_path / "own.npz", **own_arrays(train_labels=objects))
    with pytest.raises(ConfigError, match=r"`path` must be an \.npz"):
        load_file(tmp_path / "own.npz")
    assert not harm.exists()
    with np.load(tmp_path / "own.npz", allow_pickle=True) as file:
        _ = file["train_labels"]
    assert harm.exists(), "the file is what it is thought to be"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00 cut off"])
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    for path in (tmp_path / "own.npz", tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(ConfigError, match=r"`path` must be an \.npz"):
            load_file(path)


def test_one_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"`path` must be an \.npz"):
        load_file(tmp_path / "own.npy")


def test_a_damaged_archive_is_told_whichever_byte_it_is(tmp_path: Path) -> None:
    """Or, where the byte means nothing, read as it was."""
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **own_arrays())
    whole, told = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            data = load_file(path)
        except ConfigError:
            told += 1
        else:
            assert np.array_equal(data.train_images, own_arrays()["train_images"])
    assert told > 20
