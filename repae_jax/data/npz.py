"""One array of an .npz as a stream: it may be larger than the memory."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np


@contextlib.contextmanager
def open_array(
    path: str | os.PathLike, name: str
) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """The array's bytes behind its header, in C's order; its shape, and its type.

    Raises:
      KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile: it is not there, or damaged.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran:
            raise ValueError("the array is in Fortran's order")
        yield file, shape, dtype
