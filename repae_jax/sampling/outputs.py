"""Output of generated images, batch by batch: one .npz file, or a folder of PNG files.

Both can be interrupted at any moment and resumed: `missing` lists the batches still to be
generated. A file under its final name is complete.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from repae_jax.data.decode import decode_pixels, read_file
from repae_jax.data.images import encode_pixels
from repae_jax.data.manifest import write_json
from repae_jax.data.npz import open_array
from repae_jax.data.write_progress import check_same
from repae_jax.errors import UserError
from repae_jax.utils.atomic_files import entries, remove_temporaries, replacing, write_atomically
from repae_jax.utils.figures import image_grid, save_png
from repae_jax.utils.lock import Lock, writing
from repae_jax.utils.regular_files import is_file_there
from repae_jax.utils.schema import Count, check_schema, read_json

FORMAT = "repae_jax samples 1"
SHOWN = 64  # images in the preview, eight per row
_THREADS = 8  # threads that read and write PNG files
_CHUNK = 1 << 20  # bytes
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
# The earliest time of a zip member: the archive's bytes must be independent of the time of writing.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Output:
    """`count` images uint8 (*shape) at `path`; beside it a description (JSON) and a preview.

    Attributes:
      path: the .npz file, or the folder.
      count: number of images.
      shape: (H, W, 3) of an image.
    """

    path: pathlib.Path
    count: int
    shape: tuple[int, int, int]

    @property
    def description(self) -> pathlib.Path:
        """NAME.json: the file that describes how the images were generated."""
        return self.path.with_name(f"{self._name}.json")

    @property
    def preview(self) -> pathlib.Path:
        """NAME_preview.png: the first images."""
        return self.path.with_name(f"{self._name}_preview.png")

    @property
    def _name(self):
        return self.path.name.removesuffix(".npz")

    def begin(self, made: Mapping[str, Any]) -> None:
        """Write the description `made`; once images exist, only the same description is accepted.

        Raises:
          UserError: the place holds other images or files, or it cannot be written.
        """
        self._check_free_of_others()
        ours = {"format": FORMAT, **made}
        there = is_file_there(self.description)
        if not there and self._begun():
            raise UserError(
                f"{self.path} exists already, and {self.description.name} is not there to say "
                "what it is; choose another --output, or remove it"
            )
        theirs = read_json(self.description) if there else ours
        if not isinstance(theirs, dict) or theirs.get("format") != FORMAT:
            raise UserError(
                f"{self.description} exists already and is something else; choose another --output"
            )
        if there and (others := self._other_form()) is not None:
            raise UserError(
                f"{self.description} already describes {others}, and {self.path} would need the "
                "same file: choose another name as --output"
            )
        if there and self._any_written():
            check_same(self.path, theirs, ours)
            return
        with self._writing(self.preview):
            self.preview.unlink(missing_ok=True)  # it shows images that have been removed
        write_json(self.description, ours)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Lock]:
        """Lock the output against other processes, and remove temporary files of killed runs.

        Raises:
          UserError: another process holds the lock, or the place cannot be written.
        """
        with writing(self.path) as lock:
            own = {self.path.name, self.description.name, self.preview.name}
            remove_temporaries(self.path.parent, own.__contains__)
            yield lock

    def is_finished(self) -> bool:
        """Whether `finish` has nothing left to do, once no batch is missing."""
        return self.path.exists()

    def show(self, done: int) -> None:
        """Write the preview once the first `done` images suffice for it, if it is missing."""
        shown = min(SHOWN, self.count)
        if done >= shown and not self.preview.exists():
            save_png(self.preview, image_grid(self.first(shown), min(8, shown)))

    def _other_form(self):
        """The path of images with the same name in the other form (folder or .npz), or None."""
        file, folder = self.path.with_name(f"{self._name}.npz"), self.path.with_name(self._name)
        other = folder if self.path == file else file
        form = Folder if other == folder else Npz
        return other if form(other, self.count, self.shape)._any_written() else None

    @contextlib.contextmanager
    def _writing(self, path):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); make room or permit it "
                "there, and run the same command to resume"
            ) from error


class Npz(Output):
    """All images in one file, in the format of ADM's evaluator.

    The file holds arr_0 uint8 (N, H, W, 3), then arr_1 int64 (N,), the labels, uncompressed.
    NAME.npz.partial collects the raw bytes of the images until all are written.
    """

    @property
    def partial(self) -> pathlib.Path:
        """NAME.npz.partial: the images written so far."""
        return self.path.with_name(f"{self.path.name}.partial")

    def missing(self, batch_size: int) -> list[int]:
        """The first index of every batch still to be generated.

        Incomplete batches are generated again as a whole, so that each image is computed in the
        same batch as in an uninterrupted run: rounding may depend on the batch.

        Raises:
          UserError: NAME.npz.partial is a folder.
        """
        if self.path.exists():
            self.partial.unlink(missing_ok=True)
            return []
        if self.partial.is_dir():
            raise UserError(f"{self.partial} is a folder: remove it, or choose another --output")
        rows = self.partial.stat().st_size // self._bytes if self.partial.exists() else 0
        done = self.count if rows >= self.count else rows // batch_size * batch_size
        return list(range(done, self.count, batch_size))

    def write(self, start: int, images: np.ndarray) -> None:
        """Append images uint8 (n, H, W, 3) after the first `start`; images past `count` are cut."""
        with self._writing(self.partial):
            mode = "r+b" if self.partial.exists() else "wb"
            with open(self.partial, mode) as file:
                file.seek(start * self._bytes)
                file.truncate()
                file.write(np.ascontiguousarray(images[: self.count - start]))
                file.flush()
                os.fsync(file.fileno())

    def first(self, count: int) -> np.ndarray:
        """The first `count` images, uint8 (count, H, W, 3)."""
        with self._images() as file:
            flat = np.frombuffer(file.read(count * self._bytes), np.uint8)
        return flat.reshape(-1, *self.shape)

    def finish(self, labels: np.ndarray) -> None:
        """Write NAME.npz from all images and `labels` (N,), with one chunk in memory at a time."""
        shape = (self.count, *self.shape)
        with replacing(self.path) as temporary:
            with zipfile.ZipFile(temporary, "w") as archive:
                with _member(archive, "arr_0", shape, np.uint8) as file, self._images() as images:
                    shutil.copyfileobj(images, file, _CHUNK)
                with _member(archive, "arr_1", labels.shape, np.int64) as numbers:
                    numbers.write(labels.astype(np.int64).tobytes())
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # the partial file goes next
        self.partial.unlink()

    @contextlib.contextmanager
    def _images(self):
        """Open the images' bytes, in NAME.npz if it exists, else in the partial file."""
        if not self.path.exists():
            with open(self.partial, "rb") as file:
                yield file
            return
        with open_array(self.path, "arr_0") as (file, _, _):
            yield file

    @property
    def _bytes(self):
        return int(np.prod(self.shape))

    def _begun(self):
        return self.path.exists() or self.partial.exists()

    def _any_written(self):
        """Whether images exist that NAME.json describes."""
        return self.path.exists() or (self.partial.exists() and self.partial.stat().st_size > 0)

    def _check_free_of_others(self):
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; choose another --output")


class FolderOutput(Output):
    """Images in the files of a folder."""

    def _begun(self):
        return self.path.is_dir() and any(name[0] != "." for name in entries(self.path))

    _any_written = _begun

    def _refuse_others(self, own):
        """Raise UserError if the folder holds other names than those of the set `own`."""
        others = [name for name in entries(self.path) if name[0] != "." and name not in own]
        if others:
            raise UserError(
                f"{self.path} holds something else already ({min(others)}); choose a new or "
                "empty folder"
            )


class Folder(FolderOutput):
    """Each image in a PNG file: 000000.png, 000001.png, ..."""

    def missing(self, batch_size: int) -> list[int]:
        """The first index of every batch still to be generated."""
        names = entries(self.path)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # network disks are slow
            whole = pool.map(is_whole, [self.path / name for name in names])
            there = {name for name, good in zip(names, whole, strict=True) if good}
        batches = range(0, self.count, batch_size)
        return [s for s in batches if not there.issuperset(self._names(s, batch_size))]

    def write(self, start: int, images: np.ndarray) -> None:
        """Write images uint8 (n, H, W, 3) from the index `start` on; complete files stay."""
        files = [self.path / name for name in self._names(start, len(images))]
        todo = [(file, image) for file, image in zip(files, images, strict=False)
                if not is_whole(file)]  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda pair: write_atomically(pair[0], encode_pixels(pair[1])), todo))

    def first(self, count: int) -> np.ndarray:
        """The first `count` images, uint8 (count, H, W, 3)."""
        paths = [self.path / name for name in self._names(0, count)]
        return np.stack([decode_pixels(read_file(p), self.shape[0], str(p)) for p in paths])

    def finish(self, labels: np.ndarray) -> None:
        """Do nothing: `write` completes every file."""

    def _names(self, start, size):
        return [f"{index:06d}.png" for index in range(start, min(start + size, self.count))]

    def _check_free_of_others(self):
        names = set(self._names(0, self.count))
        remove_temporaries(self.path, names.__contains__)
        self._refuse_others(names)


def make_output(path: pathlib.Path, count: int, shape: tuple[int, int, int]) -> Npz | Folder:
    """Make the output for `path`: one file for NAME.npz, a folder for a name without a suffix.

    Raises:
      UserError: `path` has another suffix, the folder's name is that of a file, or `count` is out
        of range.
    """
    check_schema(count, Count, source="--count")
    if path.suffix == ".npz":
        return Npz(path, count, shape)
    return Folder(check_folder(path), count, shape)


def check_folder(path: pathlib.Path) -> pathlib.Path:
    """The path of a folder of images, with a name.

    Raises:
      UserError: `path` is the root, has the suffix of a file, or is a file.
    """
    path = path if path.name else path.resolve()
    if not path.name:
        raise UserError(f"--output is {path}: give NAME.npz for one file, or a folder")
    if re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) and not path.is_dir():
        raise UserError(
            f"--output is {path}: give NAME.npz for one file, or a folder without a suffix"
        )
    if path.is_file():
        raise UserError(f"--output {path} is a file: give a folder, or NAME.npz")
    return path


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, shape, dtype) -> Iterator[BinaryIO]:
    """Open a new array of the archive; the caller writes the array's bytes."""
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file exists and has the end of a PNG or JPEG; of another kind, any content."""
    end = _ENDS.get(path.suffix, b"")
    try:
        with open(path, "rb") as file:
            file.seek(-max(1, len(end)), os.SEEK_END)
            return file.read().endswith(end)
    except OSError:
        return False
