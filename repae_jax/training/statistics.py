"""Latent statistics of a VAE that came without them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from repae_jax.data.pipeline import eval_batches
from repae_jax.models.autoencoder_kl import AutoencoderKL
from repae_jax.sampling.pixels import to_float
from repae_jax.training.recipe import Models
from repae_jax.training.state import TrainState, averaged

IMAGES = 10_000  # of the source's first: enough for means and variances to three digits


def measured_statistics(
    config: ConfigDict, models: Models, state: TrainState, source
) -> TrainState:
    """The state with LatentNorm starting at the VAE's own statistics.

    Statistics that a file brought stand; otherwise they are measured on up to `IMAGES` images.
    """
    from repae_jax.training.weights import read_vae_statistics

    if read_vae_statistics(config, models.vae) is not None:
        return state
    moments = latent_moments(models.vae, state.params["vae"], source, config.batch_size)
    statistics = {name: jnp.asarray(value, jnp.float32) for name, value in moments.items()}
    state = state.replace(batch_stats={**state.batch_stats, "latent_norm": statistics})
    return state.replace(ema=jax.tree.map(jnp.copy, averaged(state)))


def latent_moments(
    vae: AutoencoderKL, params, source, batch_size: int, images: int = IMAGES
) -> dict[str, np.ndarray]:
    """{"mean": (c,), "var": (c,)} of z = mean + std * noise over images and positions, float64.

    The noise is integrated out: var z = var mean + E std^2.
    """
    from tqdm import tqdm

    @jax.jit
    def sums(batch):
        posterior = vae.apply({"params": params}, to_float(batch), method=AutoencoderKL.encode)
        axes = (0, 1, 2)
        second = posterior.mean**2 + posterior.std**2
        return posterior.mean.mean(axes), second.mean(axes)

    count, first, second = 0, 0.0, 0.0
    batches = itertools.islice(eval_batches(source, batch_size), max(1, images // batch_size))
    for batch in tqdm(batches, desc="latent statistics", unit="batch"):
        mean, square = (np.asarray(a, np.float64) for a in sums(batch["image"]))
        size = len(batch["image"])
        count, first, second = count + size, first + size * mean, second + size * square
    mean = first / count
    return {"mean": mean, "var": second / count - mean**2}
