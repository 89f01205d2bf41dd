"""The handwritten digits that ship with scikit-learn, as 32 x 32 RGB images.

They need no download, so an experiment and its tests run anywhere.
"""

import dataclasses
import functools

import numpy as np

from repae_jax.errors import UserError

RESOLUTION = 32
NUM_CLASSES = 10
SPLITS = ("train", "heldout")

_SCAN = 8  # pixels along a side of a scan
_INK = 16  # a scan's largest value
_HELDOUT_EVERY = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One part of the digits.

    Attributes:
      images: uint8 (N, 32, 32, 3), white ink on black.
      labels: int32 (N,), 0..9.
      raw: float32 (N, 8, 8), the scans that the images were made from, 0..16.
    """

    images: np.ndarray
    labels: np.ndarray
    raw: np.ndarray


def load_digits_split(split: str) -> Split:
    """The train part (1,442 scans) or the held-out part (355) of scikit-learn's digits.

    Every fifth scan of each class, in the data set's own order, is held out: no seed decides,
    so figures from different runs are about the same images.

    Args:
      split: "train" or "heldout".

    Raises:
      UserError: for another split.
    """
    if split not in SPLITS:
        raise UserError(f"digits have no split {split!r}; choose one of {', '.join(SPLITS)}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = _is_heldout(digits.target) == (split == "heldout")
    raw = digits.images[chosen].astype(np.float32)
    return Split(images=_to_images(raw), labels=digits.target[chosen].astype(np.int32), raw=raw)


def to_scan(images: np.ndarray) -> np.ndarray:
    """The 8 x 8 scans that 32 x 32 images show, for a classifier that was fitted on scans.

    The least-squares inverse of the enlargement, so that a scan survives the round trip but for
    rounding and for the overshoot that was clipped; of an image that is no enlarged scan it
    gives the nearest one.

    Args:
      images: uint8 (N, 32, 32, 3).

    Returns:
      float32 (N, 64), 0..16, in the row-major order of scikit-learn's `digits.data`.
    """
    shrink = np.linalg.pinv(_enlargement())  # (8, 32)
    grey = np.asarray(images, np.float64).mean(axis=-1) * (_INK / 255)  # (N, 32, 32)
    scans = shrink @ grey @ shrink.T  # (N, 8, 8)
    return np.clip(scans, 0, _INK).astype(np.float32).reshape(len(scans), _SCAN * _SCAN)


def _is_heldout(labels):
    heldout = np.zeros(len(labels), bool)
    for label in range(NUM_CLASSES):
        heldout[np.flatnonzero(labels == label)[_HELDOUT_EVERY - 1 :: _HELDOUT_EVERY]] = True
    return heldout


def _to_images(scans):
    """Scans (N, 8, 8) in 0..16 as uint8 (N, 32, 32, 3)."""
    enlarge = _enlargement()  # (32, 8)
    grey = enlarge @ scans.astype(np.float64) @ enlarge.T * (255 / _INK)  # (N, 32, 32)
    grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@functools.cache
def _enlargement():
    """Bicubic interpolation from 8 to 32 pixels along one axis, as a (32, 8) matrix.

    Interpolation is linear, so the rows that PIL makes of an identity are its weights. Having
    them as a matrix enlarges all scans at once, without rounding in between, and gives the way
    back.
    """
    from PIL import Image

    identity = Image.fromarray(np.eye(_SCAN, dtype=np.float32))
    enlarged = identity.resize((_SCAN, RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float64)
