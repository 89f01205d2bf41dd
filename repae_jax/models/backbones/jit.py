"""JiT, "just image transformers" (arXiv 2511.13720): large patches of pixels, predicting the image.

With pixels as latents (`tokenizer(family="pixels")`) it is the published model.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.backbones import transformer
from repae_jax.models.backbones.base import BackboneOutput, of_predicted_data
from repae_jax.models.backbones.blocks import normal_002, xavier
from repae_jax.models.backbones.transformer import (
    SIZES,
    Transformer,
    defaults_of,
)
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import Dense
from repae_jax.utils.schema import whole

# name -> (hidden_size, depth, num_heads, bottleneck, context_start)
_SIZES = {
    "B": (768, 12, 12, 128, 4),
    "L": (1024, 24, 16, 128, 8),
    "H": (1280, 32, 16, 256, 10),
}
PRESETS = {
    f"JiT-{size}/{patch}": dict(
        hidden_size=width, depth=depth, num_heads=heads, patch_size=patch, bottleneck=bottleneck,
        context_start=start,
    )
    for size, (width, depth, heads, bottleneck, start) in _SIZES.items()
    for patch in (16, 32)
}  # fmt: skip


class PatchEmbedding(nn.Module):
    """A linear map from patches to `bottleneck` features without a bias, and one to D features."""

    bottleneck: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """(B, N, p * p * c) -> (B, N, D)."""
        options = dict(dtype=self.dtype, kernel_init=xavier)
        h = Dense(self.bottleneck, biased=False, name="proj1", **options)(patches)
        return Dense(self.features, name="proj2", **options)(h)


class BlockCondition(NamedTuple):
    """What the condition gives to the blocks."""

    vector: jax.Array  # (B, D), which modulates them
    context: jax.Array | None  # (B, context_tokens, D), which stand behind the patches' tokens


class JiT(Transformer):
    """The transformer of LightningDiT on patches of pixels, which predicts the clean image.

    `context_tokens` tokens of the condition, its vector plus a learned table, join the patches'
    tokens before the block `context_start`, counted from 0, and leave after the last one. They have
    no rotary position, so their order does not matter: here they follow the patches, and in the
    original they precede them. `tokens`, `projections` and `hidden` are of the patches alone.

    The network inside sees the time 1 - t and predicts the data x. The module returns the velocity
    (x_t - x) / max(t, least_time), by which samplers and losses stay those of other backbones;
    `config.objective.least_time` bounds the target's denominator in the same way.

    JiT-H was published with a dropout of 0.2 in the middle half of its blocks. This module has
    none, because it uses no randomness: evaluation is the same, and training is that of B and L.
    """

    qk_norm: bool = True
    rotary: bool = True
    swiglu: bool = True
    rms_norm: bool = True
    bottleneck: int = 128
    context_tokens: int = 32
    context_start: int = 4
    least_time: float = 0.05

    predicts_data = True

    def _setup_tokens(self):
        super()._setup_tokens()
        if self.context_tokens:
            shape = (self.context_tokens, self.hidden_size)
            self.context_table = self.param("context_table", normal_002, shape)

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """See `Backbone`."""
        return of_predicted_data(super().__call__(x, t, condition), x, t, self.least_time)

    def _patch_embedding(self):
        return PatchEmbedding(self.bottleneck, self.hidden_size, self.dtype)

    def _embed(self, x, t, condition):
        h = self.patch_embed(self._patchify(x)) + self.position_table.value.astype(self.dtype)
        vector = getattr(self, self.conditioner.name)(condition).vector
        context = None
        if self.context_tokens:
            context = vector[:, None] + self.context_table.astype(self.dtype)
        return h, BlockCondition(self.time_embed(1.0 - t) + vector, context)

    def _apply_blocks(self, start, stop, h, condition):
        if condition.context is not None and start <= self.context_start < stop:
            h = super()._apply_blocks(start, self.context_start, h, condition.vector)
            h = jnp.concatenate([h, condition.context.astype(h.dtype)], axis=1)
            start = self.context_start
        return super()._apply_blocks(start, stop, h, condition.vector)

    def _predict(self, x, t, tokens, condition, class_token):
        return self.final_layer(tokens, condition.vector)


def check(network: JiT, section: Section, path: str) -> None:
    """Raise UserError, naming the key and the way out, for sizes that do not fit together."""
    if section.get("arch") and network.latent_channels != 3:
        raise UserError(
            f"{path}.arch is {section['arch']!r}, which takes pixels, but the latents have "
            f"{network.latent_channels} channels: set "
            "--config.tokenizer.family=pixels, or leave arch empty and give every size"
        )
    transformer.check(network, section, path)
    if network.context_start >= network.depth:
        raise UserError(
            f"{path}.context_start is {network.context_start}: it must lie below the backbone's "
            f"depth {network.depth}"
        )
    transformer.check_least_time(network, path)


FAMILY = Family(
    JiT,
    options={
        **SIZES,
        "bottleneck": int,
        "context_start": whole(0, 255),
        "context_tokens": whole(0, 4096),
        **defaults_of(JiT, "encoder_depth", "mlp_ratio", "least_time"),
    },
    presets=PRESETS,
    check=check,
)
