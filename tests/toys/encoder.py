"""A teacher of one strided convolution, with its tokens in the order of the backbone's."""

import flax.linen as nn
import jax.numpy as jnp

from repae_jax.errors import UserError
from repae_jax.models.encoders.base import ViTTokens
from repae_jax.models.encoders.families import ENCODERS
from repae_jax.models.family import Family


class Strided(nn.Module):
    patch: int
    dim: int = 6
    dtype: object = jnp.float32
    scan: bool = False

    @nn.nowrap
    def grid(self, resolution):
        if resolution % self.patch:
            raise UserError(f"patch {self.patch} does not divide {resolution} pixels")
        return resolution // self.patch

    @nn.nowrap
    def prepare(self, images):
        return images.astype(jnp.float32) / 255

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.dim, (self.patch, self.patch), self.patch, dtype=self.dtype)(x)
        return ViTTokens(nn.silu(x).reshape(len(x), -1, self.dim).astype(jnp.float32), None)


ENCODERS["strided"] = Family(Strided, {"patch": int, "dim": Strided.dim})
