"""Seconds that a start spends on telling its data from others (see `data.identity`).

python benchmarks/fingerprint.py [--images 1300000] [--classes 1000] [--bytes 110000]

Of the images only those are made that are read, each of --bytes bytes.
"""

import argparse
import os
import pathlib
import tempfile
import time

import h5py
import numpy as np

from repae_jax.data.folder import FolderSource
from repae_jax.data.hdf5 import Hdf5Source
from repae_jax.data.identity import sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=110_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(pathlib.Path(folder), options)
        for kind, source in sources.items():
            clocks = [measured(source.fingerprint) for _ in range(3)]
            seconds, of_a_core = (min(column) for column in zip(*clocks, strict=True))
            print(f"{kind}: {options.images} images, {seconds:.2f} s, {of_a_core:.2f} s of a core")


def measured(function) -> tuple[float, float]:
    """The seconds, and the seconds of all cores together, that a call takes."""
    started = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def make_sources(root: pathlib.Path, options: argparse.Namespace) -> dict:
    """Sources with names as ImageNet's, and the original's."""
    images, classes = options.images, options.classes
    labels = np.sort(np.arange(images, dtype=np.int32) % classes)
    names = tuple(f"n{label:08d}" for label in range(classes))
    files = tuple(f"{names[k]}/{names[k]}_{i}.JPEG" for i, k in enumerate(labels.tolist()))
    for index in read_indexes(labels, classes):
        path = root / files[index]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(options.bytes))
    mixed = np.random.default_rng(0).permutation(labels)
    numbered = tuple(f"{i // 1000:05d}/img{i:08d}.png" for i in range(images))
    with h5py.File(root / "images.h5", "w") as file:
        for index in read_indexes(mixed, classes):
            file[numbered[index]] = np.frombuffer(os.urandom(options.bytes), np.uint8)
    path = str(root / "images.h5")
    return {
        "folder": FolderSource("", classes, names, files, labels, str(root), 256),
        "hdf5": Hdf5Source("", classes, numbered, mixed, path, 256),
    }


def read_indexes(labels: np.ndarray, classes: int) -> list[int]:
    """The images whose content is looked at."""
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(labels, minlength=classes))[:-1])
    return [int(indexes[k]) for indexes in members for k in sample(len(indexes))]


if __name__ == "__main__":
    main()
