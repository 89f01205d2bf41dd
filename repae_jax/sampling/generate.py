"""From labels to pictures: sampler and decoder as one compiled program."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from repae_jax.models.batch_norm import denormalize
from repae_jax.models.sit import SiT
from repae_jax.models.vae import VAE
from repae_jax.parallel.mesh import over_batch, replicated
from repae_jax.sampling.pixels import to_uint8
from repae_jax.sampling.samplers import Sampler, image_noise, sample, step_noise

Generate = Callable[[Mapping, jax.Array, jax.Array, jax.Array], jax.Array]


def make_generate(sit: SiT, vae: VAE, sampler: Sampler, *, mesh: Mesh | None = None) -> Generate:
    """Build the compiled `generate(weights, key, indices, labels) -> uint8 (B, H, W, 3)`.

    `weights` holds "sit" (the SiT's variables), "latent_norm" ({"mean", "var"}) and "vae" (its
    parameters). Image i depends on the key and `indices[i]` (B,) only, not on its neighbours.

    On a mesh all processes call it alike, its devices divide the batch, which their number must
    divide, and every process gets all images.
    """
    shape = (sit.latent_size, sit.latent_size, sit.latent_channels)

    def divided(tree):
        return tree if mesh is None else jax.lax.with_sharding_constraint(tree, over_batch(mesh))

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def generate(weights, key, indices, labels):
        indices, labels = divided((indices, labels))

        def velocity(x, t, labels):
            return sit.apply(weights["sit"], x, t, labels, method=SiT.velocity)

        latents = sample(
            sampler,
            velocity,
            divided(image_noise(key, indices, shape)),
            labels,
            null_label=sit.null_label,
            step_noise=step_noise(key, indices, shape) if sampler.stochastic else None,
        )
        norm = weights["latent_norm"]
        latents = denormalize(latents, norm["mean"], norm["var"])
        return to_uint8(vae.apply({"params": weights["vae"]}, latents, method="decode"))

    return generate


def generate_all(
    generate: Generate,
    weights: Mapping,
    key: jax.Array,
    labels: np.ndarray,
    *,
    batch_size: int,
    first_index: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Images (N, H, W, 3) uint8 for all `labels` (N,), in batches, with a progress bar.

    The last batch is padded, so that everything is one compiled shape.
    """
    from tqdm import tqdm

    count = len(labels)
    images = []
    with tqdm(total=count, unit="image", desc="sampling", disable=not progress) as bar:
        for start in range(0, count, batch_size):
            batch = np.arange(start, start + batch_size)
            chunk = labels[np.minimum(batch, count - 1)].astype(np.int32)
            made = generate(weights, key, first_index + batch, chunk)
            images.append(np.asarray(made)[: count - start])
            bar.update(len(images[-1]))
    return np.concatenate(images)
