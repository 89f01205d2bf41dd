"""CPU seconds that a start spends on telling its data from others (see `data.identity`).

python benchmarks/fingerprint.py [--images 1300000] [--classes 1000]
"""

import argparse
import time

import numpy as np

from repae_jax.data.folder import FolderSource
from repae_jax.data.hdf5 import Hdf5Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    for kind, source in sources(options.images, options.classes).items():
        seconds = []
        for _ in range(3):
            started = time.process_time()
            source.fingerprint()
            seconds.append(time.process_time() - started)
        print(f"{kind}: {options.images} names in {min(seconds):.2f} s of one core")


def sources(images: int, classes: int) -> dict:
    """Sources with names as ImageNet's, and the original's, of images that nobody reads."""
    labels = np.sort(np.arange(images, dtype=np.int32) % classes)
    names = tuple(f"n{label:08d}" for label in range(classes))
    files = tuple(f"{names[k]}/{names[k]}_{i}.JPEG" for i, k in enumerate(labels.tolist()))
    mixed = np.random.default_rng(0).permutation(labels)
    numbered = tuple(f"{i // 1000:05d}/img{i:08d}.png" for i in range(images))
    return {
        "folder": FolderSource("", classes, names, files, labels, "", 256),
        "hdf5": Hdf5Source("", classes, numbered, mixed, "", 256),
    }


if __name__ == "__main__":
    main()
