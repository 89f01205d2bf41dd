"""Preprocessing of images for a teacher."""

import jax
import jax.numpy as jnp
import numpy as np

from repae_jax.errors import UserError
from repae_jax.models.resize import resize_bicubic, resize_bilinear

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# "vavae" is that of "pe", which VF loss gives to any encoder.
RESIZING_KINDS = ("dinov2", "clip", "pe", "vavae")
_BILINEAR = ("pe", "vavae")
TEACHER_KINDS = (*RESIZING_KINDS, "imagenet", "native")

TOKEN_PIXELS = 16  # pixels along a side of a token, before resizing
_RESIZED = 14  # and after


def preprocess(images: jax.Array, kind: str, token_pixels: int = TOKEN_PIXELS) -> jax.Array:
    """uint8 RGB images (B, H, W, 3) -> float32 (B, H', W', 3), as the teacher was trained.

    The order of operations and the filters follow the code of REPA and REPA-E, which supports
    squares of 256 and 512 pixels, and of iREPA for "pe".

    Args:
      images: values 0 to 255.
      kind: "dinov2" (also for I-JEPA) normalizes by ImageNet's mean and std, *then* resizes.
        "clip" resizes, *then* normalizes by CLIP's own mean and std. "imagenet" (DINO, MoCo v3,
        MAE) normalizes by ImageNet's mean and std and does not resize. "native" only scales to
        [-1, 1], for a teacher that was trained on such images. "pe" resizes, and scales to
        [-1, 1]; so does "vavae", for any teacher (VA-VAE). Images are resized to `teacher_side`
        pixels (bicubic, a = -0.75, for "pe" and "vavae" bilinear, no antialias; for larger
        `token_pixels` than published, a = -0.5 or bilinear with antialias, as torchvision's and
        PIL's).
      token_pixels: see `teacher_side`.

    Raises:
      UserError: an unknown kind, or a size of images that the kind does not accept.
      ValueError: the images are not uint8 (B, H, W, 3).
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"teachers take uint8 images, got {images.dtype}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"teachers take RGB images (B, H, W, 3), got {images.shape}")
    if kind not in TEACHER_KINDS:
        raise UserError(f"unknown teacher kind {kind!r}; choose one of {', '.join(TEACHER_KINDS)}")
    if kind in ("native", *_BILINEAR):
        x = images.astype(jnp.float32) / 127.5 - 1.0
        return x if kind == "native" else _resize(x, kind, token_pixels)
    x = images.astype(jnp.float32) / 255.0
    if kind == "clip":
        return (_resize(x, kind, token_pixels) - CLIP_MEAN) / CLIP_STD
    x = (x - IMAGENET_MEAN) / IMAGENET_STD
    return _resize(x, kind, token_pixels) if kind == "dinov2" else x


def teacher_side(resolution: int, kind: str, token_pixels: int = TOKEN_PIXELS) -> int:
    """The side, in pixels, of `preprocess`ed squares of `resolution` pixels.

    A resizing kind makes 14 pixels of `token_pixels`. With 16, a teacher with 14-pixel patches
    (DINOv2, I-JEPA, CLIP, PE) has as many tokens as a teacher with 16-pixel patches, and as a
    backbone with patches of 2 on latents of an eighth of the side; with 32, as a backbone with
    patches of 1 on latents of a 32nd (DC-AE). At multiples of 256 and 16 pixels the sizes equal
    those of the code of REPA and REPA-E.

    Raises:
      UserError: `token_pixels` does not divide the resolution.
    """
    if kind not in RESIZING_KINDS:
        return resolution
    if resolution % token_pixels:
        below = resolution // token_pixels * token_pixels
        fitting = f"{below} or {below + token_pixels}" if below else str(token_pixels)
        raise UserError(
            f"the {kind} teacher takes images of multiples of {token_pixels} pixels, got "
            f"{resolution}: use {fitting}, or a preprocessing that does not resize"
        )
    return resolution // token_pixels * _RESIZED


def _resize(x, kind, token_pixels):
    height, width = x.shape[1:3]
    if height != width:
        raise UserError(f"the {kind} teacher takes square images, got {height} x {width}")
    side = teacher_side(height, kind, token_pixels)
    wider = token_pixels > TOKEN_PIXELS
    if kind in _BILINEAR:
        return resize_bilinear(x, side, side, antialias=wider)
    if wider:
        return resize_bicubic(x, side, side, a=-0.5, antialias=True)
    return resize_bicubic(x, side, side, a=-0.75, antialias=False)
