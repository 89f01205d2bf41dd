"""Reading tensors from files without ever running code from them."""

import pathlib
from collections.abc import Mapping

import numpy as np

from repae_jax.errors import UserError


def read_tensors(path: str | pathlib.Path) -> dict:
    """The content of a .safetensors, .pt or .pth file, tensors as numpy arrays.

    A .safetensors file gives a flat dict; a PyTorch file whatever nesting of dicts it holds.
    PyTorch files are read with `weights_only=True` (argparse.Namespace is the one class
    allowed beyond tensors), so nothing in them is executed. bfloat16 and float16 tensors are
    widened to float32.

    Raises:
      UserError: the file is missing, of another kind, damaged, or would run code.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; put the file there or change the config's path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    raise UserError(f"{path}: expected a .safetensors, .pt or .pth file")


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return {name: _widened(array) for name, array in tensors.items()}


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: PyTorch files need torch to be read; pip install torch, "
            "or convert the file to .safetensors"
        ) from error
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable weights-only PyTorch file ({reason})") from error
    return _arrays(content)


def _arrays(content):
    if isinstance(content, Mapping):
        return {key: _arrays(value) for key, value in content.items()}
    if hasattr(content, "detach"):
        tensor = content.detach()
        narrow = tensor.is_floating_point() and tensor.element_size() < 4
        return (tensor.float() if narrow else tensor).numpy()
    return content


def _widened(array):
    narrow = array.dtype.kind in "fV" and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
