"""Shapes and types of a batch of images or cached latents, for ahead-of-time compilation."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from repae_jax.data import latents
from repae_jax.data.caption_states import STATES, missing_captions
from repae_jax.data.manifest import MANIFEST
from repae_jax.data.packed import packed_folder
from repae_jax.errors import UserError
from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.networks import Models, teacher_tokens
from repae_jax.runs.build import latent_shape


@dataclasses.dataclass(frozen=True)
class Cache:
    """The optional content of a cache of latents.

    Attributes:
      images: whether it holds the images, uint8.
      tokens: whether it holds the teachers' tokens.
      manifest: the cache's manifest; None: the cache does not exist yet.
      class_tokens: whether the tokens include the teachers' class tokens.
      text: whether it holds the text encoder's states of captions.
    """

    images: bool
    tokens: bool
    manifest: pathlib.Path | None
    class_tokens: bool = False
    text: bool = False

    def __str__(self) -> str:
        fields = {"images": self.images, "tokens": self.tokens, "states of captions": self.text}
        kept = [name for name, there in fields.items() if there]
        text = " and ".join(["cached latents", *kept])
        if self.manifest is not None:
            return f"{text}, as {self.manifest} says"
        if not kept:
            return text
        return f"{text}, which is assumed: there is no cache yet"


def find_cache(
    config: ConfigDict, models: Models, kept: tuple[str, ...] = ("tokens",)
) -> Cache | None:
    """Find the cache of latents that the configuration trains on; None if it trains on images.

    Args:
      config: the configuration.
      models: its networks.
      kept: the assumed content if the cache does not exist yet: for the teachers "tokens" or
        "images", for the text encoder "text".

    Raises:
      UserError: the cache is damaged, or does not fit the configuration.
    """
    if config.data.source != latents.KIND:
        return None
    folder = _folder(config)
    if folder is None:
        images, tokens = (bool(models.teachers) and it in kept for it in ("images", "tokens"))
        text = models.text_encoder is not None and "text" in kept
        return Cache(images, tokens, None, text=text)
    made = latents.read_cache(folder)["made"]
    latents.check_shape(folder, made, latent_shape(config, models))
    class_token = class_token_dim(models.backbone) > 0
    for missing in latents.missing_for_teachers(
        folder, made, list(models.teachers), class_token=class_token
    ):
        raise UserError(missing)
    if models.text_encoder is not None:
        for missing in missing_captions(folder, made):
            raise UserError(missing)
    both, text = made.get("class_tokens", False), models.text_encoder is not None and STATES in made
    return Cache(made["images"], bool(made["teachers"]), folder / MANIFEST, both, text)


def input_shapes(
    size: int, models: Models, *, states: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the inputs of `size` images: classes or captions, see `condition_of`.

    With `states` they are the text encoder's states of captions.
    """
    if states:
        spec = models.backbone.conditioner.spec()
        return {
            k: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype) for k, leaf in spec.items()
        }
    number = jax.ShapeDtypeStruct((size,), jnp.int32)
    if models.text_encoder is None:
        return {"label": number}
    ids = jax.ShapeDtypeStruct((size, models.text_encoder.length), jnp.int32)
    return {"caption_ids": ids, "caption_length": number}


def batch_shapes(
    config: ConfigDict, models: Models, cache: Cache | None, teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """Shapes and types of a batch from `data.pipeline.train_batches`.

    Args:
      config: the configuration.
      models: its networks.
      cache: see `find_cache`.
      teachers: name -> shapes of the teacher's variables.
    """
    size, side = config.batch_size, config.data.resolution
    image = jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)
    batch: dict[str, Any] = {"label": jax.ShapeDtypeStruct((size,), jnp.int32)}
    batch |= input_shapes(size, models, states=cache is not None and cache.text)
    if cache is None:
        return {"image": image, **batch}
    latent = jax.ShapeDtypeStruct((size, *latent_shape(config, models)), jnp.float32)
    batch |= {"latent_mean": latent, "latent_std": latent}
    if cache.images:
        batch["image"] = image
    if cache.tokens:
        tokens = jax.eval_shape(
            lambda variables, images: teacher_tokens(models, variables, images), teachers, image
        )
        # a backbone without a class token leaves the cache's out itself
        more = cache.class_tokens and not class_token_dim(models.backbone)
        batch["teacher_tokens"] = tuple(
            jax.ShapeDtypeStruct((size, leaf.shape[1] + more, leaf.shape[2]), jnp.float32)
            for leaf in tokens.values()
        )
    return batch


def _folder(config):
    """The folder with the training split's manifest; None without a complete cache."""
    if not pathlib.Path(config.data.path).exists():
        return None
    folder = packed_folder(config.data, "train", latents.KIND)
    return folder if (folder / MANIFEST).is_file() else None
