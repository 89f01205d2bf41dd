"""LightningDiT (arXiv 2501.01423): the SiT with rotary positions, SwiGLU and RMSNorm.

Two other backbones bear the same name, RAE's and diffusion-bench's, with other weights.
"""

import jax

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.backbones.transformer import (
    SIZES,
    Transformer,
    check,
    defaults_of,
)
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.family import Family

# name -> (hidden_size, depth, num_heads), and the patch sizes that its authors define.
_SIZES = {
    "B": (768, 12, 12, (1, 2)),
    "L": (1024, 24, 16, (2,)),
    "XL": (1152, 28, 16, (1, 2)),
    "1p0B": (1536, 24, 24, (1, 2)),
    "1p6B": (1792, 28, 28, (1, 2)),
}
PRESETS = {
    f"LightningDiT-{size}/{patch}": dict(
        hidden_size=width, depth=depth, num_heads=heads, patch_size=patch
    )
    for size, (width, depth, heads, patches) in _SIZES.items()
    for patch in patches
}


class LightningDiT(Transformer):
    """The transformer with its authors' options, and their direction of time.

    The network inside sees the time 1 - t, and predicts the velocity of that direction, which is
    minus ours. So its weights are those of its authors' code.
    """

    rotary: bool = True
    swiglu: bool = True
    rms_norm: bool = True

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Arrays, class_token: jax.Array | None = None
    ) -> BackboneOutput:
        """See `Backbone`."""
        output = super().__call__(x, t, condition, class_token)
        extra = {name: -velocity for name, velocity in output.extra.items()}
        return output._replace(prediction=-output.prediction, extra=extra)

    def _embed(self, x, t, condition):
        return super()._embed(x, 1.0 - t, condition)


FAMILY = Family(
    LightningDiT,
    options={
        **SIZES,
        **defaults_of(
            LightningDiT,
            "encoder_depth", "mlp_ratio", "qk_norm", "rotary", "swiglu", "rms_norm", "shift",
            "class_token_dim",
        ),
    },
    presets=PRESETS,
    check=check,
)  # fmt: skip
