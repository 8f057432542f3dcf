"""Small runs for the ledgers' tests, and the hashes of their BFL blocks, written out once more."""

from hashlib import sha256

import numpy as np

from flower_bfl.chain_adapter import Entry, Kind, Role, Sender, encode, simulated_keys
from flower_bfl.config import ContractRules

KEYS = simulated_keys(7)
EPOCH_S = 1_577_836_800  # docs/ledger.md: logical time of round 0
OPERATOR = Sender(Role.OPERATOR)
MINED = ContractRules(edge_servers=2, difficulty_bits=6)


def device(index: int) -> Sender:
    return Sender(Role.DEVICE, index)


def server(index: int) -> Sender:
    return Sender(Role.SERVER, index)


def payload(seed: int, size: int = 40) -> bytes:
    return encode(
        {"w": np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)}, {"seed": str(seed)}
    )


def gradient(server_round: int, sender: Sender, size: int = 40, step: int = 0) -> Entry:
    seed = 1000 * server_round + 100 * step + sender.index
    return Entry(Kind.GRADIENT, server_round, sender, payload(seed, size), step)


def data(server_round: int, sender: Sender, of_server: int) -> Entry:
    return Entry(Kind.DATA, server_round, sender, payload(server_round + 50), of_server)


def model(server_round: int, sender: Sender | None = None, passed: int = 0) -> Entry:
    if sender is None:
        sender = OPERATOR if server_round == 0 else server(server_round % 2)
    return Entry(Kind.MODEL, server_round, sender, payload(server_round, 200), passed)


def seal(server_round: int, sender: Sender, of_server: int = 0) -> Entry:
    return Entry(Kind.SEAL, server_round, sender, b"", of_server)


def vote(server_round: int, voter: int, accused: int) -> Entry:
    return Entry(Kind.VOTE, server_round, server(voter), b"evidence", accused)


def restart(server_round: int, number: int) -> Entry:
    return Entry(Kind.RESTART, server_round, OPERATOR, b"", number)


def run_of(rounds: int, *, mined: bool = False) -> list[list[Entry]]:
    """Phases of a small run: 4 devices, one of which offloads, 2 servers, 2 consensus steps a round.

    Device k mines round k.
    """
    phases = [[Entry(Kind.RULES, 0, OPERATOR, payload(99)), model(0)]]
    for k in range(1, rounds + 1):
        phases.append([data(k, device(3), k % 2), *(gradient(k, device(n)) for n in range(3))])
        for step in range(2):
            phases.append(
                [Entry(Kind.CONSENSUS, k, server(m), payload(k + 10 * step + m), step) for m in range(2)]
            )
        phases.append([Entry(Kind.REPORT, k, OPERATOR, b"none"), model(k)])
        if mined:
            phases[-1].append(seal(k, device(k % 3), k % 2))
    return phases


def head_of(entries: list[Entry], difficulty_bits: int = 0) -> bytes:
    """Head of the BFL blocks that entries make in logical time, by the formula in docs/ledger.md."""
    head, model_digest = bytes(32), b""
    for entry in entries:
        if entry.kind is Kind.MODEL:
            model_digest = sha256(entry.payload).digest()
            if entry.round == 0 or difficulty_bits == 0:
                head = block_hash(head, entry.round, 0, 0, model_digest)
        elif entry.kind is Kind.SEAL:
            head = mined_hash(head, entry.round, entry.sender, model_digest, difficulty_bits)
    return head


def mined_hash(
    previous: bytes, server_round: int, miner: Sender, model_digest: bytes, difficulty_bits: int
) -> bytes:
    """Hash of the block with the first nonce that is good."""
    number = miner.role * 2**32 + miner.index
    nonce = 0
    while True:
        found = block_hash(previous, server_round, number, nonce, model_digest)
        if int.from_bytes(found) < 2 ** (256 - difficulty_bits):
            return found
        nonce += 1


def block_hash(previous: bytes, server_round: int, miner: int, nonce: int, model_digest: bytes) -> bytes:
    numbers = (EPOCH_S + server_round, miner, nonce)
    return sha256(
        previous + b"".join(number.to_bytes(8, "big") for number in numbers) + model_digest
    ).digest()


def drawn_leader(head: bytes, server_round: int, servers: int) -> int:
    """By the formula in docs/ledger.md."""
    drawn = sha256(head + server_round.to_bytes(8, "big")).hexdigest()
    return int(drawn, 16) % servers


def of_phases(phases: list[list[Entry]]) -> list[Entry]:
    return [entry for phase in phases for entry in phase]
