"""A folder of cached latents, as `encode` writes one, without a VAE."""

import numpy as np

from repae_jax.data.shard_writer import write_shards


def write_cache(path, count=12, per_shard=4, **changes):
    """Latents whose values are their index, of ten classes; returns the manifest."""
    made = {"vae": "a" * 64, "latent_shape": [8, 8, 2], "resolution": 32, "mirrored": False,
            "images": False, "teachers": {}, **changes}  # fmt: skip

    def write(indexes, writer):
        for index in indexes:
            latent = np.full((8, 8, 2), index, np.float32)
            writer.write({"mean": latent, "std": latent, "label": index % 10})
        return {}

    statistics = {"mean": [0.0, 0.0], "var": [1.0, 1.0]}
    manifest = {"kind": "latents", "num_classes": 10, "statistics": statistics}
    return write_shards(path, count, per_shard, write, made, manifest=manifest)
