"""diffusers' AutoencoderKL as the tests' independent VAE, and its tensors under LDM names."""

import re
from collections.abc import Mapping

import numpy as np
import torch

from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL

_NAMES = (
    (r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d+)\.attentions\.(\d+)", r"encoder.down.\1.attn.\2"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)", r"decoder.up.\1.block.\2"),
    (r"decoder\.up_blocks\.(\d+)\.attentions\.(\d+)", r"decoder.up.\1.attn.\2"),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", r"decoder.up.\1.upsample"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)


def make_vae(model: AutoencoderKL) -> torch.nn.Module:
    """diffusers' module with the dimensions of ours."""
    import diffusers

    levels = len(model.multipliers)
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    for level in model.attention_levels:
        down[level], up[levels - 1 - level] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    kind, own = diffusers.AutoencoderKL, {}
    if model.patchify:
        widths = [(model.decoder_channels or model.channels) * m for m in model.multipliers]
        kind, own = diffusers.AutoencoderKLFlux2, {"decoder_block_out_channels": widths}
    vae = kind(
        **own,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=[model.channels * m for m in model.multipliers],
        layers_per_block=model.num_res_blocks,
        latent_channels=model.inner_channels,
        norm_num_groups=model.groups,
        use_quant_conv=model.quant_conv,
        use_post_quant_conv=model.quant_conv,
        mid_block_add_attention=model.middle_attention,
    )
    if model.patchify:
        del vae.bn  # the statistics of the latents, no part of the network
    return vae


def ldm_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """diffusers' tensors (or their gradients) as LDM has them.

    diffusers numbers the decoder's levels from the lowest resolution up, LDM from the highest
    down; the projections of the attention are linear layers here and 1x1 convolutions there.
    """
    levels = len({name.split(".")[2] for name in tensors if "decoder.up_blocks" in name})
    renamed = {}
    for name, array in tensors.items():
        new = re.sub(r"(up_blocks\.)(\d+)", lambda m: f"{m[1]}{levels - 1 - int(m[2])}", name)
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        linear = ".to_" in name and array.ndim == 2
        renamed[new] = array[:, :, None, None] if linear else array
    return renamed
