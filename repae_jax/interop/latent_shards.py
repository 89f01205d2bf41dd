"""LightningDiT's cached latents: a folder of safetensors files, and the statistics beside them.

    latents_rank00_shard000.safetensors ...   latents, latents_flip (N, c, h, w), labels (N,)
    latents_stats.pt                          mean, std (1, c, 1, 1)

A latent is one sample of the image's posterior; `latents_flip` are those of the mirrored images.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files, latent_statistics
from repae_jax.interop.latent_statistics import Statistics

STATISTICS = "latents_stats.pt"
_NAME = re.compile(r"latents_rank\d+_shard\d+\.safetensors")
_LATENTS, _MIRRORED, _LABELS = "latents", "latents_flip", "labels"
_LATENT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LABEL_TYPES = ("I64", "I32")
_AT_A_TIME = 64  # images that are read at a time


@dataclasses.dataclass(frozen=True)
class LatentShards:
    """LightningDiT's cached latents.

    Attributes:
      folder: their folder.
      counts: {file name: number of its images}, in the order of their images.
      shape: (h, w, c) of a latent.
      dtype: the stored type of the latents, such as "float32".
    """

    folder: pathlib.Path
    counts: dict[str, int]
    shape: tuple[int, int, int]
    dtype: str

    def __len__(self) -> int:
        return sum(self.counts.values())

    def read(self, indexes: range) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        """Yield (name, latent, mirrored latent, label) of the images `indexes`, latents (h, w, c).

        Raises:
          UserError: a latent is NaN or infinite, or a file has changed or is damaged.
        """
        first = 0
        for file, count in self.counts.items():
            start, stop = max(indexes.start - first, 0), min(indexes.stop - first, count)
            if start < stop:
                yield from self._read_file(self.folder / file, start, stop)
            first += count

    def _read_file(self, path, start, stop):
        with files.open_safetensors(path) as handle:
            parts = [handle.get_slice(name) for name in (_LATENTS, _MIRRORED, _LABELS)]
            for begin in range(start, stop, _AT_A_TIME):
                end = min(begin + _AT_A_TIME, stop)
                rows = zip(*(part[begin:end] for part in parts), strict=True)
                for index, (latent, mirrored, label) in enumerate(rows, begin):
                    name = f"{path}, image {index}"
                    for array in (latent, mirrored):
                        if not np.isfinite(array.astype(np.float32)).all():
                            raise UserError(
                                f"{name}: its latent is NaN or infinite: get the file again, or "
                                "extract the latents anew"
                            )
                    yield name, latent.transpose(1, 2, 0), mirrored.transpose(1, 2, 0), int(label)


def files_in(folder: pathlib.Path) -> list[str]:
    """The sorted names of the files of latents in a folder; [] without any."""
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name))


def open_shards(folder: pathlib.Path) -> LatentShards:
    """Open LightningDiT's cached latents; reads the headers of the files alone.

    Raises:
      UserError: a file is damaged, lacks a tensor, or has tensors of another type or shape.
    """
    counts, kinds = {}, {}
    for name in files_in(folder):
        counts[name], *kinds[name] = _header(folder / name)
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise UserError(
                f"{folder / name}: its latents are {_text(*other)}, those of {first} "
                f"{_text(*kind)}: keep the files of one extraction in a folder"
            )
    if not sum(counts.values()):
        raise UserError(f"{folder}: its files hold no latents: get them again")
    shape, dtype = kind
    return LatentShards(folder, counts, (*shape[1:], shape[0]), dtype)


def write_shard(
    folder: pathlib.Path,
    number: int,
    latents: Sequence[np.ndarray],
    mirrored: Sequence[np.ndarray],
    labels: Sequence[int],
) -> None:
    """Write one file of latents (h, w, c) of images and of their mirror images.

    Raises:
      UserError: the file cannot be written.
    """
    tensors = {
        _LATENTS: np.stack(latents).transpose(0, 3, 1, 2),
        _MIRRORED: np.stack(mirrored).transpose(0, 3, 1, 2),
        _LABELS: np.asarray(labels, np.int64),
    }
    path = folder / f"latents_rank00_shard{number:03d}.safetensors"
    files.write_safetensors(path, tensors, {"total_size": str(len(labels))})


def write_statistics(folder: pathlib.Path, statistics: Statistics) -> None:
    """Write {"mean": (c,), "var": (c,)}, or (h, w, c) each, as their file of statistics.

    Raises:
      UserError: the file cannot be written.
    """
    std = np.sqrt(np.asarray(statistics["var"], np.float64))
    tensors = {"mean": np.asarray(statistics["mean"]), "std": std}
    shaped = {n: latent_statistics.of_positions(a.astype(np.float32)) for n, a in tensors.items()}
    files.write_torch(folder / STATISTICS, shaped)


def _header(path):
    """(number of images, shape (c, h, w), type) from a file's header."""
    with files.open_safetensors(path) as handle:
        missing = {_LATENTS, _MIRRORED, _LABELS}.difference(handle.keys())
        if missing:
            raise UserError(
                f"{path}: tensor {min(missing)!r} is missing, so it is no file of LightningDiT's "
                "latents: get it again, or remove it"
            )
        found = {n: handle.get_slice(n) for n in (_LATENTS, _MIRRORED, _LABELS)}
        shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
        types = {name: part.get_dtype() for name, part in found.items()}
    shape, dtype = shapes[_LATENTS], types[_LATENTS]
    if len(shape) != 4 or dtype not in _LATENT_TYPES or 0 in shape[1:]:
        raise UserError(
            f"{path}: {_LATENTS!r} is {dtype} of shape {shape}, and has to be (N, c, h, w) of one "
            f"of {', '.join(_LATENT_TYPES)}"
        )
    if (shapes[_MIRRORED], types[_MIRRORED]) != (shape, dtype):
        raise UserError(
            f"{path}: {_MIRRORED!r} is {types[_MIRRORED]} of shape {shapes[_MIRRORED]}, and has to "
            f"be as {_LATENTS!r}, {dtype} of shape {shape}: get the file again"
        )
    if shapes[_LABELS] != shape[:1] or types[_LABELS] not in _LABEL_TYPES:
        raise UserError(
            f"{path}: {_LABELS!r} is {types[_LABELS]} of shape {shapes[_LABELS]}, and has to be "
            f"integers of shape {shape[:1]}: get the file again"
        )
    return shape[0], shape[1:], _LATENT_TYPES[dtype]


def _text(shape, dtype):
    return f"{dtype} of shape {shape}"
