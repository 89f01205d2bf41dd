"""What the page does: samples with the steps on the way, and reconstructions; without Gradio."""

import os
import pathlib
import threading
import time
from typing import Any, NamedTuple

import numpy as np

from repae_jax.data.decode import decode_cropped
from repae_jax.errors import UserError
from repae_jax.evaluation.latents import pca_colors
from repae_jax.evaluation.reconstruction import psnr
from repae_jax.runs.pipeline import Pipeline
from repae_jax.utils.figures import TILE, image_grid
from repae_jax.utils.schema import short_repr

MOST_IMAGES, MOST_STEPS = 64, 1000  # of one request: other users wait for it
MOST_BYTES = 50 * 2**20  # of an uploaded file
NO_CLASS = "none"
_FRAMES, _ROWS = 8, 4  # intermediate steps, and images that they are shown of
_SIDE = 2 * TILE  # pixels a side to which smaller images are enlarged, by a whole factor
_one_at_a_time = threading.Lock()  # two programs at once would need twice the memory


class Sampled(NamedTuple):
    """The pictures of a request for images; all are uint8 (height, width, 3).

    Attributes:
      images: the images in a grid.
      strip: a row for each of the first images: what it is after some of the steps.
      colors: the latents of the first images as colors.
      message: what was computed, in a line.
    """

    images: np.ndarray
    strip: np.ndarray
    colors: np.ndarray
    message: str


class Reconstructed(NamedTuple):
    """The pictures of a reconstruction, uint8 (height, width, 3), and its measure in a line."""

    pair: np.ndarray
    colors: np.ndarray
    message: str


def sample(
    pipeline: Pipeline,
    *,
    what: Any,
    count: Any,
    steps: Any,
    method: Any,
    scale: Any,
    low: Any,
    high: Any,
    seed: Any,
    negative: Any = "",
) -> Sampled:
    """Sample images of one class or prompt.

    Args:
      pipeline: the generator.
      what: the class, by number or name, or `NO_CLASS`; or the prompt.
      count: the number of images, 1 to `MOST_IMAGES`.
      steps: integration steps, at most `MOST_STEPS`.
      method, scale, low, high, seed, negative: the method, the scale of guidance, its interval, the
        seed and the negative prompt, as the pipeline's call takes them.

    Raises:
      UserError: a field is empty or out of range, or the class is unknown.
      NotFinite: the images hold NaN or infinite values.
    """
    count = _whole(count, "the number of images", MOST_IMAGES)
    given = dict(
        steps=_whole(steps, "steps", MOST_STEPS),
        method=method,
        guidance_scale=_number(scale, "the guidance scale"),
        guidance_interval=(_number(low, "the lowest time"), _number(high, "the highest time")),
        seed=_whole(seed, "the seed", 2**32 - 1, least=0),
    )
    wanted, more = _wanted(pipeline, what, count, negative)
    with _one_at_a_time:
        start = time.monotonic()
        trace = pipeline.trace(wanted, frames=_FRAMES, **given, **more)
        seconds = time.monotonic() - start
    shown = min(count, _ROWS)
    frames = trace.frames[:, :shown].swapaxes(0, 1)  # (images, steps, H, W, 3)
    colors = pca_colors([trace.latents[-1]])[0][:shown]
    steps = ", ".join(map(str, trace.steps))
    return Sampled(
        _grid(trace.images, 8),
        _grid(frames.reshape(-1, *frames.shape[2:]), len(trace.steps)),
        _grid(colors, shown),
        f"{count} image{'s' if count > 1 else ''} of {_quoted(pipeline, what)} in {seconds:.1f} s; "
        f"shown below after the steps {steps}",
    )


def reconstruct(pipeline: Pipeline, path: str | os.PathLike | None) -> Reconstructed:
    """Crop a picture, and send it through the tokenizer's encoder and decoder.

    Args:
      pipeline: the generator; the crop has the resolution and the rule of its training.
      path: the file.

    Raises:
      UserError: there is no file, it is too large, or holds no picture.
      NotFinite: the reconstruction holds NaN or infinite values.
    """
    if not path:
        raise UserError("there is no picture: upload one")
    path = pathlib.Path(path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(
            f"{path.name} has {size:,} bytes: give a picture of at most {MOST_BYTES:,} bytes"
        )
    data = pipeline.config.data
    own = decode_cropped(path.read_bytes(), data.resolution, path.name, exif=True, crop=data.crop)
    with _one_at_a_time:
        latents = pipeline.encode(own[None])
        again = pipeline.decode(latents)
    value = float(psnr(own[None], again)[0])
    side = f"{data.resolution} x {data.resolution}"
    shape = " x ".join(map(str, latents.shape[1:]))
    return Reconstructed(
        _grid(np.stack([own, again[0]]), 2),
        _grid(pca_colors([latents])[0], 1),
        f"PSNR {value:.2f} dB; the middle of {path.name} at {side}, latents of {shape}",
    )


def wait_until_idle(seconds: float) -> bool:
    """Wait until nothing is computed; whether that came within this time."""
    if idle := _one_at_a_time.acquire(timeout=seconds):
        _one_at_a_time.release()
    return idle


def _wanted(pipeline, what, count, negative):
    """The classes or prompts of a call, and its arguments for prompts."""
    text = "" if what is None else str(what).strip()
    if not pipeline.takes_prompts:
        if not text:
            raise UserError("the class is empty: choose one, or give its number or name")
        return [None if text == NO_CLASS else text] * count, {}
    if not text:
        raise UserError("the prompt is empty: describe an image")
    return [text], dict(images_per_prompt=count, negative_prompt=negative)


def _quoted(pipeline, what):
    if pipeline.takes_prompts:
        return short_repr(str(what).strip())
    text = str(what).strip()
    return "no class" if text == NO_CLASS else f"class {text}"


def _grid(images, columns):
    scale = max(1, round(_SIDE / images.shape[2]))
    return image_grid(images, min(columns, len(images)), pad=4, scale=scale)


def _whole(value, name, most, least=1):
    number = _number(value, name)
    if number != int(number) or not least <= number <= most:
        raise UserError(f"{name} is {number:g}: give a whole number from {least} to {most}")
    return int(number)


def _number(value, name):
    if value is None or value == "":
        raise UserError(f"{name} is empty: give a number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise UserError(f"{name} is {short_repr(value)}: give a number")
    return number
