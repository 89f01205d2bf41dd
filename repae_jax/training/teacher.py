"""Training a small teacher on one's own images, for those that DINOv2 does not know."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.models.teachers import preprocess
from repae_jax.models.vit import ViT
from repae_jax.training.build import build_vit
from repae_jax.training.weights import save_teacher


class Classifier(nn.Module):
    """A ViT with a linear head on the mean of its patch tokens.

    The mean, and not the class token, so that every patch token has to carry meaning: they are
    what the SiT and the VAE will be aligned with.
    """

    vit: ViT
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Preprocessed images (B, H, W, 3) -> logits (B, num_classes)."""
        tokens = self.vit(images).patch_tokens
        return nn.Dense(self.num_classes, name="head")(tokens.mean(axis=1))


def pretrain_teacher(config: ConfigDict, name: str, *, progress: bool = True) -> float:
    """Train the teacher `config.teachers[name]` to classify the training split, and save it.

    Images are shifted by up to `pretrain.shift` pixels at random. The file, named by the
    entry's `weights`, holds the ViT without the head.

    Returns:
      The accuracy on the held-out split, in [0, 1].

    Raises:
      UserError: the entry has no `weights` path or no `pretrain.steps`.
    """
    entry = config.teachers[name]
    if not entry.pretrain.steps:
        raise UserError(
            f"config.teachers.{name}.pretrain.steps is 0: this teacher is not meant to be trained "
            "here; set it, or give its published weights"
        )
    if not entry.weights:
        raise UserError(f"config.teachers.{name}.weights is empty: name the file to write")
    source = open_source(config.data, "train")
    model = Classifier(build_vit(entry, config.data.resolution), config.data.num_classes)
    params = _fit(model, entry, source, config.seed, progress)
    accuracy = _accuracy(model, entry, params, open_source(config.data, "heldout"))
    notes = {"accuracy": accuracy, "data": config.data.source, "seed": config.seed}
    save_teacher(entry.weights, params["vit"], notes)
    return accuracy


def _fit(model, entry, source, seed, progress):
    from tqdm import tqdm

    recipe = entry.pretrain
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.steps // 10, recipe.steps
    )
    optimizer = optax.adamw(rate, weight_decay=recipe.weight_decay)
    key = jax.random.key(seed)

    def loss(params, images, labels):
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, opt_state, batch, index):
        shifts = jax.random.randint(
            jax.random.fold_in(key, index), (recipe.batch_size, 2), -recipe.shift, recipe.shift + 1
        )
        images = preprocess(shifted(batch["image"], shifts, recipe.shift), entry.preprocessing)
        value, grads = jax.value_and_grad(loss)(params, images, batch["label"])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    batches = train_batches(source, batch_size=recipe.batch_size, seed=seed)
    sample = preprocess(jnp.asarray(source[0]["image"])[None], entry.preprocessing)
    params = jax.jit(model.init)(key, sample)["params"]
    opt_state = optimizer.init(params)
    bar = tqdm(range(recipe.steps), desc="teacher", unit="step", disable=not progress)
    for index in bar:
        params, opt_state, value = step(params, opt_state, next(batches), index)
        if index % 20 == 0:
            bar.set_postfix(loss=f"{float(value):.3f}")
    batches.close()
    return jax.device_get(params)


def shifted(images: jax.Array, shifts: jax.Array, largest: int) -> jax.Array:
    """Images (B, H, W, C) moved by `shifts` (B, 2) pixels, edges repeated."""
    pad = ((largest, largest), (largest, largest), (0, 0))

    def one(image, shift):
        padded = jnp.pad(image, pad, mode="edge")
        return jax.lax.dynamic_slice(padded, (*(largest + shift), 0), image.shape)

    return jax.vmap(one)(images, shifts)


def _accuracy(model, entry, params, source):
    @jax.jit
    def predict(images):
        logits = model.apply({"params": params}, preprocess(images, entry.preprocessing))
        return logits.argmax(axis=-1)

    right = [
        np.asarray(predict(batch["image"])) == batch["label"]
        for batch in eval_batches(source, entry.pretrain.batch_size)
    ]
    return float(np.concatenate(right).mean())
