"""PyTorch's files without PyTorch: torch reads what is written, bit for bit."""

import argparse
import json
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from saved import saved_content

from repae_jax.cli import main
from repae_jax.interop import files, torch_format
from repae_jax.interop.adamw import parameter_groups

TYPES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 "
    "uint16 uint32 uint64 bool complex64 complex128"
).split()


def values(dtype, shape):
    rng = np.random.default_rng(0)
    dtype = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    return np.asarray(10 * rng.standard_normal(shape), np.float32).astype(dtype)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_torch_reads_every_type(dtype, mapped, tmp_path):
    arrays = {
        "matrix": values(dtype, (3, 5)), "empty": values(dtype, (0, 3)), "one": values(dtype, ()),
        "turned": values(dtype, (4, 2)).T, "last": values(dtype, (7,)),
    }  # fmt: skip
    torch_format.write(tmp_path / "x.pt", arrays)
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        tensor = found[name]
        assert tensor.dtype == getattr(torch, dtype)
        assert tuple(tensor.shape) == array.shape
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0 or not mapped  # at an offset that torch may map
        assert bytes(tensor.untyped_storage())[: array.nbytes] == array.tobytes()


def test_torch_reads_plain_values(tmp_path):
    content = {
        "steps": 3, "large": 10**30, "nothing": None, "yes": True, "text": "é", "rate": 1e-4,
        "groups": [{"betas": (0.9, 0.999), "params": [0, 1]}], 7: {}, "empty": [],
        "args": argparse.Namespace(seed=0, names=["a", "b"], path=None, notes={"x": 1}),
    }  # fmt: skip
    torch_format.write(tmp_path / "x.pt", content)
    assert saved_content(tmp_path / "x.pt") == content
    assert torch.load(tmp_path / "x.pt", weights_only=False) == content
    with pytest.raises(TypeError, match="a set cannot be kept"):
        torch_format.write(tmp_path / "y.pt", {"x": {1}})


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in "ab":
        torch_format.write(tmp_path / name, {"x": values("float32", (3,)), "y": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parameter_groups_are_those_of_adamw():
    options = {"lr": 3e-4, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    parameters = [torch.zeros(()) for _ in range(3)]
    for given in (options, {"lr": 1e-4}):
        expected = torch.optim.AdamW(parameters, **given).state_dict()["param_groups"]
        ours = parameter_groups(3, **given)
        assert list(ours[0]) == list(expected[0])
        assert ours == expected


def test_a_run_leaves_without_torch(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it is an ImportError
    whole = tmp_path / "exps" / "x" / "checkpoints" / "0000003.pt"
    for target in (whole, tmp_path / "vae.safetensors"):
        to = [] if target == whole else ["--to", "vae"]
        assert main(["convert", str(run), str(target), "--quiet", *to]) == 0, capsys.readouterr()
    capsys.readouterr()
    assert main(["inspect", str(whole)]) == 2
    line = capsys.readouterr().err
    assert f"{whole}: reading PyTorch files needs torch" in line
    assert "pip install torch" in line
    monkeypatch.undo()
    assert saved_content(whole)["steps"] == 3
    assert saved_content(tmp_path / "vae-latents-stats.pt").keys() == {
        "latents_scale", "latents_bias"
    }  # fmt: skip
    assert main(["inspect", str(whole)]) == 0
    assert json.loads((tmp_path / "exps" / "x" / "args.json").read_text())["max_train_steps"] == 4
    assert "model" in files.read_stored(whole)
