"""Images in GenEval's layout: 00000/metadata.jsonl, 00000/samples/00000.png and so on."""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from repae_jax.data.decode import decode_cropped, read_file
from repae_jax.data.geneval_metadata import check_metadata
from repae_jax.errors import UserError
from repae_jax.sampling.layouts import METADATA, SAMPLES
from repae_jax.utils.atomic_files import entries
from repae_jax.utils.schema import read_json

_FOLDER, _SAMPLE = re.compile(r"[0-9]+"), re.compile(r"[0-9]+\.png")


class PromptImages(NamedTuple):
    """A prompt's metadata, the files of its images, and the folder of both."""

    metadata: dict
    files: list[pathlib.Path]
    folder: pathlib.Path


def open_geneval(folder: pathlib.Path) -> list[PromptImages]:
    """The prompts of a folder in the order of their numbers.

    Raises:
      UserError: there are no prompts, or one lacks its metadata or its images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one with images in GenEval's layout")
    names = sorted(filter(_FOLDER.fullmatch, entries(folder)), key=lambda name: (int(name), name))
    if not names:
        raise UserError(
            f"{folder} holds no prompts: GenEval's layout has folders such as 00000 with "
            "metadata.jsonl and samples/00000.png"
        )
    return [_open_prompt(folder / name) for name in names]


def _open_prompt(folder):
    path, samples = folder / METADATA, folder / SAMPLES
    metadata = read_json(path)
    check_metadata(metadata, source=str(path))
    files = sorted(filter(_SAMPLE.fullmatch, entries(samples)))
    if not files:
        raise UserError(f"{samples} holds no images such as 00000.png: generate them")
    return PromptImages(metadata, [samples / file for file in files], folder)


def read_images(prompt: PromptImages, resolution: int) -> np.ndarray:
    """The images of a prompt, resized to `resolution`: uint8 (n, resolution, resolution, 3).

    Raises:
      UserError: a file is unreadable or no image.
    """
    return np.stack(
        [decode_cropped(read_file(path), resolution, str(path)) for path in prompt.files]
    )
