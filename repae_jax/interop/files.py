"""Tensors in files: reading without ever running code from them, writing without halves."""

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.atomic import replacing
from repae_jax.errors import UserError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")  # .pth.tar
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def read_tensors(path: str | pathlib.Path) -> dict:
    """The content of a weight file, tensors as numpy arrays; bfloat16 and float16 are widened.

    See `read_stored`, which this is but for the widening to float32.
    """
    return _map_arrays(read_stored(path), _widened)


def read_stored(path: str | pathlib.Path) -> dict:
    """The content of a weight file, tensors as numpy arrays in the type that they are stored in.

    A .safetensors file gives a flat dict; a PyTorch file whatever nesting of dicts it holds.
    PyTorch files are read with `weights_only=True` (argparse.Namespace is the one class
    allowed beyond tensors), so nothing in them is executed; where their format permits, the
    arrays are mapped from the file and take no memory until they are used.

    Raises:
      UserError: the file is missing, of another kind, damaged, or would run code.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; put the file there or change the config's path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise UserError(f"{path}: expected a file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The metadata of a .safetensors file, {} where it has none.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    with _open_safetensors(path) as handle:
        return handle.metadata() or {}


def write_safetensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a flat dict of arrays; the file appears when it is whole.

    Raises:
      UserError: it cannot be written.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, dict(metadata) if metadata else None)
        temporary.chmod(_usual_mode())  # the library makes files for their owner alone


def write_torch(path: str | pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays and plain values as `torch.save` does, arrays as tensors.

    The file appears when it is whole.

    Raises:
      UserError: torch is not installed, or the file cannot be written.
    """
    torch = import_torch(path, "written")
    with replacing(path) as temporary:
        torch.save(_map_arrays(content, lambda array: _as_tensor(torch, array)), temporary)


def write_flat(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a flat dict as what `path` is called: .safetensors, with `metadata`, or PyTorch's."""
    if pathlib.Path(path).suffix == ".safetensors":
        write_safetensors(path, tensors, metadata)
    else:
        write_torch(path, tensors)


def import_torch(path: str | pathlib.Path, done: str):
    """torch, or a UserError that says why it is needed for `path` to be "read" or "written"."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: PyTorch files need torch to be {done}; pip install torch, or use .safetensors"
        ) from error
    return torch


def _usual_mode():
    """The permissions that the user's mask leaves a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _read_safetensors(path):
    with _open_safetensors(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _open_safetensors(path):
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_torch(path):
    torch = import_torch(path, "read")
    import argparse
    import zipfile

    # only the zip format of today can be mapped; the one before torch 1.6 is read as a whole
    mapped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: {_refusal(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return _map_tensors(content, path)


def _refusal(error):
    """Why torch did not read a file, in one line; torch's own advice is to run the code in it."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"not a readable weights-only PyTorch file: {found[1]} in it is code, and not run"
    if "TorchScript" in str(error):
        return "a TorchScript archive, which is a program: use a file of its weights alone"
    first = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"not a readable weights-only PyTorch file ({first[:200]})"


def _map_tensors(content, path, name=""):
    if isinstance(content, Mapping):
        return {key: _map_tensors(value, path, key) for key, value in content.items()}
    if not hasattr(content, "detach"):
        return content
    try:
        return _as_array(content)
    except (TypeError, RuntimeError) as error:  # float8, sparse, quantised, without data
        raise UserError(
            f"{path}: tensor {name!r} is of a kind that is not read here ({content.dtype}, "
            f"{content.layout}); store it as a plain float tensor"
        ) from error


def _map_arrays(content, function):
    if isinstance(content, Mapping):
        return {key: _map_arrays(value, function) for key, value in content.items()}
    return function(content) if isinstance(content, np.ndarray) else content


def _as_array(tensor):
    import ml_dtypes
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # which numpy knows through ml_dtypes only
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _as_tensor(torch, array):
    import warnings

    array = np.asarray(array, order="C")
    with warnings.catch_warnings():  # that nobody may write to it is no matter: it is saved
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)


def _widened(array):
    narrow = array.dtype.kind in "fV" and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
