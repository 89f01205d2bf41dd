"""Training and testing of a small image classifier."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.source import Source
from repae_jax.data.tokens import Tokenize
from repae_jax.models.text_encoders.base import caption_mask
from repae_jax.training.fit import fit

Prepare = Callable[[jax.Array], jax.Array]


def fit_classifier(
    model: nn.Module,
    prepare: Prepare,
    source: Source,
    recipe: ConfigDict,
    seed: int,
    *,
    name: str,
    progress: bool = True,
    tokenize: Tokenize | None = None,
) -> Any:
    """Train `model` by cross-entropy with AdamW and a cosine schedule; returns the parameters.

    Images with captions are classified by the tokens that their captions hold, each by itself
    (arXiv 1511.02251).

    Args:
      model: preprocessed images (B, H, W, 3) -> logits (B, classes).
      prepare: preprocessing of uint8 images (B, H, W, 3), which are randomly shifted before.
      source: labeled images.
      recipe: `steps`, `batch_size`, `learning_rate`, `weight_decay`, and `shift` in pixels.
      seed: seed of the initialization, the order of images and the shifts.
      name: the model's name, for the progress bar and errors.
      progress: show a bar.
      tokenize: a caption -> its token ids, for images with captions.

    Raises:
      NotFinite: the training diverged.
    """
    key = jax.random.key(seed)

    def loss(params, batch, key):
        shape = (recipe.batch_size, 2)
        shifts = jax.random.randint(key, shape, -recipe.shift, recipe.shift + 1)
        images = prepare(shift_images(batch["image"], shifts, recipe.shift))
        logits = model.apply({"params": params}, images)
        if tokenize is not None:
            held = held_tokens(batch, logits.shape[-1])
            return optax.sigmoid_binary_cross_entropy(logits, held).sum(-1).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    sample = prepare(jnp.asarray(source[0]["image"])[None])
    batches = train_batches(source, batch_size=recipe.batch_size, seed=seed, tokenize=tokenize)
    with contextlib.closing(batches):
        return fit(
            jax.jit(model.init)(key, sample)["params"],
            loss,
            batches,
            key,
            recipe,
            name=name,
            progress=progress,
        )


def held_tokens(batch: Mapping[str, jax.Array], vocabulary: int) -> jax.Array:
    """(B, vocabulary) float32: 1 for the tokens that a caption holds, else 0."""
    ids = batch["caption_ids"]
    held = jax.nn.one_hot(ids, vocabulary)
    return (held * caption_mask(ids, batch["caption_length"])[..., None]).max(1)


def caption_precision(
    model: nn.Module,
    prepare: Prepare,
    params: Any,
    source: Source,
    batch_size: int,
    tokenize: Tokenize,
) -> float:
    """Of the k tokens with the highest logits, the fraction that a caption of k tokens holds.

    It counts different tokens, of the source's images in order.
    """

    @jax.jit
    def found(batch):
        logits = model.apply({"params": params}, prepare(batch["image"]))
        held = held_tokens(batch, logits.shape[-1])
        count = held.sum(-1, keepdims=True)
        rank = jnp.argsort(jnp.argsort(-logits, axis=-1), axis=-1)
        return ((rank < count) * held).sum(-1) / count[:, 0]

    batches = eval_batches(source, batch_size, tokenize=tokenize)
    return float(np.concatenate([np.asarray(found(batch)) for batch in batches]).mean())


def accuracy(
    model: nn.Module, prepare: Prepare, params: Any, source: Source, batch_size: int
) -> float:
    """The accuracy, in [0, 1]: the fraction of images whose class has the largest logit."""

    @jax.jit
    def predict(images):
        return model.apply({"params": params}, prepare(images)).argmax(axis=-1)

    right = [
        np.asarray(predict(batch["image"])) == batch["label"]
        for batch in eval_batches(source, batch_size)
    ]
    return float(np.concatenate(right).mean())


def shift_images(images: jax.Array, shifts: jax.Array, largest: int) -> jax.Array:
    """Shift images (B, H, W, C) by `shifts` (B, 2) pixels, each at most `largest`; edges repeat."""
    pad = ((largest, largest), (largest, largest), (0, 0))

    def one(image, shift):
        padded = jnp.pad(image, pad, mode="edge")
        return jax.lax.dynamic_slice(padded, (*(largest + shift), 0), image.shape)

    return jax.vmap(one)(images, shifts)
