import ast
import io
import os
import pathlib

import numpy as np
import pictures
import pytest
from PIL import Image

from repae_jax.data.crop import center_crop, rgb_square, to_rgb


def picture(width, height, mode="RGB", seed=0):
    """Smooth colours with some noise, so that every resampling filter leaves its trace."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), np.int16)
    noisy = smooth + rng.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert(mode)


SHAPES = {
    "landscape": (151, 90),
    "portrait": (70, 133),
    "square": (100, 100),
    "exact": (32, 32),
    "twice": (64, 64),
    "just under twice": (63, 200),
    "odd halves": (131, 137),
    "tiny": (5, 9),
    "a line": (1, 3),
    "one pixel wide": (1, 40),
    "one pixel high": (57, 1),
    "wide": (400, 33),
    "huge": (1500, 1101),
    "odd surplus": (32, 45),
}


# --- an independent statement: resampling written out with numpy, one axis at a time ---


def box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def cubic(x, a=-0.5):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampled_rows(pixels, size, kernel, support):
    """Pixels (H, W, C) resampled to (size, W, C): the kernel widens when it shrinks."""
    ratio = pixels.shape[0] / size
    widen = max(ratio, 1.0)
    rows = []
    for i in range(size):
        center = (i + 0.5) * ratio
        first = max(int(center - support * widen + 0.5), 0)
        last = min(int(center + support * widen + 0.5), pixels.shape[0])
        weights = kernel((np.arange(first, last) + 0.5 - center) / widen)
        rows.append(np.tensordot(weights / weights.sum(), pixels[first:last], 1))
    return np.clip(np.floor(np.stack(rows) + 0.5), 0, 255)  # 8 bits between the two axes


def resampled(pixels, width, height, kernel, support):
    if pixels.shape[1] != width:
        across = pixels.transpose(1, 0, 2)
        pixels = resampled_rows(across, width, kernel, support).transpose(1, 0, 2)
    if pixels.shape[0] != height:
        pixels = resampled_rows(pixels, height, kernel, support)
    return pixels


def stated_crop(pixels, size):
    pixels = pixels.astype(float)
    while min(pixels.shape[:2]) // 2 >= size:
        height, width = pixels.shape[:2]
        pixels = resampled(pixels, width // 2, height // 2, box, 0.5)
    height, width = pixels.shape[:2]
    if width < height:
        width, height = size, round(height * (size / width))
    else:
        width, height = round(width * (size / height)), size
    pixels = resampled(pixels, width, height, cubic, 2.0)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_crop_is_the_stated_algorithm(shape):
    image = picture(*shape)
    cropped = np.asarray(center_crop(image, 32))
    assert cropped.shape == (32, 32, 3)
    assert cropped.dtype == np.uint8
    # PIL chooses by cost which axis comes first, and so where it rounds in between
    np.testing.assert_allclose(cropped, stated_crop(np.asarray(image), 32), rtol=0, atol=1)


def test_an_image_of_the_right_size_is_left_alone():
    image = picture(32, 32)
    np.testing.assert_array_equal(np.asarray(center_crop(image, 32)), np.asarray(image))


# --- the original's own functions ---


def original_function(file, name):
    """A function of the original, without running the imports of its file."""
    root = os.environ.get("REPAE_ORIGINAL")
    if not root:
        pytest.skip("set REPAE_ORIGINAL to a checkout of the original implementation")
    tree = ast.parse((pathlib.Path(root) / file).read_text())
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    scope = {"Image": Image, "np": np}
    exec(compile(ast.Module(found, type_ignores=[]), file, "exec"), scope)
    return scope[name]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_crop_is_the_originals(shape):
    original = original_function("utils.py", "center_crop_arr")
    image = picture(*shape)
    expected = original(np.asarray(image), 32)
    np.testing.assert_array_equal(np.asarray(center_crop(image, 32)), expected)


def encoded(image, kind, **options):
    return io.BytesIO(pictures.encoded(image, kind, **options))


def with_orientation(image, orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def sixteen_bit(channels):
    """Random low bytes below the picture's samples; Pillow writes such files of grey only."""
    pixels = np.asarray(picture(90, 61, {2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
    low_bytes = np.random.default_rng(2).integers(0, 256, pixels.shape, np.uint16)
    samples = (pixels.astype(np.uint16) << 8 | low_bytes).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    return io.BytesIO(pictures.png(90, 61, 16, {2: 4, 3: 2, 4: 6}[channels], rows))


FILES = {
    "grey": lambda: encoded(picture(90, 61, "L"), "PNG"),
    "grey jpeg": lambda: encoded(picture(90, 61, "L"), "JPEG"),
    "one bit": lambda: encoded(picture(90, 61, "1"), "PNG"),
    "palette": lambda: encoded(picture(90, 61).quantize(16), "PNG"),
    "transparent palette": lambda: encoded(picture(90, 61).quantize(16), "PNG", transparency=3),
    "grey with alpha": lambda: encoded(with_alpha(picture(90, 61, "LA")), "PNG"),
    "alpha": lambda: encoded(with_alpha(picture(90, 61, "RGBA")), "PNG"),
    "webp with alpha": lambda: encoded(with_alpha(picture(90, 61, "RGBA")), "WEBP"),
    "cmyk": lambda: encoded(picture(90, 61, "CMYK"), "JPEG"),
    "exif orientation": lambda: with_orientation(picture(90, 61), 6),
    "16-bit colours": lambda: sixteen_bit(3),
    "16-bit colours with alpha": lambda: sixteen_bit(4),
    "16-bit grey with alpha": lambda: sixteen_bit(2),
    "tall": lambda: encoded(picture(61, 90), "JPEG"),
}


def with_alpha(image):
    alpha = np.random.default_rng(1).integers(0, 256, image.size[::-1], np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("kind", FILES)
def test_files_become_what_the_original_makes_of_them(kind):
    read = original_function("preprocessing.py", "read_image")
    crop = original_function("utils.py", "center_crop_arr")
    expected = crop(read(FILES[kind]()), 32)
    with Image.open(FILES[kind]()) as image:
        np.testing.assert_array_equal(rgb_square(image, 32), expected)


def stated_rgb(image):
    """What each kind of picture's samples mean, as float (H, W, 3)."""
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return palette[np.asarray(image)]
    samples = np.asarray(image).astype(float)
    if image.mode == "1":
        samples = samples * 255
    if image.mode == "CMYK":
        return (255 - samples[..., :3]) * (255 - samples[..., 3:]) / 255
    if image.mode in ("L", "1"):
        samples = samples[..., None]
    colours = 1 if image.mode in ("L", "LA", "1") else 3
    return np.broadcast_to(samples[..., :colours], (*samples.shape[:2], 3))


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_becomes_its_rgb_pixels_cropped(kind):
    with Image.open(FILES[kind]()) as image:
        expected = stated_crop(stated_rgb(image), 32)
        pixels = rgb_square(image, 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 10  # a picture, not one colour
    # one for the order of the axes as above, one for the rounding of cyan, magenta and yellow
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=2 if kind == "cmyk" else 1)


# --- conversion to RGB ---


def test_alpha_is_dropped_not_composited():
    opaque = picture(20, 20)
    image = opaque.copy()
    image.putalpha(0)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(opaque))


# What EXIF says of a stored picture, and how to show it.
SHOWN = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),  # clockwise
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}


STORED = {
    "colours": lambda: picture(90, 60),
    "palette": lambda: picture(90, 60).quantize(16),
    "16-bit grey": lambda: Image.fromarray(np.asarray(picture(90, 60, "L")).astype(np.uint16) << 8),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientation_is_ignored_unless_asked_for(orientation, kind):
    stored = STORED[kind]()
    pixels = np.asarray(to_rgb(stored))
    expected = {
        False: center_crop(Image.fromarray(pixels), 32),
        True: center_crop(Image.fromarray(SHOWN[orientation](pixels).copy()), 32),
    }
    for exif in (False, True):
        with Image.open(with_orientation(stored, orientation, "PNG")) as image:
            cropped = rgb_square(image, 32, exif=exif)
        np.testing.assert_array_equal(cropped, np.asarray(expected[exif]))


def test_sixteen_bit_grey_keeps_its_contrast():
    grey = np.asarray(picture(90, 61, "L"))
    low_byte = np.random.default_rng(2).integers(0, 256, grey.shape)
    deep = Image.fromarray((grey.astype(np.uint16) << 8 | low_byte).astype(np.uint16))
    with Image.open(encoded(deep, "PNG")) as image:
        pixels = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=-1))


def test_grey_is_repeated():
    grey = picture(20, 20, "L")
    pixels = np.asarray(to_rgb(grey))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(grey)[..., None], 3, axis=-1))
