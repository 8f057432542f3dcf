"""Consensus-based federated learning on Flower, written to an EVM chain."""

from importlib import import_module
from typing import TYPE_CHECKING

from flower_bfl.config import AutoRounds as AutoRounds
from flower_bfl.config import Mining as Mining
from flower_bfl.config import Outage as Outage
from flower_bfl.errors import ConfigError as ConfigError
from flower_bfl.errors import FlowerBFLError as FlowerBFLError
from flower_bfl.errors import LedgerError as LedgerError
from flower_bfl.types import RoundReport as RoundReport

if TYPE_CHECKING:
    from flower_bfl.chain_adapter import EvmLedger as EvmLedger
    from flower_bfl.chain_adapter import MemoryLedger as MemoryLedger
    from flower_bfl.chain_adapter import RpcLedger as RpcLedger
    from flower_bfl.chain_adapter.base import Ledger as Ledger
    from flower_bfl.strategies import ConsensusBFL as ConsensusBFL
    from flower_bfl.strategies import IndependentServers as IndependentServers
    from flower_bfl.strategies import OnLedger as OnLedger

__all__ = [  # noqa: RUF022  # by what they are for
    "ConsensusBFL",
    "IndependentServers",
    "OnLedger",
    "AutoRounds",
    "Mining",
    "Outage",
    "RoundReport",
    "EvmLedger",
    "RpcLedger",
    "MemoryLedger",
    "Ledger",
    "FlowerBFLError",
    "ConfigError",
    "LedgerError",
]

__version__ = "0.1.0"

_LATE = {
    "ConsensusBFL": "flower_bfl.strategies",
    "IndependentServers": "flower_bfl.strategies",
    "OnLedger": "flower_bfl.strategies",
    "EvmLedger": "flower_bfl.chain_adapter",
    "RpcLedger": "flower_bfl.chain_adapter",
    "MemoryLedger": "flower_bfl.chain_adapter",
    "Ledger": "flower_bfl.chain_adapter.base",
}


def __getattr__(name: str) -> object:
    """Import Flower and the chain only where they are used: they take seconds."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
