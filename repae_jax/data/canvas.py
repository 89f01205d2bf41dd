"""Painting of rendered images: polygons, clouds, and lit objects over a canvas in [0, 1]."""

import numpy as np

FINER = 4  # outlines are filled on a grid that is finer by this factor


def fill_polygons(parts, resolution):
    """The coverage (H, W) in [0, 1] of polygons in [-1, 1]: the first filled, the others holes."""
    from PIL import Image, ImageDraw

    side = resolution * FINER
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for number, part in enumerate(parts):
        corners = (part + 1) * (side / 2)
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=0 if number else 255)
    return np.asarray(image.reduce(FINER), np.float64) / 255


def composite(canvas, mask, texture, light, rng, *, steepness=1.0):
    """Composite a lit, beveled object and its shadow over the canvas, in place.

    Args:
      canvas: (H, W, 3) in [0, 1].
      mask: the object's coverage (H, W) in [0, 1].
      texture: its color, (H, W, 3) or what broadcasts to it.
      light: the direction of the light, radians.
      rng: draws the reach and depth of the shadow, and the height of the object.
      steepness: scales shadow and slopes.
    """
    from scipy import ndimage

    resolution = len(mask)
    reach = rng.uniform(0.02, 0.08) * resolution
    shadow = ndimage.gaussian_filter(mask, reach / 2, mode="constant")
    offset = (reach * np.sin(light), reach * np.cos(light))
    shadow = ndimage.shift(shadow, offset, order=1, mode="constant")
    canvas *= 1 - steepness * rng.uniform(0.2, 0.7) * shadow[..., None]

    height = ndimage.gaussian_filter(mask, resolution / 24, mode="constant")
    down, right = np.gradient(height * resolution * steepness * rng.uniform(0.02, 0.06))
    lit = 1 + down * np.sin(light) + right * np.cos(light)  # slopes that face the light are bright
    alpha = mask[..., None]
    canvas *= 1 - alpha
    canvas += alpha * texture * lit.clip(0.3, 1.7)[..., None]


def clouds(rng, resolution, slope):
    """Noise with amplitude 1 / frequency ** slope: (H, W) in [0, 1]."""
    spectrum = np.fft.rfft2(rng.normal(size=(resolution, resolution)))
    frequency = np.hypot(np.fft.fftfreq(resolution)[:, None], np.fft.rfftfreq(resolution)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(spectrum / frequency**slope, s=(resolution, resolution))
    return (0.5 + 0.25 * noise / max(noise.std(), 1e-12)).clip(0, 1)


def grid(resolution):
    """y (H, W) and x (H, W), pixel centers in [-1, 1]."""
    line = (np.arange(resolution) + 0.5) * (2 / resolution) - 1
    return np.meshgrid(line, line, indexing="ij")
