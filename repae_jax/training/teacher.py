"""Training of a small teacher on a run's own images, for domains outside DINOv2's."""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from repae_jax.config.modules import build_encoder, build_text_encoder
from repae_jax.data.source import check_captions
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError
from repae_jax.models.encoders.base import Encoder
from repae_jax.runs.captions import make_tokenize
from repae_jax.runs.weights import save_teacher
from repae_jax.training.classifier import accuracy, caption_precision, fit_classifier


class Classifier(nn.Module):
    """An encoder with a linear head on the mean of its patch tokens.

    The mean makes every patch token informative; the backbone and the VAE will be aligned with
    these tokens. (The initial weights depend on the name `vit`.)
    """

    vit: Encoder
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map preprocessed images (B, H, W, 3) to logits (B, num_classes)."""
        tokens = self.vit(images).patch_tokens
        return nn.Dense(self.num_classes, name="head")(tokens.mean(axis=1))


def pretrain_teacher(config: ConfigDict, name: str, *, progress: bool = True) -> float:
    """Train the teacher `config.teachers[name]` to classify the training split, and save it.

    In a run with captions it learns which tokens an image's caption holds; otherwise the class.
    Images are shifted randomly by up to `pretrain.shift` pixels. The file, which the entry's
    `weights` names, holds the encoder without the head.

    Returns:
      The accuracy on the held-out split, in [0, 1]; with captions see `caption_precision`.

    Raises:
      UserError: see `check_pretraining`.
    """
    check_pretraining(config, name)
    entry = config.teachers[name]
    encoder = build_encoder(entry, config.data.resolution)
    tokenize, outputs = make_tokenize(config), config.data.num_classes
    if tokenize is not None:
        outputs = build_text_encoder(config).vocabulary
    model, prepare = Classifier(encoder, outputs), encoder.prepare
    train, heldout = (open_source(config.data, split) for split in ("train", "heldout"))
    if tokenize is not None:
        check_captions(train)
        check_captions(heldout)
    params = fit_classifier(
        model, prepare, train, entry.pretrain, config.seed, name="teacher", progress=progress,
        tokenize=tokenize,
    )  # fmt: skip
    judged = model, prepare, params, heldout, entry.pretrain.batch_size
    reached = accuracy(*judged) if tokenize is None else caption_precision(*judged, tokenize)
    notes = {"accuracy": reached, "data": config.data.source, "seed": config.seed}
    save_teacher(entry.weights, params["vit"], notes)
    return reached


def check_pretraining(config: ConfigDict, name: str) -> None:
    """Raise UserError if the teacher's entry has no `pretrain.steps` or no `weights` path."""
    entry = config.teachers[name]
    if not entry.pretrain.steps:
        raise UserError(
            f"config.teachers.{name}.pretrain.steps is 0: this teacher is not meant to be trained "
            "here; set it, or give its published weights"
        )
    if not entry.weights:
        raise UserError(f"config.teachers.{name}.weights is empty: name the file to write")
