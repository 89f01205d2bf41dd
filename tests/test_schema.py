"""JSON of others: what fits passes as it is, what does not is one line with key and value."""

import json
import os

import numpy as np
import pytest
import torch
from typing_extensions import TypedDict

from repae_jax.errors import UserError
from repae_jax.utils.schema import (
    Key,
    Text,
    Width,
    as_whole,
    check_schema,
    each,
    parse_json,
    read_json,
    real,
    short_repr,
    whole,
)


class Inner(TypedDict):
    widths: each(Width, 1, 3)


class Outer(TypedDict, total=False):
    name: Text
    depth: whole(1, 16) | None
    share: real(0, 1)
    rate: real(0, finite=False)
    any: real(finite=False)
    named: dict[Key, int]
    flag: bool
    inner: Inner


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"name": "x", "other": [[[{}]]], "depth": None, "share": 1, "flag": False},
        {"rate": float("inf"), "inner": {"widths": [1, 65_536], "more": None}},
    ],
)
def test_what_fits_passes_as_it_is(content):
    assert check_schema(content, Outer, source="x: ") is content


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"depth": 0}, "x.json: depth is 0: give at least 1"),
        ({"depth": 10**9}, "x.json: depth is 1000000000: give at most 16"),
        ({"depth": True}, "x.json: depth is True: it must be a valid integer"),
        ({"depth": 1.0}, "x.json: depth is 1.0: it must be a valid integer"),
        ({"depth": 10**5000}, "x.json: depth is a number of many digits: give at most 16"),
        ({"share": float("nan")}, "x.json: share is nan: it must be a finite number"),
        ({"share": float("inf")}, "x.json: share is inf: it must be a finite number"),
        ({"rate": float("nan")}, "x.json: rate is nan: give at least 0"),
        ({"any": float("nan")}, "x.json: any is nan: give at least -inf"),
        ({"named": {"a.b": 1}}, "x.json: named has the key 'a.b': give a name without dots"),
        ({"share": "1"}, "x.json: share is '1': it must be a valid number"),
        ({"flag": 1}, "x.json: flag is 1: it must be a valid boolean"),
        ({"name": None}, "x.json: name is None: it must be a valid string"),
        ({"inner": {}}, "x.json: inner.widths is missing"),
        ({"inner": {"widths": []}}, "x.json: inner.widths is []: list must have at least 1 item"),
        (
            {"inner": {"widths": [4, [[[[[1]]]]]]}},
            "x.json: inner.widths[1] is [[[[...]]]]: it must",
        ),
        ({"depth": -1, "flag": None}, "x.json: depth is -1: give at least 1 (and 1 more)"),
        ([], "x.json is []: it must be a valid dictionary"),
    ],
)
def test_what_does_not_fit_names_key_and_value(content, line):
    with pytest.raises(UserError) as caught:
        check_schema(content, Outer, source="x.json: ")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_values_are_shown_in_a_line():
    assert len(short_repr("y" * 5000)) < 80
    for array in (np.zeros((2, 3), np.int64), torch.zeros(2, 3, dtype=torch.int64)):
        assert short_repr(array) == f"an array of {array.dtype} (2, 3)"
        with pytest.raises(UserError, match=r"depth is an array of \S*int64 \(2, 3\): it must be"):
            check_schema({"depth": array}, Outer, source="")
    assert short_repr(np.float32(0.5)) == "np.float32(0.5)"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert short_repr(deep) == "[[[[...]]]]"
    assert len(short_repr(list(range(10_000)))) < 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "is damaged: nested beyond measure"),
        ('{"a":' * 100_000, "is damaged: nested beyond measure"),
        ("", "is damaged, no JSON"),
        ('{"a": ', "is damaged, no JSON"),
        ("9" * 5000, "is damaged, no JSON"),
        (b"\xff\xfe{", "is damaged, no JSON"),
    ],
)
def test_damaged_files_are_one_line(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert f"{path} {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_as_far_as_its_kind_goes(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(["y" * 100]))
    assert read_json(path, largest=104) == ["y" * 100]
    with pytest.raises(UserError, match=r"x\.json: has over 0 MiB"):
        read_json(path, largest=103)
    with pytest.raises(UserError, match="/dev/zero: cannot be read .it is no file"):
        read_json("/dev/zero")
    with pytest.raises(UserError, match="cannot be read .No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        read_json(tmp_path)
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', source="x") == {"a": 1}


def test_a_whole_number_that_no_array_holds_is_a_float():
    found = parse_json(f"[{2**64 - 1}, {-(2**63)}, {2**64}, 1{'0' * 30}, 1{'0' * 400}]", source="x")
    assert found == [2**64 - 1, -(2**63), 2.0**64, 1e30, float("inf")]
    assert list(map(type, found)) == [int, int, float, float, float]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match=r"pipe.json: cannot be read \(it is no file\); restore"):
        read_json(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("120", 120), ("007", None), ("²", None), ("٣", None), ("-1", None), ("", None),
     ("1_0", None), (" 1", None), ("9" * 5000, None)],
)  # fmt: skip
def test_whole_numbers_are_written_in_one_way(text, number):
    assert as_whole(text) == number
