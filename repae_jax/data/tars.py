"""Tars of pictures with captions (WebDataset's layout), at random access through an index.

A sample is a picture and a `txt` that follow each other in a tar (see `tar_headers`). WebDataset's
own reader streams, so it can neither shuffle all samples nor resume at one of them, as Grain's
random access does. So the headers of all tars are read once, into an index beside them; a sample is
then two reads at known places.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import typing

import numpy as np

from repae_jax.data.caption_texts import MOST_BYTES, decode_caption
from repae_jax.data.crop import RandomWindow
from repae_jax.data.decode import decode_cropped, unreadable
from repae_jax.data.identity import Fingerprint, contents_checksums, names_checksum, sample
from repae_jax.data.source import key_name, setting, split_folder
from repae_jax.data.tar_headers import CAPTION, PICTURES, Row, rows_of
from repae_jax.data.walk import warn_once
from repae_jax.errors import BadImage, UserError, first_line
from repae_jax.utils.atomic_files import replacing

VERSION = 2  # of the index
_LARGEST_PICTURE = 1 << 30  # bytes
_LISTED = 1000  # faults that are listed by name


@dataclasses.dataclass(frozen=True, eq=False)
class TarSource:
    """Samples of tars, of one class, read and decoded on access.

    Attributes:
      name: the folder.
      tars: the tars' paths.
      sizes: their sizes in bytes.
      rows: int64 (N, 5), the index, of whole samples.
      resolution: pixels along a side of the crops.
      exif: whether pictures are turned by their EXIF orientation.
      crop: a key of `crop.CROPS`.
      left_out: the names of damaged tars and incomplete samples, which `rows` lacks.
    """

    name: str
    tars: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: np.ndarray
    resolution: int
    exif: bool = False
    crop: str = "adm"
    num_classes: int = 1
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        return self.read(index)

    def read(self, index: int, window: RandomWindow | None = None) -> dict[str, np.ndarray | str]:
        name = self.image_name(index)
        picture, text = self._parts(index)
        image = decode_cropped(
            picture, self.resolution, name, exif=self.exif, crop=self.crop, window=window
        )
        return {"image": image, "label": np.int32(0), "caption": decode_caption(text, name)}

    def caption(self, index: int) -> str:
        row, name = Row(*self.rows[index].tolist()), self.image_name(index)
        with _opened(self.tars[row.tar]) as file:
            text = _read(file, row.caption, row.caption_size, MOST_BYTES, name)
        return decode_caption(text, name)

    def image_name(self, index: int) -> str:
        row = Row(*self.rows[index].tolist())
        return f"{self.tars[row.tar]}, picture at byte {row.picture}"

    def fingerprint(self) -> Fingerprint:
        names = (pathlib.Path(tar).name for tar in self.tars)
        pairs = (f"{name} {size}" for name, size in zip(names, self.sizes, strict=True))
        few = contents_checksums([sample(len(self))], lambda index: b"".join(self._parts(index)))
        count = len(self)
        return {"source": "tars", "count": count, "tars": names_checksum(pairs), "few": few[0]}

    def _parts(self, index):
        """The bytes of picture and caption."""
        row, name = Row(*self.rows[index].tolist()), self.image_name(index)
        with _opened(self.tars[row.tar]) as file:
            picture = _read(file, row.picture, row.picture_size, _LARGEST_PICTURE, name)
            return picture, _read(file, row.caption, row.caption_size, MOST_BYTES, name)


def open_tars(data_config: typing.Any, split: str) -> TarSource:
    """Open the tars of a split; the first time, this reads all of their headers.

    Args:
      data_config: its `path` is a folder of .tar files, or holds folders `train` and `heldout` of
        them; with `on_bad_image` "skip", samples without a picture or caption, and the rest of a
        damaged tar, are left out with a warning.
      split: "train" or "heldout".

    Raises:
      UserError: there are no tars, or a sample or a tar is damaged.
    """
    root = split_folder(
        data_config.path, split, _tars_in, "tars", called=key_name(data_config, "path")
    )
    tars = _tars_in(root)
    if not tars:
        raise UserError(
            f"{root} holds no .tar files; set {key_name(data_config, 'path')} to a folder of them"
        )
    sizes = tuple(tar.stat().st_size for tar in tars)
    rows = _index(root, tars, sizes)
    whole, left_out = (rows[:, 2] >= 0) & (rows[:, 4] >= 0), ()
    if not whole.all():
        left_out = _report(data_config, tars, rows[~whole])
        rows = rows[whole]
    if not len(rows):
        raise UserError(
            f"{root}: its {len(tars)} tars hold no sample, a picture ({', '.join(PICTURES)}) and a "
            f"{CAPTION} of one name"
        )
    exif, crop = getattr(data_config, "exif", False), getattr(data_config, "crop", "adm")
    return TarSource(
        str(root), tuple(map(str, tars)), sizes, rows, data_config.resolution, exif, crop,
        left_out=left_out,
    )  # fmt: skip


def _tars_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def _index(root, tars, sizes):
    """The index of all tars, int64 (N, 5), from its file beside them, or made and written there."""
    changed = (tar.stat().st_mtime_ns for tar in tars)
    states = zip((tar.name for tar in tars), sizes, changed, strict=True)
    stated = "".join("\0".join(map(str, state)) + "\0" for state in states)
    name = hashlib.sha256(f"{VERSION}\0{stated}".encode("utf-8", "surrogateescape")).hexdigest()
    path = root / f".tars-{name[:16]}.npy"
    if path.is_file():
        return _checked(path, sizes)
    from tqdm import tqdm

    bar = tqdm(tars, unit="tar", desc="indexing tars", disable=len(tars) < 8)
    rows = [row for number, tar in enumerate(bar) for row in rows_of(tar, number)]
    array = np.array(rows, np.int64).reshape(-1, len(Row._fields))
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    except UserError as error:
        warn_once(f"the index of the tars is made anew at every start: {error}")
    return array


def _checked(path, sizes):
    """The index in a file, memory-mapped; raises UserError if it is damaged."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        right = rows.dtype == np.int64 and rows.shape[1:] == (len(Row._fields),)
        if not right or (rows < (0, 0, -1, 0, -1)).any():
            raise ValueError("it has other values than an index")
        ends = np.asarray(sizes, np.int64)[rows[:, 0]]
        if not all((rows[:, i] <= ends - np.maximum(rows[:, i + 1], 0)).all() for i in (1, 3)):
            raise ValueError("it has places outside of the tars")
    except Exception as error:  # numpy raises many types for damaged files
        raise UserError(
            f"{path}, the index of the tars beside it, is damaged ({first_line(error)}): remove it"
        ) from error
    return rows


def _report(data_config, tars, rows):
    """Warn of incomplete samples and damaged tars; returns their names, of many the first.

    Raises UserError for the first of them unless they are to be skipped.
    """
    what, _ = _fault(tars, rows[0])
    more = f" (and {len(rows) - 1} more faults)" if len(rows) > 1 else ""
    if data_config.on_bad_image != "skip":
        raise UserError(
            f"{what}{more}: repair it, or leave such samples out with "
            f"{setting(data_config, 'on_bad_image', 'skip')}"
        )
    warn_once(f"left out: {what}{more}")
    names = [_fault(tars, row)[1] for row in rows[:_LISTED]]
    unnamed = len(rows) - len(names)
    return (*names, *([f"{unnamed} more samples and tars"] if unnamed else []))


def _fault(tars, row):
    """What an incomplete row of the index lacks, in words, and its name."""
    row = Row(*row.tolist())
    tar = tars[row.tar]
    if row.picture_size < 0 and row.caption_size < 0 and row.picture:
        where = f"file at byte {row.picture}"
        return (
            f"{tar}: the {where} has two dots in its name, so that its key, which ends at the "
            f"first, has neither picture nor {CAPTION}",
            f"{tar}, {where}",
        )
    if row.picture_size < 0 and row.caption_size < 0:
        return f"{tar} is damaged, and cannot be read on from there", f"{tar}, from its damage on"
    if row.caption_size < 0:
        where = f"picture at byte {row.picture}"
        return f"{tar}: the {where} has no {CAPTION} beside it", f"{tar}, {where}"
    where = f"{CAPTION} at byte {row.caption}"
    return f"{tar}: the {where} has no picture beside it", f"{tar}, {where}"


def _opened(path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error


def _read(file, place, size, most, name):
    """`size` bytes at a place of a tar, which no part may exceed."""
    if size > most:
        raise BadImage(
            f"{name}: a part of it has {size:,} bytes, more than the {most:,} that are read; "
            "shorten or remove it"
        )
    file.seek(place)
    data = file.read(size)
    if len(data) < size:
        raise UserError(f"{name}: the tar is shorter than when it was indexed; restore it")
    return data
