"""What a controller is."""

from typing import Protocol, runtime_checkable

from flower_bfl.network import Decision, NetworkState


@runtime_checkable
class Controller(Protocol):
    """Decides before each round who offloads where, with what."""

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
