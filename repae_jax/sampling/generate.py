"""From labels to pictures: sampler and decoder as one compiled program."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from repae_jax.models.backbones.base import Backbone
from repae_jax.models.batch_norm import denormalize_samples
from repae_jax.models.conditioning.base import replace_where
from repae_jax.models.tokenizers.base import Tokenizer, decode
from repae_jax.parallel.mesh import batch_sharding, place, replicated
from repae_jax.sampling.class_labels import NO_CLASS
from repae_jax.sampling.samplers import Sampler, image_noise, sample_watched, step_noise
from repae_jax.utils.finite import NotFinite, finite_rows
from repae_jax.utils.images import to_uint8

_DECODING = -1  # the fault of pixels that are not finite though their latents are


class Generated(NamedTuple):
    """A batch.

    Attributes:
      images: uint8 (B, H, W, 3).
      faults: int32 (B,), 0 for an image whose latents and pixels are finite; else the sampling
        step, from 1 up, that first made its latents NaN or infinite, or -1: its decoding did.
    """

    images: jax.Array
    faults: jax.Array


Generate = Callable[[Mapping, jax.Array, jax.Array, jax.Array], Generated]


def make_generate(
    backbone: Backbone, tokenizer: Tokenizer, sampler: Sampler, *, mesh: Mesh | None = None
) -> Generate:
    """Build the compiled `generate(weights, key, indices, labels) -> Generated` of B images.

    `weights` holds "backbone" and "tokenizer" (their variables), and "latent_norm" ({"mean",
    "var"}). Image i depends on the key, `indices[i]` (B,) and its label only, not on its
    neighbours. A label is a class or, for a backbone with a null condition, `NO_CLASS`.

    On a mesh all processes call it alike, its devices divide the batch, which their number must
    divide, and every process gets all images.
    """
    null = backbone.conditioner.null()
    shape = (backbone.latent_size, backbone.latent_size, backbone.latent_channels)

    def divided(tree):
        return (
            tree if mesh is None else jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
        )

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def generate(weights, key, indices, labels):
        indices, labels = divided((indices, labels))
        condition = backbone.conditioner.from_labels(labels)
        if null is not None:
            condition = replace_where(labels == NO_CLASS, condition, null)

        def velocity(x, t, condition):
            return backbone.apply(weights["backbone"], x, t, condition).prediction

        latents, faults = sample_watched(
            sampler,
            velocity,
            divided(image_noise(key, indices, shape)),
            condition,
            null=null,
            step_noise=step_noise(key, indices, shape) if sampler.stochastic else None,
        )
        norm = weights["latent_norm"]
        latents = denormalize_samples(latents, norm["mean"], norm["var"])
        images = decode(tokenizer, weights["tokenizer"], latents)
        decoded = jnp.where(finite_rows(images), 0, _DECODING)
        return Generated(to_uint8(images), jnp.where(faults > 0, faults, decoded))

    return generate


def describe_fault(fault: int) -> str:
    """What one of `Generated.faults` says, in words."""
    if fault == _DECODING:
        return "its pixels are NaN or infinite, though its latents are not"
    return f"its latents are NaN or infinite from sampling step {fault} on"


def generate_batches(
    generate: Generate,
    weights: Mapping,
    key: jax.Array,
    labels: np.ndarray,
    starts: Iterable[int],
    *,
    batch_size: int,
    first_index: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of images, each while the next one is made.

    Args:
      generate: from `make_generate`, with the same `mesh`.
      weights: as it takes them.
      key: of all images; on the mesh.
      labels: (N,), of all images.
      starts: the numbers of the images with which the batches begin, 0 to N - 1.
      batch_size: images at a time.
      first_index: the index of image 0.
      mesh: the devices.

    Yields:
      a batch's start, and its images (n, H, W, 3) uint8: n is the batch size, or what is left.
      What is computed has always the batch size, so that everything is one compiled shape.

    Raises:
      NotFinite: latents or pixels of an image are; says from which step on.
    """

    def begun(start):
        batch = np.arange(start, start + batch_size)
        chunk = labels[np.minimum(batch, len(labels) - 1)].astype(np.int32)
        inputs = (first_index + batch, chunk)
        inputs = inputs if mesh is None else place(inputs, replicated(mesh))
        return start, generate(weights, key, *inputs)

    before = None
    for start in starts:
        after = begun(start)
        if before is not None:
            yield _whole(*before, labels)
        before = after
    if before is not None:
        yield _whole(*before, labels)


def _whole(start, made, labels):
    """A batch's start, and its images as far as they are asked for; they are finite."""
    faults = np.asarray(made.faults)[: len(labels) - start]
    if faults.any():
        first = int(np.flatnonzero(faults)[0])
        label = labels[start + first]
        raise NotFinite(
            f"image {start + first} ({'no class' if label == NO_CLASS else f'class {label}'}): "
            f"{describe_fault(faults[first])}; the run has diverged, or the guidance is too "
            "strong: take an earlier checkpoint (--step N), or a lower guidance scale"
        )
    return start, np.asarray(made.images)[: len(faults)]


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

    Raises:
      NotFinite: as `generate_batches`.
    """
    from tqdm import tqdm

    images = []
    starts = range(0, len(labels), batch_size)
    with tqdm(total=len(labels), unit="image", desc="sampling", disable=not progress) as bar:
        for _, made in generate_batches(
            generate, weights, key, labels, starts, batch_size=batch_size, first_index=first_index
        ):
            images.append(made)
            bar.update(len(made))
    return np.concatenate(images)
