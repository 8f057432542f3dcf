"""What a controller is."""

import copy
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from flower_bfl.network import Decision, NetworkConfig, NetworkState


@runtime_checkable
class Controller(Protocol):
    """Decides before each round who offloads where, with what.

    One that is made for a network keeps it as `network`, and decides by that attribute alone how many devices
    there are. In rounds with fewer of them a shallow copy decides, see `for_devices`: what it remembers from
    round to round must be in objects that copies share.
    """

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""


_C = TypeVar("_C", bound=Controller)


def for_devices(controller: _C, devices: int) -> _C:
    """The controller for as many devices of its network, which not all take part in every round."""
    network = getattr(controller, "network", None)
    if not isinstance(network, NetworkConfig) or network.devices == devices:
        return controller
    fitting = copy.copy(controller)
    object.__setattr__(fitting, "network", replace(network, devices=devices))  # also of a frozen one
    return fitting
