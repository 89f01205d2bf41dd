"""What is fuzzed: files that this project reads, how they are made, and how they are read."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

# Formats without checksums whose every byte is a value: what a flipped bit in them changed,
# nobody can know.
FREE = r".*\.(json|jsonl|txt|png|jpg|jpeg|webp|gif|bmp|h5|partial)"


@dataclasses.dataclass(frozen=True)
class Target:
    """Files of one kind.

    Attributes:
      name: what to call them.
      write: makes them in an empty folder; every time the same.
      read: reads them with the project's own functions and returns all values that come of them,
        nested.
      files: a regular expression of those below the folder that are changed.
      sealed: of those in which a checksum finds every change, though their format has none.
      follows: of the keys of plain values ("a/b/c") of which the result is allowed to be another
        for another finite number, or without them.
      names: of those whose every value may be meant: a name for something, infinity for no bound.
      optional: of the values that may be missing from the result where a part is gone.
      like: the name of another target with the same files.
      words: the command line that reads them, from the folder and an empty one.
    """

    name: str
    write: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], Any]
    files: str = ".*"
    sealed: str = "(?!)"
    follows: str = "(?!)"
    names: str = "(?!)"
    optional: str = "(?!)"
    like: str = ""
    words: Callable[[pathlib.Path, pathlib.Path], list[str]] | None = None

    @property
    def folder(self) -> str:
        """What to call its files' folder."""
        return "".join(c if c.isalnum() else "_" for c in self.like or self.name)

    def list_files(self, folder: pathlib.Path) -> list[str]:
        """The files to change, relative to the folder."""
        names = (str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file())
        return [name for name in names if re.fullmatch(self.files, name)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, digest) of every value in nested dicts, lists and dataclasses.

    A float of another width with the same value has the same digest.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        yield f"{path}/len", str(len(value))
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}/{number}")
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        yield path, _digest(np.asarray(value))
    else:
        yield path, repr(value)


def _digest(array):
    if array.dtype.kind == "V" or (array.dtype.itemsize < 4 and array.dtype.kind == "f"):
        array = array.astype(np.float32)
    kind = "float" if array.dtype.kind == "f" else str(array.dtype)
    with np.errstate(all="ignore"):
        data = array.astype(np.float64) if kind == "float" else array
    return f"{kind} {array.shape} {hashlib.sha256(np.ascontiguousarray(data)).hexdigest()[:16]}"


def eighths(shapes: Any, seed: int = 0) -> Any:
    """Arrays of multiples of 1/8 from 1/8 to 1, which every type of floats down to 8 bits holds.

    Positive, so that they may be variances.
    """
    import jax

    rng = np.random.default_rng(seed)

    def make(shape):
        return (rng.integers(1, 9, shape.shape) / 8).astype(np.float32)

    return jax.tree.map(make, shapes)
