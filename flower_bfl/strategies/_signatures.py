"""Updates that devices sign with keys of their own: asked for, checked, passed on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Keys, Kind, Ledger, Role, Sender, digest
from flower_bfl.chain_adapter.records import Gradient, model_digest
from flower_bfl.errors import ConfigError
from flower_bfl.strategies._offloading import Offloaded
from flower_bfl.strategies._replies import Contribution
from flower_bfl.strategies._roster import Trained
from flower_bfl.types import LeftOut


class Signatures:
    """Which device signs with which key. A device keeps to its first key, or to none.

    Parameters
    ----------
    ledger : whose contract the signatures are bound to; without one nothing is asked for or checked.
    keys : private keys of those who do not sign themselves.
    servers : number of edge servers.
    required : leave out replies without a signature.
    """

    def __init__(self, ledger: Ledger | None, keys: Keys, servers: int, *, required: bool = False) -> None:
        if required and ledger is None:
            raise ConfigError("`require_signatures` needs a `ledger`, got none")
        self._ledger = ledger
        self.required = required
        self._domain: tuple[int, bytes] | None = None
        self._keys = keys
        self._servers = servers
        self._address: dict[int, bytes] = {}  # of each device, once somebody signs
        self._unsigned: set[int] = set()  # devices seen before that
        self._goes_on = False  # with a run, whose devices the ledger knows
        self._taken: set[bytes] = set()  # by operator and edge servers

    def request(self, learning_rate: float) -> dict[str, int | str | float]:
        """What a client needs to sign its update, for the config of its message."""
        if self._ledger is None:
            return {}
        if self._domain is None:  # asked for once: a ledger that records has no time for questions
            self._domain = self._ledger.domain
        chain_id, contract = self._domain
        return {
            "ledger-chain-id": chain_id,
            "ledger-contract": contract.hex(),
            "ledger-learning-rate": learning_rate,
        }

    def go_on(self) -> None:
        """Devices may have been there before: what the ledger knows of them holds."""
        self._goes_on = True

    def screen(
        self,
        server_round: int,
        trained: Trained,
        sent: Mapping[str, NDArray[np.generic]],
        learning_rate: float,
    ) -> tuple[Trained, list[LeftOut]]:
        """Those whose signature fits, or who need none, and the others."""
        if self._ledger is None:
            return trained, []

        def payload(reply: Contribution) -> bytes:
            gradient = Gradient.between(sent, reply.arrays, reply.samples, reply.steps, learning_rate)
            return gradient.encode(server_round, model_digest(server_round - 1, sent))

        items = [
            _Signed(device, Kind.GRADIENT, 0, reply.signature, reply.address, partial(payload, reply))
            for device, reply in zip(trained.devices, trained.replies, strict=True)
        ]
        refused = dict(self._refuse(server_round, items))
        left_out = [LeftOut(f"device {trained.devices[y]}", reason) for y, reason in refused.items()]
        return trained.without(refused), left_out

    def screen_data(self, server_round: int, sets: Mapping[int, Offloaded]) -> dict[int, str]:
        """Devices whose data sets are not signed as they have to be, and why."""
        if self._ledger is None:
            return {}
        items = [
            _Signed(
                device,
                Kind.DATA,
                one.server,
                one.signature,
                one.address,
                partial(one.record.encode, server_round, one.server),
            )
            for device, one in sorted(sets.items())
        ]
        return {items[y].device: reason for y, reason in self._refuse(server_round, items)}

    def _refuse(self, server_round: int, items: Sequence["_Signed"]) -> Iterator[tuple[int, str]]:
        signed = [bool(item.signature) for item in items]
        if not (self.required or any(signed) or self._address or self._goes_on):
            self._unsigned.update(item.device for item in items)
            return  # nobody signs: no need to load Ethereum for that
        if self._goes_on:
            self._recall(item.device for item in items)
        for device in self._unsigned:
            self._address.setdefault(device, self._own(Sender(Role.DEVICE, device)))
        for y in sorted(range(len(signed)), key=signed.__getitem__):  # derived keys are spoken for
            item = items[y]
            if not item.signature and self.required:
                yield y, "must sign its update, got none: `require_signatures` is set"
                continue
            if item.signature:
                address = self._signer(item, server_round)
            else:
                address = self._own(Sender(Role.DEVICE, item.device))
            known = self._address.get(item.device, address)
            others = {at for other, at in self._address.items() if other != item.device}
            if not address or (item.signature and address != item.address):
                yield y, f"its signature must be one of this update by {_name(item.address)}, got another"
            elif address != known:
                yield y, f"must sign with its first key, {_name(known)}, got {_name(address)}"
            elif address in others | self._reserved() or self._is_anothers(item.device, address):
                yield y, f"must have a key of its own, got {_name(address)} of somebody else"
            else:
                self._address[item.device] = address

    def _recall(self, devices: Iterable[int]) -> None:
        """Take in the addresses that the ledger has of devices."""
        assert self._ledger is not None
        for device in devices:
            if device not in self._address and (known := self._ledger.account(Sender(Role.DEVICE, device))):
                self._address[device] = known

    def _is_anothers(self, device: int, address: bytes) -> bool:
        """Whether a key is that of somebody who was there before the run was broken off, and is not now."""
        if not self._goes_on or self._ledger is None or device in self._address:
            return False
        return self._ledger.holder(address) not in (None, Sender(Role.DEVICE, device))

    def _reserved(self) -> set[bytes]:
        if not self._taken:
            senders = [Sender(Role.OPERATOR), *(Sender(Role.SERVER, m) for m in range(self._servers))]
            self._taken = {self._own(sender) for sender in senders}
        return self._taken

    def _own(self, sender: Sender) -> bytes:
        """Address of a key that this process has."""
        from flower_bfl.chain_adapter.signing import address  # loads Ethereum, which few runs need here

        return address(self._keys(sender))

    def _signer(self, item: "_Signed", server_round: int) -> bytes:
        """Address of who signed the entry; empty if nobody can have."""
        from flower_bfl.chain_adapter.signing import signer  # loads Ethereum, which few runs need here

        assert self._domain is not None, "replies come after `request`"
        with suppress(ValueError):
            name = digest(item.payload())
            return signer(item.signature, self._domain, item.kind, server_round, item.step, name)
        return b""


@dataclass(frozen=True)
class _Signed:
    """An entry that a device may have signed."""

    device: int
    kind: Kind
    step: int
    signature: bytes
    address: bytes  # of whose key it is, by the device's own account
    payload: Callable[[], bytes]


def _name(address: bytes) -> str:
    return f"0x{address.hex()}" if address else "none"
