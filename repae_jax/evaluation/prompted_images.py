"""Images of prompts in a folder, as `sampling.layouts` writes them, and each one's prompt.

file                   layout      images of a prompt
prompts.jsonl          coco, flat  NAME.png; NAME_00.png ...
index_to_prompt.json   genai       NAME.jpeg
*/metadata.jsonl       geneval     samples/*.png beside it
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError, warn
from repae_jax.evaluation.image_sets import find_pictures
from repae_jax.sampling.layouts import (
    INDEX,
    METADATA,
    PROMPTS,
    SAMPLES,
    numbered_lines,
    prompt_text,
)
from repae_jax.utils.schema import LARGEST_LIST, parse_json, read_json, short_repr


class PromptedImages(NamedTuple):
    """Picture files and their prompts, in the order of the prompts.

    Attributes:
      name: the folder.
      files: the paths.
      prompts: the prompt of each file.
    """

    name: str
    files: list[str]
    prompts: list[str]

    def first(self, count: int | None) -> "PromptedImages":
        """The first `count` images; None: all.

        Raises:
          UserError: the folder has fewer images.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.files):
            raise UserError(f"{self.name} holds {len(self.files)} images, {count} are requested")
        return self._replace(files=self.files[:count], prompts=self.prompts[:count])


def find_prompted(folder: str | os.PathLike) -> PromptedImages:
    """Find the images of prompts in a folder; other pictures are left out with a warning.

    Raises:
      UserError: the folder names no prompts, their file is damaged, or a prompt has no image.
    """
    root = pathlib.Path(folder)
    listing, prompts = _prompts(root)
    found: dict[str, list[str]] = {name: [] for name in prompts}
    others = []
    for path in find_pictures(root):
        name = _prompt_name(pathlib.PurePath(os.path.relpath(path, root)), prompts)
        (others if name is None else found[name]).append(path)
    without = [name for name, paths in found.items() if not paths]
    if without:
        raise UserError(
            f"{root}: {len(without)} of {len(found)} prompts of {listing} have no image, such as "
            f"{short_repr(without[0])}: write their images, or remove them from there"
        )
    if others:
        warn(f"{root}: {len(others)} pictures are of no prompt of {listing}, such as {others[0]}")
    pairs = [(path, prompts[name]) for name, paths in found.items() for path in paths]
    return PromptedImages(str(root), [path for path, _ in pairs], [text for _, text in pairs])


class _Line(TypedDict):
    name: str
    prompt: str


class _Metadata(TypedDict):
    prompt: str


def _prompts(root) -> tuple[str, dict[str, str]]:
    """(the file that lists the prompts, {name: prompt})."""
    if (root / PROMPTS).is_file():
        listing, found = PROMPTS, dict(_listed(root / PROMPTS))
    elif (root / INDEX).is_file():
        listing, found = INDEX, read_json(root / INDEX, dict[str, str], largest=LARGEST_LIST)
    else:
        paths = sorted(root.glob(f"*/{METADATA}")) if root.is_dir() else []
        found = {path.parent.name: read_json(path, _Metadata)["prompt"] for path in paths}
        listing = f"*/{METADATA}"
    if not found:
        raise UserError(
            f"{root} holds no prompts: name a folder of images with {PROMPTS}, {INDEX} or "
            f"*/{METADATA}"
        )
    where = f"{root}/{listing}: the prompt of"
    return listing, {name: prompt_text(text, f"{where} {name}") for name, text in found.items()}


def _listed(path) -> Iterator[tuple[str, str]]:
    for source, line in numbered_lines(path):
        entry = parse_json(line, _Line, source=source, way_out="write the folder anew")
        yield entry["name"], entry["prompt"]


def _prompt_name(path: pathlib.PurePath, prompts: Mapping[str, str]) -> str | None:
    """The name of the prompt of a picture, whose path is relative to the folder."""
    if len(path.parts) == 1:
        names = (path.stem, path.stem.rpartition("_")[0])
        return next((name for name in names if name in prompts), None)
    folder, *inside = path.parts
    return folder if folder in prompts and inside[:-1] == [SAMPLES] else None
