"""What the tests of `prepare` share: picture files, the call, and what comes of them."""

import io

from PIL import Image

from repae_jax.data.crop import rgb_square
from repae_jax.data.prepare import prepare

SIZE = 16
FILES = {  # in the order of a folder source
    "ant/only.webp": (20, 9, "RGB"),
    "bird/a.jpg": (70, 33, "RGB"),
    "bird/b.PNG": (40, 50, "RGB"),
    "cat/1.jpeg": (90, 64, "CMYK"),
    "cat/2.png": (32, 32, "P"),
}
LABELS = [0, 1, 1, 2, 2]


def run(source, output, **options):
    return prepare(
        str(source), output, **{"resolution": SIZE, "per_shard": 2, "format": "png", **options}
    )


def cropped(path):
    with Image.open(path) as image:
        return rgb_square(image, SIZE)


def opened(record):
    """The image that a record holds, as Pillow reads it."""
    return Image.open(io.BytesIO(record["image"]))


def damage(path):
    path.write_bytes(path.read_bytes()[:40])
