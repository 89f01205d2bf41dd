"""Reading and writing weight files: reading never runs code from a file, writing is atomic."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError, first_line
from repae_jax.interop import torch_format
from repae_jax.interop.allowed_classes import only_allowed
from repae_jax.interop.claims import check_claims
from repae_jax.interop.intact import (
    check_archive,
    check_tensors,
    plain_notes,
    sealed_notes,
    sort_notes,
)
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import Text, read_json, short_repr

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")  # .pth.tar
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX_SUFFIX = ".json"  # the index of a model's shards, such as model.safetensors.index.json
# The types of weights; arrays of other types are counters, indices or masks.
WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
# safetensors' names of the types that numpy lacks, so that safetensors' own reader fails
_FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
# types that numpy gets from ml_dtypes -> an integer type that torch and numpy share for their bits
_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


class _Index(TypedDict):
    """The index of a model's shards."""

    weight_map: dict[str, Text]  # tensor -> file


def read_tensors(path: str | pathlib.Path) -> dict:
    """The content of a weight file as numpy arrays, with floats under 32 bits cast to float32.

    The content and the errors are those of `read_stored`.
    """
    return _map_arrays(read_stored(path), _widen)


def read_stored(path: str | pathlib.Path) -> dict:
    """The content of a weight file as numpy arrays in their stored types.

    A .safetensors file gives a flat dict; a PyTorch file gives its nested dicts; the index of a
    model in several files (.index.json) gives all of their tensors in one dict. PyTorch files are
    read with `weights_only=True` and the classes of `allowed_classes` alone, so nothing in them is
    executed. Where the format permits, arrays are mapped from the file and take
    no memory until they are used.

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
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    raise UserError(f"{path}: expected a file {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
    """The metadata of a .safetensors file without our checksum; {} if it has none.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    with open_safetensors(path) as handle:
        return plain_notes(handle.metadata())


def shards_of(index: pathlib.Path) -> dict[str, list[str]]:
    """{file: names of its tensors} from an index, as diffusers and transformers write it.

    Raises:
      UserError: the index is damaged, or lists something other than weight files beside it.
    """
    files: dict[str, list[str]] = {}
    for name, file in read_json(index, _Index)["weight_map"].items():
        files.setdefault(file, []).append(name)
    for file in files:
        if pathlib.PurePath(file).name != file:
            raise UserError(f"{index}: lists {file!r}, which is no name of a file beside it")
        if not file.endswith(SUFFIXES):
            raise UserError(f"{index}: lists {file!r}, which is no file of weights")
    return files


def write_safetensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a flat dict of arrays with their checksum, atomically.

    Raises:
      UserError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, sealed_notes(arrays, metadata or {}))
        sort_notes(temporary)
        temporary.chmod(_usual_mode())  # safetensors makes files that only their owner may read


def write_torch(path: str | pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts of arrays and plain values as `torch.save` does, arrays as tensors.

    The write is atomic, and needs no torch.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as temporary:
        torch_format.write(temporary, content)


def write_flat(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a flat dict in the format of `path`'s suffix: .safetensors with `metadata`, or .pt.

    Raises:
      UserError: the file cannot be written.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        write_safetensors(path, tensors, metadata)
    else:
        write_torch(path, tensors)


def _usual_mode():
    """The permissions of a new file under the user's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _read_safetensors(path):
    tensors, float8 = {}, {}
    with open_safetensors(path) as handle:
        for name in handle.keys():  # noqa: SIM118
            kind = handle.get_slice(name).get_dtype()
            if kind in _FLOAT8:
                float8[name] = _FLOAT8[kind]
                continue
            try:
                tensors[name] = handle.get_tensor(name)
            except (AttributeError, TypeError) as error:  # float4, float6, scales of blocks
                raise UserError(
                    f"{path}: tensor {name!r} is of type {kind}, which is not read here; store it "
                    "as float16 or wider"
                ) from error
        metadata = handle.metadata()
    tensors |= _read_float8(path, float8)
    check_tensors(path, tensors, metadata)
    return tensors


def _read_float8(path, types):
    """The tensors {name: type} of float8, mapped from a file that safetensors has validated."""
    import ml_dtypes

    if not types:
        return {}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
    tensors = {}
    for name, dtype in types.items():
        begin, end = header[name]["data_offsets"]
        flat = data[begin:end].view(getattr(ml_dtypes, dtype))
        tensors[name] = flat.reshape(header[name]["shape"])
    return tensors


def _read_shards(index):
    """All tensors of the files that an index lists; the files lie in the index's folder."""
    tensors = {}
    for file, names in shards_of(index).items():
        path = index.parent / file
        if not path.is_file():
            raise UserError(f"{index}: lists {file}, which is not there")
        shard = read_stored(path)
        absent = [name for name in names if name not in shard]
        twice = [name for name in shard if name in tensors]
        if absent:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise UserError(f"{path}: tensor {absent[0]!r} is missing{more}, of {index.name}")
        if twice:
            raise UserError(f"{path}: tensor {twice[0]!r} is in another file of {index.name} too")
        tensors |= shard
    return tensors


@contextlib.contextmanager
def open_safetensors(path: str | pathlib.Path) -> Iterator[Any]:
    """Open a .safetensors file for the block, to read parts of its tensors as numpy arrays.

    Raises:
      UserError: the file is missing or damaged; also for damage found within the block.
    """
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)})") from error


def check_names(content: Mapping, path: str | pathlib.Path) -> None:
    """Raise UserError unless the names of a file's tensors, or of its parts, are strings."""
    for name in content:
        if not isinstance(name, str):
            raise UserError(f"{path}: holds {short_repr(name)} where the name of a tensor belongs")


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading PyTorch files needs torch, which is not installed: pip install torch "
            "(its CPU build suffices), or take the weights as .safetensors"
        ) from error

    # only the zip format can be mapped; the format before torch 1.6 is read completely
    mapped = check_archive(path)
    try:
        with only_allowed():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: {_refusal(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    check_names(content, path)
    check_claims(content, path)
    return _map_tensors(content, path)


def _refusal(error):
    """The reason, in one line, why torch refused a file; torch itself advises to run its code."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"not a readable weights-only PyTorch file: {found[1]} in it is code, and not run"
    if "TorchScript" in str(error):
        return "a TorchScript archive, which is a program: use a file of its weights alone"
    first = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"not a readable weights-only PyTorch file ({first[:200]})"


def _map_tensors(content, path, name=""):
    if isinstance(content, Mapping):
        return {key: _map_tensors(value, path, key) for key, value in content.items()}
    if isinstance(content, list):
        return [_map_tensors(value, path, name) for value in content]
    if not hasattr(content, "detach"):
        return content
    try:
        return _as_array(content)
    except (TypeError, RuntimeError) as error:  # sparse, quantized, without data, exotic types
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
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _BITS:
        return tensor.view(getattr(torch, _BITS[name])).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def _widen(array):
    narrow = array.dtype.kind in "fV" and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
