"""The original REPA-E's names for the SiT (with its BatchNorm) and the VAE."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.interop.tables import (
    CONV,
    LINEAR,
    Rule,
    check,
    exported_shapes,
    flatten,
    layer,
    norm,
    patch_layout,
    to_ours,
    to_theirs,
    unflatten,
    without,
)
from repae_jax.models.autoencoder_kl import AutoencoderKL
from repae_jax.models.sit import SiT

IGNORED = (r".*\.num_batches_tracked",)


def sit_rules(patch_size: int) -> list[Rule]:
    """The SiT: parameters, position table, and the latents' running statistics (`bn`)."""
    block = ("blocks.{i}", "params/blocks_{i}")
    head = ("projectors.{k}", "params/projectors_{k}")
    return [
        *layer("x_embedder.proj", "params/patch_embed", patch_layout(patch_size)),
        *layer("t_embedder.mlp.0", "params/time_embed/fc1", LINEAR),
        *layer("t_embedder.mlp.2", "params/time_embed/fc2", LINEAR),
        Rule("y_embedder.embedding_table.weight", "params/label_embed/embedding"),
        Rule("pos_embed", "constants/position_table"),
        *layer(f"{block[0]}.attn.qkv", f"{block[1]}/attn/qkv", LINEAR),
        *layer(f"{block[0]}.attn.proj", f"{block[1]}/attn/proj", LINEAR),
        *norm(f"{block[0]}.attn.q_norm", f"{block[1]}/attn/q_norm"),
        *norm(f"{block[0]}.attn.k_norm", f"{block[1]}/attn/k_norm"),
        *layer(f"{block[0]}.mlp.fc1", f"{block[1]}/mlp/fc1", LINEAR),
        *layer(f"{block[0]}.mlp.fc2", f"{block[1]}/mlp/fc2", LINEAR),
        *layer(f"{block[0]}.adaLN_modulation.1", f"{block[1]}/modulation", LINEAR),
        *layer(f"{head[0]}.0", f"{head[1]}/fc1", LINEAR),
        *layer(f"{head[0]}.2", f"{head[1]}/fc2", LINEAR),
        *layer(f"{head[0]}.4", f"{head[1]}/fc3", LINEAR),
        *layer("final_layer.linear", "params/final_layer/linear", LINEAR),
        *layer("final_layer.adaLN_modulation.1", "params/final_layer/modulation", LINEAR),
        Rule("bn.running_mean", "batch_stats/mean"),
        Rule("bn.running_var", "batch_stats/var"),
    ]


def vae_rules() -> list[Rule]:
    """AutoencoderKL under the names of the LDM family."""
    rules = [
        *layer("quant_conv", "quant", CONV),
        *layer("post_quant_conv", "post_quant", CONV),
        *layer("encoder.down.{i}.downsample.conv", "encoder/downsample_{i}", CONV),
        *layer("decoder.up.{i}.upsample.conv", "decoder/upsample_{i}", CONV),
    ]
    for side, level in (("encoder", "down"), ("decoder", "up")):
        rules += [
            *layer(f"{side}.conv_in", f"{side}/conv_in", CONV),
            *layer(f"{side}.conv_out", f"{side}/conv_out", CONV),
            *norm(f"{side}.norm_out", f"{side}/norm_out"),
        ]
        here, ours = f"{side}.{level}.{{i}}", f"{side}/{level}_{{i}}"
        rules += _block_rules(f"{here}.block.{{j}}", f"{ours}/block_{{j}}")
        rules += _attention_rules(f"{here}.attn.{{j}}", f"{ours}/attn_{{j}}")
        rules += _block_rules(f"{side}.mid.block_{{i}}", f"{side}/mid/block_{{i}}")
        rules += _attention_rules(f"{side}.mid.attn_{{i}}", f"{side}/mid/attn_{{i}}")
    return rules


def load_sit(tensors: Mapping[str, np.ndarray], sit: SiT, *, source: str = "checkpoint") -> dict:
    """A SiT state dict (`model` or `ema` of a checkpoint) as `params`, `constants`, `batch_stats`.

    `batch_stats` are LatentNorm's: mean (c,) and var (c,).

    Raises:
      UserError: a tensor is missing, extra or misshapen.
    """
    side = sit.latent_size
    latents = jnp.zeros((1, side, side, sit.latent_channels))
    time, labels = jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(sit.init, jax.random.key(0), latents, time, labels)
    statistics = jax.ShapeDtypeStruct((sit.latent_channels,), jnp.float32)
    shapes = {**shapes, "batch_stats": {"mean": statistics, "var": statistics}}
    return _loaded(sit_rules(sit.patch_size), tensors, shapes, source)


def load_vae(
    tensors: Mapping[str, np.ndarray], vae: AutoencoderKL, *, source: str = "checkpoint"
) -> dict:
    """A VAE state dict under LDM names as the parameters of `vae`.

    Raises:
      UserError: a tensor is missing, extra or misshapen.
    """
    images = jnp.zeros((1, vae.factor, vae.factor, vae.image_channels))
    noise = jnp.zeros((1, 1, 1, vae.latent_channels))
    shapes = jax.eval_shape(vae.init, jax.random.key(0), images, noise)["params"]
    return _loaded(vae_rules(), tensors, shapes, source)


def _block_rules(theirs, ours):
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *layer(f"{theirs}.conv1", f"{ours}/conv1", CONV),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *layer(f"{theirs}.conv2", f"{ours}/conv2", CONV),
        *layer(f"{theirs}.nin_shortcut", f"{ours}/shortcut", CONV),
    ]


def _attention_rules(theirs, ours):
    rules = norm(f"{theirs}.norm", f"{ours}/norm")
    for name in ("q", "k", "v", "proj_out"):
        rules += layer(f"{theirs}.{name}", f"{ours}/{name}", CONV)
    return rules


def _loaded(rules, tensors, shapes, source):
    tensors = without(tensors, IGNORED)
    expected = exported_shapes(lambda variables: to_theirs(rules, flatten(variables)), shapes)
    check(tensors, expected, source=source)
    flat = to_ours(rules, tensors, source=source)
    return unflatten({name: np.ascontiguousarray(array) for name, array in flat.items()})
