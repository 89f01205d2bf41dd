"""The crops of text-to-image code, beside torchvision's transforms and REPA's preprocessing."""

import io
import types

import numpy as np
import parity  # lets torchvision be imported
import pytest
from PIL import Image
from test_crop import SHAPES, picture

from repae_jax.data.crop import rgb_square
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError

assert parity
transforms = pytest.importorskip("torchvision.transforms")
SIZES = {**SHAPES, "facts": (300, 257), "tall": (256, 1000), "one short": (255, 255)}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_torchvision(name, filter):
    image = picture(*SIZES[name])
    mode = transforms.InterpolationMode[filter.upper()]
    expected = transforms.Compose([transforms.Resize(32, mode), transforms.CenterCrop(32)])(image)
    np.testing.assert_array_equal(rgb_square(image, 32, crop=filter), np.asarray(expected))


@pytest.mark.parametrize("name", SIZES)
def test_the_square_comes_first(name):
    image = picture(*SIZES[name])
    pixels, side = np.asarray(image), min(image.size)
    height, width = pixels.shape[:2]
    rows = slice((height - side) // 2, (height + side) // 2)
    columns = slice((width - side) // 2, (width + side) // 2)
    expected = Image.fromarray(pixels[rows, columns]).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(rgb_square(image, 32, crop="lanczos"), np.asarray(expected))


@pytest.mark.parametrize("crop", ["bilinear", "bicubic", "lanczos"])
def test_a_long_picture_costs_no_more(crop):
    """The middle of a line is the middle of its square neighborhood."""
    image = Image.fromarray(np.arange(20_000, dtype=np.uint32).astype(np.uint8)[None].repeat(1, 0))
    square = rgb_square(image.convert("RGB"), 32, crop=crop)
    assert square.shape == (32, 32, 3)


def test_a_source_reads_by_its_rule(tmp_path):
    image = picture(151, 90)
    (tmp_path / "train").mkdir()
    content = io.BytesIO()
    image.save(content, "png")
    (tmp_path / "train" / "a.png").write_bytes(content.getvalue())
    (tmp_path / "train" / "a.txt").write_text("a picture")
    config = dict(source="captions", path=str(tmp_path), resolution=32, num_classes=1)
    for crop in ("adm", "bilinear", "bicubic", "lanczos"):
        source = open_source(types.SimpleNamespace(**config, crop=crop), "train")
        np.testing.assert_array_equal(source[0]["image"], rgb_square(image, 32, crop=crop))
    with pytest.raises(UserError, match="'nearest': use one of adm, bicubic, bilinear, lanczos"):
        open_source(types.SimpleNamespace(**config, crop="nearest"), "train")
