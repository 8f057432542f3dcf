"""Canonical encoding of named arrays: a safetensors file with exactly one possible form.

The bytes are: the length of the header (8 bytes, little-endian), the header, the arrays' data one after the
other in order, little-endian, C order, without gaps. The header is JSON in UTF-8 without white space, keys in
this order: ``__metadata__`` (string to string, sorted by key; absent if empty), then each array in order as
``{"dtype":..,"shape":..,"data_offsets":[begin,end]}``; it is padded with spaces to a multiple of 8 bytes.
Any safetensors reader opens it, and its digest is plain SHA-256, so ``sha256sum`` checks it.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from flower_bfl.errors import PayloadError

Arrays = Mapping[str, NDArray[np.generic]]

_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_NAMES = {code: name for name, code in _DTYPES.items()}
_METADATA = "__metadata__"


def encode(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Encode named arrays and string metadata canonically.

    Raises PayloadError for a dtype that has no code, for an array named ``__metadata__``, and for text that
    is not Unicode.
    """
    header: dict[str, object] = {}
    if metadata:
        header[_METADATA] = dict(sorted(metadata.items()))
    chunks: list[bytes | memoryview] = []
    offset = 0
    for name, array in arrays.items():
        dtype = array.dtype.name
        if dtype not in _DTYPES:
            raise PayloadError(
                f"array {name!r} must have one of the dtypes {sorted(_DTYPES)}, got {array.dtype}"
            )
        if name == _METADATA:
            raise PayloadError(f"an array must not be named {name!r}, the format's own name")
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        end = offset + data.nbytes
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        chunks.append(data.reshape(-1).view(np.uint8).data)
        offset = end
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"names and metadata must be Unicode: {error}") from error
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def decode(payload: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """Arrays (in their order) and metadata of a payload.

    Raises PayloadError if the bytes are not exactly what `encode` gives for what they hold, so that one
    content has one digest.
    """
    try:
        size = int.from_bytes(payload[:8], "little")
        header = json.loads(shallow(payload[8 : 8 + size], 3))
        metadata = header.pop(_METADATA, {})
        body = memoryview(payload)[8 + size :]
        _check_order(header)
        arrays = {name: _array(body, **field) for name, field in header.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"metadata must be text, got {metadata}")
        canonical = encode(arrays, metadata) == payload
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PayloadError(f"payload is not a canonical encoding: {error}") from error
    if not canonical:
        raise PayloadError("payload is not in canonical form: encoding what it holds gives other bytes")
    return arrays, metadata


def shallow(encoded: bytes, most: int) -> str:
    """JSON text in UTF-8; ValueError if it nests deeper than `most`: a million brackets crash the parser."""
    text = encoded.decode()  # not left to the parser, which takes UTF-16, too, where brackets look different
    depth = 0
    for bracket in re.finditer(r"[][{}]", re.sub(r'"(?:[^"\\]|\\.)*+"?', "", text, flags=re.DOTALL)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > most:
            raise ValueError(f"nested more than {most} deep")
    return text


def _check_order(header: Mapping[str, Mapping[str, list[int]]]) -> None:
    """Raise ValueError unless arrays follow one another: sharing bytes, a payload could unfold for ever."""
    end = 0
    for name, field in header.items():
        start, stop = field["data_offsets"]
        if not start == end <= stop:
            raise ValueError(f"array {name!r} must begin at {end}, got {start} to {stop}")
        end = stop


def _array(body: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[np.generic]:
    data = body[slice(*data_offsets)]
    if dtype == "BOOL" and any(value > 1 for value in set(data)):
        raise ValueError("a BOOL must be 0 or 1")
    return np.frombuffer(data, np.dtype(_NAMES[dtype]).newbyteorder("<")).reshape(shape)


def digest(payload: bytes) -> bytes:
    """SHA-256 of a payload, 32 bytes."""
    return sha256(payload).digest()
