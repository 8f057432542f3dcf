"""Accounts that sign, and signed transactions."""

import sys
from dataclasses import dataclass

import coincurve
from eth.vm.forks.london.transactions import DynamicFeeTransaction
from eth.vm.forks.prague.transactions import PragueTypedTransaction
from eth_hash.auto import keccak
from eth_typing import Address, Hash32

from flower_bfl.chain_adapter._rlp import Item, decode, encode, number
from flower_bfl.chain_adapter.base import Keys, Sender
from flower_bfl.errors import ConfigError

# py-evm raises it to 100,000 when it is imported, at which nested input overflows the stack of C.
sys.setrecursionlimit(2_000)

CHAIN_ID = 0xBF1
MAX_FEE_WEI = 10**9
"""Price per unit of gas that a transaction may pay; the base fee stays far below."""

_HALF_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141 // 2  # of secp256k1
_TYPE = b"\x02"  # a transaction of EIP-1559


class SignedTransaction(PragueTypedTransaction):
    """A transaction that this process has just signed: bytes and sender are known and need no check."""

    def __init__(self, fields: DynamicFeeTransaction, encoded: bytes, sender: Address) -> None:
        super().__init__(_TYPE[0], fields)
        self._encoded = encoded
        self._hash = Hash32(keccak(encoded))
        self.__dict__["sender"] = sender  # where py-evm caches what it recovers

    @property
    def hash(self) -> Hash32:
        """Keccak-256 of the encoded transaction."""
        return self._hash

    def encode(self) -> bytes:
        """The bytes that go into the block."""
        return self._encoded

    def validate(self) -> None:
        """Nothing to do for what `Account.sign` made."""


@dataclass(frozen=True)
class Account:
    """A key and its address."""

    address: Address
    key: coincurve.PrivateKey

    @classmethod
    def of(cls, keys: Keys, sender: Sender) -> "Account":
        """The sender's account; raises ConfigError if `keys` does not give a private key."""
        secret = keys(sender)
        try:
            if len(secret) != 32:
                raise ValueError(f"{len(secret)} bytes")
            key = coincurve.PrivateKey(secret)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"`keys` must give 32 bytes between 1 and the curve's order for {sender}, got {error}"
            ) from error
        return cls(address_of(key.public_key), key)

    def sign_hash(self, message: bytes) -> bytes:
        """Signature of a hash, 65 bytes: r, s and parity."""
        return self.key.sign_recoverable(message, hasher=None)

    def sign(
        self,
        nonce: int,
        gas: int,
        to: bytes,
        data: bytes,
        value: int = 0,
        *,
        chain_id: int = CHAIN_ID,
        fees_wei: tuple[int, int] = (0, MAX_FEE_WEI),
    ) -> SignedTransaction:
        """A signed EIP-1559 transaction; `gas` is its limit, `value` is in wei, `fees_wei` tip and cap."""
        numbers = (chain_id, nonce, *fees_wei, gas)
        fields: list[Item] = [*map(number, numbers), to, number(value), data, []]
        signature = self.sign_hash(keccak(_TYPE + encode(fields)))
        r, s, parity = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]), signature[64]
        encoded = _TYPE + encode([*fields, *map(number, (parity, r, s))])
        inner = DynamicFeeTransaction(*numbers, Address(to), value, data, (), parity, r, s)
        return SignedTransaction(inner, encoded, self.address)


def recover(message: bytes, signature: bytes) -> Address:
    """Address (20 bytes) of who signed a hash; raises ValueError for what is no signature (r, s, parity)."""
    if len(signature) != 65:
        raise ValueError(f"a signature has 65 bytes, got {len(signature)}")
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature, message, hasher=None)
    except Exception as error:  # coincurve raises bare exceptions
        raise ValueError(f"nobody can have made the signature 0x{signature.hex()}") from error
    return address_of(key)


def contract_of(creator: bytes, nonce: int = 0) -> bytes:
    """Address (20 bytes) of the contract that an account creates with its transaction of this nonce."""
    return keccak(encode([creator, number(nonce)]))[12:]


@dataclass(frozen=True)
class ReadTransaction:
    """What an encoded transaction says; the sender (20 bytes) follows from its signature."""

    sender: bytes
    to: bytes
    data: bytes
    chain_id: int
    nonce: int
    value_wei: int


def read_transaction(encoded: bytes) -> ReadTransaction:
    """Decode a transaction and recover its sender; raises ValueError if it is none that `sign` makes."""
    if encoded[:1] != _TYPE:
        raise ValueError(f"transaction of type {encoded[:1].hex()}, not {_TYPE.hex()}")
    fields = decode(encoded[1:])
    if not isinstance(fields, list) or len(fields) != 12:
        raise ValueError("a transaction of this type has 12 fields")
    texts = [field for field in fields if isinstance(field, bytes)]
    if fields[8] != [] or len(texts) != 11:
        raise ValueError("all fields but an empty access list must be bytes")
    parity, r, s = texts[8:]
    numbers = [*texts[:5], texts[6], r, s]
    if len(texts[5]) not in (0, 20) or any(each[:1] == b"\0" or len(each) > 32 for each in numbers):
        raise ValueError("an address must have 20 bytes, a number at most 32 and no leading zero")
    if parity not in (b"", b"\1") or int.from_bytes(s) > _HALF_ORDER:
        raise ValueError("a signature must have parity 0 or 1 and the lower of its two s")
    message = keccak(_TYPE + encode(fields[:9]))
    signature = r.rjust(32, b"\0") + s.rjust(32, b"\0") + (parity or b"\0")
    chain_id, nonce, value_wei = (int.from_bytes(texts[place]) for place in (0, 1, 6))
    return ReadTransaction(recover(message, signature), texts[5], texts[7], chain_id, nonce, value_wei)


def address_of(key: coincurve.PublicKey) -> Address:
    """Address (20 bytes) of a key."""
    return Address(keccak(key.format(compressed=False)[1:])[12:])
