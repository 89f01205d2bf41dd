"""The published ViTs: name -> fields of `ViT`."""

import math

# The published sizes under their authors' names. `native_grid` is the grid of the published
# position table: pre-training ended at 518 pixels for DINOv2 (patch 14), at 224 for most others.
_TINY = {"dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"dim": 1024, "depth": 24, "num_heads": 16}
_HUGE = {"dim": 1280, "depth": 32, "num_heads": 16}
_GIANT = {"dim": 1536, "depth": 40, "num_heads": 24, "swiglu": True}

_DINOV2 = {"family": "dinov2", "patch_size": 14, "native_grid": 37}
_PLAIN = {"patch_size": 16, "native_grid": 14, "layer_scale": None, "preprocessing": "imagenet"}
_DINO = {**_PLAIN, "family": "dino"}
_MOCOV3 = {**_PLAIN, "family": "mocov3"}
# With MAE and CLIP, REPA and REPA-E align with the tokens before the final norm.
_MAE = {**_PLAIN, "family": "mae", "final_norm": False}
_IJEPA = {
    **_PLAIN,
    "family": "ijepa",
    "preprocessing": "dinov2",
    "patch_size": 14,
    "native_grid": 16,
    "class_token": False,
}
_CLIP = {
    "family": "clip",
    "preprocessing": "clip",
    "patch_size": 14,
    "native_grid": 16,
    "layer_scale": None,
    "patch_bias": False,
    "pre_norm": True,
    "final_norm": False,
    "activation": "quick_gelu",
    "norm_epsilon": 1e-5,
}
# SigLIP and SigLIP 2 (their checkpoints of one resolution): 16 x 16 patches, no class token.
_SIGLIP = {
    "family": "siglip",
    "preprocessing": "imagenet",
    "patch_size": 16,
    "native_grid": 16,
    "layer_scale": None,
    "class_token": False,
    "activation": "tanh_gelu",
    "table_filter": "bicubic",
}
_SO400M = {"dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": math.nextafter(4304 / 1152, 4)}
_WEBSSL = {  # DINOv2's ViT, as transformers computes it, with SwiGLU at every size
    **_DINOV2,
    "native_grid": 16,
    "swiglu": True,
    "table_filter": "bicubic",
}
_DINOV3 = {
    "family": "dinov3",
    "preprocessing": "imagenet",
    "patch_size": 16,
    "native_grid": 16,
    "num_registers": 4,
    "rope": "dinov3",
    "norm_epsilon": 1e-5,
}
# iREPA aligns with PE's tokens before the final norm, which Spatial and Lang do not have.
_PE = {
    "family": "pe",
    "preprocessing": "pe",
    "patch_size": 14,
    "native_grid": 32,
    "layer_scale": None,
    "patch_bias": False,
    "pre_norm": True,
    "final_norm": False,
    "norm_epsilon": 1e-5,
    "rope": "pe",
    "table_filter": "bilinear",
}
_PE16 = {**_PE, "patch_size": 16, "preprocessing": "native"}  # of 256 pixels, which stay 256
_PE_G = {"dim": 1536, "num_heads": 16, "mlp_ratio": 8960 / 1536, "class_token": False}
_PE_SCALED = {"layer_scale": 0.1}

VIT_CONFIGS: dict[str, dict] = {
    "dinov2-s": {**_DINOV2, **_SMALL},
    "dinov2-b": {**_DINOV2, **_BASE},
    "dinov2-l": {**_DINOV2, **_LARGE},
    "dinov2-g": {**_DINOV2, **_GIANT},
    "dinov2-s-reg": {**_DINOV2, **_SMALL, "num_registers": 4},
    "dinov2-b-reg": {**_DINOV2, **_BASE, "num_registers": 4},
    "dinov2-l-reg": {**_DINOV2, **_LARGE, "num_registers": 4},
    "dinov2-g-reg": {**_DINOV2, **_GIANT, "num_registers": 4},
    "dino-b": {**_DINO, **_BASE},
    "mocov3-s": {**_MOCOV3, **_SMALL, "num_heads": 12},  # twice the heads of any other ViT-S
    "mocov3-b": {**_MOCOV3, **_BASE},
    "mocov3-l": {**_MOCOV3, **_LARGE},
    "mae-l": {**_MAE, **_LARGE},
    "ijepa-h": {**_IJEPA, **_HUGE},
    "clip-l": {**_CLIP, **_LARGE},
    "dinov3-s": {**_DINOV3, **_SMALL},
    "dinov3-splus": {**_DINOV3, **_SMALL, "swiglu": True, "mlp_ratio": 6.0},
    "dinov3-b": {**_DINOV3, **_BASE},
    "dinov3-l": {**_DINOV3, **_LARGE},
    "dinov3-hplus": {**_DINOV3, **_HUGE, "num_heads": 20, "swiglu": True, "mlp_ratio": 6.0},
    "dinov3-7b": {
        **_DINOV3, "dim": 4096, "depth": 40, "num_heads": 32, "swiglu": True, "mlp_ratio": 3.0,
    },
    "siglip-b": {**_SIGLIP, **_BASE},
    "siglip-l": {**_SIGLIP, **_LARGE},
    "siglip-so400m": {**_SIGLIP, **_SO400M, "patch_size": 14, "preprocessing": "dinov2"},
    "siglip2-b": {**_SIGLIP, **_BASE},
    "siglip2-l": {**_SIGLIP, **_LARGE},
    "siglip2-so400m": {**_SIGLIP, **_SO400M},
    "siglip2-g": {**_SIGLIP, "dim": 1536, "depth": 40, "num_heads": 16},
    "webssl-300m": {**_WEBSSL, "dim": 1024, "depth": 24, "num_heads": 16},
    "webssl-1b": {**_WEBSSL, "dim": 1536, "depth": 40, "num_heads": 24},
    "webssl-2b": {**_WEBSSL, "dim": 2688, "depth": 24, "num_heads": 21},
    "webssl-3b": {**_WEBSSL, "dim": 3072, "depth": 26, "num_heads": 24},
    "webssl-5b": {**_WEBSSL, "dim": 3584, "depth": 32, "num_heads": 28},
    "webssl-7b": {**_WEBSSL, "dim": 4096, "depth": 32, "num_heads": 32},
    "pe-core-t": {**_PE16, **_TINY, "native_grid": 24},
    "pe-core-s": {**_PE16, **_SMALL, "native_grid": 24},
    "pe-core-b": {**_PE16, **_BASE, "native_grid": 14},
    "pe-core-l": {**_PE, **_LARGE, "native_grid": 24},
    "pe-core-g": {**_PE, **_PE_G, "depth": 50},
    "pe-spatial-t": {**_PE16, **_TINY},
    "pe-spatial-s": {**_PE16, **_SMALL},
    "pe-spatial-b": {**_PE16, **_BASE},
    "pe-spatial-l": {**_PE, **_LARGE},
    "pe-spatial-g": {**_PE, **_PE_G, "depth": 50, **_PE_SCALED},
    "pe-lang-l": {**_PE, **_LARGE, "depth": 23, **_PE_SCALED},
    "pe-lang-g": {**_PE, **_PE_G, "depth": 47, **_PE_SCALED},
}  # fmt: skip
