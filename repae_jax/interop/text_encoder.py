"""Converts text encoders between transformers' names and ours."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files, hub, tables, weight_files
from repae_jax.interop.tables import LINEAR, Rule, layer, norm
from repae_jax.interop.text_encoder_configs import class_and_fields
from repae_jax.models.text_encoders.base import TextEncoder, initial_variables
from repae_jax.models.text_encoders.causal_lm import CausalLM
from repae_jax.models.text_encoders.clip_text import CLIPText
from repae_jax.utils.schema import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_PROJECTION = "text_projection.weight"


@dataclasses.dataclass(frozen=True)
class _Format:
    """The names of one class of text encoders.

    Attributes:
      what: the networks, in words.
      prefix: the published prefix of the names; files of the bare tower have none.
      sign: the name, after the prefix, of a tensor that every file has.
      rules: names after the prefix <-> our paths.
      outside: rules of names beside the prefix.
      fused: layers that are one here, see `tables.fuse`.
      block: the beginning of the names of block 0, up to its number.
      ignored: regular expressions of further names in published files.
    """

    what: str
    prefix: str
    sign: str
    rules: tuple[Rule, ...]
    outside: tuple[Rule, ...]
    fused: Mapping[str, tuple[str, ...]]
    block: str
    ignored: tuple[str, ...]

    def table(self, prefix: str) -> list[Rule]:
        """The rules for files whose names have this prefix."""
        beside = prefix.removesuffix(self.prefix)
        return [
            dataclasses.replace(rule, theirs=start + rule.theirs)
            for start, rules in ((prefix, self.rules), (beside, self.outside))
            for rule in rules
        ]


def _causal_lm_rules():
    theirs, ours = "layers.{i}", "params/blocks_{i}"
    linear = {f"self_attn.{name}_proj": name for name in "qkvo"}
    linear |= {f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")}
    scales = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
    scales |= {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
    rules = [Rule("embed_tokens.weight", "params/embedding")]
    for name, own in linear.items():
        rules += layer(f"{theirs}.{name}", f"{ours}/{own}", LINEAR, bias=False)
    rules += [
        Rule(f"{theirs}.{name}.weight", f"{ours}/{own}/scale") for name, own in scales.items()
    ]
    rules += [Rule(f"whitening.{name}", f"params/whitening/{name}") for name in ("mean", "matrix")]
    return (*rules, Rule("norm.weight", "params/norm/scale"))


def _clip_rules():
    theirs, ours = "encoder.layers.{i}", "params/blocks_{i}"
    rules = [
        Rule("embeddings.token_embedding.weight", "params/token_table"),
        Rule("embeddings.position_embedding.weight", "params/position_table"),
        *norm("final_layer_norm", "params/norm"),
    ]
    for name in ("norm1", "norm2"):
        rules += norm(f"{theirs}.layer_{name}", f"{ours}/{name}")
    for name in "qkv":
        rules += layer(f"{theirs}.self_attn.{name}_proj", f"{ours}/attn/{name}", LINEAR)
    rules += layer(f"{theirs}.self_attn.out_proj", f"{ours}/attn/proj", LINEAR)
    for name in ("fc1", "fc2"):
        rules += layer(f"{theirs}.mlp.{name}", f"{ours}/mlp/{name}", LINEAR)
    return tuple(rules)


_FORMATS: dict[type, _Format] = {
    CausalLM: _Format(
        what="a causal language model",
        prefix="model.",
        sign="embed_tokens.weight",
        rules=_causal_lm_rules(),
        outside=(),
        fused={},
        block="layers.",
        # the head, which predicts the next token, and a table that older versions saved
        ignored=(r"lm_head\.weight", r".*rotary_emb\.inv_freq"),
    ),
    CLIPText: _Format(
        what="CLIP's text tower",
        prefix="text_model.",
        sign="embeddings.token_embedding.weight",
        rules=_clip_rules(),
        outside=(Rule(_PROJECTION, "params/projection/kernel", LINEAR),),
        fused={"attn/qkv": ("attn/q", "attn/k", "attn/v")},
        block="encoder.layers.",
        # the image tower in a file of the complete CLIP, and a table that older versions saved
        ignored=(
            r".*embeddings\.position_ids",
            r"vision_model\..*|visual_projection\.weight|logit_scale",
        ),
    ),
}
_FOREIGN = {"embeddings.patch_embedding.weight": "CLIP's image tower"}  # sign -> network


def read_text_encoder(name: str | pathlib.Path, encoder: TextEncoder) -> dict[str, Any]:
    """{"params": ...} for `encoder`, as numpy arrays in the types of the file.

    Args:
      name: a folder with model.safetensors (or its shards and their index), such a file, or "hf://"
        and a repository on the Hugging Face hub. A config.json beside the weights is compared with
        the encoder.
      encoder: the module that takes the parameters.

    Raises:
      UserError: nothing is there, it is damaged, or it holds another network.
    """
    path = hub.locate(name, (CONFIG,), weight_files.TRANSFORMERS)
    file = weight_files.find_weights(path, weight_files.TRANSFORMERS) if path.is_dir() else path
    if file is None:
        raise UserError(
            f"{path}: model.safetensors is missing: `python -m repae_jax pretrain-text-encoder` "
            "trains a small text encoder; a published one has it"
        )
    config = file.parent / CONFIG
    if config.is_file():
        kind, fields = class_and_fields(read_json(config), source=str(config))
        if not isinstance(encoder, kind):
            raise UserError(_mistaken(str(config), _FORMATS[kind].what, encoder))
        _compare(encoder, fields, str(config))
    return load_text_encoder(files.read_stored(file), encoder, source=str(file))


def load_text_encoder(
    tensors: Mapping[str, np.ndarray], encoder: TextEncoder, *, source: str = "checkpoint"
) -> dict[str, Any]:
    """{"params": ...} for `encoder`.

    Args:
      tensors: the content of a file of the text encoder, of the language model with its head, or
        of the complete CLIP.
      encoder: the module that takes the parameters.
      source: the name of the tensors in an error, such as the file's name.

    Raises:
      UserError: the tensors are of another network, or one is missing, unexpected, of another
        shape or not finite.
    """
    format = _FORMATS[type(encoder)]
    prefix = _prefix(tensors, encoder, source)
    ignored = [*format.ignored]
    if not getattr(encoder, "projection", 0):
        ignored.append(rf"(.*\.)?{re.escape(_PROJECTION)}")
    used = tables.without(tensors, ignored)
    _compare(encoder, _dimensions(used, format, prefix, source), source)
    shapes = jax.eval_shape(lambda: initial_variables(encoder, jax.random.key(0)))
    expected = tables.exported_shapes(lambda v: _export(v, format, prefix), shapes)
    tables.check(used, expected, source=source)
    ours = tables.to_ours(format.table(prefix), used, source=source)
    return tables.unflatten(tables.fuse(ours, format.fused))


def export_text_encoder(
    variables: Mapping[str, Any], encoder: TextEncoder
) -> dict[str, np.ndarray]:
    """The inverse of `load_text_encoder`: names as the publishers have them -> arrays."""
    format = _FORMATS[type(encoder)]
    return _export(variables, format, format.prefix)


def base_text_encoder(variables: Mapping[str, Any], encoder: TextEncoder) -> dict[str, np.ndarray]:
    """As `export_text_encoder`, with the names of transformers' class without a head."""
    format = _FORMATS[type(encoder)]
    prefix = "" if isinstance(encoder, CausalLM) else format.prefix
    return _export(variables, format, prefix)


def _export(variables, format, prefix):
    flat = tables.split(tables.flatten(variables), format.fused)
    return tables.to_theirs(format.table(prefix), flat)


def _prefix(tensors, encoder, source):
    """The prefix of the tensors' names in a file."""
    format = _FORMATS[type(encoder)]
    found = _prefixes(tensors, format.sign)
    if len(found) > 1:
        twice = " and ".join(repr(prefix + format.sign) for prefix in found)
        raise UserError(f"{source}: holds more than one text encoder: {twice}")
    if found:
        return found[0]
    known = {other.sign: other.what for other in _FORMATS.values()} | _FOREIGN
    for sign, what in known.items():
        if _prefixes(tensors, sign):
            raise UserError(_mistaken(source, what, encoder))
    raise UserError(
        f"{source}: not the weights of {format.what}: it has no tensor "
        f"{format.prefix + format.sign!r} or {format.sign!r}"
    )


def _prefixes(tensors, sign):
    """The prefixes before a sign: "" and those that end in a dot."""
    return sorted(
        name.removesuffix(sign) for name in tensors if re.search(rf"(^|\.){re.escape(sign)}$", name)
    )


def _mistaken(source, what, encoder):
    return (
        f"{source}: the weights of {what}, but the text encoder is {_FORMATS[type(encoder)].what}; "
        "choose the arch that fits the file, or another file"
    )


def _dimensions(tensors, format, prefix, source) -> dict[str, Any]:
    """The fields of an encoder that its tensors determine."""

    def shape(name, rank=2):
        return tables.shape_of(tensors, prefix + name, rank, what=format.what, source=source)

    first = f"{format.block}0."
    numbers = rf"{re.escape(prefix + format.block)}(\d+)\..*"
    depth = len({match[1] for name in tensors if (match := re.fullmatch(numbers, name))})
    vocabulary, dim = shape(format.sign)
    found = {"vocabulary": vocabulary, "dim": dim, "depth": depth}
    if format is _FORMATS[CausalLM]:
        found["whitened"] = f"{prefix}whitening.mean" in tensors
    if not depth:
        return found
    if format is _FORMATS[CausalLM]:
        found["mlp_hidden"] = shape(f"{first}mlp.gate_proj.weight")[0]
        found["qk_norm"] = f"{prefix}{first}self_attn.q_norm.weight" in tensors
        return found
    found["mlp_hidden"] = shape(f"{first}mlp.fc1.weight")[0]
    found["length"] = shape("embeddings.position_embedding.weight")[0]
    return found


def _compare(encoder: nn.Module, fields: Mapping[str, Any], source: str) -> None:
    """Raise UserError, listing them, for fields with other values than the encoder's."""
    wrong = [
        f"{name} is {value} (the encoder's {getattr(encoder, name)})"
        for name, value in fields.items()
        if value != getattr(encoder, name)
    ]
    if wrong:
        raise UserError(
            f"{source}: another text encoder: {', '.join(wrong)}; choose the arch that fits the "
            "file, or another file"
        )
