"""Training and testing of a small image classifier."""

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
from repae_jax.utils.finite import NotFinite

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
    from tqdm import tqdm

    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.steps // 10, recipe.steps
    )
    optimizer = optax.adamw(rate, weight_decay=recipe.weight_decay)
    key = jax.random.key(seed)

    def loss(params, images, batch):
        logits = model.apply({"params": params}, images)
        if tokenize is not None:
            held = held_tokens(batch, logits.shape[-1])
            return optax.sigmoid_binary_cross_entropy(logits, held).sum(-1).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    @jax.jit
    def step(params, opt_state, batch, index):
        shifts = jax.random.randint(
            jax.random.fold_in(key, index), (recipe.batch_size, 2), -recipe.shift, recipe.shift + 1
        )
        images = prepare(shift_images(batch["image"], shifts, recipe.shift))
        value, grads = jax.value_and_grad(loss)(params, images, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    batches = train_batches(source, batch_size=recipe.batch_size, seed=seed, tokenize=tokenize)
    sample = prepare(jnp.asarray(source[0]["image"])[None])
    params = jax.jit(model.init)(key, sample)["params"]
    opt_state = optimizer.init(params)
    bar = tqdm(range(recipe.steps), desc=name, unit="step", disable=not progress)
    for index in bar:
        params, opt_state, value = step(params, opt_state, next(batches), index)
        if index % 20 == 0:
            bar.set_postfix(loss=f"{float(value):.3f}")
    batches.close()
    params = jax.device_get(params)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise NotFinite(
            f"the {name} diverged: its weights are NaN or infinite after {recipe.steps} steps with "
            f"the learning rate {recipe.learning_rate}; lower it"
        )
    return params


def held_tokens(batch: Mapping[str, jax.Array], vocabulary: int) -> jax.Array:
    """(B, vocabulary) float32: 1 for the tokens that a caption holds, else 0."""
    ids = batch["caption_ids"]
    held = jax.nn.one_hot(ids, vocabulary)
    mask = jnp.arange(ids.shape[1]) < batch["caption_length"][:, None]
    return (held * mask[..., None]).max(1)


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
