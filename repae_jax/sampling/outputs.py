"""Where generated images go, batch by batch: one .npz, or a folder of PNG files.

Both can be left at any moment and gone on with: `missing` tells which batches are still to be
made. What has a final name is whole.
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
_SHOWN = 64  # images of the preview, eight a row
_THREADS = 8  # that read and write PNGs
_CHUNK = 1 << 20  # bytes
_PNG_END = b"IEND\xaeB`\x82"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file knows: bytes must not tell the hour


@dataclasses.dataclass(frozen=True)
class Output:
    """`count` images (*shape) uint8 at `path`, and beside it what they are and a preview."""

    path: pathlib.Path
    count: int
    shape: tuple[int, int, int]

    @property
    def about(self) -> pathlib.Path:
        """NAME.json: the file that says what the images are."""
        return self.path.with_name(f"{self._name}.json")

    @property
    def preview(self) -> pathlib.Path:
        """NAME_preview.png: the first images."""
        return self.path.with_name(f"{self._name}_preview.png")

    @property
    def _name(self):
        return self.path.name.removesuffix(".npz")

    def begin(self, made: Mapping[str, Any]) -> None:
        """Note what is being made, and that is all that may be made here from the first image on.

        Raises:
          UserError: something else is there or has been begun there, or it cannot be written.
        """
        self._check_free_of_others()
        ours = {"format": FORMAT, **made}
        there = is_file_there(self.about)
        if not there and self._begun():
            raise UserError(
                f"{self.path} exists already, and {self.about.name} is not there to say what it "
                "is; choose another --output, or remove it"
            )
        theirs = read_json(self.about) if there else ours
        if not isinstance(theirs, dict) or theirs.get("format") != FORMAT:
            raise UserError(
                f"{self.about} exists already and is something else; choose another --output"
            )
        if there and (others := self._other_form()) is not None:
            raise UserError(
                f"{self.about} says what {others} holds, and would be that of {self.path} as well: "
                "choose another name as --output"
            )
        if there and self._any_written():
            check_same(self.path, theirs, ours)
            return
        with self._writing(self.preview):
            self.preview.unlink(missing_ok=True)  # of images that have been removed
        write_json(self.about, ours)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Lock]:
        """Holds the output against other processes; what killed runs left half-written is gone.

        Raises:
          UserError: another process holds it, or it cannot be written there.
        """
        with writing(self.path) as lock:
            own = {self.path.name, self.about.name, self.preview.name}
            remove_temporaries(self.path.parent, own.__contains__)
            yield lock

    def show(self, done: int) -> None:
        """Write the preview if it is not there and the first `done` images suffice for it."""
        shown = min(_SHOWN, self.count)
        if done >= shown and not self.preview.exists():
            save_png(self.preview, image_grid(self.first(shown), min(8, shown)))

    def _other_form(self):
        """The images of the same name that are a folder where these are a file, or the reverse."""
        file, folder = self.about.with_name(f"{self._name}.npz"), self.about.with_name(self._name)
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
                "there, and run the same command to go on"
            ) from error


class Npz(Output):
    """All images in one file, as ADM's evaluator reads them.

    arr_0 uint8 (N, H, W, 3) and arr_1 int64 (N,), the labels, not compressed, arr_0 first. The
    images stand in NAME.npz.partial, one behind the other, until all are there.
    """

    @property
    def partial(self) -> pathlib.Path:
        """The images so far."""
        return self.path.with_name(f"{self.path.name}.partial")

    def missing(self, batch_size: int) -> list[int]:
        """The first index of every batch that is to be made.

        Batches that are not whole are made anew, so that each image has the neighbours that it has
        in a run that nothing disturbed: rounding may depend on them.
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
        """Put images (n, H, W, 3) behind the first `start`; n may be beyond the count."""
        with self._writing(self.partial):
            mode = "r+b" if self.partial.exists() else "wb"
            with open(self.partial, mode) as file:
                file.seek(start * self._bytes)
                file.truncate()
                file.write(np.ascontiguousarray(images[: self.count - start]))
                file.flush()
                os.fsync(file.fileno())

    def first(self, count: int) -> np.ndarray:
        """The first images."""
        with self._images() as file:
            flat = np.frombuffer(file.read(count * self._bytes), np.uint8)
        return flat.reshape(-1, *self.shape)

    def finish(self, labels: np.ndarray) -> None:
        """Write the file from all images, of which one chunk at a time is in memory."""
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
        """The images' bytes, be they finished or not."""
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
        """Whether there are images, which NAME.json is about."""
        return self.path.exists() or (self.partial.exists() and self.partial.stat().st_size > 0)

    def _check_free_of_others(self):
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; choose another --output")


class Folder(Output):
    """Each image in a PNG file, 000000.png and so on."""

    def missing(self, batch_size: int) -> list[int]:
        """The first index of every batch that is to be made."""
        names = entries(self.path)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # a disk may be far away
            whole = pool.map(_is_whole, [self.path / name for name in names])
            there = {name for name, good in zip(names, whole, strict=True) if good}
        batches = range(0, self.count, batch_size)
        return [s for s in batches if not there.issuperset(self._names(s, batch_size))]

    def write(self, start: int, images: np.ndarray) -> None:
        """Write images (n, H, W, 3) from the index `start` on, but those that are there."""
        files = [self.path / name for name in self._names(start, len(images))]
        todo = [(file, image) for file, image in zip(files, images, strict=False)
                if not _is_whole(file)]  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda pair: write_atomically(pair[0], encode_pixels(pair[1])), todo))

    def first(self, count: int) -> np.ndarray:
        """The first images."""
        paths = [self.path / name for name in self._names(0, count)]
        return np.stack([decode_pixels(read_file(p), self.shape[0], str(p)) for p in paths])

    def finish(self, labels: np.ndarray) -> None:
        """Nothing is left to do."""

    def _names(self, start, size):
        return [f"{index:06d}.png" for index in range(start, min(start + size, self.count))]

    def _begun(self):
        return self.path.is_dir() and any(name[0] != "." for name in entries(self.path))

    _any_written = _begun

    def _check_free_of_others(self):
        names = set(self._names(0, self.count))
        remove_temporaries(self.path, names.__contains__)
        others = [name for name in entries(self.path) if name[0] != "." and name not in names]
        if others:
            raise UserError(
                f"{self.path} holds something else already ({min(others)}); choose a new or "
                "empty folder"
            )


def make_output(path: pathlib.Path, count: int, shape: tuple[int, int, int]) -> Npz | Folder:
    """The output that the name asks for: NAME.npz, or without a suffix a folder.

    Raises:
      UserError: another suffix, a folder that is a file, or no images.
    """
    path = path if path.name else path.resolve()
    check_schema(count, Count, source="--count")
    if not path.name:
        raise UserError(f"--output is {path}: give NAME.npz for one file, or a folder")
    if path.suffix == ".npz":
        return Npz(path, count, shape)
    if re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) and not path.is_dir():
        raise UserError(
            f"--output is {path}: give NAME.npz for one file, or a folder without a suffix"
        )
    if path.is_file():
        raise UserError(f"--output {path} is a file: give a folder, or NAME.npz")
    return Folder(path, count, shape)


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, shape, dtype) -> Iterator[BinaryIO]:
    """An array of the archive, to be filled with its bytes."""
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _is_whole(path):
    """Whether a PNG file is there up to its last chunk."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False
