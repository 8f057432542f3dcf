"""A run to be killed: records phase after phase and prints how many are recorded.

With more arguments, SQL and a number, it ends itself inside the third commit: when SQLite starts on the
statement of that number among those that begin so.
"""

import os
import sqlite3
import sys
from pathlib import Path

from conformance import KEYS, device, gradient, model

from flower_bfl.chain_adapter import EvmLedger


def end_at(connection: sqlite3.Connection, start: str, number: int) -> None:
    seen = []

    def trace(statement: str) -> None:
        seen.extend([statement] * statement.startswith(start))
        if len(seen) == number:
            os._exit(9)

    connection.set_trace_callback(trace)


def main() -> None:
    ledger = EvmLedger(Path(sys.argv[1]))
    ledger.open(KEYS)
    done = sum(1 for _ in ledger.entries()) // 4
    for k in range(done, 10_000):
        if len(sys.argv) > 2 and k == 2:
            end_at(ledger._database._connection, sys.argv[2], int(sys.argv[3]))
        ledger.record([*(gradient(k, device(n), size=n * 20_000 + 5) for n in range(3)), model(k)])
        sys.stdout.write(f"{k + 1}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
