"""Who is who: Flower's nodes, this run's devices, and the edge server of each device."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count

import numpy as np
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.errors import ConfigError
from flower_bfl.strategies._replies import Contribution
from flower_bfl.strategies.aggregation import Integers
from flower_bfl.types import Floats, LeftOut

Association = Sequence[int] | Mapping[int, int]


@dataclass(frozen=True, eq=False)
class Trained:
    """Everyone that trained this round: devices, then edge servers with offloaded data, each in order."""

    senders: tuple[Sender, ...]
    replies: tuple[Contribution, ...]
    server_of: Integers  # edge server of each, shape (n,)

    @property
    def devices(self) -> tuple[int, ...]:
        """Indices of the devices that trained themselves."""
        return tuple(sender.index for sender in self.senders if sender.role is Role.DEVICE)

    @property
    def unions(self) -> dict[int, tuple[int, ...]]:
        """Devices whose data an edge server trained on, by edge server."""
        replies = zip(self.senders, self.replies, strict=True)
        return {sender.index: reply.union.devices for sender, reply in replies if reply.union is not None}

    @property
    def samples(self) -> Floats:
        """D_y, shape (n,)."""
        return np.array([reply.samples for reply in self.replies], dtype=np.float64)

    @property
    def steps(self) -> Integers:
        """e_y, shape (n,)."""
        return np.array([reply.steps for reply in self.replies], dtype=np.int64)

    @property
    def largest(self) -> Contribution:
        """The reply with the most samples, the first of equals."""
        return self.replies[int(self.samples.argmax())]

    @property
    def signed(self) -> tuple[int, ...]:
        """Devices that signed with keys of their own."""
        replies = zip(self.senders, self.replies, strict=True)
        return tuple(sender.index for sender, reply in replies if reply.signature)

    def at(self, servers: Iterable[int]) -> "Trained":
        """Those of some edge servers."""
        return self._only(np.isin(self.server_of, list(servers)))

    def without(self, positions: Iterable[int]) -> "Trained":
        """All but those at some positions."""
        return self._only(~np.isin(np.arange(len(self.senders)), list(positions)))

    def joined(self, servers: Mapping[int, Contribution]) -> "Trained":
        """With edge servers that trained on offloaded data."""
        return Trained(
            self.senders + tuple(Sender(Role.SERVER, server) for server in servers),
            self.replies + tuple(servers.values()),
            np.concatenate([self.server_of, np.array([*servers], dtype=np.int64)]),
        )

    def moved(self, aside: Collection[int], servers: int) -> "Trained":
        """With edge servers set aside: the next one left takes their devices; what they trained is lost."""
        if not aside:
            return self
        nearest = [
            next((m + k) % servers for k in range(servers) if (m + k) % servers not in aside)
            for m in range(servers)
        ]
        homes = np.array(nearest, dtype=np.int64)[self.server_of]
        lost = [y for y, one in enumerate(self.senders) if one.role is Role.SERVER and one.index in aside]
        return Trained(self.senders, self.replies, homes).without(lost)

    def _only(self, chosen: NDArray[np.bool_]) -> "Trained":
        kept = np.flatnonzero(chosen)
        return Trained(
            tuple(self.senders[k] for k in kept), tuple(self.replies[k] for k in kept), self.server_of[kept]
        )


def called(sender: Sender) -> str:
    """How reports call a device or an edge server; "server" alone is Flower's."""
    return f"edge {sender}" if sender.role is Role.SERVER else str(sender)


NOBODY = Trained((), (), np.empty(0, np.int64))


class Roster:
    """Gives each node a device index that does not depend on the run, and each device its edge server.

    Flower's node ids are random and replies come in any order. A client that reports its own index
    ("device-index" in its metrics) keeps it; the others get the free ones in the order of what they sent.
    """

    def __init__(self, servers: int, association: Association | None = None) -> None:
        self._servers = servers
        self._association = association
        self._device_of: dict[int, int] = {}
        self._homes: Mapping[int, int] = {}
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

    def name(self, node: int) -> str:
        """The device at a node, or the node if nobody knows which device it is."""
        return f"node {node}" if (device := self.device(node)) is None else f"device {device}"

    def place(self, node: int) -> tuple[bool, int]:
        """Where the node stands among others: devices by index, then nodes that nobody knows."""
        device = self.device(node)
        return device is None, node if device is None else device

    def free(self, taken: Iterable[int] = ()) -> Iterator[int]:
        """Indices that no node has, and that are not among `taken`, in order."""
        taken = {*taken, *self._device_of.values()}
        return (index for index in count() if index not in taken)

    def introduce(self, devices: Mapping[int, int]) -> None:
        """Take in nodes that said who they are, by device, before they sent anything else."""
        kept = {node: index for node, index in self._device_of.items() if index not in devices}
        self._device_of = kept | {node: index for index, node in devices.items()}

    def settle(self, homes: Mapping[int, int]) -> None:
        """From now on devices without a given edge server belong to these."""
        self._homes = homes

    def server(self, device: int) -> int | None:
        """Edge server of a device: the given one (None if there is none), or in turn."""
        if self._association is None:
            return self._homes.get(device, device % self._servers)
        try:
            return self._association[device]
        except LookupError:
            return None

    def admit(self, contributions: Sequence[Contribution]) -> tuple[Trained, list[LeftOut]]:
        """Those of the contributions whose device is beyond doubt, and the others.

        Two nodes that claim one index are both left out, unless one of them had it before.
        """
        claims: dict[int, list[Contribution]] = {}
        strangers: list[Contribution] = []
        left_out: list[LeftOut] = []
        for contribution in contributions:
            known, reported = self._device_of.get(contribution.node), contribution.reported_device
            index = known if reported is None else reported
            if known is not None and index != known:
                reason = f"must keep the index {known} that it had before, got {reported}"
                left_out.append(LeftOut(f"node {contribution.node}", reason))
            elif index is None:
                strangers.append(contribution)
            else:
                claims.setdefault(index, []).append(contribution)

        admitted: dict[int, Contribution] = {}
        for index, claimants in claims.items():
            owners = [c for c in claimants if self._device_of.get(c.node) == index] or claimants
            if len(owners) == 1:
                admitted[index] = owners[0]
            reason = f"must be the only node that reports device {index}, got {len(claimants)} such nodes"
            left_out += [LeftOut(f"node {c.node}", reason) for c in claimants if admitted.get(index) is not c]

        admitted |= zip(self.free(claims), sorted(strangers, key=_content_order), strict=False)
        # a device that comes back under another node id takes its index along
        kept = {node: index for node, index in self._device_of.items() if index not in admitted}
        self._device_of = kept | {c.node: index for index, c in admitted.items()}

        servers = {device: self.server(device) for device in sorted(admitted)}
        placed = {device: server for device, server in servers.items() if server is not None}
        reason = "`association` must name an edge server for it, got none"
        left_out += [LeftOut(f"device {device}", reason) for device in servers if device not in placed]
        replies = tuple(admitted[device] for device in placed)
        senders = tuple(Sender(Role.DEVICE, device) for device in placed)
        return Trained(senders, replies, np.array([*placed.values()], dtype=np.int64)), left_out


def _content_order(contribution: Contribution) -> tuple[float, int, bytes]:
    content = sha256()
    for array in contribution.arrays.values():
        content.update(np.ascontiguousarray(array).data)
    return contribution.samples, contribution.steps, content.digest()
