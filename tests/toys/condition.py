"""A condition of three tokens with a mask, which a table holds for each class."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.models.conditioning.base import Condition
from repae_jax.models.conditioning.families import CONDITIONERS
from repae_jax.models.family import Family

TOKENS = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
MASKS = np.arange(3) < (np.arange(10) % 3 + 1)[:, None]


class Words(nn.Module):
    width: int

    @nn.compact
    def __call__(self, condition):
        tokens, mask = nn.Dense(self.width)(condition["tokens"]), condition["mask"][..., None]
        return Condition((tokens * mask).sum(1) / mask.sum(1), tokens, condition["mask"])


@dataclasses.dataclass(frozen=True)
class Caption:
    name = "text_embed"
    gives = ("vector", "tokens", "mask")
    types = {"tokens": ((3, 4), "float32"), "mask": ((3,), "bool")}
    spec = lambda self: {name: jax.ShapeDtypeStruct(*of) for name, of in self.types.items()}
    null = lambda self: {"tokens": np.zeros((3, 4), np.float32), "mask": np.array([1, 0, 0], bool)}
    from_labels = lambda self, y: {"tokens": jnp.array(TOKENS)[y], "mask": jnp.array(MASKS)[y]}
    module = lambda self, hidden_size, dtype: Words(hidden_size)


CONDITIONERS["caption"] = Family(lambda given: Caption())
