"""How images are prepared for a teacher."""

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.models.resize import resize_bicubic

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

TEACHER_KINDS = ("dinov2", "native")


def preprocess(images: jax.Array, kind: str) -> jax.Array:
    """uint8 RGB images (B, H, W, 3) -> float32 (B, H', W', 3), as the teacher was trained.

    Args:
      images: values 0 to 255.
      kind: "dinov2" normalises by ImageNet's mean and std, *then* resizes 256 k pixels to 224 k
        (bicubic, a = -0.75, no antialias: the order and filter of REPA's code), so that patches
        of 14 pixels give a 16 k x 16 k grid. "native" only scales to [-1, 1], for a teacher
        that was trained on such images.

    Raises:
      UserError: an unknown kind, or images of a size that this kind does not take.
      ValueError: images are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"teachers take uint8 images, got {images.dtype}")
    if kind == "dinov2":
        return _dinov2(images)
    if kind == "native":
        return images.astype(jnp.float32) / 127.5 - 1.0
    raise UserError(f"unknown teacher kind {kind!r}; choose one of {', '.join(TEACHER_KINDS)}")


def _dinov2(images):
    height, width = images.shape[1:3]
    if height != width or height % 256:
        raise UserError(
            f"the dinov2 teacher takes square images of 256, 512, 768, ... pixels, got "
            f"{height} x {width}; change the image size, or use a teacher of kind 'native'"
        )
    x = (images.astype(jnp.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    size = 224 * (height // 256)
    return resize_bicubic(x, size, size, a=-0.75, antialias=False)
