"""Small PE weights under their authors' names, and the tokens that timm makes of them."""

import functools

import numpy as np
import torch
from torch_vits import small

from repae_jax.models.encoders.vit import ViT

PATCH, GRID, DIM, DEPTH, HEADS = 4, 4, 24, 2, 3
POOLED, PROBE = 16, 8  # widths of the pooling's projection, and of the text tower
KINDS = {  # -> the preset, its differences from the small sizes of `torch_vits`
    "core": ("pe-core-l", {}),
    "spatial": ("pe-spatial-l", {}),
    "lang": ("pe-lang-l", {}),
    "giant": ("pe-spatial-g", {}),
}


def small_pe(kind: str, **changes) -> ViT:
    """The preset of a kind in small."""
    return small(KINDS[kind][0], **changes)


def pe_tensors(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a kind; those of "core" with their text tower.

    The inputs of the first norm are small, so that its epsilon shows.
    """
    rng = np.random.default_rng(seed)
    hidden = int(DIM * 8960 / 1536) if kind == "giant" else 4 * DIM
    shapes = {"conv1.weight": (DIM, 3, PATCH, PATCH)}
    if kind != "giant":
        shapes["class_embedding"] = (DIM,)
    shapes["positional_embedding"] = (GRID**2 + (kind != "giant"), DIM)
    shapes |= _tower(DIM, hidden, scaled=kind in ("lang", "giant")) | _norm("ln_pre", DIM)
    if kind == "core":
        shapes |= _norm("ln_post", DIM) | {"proj": (DIM, POOLED)} | _pooling()
    tensors = _random(shapes, rng)
    for name in ("conv1.weight", "class_embedding", "positional_embedding"):
        if name in tensors:
            tensors[name] = (0.02 * rng.normal(size=shapes[name])).astype(np.float32)
    if kind != "core":
        return tensors
    text = {"positional_embedding": (5, PROBE), "token_embedding.weight": (7, PROBE)}
    text |= {"text_projection": (PROBE, POOLED), "logit_scale": ()}
    text |= _norm("ln_final", PROBE) | _tower(PROBE, 4 * PROBE, scaled=False, depth=DEPTH + 1)
    return _random(text, rng) | {f"visual.{name}": array for name, array in tensors.items()}


def timm_tokens(kind, leaves, x, grid):
    """(patch tokens, class token or None) by timm, differentiable by `leaves`.

    timm renames the tensors; the table is resampled here, as timm resamples its tables otherwise.

    Args:
      kind: of `KINDS`.
      leaves: torch tensors under their authors' names.
      x: (B, 3, H, W).
      grid: its patches, rows and columns.
    """
    from timm.models import eva

    module = _timm_model(kind, grid)
    prefix = "visual." if kind == "core" else ""
    tensors = eva._convert_pe(leaves, module, prefix=prefix)
    first = int(kind != "giant")
    if grid != (GRID, GRID):
        table = tensors["pos_embed"][:, first:].reshape(1, GRID, GRID, DIM).permute(0, 3, 1, 2)
        table = torch.nn.functional.interpolate(table, grid, mode="bilinear", align_corners=False)
        table = table.flatten(2).transpose(1, 2)
        tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :first], table], 1)
    used = dict(module.named_parameters())
    assert set(used) <= set(tensors)
    assert all(used[name].shape == tensors[name].shape for name in used)
    tokens = torch.func.functional_call(module, {name: tensors[name] for name in used}, (x,))
    return tokens[:, first:], tokens[:, 0] if first else None


def timm_full_size(name: str) -> torch.nn.Module:
    """timm's model of a published size, such as "core_large_patch14_336", without memory."""
    import timm

    with torch.device("meta"):
        return timm.create_model(f"vit_pe_{name}", num_classes=0)


@functools.cache
def _timm_model(kind, grid):
    """It ends before the final norm, and pools nothing."""
    from timm.models import eva

    class_token = kind != "giant"
    model = eva.Eva(
        img_size=(PATCH * grid[0], PATCH * grid[1]), patch_size=PATCH, embed_dim=DIM, depth=DEPTH,
        num_heads=HEADS, mlp_ratio=8960 / 1536 if kind == "giant" else 4.0, num_classes=0,
        global_pool="", attn_type="rope", class_token=class_token, use_rot_pos_emb=True,
        rope_grid_offset=float(class_token), rope_grid_indexing="xy",
        use_pre_transformer_norm=True, use_post_transformer_norm=False, use_fc_norm=False,
        init_values=0.1 if kind in ("lang", "giant") else None,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    return model.eval()


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _tower(width, hidden, scaled, depth=DEPTH):
    shapes = {}
    for i in range(depth):
        block = f"transformer.resblocks.{i}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        for layer, outputs, inputs in (
            ("attn.out_proj", width, width), ("mlp.c_fc", hidden, width),
            ("mlp.c_proj", width, hidden),
        ):  # fmt: skip
            shapes |= {f"{block}.{layer}.weight": (outputs, inputs)}
            shapes |= {f"{block}.{layer}.bias": (outputs,)}
        shapes |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
        if scaled:
            shapes |= {f"{block}.ls_1.gamma": (width,), f"{block}.ls_2.gamma": (width,)}
    return shapes


def _pooling():
    shapes = {"probe": (1, 1, DIM), "attn.in_proj_weight": (3 * DIM, DIM)}
    shapes |= {"attn.in_proj_bias": (3 * DIM,), "attn.out_proj.weight": (DIM, DIM)}
    shapes |= {"attn.out_proj.bias": (DIM,), "mlp.c_fc.weight": (4 * DIM, DIM)}
    shapes |= {"mlp.c_fc.bias": (4 * DIM,), "mlp.c_proj.weight": (DIM, 4 * DIM)}
    shapes |= {"mlp.c_proj.bias": (DIM,)} | _norm("layernorm", DIM)
    return {f"attn_pool.{name}": shape for name, shape in shapes.items()}


def _random(shapes, rng):
    """Weights N(0, 1 / fan_in), biases N(0, 0.1^2), scales of norms and layers N(1, 0.2^2)."""
    tensors = {}
    for name, shape in shapes.items():
        noise = rng.normal(size=shape).astype(np.float32)
        if "gamma" in name or (len(shape) == 1 and name.endswith("weight")):
            tensors[name] = 1 + 0.2 * noise
        elif len(shape) < 2:
            tensors[name] = np.asarray(0.1 * noise, np.float32)
        else:
            tensors[name] = noise / np.float32(np.prod(shape[1:])) ** np.float32(0.5)
    return tensors
