"""Image generation from classes or captions: sampler and decoder as one compiled program."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from repae_jax.models.backbones.base import class_token_dim
from repae_jax.models.batch_norm import denormalize_samples
from repae_jax.models.conditioning.base import null_condition, replace_where
from repae_jax.models.networks import Models, condition_of
from repae_jax.models.tokenizers.base import decode, is_identity
from repae_jax.parallel.mesh import batch_sharding, place, replicated
from repae_jax.sampling.class_labels import NO_CLASS
from repae_jax.sampling.integrate import sample_kept
from repae_jax.sampling.noise import image_noise, step_noise
from repae_jax.sampling.sampler import Sampler
from repae_jax.utils.finite import NotFinite, finite_rows
from repae_jax.utils.images import to_uint8

_DECODING = -1  # the fault of an image with finite latents whose pixels are NaN or infinite


class Generated(NamedTuple):
    """A batch of generated images.

    Attributes:
      images: uint8 (B, H, W, 3).
      faults: int32 (B,): 0 for an image whose latents and pixels are finite; n > 0 if sampling step
        n first made its latents NaN or infinite; -1 if decoding made its pixels so.
    """

    images: jax.Array
    faults: jax.Array


Inputs = Mapping[str, Any]
Generate = Callable[[Mapping, jax.Array, jax.Array, Inputs], Generated]


def make_generate(
    models: Models, sampler: Sampler, *, mesh: Mesh | None = None, kept: Sequence[int] = ()
) -> Generate:
    """Build the compiled function `generate(weights, key, indices, inputs) -> Generated`.

    `weights` holds "backbone" and "tokenizer" (their variables) and "latent_norm" ({"mean", "var"},
    (c,) each); for captions also the variables of the "text_encoder" and the "null_condition" that
    guidance leads away from. `indices` are (B,) integers, `inputs` the arrays of `condition_of`.
    Image i depends on the key, `indices[i]` and its input alone. A label is a class or, for a
    backbone with a null condition, `NO_CLASS`.

    On a mesh, all processes make the same call, the devices share the batch (B must be a multiple
    of their number), and every process receives all images.

    With `kept`, the K numbers of steps from 1 to `sampler.steps`, it returns a pair: `Generated`,
    and the latents (K, B, h, w, c) float32 after these steps, not normalized.
    """
    backbone, tokenizer = models.backbone, models.tokenizer
    shape = (backbone.latent_size, backbone.latent_size, backbone.latent_channels)
    class_dim = class_token_dim(backbone)

    def divided(tree):
        return (
            tree if mesh is None else jax.lax.with_sharding_constraint(tree, batch_sharding(mesh))
        )

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def generate(weights, key, indices, inputs):
        indices, inputs = divided((indices, inputs))
        condition = condition_of(models, weights, inputs)
        null = null_condition(backbone.conditioner, weights)
        if null is not None and "label" in inputs:
            condition = replace_where(inputs["label"] == NO_CLASS, condition, null)

        def predict(x, t, condition):
            x, *class_token = x if class_dim else (x,)
            output = backbone.apply(weights["backbone"], x, t, condition, *class_token)
            if class_dim:
                return output.prediction, output.extra["class_token"]
            if "variance" not in output.extra:
                return output.prediction
            return jnp.concatenate([output.prediction, output.extra["variance"]], axis=-1)

        latents, faults, states = sample_kept(
            sampler,
            predict,
            divided(image_noise(key, indices, shape, class_dim)),
            condition,
            null=null,
            step_noise=step_noise(key, indices, shape, class_dim) if sampler.stochastic else None,
            kept=kept,
        )
        latents, states = (latents[0], states and states[0]) if class_dim else (latents, states)
        norm = weights["latent_norm"]
        trail = None if states is None else denormalize_samples(states, norm["mean"], norm["var"])
        latents = denormalize_samples(latents, norm["mean"], norm["var"])
        images = decode(tokenizer, weights["tokenizer"], latents)
        decoded = jnp.where(finite_rows(images), 0, _DECODING)
        pixels = to_uint8(images, rounded=is_identity(tokenizer))
        made = Generated(pixels, jnp.where(faults > 0, faults, decoded))
        return made if trail is None else (made, trail)

    return generate


def describe_fault(fault: int) -> str:
    """Describe a nonzero value of `Generated.faults` in words."""
    if fault == _DECODING:
        return "its pixels are NaN or infinite, though its latents are not"
    return f"its latents are NaN or infinite from sampling step {fault} on"


def generate_batches(
    generate: Generate,
    weights: Mapping,
    key: jax.Array,
    inputs: Inputs,
    starts: Iterable[int],
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Generate images batch by batch; the devices compute the next batch during each yield.

    Args:
      generate: from `make_generate`, with the same `mesh`.
      weights: the weights that `generate` takes.
      key: the key of all images; on the mesh.
      inputs: the inputs (N, ...) of all images, on the host.
      starts: for each batch the number of its first image, 0 to N - 1.
      batch_size: images per batch.
      indices: (N,) integers, the index of each image's noise; by default 0, 1, 2, ...
      mesh: the devices.

    Yields:
      The number of the batch's first image, and the images (n, H, W, 3) uint8. n is the batch size,
      or fewer in the last batch; the devices compute full batches only, so one compiled shape
      serves all.

    Raises:
      NotFinite: latents or pixels of an image are NaN or infinite; the message names the sampling
        step that first made them so.
    """

    def dispatch(start):
        return start, _dispatch(generate, weights, key, inputs, start, batch_size, indices, mesh)

    before = None
    for start in starts:
        after = dispatch(start)
        if before is not None:
            yield _collect(*before, inputs)
        before = after
    if before is not None:
        yield _collect(*before, inputs)


def generate_with_trail(
    generate: Generate,
    weights: Mapping,
    key: jax.Array,
    inputs: Inputs,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generate the images of one batch, and the latents on the way to them.

    The arguments are those of `generate_batches`; `generate` keeps K steps, and `batch_size` is at
    least the number of inputs N.

    Returns:
      The images (N, H, W, 3) uint8, and the latents (K, N, h, w, c) float32, not normalized.

    Raises:
      NotFinite: latents or pixels of an image are NaN or infinite.
    """
    made, trail = _dispatch(generate, weights, key, inputs, 0, batch_size, indices, mesh)
    _, images = _collect(0, made, inputs)
    return images, np.asarray(trail)[:, : len(images)]


def _dispatch(generate, weights, key, inputs, start, batch_size, indices, mesh):
    """Begin to compute the batch of images from `start` on; the last image fills it up."""
    batch = np.arange(start, start + batch_size)
    rows = np.minimum(batch, number_of(inputs) - 1)
    chunk = {name: values[rows].astype(np.int32) for name, values in inputs.items()}
    arguments = (batch if indices is None else indices[rows], chunk)
    arguments = arguments if mesh is None else place(arguments, replicated(mesh))
    return generate(weights, key, *arguments)


def number_of(inputs: Inputs) -> int:
    """The number of images that inputs are for."""
    return len(next(iter(inputs.values())))


def _collect(start, made, inputs):
    """A batch's start and its requested images, checked to be finite, on the host."""
    faults = np.asarray(made.faults)[: number_of(inputs) - start]
    if faults.any():
        first = int(np.flatnonzero(faults)[0])
        raise NotFinite(
            f"image {start + first}{_of_class(inputs, start + first)}: "
            f"{describe_fault(faults[first])}; the run has diverged, or the guidance is too "
            "strong: take an earlier checkpoint (--step N), or a lower guidance scale"
        )
    return start, np.asarray(made.images)[: len(faults)]


def _of_class(inputs, number):
    """The class of an image in parentheses; "" for one of a caption."""
    if "label" not in inputs:
        return ""
    label = inputs["label"][number]
    return " (no class)" if label == NO_CLASS else f" (class {label})"


def generate_all(
    generate: Generate,
    weights: Mapping,
    key: jax.Array,
    inputs: Inputs,
    *,
    batch_size: int,
    indices: np.ndarray | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Generate images (N, H, W, 3) uint8 for all `inputs` (N, ...), with a progress bar.

    The arguments are those of `generate_batches`; `progress` shows the bar.

    Raises:
      NotFinite: latents or pixels of an image are NaN or infinite.
    """
    from tqdm import tqdm

    images = []
    count = number_of(inputs)
    starts = range(0, count, batch_size)
    with tqdm(total=count, unit="image", desc="sampling", disable=not progress) as bar:
        for _, made in generate_batches(
            generate, weights, key, inputs, starts,
            batch_size=batch_size, indices=indices, mesh=mesh,
        ):  # fmt: skip
            images.append(made)
            bar.update(len(made))
    return np.concatenate(images)
