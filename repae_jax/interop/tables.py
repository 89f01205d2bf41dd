"""Name tables: one description of a conversion, which serves both of its directions.

A table is a list of `Rule(theirs, ours, layout)`. Names may hold integer placeholders such as
`{i}`, which stand for the same number on both sides:

    Rule("blocks.{i}.attn.qkv.weight", "blocks_{i}/attn/qkv/kernel", LINEAR)

All functions work on flat dicts `name -> numpy array`; files.py reads and writes these dicts.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop.files import WEIGHT_TYPES
from repae_jax.utils.finite import finite_in_float32
from repae_jax.utils.schema import short_repr


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pair of inverse array transformations between a file's layout and ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda a: a.T, lambda a: a.T)  # (out, in) <-> (in, out)
CONV = Layout(  # (out, in, h, w) <-> (h, w, in, out)
    lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)
CONV1X1 = Layout(  # (out, in, 1, 1) <-> (in, out)
    lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]
)


def patch_layout(patch_size: int) -> Layout:
    """The patch embedding as a convolution (D, C, p, p) <-> a linear layer (p * p * C, D)."""

    def to_theirs(a):
        channels = a.shape[0] // patch_size**2
        return a.reshape(patch_size, patch_size, channels, -1).transpose(3, 2, 0, 1)

    return Layout(lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]), to_theirs)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One family of tensors: its name in the file, its path here, and its layout."""

    theirs: str
    ours: str
    layout: Layout = SAME


def layer(theirs: str, ours: str, layout: Layout, *, bias: bool = True) -> list[Rule]:
    """Rules for a linear or convolution layer: weight <-> kernel, and bias."""
    rules = [Rule(f"{theirs}.weight", f"{ours}/kernel", layout)]
    return rules + ([Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else [])


def norm(theirs: str, ours: str) -> list[Rule]:
    """Rules for the affine part of a normalization: weight <-> scale, and bias."""
    return [Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")]


def to_ours(
    table: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    *,
    ignore: Iterable[str] = (),
    source: str = "checkpoint",
) -> dict[str, np.ndarray]:
    """Rename tensors from a file's names to our paths, and convert their layouts.

    Args:
      table: the family's rules.
      tensors: the file's names -> arrays.
      ignore: regular expressions (full match) of the file's names to leave out.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: neither the table nor `ignore` has a name, or an array has the wrong rank.
    """
    rename = _compile(table, "theirs", "ours", "to_ours")
    return dict(_renamed(rename, tensors, ignore, source))


def to_theirs(
    table: Sequence[Rule], tensors: Mapping[str, np.ndarray], *, source: str = "parameters"
) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`."""
    rename = _compile(table, "ours", "theirs", "to_theirs")
    return dict(_renamed(rename, tensors, (), source))


def load(
    table: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping,
    *,
    source: str = "checkpoint",
    ignore: Iterable[str] = (),
) -> dict:
    """A model's variables from a file's tensors, checked as by `check`.

    Args:
      table: the family's rules.
      tensors: the file's names -> arrays.
      shapes: the variables as `jax.eval_shape` describes them.
      source: the name of the tensors in an error, such as the file's name.
      ignore: regular expressions (full match) of the file's names to leave out.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    tensors = without(tensors, ignore)
    expected = exported_shapes(lambda variables: to_theirs(table, flatten(variables)), shapes)
    check(tensors, expected, source=source)
    return unflatten(to_ours(table, tensors, source=source))


def load_flat(tensors: Mapping[str, np.ndarray], shapes: Mapping, *, source: str) -> dict:
    """A model's variables from tensors under our own paths: a checked inverse of `flatten`.

    Args:
      tensors: path -> array.
      shapes: the variables as `jax.eval_shape` describes them.
      source: the name of the tensors in an error.

    Raises:
      UserError: a tensor is missing, unexpected, misshapen or not finite.
    """
    check(tensors, {path: leaf.shape for path, leaf in flatten(shapes).items()}, source=source)
    return unflatten(tensors)


def in_order(table: Sequence[Rule], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Sort `tensors`, under a file's names, by the order of the table and of the placeholders.

    If the table lists its rules in the order of the PyTorch model's modules, this is the order in
    which PyTorch numbers the parameters, and so the slots of an optimizer's state.
    """
    ranks: dict[tuple[str, ...], int] = {}
    for rule in table:
        parts = re.sub(r"\{\w+\}", "#", rule.theirs).split(".")
        for depth in range(1, len(parts) + 1):
            ranks.setdefault(tuple(parts[:depth]), len(ranks))

    def key(name):
        prefix, keys = (), []
        for part in name.split("."):
            literal = (*prefix, part)
            prefix = literal if literal in ranks else (*prefix, "#")
            keys.append((ranks[prefix], int(part) if prefix[-1] == "#" else 0))
        return keys

    return {name: tensors[name] for name in sorted(tensors, key=key)}


def check(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    *,
    source: str = "checkpoint",
) -> None:
    """Raise UserError, naming the tensor, unless names and shapes are exactly `expected`.

    Every tensor must have a type of weights, and every value must be finite in float32: a NaN in a
    weight would only appear later, as a NaN in a loss.
    """
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    if missing:
        raise UserError(f"{source}: tensor {missing[0]!r} is missing{_and_more(missing)}")
    if extra:
        raise UserError(f"{source}: unexpected tensor {extra[0]!r}{_and_more(extra)}")
    for name, shape in expected.items():
        if not hasattr(tensors[name], "shape"):
            raise UserError(f"{source}: {name!r} is {short_repr(tensors[name])}, not a tensor")
        if tuple(tensors[name].shape) != tuple(shape):
            raise UserError(
                f"{source}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"the model needs {tuple(shape)}"
            )
        dtype = np.asarray(tensors[name]).dtype.name
        if dtype not in WEIGHT_TYPES:
            raise UserError(
                f"{source}: tensor {name!r} is of type {dtype}; weights are of one of "
                f"{', '.join(WEIGHT_TYPES)}"
            )
        if not finite_in_float32(tensors[name]):
            raise UserError(
                f"{source}: tensor {name!r} holds values that are not finite in float32"
            )


def require_finite(tensors: Mapping[str, np.ndarray], path: Any) -> None:
    """Raise UserError, before `path` is written, for weights with NaN or infinite values."""
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{path}: tensor {name!r} would hold NaN or infinite values: the run has diverged, "
                "or its checkpoint is damaged; take an earlier one (--step N)"
            )


def check_filled(tensors: Mapping[str, np.ndarray], *, source: str) -> None:
    """Raise UserError for an empty tensor, from which no dimension can be inferred."""
    for name, array in tensors.items():
        if 0 in np.shape(array):
            raise UserError(f"{source}: tensor {name!r} is empty, of shape {np.shape(array)}")


def without(tensors: Mapping[str, np.ndarray], ignore: Iterable[str]) -> dict[str, np.ndarray]:
    """The tensors without those whose full name a regular expression of `ignore` matches."""
    return {n: a for n, a in tensors.items() if not any(re.fullmatch(e, str(n)) for e in ignore)}


def shape_of(
    tensors: Mapping[str, Any], name: str, rank: int, *, what: str, source: str
) -> tuple[int, ...]:
    """The shape of a tensor that determines dimensions of a network.

    Raises:
      UserError: it is missing, or has another rank; the error names `what` the tensors are not.
    """
    if name not in tensors:
        raise UserError(f"{source}: not the weights of {what}: tensor {name!r} is missing")
    shape = np.shape(tensors[name])
    if len(shape) != rank:
        raise UserError(
            f"{source}: not the weights of {what}: tensor {name!r} has the shape {shape}, not "
            f"{rank} axes"
        )
    return shape


def fuse(tensors: Mapping[str, np.ndarray], fused: Mapping[str, Sequence[str]]) -> dict:
    """Concatenate, along their outputs, layers that a file keeps apart.

    Args:
      tensors: our paths -> arrays, whose last axis are the outputs.
      fused: the end of a layer's path -> those of the layers in the file, in order, such as
        {"attn/qkv": ("attn/q", "attn/k", "attn/v")}.
    """
    joined = dict(tensors)
    for path in tensors:
        layer_path, _, leaf = path.rpartition("/")
        for whole, parts in fused.items():
            if layer_path.endswith(f"/{parts[0]}"):
                block = layer_path.removesuffix(parts[0])
                pieces = [joined.pop(f"{block}{part}/{leaf}") for part in parts]
                joined[f"{block}{whole}/{leaf}"] = np.concatenate(pieces, axis=-1)
    return joined


def split(tensors: Mapping[str, np.ndarray], fused: Mapping[str, Sequence[str]]) -> dict:
    """The inverse of `fuse`."""
    apart = dict(tensors)
    for path in tensors:
        layer_path, _, leaf = path.rpartition("/")
        for whole, parts in fused.items():
            if layer_path.endswith(f"/{whole}"):
                block = layer_path.removesuffix(whole)
                pieces = np.split(apart.pop(path), len(parts), axis=-1)
                apart |= {f"{block}{p}/{leaf}": a for p, a in zip(parts, pieces, strict=True)}
    return apart


def without_tables(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], *, source: str
) -> dict[str, np.ndarray]:
    """The tensors without tables that a model's dimensions determine.

    Raises:
      UserError: a table is missing, or has other values than expected.
    """
    for name, table in expected.items():
        found = tensors.get(name)
        if found is None or found.shape != table.shape or not np.allclose(found, table, atol=1e-4):
            raise UserError(
                f"{source}: the table {name!r} is not that of the model: it is missing, or has "
                f"other values than rotary positions of shape {table.shape}"
            )
    return {name: array for name, array in tensors.items() if name not in expected}


def exported_shapes(
    export: Callable[[Mapping], Mapping[str, np.ndarray]], shapes: Mapping
) -> dict[str, tuple[int, ...]]:
    """{name in the file: shape} of the result of `export`, computed without variables.

    With these shapes a loader can `check` a file under its own names, before it converts anything.

    Args:
      export: variables -> flat dict under the file's names.
      shapes: the variables as `jax.eval_shape` describes them.
    """
    # broadcasting one zero takes no memory, however large the model
    blank = {path: np.broadcast_to(np.float32(0), s.shape) for path, s in flatten(shapes).items()}
    return {name: array.shape for name, array in export(unflatten(blank)).items()}


def flatten(tree: Mapping, prefix: str = "") -> dict[str, np.ndarray]:
    """A nested dict of arrays as a flat dict with "/"-joined paths, each after `prefix`."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}/"))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _compile(table, source, target, layout):
    """[(regular expression over source names, target template, array function)]."""
    compiled = []
    for rule in table:
        pattern = re.escape(getattr(rule, source))
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", pattern)
        compiled.append((re.compile(pattern), getattr(rule, target), getattr(rule.layout, layout)))
    return compiled


def _renamed(rename, tensors, ignore, source):
    for name, array in tensors.items():
        for pattern, template, layout in rename:
            if match := pattern.fullmatch(name):
                try:
                    yield template.format(**match.groupdict()), layout(np.asarray(array))
                except (ValueError, IndexError) as error:
                    raise UserError(
                        f"{source}: tensor {name!r} of shape {np.shape(array)} has the wrong rank"
                    ) from error
                break
        else:
            if not any(re.fullmatch(expression, name) for expression in ignore):
                raise UserError(f"{source}: unexpected tensor {name!r}")


def _and_more(names):
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
