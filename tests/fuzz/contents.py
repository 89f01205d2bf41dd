"""What JSON, PyTorch's and safetensors' files hold, and every change of one thing in it."""

import argparse
import contextlib
import copy
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from fuzz import hostile

Path = list[str | int]

TENSOR_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PREFIXES = ("module.", "_orig_mod.", "vae.", "first_stage_model.", "model.", "ema.")
DTYPES = (
    "float16", "bfloat16", "float64", "float8_e4m3fn", "int8", "int64", "uint8", "bool", "complex64"
)  # fmt: skip
_METADATA = "__metadata__"
_TEXT = "<json>"  # the step of a path into a string that holds JSON

# One value in the place of another. Finite numbers are values that somebody may want.
NUMBERS = {"zero": 0, "one": 1, "negative": -1, "half": 0.5, "large": 2**31, "huge": 10**30}
REPLACEMENTS: dict[str, Any] = {
    **NUMBERS,
    "enormous": 10**400,  # no float
    "nan": float("nan"),
    "infinity": float("inf"),
    "null": None,
    "true": True,
    "empty": "",
    "text": "sixteen",
    "number as text": "16",
    "long": "x" * 5000,
    "list": [],
    "nested list": [[1]],
    "mixed list": [1, None, "x"],
    "object": {},
    "nested": {"a": {"b": [1, 2, {"c": None}]}},
    "surrogate": "\ud800",
    "path": "/nowhere/" + "y" * 300,
}
SHAPES = ("flat", "extra axis", "swapped", "scalar", "no rows", "half")


def load(path: pathlib.Path) -> Any:
    """Nested dicts, lists, tensors and plain values; metadata of safetensors under their name."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return {**tensors, _METADATA: dict(handle.metadata() or {})}
    if path.suffix in TENSOR_SUFFIXES:
        import torch

        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def store(path: pathlib.Path, content: Any) -> None:
    """The inverse of `load`; what cannot be written so is written as JSON with what is beside."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        tensors = {k: v for k, v in content.items() if hasattr(v, "dtype")}
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        metadata = {
            str(k): v if isinstance(v, str) else json.dumps(v)
            for k, v in content.get(_METADATA, {}).items()
        }
        save_file(tensors, path, metadata or None)
    elif path.suffix in TENSOR_SUFFIXES:
        import torch

        torch.save(content, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content, indent=1))


def edits_of(content: Any, *, tensors: bool) -> list[list]:
    """Every one-key change of nested content, and the changes that tensors can take."""
    found = []
    for path, value in nodes(content):
        found += [["remove", path], ["rename", path]] if path != [_METADATA] else []
        if hasattr(value, "dtype"):
            found += [["twin", path]]
            found += [["shape", path, shape] for shape in SHAPES]
            found += [["dtype", path, dtype] for dtype in DTYPES]
            found += [["number", path, number] for number in ("nan", "inf")]
            continue
        if tensors and isinstance(value, Mapping) and path != [_METADATA]:
            found += [["prefix", path, prefix] for prefix in PREFIXES]
        found += [["set", path, name] for name in REPLACEMENTS]
    if tensors:
        found += [["prefix", [], prefix] for prefix in PREFIXES]
        found += [["dtypes", dtype] for dtype in DTYPES]
        found += [["wrap", key] for key in ("state_dict", "model", "ema", "module", "x")]
        found += [["extra", name] for name in ("loss.logvar", "foo", "teacher.head.weight", "")]
        if _METADATA not in content:
            found += [["pickled", name] for name in hostile.PICKLED]
    return found


def nodes(content: Any, path: Path | None = None) -> Iterator[tuple[Path, Any]]:
    """(path, value) of everything below: keys, items, attributes, and into JSON in strings."""
    path = path or []
    for key, value in children(content):
        yield [*path, key], value
        yield from nodes(value, [*path, key])


def children(value: Any) -> list[tuple[str | int, Any]]:
    """What a container holds, by key, and what JSON in a string says."""
    if isinstance(value, Mapping):
        return [(key, item) for key, item in value.items() if isinstance(key, str | int)]
    if isinstance(value, argparse.Namespace):
        return list(vars(value).items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))[:3]  # the others are alike
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return [(_TEXT, json.loads(value))]
    return []


def _changed(node: Any, path: Path, change) -> Any:
    """A copy of `node` in which `change` was made of the container and key at `path`."""
    key, *rest = path
    if isinstance(node, argparse.Namespace):
        return argparse.Namespace(**_changed(vars(node), path, change))
    if key == _TEXT:
        inner = json.loads(node)
        return json.dumps(_changed(inner, rest, change)) if rest else "[" + node
    copied = dict(node) if isinstance(node, Mapping) else list(node)
    if rest:
        copied[key] = _changed(copied[key], rest, change)
    else:
        change(copied, key)
    return copied if isinstance(copied, dict) else type(node)(copied)


def _set(content, path, name):
    def change(container, key):
        container[key] = copy.deepcopy(REPLACEMENTS[name])

    return _changed(content, path, change)


def _remove(content, path):
    return _changed(content, path, lambda container, key: container.pop(key))


def _rename(content, path):
    def change(container, key):
        if isinstance(container, dict):
            container[f"{key}_x"] = container.pop(key)

    return _changed(content, path, change)


def _twin(content, path):
    def change(container, key):
        container[f"{key}.copy"] = container[key]

    return _changed(content, path, change)


def _shape(content, path, name):
    def change(container, key):
        tensor = container[key]
        container[key] = {
            "flat": lambda: tensor.reshape(-1),
            "extra axis": lambda: tensor[None],
            "transposed": lambda: (
                tensor.T if tensor.ndim == 2 else tensor.reshape(*tensor.shape, 1)
            ),
            "scalar": lambda: tensor.flatten()[0] if tensor.numel() else tensor,
            "no rows": lambda: tensor[:0] if tensor.ndim else tensor,
            "half": lambda: tensor[: max(1, len(tensor) // 2)] if tensor.ndim else tensor,
        }[name]()

    return _changed(content, path, change)


def _is_oblong(tensor):
    return tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]


def _dtype(content, path, name):
    import torch

    def change(container, key):
        container[key] = container[key].to(getattr(torch, name))

    return _changed(content, path, change)


def _dtypes(content, name):
    import torch

    def cast(node):
        if hasattr(node, "dtype"):
            return node.to(getattr(torch, name)) if node.is_floating_point() else node
        return {k: cast(v) for k, v in node.items()} if isinstance(node, Mapping) else node

    return cast(content)


def _number(content, path, name):
    def change(container, key):
        tensor = container[key].clone()
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[0] = float(name)
        container[key] = tensor

    return _changed(content, path, change)


def _prefix(content, path, prefix):
    def renamed(node):
        return {k if k == _METADATA else f"{prefix}{k}": v for k, v in node.items()}

    if not path:
        return renamed(content)

    def change(container, key):
        container[key] = renamed(container[key])

    return _changed(content, path, change)


def _wrap(content, key):
    metadata = {_METADATA: content[_METADATA]} if _METADATA in content else {}
    inner = {k: v for k, v in content.items() if k != _METADATA}
    return {key: inner, **metadata}


def _extra(content, name):
    import torch

    return {**content, name: torch.ones(3)}


def _pickled(content, name):
    return hostile.PICKLED[name](content)


EDITS = {
    "set": _set,
    "remove": _remove,
    "rename": _rename,
    "twin": _twin,
    "shape": _shape,
    "dtype": _dtype,
    "dtypes": _dtypes,
    "number": _number,
    "prefix": _prefix,
    "wrap": _wrap,
    "extra": _extra,
    "pickled": _pickled,
}
