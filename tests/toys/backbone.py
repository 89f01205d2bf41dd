"""A backbone of MLPs over positions and channels, without tables or constants."""

import flax.linen as nn
import jax.numpy as jnp

from repae_jax.models.backbones.base import BackboneOutput
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.family import Family


class Mixer(nn.Module):
    latent_size: int
    latent_channels: int
    conditioner: object
    teacher_dims: tuple
    projector: object
    dtype: object
    remat: str
    scan: bool
    depth: int = 2
    encoder_depth: int = 1
    predicts, grid = "velocity", property(lambda self: self.latent_size // 2)

    @nn.compact
    def __call__(self, x, t, condition):
        vector, hidden = self.conditioner.module(16, self.dtype)(condition).vector, []
        h = nn.Conv(16, (2, 2), 2)(x).reshape(len(x), -1, 16) + nn.Dense(16)(t[:, None, None])
        for _ in range(self.depth):
            mixed = nn.Dense(self.grid**2)(nn.silu(h + vector[:, None]).mT).mT
            hidden.append(h := h + nn.Dense(16)(nn.silu(h + mixed)))
        tokens, head = hidden[self.encoder_depth - 1], self.projector.module
        heads = tuple(head(d, self.grid, self.dtype)(tokens) for d in self.teacher_dims)
        h = nn.ConvTranspose(len(x[0, 0, 0]), (2, 2), (2, 2))(h.reshape(len(x), self.grid, -1, 16))
        return BackboneOutput(h.astype(jnp.float32), tokens, heads, {"all": jnp.stack(hidden)})

    project = lambda self, *inputs: self(*inputs).projections
    hidden = lambda self, *inputs: self(*inputs).extra["all"].mean(2)


BACKBONES["mixer"] = Family(Mixer, dict(depth=2, encoder_depth=1))
