"""The networks of a run."""

import dataclasses
from collections.abc import Mapping

from repae_jax.models.backbones.base import Backbone
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.discriminator import PatchDiscriminator
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
