"""Partitions: disjoint, complete, reproducible, and as uneven as asked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.errors import ConfigError
from flower_bfl.learning.partition import partition

sizes = st.integers(40, 400)
seeds = st.integers(0, 2**32 - 1)
device_counts = st.integers(1, 20)


def balanced_labels(samples: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(samples).permutation(np.arange(samples) % classes)


def assert_disjoint(parts: list[np.ndarray]) -> np.ndarray:
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert all(part.dtype == np.int64 and part.size > 0 and (np.diff(part) > 0).all() for part in parts)
    return together


@given(samples=sizes, devices=device_counts, seed=seeds)
def test_iid_covers_everything_in_equal_parts(samples: int, devices: int, seed: int) -> None:
    parts = partition(balanced_labels(samples), devices, "iid", seed=seed)
    assert sorted(assert_disjoint(parts)) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(samples=sizes, devices=st.integers(1, 8), seed=seeds, alpha=st.floats(0.2, 100))
def test_dirichlet_covers_everything(samples: int, devices: int, seed: int, alpha: float) -> None:
    parts = partition(balanced_labels(samples), devices, "dirichlet", seed=seed, alpha=alpha)
    assert sorted(assert_disjoint(parts)) == list(range(samples))


@given(devices=device_counts, seed=seeds, per_device=st.integers(1, 10), classes=st.integers(10, 12))
def test_labels_gives_each_device_exactly_its_number(
    devices: int, seed: int, per_device: int, classes: int
) -> None:
    labels = balanced_labels(600, classes)
    parts = partition(labels, devices, "labels", seed=seed, labels_per_device=per_device)
    together = assert_disjoint(parts)
    assert [len(np.unique(labels[part])) for part in parts] == [per_device] * devices
    covered = np.unique(labels[together])
    assert len(covered) == min(classes, devices * per_device)
    # Whoever holds a label has it to an equal share, and every sample of a held label is somebody's.
    for label in covered:
        shares = [int((labels[part] == label).sum()) for part in parts if label in labels[part]]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == (labels == label).sum()


@pytest.mark.parametrize("kind", ["iid", "labels", "dirichlet"])
def test_same_seed_same_parts(kind: str) -> None:
    labels = balanced_labels(500)
    first, again, other = (partition(labels, 10, kind, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_test_set_is_cut_by_the_same_labels() -> None:
    train, test = balanced_labels(1000), balanced_labels(333)
    cut = [partition(labels, 10, "labels", seed=7) for labels in (train, test)]
    for of_train, of_test in zip(*cut, strict=True):
        assert set(train[of_train]) == set(test[of_test])


def test_dirichlet_is_uneven_for_a_small_alpha_and_even_for_a_large_one() -> None:
    labels = balanced_labels(10_000)

    def largest_share(alpha: float) -> float:
        """Mean over devices of the share of the commonest label; 0.1 if IID, 1 if each holds one label."""
        parts = partition(labels, 10, "dirichlet", seed=1, alpha=alpha)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_share(0.1) > 0.4
    assert largest_share(1e4) < 0.12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 0}, "`devices` must be at least 1, got 0"),
        ({"devices": 101}, "`devices` must be at most the number of samples, 100, got 101"),
        ({"kind": "sorted"}, "`kind` must be one of iid, labels, dirichlet, got 'sorted'"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"kind": "labels", "labels_per_device": 0}, "`labels_per_device` must be from 1 to .* 10, got 0"),
        ({"kind": "labels", "labels_per_device": 11}, "`labels_per_device` must be from 1 to .* 10, got 11"),
        (
            {"kind": "labels", "devices": 100},
            "`devices` must leave every device a sample of each of its labels",
        ),
        ({"kind": "dirichlet", "alpha": 0.0}, "`alpha` must be a finite number above 0, got 0.0"),
        ({"kind": "dirichlet", "alpha": float("inf")}, "`alpha` must be a finite number above 0, got inf"),
        (
            {"kind": "dirichlet", "alpha": 1e-3, "devices": 50},
            "`alpha` must leave no device without samples: .* got 0.001",
        ),
        ({"labels": np.zeros((10, 10), dtype=int)}, "`labels` must be a one-dimensional integer array"),
        ({"labels": np.zeros(100)}, "`labels` must be a one-dimensional integer array, got float64"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition(**({"labels": balanced_labels(100), "devices": 10, "seed": 0} | arguments))
