"""A federation in this process, for the benchmarks of attacks: real Flower messages, no Ray.

Importing it turns Flower's log off. Two kinds of devices: `Walkers` move the model by heavy-tailed random
steps, in no time; `Training` trains the package's networks, all devices in one batch.
"""

import csv
import logging
import os
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scipy.stats import t as student_t

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
logging.getLogger("flwr").setLevel(logging.ERROR)

Arrays = dict[str, np.ndarray]
Metrics = dict[str, int | float]
Train = Callable[[int, Mapping[int, Arrays]], Mapping[int, tuple[Arrays, Metrics] | None]]
"""A round of training: from the models sent, by device, to what each replies; None: it fails."""

# The network for Fashion-MNIST, 21,840 parameters.
CNN = {
    "conv1.weight": (10, 1, 5, 5), "conv1.bias": (10,), "conv2.weight": (20, 10, 5, 5), "conv2.bias": (20,),
    "full.0.weight": (50, 320), "full.0.bias": (50,), "full.1.weight": (10, 50), "full.1.bias": (10,),
}  # fmt: skip


class Federation:
    """Grid whose nodes answer at once, with random ids and in random order, as Flower's do."""

    def __init__(self, devices: int, train: Train, seed: int) -> None:
        self._random = random.Random(seed)
        self.nodes = self._random.sample(range(1, 10**9), devices)
        self._device = {node: device for device, node in enumerate(self.nodes)}
        self._train = train

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Any, timeout: float | None = None) -> list[Message]:
        asked = {self._device[message.metadata.dst_node_id]: message for message in messages}
        if not asked:
            return []
        read: dict[int, Arrays] = {}  # a record that many messages share is read once
        sent = {}
        for device, message in sorted(asked.items()):
            record = message.content["arrays"]
            if id(record) not in read:
                read[id(record)] = values(record)
            sent[device] = read[id(record)]
        server_round = next(iter(asked.values())).content["config"]["server-round"]
        trained = self._train(server_round, sent)
        replies = [self._reply(message, device, trained[device]) for device, message in asked.items()]
        self._random.shuffle(replies)
        return replies

    def _reply(self, message: Message, device: int, trained: tuple[Arrays, Metrics] | None) -> Message:
        if trained is None:
            return Message(Error(code=0, reason="out of reach"), reply_to=message)
        arrays, metrics = trained
        told = MetricRecord({**metrics, "device-index": device})
        return Message(RecordDict({"arrays": record(arrays), "metrics": told}), reply_to=message)


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def values(arrays: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}


def flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


def named(vector: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    arrays, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = vector[start : start + size].reshape(shape)
        start += size
    return arrays


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def shapes_with(parameters: int) -> dict[str, tuple[int, ...]]:
    """Of a model with so many parameters; the network for Fashion-MNIST where they are its own."""
    if parameters == sum(int(np.prod(shape)) for shape in CNN.values()):
        return dict(CNN)
    rows = max(row for row in range(1, int(parameters**0.5) + 1) if parameters % row == 0)
    return {"full.weight": (rows, parameters // rows)}


def initial(shapes: Mapping[str, tuple[int, ...]], seed: int) -> ArrayRecord:
    rng = np.random.default_rng(seed)
    return record({name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()})


class Walkers:
    """Devices that move the model by steps like gradients: a direction in common, heavy tails, own sizes.

    Their sample counts, numbers of SGD steps and step sizes are drawn from the seed.
    """

    _pool: dict[int, np.ndarray] = {}  # noqa: RUF012  # heavy-tailed noise, drawn once for each model size

    def __init__(self, seed: int, devices: int, *, equal: bool = False, failing: float = 0.0) -> None:
        rng = np.random.default_rng([seed, 1])
        self._seed = seed
        self._failing = failing
        self.samples = np.full(devices, 600) if equal else np.exp(rng.uniform(0, 9, devices)).astype(int) + 1
        self.steps = np.full(devices, 10) if equal else rng.integers(1, 21, devices)
        self._scale = 10 ** rng.uniform(-3, -1, devices)

    def __call__(
        self, server_round: int, sent: Mapping[int, Arrays]
    ) -> dict[int, tuple[Arrays, Metrics] | None]:
        rng = np.random.default_rng([self._seed, server_round])
        there = rng.random(len(sent)) >= self._failing
        there[rng.integers(len(sent))] = True  # somebody always is
        replies: dict[int, tuple[Arrays, Metrics] | None] = {}
        for (device, arrays), answers in zip(sent.items(), there, strict=True):
            weights = flat(arrays)
            common, own = self._draw(weights.size, rng, server_round), self._draw(weights.size, rng)
            moved = named(weights + np.float32(self._scale[device]) * (common + own), shapes_of(arrays))
            metrics: Metrics = {
                "num-examples": int(self.samples[device]),
                "num-steps": int(self.steps[device]),
            }
            replies[device] = (moved, metrics) if answers else None
        return replies

    @classmethod
    def _draw(cls, size: int, rng: np.random.Generator, which: int | None = None) -> np.ndarray:
        if size not in cls._pool:
            noise = student_t.rvs(2.5, size=2 * size, random_state=np.random.default_rng(0))
            cls._pool[size] = noise.astype(np.float32)
        start = int(rng.integers(size)) if which is None else which * 7919 % size
        return cls._pool[size][start : start + size]


class Training:
    """Devices that train as `flower_bfl.learning.training.train` does, to rounding, all in one batch.

    Parameters
    ----------
    name : the data set's network.
    parts : images (n, c, h, w) and labels (n,) of each device.
    seed : of the batches drawn.
    remember : whatever was trained before from the same model in the same round is not trained again.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        seed: int,
        steps: int = 10,
        batch_size: int = 25,
        learning_rate: float = 0.001,
        remember: bool = False,
    ) -> None:
        import torch

        from flower_bfl.learning.models import ARCHITECTURES
        from flower_bfl.learning.training import to_tensor

        torch.set_num_threads(1)
        self._padding = ARCHITECTURES[name].padding
        self._parts = [(to_tensor(images), torch.from_numpy(labels)) for images, labels in parts]
        self._seed, self._steps, self._batch, self._rate = seed, steps, batch_size, learning_rate
        self._remembered: dict[tuple[int, int, bytes], Arrays] | None = {} if remember else None

    def __call__(self, server_round: int, sent: Mapping[int, Arrays]) -> dict[int, tuple[Arrays, Metrics]]:
        known = self._remembered
        if known is None:
            trained = self._trained(server_round, sent)
        else:
            keys = {device: (server_round, device, digest(arrays)) for device, arrays in sent.items()}
            new = {device: sent[device] for device, key in keys.items() if key not in known}
            known.update(
                (keys[device], arrays) for device, arrays in self._trained(server_round, new).items()
            )
            trained = {device: known[key] for device, key in keys.items()}
        own = {"num-steps": self._steps}
        return {
            device: (arrays, {"num-examples": len(self._parts[device][1]), **own})
            for device, arrays in trained.items()
        }

    def _trained(self, server_round: int, sent: Mapping[int, Arrays]) -> dict[int, Arrays]:
        import torch
        from torch.nn.functional import cross_entropy

        if not sent:
            return {}
        names = list(next(iter(sent.values())))
        weights = {
            name: torch.from_numpy(np.stack([arrays[name] for arrays in sent.values()])).requires_grad_()
            for name in names
        }
        optimizer = torch.optim.Adam(weights.values(), lr=self._rate, fused=True)
        seeds = {
            device: int(np.random.SeedSequence([self._seed, device, server_round]).generate_state(1)[0])
            for device in sent
        }
        draws = {device: torch.Generator().manual_seed(seed) for device, seed in seeds.items()}
        for _ in range(self._steps):
            images, labels = [], []
            for device, generator in draws.items():
                x, y = self._parts[device]
                batch = torch.randperm(len(y), generator=generator)[: self._batch]
                images.append(x[batch])
                labels.append(y[batch])
            optimizer.zero_grad()
            # A sum over devices of their means: each one's gradient is its own.
            logits = forward(weights, images, self._padding)
            losses = [cross_entropy(logits[k, : len(y)], y) for k, y in enumerate(labels)]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        result = {name: weight.detach().numpy() for name, weight in weights.items()}
        return {device: {name: array[k] for name, array in result.items()} for k, device in enumerate(sent)}


def forward(weights: Mapping[str, Any], images: Sequence[Any], padding: int) -> Any:
    """Logits (n, b, classes) of n networks, of images (b, c, h, w) each; grouped, so that all go at once."""
    import torch
    from torch.nn.functional import conv2d, max_pool2d, pad, relu

    n, b = len(images), max(map(len, images))
    padded = [x if len(x) == b else pad(x, (0, 0) * 3 + (0, b - len(x))) for x in images]
    x = torch.cat(padded, dim=1).contiguous(memory_format=torch.channels_last)
    for conv in ("conv1", "conv2"):
        kernel, bias = weights[f"{conv}.weight"].flatten(0, 1), weights[f"{conv}.bias"].flatten()
        x = relu(max_pool2d(conv2d(x, kernel, bias, padding=padding, groups=n), 2))
    x = x.reshape(b, n, -1).transpose(0, 1)
    layers = [
        name.removesuffix(".weight") for name in weights if name.startswith("full") and "weight" in name
    ]
    for layer in layers:
        x = torch.baddbmm(weights[f"{layer}.bias"][:, None], x, weights[f"{layer}.weight"].transpose(1, 2))
        x = x if layer == layers[-1] else relu(x)
    return x


class Exam:
    """Test images, and which class a model takes each for."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        import torch

        from flower_bfl.learning.models import build
        from flower_bfl.learning.training import to_tensor

        self._images = to_tensor(images).contiguous(memory_format=torch.channels_last)
        self._net = build(name, 0).to(memory_format=torch.channels_last).eval()
        self._known: dict[bytes, np.ndarray] = {}

    def classes(self, model: Mapping[str, np.ndarray]) -> np.ndarray:
        import torch

        key = digest(model)
        if key not in self._known:
            self._net.load_state_dict({name: torch.from_numpy(array) for name, array in model.items()})
            with torch.inference_mode():
                found = [self._net(part).argmax(dim=1) for part in torch.split(self._images, 250)]
            self._known[key] = torch.cat(found).numpy()
        return self._known[key]

    def accuracy(self, model: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
        return float((self.classes(model) == labels).mean())


def digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    hashed = blake2b(digest_size=16)
    for array in arrays.values():
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.digest()


def mean_and_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean, and the half-width of its 95 % interval by Student's t; NaN for one number."""
    n = len(numbers)
    if n < 2:
        return statistics.mean(numbers), float("nan")
    width = float(student_t.ppf(0.975, n - 1)) * statistics.stdev(numbers) / n**0.5
    return statistics.mean(numbers), width


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What earlier calls have added to a CSV file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def add_rows(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to a CSV file, which is made if need be."""
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, columns aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    print(f"\n{title}")
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print(flush=True)
