"""What recording costs: time per 5 KB transaction on each ledger, and gas by kind of entry.

    python benchmarks/ledger.py [--phases 40] [--senders 20]

The ledgers take turns, phase by phase, so that a busy machine slows all of them alike; printed is the median
over the phases. Gas does not depend on the machine.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from flower_bfl.chain_adapter import (
    Entry,
    EvmLedger,
    Kind,
    Ledger,
    MemoryLedger,
    Role,
    RpcLedger,
    Sender,
    _contract,
    digest,
    simulated_keys,
)
from flower_bfl.chain_adapter._accounts import Account, contract_of
from flower_bfl.chain_adapter._phase import gas_limit
from flower_bfl.chain_adapter.base import Keys
from flower_bfl.chain_adapter.signing import sign
from flower_bfl.config import ContractRules

ROOT = Path(__file__).parent.parent
KEYS = simulated_keys(1)
OPERATOR = Sender(Role.OPERATOR)


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def phase(number: int, senders: int, size: int = 5_000) -> list[Entry]:
    """All in round 1: the contract takes one gradient a step from each device."""
    return [
        Entry(Kind.GRADIENT, 1, Sender(Role.DEVICE, n), noise(size, 1000 * number + n), step=number)
        for n in range(senders)
    ]


class Anvil:
    """The same transactions to anvil: signed here, one JSON array and one block a phase, receipts read."""

    def __init__(self, url: str) -> None:
        self._host = url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(self._host)
        self._accounts: dict[Sender, Account] = {}
        self._nonces: dict[Sender, int] = {}
        self._contract = b""
        self._chain_id = int(self._ask(("eth_chainId",))[0], 16)

    def open(self, keys: Keys) -> None:
        self._ask(("evm_setAutomine", False))
        self._add(OPERATOR, keys)
        self._send([(OPERATOR, b"", _contract.creation(ContractRules()))])
        self._contract = contract_of(self._accounts[OPERATOR].address)

    def record(self, entries: list[Entry]) -> None:
        new = [entry.sender for entry in entries if entry.sender not in self._accounts]
        for sender in new:
            self._add(sender, KEYS)
        if new:
            addresses = {sender: self._accounts[sender].address for sender in new}
            self._send([(OPERATOR, self._contract, _contract.register(addresses))])
        self._send([(entry.sender, self._contract, self._calldata(entry)) for entry in entries])

    def close(self) -> None:
        self._connection.close()

    def _calldata(self, entry: Entry) -> bytes:
        name = digest(entry.payload)
        if entry.kind is Kind.MODEL:
            return _contract.propose(entry, name, entry.payload, bytes(32), 1)
        return _contract.submit(entry, name, entry.payload)

    def _add(self, sender: Sender, keys: Keys) -> None:
        self._accounts[sender], self._nonces[sender] = Account.of(keys, sender), 0
        self._ask(("anvil_setBalance", "0x" + self._accounts[sender].address.hex(), hex(10**24)))

    def _send(self, calls: list[tuple[Sender, bytes, bytes]]) -> None:
        raw = []
        for sender, to, data in calls:
            account, nonce = self._accounts[sender], self._nonces[sender]
            gas = gas_limit(data, len(self._accounts)) if to else 10**7
            signed = account.sign(nonce, gas, to, data, chain_id=self._chain_id, fees_wei=(0, 10**10))
            raw.append(("eth_sendRawTransaction", "0x" + signed.encode().hex()))
            self._nonces[sender] += 1
        hashes = self._ask(*raw, ("evm_mine",))[:-1]
        receipts = self._ask(*(("eth_getTransactionReceipt", each) for each in hashes))
        assert all(receipt["status"] == "0x1" for receipt in receipts)

    def _ask(self, *calls: tuple) -> list:
        requests = [
            {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}
            for number, (method, *parameters) in enumerate(calls)
        ]
        self._connection.request("POST", "/", json.dumps(requests), {"Content-Type": "application/json"})
        answers = json.loads(self._connection.getresponse().read())
        return [answer["result"] for answer in sorted(answers, key=lambda answer: answer["id"])]


@contextmanager
def anvil() -> Iterator[str | None]:
    """URL of an anvil of one's own, as the tests install it; None where there is none."""
    program = Path(
        os.environ.get("FLOWER_BFL_NODES", ROOT / ".pytest_cache" / "d" / "nodes"),
        "node_modules",
        ".bin",
        "anvil",
    )
    if not program.exists():
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "--port", str(port), "--gas-limit", str(10**10), "--silent"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def time_ms(ledgers: dict[str, Ledger | Anvil], phases: int, senders: int) -> dict[str, float]:
    """Median milliseconds per transaction; the first phase, which registers the senders, is left out."""
    taken_s: dict[str, list[float]] = {name: [] for name in ledgers}
    for k in range(phases + 1):
        entries = phase(k, senders)
        for name, ledger in ledgers.items():
            start = time.perf_counter()
            ledger.record(entries)
            taken_s[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) / senders * 1e3 for name, times in taken_s.items()}


def print_times(phases: int, senders: int) -> None:
    with tempfile.TemporaryDirectory() as folder, anvil() as url, anvil() as another:
        ledgers: dict[str, Ledger | Anvil] = {
            "EvmLedger in memory": EvmLedger(),
            "EvmLedger on disk": EvmLedger(Path(folder)),
            "MemoryLedger": MemoryLedger(),
        }
        if url is not None and another is not None:
            ledgers["anvil over HTTP, bare"] = Anvil(url)
            ledgers["RpcLedger on anvil"] = RpcLedger(another)
        for ledger in ledgers.values():
            ledger.open(KEYS)
            ledger.record([Entry(Kind.MODEL, 0, OPERATOR, b"0")])
        times = time_ms(ledgers, phases, senders)
        for ledger in ledgers.values():
            ledger.close()
    reference = times["EvmLedger in memory"]
    print(f"{phases} phases of {senders} transactions of 5,000 bytes, signing included\n")
    print("| ledger | ms a transaction | ratio |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.3f} | {value / reference:.2f} |")
    on_disk, in_memory = times["EvmLedger on disk"], reference
    print(f"\non disk to in memory: {on_disk / in_memory:.2f} (bar 2)")
    for name in ledgers:
        if "anvil" in name:
            print(f"in memory to {name}: {in_memory / times[name]:.2f} (bar 1.2)")


def print_reads(blocks: tuple[int, int] = (50, 1000)) -> None:
    """Reads of a short chain and of a long one, in turn."""
    chains = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in blocks:
            ledger = chains[length] = EvmLedger(Path(folder, str(length)))
            ledger.open(KEYS)
            ledger.record([Entry(Kind.MODEL, 0, OPERATOR, b"0")])
            for k in range(length):
                ledger.record([Entry(Kind.GRADIENT, 1, Sender(Role.DEVICE, 0), b"%d" % k, step=k)])
        hashes = {
            length: [recorded.transaction_hash for recorded in ledger.recorded()]
            for length, ledger in chains.items()
        }
        reads = {
            "receipt": lambda ledger, name: ledger.web3.eth.get_transaction_receipt(name),
            "transaction": lambda ledger, name: ledger.web3.eth.get_transaction(name),
            "head": lambda ledger, _: ledger.web3_contract.functions.head().call(),
        }
        print(f"\nreads, a chain of {blocks[1]:,} blocks against one of {blocks[0]}\n")
        print("| what | ms | ratio (bar 1.5) |\n|---|---|---|")
        rng = np.random.default_rng(0)
        for what, read in reads.items():
            taken: dict[int, list[float]] = {length: [] for length in blocks}
            for _ in range(200):
                for length, ledger in chains.items():
                    name = hashes[length][rng.integers(len(hashes[length]))]
                    start = time.perf_counter()
                    read(ledger, name)
                    taken[length].append(time.perf_counter() - start)
            short, long = (statistics.median(taken[length]) * 1e3 for length in blocks)
            print(f"| {what} | {long:.2f} | {long / short:.2f} |")
        for ledger in chains.values():
            ledger.close()


def print_gas() -> None:
    """Gas of each kind of entry, without registrations; random payloads, as trained weights nearly are."""
    server, device = Sender(Role.SERVER, 0), Sender(Role.DEVICE, 0)
    rows: list[tuple[str, int]] = []

    def gas(name: str, ledger: EvmLedger, *entries: Entry) -> None:
        rows.append((name, ledger.record(entries).gas))

    small = EvmLedger()
    small.open(KEYS, ContractRules(3, 0, 12))
    rows.append(("create the contract", small.gas))
    small.record([Entry(Kind.MODEL, 0, OPERATOR, b"0")])
    first = [Entry(Kind.CONSENSUS, 1, server, b"x"), Entry(Kind.CONSENSUS, 1, Sender(Role.SERVER, 1), b"x")]
    registering = small.record([*first, Entry(Kind.GRADIENT, 1, device, b"x")]).gas
    again = small.record(
        [replace(entry, step=1) for entry in [*first, Entry(Kind.GRADIENT, 1, device, b"x")]]
    )
    rows.append(("register one account", (registering - again.gas) // 3))
    for size in (32, 5_000, 24_000):
        entry = Entry(Kind.GRADIENT, 1, device, noise(size, size), step=size)
        gas(f"submit, {size:,} bytes in calldata", small, entry)
    gas("submit, digest only", small, Entry(Kind.GRADIENT, 1, device, noise(24_001, 1), step=2))
    payload = noise(5_000, 2)
    signature = sign(KEYS(device), small.domain, Kind.GRADIENT, 1, 3, digest(payload))
    gas("relay, 5,000 bytes in calldata", small, Entry(Kind.GRADIENT, 1, device, payload, 3, signature))
    gas("vote, digest only", small, Entry(Kind.VOTE, 1, server, noise(24_001, 1), 1))
    for k, size in enumerate((5_000, 24_000, 24_001), start=1):
        where = "in calldata" if size <= 24_000 else "by digest"
        gas(f"propose, {size:,} bytes {where}", small, Entry(Kind.MODEL, k, server, noise(size, size)))
        sealing = Entry(Kind.SEAL, k, device, b"")
        if k < 3:
            small.record([sealing])
        else:
            gas("seal", small, sealing)
    full = EvmLedger(payloads="full")
    full.open(KEYS)
    full.record([Entry(Kind.MODEL, 0, OPERATOR, b"0"), Entry(Kind.GRADIENT, 1, device, b"x")])
    for size in (80_000, 1_000_000):
        pieces = f", {-(-size // 80_000)} pieces and the entry" if size > 80_000 else ""
        entry = Entry(Kind.GRADIENT, 1, device, noise(size, size), step=size // 100)
        gas(f"submit, {size:,} bytes in calldata{pieces}", full, entry)
    print("\n| what | gas |\n|---|---|")
    for name, used in rows:
        print(f"| {name} | {used:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phases", type=int, default=40)
    parser.add_argument("--senders", type=int, default=20)
    arguments = parser.parse_args()
    print_times(arguments.phases, arguments.senders)
    print_reads()
    print_gas()


if __name__ == "__main__":
    main()
