"""Features of images for FID, sFID and Inception Score, as one compiled program."""

import functools
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from repae_jax.models.inception import InceptionV3, preprocess
from repae_jax.parallel.mesh import batch_sharding, place, replicated

Features = Callable[[jax.Array], dict[str, jax.Array]]


def make_features(variables: Mapping, *, mesh: Mesh | None = None) -> Features:
    """Build the compiled `features(images uint8 (B, H, W, 3)) -> dict`, of RGB images of any size.

    The dict has pool (B, 2048), spatial (B, 2023) and logits (B, 1008), float32; `InceptionV3`
    says what they are. A batch of another shape is compiled anew.

    Args:
      variables: of `InceptionV3`, e.g. from interop.inception.read_inception.
      mesh: its devices divide the batch, which their number must divide. All processes call
        `features` alike, with the whole batch, and every process gets the features of all.

    Raises (`features`):
      TypeError: images are not uint8.
      ValueError: images are not (B, H, W, 3).
    """
    model = InceptionV3()

    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def features(variables, images):
        if mesh is not None:
            images = jax.lax.with_sharding_constraint(images, batch_sharding(mesh))
        return model.apply(variables, preprocess(images))

    variables = jax.device_put(variables) if mesh is None else place(variables, replicated(mesh))
    return functools.partial(features, variables)
