"""What the views of networks and controllers share: controllers by name, wordings, numbers for JSON."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flower_bfl.controller import (
    A2CController,
    AllLocalController,
    AssignmentController,
    Controller,
    GreedyController,
    NearOptimalController,
    RandomController,
)
from flower_bfl.network import NetworkConfig

CONTROLLERS: dict[str, Callable[[NetworkConfig, np.random.Generator], Controller]] = {
    "all-local": lambda network, rng: AllLocalController(network),
    "random": RandomController,
    "greedy": lambda network, rng: GreedyController(network),
    "assignment": lambda network, rng: AssignmentController(network),
    "a2c-sorted": lambda network, rng: A2CController.pretrained(network, "sorted"),
    "a2c": lambda network, rng: A2CController.pretrained(network),
    "near-optimal": lambda network, rng: NearOptimalController(network),
}


def count(number: int, what: str) -> str:
    """As in "1 device" and "2 devices"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size_of(network: NetworkConfig) -> str:
    """N, M and G in words."""
    size = f"{count(network.devices, 'device')}, {count(network.edge_servers, 'edge server')}"
    return f"{size} of {count(network.sub_channels, 'sub-channel')}"


def finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have: null."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
