"""Flower strategies with several edge servers, and the pure functions of a round.

Importing this package does not load Flower: the strategies do. The audit needs only the pure functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flower_bfl.strategies.consensus_bfl import ConsensusBFL as ConsensusBFL
    from flower_bfl.strategies.independent_servers import IndependentServers as IndependentServers
    from flower_bfl.strategies.on_ledger import OnLedger as OnLedger

_LAZY = {
    "ConsensusBFL": "flower_bfl.strategies.consensus_bfl",
    "IndependentServers": "flower_bfl.strategies.independent_servers",
    "OnLedger": "flower_bfl.strategies.on_ledger",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
