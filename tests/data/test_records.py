import math

import ml_dtypes
import msgpack
import numpy as np
import pytest

from repae_jax.data.records import pack, unpack
from repae_jax.errors import UserError

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
DTYPES = [np.dtype(name) for name in DTYPES] + [np.dtype(ml_dtypes.bfloat16)]


def random_value(rng):
    kind = rng.integers(5)
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 400)))
    if kind == 1:
        return int(rng.integers(-(2**63), 2**63 - 1)) >> int(rng.integers(64))
    if kind == 2:
        return float(rng.choice([0.0, -0.0, 1 / 3, 1e300, 5e-324, math.inf, -math.inf]))
    if kind == 3:
        return "".join(map(chr, rng.integers(0, 0xD800, int(rng.integers(0, 40)))))
    shape = tuple(rng.integers(0, 4, int(rng.integers(0, 4))))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    return np.asarray(rng.integers(0, 3, shape)).astype(dtype)


def assert_same(value, expected):
    assert type(value) is type(expected)
    if isinstance(expected, np.ndarray):
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        assert value.tobytes() == expected.tobytes()
    else:
        assert value == expected


@pytest.mark.parametrize("seed", range(50))
def test_what_is_packed_comes_back(seed):
    rng = np.random.default_rng(seed)
    record = {f"key {i}\u00e9": random_value(rng) for i in range(rng.integers(0, 12))}
    back = unpack(pack(record))
    assert list(back) == list(record)
    for key, value in record.items():
        assert_same(back[key], value)
    assert pack(back) == pack(record)


def test_the_bytes_are_plain_msgpack():
    array = np.arange(6, dtype=">i2").reshape(2, 3).T  # neither little-endian nor row-major
    content = msgpack.unpackb(pack({"image": b"\x89PNG", "label": 7, "array": array}))
    little = array.astype("<i2").tobytes(order="C")
    described = {"dtype": "int16", "shape": [3, 2], "data": little}
    assert content == {"image": b"\x89PNG", "label": 7, "array": described}
    np.testing.assert_array_equal(unpack(pack({"array": array}))["array"], array)


def test_special_floats_and_file_names_survive():
    back = unpack(pack({"nan": math.nan, "zero": -0.0, "name": "caf\udce9.png"}))
    assert math.isnan(back["nan"])
    assert math.copysign(1, back["zero"]) == -1
    assert back["name"] == "caf\udce9.png"  # a name in Latin-1, as os.listdir gives it


@pytest.mark.parametrize(
    ("record", "culprit"),
    [
        ({"a": None}, "'a'.*NoneType"),
        ({"a": [1]}, "'a'.*list"),
        ({"a": {"b": 1}}, "'a'.*dict"),
        ({"a": True}, "'a'.*bool"),
        ({"a": np.float32(1)}, "'a'.*float32"),
        ({"a": np.array(["x"], object)}, "'a'.*object"),
        ({"a": np.array(["x"])}, "'a'.*U1"),
        ({1: 2}, "1 is no str"),
    ],
)
def test_what_cannot_be_packed_is_named(record, culprit):
    with pytest.raises(TypeError, match=culprit):
        pack(record)


RECORD = {"image": b"\x89PNG\r\n" * 5, "label": 300, "array": np.ones((2, 3), np.float32), "n": "x"}


def test_cut_or_continued_bytes_are_no_record():
    data = pack(RECORD)
    for damaged in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        with pytest.raises(UserError, match="here: damaged"):
            unpack(damaged, "here")


def test_flipped_bits_are_a_record_or_an_error():
    data = pack(RECORD)
    errors = 0
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                back = unpack(bytes(damaged))
            except UserError:
                errors += 1
            else:
                assert all(type(key) is str for key in back)
                kinds = {type(value) for value in back.values()}
                assert kinds <= {bytes, int, float, str, np.ndarray}
    assert errors > len(data)


def array(**changes):
    fields = {"dtype": "float32", "shape": [2], "data": bytes(8)}
    return msgpack.packb({"a": fields | changes})


@pytest.mark.parametrize(
    "damaged",
    [
        msgpack.packb([1, 2]),
        msgpack.packb(None),
        msgpack.packb({b"a": 1}),
        msgpack.packb({"a": None}),
        msgpack.packb({"a": [1]}),
        msgpack.packb({"a": {"dtype": "float32"}}),
        msgpack.packb({"a": msgpack.Timestamp(1)}),
        array(dtype="object"),
        array(dtype="V8", shape=[1]),
        array(dtype="f4,f4", shape=[1]),
        array(shape=[3]),
        array(shape=[1]),
        array(shape=[-1, -2]),
        array(shape=[2.0]),
        array(shape=2),
        array(data="x" * 8),
        array(extra=1),
    ],
)
def test_other_content_is_no_record(damaged):
    with pytest.raises(UserError, match="damaged"):
        unpack(damaged)
