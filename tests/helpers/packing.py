"""A packed data set of numbers."""

import numpy as np

from repae_jax.data.shard_writer import write_shards

COUNT, PER_SHARD = 10, 4
FILES = [f"shard-{number:05d}-of-00003.array_record" for number in range(3)]
MADE = {"source": "numbers", "seed": 3, "sizes": (2, 3)}
MANIFEST = {"kind": "images", "num_classes": 5}


def record(index):
    pixels = np.random.default_rng(index).integers(0, 256, (2, 3), np.uint8)
    return {"image": pixels, "label": index % 5, "name": f"number {index}"}


def write_records(indexes, writer):
    for index in indexes:
        writer.write(record(index))
    return {"indexes": list(indexes)}


def write(folder, write_shard=write_records, *, count=COUNT, per_shard=PER_SHARD, **options):
    options = {"made": MADE, "manifest": MANIFEST, **options}
    return write_shards(folder, count, per_shard, write_shard, **options)


def content(folder):
    """Every file below a folder and its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_records(records, count=COUNT):
    assert len(records) == count
    for index, got in enumerate(records):
        expected = record(index)
        np.testing.assert_array_equal(got.pop("image"), expected.pop("image"))
        assert got == expected
