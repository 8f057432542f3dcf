"""Training: reproducible bit for bit, right on the edges, and it learns."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flower_bfl.errors import ConfigError
from flower_bfl.learning.data import load
from flower_bfl.learning.models import build
from flower_bfl.learning.training import evaluate, to_tensor, train


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def some_samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, count)


def trained_weights(seed: int, samples: int = 100) -> dict[str, torch.Tensor]:
    model = build("digits", seed=0)
    train(model, *some_samples(samples), seed=seed)
    return model.state_dict()


def test_same_seed_same_weights_bit_for_bit() -> None:
    before = torch.random.get_rng_state()
    first = trained_weights(5)
    torch.manual_seed(999)  # what else happened in the process must not matter
    again, other = trained_weights(5), trained_weights(6)
    torch.random.set_rng_state(before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_dropout_is_reproducible_and_torchs_state_is_left_alone() -> None:
    def weights() -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        before = torch.random.get_rng_state()
        train(model, *some_samples(50), seed=1)
        assert torch.equal(torch.random.get_rng_state(), before)
        return model[2].weight.detach()

    first = weights()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert torch.equal(first, weights())


def test_one_step_is_adams_first_step() -> None:
    """Adam's first step moves every weight by learning_rate·g/(|g| + eps), whatever the size of g."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    start = model[1].bias.detach().clone()
    images, labels = some_samples(20)
    loss = nn.functional.cross_entropy(model(to_tensor(images)), torch.from_numpy(labels))
    gradient = torch.autograd.grad(loss, model[1].bias)[0]
    result = train(model, images, labels, steps=1, batch_size=20, learning_rate=0.01, seed=0)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    expected = start - 0.01 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(model[1].bias, expected, atol=1e-6)


def test_a_set_smaller_than_a_batch_is_used_whole() -> None:
    result = train(build("digits", seed=0), *some_samples(3), steps=4, batch_size=25, seed=0)
    assert (result.steps, result.examples) == (4, 3)
    assert math.isfinite(result.loss)


def test_evaluation_against_counting_by_hand() -> None:
    class Constant(nn.Module):
        """Gives class 1 the logit ln 3 and class 0 the logit 0: probabilities 3/4 and 1/4."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.0, math.log(3)]).expand(len(images), 2)

    labels = np.array([1] * 450 + [0] * 150)  # more than one evaluation batch
    result = evaluate(Constant(), np.zeros((600, 1, 8, 8), np.uint8), labels)
    assert result.accuracy == 0.75
    assert result.loss == pytest.approx(-(0.75 * math.log(3 / 4) + 0.25 * math.log(1 / 4)), rel=1e-6)


def test_uint8_is_mapped_to_minus_one_to_one_and_float32_is_not() -> None:
    assert to_tensor(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    assert to_tensor(np.array([0.25, 7.0], np.float32)).tolist() == [0.25, 7.0]


def test_digits_are_learned() -> None:
    data, model = load("digits"), build("digits", seed=1)
    train(model, data.train_images, data.train_labels, steps=300, learning_rate=0.003, seed=1)
    assert evaluate(model, data.test_images, data.test_labels).accuracy > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0, got 0.0"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a finite number above 0, got nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(build("digits", seed=0), *some_samples(5), seed=0, **arguments)


def test_no_samples() -> None:
    model = build("digits", seed=0)
    with pytest.raises(ConfigError, match="`labels` must not be empty"):
        train(model, *some_samples(0), seed=0)
    with pytest.raises(ConfigError, match="`labels` must not be empty"):
        evaluate(model, *some_samples(0))


def test_images_and_labels_of_unequal_length() -> None:
    images, labels = some_samples(5)
    with pytest.raises(ConfigError, match="`images` must be as many as labels, 4, got 5"):
        train(build("digits", seed=0), images, labels[:4], seed=0)
