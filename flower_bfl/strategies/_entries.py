"""What a run writes to the ledger: its rules once, then every round's entries."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, encode
from flower_bfl.config import Consensus
from flower_bfl.network import Mixing
from flower_bfl.strategies._layout import Layout
from flower_bfl.strategies._roster import Trained
from flower_bfl.strategies.aggregation import CumulativeGradient
from flower_bfl.types import RoundReport

OPERATOR = Sender(Role.OPERATOR)


def _metadata(**fields: object) -> dict[str, str]:
    return {name.replace("_", "-"): str(value) for name, value in fields.items()}


def rules_entry(consensus: Consensus, mixing: Mixing) -> Entry:
    """The run's constants: whoever has them and the gradients can recompute every model."""
    metadata = _metadata(format="flower-bfl 1", **asdict(consensus))
    return Entry(Kind.RULES, 0, OPERATOR, encode({"mixing": mixing}, metadata))


def report_entry(report: RoundReport) -> Entry:
    """Replies that did not enter the round, and edge servers and links that were down."""
    text = json.dumps({"left_out": [asdict(reply) for reply in report.left_out], "down": report.down})
    payload = encode({}, _metadata(round=report.round, report=text))
    return Entry(Kind.REPORT, report.round, OPERATOR, payload)


def gradient_entries(
    server_round: int, trained: Trained, gradients: Sequence[CumulativeGradient], layout: Layout
) -> Iterator[Entry]:
    """Every device's cumulative gradient, with D_y and e_y, and its values of what gradients cannot move."""
    for device, reply, server, gradient in zip(
        trained.devices, trained.replies, trained.server_of, gradients, strict=True
    ):
        arrays = layout.arrays(gradient[0 : layout.size]) | {
            name: reply.arrays[name] for name in layout.copied
        }
        metadata = _metadata(
            round=server_round,
            device=device,
            server=server,
            num_examples=f"{reply.samples:.17g}",
            num_steps=reply.steps,
        )
        yield Entry(Kind.GRADIENT, server_round, Sender(Role.DEVICE, device), encode(arrays, metadata))


def consensus_entries(
    server_round: int, step: int, states: NDArray[np.float32], servers: Sequence[int], layout: Layout
) -> Iterator[Entry]:
    """x_m^(l) of the edge servers that are up, states: (m, p)."""
    for server in servers:
        payload = encode(
            layout.arrays(states[server]), _metadata(round=server_round, step=step, server=server)
        )
        yield Entry(Kind.CONSENSUS, server_round, Sender(Role.SERVER, server), payload, step)


def model_entry(server_round: int, sender: Sender, model: Mapping[str, NDArray[np.generic]]) -> Entry:
    """The global model after a round; round 0 is the initial one."""
    return Entry(Kind.MODEL, server_round, sender, encode(model, _metadata(round=server_round)))
