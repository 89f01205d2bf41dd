"""The DiT^DH under RAE's names (bytetriper/RAE), and the DDT under diffusion-bench's.

Both call the encoder's patch embedding s_embedder and the head's x_embedder, and number the head's
blocks after the encoder's. diffusion-bench keeps queries, keys and values apart, and the two halves
of SwiGLU.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import tables
from repae_jax.interop.lightningdit import BLOCK
from repae_jax.interop.sit import block_rules, final_rules
from repae_jax.interop.tables import LINEAR, Rule, layer, patch_layout
from repae_jax.models.backbones.ddt import DDT, Decoupled
from repae_jax.models.rotary import angles

CLASS_TOKEN = "cls_in_proj_enc.weight"  # a name that files of a DDT with REG have
TEXT = "ctx_embedder.proj.weight"  # a name that files of a text-to-image DDT have
# A layer here -> the layers of diffusion-bench whose outputs it concatenates, in order.
FUSED = {"attn/qkv": ("attn/q", "attn/k", "attn/v"), "mlp/w12": ("mlp/w1", "mlp/w2")}
# The layers of its blocks, in the order of PyTorch's parameters.
_SPLIT_BLOCK = (
    "norm1", "norm2", "attn.q", "attn.k", "attn.v", "attn.proj", "attn.q_norm", "attn.k_norm",
    "mlp.w1", "mlp.w2", "mlp.w3",
)  # fmt: skip


def ditdh_rules(patch_size: int) -> list[Rule]:
    """Rules for RAE's names, in the order of PyTorch's parameters."""
    return [
        Rule("pos_embed", "params/position_table"),
        *layer("x_embedder.proj", "params/head_patch_embed", patch_layout(patch_size)),
        *layer("s_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("s_projector", "params/head_condition", LINEAR),
        *_time_rules(),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        *final_rules(),
        *block_rules(BLOCK),
    ]


def ddt_rules(patch_size: int) -> list[Rule]:
    """Rules for diffusion-bench's names, in the order of PyTorch's parameters; see `FUSED`."""
    return [
        *layer("s_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("x_embedder.proj", "params/head_patch_embed", patch_layout(patch_size)),
        *layer("s_projector", "params/head_condition", LINEAR),
        *_time_rules(Rule("t_embedder.learnable_tokens", "params/learned_time_tokens")),
        Rule("ctx_embedder.learnable_tokens", "params/learned_class_tokens"),
        Rule("ctx_embedder.embedding_table.weight", "params/label_embed/embedding"),
        Rule("ctx_embedder.norm.weight", "params/text_embed/norm/scale"),
        *layer("ctx_embedder.proj", "params/text_embed/linear", LINEAR),
        *block_rules(_SPLIT_BLOCK, "adaln_modulation"),
        *final_rules("norm", "adaln_modulation"),
        *layer("final_layer.cls_linear", "params/final_layer/class_token", LINEAR),
        *_class_token_rules("enc", "class_token_embed"),
        *_class_token_rules("dec", "head_class_token_embed"),
    ]


def _class_token_rules(theirs, ours):
    """Rules of the class token's embedding before the encoder or the head."""
    return [
        *layer(f"cls_in_proj_{theirs}", f"params/{ours}/linear", LINEAR),
        Rule(f"cls_in_norm_{theirs}.weight", f"params/{ours}/norm/scale"),
    ]


def _time_rules(*learned):
    return [
        Rule("t_embedder.W", "params/time_embed/frequencies"),
        *learned,
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
    ]


def rotary_tables(model: Decoupled) -> dict[str, np.ndarray]:
    """The tables of cosines and sines in the authors' state dict, (tokens, head width) each."""
    if not model.rotary:
        return {}
    in_context = isinstance(model, DDT)
    prefix = {False: ("enc_feat_rope", "dec_feat_rope"), True: ("enc_rope", "dec_rope")}[in_context]
    of_class = bool(model.class_token_dim)
    extra = model.time_tokens + _condition_tokens(model) if in_context else 0
    found = {}
    for name, width, heads, more in (
        (prefix[0], model.hidden_size, model.num_heads, extra),
        (prefix[1], model.head_size, model.head_heads, 0),
    ):
        turns = np.pad(angles(model.grid, width // heads), ((of_class, more), (0, 0)))
        for function in (np.cos, np.sin):
            table = function(turns).repeat(2, axis=1).astype(np.float32)
            found[f"{name}.freqs_{function.__name__}"] = table
    return found


def _condition_tokens(model):
    """Tokens of the condition behind those of the time: the class's, or the text's."""
    if model.reads == ("vector",):
        return model.class_tokens
    return model.conditioner.spec()["tokens"].shape[0]


def is_ddt(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors are those of a backbone with an encoder and a head, of any code."""
    return any(str(name).endswith("s_embedder.proj.weight") for name in tensors)


def family_of(tensors: Mapping[str, Any]) -> Literal["ddt", "ditdh"]:
    """The family of the backbone whose tensors these are, if it is a DDT."""
    in_context = {"ctx_embedder.learnable_tokens", TEXT} & tensors.keys()
    return "ddt" if in_context else "ditdh"


def infer_dimensions(tensors: Mapping[str, np.ndarray], *, source: str) -> dict[str, Any]:
    """The family, "ddt" or "ditdh", and the fields that follow from its tensors.

    All but `encoder_depth` follow. `num_classes` counts every row of the label table. A
    text-to-image DDT has "text_length" and "text_width" in place of it and of `class_tokens`.

    Raises:
      UserError: the tensors are those of another code's DDT, or one that determines a dimension is
        missing.
    """
    tables.check_filled(tensors, source=source)
    if "t_embedder.W" not in tensors:
        raise UserError(
            f"{source}: without 't_embedder.W' the tensors are of the DDT of its authors "
            "(MCG-NJU/DDT), whose rotary "
            "positions, norms and modulations differ: only RAE's DiT^DH and diffusion-bench's DDT "
            "are read"
        )
    in_context = family_of(tensors) == "ddt"

    what = "a DDT of diffusion-bench" if in_context else "a DiT^DH of RAE"
    shape = functools.partial(tables.shape_of, tensors, what=what, source=source)

    width, channels, patch, _ = shape("s_embedder.proj.weight", 4)
    head_size = shape("x_embedder.proj.weight", 4)[0]
    names = ("enc_rope", "dec_rope") if in_context else ("enc_feat_rope", "dec_feat_rope")
    of_class = in_context and CLASS_TOKEN in tensors
    (_, head), (patches, wide) = (shape(f"{name}.freqs_cos", 2) for name in names)
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))}
    of_head = [i for i in blocks if shape(f"blocks.{i}.attn.proj.weight", 2)[0] == head_size]
    found = {
        "family": family_of(tensors),
        "latent_size": math.isqrt(patches - of_class) * patch,
        "latent_channels": channels,
        "patch_size": patch,
        "hidden_size": width,
        "num_heads": width // head,
        "head_size": head_size,
        "head_heads": head_size // wide,
    }
    if in_context:
        found["class_token_dim"] = shape(CLASS_TOKEN, 2)[1] if of_class else 0
        found |= _context_dimensions(tensors, shape)
        modulated = {i for i in blocks if f"blocks.{i}.adaln_modulation.1.weight" in tensors}
        of_head = modulated
    else:
        found["num_classes"] = shape("y_embedder.embedding_table.weight", 2)[0]
        found["qk_norm"] = "blocks.0.attn.q_norm.weight" in tensors
        if width == head_size:
            raise UserError(
                f"{source}: encoder and head have the same width {width}, so the weights do not "
                "determine the number of blocks of each: give a configuration"
            )
    return found | {"depth": len(blocks) - len(of_head), "head_depth": len(of_head)}


def _context_dimensions(tensors, shape):
    """The fields of the DDT's tokens of time and condition."""
    time_tokens = shape("t_embedder.learnable_tokens", 2)[0]
    if TEXT in tensors:
        rows, patches = (shape(f"{name}_rope.freqs_cos", 2)[0] for name in ("enc", "dec"))
        text = {"text_length": rows - patches - time_tokens, "text_width": shape(TEXT, 2)[1]}
        return {"time_tokens": time_tokens, **text}
    return {
        "time_tokens": time_tokens,
        "class_tokens": shape("ctx_embedder.learnable_tokens", 2)[0],
        "num_classes": shape("ctx_embedder.embedding_table.weight", 2)[0],
    }


def text_of(tensors: Mapping[str, np.ndarray]) -> str:
    """A DDT's dimensions in words, or the reason why its tensors have none."""
    try:
        d = infer_dimensions(tensors, source="DDT")
    except UserError as error:
        return str(error).removeprefix("DDT: ")
    except (KeyError, IndexError, ValueError, AttributeError, ZeroDivisionError):
        return "damaged: its tensors have not the shapes of a DDT's"
    name = {"ddt": "diffusion-bench's DDT", "ditdh": "RAE's DiT^DH"}[d["family"]]
    side = d["latent_size"]
    if "text_width" in d:
        condition = f"text of {d['text_length']} tokens of width {d['text_width']}"
    else:
        condition = f"{d['num_classes']} rows of labels"
    return (
        f"{name}: encoder of width {d['hidden_size']}, depth {d['depth']}, {d['num_heads']} heads; "
        f"head of width {d['head_size']}, depth {d['head_depth']}, {d['head_heads']} heads; patch "
        f"{d['patch_size']}, latents {side} x {side} x {d['latent_channels']}, "
        f"{condition}"
    )
