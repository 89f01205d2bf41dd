"""The handwritten digits that ship with scikit-learn, as 32 x 32 RGB images.

They need no download, so experiments and tests with them run anywhere.
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
      raw: float32 (N, 8, 8), 0..16: the scans that the images are made from.
    """

    images: np.ndarray
    labels: np.ndarray
    raw: np.ndarray


def load_digits_split(split: str) -> Split:
    """The train part (1,442 scans) or the held-out part (355) of scikit-learn's digits.

    Every fifth scan of each class, in the data set's own order, is held out. The split does not
    depend on a seed, so all runs are measured on the same images.

    Args:
      split: "train" or "heldout".

    Raises:
      UserError: another split.
    """
    if split not in SPLITS:
        raise UserError(f"digits have no split {split!r}; choose one of {', '.join(SPLITS)}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = _is_heldout(digits.target) == (split == "heldout")
    raw = digits.images[chosen].astype(np.float32)
    return Split(images=_to_images(raw), labels=digits.target[chosen].astype(np.int32), raw=raw)


def to_scan(images: np.ndarray) -> np.ndarray:
    """Reduce 32 x 32 images to 8 x 8 scans, for a classifier that was fitted on scans.

    The least-squares inverse of the enlargement: an enlarged scan gives the scan back, up to
    rounding and clipped overshoot, and any other image gives the nearest scan.

    Args:
      images: uint8 (N, 32, 32, 3).

    Returns:
      float32 (N, 64), 0..16, in the row-major order of scikit-learn's `digits.data`.
    """
    shrink = np.linalg.pinv(_enlargement())  # (8, 32)
    gray = np.asarray(images, np.float64).mean(axis=-1) * (_INK / 255)  # (N, 32, 32)
    scans = shrink @ gray @ shrink.T  # (N, 8, 8)
    return np.clip(scans, 0, _INK).astype(np.float32).reshape(len(scans), _SCAN * _SCAN)


def _is_heldout(labels):
    heldout = np.zeros(len(labels), bool)
    for label in range(NUM_CLASSES):
        heldout[np.flatnonzero(labels == label)[_HELDOUT_EVERY - 1 :: _HELDOUT_EVERY]] = True
    return heldout


def _to_images(scans):
    """Scans (N, 8, 8) in 0..16 as uint8 (N, 32, 32, 3)."""
    enlarge = _enlargement()  # (32, 8)
    gray = enlarge @ scans.astype(np.float64) @ enlarge.T * (255 / _INK)  # (N, 32, 32)
    gray = np.clip(np.rint(gray), 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


@functools.cache
def _enlargement():
    """Bicubic interpolation from 8 to 32 pixels along one axis, as a (32, 8) matrix.

    Interpolation is linear, so enlarging an identity matrix with PIL gives its weights. The matrix
    enlarges all scans at once, without intermediate rounding, and has a pseudo-inverse.
    """
    from PIL import Image

    identity = Image.fromarray(np.eye(_SCAN, dtype=np.float32))
    enlarged = identity.resize((_SCAN, RESOLUTION), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float64)
