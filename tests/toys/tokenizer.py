"""A tokenizer whose latents are points: a fixed basis of patches, and one layer a direction."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from repae_jax.models.family import Family
from repae_jax.models.tokenizers.distributions import Point
from repae_jax.models.tokenizers.families import TOKENIZERS
from repae_jax.utils.schema import whole


class Patches(nn.Module):
    width: int
    latent_channels: int = 2
    factor: int = 4
    image_channels: int = 3
    dtype: object = jnp.float32
    remat: str = "none"

    def setup(self):
        fixed = lambda: jax.random.normal(self.make_rng("params"), (48, self.width)) / 7
        self.basis = self.variable("constants", "basis", fixed)
        self.down = nn.Dense(self.latent_channels, dtype=self.dtype)
        self.up = nn.Dense(48, dtype=self.dtype)

    def encode(self, images):
        b, h, w, _ = images.shape
        patches = images.reshape(b, h // 4, 4, w // 4, 4, 3).swapaxes(2, 3)
        patches = patches.reshape(b, h // 4, w // 4, 48) @ self.basis.value
        return Point(self.down(patches).astype(jnp.float32))

    def decode(self, latents):
        patches = self.up(latents).reshape(*latents.shape[:3], 4, 4, 3).swapaxes(2, 3)
        return patches.reshape(len(latents), patches.shape[1] * 4, -1, 3).astype(jnp.float32)

    __call__ = lambda self, images, noise: self.decode(self.encode(images).sample(noise))


TOKENIZERS["patches"] = Family(Patches, {"width": whole(1, 64), "latent_channels": whole(1, 64)})
