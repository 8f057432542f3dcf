"""The learned controller: a trained policy decides, with no more than numpy and scipy."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Self, get_args

import numpy as np

from flower_bfl.controller.checkpoint import Checkpoint, load_checkpoint
from flower_bfl.controller.encoding import decode
from flower_bfl.controller.policy import Decoding, Policy, make_policy
from flower_bfl.errors import ConfigError
from flower_bfl.network import Decision, NetworkConfig, NetworkState, price

_PRETRAINED = Path(__file__).parent / "policies" / "shared"
_AT_ONCE = 256  # states, for memory


class A2CController:
    """Decides by a policy: who offloads where, and with what.

    `decoding` is how its scores become slots:

    - "ordered": devices choose in turn, by their numbers, each the slot that the policy likes best;
    - "sorted": the same, beginning with those who can save most;
    - "assignment": besides, all devices are matched to slots at once, by the policy's scores, a few times;
      of all these decisions the one is taken that costs least by `price`.

    Args:
        network: what the states are states of; None is Table IV with as many devices, edge servers and
            sub-channels as a state has.
        policy: such as a checkpoint has.
        decoding: see above.

    Raises:
        ConfigError: there is no such decoding; or, when it decides, the policy cannot decide for so many.
    """

    def __init__(
        self, network: NetworkConfig | None, policy: Policy, decoding: Decoding = "assignment"
    ) -> None:
        if decoding not in get_args(Decoding):
            raise ConfigError(f"`decoding` must be one of {get_args(Decoding)}, got {decoding!r}")
        self.network = network
        self.decoding: Decoding = decoding
        # In double precision a state is decided alike alone and in a batch.
        weights = {name: values.astype(np.float64) for name, values in policy.weights.items()}
        self._policy = make_policy(policy.architecture, weights)

    @classmethod
    def pretrained(cls, network: NetworkConfig | None = None, decoding: Decoding = "assignment") -> Self:
        """The policy that comes with the package, for any number of devices, edge servers and sub-channels.

        Raises:
            ConfigError: the network's objective, or how it shares bandwidth, is not what it has learnt.
        """
        return cls.load(_PRETRAINED, network, decoding)

    @classmethod
    def load(
        cls, folder: Path | str, network: NetworkConfig | None = None, decoding: Decoding = "assignment"
    ) -> Self:
        """A policy that was trained before, see `flower-bfl controller train`.

        Raises:
            ConfigError: it was trained for something else, or by a version that showed policies something
                else.
            TrainingError: there is no policy in the folder, or it is damaged.
        """
        checkpoint = load_checkpoint(folder)
        if network is None and checkpoint.architecture == "paper":
            network = checkpoint.network
        checkpoint.check_fit(network or NetworkConfig())
        return cls(network, checkpoint.policy, decoding)

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
        network = self.network or _table_iv(state)
        flat = _flat(state)
        count = len(flat.data_bits)
        parts = [self._decide(network, flat[i : i + _AT_ONCE]) for i in range(0, count, _AT_ONCE)]
        shape = state.data_bits.shape
        return Decision(
            **{
                each.name: np.concatenate([getattr(part, each.name) for part in parts]).reshape(shape)
                for each in fields(Decision)
            }
        )

    def _decide(self, network: NetworkConfig, state: NetworkState) -> Decision:
        if self.decoding != "assignment":
            play = self._policy.play(network, state, None, self.decoding)
            return decode(network, state, play.slot + 1, play.parameters)
        proposals = self._policy.proposals(network, state)
        return _cheapest(
            network, state, [decode(network, state, slot + 1, numbers) for slot, numbers in proposals]
        )


def pretrained_record() -> Checkpoint:
    """How the policy in the package was trained, with its learning curve."""
    return load_checkpoint(_PRETRAINED)


def _table_iv(state: NetworkState) -> NetworkConfig:
    devices, servers, channels = state.gain.shape[-3:]
    return replace(NetworkConfig(), devices=devices, edge_servers=servers, sub_channels=channels)


def _flat(state: NetworkState) -> NetworkState:
    """As a batch of shape (B,)."""
    rows = math.prod(state.batch)
    return NetworkState(
        **{
            each.name: values.reshape(rows, *values.shape[len(state.batch) :])
            for each in fields(NetworkState)
            for values in [getattr(state, each.name)]
        }
    )


def _cheapest(network: NetworkConfig, state: NetworkState, decisions: Sequence[Decision]) -> Decision:
    """Of decisions for a batch (B,), for each state the one with the least total latency."""
    totals_s = np.stack([price(network, state, one).total_s for one in decisions])
    best, rows = totals_s.argmin(axis=0), np.arange(totals_s.shape[1])
    return Decision(
        **{
            each.name: np.stack([getattr(one, each.name) for one in decisions])[best, rows]
            for each in fields(Decision)
        }
    )
