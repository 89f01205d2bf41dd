"""Does the data pipeline's memory stay flat? Prints what all its processes hold as batches go by.

    python benchmarks/memory.py [--batches 20000] [--workers 2]

Exits with status 1 if any later figure is more than a tenth above the first one. Linux only.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time
import types

import numpy as np

from repae_jax.data.images import encode_pixels
from repae_jax.data.pipeline import train_batches
from repae_jax.data.shard_writer import write_shards
from repae_jax.data.sources import open_source

IMAGES, CLASSES = 2000, 10
TOLERANCE = 1.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1000, help="batches between two figures")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="0: threads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = noise(pathlib.Path(folder), options.resolution)
        batches = train_batches(
            source, batch_size=options.batch_size, seed=0, workers=options.workers, flip=True
        )
        figures = measure(batches, options.batches, options.every)
        batches.close()
    highest = max(figures) / figures[0]
    print(f"highest / first: {highest:.3f}")
    return int(highest > TOLERANCE)


def noise(folder: pathlib.Path, resolution: int):
    """A packed source of noise, which compresses worst."""
    rng = np.random.default_rng(0)

    def write(indexes, writer):
        for index in indexes:
            pixels = rng.integers(0, 256, (resolution, resolution, 3), np.uint8)
            label = index % CLASSES
            writer.write({"image": encode_pixels(pixels), "label": label, "name": str(index)})
        return {}

    write_shards(
        folder / "packed",
        IMAGES,
        IMAGES // 4,
        write,
        {"resolution": resolution},
        manifest={"kind": "images", "num_classes": CLASSES},
    )
    config = types.SimpleNamespace(
        source="packed", path=folder / "packed", resolution=resolution, num_classes=None
    )
    return open_source(config, "train")


def measure(batches, count: int, every: int) -> list[int]:
    """Consume `count` batches; the memory in bytes after every `every` of them."""
    figures, start = [], time.perf_counter()
    for number in range(1, count + 1):
        next(batches)
        if number % every == 0:
            figures.append(memory())
            rate = number / (time.perf_counter() - start)
            print(f"{number:7d} batches  {figures[-1] / 2**20:8.1f} MiB  {rate:7.0f} batches/s")
    return figures


def memory() -> int:
    """Resident bytes of this process and all that it started."""
    page = os.sysconf("SC_PAGE_SIZE")
    processes = {}  # id -> (parent's id, pages)
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            pages = (folder / "statm").read_text().split()[1]
        except OSError:  # it has ended meanwhile
            continue
        processes[int(folder.name)] = int(parent), int(pages)
    family = {os.getpid()}
    while grown := {pid for pid, (parent, _) in processes.items() if parent in family} - family:
        family |= grown
    return sum(processes[pid][1] for pid in family) * page


if __name__ == "__main__":
    sys.exit(main())
