"""Entries signed by whoever made them, and relayed to the chain by somebody else.

A client signs its update with a key that never leaves it; the server that relays it can neither change it nor
make up another one. What is signed is EIP-712 typed data, as wallets show and sign it:

    domain   name "FlowerBFL", version "1", chainId, verifyingContract
    Entry    uint8 kind, uint32 round, uint16 step, bytes32 digest
"""

from functools import lru_cache

import coincurve
from eth_hash.auto import keccak

from flower_bfl.chain_adapter._accounts import address_of, recover
from flower_bfl.chain_adapter.base import Kind

_DOMAIN = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_ENTRY = keccak(b"Entry(uint8 kind,uint32 round,uint16 step,bytes32 digest)")
_V = 27  # Ethereum adds it to the parity of a signature


def sign(
    private_key: bytes, domain: tuple[int, bytes], kind: Kind, server_round: int, step: int, digest: bytes
) -> bytes:
    """Signature of an entry, 65 bytes: r, s, v. `domain` is the ledger's, `digest` the payload's SHA-256."""
    message = _message(domain, kind, server_round, step, digest)
    signature = coincurve.PrivateKey(private_key).sign_recoverable(message, hasher=None)
    return signature[:64] + bytes([signature[64] + _V])


def address(private_key: bytes) -> bytes:
    """Address of a private key, 20 bytes."""
    return address_of(coincurve.PublicKey.from_secret(private_key))


def signer(
    signature: bytes, domain: tuple[int, bytes], kind: Kind, server_round: int, step: int, digest: bytes
) -> bytes:
    """Address (20 bytes) of who signed an entry; raises ValueError for what is no signature."""
    if len(signature) != 65 or signature[64] not in (_V, _V + 1):
        raise ValueError(f"a signature has 65 bytes and ends with 27 or 28, got 0x{signature.hex()}")
    message = _message(domain, kind, server_round, step, digest)
    recoverable = signature[:64] + bytes([signature[64] - _V])
    return recover(message, recoverable)


def _message(domain: tuple[int, bytes], kind: Kind, server_round: int, step: int, digest: bytes) -> bytes:
    words = b"".join(value.to_bytes(32) for value in (kind, server_round, step))
    return keccak(b"\x19\x01" + _separator(*domain) + keccak(_ENTRY + words + digest))


@lru_cache(16)
def _separator(chain_id: int, contract: bytes) -> bytes:
    name, version = keccak(b"FlowerBFL"), keccak(b"1")
    return keccak(_DOMAIN + name + version + chain_id.to_bytes(32) + contract.rjust(32, b"\0"))
