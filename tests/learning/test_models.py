"""The nets: the paper's sizes, counted by hand, and reproducible weights."""

import pytest
import torch

from flower_bfl.errors import ConfigError
from flower_bfl.learning.models import ARCHITECTURES, build

CALLDATA_LIMIT_BYTES = 24 * 1024


# A convolution has (k·k·in + 1)·out parameters, a full layer (in + 1)·out.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("digits", (9 * 1 + 1) * 10 + (9 * 10 + 1) * 20 + (20 * 2 * 2 + 1) * 32 + (32 + 1) * 10),
        ("fashion-mnist", (25 * 1 + 1) * 10 + (25 * 10 + 1) * 20 + (320 + 1) * 50 + (50 + 1) * 10),
        (
            "svhn",
            (25 * 3 + 1) * 10 + (25 * 10 + 1) * 20 + (500 + 1) * 256 + (256 + 1) * 72 + (72 + 1) * 10,
        ),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert sum(weights.numel() for weights in build(name, seed=0).parameters()) == parameters


def test_fashion_mnist_has_the_known_count() -> None:
    assert sum(weights.numel() for weights in build("fashion-mnist", seed=0).parameters()) == 21_840


def test_digits_fits_into_calldata() -> None:
    state = build("digits", seed=0).state_dict().values()
    assert all(array.dtype == torch.float32 for array in state)
    assert sum(array.numel() * 4 for array in state) < CALLDATA_LIMIT_BYTES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_net_takes_its_images(name: str) -> None:
    architecture = ARCHITECTURES[name]
    images = torch.zeros(3, architecture.channels, architecture.side, architecture.side)
    assert build(name, seed=0)(images).shape == (3, 10)


def test_same_seed_same_weights_and_torchs_seed_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build("digits", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="`name` must be one of digits, fashion-mnist, svhn, got 'cifar'"):
        build("cifar", seed=0)
