"""Differentiable augmentation of a discriminator's images (DiffAug, arXiv 2006.10738).

The policies are translation and color, as in StyleGAN-T (arXiv 2301.09515) and RAE
(arXiv 2510.11690): each image is moved by up to an eighth of its sides, then its brightness,
saturation and contrast change.
"""

import jax
import jax.numpy as jnp

TRANSLATION = 0.125  # of the image's sides, at most
NUMBERS = 5  # uniform numbers for an image: see `diff_augment`


def sample_numbers(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw the numbers of `diff_augment` for a `shape` of images, e.g. (B,): (*shape, NUMBERS)."""
    return jax.random.uniform(key, (*shape, NUMBERS))


def diff_augment(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Augment images (B, H, W, 3) in [-1, 1], each by its own numbers; the results may leave it.

    Args:
      images: the images.
      numbers: (B, NUMBERS) in [0, 1): the shift of the rows and of the columns, from -d to d pixels
        with d an eighth of the side, rounded to an integer; the brightness that is added, -0.5 to
        0.5; the factor of the differences from each pixel's gray, 0 to 2; the factor of the
        differences from the image's mean, 0.5 to 1.5.
    """
    x = jax.vmap(_translate)(images, numbers[:, 0], numbers[:, 1])
    brightness, saturation, contrast = (numbers[:, i, None, None, None] for i in (2, 3, 4))
    x = x + (brightness - 0.5)
    x = _scale_about(x, x.mean(axis=-1, keepdims=True), 2.0 * saturation)
    return _scale_about(x, x.mean(axis=(1, 2, 3), keepdims=True), contrast + 0.5)


def shifts(number: jax.Array, side: int) -> jax.Array:
    """The shift in pixels, int32 from -d to d, of uniform numbers in [0, 1); d = round(side / 8).

    `round` is Python's, to the even neighbor of a half.
    """
    most = round(side * TRANSLATION)
    return jnp.floor(number * (2 * most + 1)).astype(jnp.int32) - most


def _translate(image, row_number, column_number):
    """Pixel (r, c) of the result is (r + shift, c + shift) of the image, or 0 beyond its border."""
    height, width = image.shape[:2]
    tall, wide = (round(side * TRANSLATION) for side in (height, width))
    padded = jnp.pad(image, ((tall, tall), (wide, wide), (0, 0)))
    start = (shifts(row_number, height) + tall, shifts(column_number, width) + wide, 0)
    return jax.lax.dynamic_slice(padded, start, image.shape)


def _scale_about(x, center, factor):
    return (x - center) * factor + center


AUGMENTATIONS = {"none": lambda images, numbers: images, "diffaug": diff_augment}
