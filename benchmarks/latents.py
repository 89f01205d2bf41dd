"""Size and reading speed of cached latents, by what is kept beside them.

    python benchmarks/latents.py [--images 512] [--workers 2] [--seconds 6]

writes random records of the true shapes at 256 x 256 (f8d4, f16d32; DINOv2-B's tokens) as `encode`
does, and reads batches of them.
"""

import argparse
import pathlib
import tempfile
import types

import numpy as np
from data import make_images, rate

from repae_jax.data.images import encode_pixels
from repae_jax.data.pipeline import train_batches
from repae_jax.data.shard_writer import write_shards
from repae_jax.data.sources import open_source

LATENTS = {"f8d4": (32, 32, 4), "f16d32": (16, 16, 32)}
TOKENS = (256, 768)
VARIANTS = [
    ("f8d4", "float32", ""), ("f8d4", "float16", ""), ("f16d32", "float16", ""),
    ("f8d4", "float16", "images"), ("f8d4", "float16", "tokens"), ("f8d4", "float32", "tokens"),
]  # fmt: skip


def write_cache(folder: pathlib.Path, count: int, arch: str, dtype: str, kept: str) -> float:
    """A cache of random latents; returns its size per image in kB."""
    rng = np.random.default_rng(0)
    pictures = make_images(min(count, 64)) if kept == "images" else []

    def write(indexes, writer):
        for index in indexes:
            record = {
                "mean": rng.normal(size=LATENTS[arch]).astype(dtype),
                "std": rng.random(LATENTS[arch]).astype(dtype),
                "label": index % 10,
            }
            if kept == "tokens":
                record["tokens/0"] = rng.normal(size=TOKENS).astype(dtype)
            if kept == "images":
                record["image"] = encode_pixels(pictures[index % len(pictures)])
            writer.write(record)
        return {}

    channels = LATENTS[arch][-1]
    made = {
        "mirrored": False, "images": kept == "images", "resolution": 256, "vae": "random",
        "teachers": {"random": "random"} if kept == "tokens" else {},
        "latent_shape": list(LATENTS[arch]),
    }  # fmt: skip
    manifest = {
        "kind": "latents", "num_classes": 10,
        "statistics": {"mean": [0.0] * channels, "var": [1.0] * channels},
    }  # fmt: skip
    write_shards(folder, count, count, write, made, manifest=manifest)
    return sum(path.stat().st_size for path in folder.glob("*.array_record")) / count / 1e3


def main() -> None:
    """Write, read, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    column = f"images/s, {options.workers} workers"
    print(f"| latents | stored as | beside them | kB an image | {column} |")
    print("|---|---|---|---|---|", flush=True)
    for arch, dtype, kept in VARIANTS:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name) / "cache"
            size = write_cache(folder, options.images, arch, dtype, kept)
            config = types.SimpleNamespace(
                source="latents", path=str(folder), name="", resolution=256, num_classes=10,
                flip=False,
            )  # fmt: skip
            batches = train_batches(
                open_source(config, "train"), batch_size=options.batch_size, seed=0,
                workers=options.workers,
            )  # fmt: skip
            speed, _ = rate(batches, options.batch_size, options.seconds, options.workers)
            batches.close()
        print(f"| {arch} | {dtype} | {kept or '-'} | {size:.0f} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
