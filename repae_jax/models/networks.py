"""The networks of a run."""

import dataclasses
from collections.abc import Mapping

import jax

from repae_jax.models.backbones.base import Backbone, class_token_dim
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.base import Encoder, patch_tokens
from repae_jax.models.lpips import LPIPS
from repae_jax.models.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run; None for a network that the run lacks."""

    tokenizer: Tokenizer
    backbone: Backbone | None = None
    latent_norm: LatentNorm | None = None
    discriminator: PatchDiscriminator | None = None
    lpips: LPIPS | None = None
    teachers: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)


def with_stripes(models: Models, stripes: int) -> Models:
    """The networks with at most `stripes` stripes per image, see models/stripes.py.

    Their variables and results stay the same.
    """

    def one(module):
        return module.clone(stripes=stripes) if hasattr(module, "stripes") else module

    return dataclasses.replace(
        models,
        tokenizer=one(models.tokenizer),
        discriminator=one(models.discriminator),
        lpips=one(models.lpips),
    )


def teacher_tokens(models: Models, variables: Mapping, images: jax.Array) -> dict[str, jax.Array]:
    """{teacher: its patch tokens (B, N, D_k)} of uint8 RGB images (B, H, W, 3).

    If the backbone denoises a class token, they are (B, N + 1, D_k), and the last is the teacher's
    class token.

    Args:
      models: the networks.
      variables: {teacher: its variables}.
      images: uint8 RGB (B, H, W, 3).
    """
    return {
        name: patch_tokens(
            teacher, variables[name], images, class_token=class_token_dim(models.backbone) > 0
        )
        for name, teacher in models.teachers.items()
    }
