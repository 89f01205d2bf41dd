"""Projection heads from a backbone's tokens to a teacher's; a new kind is a row of `PROJECTORS`."""

import dataclasses
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from repae_jax.errors import UserError
from repae_jax.models.convolution import conv
from repae_jax.models.family import Family, Section
from repae_jax.models.layers import Dense


class Projector(Protocol):
    """A kind of projection head with its sizes; immutable and hashable, without weights."""

    def module(self, features: int, grid: int, dtype: jnp.dtype) -> nn.Module:
        """A head (B, N, D) -> (B, N, features); N = grid * grid tokens in row-major order."""


class MLPHead(nn.Module):
    """Linear-SiLU-Linear-SiLU-Linear on each token (REPA, arXiv 2410.06940, section 3)."""

    hidden: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, features)."""
        x, init = tokens, initializers.xavier_uniform()
        for index, width in enumerate((self.hidden, self.hidden, self.features), start=1):
            x = nn.silu(x) if index > 1 else x
            x = Dense(width, dtype=self.dtype, kernel_init=init, name=f"fc{index}")(x)
        return x


@dataclasses.dataclass(frozen=True)
class MLP:
    """A projector that builds `MLPHead`s of the width `hidden`."""

    hidden: int = 2048

    def module(self, features: int, grid: int, dtype: jnp.dtype) -> MLPHead:
        """See `Projector`."""
        return MLPHead(self.hidden, features, dtype)


class ConvHead(nn.Module):
    """One convolution over the grid of tokens (iREPA, arXiv 2512.10794, section 4)."""

    features: int
    grid: int
    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, N, features)."""
        batch, _, dim = tokens.shape
        x = tokens.reshape(batch, self.grid, self.grid, dim)
        x = conv(dim, self.features, self.kernel, dtype=self.dtype, name="projection_layer")(x)
        return x.reshape(batch, self.grid**2, self.features)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A projector that builds `ConvHead`s with a kernel of an odd side, 1 or 3 as published."""

    kernel: int = 3

    def module(self, features: int, grid: int, dtype: jnp.dtype) -> ConvHead:
        """See `Projector`."""
        return ConvHead(features, grid, self.kernel, dtype)


def _check_conv(projector: Conv, section: Section, path: str) -> None:
    if projector.kernel < 1 or projector.kernel % 2 == 0:
        raise UserError(f"{path}.kernel is {projector.kernel}: give an odd number, such as 1 or 3")


PROJECTORS = {
    "mlp": Family(MLP, {"hidden": MLP.hidden}),
    "conv": Family(Conv, {"kernel": Conv.kernel}, check=_check_conv),
}
