"""A training run in a folder: checkpoints, TensorBoard logs, and going on where one stopped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flower_bfl.controller.checkpoint import Checkpoint, holds_checkpoint, load_checkpoint, save_checkpoint
from flower_bfl.controller.learner import Learner, Progress, TrainingConfig
from flower_bfl.errors import ConfigError, TrainingError
from flower_bfl.network import NetworkConfig

_CHECKPOINT_UPDATES = 20
_DIGITS = 6  # of the curve


def train(
    network: NetworkConfig,
    settings: TrainingConfig,
    folder: Path,
    progress: Callable[[Progress], None] | None = None,
) -> Checkpoint:
    """Learn a policy, and keep it in the folder, with its curve and what it takes to go on.

    A folder that holds a run of the same network and settings goes on where that stopped, with more steps if
    they are more now; what comes out is the same as without the stop, bit for bit on the same machine. An
    exception of `progress` or an interrupt ends the run, and what was learnt so far is kept.

    Raises:
        ConfigError: the folder holds a run of another network or with other settings.
        TrainingError: the folder cannot be written, or rewards are not finite; the last checkpoint stays.
    """
    with _one_thread():
        return _train(network, settings, folder, progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are faster so, and the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(
    network: NetworkConfig,
    settings: TrainingConfig,
    folder: Path,
    progress: Callable[[Progress], None] | None,
) -> Checkpoint:
    learner = Learner(network, settings)
    curve: list[dict[str, float]] = []
    if holds_checkpoint(folder):
        curve = _go_on(learner, network, load_checkpoint(folder))
    log = _TensorBoard(folder / "tensorboard", learner.steps)
    kept = _checkpoint(learner, network, curve)
    try:
        while not learner.has_finished:
            made = learner.update()
            curve.append(_rounded(asdict(made)))
            log.write(made)
            kept = _checkpoint(learner, network, curve)
            if learner.update_count % _CHECKPOINT_UPDATES == 0:
                save_checkpoint(folder, kept)
            if progress is not None:
                progress(made)
    except TrainingError:
        raise
    except BaseException:  # also in the middle of an update, of which nothing is kept
        save_checkpoint(folder, kept)
        raise
    finally:
        log.close()
    save_checkpoint(folder, kept)
    return kept


def exported(checkpoint: Checkpoint) -> Checkpoint:
    """The policy with its record and curve, without what only its learner needs."""
    return replace(checkpoint, learner={})


def _checkpoint(learner: Learner, network: NetworkConfig, curve: list[dict[str, float]]) -> Checkpoint:
    """The learner as it is, in arrays of its own."""
    tensors = {f"critic.{name}": each.numpy().copy() for name, each in learner.critic.state_dict().items()}
    for name, optimiser in learner.optimisers.items():
        for parameter, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{parameter}.{key}": each.numpy().copy() for key, each in values.items()}
    return Checkpoint(
        architecture=learner.settings.architecture,
        network=network,
        weights={name: each.copy() for name, each in learner.policy.weights.items()},
        training=_plain(learner.settings),
        steps=learner.steps,
        curve=list(curve),
        learner=tensors,
    )


def _plain(settings: TrainingConfig) -> dict[str, Any]:
    return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(settings).items()}


def _go_on(learner: Learner, network: NetworkConfig, kept: Checkpoint) -> list[dict[str, float]]:
    """Put the learner where the run in the folder was; returns the curve up to there."""
    asked = _plain(learner.settings)
    for name in (each.name for each in fields(TrainingConfig) if each.name != "steps"):
        if kept.training.get(name) != asked[name]:
            raise ConfigError(
                f"`{name}` must be {kept.training.get(name)!r} as in the run that the folder holds, "
                f"got {asked[name]!r}"
            )
    if kept.network != network:
        raise ConfigError(f"`network` must be that of the run in the folder, {kept.network}, got {network}")
    if not kept.learner:
        raise TrainingError("the folder holds a policy alone, without what its learner needs to go on")
    try:
        learner.actor.load_state_dict(_tensors(kept.weights))
        learner.critic.load_state_dict(_tensors(_named("critic", kept.learner)))
        for name, optimiser in learner.optimisers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, each in _tensors(_named(name, kept.learner)).items():
                number, what = key.split(".", 1)
                state.setdefault(int(number), {})[what] = each
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the folder's run does not fit this learner ({error})") from error
    learner.update_count = kept.steps // learner.settings.steps_an_update
    return list(kept.curve)


def _named(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    start = f"{prefix}."
    return {name.removeprefix(start): each for name, each in tensors.items() if name.startswith(start)}


def _tensors(values: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(each)) for name, each in values.items()}


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    """Few digits, and no NaN, which JSON does not have: a row without a usable reward has no such entries."""
    return {name: float(f"{each:.{_DIGITS}g}") for name, each in row.items() if np.isfinite(each)}


class _TensorBoard:
    """Curves for TensorBoard, if it is installed."""

    def __init__(self, folder: Path, steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            self._writer: Any = None
            return
        # What was logged after the last checkpoint is learnt again.
        try:
            self._writer = SummaryWriter(str(folder), purge_step=steps if steps else None)
        except OSError as error:
            raise TrainingError(f"the log cannot be written to {folder} ({error})") from error

    def write(self, made: Progress) -> None:
        """A point on each curve."""
        if self._writer is not None:
            for name in ("utility", "learning_s", "offloading", "divergence", "explained", "skipped"):
                self._writer.add_scalar(f"train/{name}", getattr(made, name), made.steps)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
