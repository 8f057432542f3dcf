"""Ledgers: where a run's gradients, consensus steps and models are written down so that they can be checked.

`EvmLedger` is an EVM chain in this process, `RpcLedger` uses a node's; `MemoryLedger` has the same rules and
proves nothing. Importing this package loads neither py-evm nor web3.py: the ledgers that need them do.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from flower_bfl.chain_adapter.base import Entry as Entry
from flower_bfl.chain_adapter.base import Kind as Kind
from flower_bfl.chain_adapter.base import Ledger as Ledger
from flower_bfl.chain_adapter.base import Receipt as Receipt
from flower_bfl.chain_adapter.base import Role as Role
from flower_bfl.chain_adapter.base import Sender as Sender
from flower_bfl.chain_adapter.base import decode as decode
from flower_bfl.chain_adapter.base import digest as digest
from flower_bfl.chain_adapter.base import encode as encode
from flower_bfl.chain_adapter.base import simulated_keys as simulated_keys
from flower_bfl.chain_adapter.memory import MemoryLedger as MemoryLedger
from flower_bfl.chain_adapter.store import PayloadStore as PayloadStore

if TYPE_CHECKING:
    from flower_bfl.chain_adapter.keystore import KeyFolder as KeyFolder
    from flower_bfl.chain_adapter.pyevm import EvmLedger as EvmLedger
    from flower_bfl.chain_adapter.rpc import RpcLedger as RpcLedger

_LAZY = {
    "EvmLedger": "flower_bfl.chain_adapter.pyevm",
    "KeyFolder": "flower_bfl.chain_adapter.keystore",
    "RpcLedger": "flower_bfl.chain_adapter.rpc",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
