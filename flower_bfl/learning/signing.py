"""A ClientApp whose updates are signed with a key that never leaves the client."""

import re
import secrets
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Kind, digest
from flower_bfl.chain_adapter.records import DataSet, Gradient, model_digest
from flower_bfl.errors import ReplyError
from flower_bfl.types import ADDRESS_KEY, OFFLOAD, OWN_RECORD, SIGNATURE_KEY

ClientCall = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientCall], Message]

_STATE = "flower-bfl-key"
_CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141  # of secp256k1


def sign_updates(
    private_key: bytes | Callable[[Context], bytes] | None = None, *, weighted_by_key: str = "num-examples"
) -> Mod:
    """A Flower mod that signs what the ClientApp trained: ``ClientApp(mods=[sign_updates()])``.

    The server can relay the signed gradient to the ledger, but neither change it nor make up another one.
    What is signed is docs/ledger.md's EIP-712 entry over the SHA-256 of the update's canonical encoding. A
    device that offloads its data signs the digest of what it sent, and for which edge server, in its place.
    Messages of a server without a ledger pass as they are.

    Parameters
    ----------
    private_key
        32 bytes, or a function of the client's context that gives them; by default the client makes a key of
        its own and keeps it in its context's state, which lasts as long as the run.
    weighted_by_key
        the metric that holds D_y, as in the server's strategy.

    Raises ReplyError, which the server sees as a failed client, if the metric is missing, or if the server
    asks for what cannot be signed.
    """

    def mod(message: Message, context: Context, call_next: ClientCall) -> Message:
        request = _request(message)
        if request is None:
            return call_next(message, context)
        sent = _arrays(message)  # before the app may change them
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        from flower_bfl.chain_adapter.signing import address, sign  # loads Ethereum

        server_round, domain = _whole(request, "server-round"), _domain(request)
        if message.metadata.message_type == OFFLOAD:
            arrays, step = _arrays(reply), _whole(request, "edge-server")
            kind, payload = Kind.DATA, DataSet.of(arrays).encode(server_round, step)
        else:
            metrics = next(iter(reply.content.metric_records.values()), MetricRecord())
            samples, steps = _number(metrics, weighted_by_key), int(_number(metrics, "num-steps", 1))
            learning_rate = float(_number(request, "ledger-learning-rate"))
            if not 0 < learning_rate < float("inf"):
                raise ReplyError(f"a learning rate must be positive and finite, got {learning_rate}")
            trained = _arrays(reply)
            if {name: one.shape for name, one in trained.items()} != {
                n: one.shape for n, one in sent.items()
            }:
                raise ReplyError("an update to be signed must have the arrays of the model that it came from")
            gradient = Gradient.between(sent, trained, float(samples), steps, learning_rate)
            kind, step = Kind.GRADIENT, 0
            payload = gradient.encode(server_round, model_digest(server_round - 1, sent))
        key = private_key(context) if callable(private_key) else private_key or own_key(context)
        signature = sign(key, domain, kind, server_round, step, digest(payload))
        reply.content[OWN_RECORD] = ConfigRecord({SIGNATURE_KEY: signature, ADDRESS_KEY: address(key)})
        return reply

    return mod


def own_key(context: Context) -> bytes:
    """The key, 32 bytes, that a client without a given one makes and keeps in its state."""
    if _STATE not in context.state:
        context.state[_STATE] = ConfigRecord({"private-key": _new_key()})
    return cast(bytes, cast(ConfigRecord, context.state[_STATE])["private-key"])


def _new_key() -> bytes:
    return (secrets.randbelow(_CURVE_ORDER - 1) + 1).to_bytes(32)


def _request(message: Message) -> Mapping[str, object] | None:
    """The config that asks for a signature, if the message does."""
    if message.metadata.message_type not in ("train", OFFLOAD):
        return None
    return next((each for each in message.content.config_records.values() if "ledger-contract" in each), None)


def _number(record: Mapping[str, object], name: str, default: int | None = None) -> int | float:
    value = record.get(name, default)
    if not isinstance(value, int | float):
        raise ReplyError(f"an update to be signed must have the number {name!r}, got {value!r}")
    return value


def _whole(record: Mapping[str, object], name: str) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value < 2**32:
        raise ReplyError(f"an update to be signed must have the whole number {name!r}, got {value!r:.80}")
    return value


def _domain(request: Mapping[str, object]) -> tuple[int, bytes]:
    """Chain id and contract address, as the server says."""
    chain_id, contract = request.get("ledger-chain-id"), str(request["ledger-contract"])
    if type(chain_id) is not int or chain_id < 0 or not re.fullmatch("[0-9a-f]{40}", contract):
        raise ReplyError(f"no ledger to sign for: chain {chain_id!r:.40}, contract {contract!r:.80}")
    return chain_id, bytes.fromhex(contract)


def _arrays(message: Message) -> dict[str, NDArray[np.generic]]:
    record: ArrayRecord = next(iter(message.content.array_records.values()), ArrayRecord())
    try:
        return {name: np.asarray(array.numpy()) for name, array in record.items()}
    except Exception as error:  # whatever numpy makes of a stranger's bytes
        raise ReplyError(f"arrays must be readable as numpy arrays: {error!r:.200}") from error
