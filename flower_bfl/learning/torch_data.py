"""PyTorch data sets as the named arrays that devices offload, and back."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from flower_bfl.errors import ConfigError
from flower_bfl.learning.offloading import Data


def as_arrays(dataset: Dataset[Any], names: Sequence[str] = ("x", "y")) -> dict[str, NDArray[np.generic]]:
    """All samples of a map-style data set whose items are tuples, one array for each place of the tuple.

    Transforms are applied: what is sent is what the model would see.

    Raises:
        ConfigError: the data set is empty, or its items are no tuples of `len(names)`.
    """
    size = len(dataset)  # type: ignore[arg-type]  # a map-style data set has one
    items = [dataset[i] for i in range(size)]
    if not items or not all(isinstance(item, tuple | list) and len(item) == len(names) for item in items):
        raise ConfigError(
            f"`dataset` must have items that are tuples of {len(names)}, {tuple(names)}, "
            f"got {size} of {type(items[0]).__name__ if items else 'nothing'}"
        )
    return {
        name: cast(NDArray[np.generic], default_collate([item[place] for item in items]).numpy())
        for place, name in enumerate(names)
    }


def as_loader(
    data: Data, batch_size: int, *, shuffle: bool = True, seed: int | None = None
) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of the arrays, as tuples of tensors in the arrays' order."""
    tensors = (torch.from_numpy(np.array(array)) for array in data.values())  # received arrays are read-only
    draws = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size, shuffle=shuffle, generator=draws)
