"""The networks of a run."""

import dataclasses
from collections.abc import Mapping

import jax

from repae_jax.models.backbones.base import Backbone
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.base import Encoder, patch_tokens
from repae_jax.models.lpips import LPIPS
from repae_jax.models.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run; None where the run has none."""

    tokenizer: Tokenizer
    backbone: Backbone | None = None
    latent_norm: LatentNorm | None = None
    discriminator: PatchDiscriminator | None = None
    lpips: LPIPS | None = None
    teachers: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)


def teacher_tokens(models: Models, variables: Mapping, images: jax.Array) -> dict[str, jax.Array]:
    """By teacher its patch tokens (B, N, D_k) of uint8 images (B, H, W, 3).

    Args:
      models: the networks.
      variables: of each teacher, by name.
      images: RGB.
    """
    return {
        name: patch_tokens(teacher, variables[name], images)
        for name, teacher in models.teachers.items()
    }
