"""Measurement of the latent statistics of a tokenizer."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from repae_jax.data.pipeline import eval_batches
from repae_jax.data.source import Source
from repae_jax.models.tokenizers.base import Tokenizer, encode, statistics_shape
from repae_jax.utils.finite import NotFinite
from repae_jax.utils.images import to_float

IMAGES = 10_000  # first images of the source; they give means and variances to three digits


def latent_moments(
    tokenizer: Tokenizer,
    variables: Mapping[str, Any],
    source: Source,
    batch_size: int,
    images: int = IMAGES,
    *,
    posterior: str = "sample",
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Measure {"mean": (c,), "var": (c,)} of the latents, float32, over images and positions.

    Of a tokenizer with statistics by position both are (h, w, c), over images.

    Samples of the posterior are z = mean + std * noise. Their noise is integrated out:
    var z = var mean + E std^2.

    Args:
      tokenizer: the tokenizer.
      variables: its variables.
      source: the images.
      batch_size: images per batch.
      images: number of images, rounded down to full batches.
      posterior: the latents are a "sample" of the posterior, or its "mean".
      progress: show a bar.

    Raises:
      NotFinite: latents are NaN or infinite.
    """
    from tqdm import tqdm

    @jax.jit
    def sums(variables, batch):
        found = encode(tokenizer, variables, to_float(batch))
        axes = tuple(range(4 - len(statistics_shape(tokenizer, found.mean.shape[1:]))))
        spread = found.std if posterior == "sample" else 0.0
        return found.mean.mean(axes), (found.mean**2 + spread**2).mean(axes)

    count, first, second = 0, 0.0, 0.0
    batches = itertools.islice(eval_batches(source, batch_size), max(1, images // batch_size))
    for batch in tqdm(batches, desc="latent statistics", unit="batch", disable=not progress):
        mean, square = (np.asarray(a, np.float64) for a in sums(variables, batch["image"]))
        size = len(batch["image"])
        count, first, second = count + size, first + size * mean, second + size * square
    mean = first / count
    if not (np.isfinite(mean).all() and np.isfinite(second).all()):
        raise NotFinite(
            "the tokenizer makes latents that are NaN or infinite: its weights are damaged, or do "
            "not suit config.dtype"
        )
    return {
        "mean": mean.astype(np.float32),
        "var": (second / count - mean**2).astype(np.float32),
    }
