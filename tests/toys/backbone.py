"""A backbone of MLPs over positions and channels, without tables or constants."""

import flax.linen as nn
import jax.numpy as jnp

from repae_jax.models.backbones.base import BackboneOutput, Family
from repae_jax.models.backbones.families import BACKBONES


class Mixer(nn.Module):
    latent_size: int
    latent_channels: int
    conditioner: object
    teacher_dims: tuple
    dtype: object
    remat: str
    scan: bool
    depth: int = 2
    encoder_depth: int = 1
    grid = property(lambda self: self.latent_size // 2)

    @nn.compact
    def __call__(self, x, t, condition, taps="all"):
        steer = self.conditioner.module(16, self.dtype)(condition).vector
        steer, hidden, side = (steer + nn.Dense(16)(t[:, None]))[:, None], [], (self.grid,) * 2
        h = nn.Conv(16, (2, 2), 2)(x).reshape(len(x), self.grid**2, 16)
        for _ in range(self.depth):
            mixed = nn.Dense(self.grid**2)(nn.silu(h + steer).swapaxes(1, 2)).swapaxes(1, 2)
            h = h + nn.Dense(16)(nn.silu(h + mixed))
            hidden.append(h)
        heads = tuple(nn.Dense(d)(hidden[self.encoder_depth - 1]) for d in self.teacher_dims)
        h = nn.ConvTranspose(self.latent_channels, (2, 2), (2, 2))(h.reshape(len(x), *side, 16))
        output = BackboneOutput(h.astype(jnp.float32), hidden[self.encoder_depth - 1], heads)
        return {"all": output, "heads": heads, "hidden": jnp.stack(hidden).mean(2)}[taps]

    project = lambda self, *inputs: self(*inputs, taps="heads")
    hidden = lambda self, *inputs: self(*inputs, taps="hidden")


BACKBONES["mixer"] = Family(Mixer, dict(depth=2, encoder_depth=1), {})
