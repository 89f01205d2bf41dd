"""The schema of config.json files of diffusers and transformers, for the keys that are read."""

from typing import Any, Required

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.utils.schema import Side, Text, Width, check_schema, each, real, whole

_Channels = whole(1, 4096)  # channels of images or latents
_Number = float  # a latent statistic; `latent_statistics` checks its range
_Numbers = each(_Number, 1, 4096)


class _Header(TypedDict, total=False):
    """The keys that identify the class: diffusers' and transformers'."""

    _class_name: Text | None
    model_type: Text | None


class _AutoencoderKL(TypedDict, total=False):
    in_channels: _Channels
    out_channels: _Channels
    down_block_types: each(Text, 1, 8)
    up_block_types: each(Text, 1, 8)
    block_out_channels: each(Width, 1, 8)
    layers_per_block: whole(1, 16)
    act_fn: Text
    latent_channels: _Channels
    norm_num_groups: Width
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool
    scaling_factor: _Number | None
    shift_factor: _Number | None
    latents_mean: _Numbers | None
    latents_std: _Numbers | None


class _AutoencoderKLFlux2(_AutoencoderKL, total=False):
    decoder_block_out_channels: each(Width, 1, 8) | None
    batch_norm_eps: real(0, 1)
    batch_norm_momentum: real(0, 1) | None
    patch_size: each(whole(1, 16), 2, 2)


class _AutoencoderKLQwenImage(TypedDict, total=False):
    base_dim: Width
    z_dim: _Channels
    dim_mult: each(whole(1, 64), 1, 8)
    num_res_blocks: whole(1, 16)
    attn_scales: each(real(0), 0, 8)
    temperal_downsample: each(bool, 0, 8)
    input_channels: _Channels
    dropout: real(0, 1)
    latents_mean: _Numbers | None
    latents_std: _Numbers | None


_Kinds = Text | each(Text, 2, 8)  # of all levels, or of each


class _AutoencoderDC(TypedDict, total=False):
    in_channels: _Channels
    latent_channels: _Channels
    attention_head_dim: Width
    encoder_block_types: _Kinds
    decoder_block_types: _Kinds
    encoder_block_out_channels: each(Width, 2, 8)
    decoder_block_out_channels: each(Width, 2, 8)
    encoder_layers_per_block: each(whole(0, 32), 2, 8)
    decoder_layers_per_block: each(whole(0, 32), 2, 8)
    encoder_qkv_multiscales: each(each(whole(1, 31), 0, 4), 2, 8)
    decoder_qkv_multiscales: each(each(whole(1, 31), 0, 4), 2, 8)
    upsample_block_type: Text
    downsample_block_type: Text
    decoder_norm_types: _Kinds
    decoder_act_fns: _Kinds
    encoder_out_shortcut: bool
    decoder_in_shortcut: bool
    decoder_conv_act_fn: Text
    scaling_factor: _Number | None
    latents_mean: _Numbers | None
    latents_std: _Numbers | None


class _AutoencoderKLWan(_AutoencoderKLQwenImage, total=False):
    decoder_base_dim: Width | None
    is_residual: bool
    in_channels: _Channels
    out_channels: _Channels
    patch_size: whole(1, 16) | None
    scale_factor_temporal: whole(1, 256) | None
    scale_factor_spatial: whole(1, 256) | None


# per channel, or per channel, row and column
_Positions = _Numbers | each(each(each(_Number, 1, 1024), 1, 1024), 1, 4096)


class _AutoencoderRAE(TypedDict, total=False):
    encoder_type: Text
    encoder_hidden_size: _Channels
    encoder_patch_size: whole(1, 256)
    encoder_num_hidden_layers: whole(1, 256)
    decoder_hidden_size: Width
    decoder_num_hidden_layers: whole(1, 256)
    decoder_num_attention_heads: whole(1, 1024)
    decoder_intermediate_size: Width
    patch_size: whole(1, 256)
    encoder_input_size: Side
    image_size: Side | None
    num_channels: whole(3, 3)
    encoder_norm_mean: each(_Number, 3, 3) | None
    encoder_norm_std: each(real(0), 3, 3) | None
    latents_mean: _Positions | None
    latents_std: _Positions | None
    noise_tau: real(0)
    reshape_to_2d: bool
    use_encoder_loss: bool
    scaling_factor: _Number


class _RepaeRAE(_AutoencoderRAE, total=False):
    encoder_intermediate_size: Required[Width]
    encoder_layers: each(whole(0, 255), 0, 256)
    normalized_pixels: bool
    statistics_shape: each(whole(1, 4096), 1, 3) | None


class _DiT(TypedDict, total=False):
    num_attention_heads: whole(1, 1024)
    attention_head_dim: whole(1, 1024)
    in_channels: _Channels
    out_channels: _Channels | None
    num_layers: whole(1, 256)
    attention_bias: bool
    sample_size: whole(1, 4096)
    patch_size: whole(1, 64)
    activation_fn: Text
    num_embeds_ada_norm: whole(1, 2**20)
    norm_type: Text
    norm_elementwise_affine: bool
    norm_eps: real(0, 1)


_CLASSES = {
    "AutoencoderDC": _AutoencoderDC,
    "AutoencoderKL": _AutoencoderKL,
    "AutoencoderKLFlux2": _AutoencoderKLFlux2,
    "AutoencoderKLQwenImage": _AutoencoderKLQwenImage,
    "AutoencoderKLWan": _AutoencoderKLWan,
    "AutoencoderRAE": _AutoencoderRAE,
    "RepaeRAE": _RepaeRAE,
    "DiTTransformer2DModel": _DiT,
    "Transformer2DModel": _DiT,
}


def check_config(config: Any, source: str) -> dict[str, Any]:
    """Return a config.json's content unchanged if its keys have valid values.

    The bounds above limit the size of a network that is built from them.

    Raises:
      UserError: the content is not an object, or a key has another type or is out of range.
    """
    check_schema(config, _Header, source=source)
    if schema := _CLASSES.get(config.get("_class_name")):
        check_schema(config, schema, source=source)
    return config
