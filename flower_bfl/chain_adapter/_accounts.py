"""Accounts that sign, and signed transactions."""

from dataclasses import dataclass

import coincurve
from eth.vm.forks.london.transactions import DynamicFeeTransaction
from eth.vm.forks.prague.transactions import PragueTypedTransaction
from eth_hash.auto import keccak
from eth_typing import Address, Hash32

from flower_bfl.chain_adapter._rlp import Item, decode, encode, number
from flower_bfl.chain_adapter.base import Keys, Sender
from flower_bfl.errors import ConfigError

CHAIN_ID = 0xBF1
MAX_FEE_WEI = 10**9
"""Price per unit of gas that a transaction may pay; the base fee stays far below."""

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
        return cls(_address(key.public_key), key)

    def sign(self, nonce: int, gas: int, to: bytes, data: bytes, value: int = 0) -> SignedTransaction:
        """A signed transaction; `gas` is its limit, `value` is in wei."""
        numbers = (CHAIN_ID, nonce, 0, MAX_FEE_WEI, gas)
        fields: list[Item] = [*map(number, numbers), to, number(value), data, []]
        signature = self.key.sign_recoverable(keccak(_TYPE + encode(fields)), hasher=None)
        r, s, parity = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]), signature[64]
        encoded = _TYPE + encode([*fields, *map(number, (parity, r, s))])
        inner = DynamicFeeTransaction(*numbers, Address(to), value, data, (), parity, r, s)
        return SignedTransaction(inner, encoded, self.address)


def contract_of(creator: bytes, nonce: int = 0) -> bytes:
    """Address (20 bytes) of the contract that an account creates with its transaction of this nonce."""
    return keccak(encode([creator, number(nonce)]))[12:]


@dataclass(frozen=True)
class ReadTransaction:
    """What an encoded transaction says; the sender (20 bytes) follows from its signature."""

    sender: bytes
    to: bytes
    data: bytes


def read_transaction(encoded: bytes) -> ReadTransaction:
    """Decode a transaction and recover its sender; raises ValueError if it is none that `sign` makes."""
    if encoded[:1] != _TYPE:
        raise ValueError(f"transaction of type {encoded[:1].hex()}, not {_TYPE.hex()}")
    fields = decode(encoded[1:])
    if not isinstance(fields, list) or len(fields) != 12:
        raise ValueError("a transaction of this type has 12 fields")
    texts = [
        field if isinstance(field, bytes) else b"" for field in fields
    ]  # but for the access list, field 8
    parity, r, s = texts[9:]
    message = keccak(_TYPE + encode(fields[:9]))
    signature = r.rjust(32, b"\0") + s.rjust(32, b"\0") + (parity or b"\0")
    key = coincurve.PublicKey.from_signature_and_message(signature, message, hasher=None)
    return ReadTransaction(_address(key), texts[5], texts[7])


def _address(key: coincurve.PublicKey) -> Address:
    return Address(keccak(key.format(compressed=False)[1:])[12:])
