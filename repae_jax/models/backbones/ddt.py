"""DDT (arXiv 2504.05741): an encoder of the noisy latents, and a head conditioned by its tokens.

Three backbones share this idea and not their weights. Two are here: `DiTDH`, the DiT^DH of RAE
(arXiv 2510.11690), and `DDT`, that of diffusion-bench. The third, of DDT's authors (MCG-NJU), has
other rotary positions, times, norms and modulations.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.backbones import transformer
from repae_jax.models.backbones.base import BackboneOutput, of_predicted_data
from repae_jax.models.backbones.blocks import ClassTokenEmbedding, normal_002, xavier
from repae_jax.models.backbones.transformer import (
    SIZES,
    Transformer,
    defaults_of,
)
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.convolution import torch_uniform
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import TORCH_KERNEL, Dense, sincos_position_table


class FourierTimeEmbedding(nn.Module):
    """Random Fourier features of t, then Linear-SiLU-Linear.

    The features are sin and cos of 2 pi w t for `features` frequencies w from N(0, 1) (arXiv
    2006.10739, section 4). The frequencies train like the weights, as in RAE and diffusion-bench.
    """

    hidden_size: int
    features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """(B,) -> (B, D)."""
        frequencies = self.param("frequencies", initializers.normal(1.0), (self.features,))
        angles = t.astype(jnp.float32)[:, None] * frequencies * np.float32(2.0) * np.float32(np.pi)
        x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return self._linear(nn.silu(self._linear(x, "fc1")), "fc2")

    def _linear(self, x, name):
        bias = torch_uniform(x.shape[-1])
        return Dense(
            self.hidden_size, dtype=self.dtype, kernel_init=normal_002, bias_init=bias, name=name
        )(x)


class Decoupled(Transformer):
    """A backbone of two parts: `depth` blocks that encode, and a wider head of `head_depth` blocks.

    The head sees the noisy latents through a patch embedding of its own. Its modulations differ
    from token to token: they come from silu(time + encoder's token), mapped to the head's width.

    `depth`, `hidden_size`, `num_heads`, the aligned block and `hidden` concern the encoder.
    """

    rotary: bool = True
    swiglu: bool = True
    rms_norm: bool = True
    head_size: int = 2048
    head_depth: int = 2
    head_heads: int = 16

    def setup(self):
        super().setup()
        self.head_patch_embed = Dense(self.head_size, dtype=self.dtype, kernel_init=xavier)
        if self.head_size != self.hidden_size:
            self.head_condition = Dense(self.head_size, dtype=self.dtype, kernel_init=TORCH_KERNEL)
        if self.class_token_dim:
            self.head_class_token_embed = self._class_token_embedding(self.head_size)

    def _class_token_embedding(self, width):
        return ClassTokenEmbedding(width, self.rms_norm, self.dtype, TORCH_KERNEL)

    def _time_embedding(self):
        return FourierTimeEmbedding(self.hidden_size, dtype=self.dtype)

    def _all_blocks(self):
        """Those of the encoder, then those of the head, as the originals number them."""
        return [
            *self._make_blocks(self.depth, self.num_heads, kernel_init=TORCH_KERNEL),
            *self._make_blocks(self.head_depth, self.head_heads, kernel_init=TORCH_KERNEL),
        ]

    def _predict(self, x, t, tokens, condition, class_token):
        per_token = nn.silu(self.time_embed(t)[:, None] + tokens)
        if self.head_size != self.hidden_size:
            per_token = self.head_condition(per_token)
        h = self.head_patch_embed(self._patchify(x))
        if self.class_token_dim:
            h = jnp.concatenate([h, self.head_class_token_embed(class_token)], axis=1)
        h = self._apply_blocks(self.depth, self.depth + self.head_depth, h, per_token)
        return self.final_layer(h, per_token)


class DiTDH(Decoupled):
    """RAE's DiT^DH: the encoder is a LightningDiT whose position table trains.

    Its blocks are modulated by silu(time + class), to which each applies silu again.
    """

    def _setup_tokens(self):
        table = sincos_position_table(self.hidden_size, self.grid)[None]
        self.position_table = self.param("position_table", lambda _: jnp.asarray(table))

    def _embed(self, x, t, condition):
        h = self.patch_embed(self._patchify(x)) + self.position_table.astype(self.dtype)
        label = getattr(self, self.conditioner.name)(condition).vector
        return h, nn.silu(self.time_embed(t) + label)


class DDT(Decoupled):
    """diffusion-bench's: time and condition are tokens of the encoder, which nothing modulates.

    The sequence is the patches, then `time_tokens` and `class_tokens` learned tokens, to which the
    embedding of the time or the class is added. There is no position table; rotary positions turn
    the patches alone.

    A condition with tokens and a mask, such as a text, replaces the class's tokens by its own. The
    encoder's blocks update them and leave padding out of the keys; the head sees the patches alone.

    With `predicts_data` the network inside predicts the data x, and the module returns the velocity
    (x_t - x) / max(t, least_time), as `jit.JiT` does (RAEv2, arXiv 2605.18324).
    """

    qk_norm: bool = True
    time_tokens: int = 4
    class_tokens: int = 8
    predicts_data: bool = False
    least_time: float = 0.05

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Arrays, class_token: jax.Array | None = None
    ) -> BackboneOutput:
        """See `Backbone`."""
        output = super().__call__(x, t, condition, class_token)
        return of_predicted_data(output, x, t, self.least_time) if self.predicts_data else output

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Transformer`; those that the conditioner gives."""
        of_text = ("tokens", "mask")
        return of_text if set(of_text) <= set(self.conditioner.gives) else ("vector",)

    def _setup_tokens(self):
        self.learned_time_tokens = self._learned_tokens("time", self.time_tokens)
        if self.reads == ("vector",):
            self.learned_class_tokens = self._learned_tokens("class", self.class_tokens)

    def _learned_tokens(self, of, count):
        init = initializers.normal(self.hidden_size**-0.5)
        return self.param(f"learned_{of}_tokens", init, (count, self.hidden_size))

    def _embed(self, x, t, condition):
        """The tokens before the first block, and the mask of their keys; None without padding."""
        condition = getattr(self, self.conditioner.name)(condition)
        patches = self.patch_embed(self._patchify(x))
        of_time = self.learned_time_tokens.astype(self.dtype) + self.time_embed(t)[:, None]
        if self.reads == ("vector",):
            label = condition.vector
            of_class = self.learned_class_tokens.astype(self.dtype) + label[:, None]
            return jnp.concatenate([patches, of_time, of_class], axis=1), None
        before = self.grid**2 + bool(self.class_token_dim) + self.time_tokens
        mask = jnp.pad(condition.mask, ((0, 0), (before, 0)), constant_values=True)
        return jnp.concatenate([patches, of_time, condition.tokens], axis=1), mask[:, None, None]

    def _apply_blocks(self, start, stop, h, *inputs):
        """See `Transformer`; the encoder's blocks take the mask, the head's a condition."""
        inputs = inputs if start >= self.depth else (None, *inputs)
        return super()._apply_blocks(start, stop, h, *inputs)


# name -> (hidden_size, depth, num_heads) of the encoder; the head is the default's.
_SIZES = {"S": (384, 12, 6), "XL": (1152, 28, 16)}


def _presets(prefix, sizes, patches):
    return {
        f"{prefix}-{size}/{patch}": dict(
            zip(("hidden_size", "depth", "num_heads"), _SIZES[size], strict=True), patch_size=patch
        )
        for size in sizes
        for patch in patches
    }


def check(network: Decoupled, section: Section, path: str) -> None:
    """Raise UserError, naming the key and the way out, for sizes that do not fit together."""
    transformer.check(network, section, path)
    if min(network.head_size, network.head_depth, network.head_heads) < 1:
        raise UserError(
            f"{path} has a head of head_depth {network.head_depth}, head_size {network.head_size} "
            f"and head_heads {network.head_heads}: give 1 or more of each"
        )
    if network.head_size % network.head_heads:
        raise UserError(
            f"{path}.head_size is {network.head_size}: it must be divisible by the "
            f"{network.head_heads} heads of {path}.head_heads"
        )
    if network.rotary:
        transformer.check_rotary(network.head_size, network.head_heads, path, "head_heads")


def check_ddt(network: DDT, section: Section, path: str) -> None:
    """As `check`, and for a prediction of the data."""
    check(network, section, path)
    transformer.check_least_time(network, path)
    if network.predicts_data and network.class_token_dim:
        raise UserError(
            f"{path}.predicts_data is True, but a class token is denoised by its velocity: set "
            f"{path}.class_token_dim=0"
        )


def _family(network, presets, names, check=check):
    names = ("encoder_depth", "head_size", "head_depth", "head_heads", "mlp_ratio", *names)
    options = {**SIZES, **defaults_of(network, *names)}
    return Family(network, options=options, presets=presets, check=check)


DITDH_FAMILY = _family(
    DiTDH,
    _presets("DiTDH", ("S", "XL"), (1,)),
    ("qk_norm", "rotary", "swiglu", "rms_norm", "shift"),
)
DDT_FAMILY = _family(
    DDT,
    _presets("DDT", ("XL",), (1, 2)),
    ("time_tokens", "class_tokens", "class_token_dim", "predicts_data", "least_time"),
    check_ddt,
)
