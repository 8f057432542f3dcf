"""The ledger on an EVM node that speaks JSON-RPC, such as anvil, hardhat, geth or Besu."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from eth_typing import Address

try:
    from web3 import Web3
    from web3.contract import Contract
except ModuleNotFoundError as missing:
    from flower_bfl.errors import ConfigError

    raise ConfigError(
        f"`RpcLedger` needs the package {missing.name}: pip install 'flower-bfl[web3]'"
    ) from missing

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import Account, contract_of
from flower_bfl.chain_adapter._contract import PIECE_BYTES
from flower_bfl.chain_adapter._phase import OPERATOR
from flower_bfl.chain_adapter._reader import Recorded
from flower_bfl.chain_adapter._rpc_file import read_address, read_where, write_where
from flower_bfl.chain_adapter._rpc_log import (
    ContractLog,
    Follower,
    Known,
    ReorganisedError,
    Where,
    check_contract,
    find_creation,
    read_recorded,
    to_hex,
)
from flower_bfl.chain_adapter._rpc_node import Node
from flower_bfl.chain_adapter._rpc_outbox import Outbox, Outgoing, in_blocks, known
from flower_bfl.chain_adapter._rpc_phase import Phase, PhasePlanner, name_of
from flower_bfl.chain_adapter._rules import check_same_rules
from flower_bfl.chain_adapter.base import Entry, Keys, Kind, Receipt, Recent, Sender
from flower_bfl.chain_adapter.store import Payloads, PayloadStore
from flower_bfl.config import ContractRules
from flower_bfl.errors import ConfigError, LedgerError, RejectedError

_INLINE_BYTES = {"auto": 24_000, "full": PIECE_BYTES, "digest": 0}
_DEPLOY_GAS = 10**7


class RpcLedger:
    """Entries as signed transactions to the FlowerBFL contract on a node.

    A phase is tried on a copy of the contract's rules first, so a phase that breaks one sends nothing. Its
    transactions are signed here and take as many blocks as the node makes of them. If the node fails in
    between, `record` raises LedgerError with a part of the phase on the chain; the same phase recorded again
    sends what is missing. Another one is refused until then, or until `open` goes on from what the chain has.

    Without a clock, BFL blocks have logical time, and `head` is that of an `EvmLedger` with the same entries.
    Messages show scheme, host and port of the URL, and nothing else of it.

    Parameters
    ----------
    url
        of the node's JSON-RPC over HTTP, such as ``http://127.0.0.1:8545``.
    folder
        holds ``chain.json``, which says where the contract is, and ``payloads/``, made if missing; None keeps
        both in memory.
    contract
        address of an existing contract, "0x...", to read or to go on with; None takes that of ``chain.json``,
        and if there is none, `open` makes a new contract.
    payloads, clock, store
        as for `EvmLedger`.
    timeout_s
        how long to wait for an answer of the node, and for a block with what was sent, before trying again.
    retries
        how often to try again.
    funder
        private key of an account that pays the operator, who pays the others. Without one, the operator must
        have money, or the node an account that it signs for itself, as development nodes do.

    Raises
    ------
    ConfigError
        an argument breaks its rule.
    """

    def __init__(
        self,
        url: str,
        *,
        folder: Path | str | None = None,
        contract: str | None = None,
        payloads: Literal["auto", "full", "digest"] = "auto",
        clock: Callable[[], int] | None = None,
        store: Payloads | None = None,
        timeout_s: float = 30.0,
        retries: int = 6,
        funder: bytes | None = None,
    ) -> None:
        if payloads not in _INLINE_BYTES:
            raise ConfigError(f"`payloads` must be one of {sorted(_INLINE_BYTES)}, got {payloads!r}")
        if not timeout_s > 0 or retries < 0:
            raise ConfigError(f"`timeout_s` must be > 0 and `retries` >= 0, got {timeout_s} and {retries}")
        self._node = Node(url, timeout_s, retries)
        self._outbox = Outbox(self._node, timeout_s, retries)
        self._file = None if folder is None else Path(folder) / "chain.json"
        self._address = None if contract is None else read_address(contract)
        self._store = store or PayloadStore(None if folder is None else Path(folder) / "payloads")
        self._payloads = payloads
        self._clock = clock
        self._funder = None if funder is None else _funder(funder)
        self._lock = threading.RLock()
        self._web3 = Web3(self._node)
        self._where: Where | None = None
        self._follower: Follower | None = None
        self._keys: Keys | None = None
        self._accounts: dict[Sender, Account] = {}
        self._creation: Outgoing | None = None
        self._phase: Phase | None = None  # that an error has kept from its end
        self._must_finish = False

    def __repr__(self) -> str:
        contract = "" if self._where is None else f", contract={to_hex(self._where.contract)!r}"
        return f"RpcLedger({self._node.name!r}{contract})"

    @property
    def web3(self) -> Web3:
        """The node as a web3.py object, to look at the chain with; it does not show the URL either."""
        return self._web3

    @property
    def web3_contract(self) -> Contract:
        """The FlowerBFL contract as a web3.py object."""
        return self._web3.eth.contract(address=Address(self.contract_address), abi=_contract.ABI)

    @property
    def head(self) -> bytes:
        """Hash of the last BFL block, 32 bytes; zeros before the first."""
        follower = self._follow()
        return bytes(32) if follower is None else follower.book.head

    @property
    def domain(self) -> tuple[int, bytes]:
        """Chain id and address of the contract, to which a relayed entry's signature is bound."""
        follower = self._follow()
        return (0, bytes(20)) if follower is None else follower.domain

    @property
    def contract_address(self) -> bytes:
        """Address of the FlowerBFL contract, 20 bytes; zeros before `open` made one."""
        return self.domain[1]

    @property
    def rules(self) -> ContractRules:
        """What the contract checks beyond roles and rounds."""
        follower = self._follow()
        return ContractRules() if follower is None else follower.book.rules

    @property
    def block_number(self) -> int:
        """Number of the block with the contract's last transaction; 0 before `open` made a contract."""
        follower = self._follow()
        return 0 if follower is None else follower.block_number

    @property
    def block_hash(self) -> bytes:
        """Hash of the block with the contract's last transaction, 32 bytes."""
        follower = self._follow()
        return bytes(32) if follower is None else follower.block_hash

    @property
    def transactions(self) -> int:
        """Number of the contract's transactions; its creation and registrations count, transfers do not."""
        follower = self._follow()
        return 0 if follower is None else follower.transactions

    @property
    def gas(self) -> int:
        """Gas of the contract's transactions."""
        follower = self._follow()
        return 0 if follower is None else follower.gas

    def open(self, keys: Keys, rules: ContractRules | None = None) -> None:
        """Get ready to record, signing with `keys`; makes the contract if there is none yet.

        Reads what is on the chain. Raises LedgerError if the node fails, if the contract has another operator
        or other rules, or if nobody pays the operator.
        """
        with self._lock:
            self._keys, self._accounts, self._follower, self._must_finish = None, {}, None, False
            operator = Account.of(keys, OPERATOR)
            with self._node.reading():
                where = self._find()
                if where is None:
                    where = self._make(operator, rules or ContractRules())
                check_contract(self._node, where.contract)
                follower = self._read_rest(where)
                self._outbox.wait_for_others([operator.address, *follower.accounts.values()])
                follower = self._read_rest(where)
                contract = f"the contract {to_hex(where.contract)} at {self._node.name}"
                check_same_rules(rules, follower.book.rules, contract)
                if follower.operator != operator.address:
                    raise LedgerError(
                        f"`keys` must be those of {contract}: its operator is {to_hex(follower.operator)}, "
                        f"theirs is {to_hex(operator.address)}"
                    )
                if self._file is not None:
                    write_where(self._file, where)
            self._keys = keys

    def record(self, entries: Iterable[Entry]) -> Receipt:
        """Record one phase and return when all its transactions are mined; see `Ledger.record`.

        Raises ConfigError for too large a number, and RejectedError if the phase breaks a rule; nothing is
        recorded then. After any other LedgerError, record the same phase again: what is missing follows.
        """
        with self._lock:
            if self._keys is None:
                raise LedgerError("`record` needs an open ledger: call `open(keys)` first")
            if self._phase is not None:
                entries = list(entries)
                if self._phase.names != [name_of(entry) for entry in entries]:
                    if self._must_finish:
                        raise LedgerError(
                            "the phase before is recorded in part: record it again, or call `open(keys)` to "
                            "go on from what the chain has"
                        )
                    self._phase = None
            if self._phase is None:
                phase = self._plan(entries)
                if not phase.names:
                    return self._receipt(phase)
                self._phase = phase
            self._must_finish = True
            receipt = self._finish(self._phase)
            self._phase = None
            return receipt

    def entries(self) -> Iterator[Entry]:
        """Every entry in the chain's order, which is the recorded one unless a node mixes a phase's senders.

        Each transaction must have its hash, be signed and keep the contract's rules, each payload must have
        its digest, and the last model must be the contract's; raises LedgerError or PayloadError for what
        is otherwise. What is recorded after the first entry was asked for is not included. That the node
        leaves nothing out is its own word, but for models and seals, without which the next do not follow.
        """
        return (recorded.entry for recorded in self.recorded())

    def recorded(self) -> Iterator[Recorded]:
        """Every entry in the chain's order, with its place on the chain; checked as by `entries`."""
        with self._node.reading():
            with self._lock:
                where = self._find()
            if where is not None:
                yield from read_recorded(self._node, where, self._store)

    def recent(self) -> Recent:
        """The end of the run; to know where the contract stands, all of its transactions are read."""
        follower = self._follow()
        if follower is None:
            return Recent(0)
        height, entries, rules = follower.book.height, [], b""
        for entry in self.entries():
            rules = entry.payload if entry.kind is Kind.RULES else rules
            if entry.round >= height - 1:
                entries.append(entry)
        return Recent(height, rules, tuple(entries), dict(follower.book.quarantined_until))

    def account(self, sender: Sender) -> bytes:
        """Address (20 bytes) of a sender, as the contract has it; empty if it has none."""
        follower = self._follow()
        return b"" if follower is None else follower.accounts.get(sender, b"")

    def holder(self, account: bytes) -> Sender | None:
        """Whose address (20 bytes) it is, if the contract has it."""
        follower = self._follow()
        registered = {} if follower is None else follower.accounts
        return next((sender for sender, own in registered.items() if own == account), None)

    def close(self) -> None:
        """Close the connection until the next use."""
        with self._lock:
            self._keys = None
            self._node.close()

    def _follow(self) -> Follower | None:
        """Where the contract stands, if there is one; asks the node, unless this object is what records."""
        with self._lock:
            if self._keys is not None and self._follower is not None:
                return self._follower
            with self._node.reading():
                where = self._find()
                return None if where is None else self._read_rest(where)

    def _read_rest(self, where: Where, known: Known | None = None) -> Follower:
        follower = self._follower
        if follower is None:
            log = ContractLog(self._node, where.contract)
            follower = Follower(log, self._node, where.first_block)
        try:
            follower.advance(known or {})
        except ReorganisedError:
            if self._keys is not None:  # `open` says what is left
                raise
            self._follower = None
            return self._read_rest(where)
        if follower.domain != (where.chain_id, where.contract):
            raise LedgerError(
                f"{to_hex(where.contract)} on chain {where.chain_id} at {self._node.name} is no contract of "
                "this version of FlowerBFL"
            )
        self._follower = follower
        return follower

    def _plan(self, entries: Iterable[Entry]) -> Phase:
        with self._node.reading():
            where = self._find()
            assert where is not None  # since `open`
            follower = self._read_rest(where)
        planner = PhasePlanner(
            follower.book,
            follower.accounts,
            follower.pieces,
            follower.domain,
            self._account,
            self._store,
            _INLINE_BYTES[self._payloads],
            self._payloads == "full",
        )
        return planner.plan(entries, self._clock or _no_clock)

    def _finish(self, phase: Phase) -> Receipt:
        """Send what is missing of a phase; what was mined is looked up again, for blocks may be replaced."""
        for outgoing in phase.transactions:
            outgoing.receipt = None
        operator = self._account(OPERATOR)
        try:
            self._store.flush()
            with self._node.reading():
                self._outbox.look(phase.transactions)
                missing = [each for each in phase.transactions if not each.mined]
                transfers = self._outbox.fund(missing, operator, self._funder)
                waves = [[*transfers, *phase.registrations], *phase.waves]
                for wave in in_blocks(waves, self._outbox.prices().block_gas):
                    self._outbox.settle(wave)
                where = self._find()
                assert where is not None  # since `open`
                self._read_rest(where, known(phase.transactions))
        except RejectedError as error:
            self._phase = None
            raise LedgerError(
                f"{error}: the chain has gone on without this ledger, and may have a part of the phase; open "
                "the ledger again to go on from there"
            ) from error
        return self._receipt(phase)

    def _receipt(self, phase: Phase) -> Receipt:
        follower = self._follow()
        assert follower is not None  # since `open`
        own = [each for each in phase.transactions if each.to == follower.domain[1]]
        return Receipt(
            block=follower.block_number,
            block_hash=follower.block_hash,
            transactions=len(own),
            gas=sum(each.gas_used for each in own),
            calldata_bytes=phase.calldata_bytes,
            stored_bytes=phase.stored_bytes,
        )

    def _make(self, operator: Account, rules: ContractRules) -> Where:
        """Make the contract; after an error, the same call again makes no second one."""
        data = _contract.creation(rules)
        creation = self._creation
        if creation is None or (creation.account.address, creation.data) != (operator.address, data):
            creation = Outgoing(operator, b"", data, _DEPLOY_GAS, "creation of the contract")
        if not creation.signed:
            self._outbox.fund([creation], operator, self._funder)
        self._creation = creation
        self._outbox.settle([creation])
        assert creation.receipt is not None  # since it is settled
        chain_id = int(self._node.ask("eth_chainId"), 16)
        contract = contract_of(operator.address, creation.signed[-1].nonce)
        self._where = Where(chain_id, contract, int(creation.receipt["blockNumber"], 16))
        self._creation = None
        return self._where

    def _find(self) -> Where | None:
        """Where the contract is, if there is one."""
        if self._where is not None:
            return self._where
        where = None if self._file is None else read_where(self._file)
        if where is None and self._address is None:
            return None
        chain_id = int(self._node.ask("eth_chainId"), 16)
        if where is None:
            assert self._address is not None
            check_contract(self._node, self._address)
            where = Where(chain_id, self._address, find_creation(self._node, self._address))
        if where.chain_id != chain_id or self._address not in (None, where.contract):
            raise LedgerError(
                f"`url` and `contract` must be those of {self._file}, chain {where.chain_id} and "
                f"{to_hex(where.contract)}; found chain {chain_id}"
                + ("" if self._address is None else f" and {to_hex(self._address)}")
            )
        check_contract(self._node, where.contract)
        self._where = where
        return where

    def _account(self, sender: Sender) -> Account:
        if sender not in self._accounts:
            assert self._keys is not None
            self._accounts[sender] = Account.of(self._keys, sender)
        return self._accounts[sender]


def _no_clock() -> None:
    return None


def _funder(key: bytes) -> Account:
    try:
        return Account.of(lambda _: key, OPERATOR)
    except ConfigError:
        raise ConfigError(
            "`funder` must be a private key, 32 bytes between 1 and the curve's order"
        ) from None
