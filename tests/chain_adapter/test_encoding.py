"""The canonical encoding, with the safetensors library as the oracle."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_bfl.chain_adapter import decode, digest, encode
from flower_bfl.errors import PayloadError

DTYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64",
]  # fmt: skip
TEXT = st.text(max_size=12)
ARRAYS = st.dictionaries(
    TEXT.filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    max_size=4,
)
METADATA = st.dictionaries(TEXT, TEXT, max_size=3)
EXAMPLE = encode(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([1, 2], np.int64)}, {"round": "1"}
)


def bits(array: np.ndarray) -> tuple[object, ...]:
    return array.dtype.name, array.shape, array.tobytes()


@given(ARRAYS, METADATA)
def test_decoding_gives_back_every_bit(arrays, metadata):
    decoded, read = decode(encode(arrays, metadata))
    assert [(name, bits(array)) for name, array in decoded.items()] == [
        (n, bits(a)) for n, a in arrays.items()
    ]
    assert read == metadata


@given(ARRAYS, METADATA)
def test_safetensors_reads_it(arrays, metadata):
    read = safetensors.numpy.load(encode(arrays, metadata))
    assert {name: bits(array) for name, array in read.items()} == {
        name: bits(array) for name, array in arrays.items()
    }


@given(ARRAYS, METADATA)
def test_memory_layout_and_order_of_metadata_do_not_show(arrays, metadata):
    odd = {
        name: np.asfortranarray(array.astype(array.dtype.newbyteorder(">"))) for name, array in arrays.items()
    }
    odd = {name: array.reshape(arrays[name].shape) for name, array in odd.items()}
    assert encode(odd, dict(reversed(metadata.items()))) == encode(arrays, metadata)


def test_the_bytes_are_those_of_the_documentation():
    """Header by hand: 8 bytes of length, JSON without spaces, padded to a multiple of 8; then the data."""
    text = '{"__metadata__":{"k":"1"},"b":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}}'
    text += " " * (-len(text) % 8)
    expected = len(text).to_bytes(8, "little") + text.encode() + bytes([1, 0, 0xFE, 0xFF])
    assert encode({"b": np.array([1, -2], np.int16)}, {"k": "1"}) == expected


def test_order_of_arrays_matters():
    a, b = np.zeros(1), np.ones(1)
    assert digest(encode({"a": a, "b": b})) != digest(encode({"b": b, "a": a}))


@pytest.mark.parametrize(
    "array", [np.zeros(1, complex), np.array(["x"]), np.array([object()]), np.zeros(1, "M8[s]")]
)
def test_a_dtype_without_a_code_is_refused(array):
    with pytest.raises(PayloadError, match="array 'w' must have one of the dtypes"):
        encode({"w": array})


def test_the_formats_own_name_is_refused():
    with pytest.raises(PayloadError, match="__metadata__"):
        encode({"__metadata__": np.zeros(1)})


@pytest.mark.parametrize("position", range(len(EXAMPLE)))
def test_any_flipped_bit_shows(position):
    """The digest changes; and what decodes all the same is another content, with its one encoding."""
    for bit in range(8):
        damaged = bytearray(EXAMPLE)
        damaged[position] ^= 1 << bit
        assert digest(bytes(damaged)) != digest(EXAMPLE)
        try:
            decoded = decode(bytes(damaged))
        except PayloadError:
            continue
        assert encode(*decoded) == bytes(damaged)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: EXAMPLE[: len(EXAMPLE) - 9] + tail))
@settings(max_examples=300)
def test_other_bytes_are_a_payload_error_or_canonical(data):
    try:
        decoded = decode(data)
    except PayloadError:
        return
    assert encode(*decoded) == data


def _with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        EXAMPLE + b"\0",
        EXAMPLE[:-1],
        _with_header([]),
        _with_header({"__metadata__": {}}),
        _with_header({"__metadata__": {"a": 1}}),
        _with_header({"__metadata__": "text"}),
        _with_header({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
        _with_header({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"\2"),
        _with_header({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\2"),
        _with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "x": 1}}, b"\2"),
        _with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"\2\2"),
        _with_header({"a": {"dtype": "U8", "data_offsets": [0, 1], "shape": [1]}}, b"\2"),
        _with_header({"a": {"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
        (8).to_bytes(8, "little") + b"[" * 8,
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
    ],
)
def test_what_is_not_canonical_is_refused(data):
    with pytest.raises(PayloadError):
        decode(data)


def test_json_in_another_encoding_hides_no_brackets():
    """The parser takes UTF-16, in which a bracket may be half of another letter."""
    text = ('{"Ģ":' + "[" * 100_000 + "Ģ").encode("utf-16-le")
    with pytest.raises(PayloadError):
        decode(len(text).to_bytes(8, "little") + text)


def test_a_header_of_quotes_is_read_in_linear_time():
    """Quadratic, it would take hours; linear, it is over before the suite's time limit notices."""
    text = b'"' + b'\\"' * 2_000_000
    with pytest.raises(PayloadError):
        decode(len(text).to_bytes(8, "little") + text)
