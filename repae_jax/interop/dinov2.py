"""DINOv2 weights in the authors' names and in Hugging Face's, to and from `ViT`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.tables import LINEAR, Rule, patch_layout
from repae_jax.models.vit import ViT

# "authors": the .pth files of facebookresearch/dinov2. "transformers": the files on Hugging
# Face's hub. "transformers5": the state dict of the modules in transformers 5, which renames.
Naming = Literal["authors", "transformers", "transformers5"]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Layers that are apart there and one here: stacked along their outputs, in this order."""

    parts: tuple[str, ...]
    whole: str


def dinov2_table(naming: Naming, patch_size: int) -> list[Rule]:
    """Rules from DINOv2's names, after `_fuse`, to our parameter paths."""
    if naming == "authors":
        return _table(patch_size, _AUTHORS)
    return _table(patch_size, _TRANSFORMERS if naming == "transformers" else _TRANSFORMERS5)


def load_dinov2(tensors: Mapping[str, np.ndarray], model: ViT, source: str = "DINOv2") -> dict:
    """{"params": ...} for `model`; the naming is recognised by its tensors.

    Args:
      tensors: a whole backbone's, with or without registers, in any `Naming`. The mask token is
        left out: it acts in masked pre-training only.
      model: the ViT to fill.
      source: what to call the tensors in an error, e.g. the file's name.

    Raises:
      UserError: none of the namings, or a tensor is missing, unexpected or of another shape.
    """
    naming = _naming(tensors, source)
    images = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    tensors.pop(_MASK_TOKEN[naming], None)
    expected = tables.exported_shapes(lambda v: _export(v, model, naming), shapes)
    tables.check(tensors, expected, source=source)
    fused = _fuse(tensors, _FUSIONS[naming], model.depth)
    params = tables.to_ours(dinov2_table(naming, model.patch_size), fused, source=source)
    return {"params": tables.unflatten(params)}


def export_dinov2(
    variables: Mapping, model: ViT, naming: Naming = "authors"
) -> dict[str, np.ndarray]:
    """The inverse of `load_dinov2`, with a mask token of zeros, which strict loaders ask for."""
    tensors = _export(variables, model, naming)
    tensors[_MASK_TOKEN[naming]] = np.zeros((1, model.dim), np.float32)
    return tensors


def _fuse(
    tensors: Mapping[str, np.ndarray], fusions: tuple[Fusion, ...], depth: int
) -> dict[str, np.ndarray]:
    """Concatenate the parts of every fusion in each of `depth` blocks along the first axis."""
    tensors = dict(tensors)
    for parts, whole in _layers(fusions, depth):
        if parts[0] in tensors:
            tensors[whole] = np.concatenate([tensors.pop(part) for part in parts])
    return tensors


def _split(
    tensors: Mapping[str, np.ndarray], fusions: tuple[Fusion, ...], depth: int
) -> dict[str, np.ndarray]:
    """The inverse of `_fuse`."""
    tensors = dict(tensors)
    for parts, whole in _layers(fusions, depth):
        if whole in tensors:
            pieces = np.split(tensors.pop(whole), len(parts))
            tensors.update(zip(parts, pieces, strict=True))
    return tensors


def _layers(fusions, depth):
    """(names of the parts, name of the whole) of all fusions, blocks, weights and biases."""
    for fusion in fusions:
        for i in range(depth):
            for kind in ("weight", "bias"):
                parts = [f"{part.format(i=i)}.{kind}" for part in fusion.parts]
                yield parts, f"{fusion.whole.format(i=i)}.{kind}"


def _export(variables, model, naming):
    flat = tables.flatten(variables["params"])
    theirs = tables.to_theirs(dinov2_table(naming, model.patch_size), flat)
    return _split(theirs, _FUSIONS[naming], model.depth)


def _naming(tensors, source) -> Naming:
    if "cls_token" in tensors:
        return "authors"
    if "embeddings.cls_token" in tensors:
        published = any(".attention.attention." in name for name in tensors)
        return "transformers" if published else "transformers5"
    raise UserError(
        f"{source}: not the weights of DINOv2: has neither 'cls_token' (the authors' names) "
        "nor 'embeddings.cls_token' (transformers' names)"
    )


def _table(patch_size, names):
    block = names["block"]
    rules = [
        Rule(names["class_token"], "class_token"),
        Rule(names["position_table"], "position_table"),
        Rule(names["register_tokens"], "register_tokens"),
        *tables.layer(names["patch_embed"], "patch_embed", patch_layout(patch_size)),
        *tables.norm(names["norm"], "norm"),
    ]
    for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2", "mlp/w12", "mlp/w3"):
        rules += tables.layer(f"{block}.{names[layer]}", f"blocks_{{i}}/{layer}", LINEAR)
    for index in (1, 2):
        ours = f"blocks_{{i}}/norm{index}"
        rules += tables.norm(f"{block}.norm{index}", ours)
        scale = names["layer_scale"].format(index=index)
        rules.append(Rule(f"{block}.{scale}", f"blocks_{{i}}/ls{index}/scale"))
    return rules


_AUTHORS = {
    "class_token": "cls_token",
    "position_table": "pos_embed",
    "register_tokens": "register_tokens",
    "patch_embed": "patch_embed.proj",
    "norm": "norm",
    "block": "blocks.{i}",
    "attn/qkv": "attn.qkv",
    "attn/proj": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "mlp/w12": "mlp.w12",
    "mlp/w3": "mlp.w3",
    "layer_scale": "ls{index}.gamma",
}
_TRANSFORMERS = {
    "class_token": "embeddings.cls_token",
    "position_table": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "block": "encoder.layer.{i}",
    "attn/qkv": "attention.attention.query_key_value",  # after `_fuse`
    "attn/proj": "attention.output.dense",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "mlp/w12": "mlp.weights_in",
    "mlp/w3": "mlp.weights_out",
    "layer_scale": "layer_scale{index}.lambda1",
}
_TRANSFORMERS5 = {
    **_TRANSFORMERS,
    "attn/qkv": "attention.qkv_proj",  # after `_fuse`
    "attn/proj": "attention.o_proj",
    "mlp/w12": "mlp.gate_up_proj",  # after `_fuse`
    "mlp/w3": "mlp.down_proj",
}

_BLOCK = _TRANSFORMERS["block"]
_FUSIONS: dict[str, tuple[Fusion, ...]] = {
    "authors": (),
    "transformers": (
        Fusion(
            tuple(f"{_BLOCK}.attention.attention.{part}" for part in ("query", "key", "value")),
            f"{_BLOCK}.{_TRANSFORMERS['attn/qkv']}",
        ),
    ),
    "transformers5": (
        Fusion(
            tuple(f"{_BLOCK}.attention.{part}_proj" for part in ("q", "k", "v")),
            f"{_BLOCK}.{_TRANSFORMERS5['attn/qkv']}",
        ),
        Fusion(
            (f"{_BLOCK}.mlp.gate_proj", f"{_BLOCK}.mlp.up_proj"),
            f"{_BLOCK}.{_TRANSFORMERS5['mlp/w12']}",
        ),
    ),
}
_MASK_TOKEN = {
    "authors": "mask_token",
    "transformers": "embeddings.mask_token",
    "transformers5": "embeddings.mask_token",
}
