"""Who is who: Flower's nodes, this run's devices, and the edge server of each device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count

import numpy as np

from flower_bfl.errors import ConfigError
from flower_bfl.strategies._replies import Contribution
from flower_bfl.strategies.aggregation import Integers
from flower_bfl.types import LeftOut

Association = Sequence[int] | Mapping[int, int]


@dataclass(frozen=True, eq=False)
class Trained:
    """Everyone that trained this round, in the order of the device indices."""

    devices: tuple[int, ...]
    replies: tuple[Contribution, ...]
    server_of: Integers  # edge server of each, shape (n,)

    @property
    def samples(self) -> Integers:
        """D_y, shape (n,)."""
        return np.array([reply.samples for reply in self.replies], dtype=np.int64)

    @property
    def steps(self) -> Integers:
        """e_y, shape (n,)."""
        return np.array([reply.steps for reply in self.replies], dtype=np.int64)

    @property
    def largest(self) -> Contribution:
        """The reply with the most samples, the first of equals."""
        return self.replies[int(self.samples.argmax())]

    def at(self, servers: Iterable[int]) -> "Trained":
        """Those of some edge servers."""
        kept = np.flatnonzero(np.isin(self.server_of, list(servers)))
        return Trained(
            tuple(self.devices[k] for k in kept), tuple(self.replies[k] for k in kept), self.server_of[kept]
        )


class Roster:
    """Gives each node a device index that does not depend on the run, and each device its edge server.

    Flower's node ids are random and replies come in any order. A client that reports its own index
    ("device" in its metrics) keeps it; the others get the free indices in the order of what they first sent.
    """

    def __init__(self, servers: int, association: Association | None = None) -> None:
        self._servers = servers
        self._association = association
        self._device_of: dict[int, int] = {}
        if association is not None:
            given = association.values() if isinstance(association, Mapping) else association
            for server in given:
                if not 0 <= server < servers:
                    raise ConfigError(
                        f"`association` must name edge servers of 0..{servers - 1}, got {server}"
                    )

    def device(self, node: int) -> int | None:
        """Index of the device at a node, None before its first usable reply."""
        return self._device_of.get(node)

    def server(self, device: int) -> int:
        """Edge server of a device: the given one, or else devices are dealt out in turn."""
        if self._association is None:
            return device % self._servers
        try:
            return self._association[device]
        except LookupError:
            raise ConfigError(
                f"`association` must name an edge server for every device, got none for device {device}"
            ) from None

    def admit(self, contributions: Sequence[Contribution]) -> tuple[Trained, list[LeftOut]]:
        """Those of the contributions whose device is beyond doubt, and the others.

        Two nodes that claim one index are both left out, unless one of them had it before.
        """
        claims: dict[int, list[Contribution]] = {}
        strangers: list[Contribution] = []
        for contribution in contributions:
            known = self._device_of.get(contribution.node)
            index = known if contribution.reported_device is None else contribution.reported_device
            claims.setdefault(index, []).append(contribution) if index is not None else strangers.append(
                contribution
            )

        admitted: dict[int, Contribution] = {}
        left_out: list[LeftOut] = []
        for index, claimants in claims.items():
            owners = [c for c in claimants if self._device_of.get(c.node) == index] or claimants
            if len(owners) == 1:
                admitted[index] = owners[0]
            reason = f"must be the only node that reports device {index}, got {len(claimants)} such nodes"
            left_out += [LeftOut(f"node {c.node}", reason) for c in claimants if admitted.get(index) is not c]

        taken = {*claims, *self._device_of.values()}
        free = (index for index in count() if index not in taken)
        admitted |= zip(free, sorted(strangers, key=_content_order), strict=False)
        self._device_of |= {contribution.node: index for index, contribution in admitted.items()}
        devices = tuple(sorted(admitted))
        server_of = np.array([self.server(device) for device in devices], dtype=np.int64)
        return Trained(devices, tuple(admitted[device] for device in devices), server_of), left_out


def _content_order(contribution: Contribution) -> tuple[int, int, bytes]:
    """By what was sent; a thousand values of each array tell two devices apart."""
    content = sha256()
    for array in contribution.arrays.values():
        flat = array.reshape(-1)
        content.update(flat[:: flat.size // 1000 + 1].tobytes())
    return contribution.samples, contribution.steps, content.digest()
