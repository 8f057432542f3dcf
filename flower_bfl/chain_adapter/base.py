"""The ledger as the rest of the package sees it: entries in, sealed phases out.

An entry is one signed transaction: a device's gradient, an edge server's state after a consensus step, a
leader's global model. A phase is a list of entries recorded together, in one block of the chain. The
global models form a chain of their own, the BFL blocks of the paper's Fig. 2, each sealed by its miner.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from typing import Protocol

from flower_bfl.chain_adapter.encoding import decode as decode
from flower_bfl.chain_adapter.encoding import digest as digest
from flower_bfl.chain_adapter.encoding import encode as encode
from flower_bfl.config import ContractRules


class Role(IntEnum):
    """What an account may do; the numbers are the contract's."""

    OPERATOR = 0
    DEVICE = 1
    SERVER = 2


class Kind(IntEnum):
    """What an entry holds; the numbers are the contract's."""

    RULES = 0  # operator, once: the run's constants, from which every later entry follows
    REPORT = 1  # operator: replies left out of a round, and why
    GRADIENT = 2  # device, or edge server with offloaded data: cumulative gradient, eqs. (6)(7)
    CONSENSUS = 3  # edge server: x_m^(l) of eq. (9), l = 0 is its partial aggregate (8)
    MODEL = 4  # leader: the global model (12); round 0 is the initial model, from the operator
    VOTE = 5  # edge server: another one is to be quarantined, with the evidence
    SEAL = 6  # device or edge server: the proof of work that makes the model a BFL block; no payload
    DATA = 7  # device: the digest of what it sent to an edge server to be trained on
    RESTART = 8  # operator: the round begins again, what was recorded of it does not count; no payload
    STATE = 9  # operator: what the next round depends on beside the model


@dataclass(frozen=True, order=True)
class Sender:
    """Who signs: the operator, device n or edge server m."""

    role: Role
    index: int = 0

    def __str__(self) -> str:
        return (
            self.role.name.lower() if self.role is Role.OPERATOR else f"{self.role.name.lower()} {self.index}"
        )


@dataclass(frozen=True)
class Entry:
    """One transaction to be recorded.

    `step` is l of a consensus entry, the number of servers passed over of a model (0: the leader rule's first
    choice proposes), the accused server of a vote, the miner's edge server of a seal, the edge server that
    data went to, and how often the round has begun again of a restart.
    """

    kind: Kind
    round: int  # k; 0 is before the first round
    sender: Sender
    payload: bytes  # canonical encoding, see `encode`
    step: int = 0
    signature: bytes = b""  # of a sender whose key the ledger does not have, see `signing`; 65 bytes


@dataclass(frozen=True)
class Receipt:
    """What recording one phase cost."""

    block: int  # number of the block that holds the phase's last transaction
    block_hash: bytes
    transactions: int
    gas: int
    calldata_bytes: int  # payload bytes that went on chain
    stored_bytes: int  # payload bytes that went to the payload store


@dataclass(frozen=True)
class Recent:
    """The end of a run."""

    height: int  # BFL blocks, which is also the round that is open
    rules: bytes = b""  # payload of RULES; empty: there are none
    entries: tuple[Entry, ...] = ()  # of the last finished round and of the open one, in order
    quarantined_until: Mapping[int, int] = field(default_factory=dict)  # by edge server that ever was


Keys = Callable[[Sender], bytes]
"""Private key (32 bytes) of a sender."""


class Ledger(Protocol):
    """An append-only record of entries. Every implementation passes tests/chain_adapter/conformance.py.

    All methods are safe to call from any thread, one at a time.
    """

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block, 32 bytes; zeros before the first."""

    @property
    def domain(self) -> tuple[int, bytes]:
        """Chain id and contract address (20 bytes), to which a relayed entry's signature is bound."""

    def open(self, keys: Keys, rules: ContractRules | None = None) -> None:
        """Get ready to record, signing with `keys`; registers accounts when they first appear.

        A new chain gets the rules, by default none beyond roles and rounds; one that is there keeps its own.
        """

    def record(self, entries: Iterable[Entry]) -> Receipt:
        """Record one phase, in order, and return when its block is part of the chain.

        Raises RejectedError if the contract refuses an entry (wrong role, second submission, ...), and
        LedgerError if the ledger cannot be written; in both cases nothing of the phase is recorded, unless
        a LedgerError of a node that somebody else runs came halfway (`RpcLedger`).
        """

    def entries(self) -> Iterator[Entry]:
        """Every entry in recorded order, payloads checked against their digests (PayloadError if not)."""

    def recent(self) -> Recent:
        """The end of the run; its entries are checked as by `entries`, without those before them."""

    def account(self, sender: Sender) -> bytes:
        """Address (20 bytes) of a sender; empty if it has none."""

    def holder(self, account: bytes) -> Sender | None:
        """Whose address (20 bytes) it is, if it is registered."""

    def close(self) -> None:
        """Flush and release files; a closed ledger can be opened again."""


def bfl_block_hash(
    previous: bytes, timestamp_s: int, miner: Sender | None, nonce: int, data_hash: bytes
) -> bytes:
    """Hash of a BFL block (Fig. 2): SHA-256 over previous hash, timestamp, miner, nonce and data hash.

    Timestamp (seconds since 1970), miner and nonce are 8 bytes each, big-endian; the miner is its role times
    2**32 plus its index, or 0 if nobody mined the block.
    """
    number = 0 if miner is None else miner.role << 32 | miner.index
    numbers = b"".join(value.to_bytes(8) for value in (timestamp_s, number, nonce))
    return sha256(previous + numbers + data_hash).digest()


def simulated_keys(seed: int) -> Keys:
    """Keys derived from a seed, for simulations: whoever knows the seed can sign for everybody."""

    def private_key(sender: Sender) -> bytes:
        return sha256(f"flower-bfl key {seed} {sender.role.name} {sender.index}".encode()).digest()

    return private_key


def draw_leader(head: bytes, server_round: int, servers: int) -> int:
    """The leader of a round, drawn from the previous BFL block's hash, so that anyone can check the draw.

    SHA-256 over `head` and the round (8 bytes, big-endian), as a big-endian number modulo the number of
    servers. If it cannot lead, the server with the next index does, and so on.
    """
    return int.from_bytes(sha256(head + server_round.to_bytes(8)).digest()) % servers
