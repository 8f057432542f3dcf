"""Calls straight to the contract, such as the ledger never makes, with calldata by the general ABI codec."""

from eth_abi import decode as abi_decode
from eth_abi import encode as abi_encode
from eth_hash.auto import keccak
from makers import EPOCH_S, KEYS, OPERATOR, device, server

from flower_bfl.chain_adapter import EvmLedger, Sender, _contract
from flower_bfl.chain_adapter import digest as digest_of
from flower_bfl.chain_adapter._accounts import Account
from flower_bfl.chain_adapter._chain import EvmChain, RevertedError

STRANGER = device(77)  # has a key and money, but no role
A, B = digest_of(b"a"), digest_of(b"b")
ADDRESSES = {
    sender: Account.of(KEYS, sender).address
    for sender in (OPERATOR, device(0), device(1), server(0), server(1), server(2), STRANGER)
}


def types_of(signature: str) -> list[str]:
    return [name for name in signature[signature.index("(") + 1 : -1].split(",") if name]


def calldata(signature: str, *values: object) -> bytes:
    return keccak(signature.encode())[:4] + abi_encode(types_of(signature), values)


def submit(
    kind: int, server_round: int = 1, step: int = 0, digest: bytes = A, payload: bytes = b"a"
) -> bytes:
    signature = "submit(uint8,uint32,uint16,bytes32,bytes)"
    return calldata(signature, kind, server_round, step, digest, payload)


def relay(kind: int, server_round: int, step: int, digest: bytes, payload: bytes, signed: bytes) -> bytes:
    signature = "relay(uint8,uint32,uint16,bytes32,bytes,bytes)"
    return calldata(signature, kind, server_round, step, digest, payload, signed)


def propose(
    parent: bytes, server_round: int = 1, passed: int = 0, timestamp: int = EPOCH_S + 1,
    digest: bytes = A, payload: bytes = b"a",
) -> bytes:  # fmt: skip
    signature = "propose(uint32,uint16,bytes32,uint64,bytes32,bytes)"
    return calldata(signature, server_round, passed, parent, timestamp, digest, payload)


def seal(nonce: int, server_round: int = 1, of_server: int = 0) -> bytes:
    return calldata("seal(uint32,uint16,uint64)", server_round, of_server, nonce)


def piece(index: int, data: bytes = b"x") -> bytes:
    return calldata("piece(bytes32,uint32,bytes)", A, index, data)


def register(accounts: list[bytes], role: int, indices: list[int]) -> bytes:
    return calldata("register(address[],uint8,uint32[])", accounts, role, indices)


class Bench:
    """A block at the end of a ledger's chain that is never sealed."""

    def __init__(self, ledger: EvmLedger) -> None:
        self.contract = ledger.contract_address
        self.block = EvmChain(ledger._database).begin(None)
        self.send(OPERATOR, b"", to=ADDRESSES[STRANGER], value=10**24)

    def send(self, sender: Sender, data: bytes, to: bytes | None = None, value: int = 0) -> None:
        """`to`, without which it goes to the contract, may be empty: `data` makes a contract then."""
        account = Account.of(KEYS, sender)
        nonce, gas = self.block.nonce(account.address), 10**7
        self.block.apply(account.sign(nonce, gas, self.contract if to is None else to, data, value))

    def refusal(self, sender: Sender, data: bytes, to: bytes | None = None, value: int = 0) -> str:
        """The error of a call; empty if it is taken."""
        try:
            self.send(sender, data, to, value)
        except RevertedError as error:
            return _contract.read_error(error.output)
        return ""

    def ask(self, signature: str, answer: str, *values: object) -> tuple[object, ...]:
        return abi_decode(answer.split(","), self.block.view(self.contract, calldata(signature, *values)))
