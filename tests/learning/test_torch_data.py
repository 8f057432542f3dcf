"""PyTorch data sets to arrays and back lose nothing."""

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from flower_bfl.errors import ConfigError
from flower_bfl.learning.torch_data import as_arrays, as_loader


def pairs(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count * 6.0).reshape(count, 2, 3), torch.arange(count))


def test_arrays_are_the_samples_in_order():
    arrays = as_arrays(Subset(pairs(5), [3, 1]))
    assert [*arrays] == ["x", "y"] and arrays["x"].dtype == np.float32 and arrays["y"].dtype == np.int64
    np.testing.assert_array_equal(arrays["x"], np.arange(30.0).reshape(5, 2, 3)[[3, 1]])
    np.testing.assert_array_equal(arrays["y"], [3, 1])


def test_plain_numbers_are_labels():
    arrays = as_arrays([(torch.zeros(2), 4), (torch.ones(2), 7)], names=("features", "label"))
    np.testing.assert_array_equal(arrays["label"], [4, 7])


def test_batches_hold_every_sample_once():
    arrays = as_arrays(pairs(7))
    for array in arrays.values():
        array.flags.writeable = False  # as they come from a message
    batches = list(as_loader(arrays, 3, seed=1))
    assert [len(y) for _, y in batches] == [3, 3, 1]
    order = torch.cat([y for _, y in batches])
    assert sorted(order.tolist()) == list(range(7)) and order.tolist() != list(range(7))
    np.testing.assert_array_equal(torch.cat([x for x, _ in batches]), arrays["x"][order])
    again = torch.cat([y for _, y in as_loader(arrays, 3, seed=1)])
    assert torch.equal(again, order)


@pytest.mark.parametrize("dataset", [[], [1, 2], [(1, 2, 3)], pairs(0)])
def test_what_is_no_set_of_pairs_is_refused(dataset):
    with pytest.raises(ConfigError, match="`dataset` must have items that are tuples of 2"):
        as_arrays(dataset)
