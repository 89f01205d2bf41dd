"""The networks of a run."""

import dataclasses
from collections.abc import Mapping

import jax
from flax.core import FrozenDict

from repae_jax.models.backbones.base import Backbone, class_token_dim
from repae_jax.models.batch_norm import LatentNorm
from repae_jax.models.conditioning.base import Arrays
from repae_jax.models.discriminators import Discriminator
from repae_jax.models.encoders.base import Encoder, patch_tokens
from repae_jax.models.foundation import FoundationProjection
from repae_jax.models.lpips import LPIPS
from repae_jax.models.text_encoders.base import TextEncoder, encode_captions
from repae_jax.models.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run, hashable; None for a network that the run lacks."""

    tokenizer: Tokenizer
    backbone: Backbone | None = None
    latent_norm: LatentNorm | None = None
    discriminator: Discriminator | None = None
    foundation: FoundationProjection | None = None
    lpips: LPIPS | None = None
    teachers: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)
    text_encoder: TextEncoder | None = None

    def __post_init__(self):
        object.__setattr__(self, "teachers", FrozenDict(self.teachers))


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


def condition_of(models: Models, frozen: Mapping, inputs: Mapping[str, jax.Array]) -> Arrays:
    """The backbone's condition for a batch of inputs.

    Args:
      models: the networks.
      frozen: holds "text_encoder", its variables, if there is one.
      inputs: the arrays of the condition themselves (`Conditioner.spec`); or else classes,
        {"label": (B,) int32}, or captions, {"caption_ids": (B, L) int32, "caption_length": (B,)}.
    """
    conditioner = models.backbone.conditioner
    names = conditioner.spec()
    if all(name in inputs for name in names):
        return {name: inputs[name] for name in names}
    if models.text_encoder is None:
        return conditioner.from_labels(inputs["label"])
    return encode_captions(
        models.text_encoder,
        frozen["text_encoder"],
        inputs["caption_ids"],
        inputs["caption_length"],
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
