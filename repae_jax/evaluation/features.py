"""Checks of the features that measures take."""

import numpy as np

from repae_jax.errors import UserError
from repae_jax.utils.finite import NotFinite


def check_features(features: np.ndarray, what: str = "features", first_row: int = 0) -> np.ndarray:
    """Check features (N, D), D > 0; returns them as float64. N may be 0.

    Args:
      features: an array of any float type.
      what: the features' name, for errors.
      first_row: the number of the first row, for errors.

    Raises:
      UserError: another number of axes, or no columns.
      NotFinite: a row has NaN or infinite values; the error gives its number.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.shape[1]:
        raise UserError(f"{what} must be (N, D) with D > 0, got {features.shape}: flatten the rest")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = first_row + int(np.argmin(finite))
        raise NotFinite(
            f"{what}: row {row} holds NaN or infinite values: look at the image that it is of"
        )
    return features


def check_same_dimension(a: int, b: int) -> None:
    """Raise UserError unless two sets of features have the same number of columns."""
    if a != b:
        raise UserError(
            f"features of {a} and of {b} dimensions cannot be compared: take both from one layer "
            "of one network"
        )
