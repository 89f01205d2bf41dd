"""Files of images for prompts, named and arranged as the scorers of benchmarks read them.

layout  prompts                              images of a prompt
geneval JSONL, a line with "prompt", "tag",  00000/samples/00000.png ... beside
        "include" and "exclude"              00000/metadata.jsonl, its line
dpg     JSON {id: prompt}                    ID.png, all in one picture, without gaps
genai   JSON list of prompts, or {id: entry  00000.jpeg, and index_to_prompt.json
        with "prompt"}
coco    JSON list of captions                000000.png, and prompts.jsonl
mjhq    JSON {id: entry with "category",     CATEGORY/ID.jpg
        "prompt"}
flat    text, a prompt a line                00000_00.png ..., and prompts.jsonl
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data.geneval_metadata import check_metadata
from repae_jax.data.images import encode_pixels
from repae_jax.errors import UserError
from repae_jax.sampling.outputs import is_whole
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.figures import image_grid
from repae_jax.utils.schema import (
    LARGEST_LIST,
    each,
    parse_json,
    read_bounded,
    read_json,
    short_repr,
)

# Files that name the prompts of a folder's images.
PROMPTS, INDEX, METADATA = "prompts.jsonl", "index_to_prompt.json", "metadata.jsonl"
SAMPLES = "samples"  # the folder of a prompt's images in GenEval's layout
_MOST_PROMPTS = 10_000_000
_MOST_BYTES = 1 << 16  # of a prompt
# The names of files that every file system takes; Windows has devices of the first names.
_NAME = re.compile(
    r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])$)[A-Za-z0-9][A-Za-z0-9 _+,=@()&'-]{0,199}(?<! )"
)


class Prompt(NamedTuple):
    """A prompt of a file.

    Attributes:
      text: the prompt.
      name: the name of its files or folder.
      entry: its entry in the file, for layouts that keep it.
    """

    text: str
    name: str
    entry: Any = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A benchmark's files.

    Attributes:
      read: (file, its path in errors) -> prompts.
      images: images of a prompt by default.
      files: (prompt, its images (n, H, W, 3) uint8) -> {path in the folder: what makes its bytes}.
      listing: (prompts) -> {path in the folder: bytes} of the files for all prompts together.
    """

    read: Callable[[pathlib.Path], list[Prompt]]
    images: int
    files: Callable[[Prompt, np.ndarray], Mapping[str, Callable[[], bytes]]]
    listing: Callable[[Sequence[Prompt]], Mapping[str, bytes]] = lambda prompts: {}

    def write(self, folder: pathlib.Path, prompt: Prompt, images: np.ndarray) -> None:
        """Write a prompt's images; the last file is written when the others are complete."""
        for path, content in self.files(prompt, images).items():
            write_atomically(folder / path, content())

    def paths(self, prompt: Prompt, count: int) -> list[str]:
        """The paths in the folder of a prompt with `count` images.

        Raises:
          UserError: the layout has another number of images.
        """
        return list(self.files(prompt, np.zeros((count, 1, 1, 3), np.uint8)))

    def is_written(self, folder: pathlib.Path, prompt: Prompt, count: int) -> bool:
        """Whether all files of a prompt with `count` images exist, each to its end."""
        return all(is_whole(folder / path) for path in self.paths(prompt, count))


def read_prompts(layout: str, path: str | pathlib.Path) -> list[Prompt]:
    """The prompts of a file.

    Raises:
      UserError: there is no such layout, or the file is none of its kind.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is not known: use one of {', '.join(LAYOUTS)}")
    prompts = LAYOUTS[layout].read(pathlib.Path(path))
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        count = len(prompts) or "no"
        raise UserError(f"{path} holds {count} prompts: give 1 to {_MOST_PROMPTS:,}")
    names = [prompt.name for prompt in prompts]
    if len({name.casefold() for name in names}) < len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n.casefold() in seen or seen.add(n.casefold()))
        raise UserError(f"{path} has {twice!r} more than once, whose files would be one: rename it")
    return prompts


def prompt_text(text: Any, where: str) -> str:
    """A prompt without the white space around it; raises UserError, naming `where`, for another."""
    if not isinstance(text, str):
        raise UserError(f"{where} is {short_repr(text)}: give the prompt as text")
    text = text.strip()
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has a character that is none ({error.reason}): remove it") from (
            error
        )
    if not 0 < size <= _MOST_BYTES:
        raise UserError(f"{where} has {size:,} bytes: give 1 to {_MOST_BYTES:,}")
    return text


def _name(name, where):
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{where} is {short_repr(name)}, which names no file: use letters, digits and - _ + ="
        )
    return name


def numbered_lines(path: pathlib.Path) -> list[tuple[str, str]]:
    """(the line's name in errors, the line) of each line that is not blank; UTF-8.

    Raises:
      UserError: the file cannot be read.
    """
    content = read_bounded(path, LARGEST_LIST)
    try:
        text = content.decode("utf-8-sig")  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it as UTF-8") from error
    # `splitlines` would also split at characters that may stand within a prompt, such as U+2028
    lines = enumerate(text.split("\n"), start=1)
    return [(f"{path}, line {number}", line) for number, line in lines if line.strip()]


def _read_geneval(path):
    prompts = []
    for number, (source, line) in enumerate(numbered_lines(path)):
        entry = parse_json(
            line, source=source, way_out="a line holds a prompt's metadata", unique=True
        )
        check_metadata(entry, source=source)
        prompts.append(
            Prompt(prompt_text(entry["prompt"], f"{source}: prompt"), f"{number:05d}", entry)
        )
    return prompts


def _geneval_files(prompt, images):
    own = {
        f"{prompt.name}/{SAMPLES}/{number:05d}.png": _encoded(image)
        for number, image in enumerate(images)
    }
    return own | {f"{prompt.name}/{METADATA}": functools.partial(_json, prompt.entry)}


def _read_dpg(path):
    content = read_json(path, largest=LARGEST_LIST, unique=True)
    if isinstance(content, list):
        raise UserError(
            f"{path} is a list, but DPG-Bench's scorer knows its prompts by their ids: give a JSON "
            '{"id": "prompt"}'
        )
    if not isinstance(content, dict):
        raise UserError(f'{path} is {short_repr(content)}: give a JSON {{"id": "prompt"}}')
    return [
        # the scorer takes the name up to the first dot
        Prompt(prompt_text(text, f"{path}: {short_repr(name)}"), _name(name, f"{path}: the id"))
        for name, text in content.items()
    ]


def _dpg_files(prompt, images):
    columns = math.ceil(math.sqrt(len(images)))
    return {f"{prompt.name}.png": lambda: encode_pixels(image_grid(images, columns, pad=0))}


def _read_genai(path):
    content = read_json(path, largest=LARGEST_LIST, unique=True)
    if isinstance(content, list):
        return [
            Prompt(prompt_text(text, f"{path}[{number}]"), f"{number:05d}")
            for number, text in enumerate(content)
        ]
    if not isinstance(content, dict):
        raise UserError(f'{path} is {short_repr(content)}: give a list, or {{id: {{"prompt": }}}}')
    return [
        Prompt(
            prompt_text(
                entry.get("prompt") if isinstance(entry, dict) else entry, f"{path}: {name}"
            ),
            _name(name, f"{path}: the id"),
        )
        for name, entry in content.items()
    ]


def _genai_files(prompt, images):
    _check_one(images, "genai")
    return {f"{prompt.name}.jpeg": _encoded(images[0], "jpeg")}


def _genai_listing(prompts):
    return {INDEX: _json({prompt.name: prompt.text for prompt in prompts})}


def _read_coco(path):
    content = read_json(path, each(Any, 1, _MOST_PROMPTS), largest=LARGEST_LIST, unique=True)
    texts = [entry.get("caption") if isinstance(entry, dict) else entry for entry in content]
    return [
        Prompt(prompt_text(text, f"{path}[{number}]"), f"{number:06d}")
        for number, text in enumerate(texts)
    ]


def _coco_files(prompt, images):
    _check_one(images, "coco")
    return {f"{prompt.name}.png": _encoded(images[0])}


class _MJHQ(TypedDict):
    category: str
    prompt: str


def _read_mjhq(path):
    content = read_json(path, dict[str, _MJHQ], largest=LARGEST_LIST, unique=True)
    return [
        Prompt(
            prompt_text(entry["prompt"], f"{path}: {name}"),
            _name(name, f"{path}: the id"),
            _name(entry["category"], f"{path}: the category of {name}"),
        )
        for name, entry in content.items()
    ]


def _mjhq_files(prompt, images):
    _check_one(images, "mjhq")
    return {f"{prompt.entry}/{prompt.name}.jpg": _encoded(images[0], "jpeg")}


def _read_flat(path):
    lines = numbered_lines(path)
    if lines and lines[0][1].lstrip().startswith(("{", "[")):
        raise UserError(
            f"{path} begins with {short_repr(lines[0][1].strip()[:20])}, as JSON does: name its "
            "--layout; for the layout flat, begin the first prompt with another character"
        )
    return [
        Prompt(prompt_text(line, source), f"{number:05d}")
        for number, (source, line) in enumerate(lines)
    ]


def _flat_files(prompt, images):
    return {
        f"{prompt.name}_{number:02d}.png": _encoded(image) for number, image in enumerate(images)
    }


def _prompts_listing(prompts):
    lines = [_json({"name": prompt.name, "prompt": prompt.text}) for prompt in prompts]
    return {PROMPTS: b"\n".join(lines) + b"\n"}


def _check_one(images, layout):
    if len(images) != 1:
        raise UserError(f"the layout {layout} has one image a prompt, not {len(images)}")


def _encoded(image, kind="png"):
    """What makes the bytes of a picture's file."""
    return functools.partial(encode_pixels, image, kind)


def _json(content):
    return json.dumps(content).encode()


LAYOUTS = {
    "geneval": Layout(_read_geneval, 4, _geneval_files),
    "dpg": Layout(_read_dpg, 4, _dpg_files),
    "genai": Layout(_read_genai, 1, _genai_files, _genai_listing),
    "coco": Layout(_read_coco, 1, _coco_files, _prompts_listing),
    "mjhq": Layout(_read_mjhq, 1, _mjhq_files),
    "flat": Layout(_read_flat, 1, _flat_files, _prompts_listing),
}
