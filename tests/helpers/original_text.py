"""The originals' text-to-image backbones, from checkouts of their code."""

import importlib
import os
import pathlib
import sys
import types

from checkouts import module_of
from original_ddt import BENCH, original_ddt
from original_ddt import REASONS as DDT_REASONS
from torch import nn

FUSE_DIT = os.environ.get("FUSE_DIT_ORIGINAL")
REPA = os.environ.get("REPA_ORIGINAL")
CHECKOUTS = {"fusedit": FUSE_DIT, "mmdit": REPA, "ddt": BENCH}
REASONS = {
    "fusedit": "set FUSE_DIT_ORIGINAL to a checkout of End2End-Diffusion/fuse-dit (it needs "
    "diffusers, transformers, einops)",
    "mmdit": "set REPA_ORIGINAL to a checkout of sihyun-yu/REPA (it needs transformers, einops)",
    "ddt": DDT_REASONS["ddt"],
}


def fuse_dit(
    *, hidden_size, depth, num_heads, kv_heads, head_width, mlp_width, text_width, **sizes
):
    """fuse-dit's `DiT` with the options of its `e2e-vae` configurations."""
    from transformers import GemmaConfig

    models, configs = _fuse_dit_modules()
    base = GemmaConfig(
        hidden_size=hidden_size, num_attention_heads=num_heads, num_key_value_heads=kv_heads,
        head_dim=head_width, intermediate_size=mlp_width, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    base.rope_theta = 1e4  # where transformers no longer has it
    config = configs.DiTConfig(
        base_config=base, dit_hidden_size=hidden_size, dit_num_hidden_layers=depth,
        in_channels=sizes["channels"], out_channels=sizes["channels"], pos_embed="ape",
        patch_size=sizes["patch_size"], qk_norm=True, text_hidden_size=text_width,
    )  # fmt: skip
    return models.DiT(config)


def fuse_dit_of(folder):
    """fuse-dit's `DiT` of a checkpoint's config.json, as its scripts make it."""
    models, configs = _fuse_dit_modules()
    config = configs.DiTConfig.from_pretrained(folder)
    config.base_config.rope_theta = 1e4  # where transformers no longer has it
    return models.DiT(config)


def _fuse_dit_modules():
    """Its `diffusion.models` and `diffusion.configs`."""
    package = types.ModuleType("diffusion")  # no checkout's folder is on the path
    package.__path__ = [str(pathlib.Path(FUSE_DIT) / "diffusion")]
    before = set(sys.modules)
    sys.modules["diffusion"] = package
    try:
        models = importlib.import_module("diffusion.models")
        configs = importlib.import_module("diffusion.configs")
    finally:
        for name in sys.modules.keys() - before:
            if name.partition(".")[0] == "diffusion":
                del sys.modules[name]
    # transformers has since changed its arguments; with a table of positions nothing calls it
    models.GemmaRotaryEmbedding = lambda *sizes: nn.Identity()
    return models, configs


def mmdit(*, depth, teacher_dims, encoder_depth, projector_dim, size, channels, patch_size, **_):
    """REPA's `MMDiT`, whose widths follow from its depth and whose text is 768 wide."""
    models = module_of(pathlib.Path(REPA) / "models" / "mmdit.py", "repa_mmdit")
    return models.MMDiT(
        input_size=size, patch_size=patch_size, in_channels=channels, depth=depth,
        z_dims=list(teacher_dims), encoder_depth=encoder_depth, projector_dim=projector_dim,
    )  # fmt: skip


def ddt(*, text_length, text_width, **config):
    """diffusion-bench's DDT with text."""
    return original_ddt(
        "ddt", class_tokens=text_length, condition_type="text", context_dim=text_width, **config
    )


MAKE = {"fusedit": fuse_dit, "mmdit": mmdit, "ddt": ddt}
