"""Time and memory of the measures on features, of random ones.

    python benchmarks/evaluation.py frechet                 # 50,000 x 2048 against as many
    python benchmarks/evaluation.py precision-recall [--count 10000]
    python benchmarks/evaluation.py cknna [--count 10000]
    python benchmarks/evaluation.py ssim [--count 200]

prints one line: wall-clock and processor seconds, and the process' peak memory. Features are read
from a memory map in batches, as evaluation does.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from repae_jax.evaluation.alignment import cknna
from repae_jax.evaluation.frechet import Moments, frechet_distance
from repae_jax.evaluation.precision_recall import precision_recall
from repae_jax.evaluation.reconstruction import ssim

BATCH = 64
COUNTS = {"frechet": 50_000, "precision-recall": 50_000, "cknna": 10_000, "ssim": 200}


def write_features(path: pathlib.Path, count: int, dimension: int, seed: int) -> np.ndarray:
    """A memory map of (count, dimension) float32 of low rank and noise, at least 0."""
    mixing = np.random.default_rng(0).normal(size=(64, dimension)).astype(np.float32) / 8
    rng = np.random.default_rng(seed)  # the sets differ by their samples alone
    features = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    for start in range(0, count, 1000):
        rows = len(features[start : start + 1000])
        noise = rng.standard_normal((rows, dimension), np.float32) / 2
        features[start : start + rows] = np.maximum(
            rng.standard_normal((rows, 64), np.float32) @ mixing + noise, 0
        )
    features.flush()
    del features
    return np.load(path, mmap_mode="r")


def batches(features: np.ndarray) -> Iterator[np.ndarray]:
    """Rows as a network would give them."""
    return (features[start : start + BATCH] for start in range(0, len(features), BATCH))


def measure_frechet(sets: list[np.ndarray]) -> float:
    """Moments of both sets, and their distance."""
    moments = []
    for features in sets:
        moments.append(Moments(features.shape[1]))
        for batch in batches(features):
            moments[-1].update(batch)
    return frechet_distance(*moments)


def measurement(options: argparse.Namespace, folder: pathlib.Path) -> Callable[[], object]:
    """What is to be timed, with its inputs made."""
    if options.measure == "ssim":
        rng = np.random.default_rng(0)
        pair = rng.integers(0, 256, (2, options.count, 256, 256, 3), dtype=np.uint8)
        return lambda: float(ssim(*pair).mean())
    sets = [
        write_features(folder / f"{seed}.npy", options.count, options.dimension, seed)
        for seed in (1, 2)
    ]
    return {
        "frechet": lambda: measure_frechet(sets),
        "precision-recall": lambda: precision_recall(*sets, progress=True),
        "cknna": lambda: cknna(*sets),
    }[options.measure]


def main() -> None:
    """Make the inputs, time one measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("measure", choices=COUNTS)
    parser.add_argument("--count", type=int, help="features of each set, or pairs of images")
    parser.add_argument("--dimension", type=int, default=2048)
    options = parser.parse_args()
    options.count = options.count or COUNTS[options.measure]
    with tempfile.TemporaryDirectory() as folder:
        measure = measurement(options, pathlib.Path(folder))
        before = _peak()
        wall, processor = time.perf_counter(), time.process_time()
        result = measure()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(
        f"{options.measure}, {options.count} x {options.dimension}: {wall:.1f} s, of processors "
        f"{processor:.1f} s, peak memory {_peak():.2f} GB ({before:.2f} before): {result}"
    )


def _peak():
    """GB that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
