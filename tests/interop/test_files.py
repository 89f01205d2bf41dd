"""Reading weight files: formats, damage, and code that must not run."""

import argparse
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from repae_jax.errors import UserError
from repae_jax.interop.files import read_tensors


def test_safetensors_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3], np.int64)}
    save_file(tensors, path)
    back = read_tensors(path)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_half_precision_is_widened(tmp_path):
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([1.5, -2.25])
    for dtype in (torch.bfloat16, torch.float16):
        save_torch({"x": values.to(dtype)}, tmp_path / "h.safetensors")
        torch.save({"x": values.to(dtype)}, tmp_path / "h.pt")
        for name in ("h.safetensors", "h.pt"):
            array = read_tensors(tmp_path / name)["x"]
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, [1.5, -2.25])


def test_nested_torch_files_with_arguments(tmp_path):
    path = tmp_path / "checkpoint.pt"
    content = {"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=0.1), "steps": 7}
    torch.save(content, path)
    back = read_tensors(path)
    np.testing.assert_array_equal(back["model"]["w"], [1, 1])
    assert (back["steps"], back["args"].lr) == (7, 0.1)


class Hostile:
    """Unpickled carelessly, this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda x, p: pathlib.Path(p).write_bytes(pickle.dumps(x, protocol=2))]
)
def test_code_in_a_file_does_not_run(write, tmp_path):
    path, trace = tmp_path / "hostile.pt", tmp_path / "executed"
    write({"x": Hostile(trace)}, path)
    with pytest.raises(UserError, match=r"hostile.pt: .* posix.mkdir in it is code, and not run"):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damage_is_one_line(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save({"x": torch.ones(1000)}, path)
    else:
        save_file({"x": np.ones(1000, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        read_tensors(tmp_path / "none.pt")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected a file .safetensors, .* or .tar"):
        read_tensors(tmp_path / "a.onnx")


@pytest.mark.parametrize("kind", ["sparse", "float8_e8m0fnu", "meta"])
def test_tensors_of_other_kinds_are_named(kind, tmp_path):
    tensor = {
        "sparse": torch.eye(3).to_sparse(),
        "float8_e8m0fnu": torch.ones(3).to(torch.float8_e8m0fnu),  # a scale of others
        "meta": torch.ones(3, device="meta"),
    }[kind]
    torch.save({"odd": tensor}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: .*(tensor 'odd'|not a readable)"):
        read_tensors(tmp_path / "a.pt")
