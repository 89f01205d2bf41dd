"""The networks of a run."""

import dataclasses
from collections.abc import Mapping

import jax

from repae_jax.models.backbones.base import Backbone
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
from repae_jax.models.encoders.preprocessing import preprocess
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.lpips import LPIPS
from repae_jax.models.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen feature extractor and the preprocessing that its pixels get."""

    model: ViT
    preprocessing: str


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run; None where the run has none."""

    tokenizer: Tokenizer
    backbone: Backbone | None = None
    latent_norm: LatentNorm | None = None
    discriminator: PatchDiscriminator | None = None
    lpips: LPIPS | None = None
    teachers: Mapping[str, Teacher] = dataclasses.field(default_factory=dict)


def teacher_tokens(models: Models, variables: Mapping, images: jax.Array) -> dict[str, jax.Array]:
    """By teacher its patch tokens (B, N, D_k) of uint8 images (B, H, W, 3).

    Args:
      models: the networks.
      variables: of each teacher, by name.
      images: RGB.
    """
    tokens = {}
    for name, teacher in models.teachers.items():
        pixels = preprocess(images, teacher.preprocessing)
        tokens[name] = teacher.model.apply(variables[name], pixels).patch_tokens
    return tokens
