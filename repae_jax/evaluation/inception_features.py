"""Features of images for FID, sFID and Inception Score, as one compiled program."""

import functools
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from repae_jax.models.inception import InceptionV3, normalize, preprocess
from repae_jax.parallel.mesh import batch_sharding, place, replicated

Features = Callable[[jax.Array], dict[str, jax.Array]]


def make_features(
    variables: Mapping, *, mesh: Mesh | None = None, resized: bool = False
) -> Features:
    """Build the compiled function `features(images) -> dict` for RGB images of any size.

    `images` is uint8 (B, H, W, 3). The dict has pool (B, 2048), spatial (B, 2023) and logits
    (B, 1008), float32; `InceptionV3` describes them. Each new shape of a batch is compiled.
    `features` raises TypeError for another dtype and ValueError for another number of axes or
    channels.

    Args:
      variables: variables of `InceptionV3`, e.g. from interop.inception.read_inception.
      mesh: devices that share the batch; B must be a multiple of their number. All processes call
        `features` with the same complete batch, and each receives all features.
      resized: `images` are float32 (B, 299, 299, 3) in [0, 255], as `resize_clean` gives them.
    """
    model, prepare = InceptionV3(), normalize if resized else preprocess

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def features(variables, images):
        if mesh is not None:
            images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
        return model.apply(variables, prepare(images))

    variables = jax.device_put(variables) if mesh is None else place(variables, replicated(mesh))
    return functools.partial(features, variables)
