"""ViT weights under their publishers' names, to and from `ViT`."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.files import read_tensors
from repae_jax.interop.vit_names import FAMILIES, FORMATS, Format
from repae_jax.models.encoders.vit import ViT


def read_vit(path: str | os.PathLike, model: ViT, source: str = "") -> dict[str, Any]:
    """The content of a file with the weights of a ViT.

    Raises:
      UserError: it is missing or unreadable.
    """
    try:
        return read_tensors(path)
    except UserError as error:
        if model.family != "clip" or "TorchScript" not in str(error):
            raise
        raise UserError(
            f"{source or path}: OpenAI's archive holds code, which is not run here; take "
            "model.safetensors of openai/clip-vit-large-patch14 from Hugging Face, or torch.save "
            "the state_dict() of clip.load(...)[0].visual"
        ) from error


def load_vit(tensors: Mapping[str, Any], model: ViT, source: str = "checkpoint") -> dict:
    """{"params": ...} for `model`; naming and nesting are recognised by the tensors' names.

    Args:
      tensors: the content of a file of `model.family`, in any of its `FORMATS`: a flat dict, or
        the nested one that its authors publish. What the model has no use for is left out: heads,
        decoders, text towers, momentum encoders, mask tokens (they act in masked pre-training
        only), and the final norm of a model without one.
      model: the ViT to fill.
      source: what to call the tensors in an error, e.g. the file's name.

    Raises:
      UserError: another family's weights, none of the namings, or a tensor is missing,
        unexpected, of another shape or not finite.
    """
    format, prefix = _recognise(tensors, model, source)
    used = _used(_unpacked(tensors, format), model, format, prefix)
    expected = tables.exported_shapes(lambda v: _export(v, model, format, prefix), _shapes(model))
    tables.check(used, expected, source=source)
    fused = _fused(used, model, format, prefix)
    params = tables.to_ours(format.rules(prefix, model.patch_size), fused, source=source)
    return {"params": tables.unflatten(params)}


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """How a file could be meant, how many names of that it has, and whether in its own entry."""

    format: Format
    prefix: str
    known: int
    own_entry: bool


def _candidates(content):
    return [
        _Candidate(
            format,
            prefix,
            len(format.first_names(prefix) & tensors.keys()),
            format.entry_in(content) in (None, format.inside),
        )
        for format, tensors in ((format, _unpacked(content, format)) for format in FORMATS)
        for prefix in format.prefixes_in(tensors)
    ]


def _recognise(content, model, source) -> tuple[Format, str]:
    """The format and prefix that know most of the tensors; among equals the model's family's."""
    best = max(
        _candidates(content), key=lambda c: (c.known, c.own_entry, c.format.family == model.family)
    )
    if not best.known:
        own = [f for f in FORMATS if f.family == model.family]
        names = dict.fromkeys(repr(f.prefixes[0] + f.tensors[0].theirs) for f in own)
        raise UserError(
            f"{source}: not the weights of {FAMILIES[model.family]}: "
            f"it has no tensor {' or '.join(names)}"
        )
    if best.format.family != model.family:
        raise UserError(
            f"{source}: the weights of {FAMILIES[best.format.family]}, but the model is "
            f"{FAMILIES[model.family]}'s; choose the arch that fits the file, or another file"
        )
    return best.format, best.prefix


def _unpacked(content, format):
    """The tensors of a file, which may lie in an entry of it."""
    entry = format.entry_in(content)
    return content if entry is None else content[entry]


def _used(tensors, model, format, prefix):
    """The tensors that the model needs or nobody knows, under their right names."""
    norm = rf"{re.escape(format.layers['norm'])}\.(weight|bias)"
    ignore = format.ignored(prefix, *([] if model.final_norm else [norm]))
    used = {}
    for name, array in tables.without(tensors, ignore).items():
        for wrong, right in format.misnamed:
            name = name.replace(wrong, right)
        used[name] = np.asarray(array)
    return used


def _shapes(model):
    images = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _export(variables, model, format, prefix):
    flat = tables.flatten(variables["params"])
    tensors = tables.to_theirs(format.rules(prefix, model.patch_size), flat)
    for parts, whole in format.fusions(prefix, model.depth):
        if whole in tensors:
            pieces = np.split(tensors.pop(whole), len(parts))
            tensors.update(zip(parts, pieces, strict=True))
    return tensors


def _fused(tensors, model, format, prefix):
    """The inverse of what `_export` splits."""
    tensors = dict(tensors)
    for parts, whole in format.fusions(prefix, model.depth):
        if parts[0] in tensors:
            tensors[whole] = np.concatenate([tensors.pop(part) for part in parts])
    return tensors
