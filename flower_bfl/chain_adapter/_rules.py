"""The contract's rules in Python: for the ledger in memory, for checks before sending, and for the audit.

`tests/chain_adapter/conformance.py` holds this and the contract to the same answers.
"""

from dataclasses import dataclass, field, replace

from flower_bfl.chain_adapter.base import Entry, Kind, Role, Sender, bfl_block_hash, draw_leader
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, LedgerError, RejectedError

EPOCH_S = 1_577_836_800
"""Where logical time starts, 2020-01-01 in seconds since 1970: without a clock, round k is `EPOCH_S + k`."""

_SUBMITTERS = {
    Kind.RULES: {Role.OPERATOR},
    Kind.REPORT: {Role.OPERATOR},
    Kind.GRADIENT: {Role.DEVICE, Role.SERVER},
    Kind.CONSENSUS: {Role.SERVER},
    Kind.VOTE: {Role.SERVER},
    Kind.SEAL: {Role.DEVICE, Role.SERVER},
    Kind.DATA: {Role.DEVICE},
    Kind.RESTART: {Role.OPERATOR},
    Kind.STATE: {Role.OPERATOR},
}


@dataclass(frozen=True)
class BFLBlock:
    """A sealed model in the chain of models."""

    hash: bytes
    digest: bytes
    timestamp_s: int
    proposer: Sender
    miner: Sender | None = None  # None: nobody mined it
    nonce: int = 0
    server: int = 0  # edge server that the miner belongs to


@dataclass(frozen=True)
class Proposal:
    """A model that waits for its seal."""

    proposer: Sender
    timestamp_s: int
    digest: bytes


@dataclass
class RuleBook:
    """Who may submit what next. What it keeps does not grow with the run."""

    rules: ContractRules = field(default_factory=ContractRules)
    height: int = 0
    last: BFLBlock | None = None
    proposal: Proposal | None = None
    servers: frozenset[int] = frozenset()  # registered
    quarantined_until: dict[int, int] = field(default_factory=dict)
    restarts: int = 0  # of the open round
    _barred_before: dict[int, int] = field(default_factory=dict)  # `quarantined_until` when it opened
    _rules_given: bool = False
    _slots: set[tuple[Kind, int, Sender]] = field(default_factory=set)  # of the open round

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block; zeros before the first."""
        return bytes(32) if self.last is None else self.last.hash

    def copy(self) -> "RuleBook":
        """A book in which a phase can be tried out."""
        return replace(self, quarantined_until=dict(self.quarantined_until), _slots=set(self._slots))

    def register(self, sender: Sender) -> None:
        """Note a sender; raises RejectedError if the run has no such server."""
        if sender.role is not Role.SERVER:
            return
        if self.rules.edge_servers and sender.index >= self.rules.edge_servers:
            raise RejectedError(
                f"registration refused, UnknownServer (index {sender.index}): server {sender.index}"
            )
        self.servers |= {sender.index}

    def leader(self, passed: int = 0) -> int:
        """The open round's leader once `passed` servers were passed over."""
        rule, servers = self.rules.leader, self.rules.edge_servers
        if isinstance(rule, int):
            first = rule
        elif rule == "reputation" and self.last is not None and self.last.miner is not None:
            first = self.last.server
        else:
            first = draw_leader(self.head, self.height, servers)
        return (first + passed) % servers

    def note(self, entry: Entry, digest: bytes, timestamp_s: int | None = None) -> int:
        """Note any entry, in logical time unless a time is given; returns a seal's nonce, else 0."""
        if entry.kind is Kind.MODEL:
            self.propose(entry, digest, self.next_timestamp_s(entry.round, timestamp_s))
        elif entry.kind is Kind.SEAL:
            nonce = self.mine(entry)
            self.seal(entry, nonce)
            return nonce
        else:
            self.submit(entry)
        return 0

    def next_timestamp_s(self, server_round: int, now_s: int | None) -> int:
        """A time for the next block: `now_s`, or logical time, but later than the last block's."""
        before = 0 if self.last is None else self.last.timestamp_s
        return max(before + 1, EPOCH_S + server_round if now_s is None else now_s)

    def mine(self, entry: Entry) -> int:
        """A nonce for this seal; raises RejectedError if nothing waits for it."""
        self._check_sender(entry)
        proposal = self.waiting(entry)
        return find_nonce(
            self.head, proposal.timestamp_s, entry.sender, proposal.digest, self.rules.difficulty_bits
        )

    def submit(self, entry: Entry) -> None:
        """Note an entry that is neither a model nor a seal; raises RejectedError."""
        self._check_sender(entry)
        if entry.kind is Kind.RESTART:
            self._restart(entry)
        once = entry.kind is Kind.RULES  # whatever the step says
        slot = (entry.kind, entry.step, entry.sender)
        if slot in self._slots or (once and self._rules_given):
            raise refused("AlreadySubmitted", entry)
        self._slots.add(slot)
        self._rules_given |= once
        if entry.kind is Kind.VOTE:
            self._vote(entry)

    def propose(self, entry: Entry, digest: bytes, timestamp_s: int, parent: bytes | None = None) -> None:
        """Note a model, on top of the last block unless another parent is given; raises RejectedError."""
        self._check_sender(entry)
        if parent is not None and parent != self.head:
            reason = f"StaleParent (expected 0x{self.head.hex()}, got 0x{parent.hex()})"
            raise refused(reason, entry)
        if entry.round > 0 and self.rules.leader != "any":
            leader = self.leader(entry.step)
            if entry.sender.index != leader:
                raise refused(f"NotLeader (expected {leader}, got {entry.sender.index})", entry)
        if self._waiting() is not None:
            raise refused("AlreadySubmitted", entry)
        if self.last is not None and timestamp_s <= self.last.timestamp_s:
            times = f"previous {self.last.timestamp_s}, got {timestamp_s}"
            raise refused(f"StaleTimestamp ({times})", entry)
        self.proposal = Proposal(entry.sender, timestamp_s, digest)
        if entry.round == 0 or self.rules.difficulty_bits == 0:
            self._extend(self.proposal)

    def seal(self, entry: Entry, nonce: int) -> None:
        """Note a seal, which makes the proposal a block; raises RejectedError."""
        self._check_sender(entry)
        proposal = self.waiting(entry)
        if self.rules.edge_servers and entry.step >= self.rules.edge_servers:
            raise refused(f"UnknownServer (index {entry.step})", entry)
        data = (self.head, proposal.timestamp_s, entry.sender, nonce, proposal.digest)
        if not _has_zeros(bfl_block_hash(*data), self.rules.difficulty_bits):
            raise refused("BadNonce", entry)
        self._extend(proposal, entry.sender, nonce, entry.step)

    def waiting(self, entry: Entry) -> Proposal:
        """The model that waits for this seal; raises RejectedError if there is none."""
        proposal = self._waiting()
        if proposal is None:
            raise refused("NothingProposed", entry)
        return proposal

    def _check_sender(self, entry: Entry) -> None:
        if not may_submit(entry):
            raise refused("WrongRole", entry)
        if entry.round != self.height:
            raise refused(f"WrongRound (expected {self.height}, got {entry.round})", entry)
        if self._barred(entry.sender):
            until = self.quarantined_until[entry.sender.index]
            raise refused(f"ServerQuarantined (until {until})", entry)

    def _barred(self, sender: Sender) -> bool:
        if sender.role is not Role.SERVER:
            return False
        return self.height < self.quarantined_until.get(sender.index, 0)

    def _waiting(self) -> Proposal | None:
        return None if self.proposal is None or self._barred(self.proposal.proposer) else self.proposal

    def _restart(self, entry: Entry) -> None:
        if entry.step != self.restarts + 1:
            raise refused(f"WrongRestart (expected {self.restarts + 1}, got {entry.step})", entry)
        self.restarts += 1
        self.proposal = None
        self.quarantined_until = dict(self._barred_before)
        self._slots = set()

    def _vote(self, vote: Entry) -> None:
        accused = vote.step
        if accused >= self.rules.edge_servers or accused == vote.sender.index or accused not in self.servers:
            raise refused(f"UnknownServer (index {accused})", vote)
        votes = sum(kind is Kind.VOTE and step == accused for kind, step, _ in self._slots)
        if 2 * votes > self.rules.edge_servers - 1:
            self.quarantined_until[accused] = self.height + self.rules.quarantine_rounds + 1

    def _extend(
        self, proposal: Proposal, miner: Sender | None = None, nonce: int = 0, server: int = 0
    ) -> None:
        block_hash = bfl_block_hash(self.head, proposal.timestamp_s, miner, nonce, proposal.digest)
        self.last = BFLBlock(
            block_hash, proposal.digest, proposal.timestamp_s, proposal.proposer, miner, nonce, server
        )
        self.height += 1
        self.restarts = 0
        self.proposal = None
        self._barred_before = dict(self.quarantined_until)
        self._slots = set()


def find_nonce(previous: bytes, timestamp_s: int, miner: Sender, digest: bytes, difficulty_bits: int) -> int:
    """The smallest nonce that gives the BFL block's hash its leading zero bits; 2**bits tries on average."""
    nonce = 0
    while not _has_zeros(bfl_block_hash(previous, timestamp_s, miner, nonce, digest), difficulty_bits):
        nonce += 1
    return nonce


def _has_zeros(block_hash: bytes, bits: int) -> bool:
    return int.from_bytes(block_hash[:8]) >> (64 - bits) == 0


def may_submit(entry: Entry) -> bool:
    """Whether the sender's role allows this entry, by the contract's rule."""
    if entry.kind is Kind.MODEL:
        return entry.sender.role is (Role.OPERATOR if entry.round == 0 else Role.SERVER)
    return entry.sender.role in _SUBMITTERS[entry.kind]


def parties(entry: Entry, edge_servers: int) -> list[Entry]:
    """The entry, and one that stands for the account of whom it accuses: both accounts must be there."""
    accused = Sender(Role.SERVER, entry.step)
    if entry.kind is not Kind.VOTE or entry.step >= edge_servers or accused == entry.sender:
        return [entry]
    return [entry, Entry(Kind.CONSENSUS, entry.round, accused, b"")]


def check_bounds(entry: Entry) -> None:
    """Raise ConfigError if a number of the entry does not fit the contract's types."""
    last_operator = 0  # there is one operator
    last_index = last_operator if entry.sender.role is Role.OPERATOR else 2**32 - 1
    for name, value, last in (
        ("round", entry.round, 2**32 - 2),  # the contract's height is one more
        ("step", entry.step, 2**16 - 1),
        ("sender.index", entry.sender.index, last_index),
    ):
        if not 0 <= value <= last:
            raise ConfigError(
                f"`{name}` of a {entry.kind.name} entry by {entry.sender} must be in [0, {last}], got {value}"
            )
    if entry.kind in (Kind.SEAL, Kind.RESTART) and entry.payload:
        raise ConfigError(
            f"`payload` of a {entry.kind.name} entry must be empty, got {len(entry.payload)} bytes"
        )
    if entry.signature and (len(entry.signature) != 65 or entry.kind in (Kind.MODEL, Kind.SEAL)):
        raise ConfigError(
            "`signature` must be 65 bytes, and not of a MODEL or SEAL entry, "
            f"got {len(entry.signature)} of a {entry.kind.name} entry"
        )


def check_same_rules(wanted: ContractRules | None, found: ContractRules, where: str) -> None:
    """Raise LedgerError unless a chain that is there has the rules that somebody wants it to have."""
    if wanted is not None and wanted != found:
        raise LedgerError(f"`rules` must be those of {where}: {found}, got {wanted}")


def refused(reason: str, entry: Entry) -> RejectedError:
    """The error for an entry that breaks a rule of the contract; `reason` starts with the rule's name."""
    place = f"kind {entry.kind.name}, round {entry.round}, step {entry.step}"
    return RejectedError(f"entry refused, {reason}: {entry.sender}, {place}")
