"""Files that are small, and say that they are not: refused before anybody believes them."""

import argparse
import pickle
import resource
import sys
import types

import numpy as np
import pytest
import torch
from weight_files import refused

from repae_jax.errors import UserError
from repae_jax.interop import claims, files

ONE = torch.ones(1)


def cyclic():
    content = {"main.0.weight": ONE}
    content["again"] = content
    return content


def cyclic_list():
    args = []
    args.append(args)
    return {"model": {"x": ONE}, "args": argparse.Namespace(args=args)}


def exploding():
    content = {"a": ONE, "b": ONE}
    for _ in range(60):
        content = {"a": content, "b": content}
    return content


def exploding_list():
    content = [1, 1]
    for _ in range(60):
        content = [content, content]
    return {"main.0.weight": ONE, "notes": content}


# Python's own pickler nests as deep as the recursion limit lets it, C's less on Python 3.12.
PICKLE = types.ModuleType("pickle")
PICKLE.Pickler = pickle._Pickler


def deep():
    content = {"a": ONE}
    for _ in range(3000):
        content = {"a": content}
    return content


def repeated(shape, dtype=torch.float32):
    return lambda: {"main.0.weight": torch.ones(1, dtype=dtype).expand(*shape)}


HOSTILE = {
    "cyclic": (cyclic, "nested beyond 32 levels"),
    "cyclic list": (cyclic_list, "nested beyond 32 levels"),
    "exploding": (exploding, "nested beyond 32 levels"),
    "exploding list": (exploding_list, "nested beyond 32 levels"),
    "deep": (deep, "nested beyond 32 levels"),
    "many": (lambda: {str(i): 1 for i in range(2000)}, "holds over 1000 entries"),
    "repeated": (repeated((10**5, 10**6)), "the shape (100000, 1000000)"),
    "narrow": (repeated((10**10,), torch.bfloat16), "the shape (10000000000,)"),
    "shared": (lambda: {str(i): ONE.expand(10**7) for i in range(30)}, "the shape (10000000,)"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_small_file_is_taken_for_one(kind, tmp_path, capsys, monkeypatch):
    if kind == "many":
        monkeypatch.setattr(claims, "_ENTRIES", 1000)
    make, message = HOSTILE[kind]
    path, limit = tmp_path / "x.pt", sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # of torch.save
    try:
        torch.save(make(), path, pickle_module=PICKLE)
    finally:
        sys.setrecursionlimit(limit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for words in (["inspect", path], ["convert", path, tmp_path / "x.safetensors"]):
        line = refused(words, capsys)
        assert str(path) in line
        assert message in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_what_is_shared_honestly_is_read(tmp_path):
    weight = torch.randn(300, 300)
    content = {"model": {"a": weight, "tied": weight}, "ema": {"a": weight.T, "b": weight[:7]}}
    torch.save(content, tmp_path / "x.pt")
    found = files.read_stored(tmp_path / "x.pt")
    np.testing.assert_array_equal(found["ema"]["a"], weight.numpy().T)
    np.testing.assert_array_equal(found["model"]["tied"], weight.numpy())


def test_a_large_file_may_name_its_bytes_four_times(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_SMALL", 0)
    weight = torch.randn(100, 100)
    torch.save({str(i): weight for i in range(4)}, tmp_path / "x.pt")
    assert len(files.read_stored(tmp_path / "x.pt")) == 4
    torch.save({str(i): weight for i in range(8)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="its tensors claim to hold far more than the file's"):
        files.read_stored(tmp_path / "x.pt")
