"""numpy's files: headers of arrays, and one array of an .npz as a stream.

The array may be larger than the memory.
"""

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

LARGEST = 1 << 28  # the most bytes of statistics: the covariance of 5792 features


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether it is in Fortran order, type) of an array that numpy.save wrote.

    Raises:
      ValueError: the header is damaged, or of a version that no plain array needs.
    """
    major, _ = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if major not in read:
        raise ValueError(f"version {major} of numpy's format")
    shape, fortran, dtype = read[major](file)
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, fortran, dtype


def check_size(path: str | os.PathLike, name: str, most: int) -> None:
    """Raise ValueError if the header of an array in an .npz claims more than `most` bytes.

    numpy allocates as many bytes as the header claims, even if the file has a few kilobytes.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, _, dtype = read_header(file)
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise ValueError(f"{name} is {dtype} {shape}, of over {most >> 20} MiB")


@contextlib.contextmanager
def open_array(
    path: str | os.PathLike, name: str
) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """Yield (the array's bytes after its header, in C order; its shape; its type).

    Raises:
      KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile: the array is missing or damaged.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = read_header(file)
        if fortran:
            raise ValueError(f"{name} is in Fortran order: save numpy.ascontiguousarray of it")
        yield file, shape, dtype
