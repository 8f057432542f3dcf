"""Signed transactions on their way to a node, until they are mined.

What is sent twice is the same bytes, so nothing is recorded twice: a nonce is used once, whatever gets lost.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flower_bfl.chain_adapter import _contract
from flower_bfl.chain_adapter._accounts import Account, SignedTransaction
from flower_bfl.chain_adapter._rpc_log import to_bytes, to_hex
from flower_bfl.chain_adapter._rpc_node import Call, Node, Refusal, pause_s
from flower_bfl.errors import LedgerError, RejectedError

_COUNT = "eth_getTransactionCount"
_TRANSFER_GAS = 21_000
_PATIENT_TRIES = 2  # before a nonce that is used up, without a receipt of ours, counts as lost
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.005, 1.0
_AHEAD = 10  # accounts get money for so many phases like the present one
_ETHER = 10**18
_WAVE = 100  # transactions
_KNOWN = ("already known", "alreadyknown", "already imported", "known transaction")
_HINTS = {
    "insufficient funds": "send it money",
    "nonce": "let no other program sign with its key",
    "underpriced": "let no other program sign with its key",
}


@dataclass(eq=False)
class Outgoing:
    """A transaction to be mined."""

    account: Account
    to: bytes  # address, 20 bytes; empty: makes a contract
    data: bytes
    gas: int  # limit
    what: str  # for messages
    value_wei: int = 0
    signed: list[SignedTransaction] = field(default_factory=list)  # one nonce, rising fees
    receipt: dict[str, Any] | None = None

    @property
    def mined(self) -> bool:
        """Whether it is part of the chain and did what it should."""
        return self.receipt is not None and int(self.receipt["status"], 16) == 1

    @property
    def failed(self) -> bool:
        """Whether it is part of the chain and did nothing."""
        return self.receipt is not None and not self.mined

    @property
    def gas_used(self) -> int:
        """Gas that it took."""
        return 0 if self.receipt is None else int(self.receipt["gasUsed"], 16)

    def __str__(self) -> str:
        return f"{self.what} from {to_hex(self.account.address)}"


@dataclass(frozen=True)
class Prices:
    """What the chain asks for in its next block."""

    chain_id: int
    base_wei: int  # per unit of gas
    tip_wei: int
    block_gas: int

    def fees_wei(self, place: int = 0) -> tuple[int, int]:
        """Tip and cap per unit of gas of the transaction that `place` others follow.

        Blocks are ordered by tips, so each pays a wei more than the next. The cap holds for some blocks: the
        base fee rises by an eighth a block at most. Where gas is free, so are these.
        """
        tip = self.tip_wei and self.tip_wei + place
        return tip, 2 * self.base_wei + tip

    @property
    def highest_wei(self) -> int:
        """The highest cap."""
        return self.fees_wei(_WAVE)[1]


class Outbox:
    """Sends transactions to a node.

    Parameters
    ----------
    node
        where to.
    timeout_s, retries
        how long to wait for transactions to be mined before they are sent again, and how often.
    """

    def __init__(self, node: Node, timeout_s: float, retries: int) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._retries = retries
        self._accounts: list[str] | None = None

    def prices(self) -> Prices:
        """Prices after the latest block; raises LedgerError for a chain from before EIP-1559."""
        latest: Call = ("eth_getBlockByNumber", ["latest", False])
        chain_id, block, tip = self._node.batch(
            [("eth_chainId", []), latest, ("eth_maxPriorityFeePerGas", [])]
        )
        if isinstance(block, Refusal) or "baseFeePerGas" not in block:
            raise LedgerError(f"the chain at {self._node.name} must have base fees (EIP-1559), found none")
        base = int(block["baseFeePerGas"], 16)
        return Prices(int(chain_id, 16), base, _tip(tip), int(block["gasLimit"], 16))

    def fund(self, waiting: Sequence[Outgoing], operator: Account, funder: Account | None) -> list[Outgoing]:
        """Transfers that give each account what it needs; the operator gets it here, from the funder.

        Without a funder, an account that the node itself signs for (on development nodes) pays the operator.
        Raises LedgerError, which says what the operator needs, if nobody pays.
        """
        price = self.prices().highest_wei
        needs: Counter[bytes] = Counter()
        for outgoing in waiting:
            needs[outgoing.account.address] += outgoing.gas * price + outgoing.value_wei
        balances = self._balances([operator.address, *needs])
        short = [each for each in needs if each != operator.address and balances[each] < needs[each]]
        for ahead in (_AHEAD, 1):
            transfers = [
                Outgoing(operator, each, b"", _TRANSFER_GAS, f"money for {to_hex(each)}", ahead * needs[each])
                for each in short
            ]
            need = needs[operator.address] + sum(each.value_wei + each.gas * price for each in transfers)
            missing = need - balances[operator.address]
            if missing <= 0 or self._pay(operator.address, need, ahead * missing, funder):
                return transfers
        raise LedgerError(
            f"the operator's account {to_hex(operator.address)} at {self._node.name} needs {need / _ETHER:g} "
            f"ether and has {balances[operator.address] / _ETHER:g}: send it more, or pass a richer `funder`"
        )

    def settle(self, wave: Sequence[Outgoing]) -> None:
        """Sign and send transactions, and return when all are mined; those that are already stay as they are.

        Raises RejectedError if the contract refuses one, and LedgerError if some are not mined in time: the
        same call again goes on where this one stopped.
        """
        complaints: dict[Outgoing, str] = {}
        for tries in range(self._retries + 1):
            nonces = self._nonces(
                each.account.address for each in wave
            )  # before looking: what is used up by now has its receipt then
            self.look(wave)
            if left := [each for each in wave if not each.mined]:
                self._sign(left, nonces, patient=tries < _PATIENT_TRIES)
                complaints = self._send(left)
                self._wait(left, complaints, tries)
            if all(each.mined for each in wave):
                return
        left = [each for each in wave if not each.mined]
        raise LedgerError(self._describe(left, complaints))

    def wait_for_others(self, addresses: Sequence[bytes]) -> None:
        """Wait until no transaction of these accounts is on its way, such as one sent before a crash."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            nonces = self._nonces(addresses)
            waiting = {
                to_hex(each): pending - mined for each, (mined, pending) in nonces.items() if pending > mined
            }
            if not waiting:
                return
            if time.monotonic() > deadline_s:
                raise LedgerError(
                    f"the node at {self._node.name} has transactions that wait to be mined, by account "
                    f"{waiting}: open the ledger again when they are"
                )
            time.sleep(_FIRST_LOOK_S)

    def look(self, wave: Sequence[Outgoing]) -> None:
        """Note the receipts that are there."""
        sent = [(each, signed) for each in wave if not each.mined for signed in each.signed]
        answers = self._node.ask_all(
            [("eth_getTransactionReceipt", [to_hex(signed.hash)]) for _, signed in sent]
        )
        for (outgoing, _), receipt in zip(sent, answers, strict=True):
            if receipt is not None and receipt.get("blockHash") is not None:
                outgoing.receipt = receipt

    def _nonces(self, accounts: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """Next nonce of each account, by the latest block and with what waits for the next ones."""
        addresses = sorted(set(accounts))
        calls = [(_COUNT, [to_hex(each), tag]) for each in addresses for tag in ("latest", "pending")]
        counts = [int(count, 16) for count in self._node.ask_all(calls)]
        return dict(zip(addresses, zip(counts[::2], counts[1::2], strict=True), strict=True))

    def _sign(self, left: Sequence[Outgoing], nonces: dict[bytes, tuple[int, int]], patient: bool) -> None:
        prices = self.prices()
        free = {address: max(pair) for address, pair in nonces.items()}
        examined: set[bytes] = set()
        for outgoing in left:
            address = outgoing.account.address
            if outgoing.failed:
                if address not in examined:  # the next ones may need this one
                    self._examine(outgoing)
                    examined.add(address)
                outgoing.gas = min(2 * outgoing.gas, prices.block_gas)
                outgoing.signed, outgoing.receipt = [], None
            elif outgoing.signed and outgoing.signed[0].nonce < nonces[address][0] and not patient:
                outgoing.signed = []  # another transaction has taken its nonce
            elif outgoing.signed:
                free[address] = max(free[address], outgoing.signed[0].nonce + 1)
        for place, outgoing in enumerate(left):
            fees = prices.fees_wei(len(left) - 1 - place)
            if not outgoing.signed:
                nonce = free[outgoing.account.address]
                free[outgoing.account.address] += 1
            elif outgoing.signed[-1].max_fee_per_gas < prices.base_wei:
                last = outgoing.signed[-1]
                nonce = last.nonce
                tip, cap = last.max_priority_fee_per_gas, last.max_fee_per_gas
                fees = max(fees[0], _raised(tip)), max(fees[1], _raised(cap))
            else:
                continue
            call = (nonce, outgoing.gas, outgoing.to, outgoing.data, outgoing.value_wei)
            outgoing.signed.append(outgoing.account.sign(*call, chain_id=prices.chain_id, fees_wei=fees))

    def _send(self, left: Sequence[Outgoing]) -> dict[Outgoing, str]:
        """Send all; what the node says against those that it does not take."""
        calls = [("eth_sendRawTransaction", [to_hex(each.signed[-1].encode())]) for each in left]
        answers = self._node.batch(calls, in_order=bool(self._unlocked()))
        return {
            outgoing: answer.message
            for outgoing, answer in zip(left, answers, strict=True)
            if isinstance(answer, Refusal) and not any(word in answer.message.lower() for word in _KNOWN)
        }

    def _wait(self, left: Sequence[Outgoing], complaints: dict[Outgoing, str], tries: int) -> None:
        """Wait until all are mined, or one failed, or time is up: soon, if the node took none of the rest."""
        started_s = time.monotonic()
        look_s = _FIRST_LOOK_S
        while True:
            self.look(left)
            rest = [each for each in left if not each.mined]
            if not rest or any(each.failed for each in rest):
                return
            wait_s = pause_s(tries) if all(each in complaints for each in rest) else self._timeout_s
            if time.monotonic() - started_s > wait_s:
                return
            time.sleep(min(look_s, wait_s))
            look_s = min(1.5 * look_s, _LONGEST_LOOK_S)

    def _examine(self, outgoing: Outgoing) -> None:
        """Raise RejectedError if a failed transaction would fail again, with gas enough."""
        fields = {
            "from": to_hex(outgoing.account.address),
            "data": to_hex(outgoing.data),
            "value": hex(outgoing.value_wei),
        }
        if outgoing.to:
            fields["to"] = to_hex(outgoing.to)
        answer = self._node.batch([("eth_call", [fields, "latest"])])[0]
        if isinstance(answer, Refusal):
            output = to_bytes(answer.data or "0x")
            reason = _contract.read_error(output) if output else answer.message
            raise RejectedError(f"{outgoing} was refused, {reason}")

    def _balances(self, addresses: Iterable[bytes]) -> dict[bytes, int]:
        distinct = list(dict.fromkeys(addresses))
        answers = self._node.ask_all([("eth_getBalance", [to_hex(each), "latest"]) for each in distinct])
        return {address: int(answer, 16) for address, answer in zip(distinct, answers, strict=True)}

    def _pay(self, operator: bytes, need: int, amount: int, funder: Account | None) -> bool:
        """Have an amount paid to the operator; whether it has what it needs then."""
        if funder is not None:
            fee = _TRANSFER_GAS * self.prices().highest_wei
            if self._balances([funder.address])[funder.address] < amount + fee:
                return False
            self.settle([Outgoing(funder, operator, b"", _TRANSFER_GAS, "money for the operator", amount)])
            return True
        accounts = self._unlocked()
        if not accounts:
            return False
        fields = {"from": accounts[0], "to": to_hex(operator), "value": hex(amount)}
        trouble: LedgerError | None = None
        for tries in range(self._retries + 1):
            wait_s = self._timeout_s
            try:
                if isinstance(self._node.batch([("eth_sendTransaction", [fields])])[0], Refusal):
                    return False
            except LedgerError as error:  # it may have paid all the same
                trouble, wait_s = error, pause_s(tries)
            deadline_s = time.monotonic() + wait_s
            while time.monotonic() < deadline_s:
                if self._balances([operator])[operator] >= need:
                    return True
                time.sleep(_FIRST_LOOK_S)
        if trouble is not None:
            raise trouble
        return False

    def _unlocked(self) -> list[str]:
        """Accounts that the node signs for: development nodes have them, and mine at once what they get."""
        if self._accounts is None:
            accounts = self._node.batch([("eth_accounts", [])])[0]
            self._accounts = [] if isinstance(accounts, Refusal) else list(accounts)
        return self._accounts

    def _describe(self, left: Sequence[Outgoing], complaints: dict[Outgoing, str]) -> str:
        first = next(iter(complaints), left[0])
        said = complaints.get(first, "")
        reason = f"the node says {said!r}" if said else "the node took it, but no block has it yet"
        if first.failed:
            reason = f"it ran out of {first.gas} gas"
        hint = next((hint for words, hint in _HINTS.items() if words in said.lower()), "see to it")
        return (
            f"{len(left)} transactions are not mined by the node at {self._node.name}, such as {first}: "
            f"{reason}; {hint}, then do the same again: the rest follows, and nothing is recorded twice"
        )


def in_blocks(waves: Iterable[Sequence[Outgoing]], block_gas: int) -> list[list[Outgoing]]:
    """Waves that one block can hold, each to be mined before the next is sent."""
    blocks: list[list[Outgoing]] = []
    for wave in waves:
        gas = block_gas
        for outgoing in wave:
            gas += outgoing.gas
            if gas > block_gas or len(blocks[-1]) == _WAVE:
                blocks.append([])
                gas = outgoing.gas
            blocks[-1].append(outgoing)
    return blocks


def known(transactions: Iterable[Outgoing]) -> dict[bytes, tuple[bytes, int]]:
    """Encoded transactions that are mined and the gas they took, by hash."""
    return {
        signed.hash: (signed.encode(), each.gas_used)
        for each in transactions
        if each.mined
        for signed in each.signed
    }


def _tip(answer: Any) -> int:
    return 10**9 if isinstance(answer, Refusal) else int(answer, 16)  # a gwei, where nodes do not say


def _raised(price_wei: int) -> int:
    return price_wei + price_wei // 8 + 1  # nodes want a tenth more for a replacement
