"""What the compromised do in a run: edge servers where they publish, devices where their updates arrive."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from flower_bfl.attacks import Attack, Falsification, OldValue, Poisoning, Silence, Turn
from flower_bfl.attacks.base import Place
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.defences.replay import same_bits
from flower_bfl.errors import ConfigError, PayloadError
from flower_bfl.strategies._layout import Arrays, Layout
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import CumulativeGradient
from flower_bfl.types import Vector


class Adversary:
    """The attacks of a run, what they draw, and what they remember from one round to the next.

    Parameters
    ----------
    attacks : who does what in which rounds.
    seed : of what they draw; the same attack in the same round draws the same.
    """

    def __init__(self, attacks: Sequence[Attack], seed: int) -> None:
        self.attacks = tuple(attacks)
        self._seed = seed
        self._old: dict[tuple[Sender, Place], Vector] = {}  # honest values of the round before
        self._new: dict[tuple[Sender, Place], Vector] = {}
        self.poisoners: set[Sender] = set()  # who sent another update this round than it had

    def open(self) -> None:
        """Begin a round."""
        self._old, self._new = self._new, {}
        self.poisoners = set()

    def memory(self) -> dict[str, Vector]:
        """What is needed to go on with the next round, by name."""
        return {
            f"{who.role.name} {who.index} {place}": np.asarray(honest)
            for (who, place), honest in self._new.items()
        }

    def restore(self, memory: Mapping[str, Vector]) -> None:
        """Go on from what `memory` gave; raises PayloadError for anything else."""
        self._new = {}
        for name, honest in memory.items():
            try:
                role, index, where = name.split(" ")
                who = Sender(Role[role], int(index))
                place: Any = int(where) if where.isdigit() else where
            except (KeyError, ValueError) as error:
                raise PayloadError(f"a STATE payload must say whose values, got {name!r:.80}") from error
            self._new[who, place] = honest

    def servers(self, server_round: int) -> set[int]:
        """Edge servers that are compromised in a round."""
        return {a.server for a in self.attacks if a.server is not None and a.acts(server_round)}

    def poisoned_data(self, server_round: int) -> set[Sender]:
        """Devices whose data are poisoned in a round."""
        acting = [a for a in self.attacks if isinstance(a, Poisoning) and a.acts(server_round)]
        return {Sender(Role.DEVICE, device) for attack in acting for device in attack.devices}

    def acting(self, server_round: int, server: int, place: Place) -> Iterator[Attack]:
        """What an edge server does to what it publishes at a place; silence lasts from its step on."""
        for attack in self.attacks:
            if attack.server != server or not attack.acts(server_round):
                continue
            first = attack.p2p_step
            since = isinstance(attack, Silence) and isinstance(place, int) and isinstance(first, int)
            if place == first or (since and first < place):  # type: ignore[operator]
                yield attack

    def remember(self, who: Sender, place: Place, honest: Vector) -> None:
        """Keep an honest value for a round, if somebody is going to publish it again."""
        for attack in self.attacks:
            by = [attack.server] if who.role is Role.SERVER else attack.devices
            if isinstance(attack, OldValue) and who.index in by:
                self._new[who, place] = honest

    def falsify(self, attack: Falsification, turn: Turn, who: Sender, place: Place) -> Vector:
        """What an attack makes of an honest value."""
        text = f"{attack} {who} {place} {turn.round}"
        number = int.from_bytes(sha256(text.encode()).digest()[:8])
        with np.errstate(over="ignore", invalid="ignore"):
            return attack.falsified(
                replace(turn, before=self._old.get((who, place))), np.random.default_rng([self._seed, number])
            )

    def poisoned(
        self,
        role: Role,
        server_round: int,
        trained: Trained,
        sent_to: Callable[[int], Arrays],
        layout: Layout,
    ) -> Trained:
        """What arrives when the malicious have changed their updates; `sent_to` has the nodes' models.

        Devices, or edge servers that trained on devices' data, as `role` says.
        Raises ConfigError for a device that signs with a key of its own: nobody can change what it sends.
        """
        wanted = [attack for attack in self.attacks if isinstance(attack, Falsification)]
        hit = [y for y, one in enumerate(trained.senders) if any(_sent_by(attack, one) for attack in wanted)]
        hit = [y for y in hit if trained.senders[y].role is role]
        if not hit:
            return trained
        sent = [layout.vector(sent_to(reply.node)) for reply in trained.replies]
        rows = [
            CumulativeGradient(before, layout.vector(reply.arrays))[0 : layout.size]
            for before, reply in zip(sent, trained.replies, strict=True)
        ]
        everybody, replies = np.stack(rows), list(trained.replies)
        for y in hit:
            sender, reply = trained.senders[y], trained.replies[y]
            self.remember(sender, "training", rows[y])  # also where it acts in the next round only
            for attack in (a for a in wanted if a.acts(server_round) and _sent_by(a, sender)):
                if reply.signature:
                    raise ConfigError(f"`attacks` must not be by devices that sign themselves, got {attack}")
                turn = Turn(server_round, rows[y], everybody)
                false = self.falsify(attack, turn, sender, "training")
                if not same_bits(false, rows[y]):
                    self.poisoners.add(sender)
                after = sent[y][0 : layout.size] - false
                replies[y] = replace(reply, arrays=layout.model(after, reply.arrays))
        return replace(trained, replies=tuple(replies))


def _sent_by(attack: Attack, sender: Sender) -> bool:
    """Whether an attack is on what somebody trained."""
    if sender.role is Role.DEVICE:
        return sender.index in attack.devices
    return (sender.index, "training") == (attack.server, attack.p2p_step)
