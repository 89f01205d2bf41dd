"""Checks of the shapes and types of a VAE's inputs; they run while a function is traced."""

import jax
import jax.numpy as jnp

from repae_jax.errors import UserError


def check_images(images: jax.Array, channels: int, factor: int) -> None:
    """Check images for a VAE's encoder.

    Args:
      images: float (B, H, W, channels).
      channels: the number of channels that the encoder takes.
      factor: the VAE's down-sampling factor, which must divide H and W.

    Raises:
      TypeError: the images are not floating point.
      UserError: the images have another shape, or the batch is empty.
    """
    _check_floating(images, "images")
    shape = images.shape
    if len(shape) != 4 or shape[-1] != channels:
        hint = ""
        if len(shape) == 3 and shape[-1] == channels:
            hint = ": add the batch's dimension, images[None]"
        elif len(shape) == 4 and shape[1] == channels:
            hint = ": channels come last, images.transpose(0, 2, 3, 1)"
        raise UserError(f"images are {shape}, not (B, H, W, {channels}){hint}")
    _check_any(images, "images")
    if any(side % factor or not side for side in shape[1:3]):
        raise UserError(
            f"images are {shape[1]} x {shape[2]} pixels, which the VAE's factor {factor} does not "
            f"divide: crop or resize them to multiples of {factor}"
        )


def check_latents(latents: jax.Array, channels: int) -> None:
    """Check latents (B, h, w, channels) for a VAE's decoder.

    Raises:
      TypeError: the latents are not floating point.
      UserError: the latents have another shape, or are empty.
    """
    _check_floating(latents, "latents")
    if latents.ndim != 4 or latents.shape[-1] != channels:
        hint = ": channels come last" if latents.ndim == 4 and latents.shape[1] == channels else ""
        raise UserError(f"latents are {latents.shape}, not (B, h, w, {channels}){hint}")
    if not all(latents.shape):
        _check_any(latents, "latents")
        raise UserError(f"latents are {latents.shape}: give at least one row and one column")


def _check_any(batch, what):
    if not batch.shape[0]:
        raise UserError(f"{what} are {batch.shape}, a batch of none: give at least one")


def _check_floating(array, what):
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{what} are {array.dtype}: give floating point")
