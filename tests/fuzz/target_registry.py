"""Fuzz targets, one for each parser: bytes in, nothing out, and no exception but those that are allowed.

The first byte of an input chooses: 0, the rest is what the parser reads; otherwise the rest are decisions
about what becomes of something valid, so that what lies behind digests, signatures and the like is reached.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from fuzzed import FuzzedData

from flower_bfl.chain_adapter import Role, Sender, simulated_keys

KEYS = simulated_keys(3)
OPERATOR, DEVICE = Sender(Role.OPERATOR), Sender(Role.DEVICE, 0)
MODEL = {"w": np.ones((2, 3), np.float32), "steps": np.array(4)}
Parser = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """What is fuzzed, and inputs to begin with, as the parser reads them."""

    run: Callable[[bytes], None]
    valid: Callable[[], list[bytes]]

    @property
    def corpus(self) -> list[bytes]:
        """Inputs of the target: what is valid, as it is, and decisions of several lengths."""
        decisions = [bytes([1 + k]) + hashlib.sha512(bytes([k])).digest() * (1 + k % 4) for k in range(12)]
        return [b"\0" + each for each in self.valid()] + decisions


TARGETS: dict[str, Target] = {}


def target(valid: Callable[[], list[bytes]], *allowed: type[Exception]) -> Callable[[Parser], Parser]:
    """Enter a parser of bytes; the wrapped one is given valid bytes that were changed, or any."""

    def enter(parse: Parser) -> Parser:
        def run(data: bytes) -> None:
            with suppress(*allowed):
                parse(_chosen(data, valid()))

        TARGETS[parse.__name__.replace("_", "-")] = Target(run, valid)
        return parse

    return enter


def structured(
    valid: Callable[[], list[bytes]], *allowed: type[Exception]
) -> Callable[[Callable[[FuzzedData], object]], Callable[[FuzzedData], object]]:
    """Enter a function that makes its input from decisions and parses it."""

    def enter(act: Callable[[FuzzedData], object]) -> Callable[[FuzzedData], object]:
        def run(data: bytes) -> None:
            with suppress(*allowed):
                act(FuzzedData(data))

        TARGETS[act.__name__.replace("_", "-")] = Target(run, valid)
        return act

    return enter


def _chosen(data: bytes, valid: list[bytes]) -> bytes:
    if data[:1] in (b"", b"\0"):
        return data[1:]
    return FuzzedData(data[1:]).mutated(valid[data[0] % len(valid)])


def nothing() -> list[bytes]:
    return []


def process_folder() -> Path:
    """A folder of this process, in memory where there is such a place."""
    return _made_folder(os.getpid())


@cache
def _made_folder(process: int) -> Path:
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="flower-bfl-fuzz-", dir=memory if memory.is_dir() else None)
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def written(name: str, content: bytes) -> Path:
    path = process_folder() / name
    path.write_bytes(content)
    return path


def json_bytes(document: object) -> bytes:
    return json.dumps(document).encode()


def image_archive(save: Callable[..., None]) -> bytes:
    file = BytesIO()
    images, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 9])
    save(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return file.getvalue()
