"""A round as it was recorded: who trained, on whose data, and which edge server summed it up."""

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flower_bfl.audit._findings import decoded, differs, wrong
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.records import DataSet, DataUnion, Gradient, read_consensus
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies.aggregation import Integers
from flower_bfl.types import Floats


@dataclass(frozen=True, eq=False)
class Vote:
    """A vote, and where in the round it was recorded."""

    at: Recorded
    step: int  # the highest of the states before it; -1: none, or there is a model before it
    models: int  # proposed before it
    decides: bool  # with it the votes are enough to bar the accused

    @property
    def accused(self) -> int:
        """The edge server that it is against."""
        return self.at.entry.step


@dataclass
class Round:
    """What was recorded in a round."""

    number: int = 0  # k
    data: dict[int, Recorded] = field(default_factory=dict)  # by device
    gradients: dict[Sender, Recorded] = field(default_factory=dict)
    states: dict[tuple[int, int], Recorded] = field(default_factory=dict)  # by step and edge server
    last_step: int = -1  # the highest of these
    report: Recorded | None = None
    state: Recorded | None = None
    models: list[Recorded] = field(default_factory=list)  # that were proposed, the sealed one last
    ballots: dict[tuple[int, int], Vote] = field(default_factory=dict)  # by voter and accused, in order
    barred: frozenset[int] = frozenset()  # edge servers in quarantine when it began

    @property
    def votes(self) -> Collection[Vote]:
        """All of them, in order."""
        return self.ballots.values()

    @property
    def model(self) -> Recorded | None:
        """The last that was proposed."""
        return self.models[-1] if self.models else None

    def vote_of(self, voter: int, accused: int) -> Vote | None:
        """The vote of one edge server against another; there is one at most."""
        return self.ballots.get((voter, accused))

    def votes_at(self, *, step: int = -1, models: int = 0) -> list[Vote]:
        """The votes after so many models, or after the states of a step and before any model."""
        return [vote for vote in self.votes if (vote.step, vote.models) == (step, models)]


@dataclass(frozen=True, eq=False)
class Trained:
    """The gradients that a round's edge servers say they summed up, devices' first, each in order."""

    senders: list[Sender]
    gradients: list[Gradient]
    server_of: Integers  # shape (n,)
    samples: Floats  # D_y, shape (n,)
    steps: Integers  # e_y, shape (n,)

    @property
    def data_sets(self) -> int:
        """How many devices' data edge servers trained on."""
        return sum(len(gradient.union.devices) for gradient in self.gradients if gradient.union is not None)

    def joined(self, now: Round, senders: Sequence[Sender], server: int) -> "Trained":
        """With recorded gradients that an edge server did not sum up; their data are not checked."""
        gradients = [decoded(now.gradients[sender], Gradient.decode) for sender in senders]
        count = len(senders)
        return Trained(
            [*self.senders, *senders],
            [*self.gradients, *gradients],
            np.append(self.server_of, np.full(count, server, np.int64)),
            np.append(self.samples, [gradient.samples for gradient in gradients]),
            np.append(self.steps, np.array([gradient.steps for gradient in gradients], np.int64)),
        )

    def at(self, server: int) -> list[Sender]:
        """Whose gradients an edge server summed up."""
        return [sender for sender, home in zip(self.senders, self.server_of, strict=True) if home == server]


def read_trained(now: Round, model: bytes, layout: Layout, first: int = 0) -> Trained:
    """The gradients that edge servers name in their states of step `first`, and the data behind them.

    `model` is the digest of w_k. Raises LedgerError for a gradient or a data set that cannot be what it is.
    """
    home = _homes(now, first)
    senders = sorted(home)
    gradients = [read_gradient(now.gradients[sender], now.number, model, layout) for sender in senders]
    for sender, gradient in zip(senders, gradients, strict=True):
        if (gradient.union is not None) != (sender.role is Role.SERVER):
            rule = "an edge server must train on what devices sent to it, a device on its own data"
            told = ("devices named", "none named")
            found = reversed(told) if sender.role is Role.DEVICE else told
            raise wrong(now.gradients[sender], rule, *found)
        if gradient.union is not None:
            _check_union(now, sender, gradient, gradient.union, home, model)
    return Trained(
        senders,
        gradients,
        np.array([home[sender] for sender in senders], dtype=np.int64),
        np.array([gradient.samples for gradient in gradients], dtype=np.float64),
        np.array([gradient.steps for gradient in gradients], dtype=np.int64),
    )


def _homes(now: Round, first: int) -> dict[Sender, int]:
    """The edge server of each gradient that is summed up."""
    home: dict[Sender, int] = {}
    for (step, server), at in now.states.items():
        if step != first:
            continue
        _, members = decoded(at, read_consensus)
        for member in members:
            if member.role is Role.SERVER and member.index != server:
                rule = "an edge server must sum up no other's gradient"
                raise wrong(at, rule, f"its own, server {server}", str(member))
            if member not in now.gradients:
                rule = "an edge server must sum up recorded gradients"
                raise wrong(at, rule, f"a GRADIENT of {member}", "none in this round")
            if member in home:
                rule = "a gradient must be summed up once"
                raise wrong(at, rule, f"{member} at edge server {home[member]} only", "here too")
            home[member] = server
    return home


def read_gradient(at: Recorded, server_round: int, model: bytes, layout: Layout) -> Gradient:
    """A gradient of its round, against the model with this digest; raises LedgerError for any other."""
    gradient = decoded(at, Gradient.decode)
    if (payload := gradient.encode(server_round, model)) != at.entry.payload:
        raise differs(at, "a GRADIENT must be one of its round and model", payload)
    dtypes = dict.fromkeys(layout.trained, "float32")
    dtypes |= {name: layout.dtypes[name].name for name in layout.copied}
    wanted = {name: (dtype, layout.shapes[name]) for name, dtype in dtypes.items()}
    found = {name: (array.dtype.name, array.shape) for name, array in gradient.arrays.items()}
    if odd := {name for name in {*wanted, *found} if wanted.get(name) != found.get(name)}:
        rule, name = "a GRADIENT must have the model's arrays", min(odd)
        told = (f"{name!r}: {each.get(name, 'none')}" for each in (wanted, found))
        raise wrong(at, rule, *told)
    return gradient


def _check_union(
    now: Round,
    server: Sender,
    gradient: Gradient,
    union: DataUnion,
    summed_up: Container[Sender],
    model: bytes,
) -> None:
    """What an edge server trained on must be what devices say they sent to it, (4)."""
    at = now.gradients[server]
    for device in union.devices:
        if Sender(Role.DEVICE, device) in summed_up:
            rule = "a device must offload its data or train on them, not both"
            raise wrong(at, rule, f"no GRADIENT of device {device} in a sum", "one")
    sets = {device: _data_set(now, device, server) for device in union.devices}
    samples = sum(one.samples for one in sets.values())
    expected = replace(gradient, union=DataUnion.of(sets), samples=samples)
    if (expected.union, expected.samples) != (union, gradient.samples):
        raise differs(at, "a union must be the data sets that are in it", expected.encode(now.number, model))


def _data_set(now: Round, device: int, server: Sender) -> DataSet:
    """What a device says it sent to an edge server that trained on it."""
    sent = now.data.get(device)
    if sent is None or sent.entry.step != server.index:
        rule = "an edge server must train on data that a device says it sent to it"
        found = "none in this round" if sent is None else f"one for server {sent.entry.step}"
        raise wrong(now.gradients[server], rule, f"DATA of device {device} for {server}", found)
    data = decoded(sent, DataSet.decode)
    if (payload := data.encode(now.number, server.index)) != sent.entry.payload:
        raise differs(sent, "DATA must be of its round and edge server", payload)
    return data
