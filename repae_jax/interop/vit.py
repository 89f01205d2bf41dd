"""Converts ViT weights between their publishers' names and `ViT`."""

import dataclasses
import itertools
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
from repae_jax.interop.vit_format import Format, Naming
from repae_jax.interop.vit_names import FAMILIES, FORMATS
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.rotary import grid_periods

_PERIODS = "rope_embed.periods"


def read_vit(path: str | os.PathLike, model: ViT, source: str = "") -> dict[str, Any]:
    """The content of a weight file for the ViT `model`.

    Raises:
      UserError: the file is missing or unreadable; `source`, by default the path, names it.
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
    """{"params": ...} for `model`; the tensors' names identify the naming and the nesting.

    Args:
      tensors: the content of a file of `model.family`, in any of its `FORMATS`: a flat dict, or
        the nested dict that its authors publish. Tensors that the model does not use are ignored:
        heads, decoders, text towers, momentum encoders, mask tokens (which act in masked
        pre-training only), and the final norm, or its scale and bias, if the model has none.
      model: the ViT that takes the parameters.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: the weights are of another family or unknown naming, or a tensor is missing,
        unexpected, of another shape or not finite.
    """
    format, prefix = _detect_format(tensors, model, source)
    used = _used(_unpacked(tensors, format), model, format, prefix)
    constants = _constants(used, model, prefix, source)
    _fill_biases(used, model, format, prefix)
    expected = tables.exported_shapes(lambda v: _export(v, model, format, prefix), _shapes(model))
    tables.check(used, expected, source=source)
    fused = _fused(used, model, format, prefix)
    params = tables.to_ours(format.rules(prefix, model.patch_size), fused, source=source)
    return {"params": tables.unflatten(params), **constants}


def export_vit(
    params: Mapping[str, Any], model: ViT, naming: Naming, prefix: str = ""
) -> dict[str, np.ndarray]:
    """The inverse of `load_vit`: the names of `model.family` in a naming -> numpy arrays."""
    format = next(f for f in FORMATS if (f.family, f.naming) == (model.family, naming))
    return _export({"params": params}, model, format, prefix)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A possible format of a file.

    Attributes:
      format: the format.
      prefix: the prefix of the names.
      known: how many of the format's names the file has.
      own_entry: whether the tensors lie in the format's own entry.
    """

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


def _detect_format(content, model, source) -> tuple[Format, str]:
    """The format and prefix with the most known names; among equals that of the model's family."""
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
    """The tensors of a file, from the entry that holds them, if there is one."""
    entry = format.entry_in(content)
    return content if entry is None else content[entry]


def _used(tensors, model, format, prefix):
    """The tensors without those that the format ignores, with misspelled names corrected."""
    norm = rf"{re.escape(format.layers['norm'])}\.(weight|bias)"
    affine = model.final_norm and model.final_affine
    ignore = format.ignored(prefix, *([] if affine else [norm]))
    used = {}
    for name, array in tables.without(tensors, ignore).items():
        for wrong, right in format.misnamed:
            name = name.replace(wrong, right)
        used[name] = np.asarray(array)
    return used


def _constants(tensors, model, prefix, source):
    """Take the periods of rotary positions out of the tensors: {"constants": ...}, or {}."""
    if model.rope != "dinov3":
        return {}
    computed = grid_periods(model.dim // model.num_heads)  # as transformers does
    periods = tensors.pop(prefix + _PERIODS, computed)
    tables.check({_PERIODS: periods}, {_PERIODS: computed.shape}, source=source)
    if not (periods.astype(np.float32) > 0).all():
        raise UserError(f"{source}: {prefix + _PERIODS!r} has a period that is not above 0")
    return {"constants": {"periods": periods.astype(np.float32)}}


def _fill_biases(tensors, model, format, prefix):
    """Add the biases that a file may lack, as zeros, and apply the masks of those that it has."""
    for layer, i in itertools.product(format.biases, range(model.depth)):
        theirs = format.layers[layer]
        for name in (theirs,) if isinstance(theirs, str) else theirs:
            name = prefix + name.format(i=i)
            mask = tensors.pop(f"{name}.bias_mask", None)
            weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
            if bias is None and weight is not None:
                tensors[f"{name}.bias"] = np.zeros(weight.shape[:1], weight.dtype)
            elif bias is not None and mask is not None and mask.shape == bias.shape:
                tensors[f"{name}.bias"] = np.where(mask == 0, np.zeros((), bias.dtype), bias)


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
    """Concatenate the parts that `_export` splits."""
    tensors = dict(tensors)
    for parts, whole in format.fusions(prefix, model.depth):
        if parts[0] in tensors:
            tensors[whole] = np.concatenate([tensors.pop(part) for part in parts])
    return tensors
