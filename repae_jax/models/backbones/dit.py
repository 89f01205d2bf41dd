"""DiT, the diffusion transformer (arXiv 2212.09748), which predicts noise and its variance."""

import jax
import jax.numpy as jnp

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.backbones.transformer import SIZES, Transformer, check, defaults_of
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.family import Family

# name -> (hidden_size, depth, num_heads); DiT paper, table 1.
_SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PRESETS = {
    f"DiT-{size}/{patch}": dict(hidden_size=width, depth=depth, num_heads=heads, patch_size=patch)
    for size, (width, depth, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}
STEPS = 1000  # of the chain; the time embedding sees the step


def step_of(t: jax.Array) -> jax.Array:
    """The step, int32 from 0 to 999, for which a time in [0, 1] stands: round(1000 t)."""
    return jnp.clip(jnp.round(t * STEPS), 0, STEPS - 1).astype(jnp.int32)


class DiT(Transformer):
    """The transformer of SiT, which predicts the noise of the path "ddpm" (objectives/ddpm.py).

    With `learn_sigma` the last layer has twice the latents' channels: the noise, and behind it the
    variance as a fraction between its bounds, `extra["variance"]` (B, h, w, c).
    """

    learn_sigma: bool = True

    predicts = "noise"

    @property
    def output_channels(self) -> int:
        """Channels of the last layer's patches."""
        return self.latent_channels * (2 if self.learn_sigma else 1)

    def __call__(self, x: jax.Array, t: jax.Array, condition: Arrays) -> BackboneOutput:
        """See `Backbone`."""
        output = super().__call__(x, t, condition)
        if not self.learn_sigma:
            return output
        noise, variance = jnp.split(output.prediction, 2, axis=-1)
        return output._replace(prediction=noise, extra={"variance": variance})

    def _embed(self, x, t, condition):
        return super()._embed(x, step_of(t), condition)


FAMILY = Family(
    DiT,
    options={
        **SIZES,
        **defaults_of(DiT, "encoder_depth", "mlp_ratio", "qk_norm", "learn_sigma"),
    },
    presets=PRESETS,
    check=check,
)
