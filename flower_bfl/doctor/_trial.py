"""Tries out modules and parts one after another: python -m flower_bfl.doctor._trial NAME...

In a process of its own, for a library may end it, or hang. A name is a module to import, or a trial below.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module

MARK = "\x1e"  # what libraries print as they load does not begin with it


def _evm() -> None:
    from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, simulated_keys
    from flower_bfl.chain_adapter.pyevm import EvmLedger

    ledger = EvmLedger()
    ledger.open(simulated_keys(0))
    ledger.record([Entry(Kind.MODEL, 0, Sender(Role.OPERATOR), b"model")])
    assert [entry.payload for entry in ledger.entries()] == [b"model"]


def _policies() -> None:
    from flower_bfl.controller import A2CController
    from flower_bfl.network import NetworkConfig

    A2CController.pretrained(NetworkConfig())
    A2CController.pretrained(NetworkConfig(), "sorted")


TRIALS: dict[str, Callable[[], object]] = {"trial:evm": _evm, "trial:policies": _policies}


def _tell(name: str, error: str | None) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps([name, error])}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            TRIALS[name]() if name in TRIALS else import_module(name)
        except BaseException as error:
            _tell(name, f"{type(error).__name__}: {error}")
        else:
            _tell(name, None)
