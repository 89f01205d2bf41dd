"""Small ViTs of other implementations with random weights: timm's and transformers'."""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch
from parity import randomise, shrink

from repae_jax.interop.files import read_tensors
from repae_jax.models.encoders.vit import ViT, create_vit

PATCH, GRID, DIM, DEPTH, HEADS = 4, 4, 24, 2, 3
PRESETS = ("dino-b", "mocov3-b", "mae-l", "ijepa-h", "clip-l")


class Reference(NamedTuple):
    """A torch module, and how it gives (patch tokens, class token) for images (B, C, H, W)."""

    module: torch.nn.Module
    tokens: Callable


def small(preset: str, **changes) -> ViT:
    """The preset's family, as small as these references."""
    sizes = dict(patch_size=PATCH, native_grid=GRID, dim=DIM, depth=DEPTH, num_heads=HEADS)
    return create_vit(preset, **sizes | changes)


def timm_reference(preset: str, patch: int = PATCH, grid: int = GRID, dim: int = DIM) -> Reference:
    """timm's ViT, which resamples its table by `resample_abs_pos_embed` as the original does."""
    timm = pytest.importorskip("timm")
    # What timm's own builders of these families say: vit_huge_patch14_gap_224 (I-JEPA) and
    # vit_large_patch14_clip_quickgelu_224 (CLIP).
    changes = {
        "dinov2-b": {"init_values": 1.0},
        "ijepa-h": {"class_token": False, "global_pool": "avg", "fc_norm": False},
        "clip-l": {
            "pre_norm": True,
            "norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-5),
            "act_layer": timm.layers.get_act_layer("quick_gelu"),
        },
    }
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=patch * grid, patch_size=patch, embed_dim=dim, depth=DEPTH, num_heads=HEADS,
        num_classes=0, dynamic_img_size=True, **changes.get(preset, {}),
    )  # fmt: skip
    if preset in ("mae-l", "clip-l"):
        module.norm = torch.nn.Identity()
    _randomise(module, module.patch_embed, module.pos_embed)
    prefix = 0 if preset == "ijepa-h" else 1

    def tokens(x):
        out = module.forward_features(x)
        return out[:, prefix:], out[:, 0] if prefix else None

    return Reference(module.eval(), tokens)


def openai_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's names of CLIP's image tower as OpenAI's, without a prefix."""
    renamed = {}
    for name, array in tensors.items():
        for a, b in (
            ("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2"),
            ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("fc1", "c_fc"),
            ("fc2", "c_proj"), ("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"),
        ):  # fmt: skip
            name = name.replace(a, b)
        renamed[name] = array
    renamed["class_embedding"] = renamed.pop("cls_token")[0, 0]
    renamed["positional_embedding"] = renamed.pop("pos_embed")[0]
    for name in ("weight", "bias"):  # which the file has, and no token passes
        renamed[f"ln_post.{name}"] = np.ones(DIM, np.float32)
    return renamed


def transformers_reference(preset: str) -> Reference:
    """transformers' model of that family, with its final norm."""
    import transformers

    sizes = dict(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=4 * DIM, image_size=PATCH * GRID, patch_size=PATCH,
    )  # fmt: skip
    if preset == "clip-l":
        module = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    else:
        # the published configurations of these say 1e-12; the papers' own code says 1e-6
        sizes["layer_norm_eps"] = 1e-6
        kind = {"mae-l": "ViTMAE", "ijepa-h": "IJepa"}.get(preset, "ViT")
        config = getattr(transformers, f"{kind}Config")(**sizes)
        if kind == "ViTMAE":
            config.mask_ratio = 0.0
        module = getattr(transformers, f"{kind}Model")(config)
    embeddings = module.get_submodule("embeddings")
    if preset == "clip-l":
        _randomise(module, embeddings.patch_embedding, embeddings.position_embedding.weight)
    else:
        _randomise(module, embeddings.patch_embeddings, embeddings.position_embeddings)

    def tokens(x):
        order = {}
        if preset == "mae-l":  # its shuffle sorts by this noise, and so keeps the order
            order["noise"] = torch.arange(GRID**2).float().expand(len(x), -1)
        output = module(x, output_hidden_states=preset == "clip-l", **order)
        out = output.hidden_states[-1] if preset == "clip-l" else output.last_hidden_state
        return (out, None) if preset == "ijepa-h" else (out[:, 1:], out[:, 0])

    return Reference(module.eval(), tokens)


def _randomise(module, patch_embed, positions):
    """Every weight random; inputs of the first norm as small as its epsilon shows in."""
    randomise(module)
    shrink(patch_embed, 0.02)
    with torch.no_grad():
        positions.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))


def saved_by(module) -> dict:
    """What transformers writes to disk, read as our users read it."""
    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        return read_tensors(pathlib.Path(folder) / "model.safetensors")
