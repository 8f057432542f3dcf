"""What every ledger shares: an entry's bounds, who may submit what, logical time, and how a refusal reads."""

from flower_bfl.chain_adapter.base import Entry, Kind, Role
from flower_bfl.errors import ConfigError, RejectedError

EPOCH_S = 1_577_836_800
"""Where logical time starts, 2020-01-01 in seconds since 1970: without a clock, round k is `EPOCH_S + k`."""

_SUBMITTERS = {
    Kind.RULES: {Role.OPERATOR},
    Kind.REPORT: {Role.OPERATOR},
    Kind.GRADIENT: {Role.DEVICE, Role.SERVER},
    Kind.CONSENSUS: {Role.SERVER},
}


def may_submit(entry: Entry) -> bool:
    """Whether the sender's role allows this entry, by the contract's rule."""
    if entry.kind is Kind.MODEL:
        return entry.sender.role is (Role.OPERATOR if entry.round == 0 else Role.SERVER)
    return entry.sender.role in _SUBMITTERS[entry.kind]


def check_bounds(entry: Entry) -> None:
    """Raise ConfigError if a number of the entry does not fit the contract's types."""
    last_operator = 0  # there is one operator
    last_step = 0 if entry.kind is Kind.MODEL else 2**16 - 1  # a model has no step on the chain
    last_index = last_operator if entry.sender.role is Role.OPERATOR else 2**32 - 1
    for name, value, last in (
        ("round", entry.round, 2**32 - 2),  # the contract's height is one more
        ("step", entry.step, last_step),
        ("sender.index", entry.sender.index, last_index),
    ):
        if not 0 <= value <= last:
            raise ConfigError(
                f"`{name}` of a {entry.kind.name} entry by {entry.sender} must be in [0, {last}], got {value}"
            )


def refused(reason: str, entry: Entry) -> RejectedError:
    """The error for an entry that breaks a rule of the contract; `reason` starts with the rule's name."""
    place = f"kind {entry.kind.name}, round {entry.round}, step {entry.step}"
    return RejectedError(f"entry refused, {reason}: {entry.sender}, {place}")
