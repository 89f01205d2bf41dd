"""ADM's reference batches: .npz files with images and the moments of their features.

The evaluator of openai/guided-diffusion reads them. Their arrays are `mu` (2048,) and `sigma`
(2048, 2048) of Inception's pooled features, for FID; `mu_s` (2023,) and `sigma_s` (2023, 2023) of
its spatial features, for sFID; and `arr_0`, uint8 images (N, H, W, 3). pytorch-fid writes only `mu`
and `sigma`. Beside them `resizing` says how the images were resized for Inception; files without it
are resized as ADM does.
"""

import os
import zipfile

import numpy as np

from repae_jax.data.npz import LARGEST, check_size
from repae_jax.errors import UserError, first_line
from repae_jax.evaluation.frechet import Gaussian
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import short_repr

POOLED = ("mu", "sigma")
SPATIAL = ("mu_s", "sigma_s")
IMAGES = "arr_0"
RESIZING = "resizing"
# How images are resized for Inception: in its graph, as ADM's evaluator does; or by clean-fid's
# `resized_images.resize_clean`.
ADM, CLEAN = "adm", "clean"
_LONGEST_WORD = 1 << 20  # bytes


def has_statistics(path: str | os.PathLike, *, spatial: bool = False) -> bool:
    """Whether a file is an .npz with the moments of pooled (or, if `spatial`, spatial) features."""
    return set(SPATIAL if spatial else POOLED) <= keys_of(path)


def keys_of(path: str | os.PathLike) -> set[str]:
    """The names of an .npz's arrays; empty for any other path.

    Raises:
      UserError: the file is a damaged .npz.
    """
    try:
        if not zipfile.is_zipfile(path):
            return set()
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def read_statistics(
    path: str | os.PathLike, *, spatial: bool = False, resizing: str = ADM
) -> Gaussian:
    """Read the distribution of pooled (or, if `spatial`, spatial) features.

    Args:
      path: the .npz file.
      spatial: which features.
      resizing: `ADM` or `CLEAN`, which the file's images must have.

    Raises:
      UserError: the file does not exist, is no .npz, lacks the statistics, or has those of images
        that were resized in another way.
    """
    keys = SPATIAL if spatial else POOLED
    try:
        with np.lib.npyio.NpzFile(path) as arrays:
            present = list(arrays)
            for key in set(keys).intersection(present):
                check_size(path, key, LARGEST)
            values = [np.asarray(arrays[key], np.float64) for key in keys if key in arrays]
            found = None
            if RESIZING in present:
                check_size(path, RESIZING, _LONGEST_WORD)
                found = str(arrays[RESIZING])
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
        raise _unreadable(path, error) from error
    missing = [key for key in keys if key not in present]
    if missing:
        raise UserError(
            f"{path}: no {missing[0]!r}, it holds {', '.join(present) or 'nothing'}: "
            + _remedy(present, spatial)
        )
    _check_resizing(path, found, resizing)
    return Gaussian(*values)


def write_statistics(
    path: str | os.PathLike,
    pooled: Gaussian,
    spatial: Gaussian | None = None,
    images: np.ndarray | None = None,
    *,
    resizing: str = ADM,
) -> None:
    """Write a reference batch for `read_statistics` and ADM's evaluator.

    ADM's evaluator needs the moments and images; pytorch-fid needs only the pooled moments.

    Args:
      path: the .npz file.
      pooled, spatial: distributions of pooled and of spatial features.
      images: (N, H, W, 3) uint8.
      resizing: how the images were resized for the features, `ADM` or `CLEAN`.
    """
    arrays = {RESIZING: np.array(resizing)}
    arrays |= dict(zip(POOLED, (pooled.mean, pooled.covariance), strict=True))
    if spatial is not None:
        arrays |= dict(zip(SPATIAL, (spatial.mean, spatial.covariance), strict=True))
    if images is not None:
        arrays[IMAGES] = images
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _check_resizing(path, found, wanted):
    if (found or ADM) == wanted:
        return
    if found is None:
        raise UserError(
            f"{path} does not record a resizing, so its statistics count as those of {ADM!r}, not "
            f"{wanted!r}: name the images, or add the array {RESIZING}={wanted!r} to the file if "
            "its statistics were made so"
        )
    raise UserError(
        f"{path} holds statistics of images that were resized by {short_repr(found)}, but the "
        f"samples are by {wanted!r}: choose the same --resizing, or name the images"
    )


def _remedy(present, spatial):
    if IMAGES in present and not set(POOLED) & set(present):
        return "compute the moments of its images' features, or take a reference that has them"
    if spatial:
        return "sFID needs the spatial features' moments, which pytorch-fid's files lack"
    return "take one of ADM's reference batches, or write the moments with `write_statistics`"


def _unreadable(path, error):
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: there is no such file")
    return UserError(f"{path}: cannot be read as .npz ({first_line(error)}); copy it anew")
