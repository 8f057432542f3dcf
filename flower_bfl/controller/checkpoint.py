"""Policies on disk: numbers as safetensors, all else as JSON. Nothing in them is executed when they are read.

A folder holds `policy.json` and the weights that it names, with their SHA-256. The JSON is written last and
in one step: whatever happens while writing, the folder holds the policy before or the one after.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from flower_bfl.controller.placement import VERSION
from flower_bfl.controller.policy import Policy, Weights, make_policy
from flower_bfl.errors import ConfigError, FlowerBFLError, TrainingError
from flower_bfl.network import NetworkConfig

_FORMAT = "flower-bfl policy 1"
_NAME = "policy.json"
_LARGEST = 1e9  # of a weight
_PREFIX = "policy."  # of the policy's own weights; what else there is, is its learner's


@dataclass(frozen=True)
class Checkpoint:
    """A policy, what it was trained for, and how; or that and where its learner was."""

    architecture: str
    network: NetworkConfig  # that it was trained for
    weights: Weights
    training: dict[str, Any]  # settings of `TrainingConfig`
    steps: int  # rounds that it has learnt from
    curve: list[dict[str, float]]  # a row an update, see `learner.Progress`
    learner: Weights  # critic and optimisers, empty for a policy alone
    code_version: str = ""
    model_version: int = VERSION

    @property
    def policy(self) -> Policy:
        """The policy itself; raises ConfigError if its weights are not of its architecture."""
        _check_numbers(self.weights)
        policy = make_policy(self.architecture, self.weights)
        _check_layers(self)
        return policy

    def check_fit(self, network: NetworkConfig) -> None:
        """Raise ConfigError unless the policy can decide in this network.

        A shared policy knows any numbers and ranges, but it has learnt one objective and one way to share
        bandwidth and channels. The paper's networks know nothing but what they were trained for.
        """
        trained, asked = self.network.to_dict(), network.to_dict()
        if self.architecture == "shared":
            trained, asked = (_kind(each) for each in (trained, asked))
        for name in sorted({*trained, *asked}):
            if trained.get(name) != asked.get(name):
                raise ConfigError(
                    f"`network` must be what the policy was trained for, where {name} is "
                    f"{trained.get(name)!r}, got {asked.get(name)!r}"
                )


def _check_numbers(weights: Weights) -> None:
    for name, each in weights.items():
        if each.dtype.kind != "f" or not (np.abs(each) <= _LARGEST).all():
            raise ConfigError(f"`weights` must be numbers of at most {_LARGEST:g}, got others in {name}")
        if name.endswith(".weight") and each.ndim != 2:
            raise ConfigError(f"`weights` must be matrices, got {name} of shape {each.shape}")


def _check_layers(checkpoint: Checkpoint) -> None:
    """Raise ConfigError unless each layer takes what the one before gives, the last what is used."""
    weights, shared = checkpoint.weights, checkpoint.architecture == "shared"
    wanted: dict[str, tuple[int, ...]] = {"log_std": (4,)}
    for name in ("pair",) if shared else ("choose", "allocate"):
        for layer in (0, 2, 4):
            rows = len(weights[f"{name}.{layer}.weight"])
            wanted[f"{name}.{layer}.bias"] = (rows,)
            if layer < 4:
                wanted[f"{name}.{layer + 2}.weight"] = (len(weights[f"{name}.{layer + 2}.weight"]), rows)
    if shared:
        wanted |= {"own": (2,), "pair.4.bias": (3,)}
    else:
        wanted["allocate.4.bias"] = (4 * checkpoint.network.devices,)
        wanted["allocate.0.weight"] = (
            len(weights["allocate.0.weight"]),
            weights["choose.0.weight"].shape[1],
        )
    for name, shape in wanted.items():
        if weights[name].shape != shape:
            raise ConfigError(f"`weights` must have {name} of shape {shape}, got {weights[name].shape}")


def _kind(network: Mapping[str, Any]) -> dict[str, Any]:
    radio = network["radio"]
    return {
        "objective": network["objective"],
        "radio.sharing": radio["sharing"],
        "radio.interference": radio["interference"],
    }


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write it into the folder, in place of what is there.

    Raises:
        TrainingError: it cannot be written; what was there before is there still.
    """
    tensors = {_PREFIX + name: values for name, values in checkpoint.weights.items()}
    tensors |= dict(checkpoint.learner)
    data = safetensors.numpy.save({name: np.array(each, order="C") for name, each in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    file = f"weights-{digest[:16]}.safetensors"
    about = {
        "format": _FORMAT,
        "model_version": checkpoint.model_version,
        "code_version": installed_version("flower-bfl"),
        "architecture": checkpoint.architecture,
        "steps": checkpoint.steps,
        "weights": {"file": file, "sha256": digest},
        "network": checkpoint.network.to_dict(),
        "training": checkpoint.training,
    }
    text = _as_text(about, checkpoint.curve).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / file, data)
        _write(folder / _NAME, text)
    except OSError as error:
        raise TrainingError(
            f"the policy of step {checkpoint.steps} cannot be written to {folder} ({error}); "
            "what was there before is as it was"
        ) from error
    for old in folder.glob("weights-*.safetensors*"):  # also a part that a killed run left
        if old.name != file:
            with suppress(OSError):  # nobody reads it any more
                old.unlink()


def _as_text(about: Mapping[str, Any], curve: list[dict[str, float]]) -> str:
    """JSON with a line for each row of the curve."""
    rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in curve)
    head = json.dumps(about, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{head},\n "curve": [\n  {rows}\n ]\n}}\n'


def _write(path: Path, data: bytes) -> None:
    """All of the file or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def holds_checkpoint(folder: Path) -> bool:
    """Whether there is a policy in the folder."""
    return (folder / _NAME).exists()


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises:
        TrainingError: a file cannot be read or is not what was written.
        ConfigError: the policy is of another version of the model than this code's, or its network breaks a
            rule.
        InfeasibleError: nobody can keep the limits of its network.
    """
    path = Path(folder) / _NAME
    try:
        about = json.loads(_content(path), parse_float=_finite, parse_constant=_finite)
        if about["format"] != _FORMAT:
            raise ConfigError(f"`format` must be {_FORMAT!r}, got {about['format']!r} in {path}")
        _check_version(about, path)
        _check_kinds(about)
        tensors = _read_tensors(
            path.with_name(Path(about["weights"]["file"]).name), about["weights"]["sha256"]
        )
        return Checkpoint(
            architecture=about["architecture"],
            network=NetworkConfig.from_dict(about["network"]),
            weights={
                name.removeprefix(_PREFIX): each for name, each in tensors.items() if name.startswith(_PREFIX)
            },
            training=about["training"],
            steps=about["steps"],
            curve=about["curve"],
            learner={name: each for name, each in tensors.items() if not name.startswith(_PREFIX)},
            code_version=about["code_version"],
            model_version=about["model_version"],
        )
    except OSError as error:
        raise TrainingError(f"there is no policy to be read in {path.parent} ({error})") from error
    except FlowerBFLError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TrainingError(f"{path} is not a policy as flower-bfl writes it ({error!r:.300})") from error


def _content(path: Path) -> bytes:
    """Of a regular file: a device or a pipe may have no end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    return path.read_bytes()


def _finite(text: str) -> float:
    """A number; raises ValueError for NaN and infinity, which are not written either."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"numbers must be finite, got {text:.40}")
    return value


def _check_kinds(about: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is not of its kind."""
    steps, curve = about["steps"], about["curve"]
    kinds = {"architecture": str, "training": dict, "code_version": str, "curve": list}
    for name, kind in kinds.items():
        if not isinstance(about[name], kind):
            raise ValueError(f"{name} must be {kind.__name__}, got {about[name]!r:.80}")
    if type(steps) is not int or not 0 <= steps < 2**63:
        raise ValueError(f"steps must be a whole number, got {steps!r:.80}")
    for row in curve:
        if not isinstance(row, dict) or any(type(each) not in (int, float) for each in row.values()):
            raise ValueError(f"curve must have rows of numbers, got {row!r:.80}")


def _check_version(about: Mapping[str, Any], path: Path) -> None:
    if about["model_version"] != VERSION:
        raise ConfigError(
            f"`model_version` must be {VERSION}, what this flower-bfl shows policies of a round, "
            f"got {about['model_version']} in {path}, trained by flower-bfl {about['code_version']}: "
            "train it again, or use that version"
        )


def _read_tensors(path: Path, digest: str) -> dict[str, NDArray[Any]]:
    data = _content(path)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise TrainingError(f"{path} is damaged: its SHA-256 must be {digest}, got {found}")
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{path} is no safetensors file ({error})") from error
    return tensors
