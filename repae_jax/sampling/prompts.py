"""The random stream of each image of a prompt, and the folder of a benchmark's images."""

import collections
import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.sampling.layouts import LAYOUTS, Layout, Prompt
from repae_jax.sampling.outputs import SHOWN, FolderOutput, check_folder
from repae_jax.utils.atomic_files import remove_temporaries, write_atomically
from repae_jax.utils.figures import image_grid, save_png

_MOST_EACH = 4096  # images of a prompt


def prompt_indices(prompts: Sequence[str], each: int) -> np.ndarray:
    """The indices (N * each,) uint32 of the images of N prompts, the first prompt's images first.

    Image j of a prompt has the same index in every list of prompts, so it has the same noise for
    the same seed. A prompt that occurs again has other indices.
    """
    seen: collections.Counter[str] = collections.Counter()
    indices = []
    for prompt in prompts:
        for number in range(each):
            name = f"{seen[prompt]} {number} {prompt}"
            indices.append(zlib.crc32(name.encode("utf-8", "surrogatepass")))
        seen[prompt] += 1
    return np.array(indices, np.uint32)


@dataclasses.dataclass(frozen=True)
class PromptFolder(FolderOutput):
    """The images of prompts, in the files of a benchmark.

    Image i is number i % each of prompt i // each. A prompt's files are written once all its images
    are there; `missing` names every batch that holds an image of an incomplete prompt.

    Attributes:
      layout: the files, a row of `LAYOUTS`.
      prompts: the prompts.
      each: images of a prompt.
    """

    layout: Layout = LAYOUTS["flat"]
    prompts: tuple[Prompt, ...] = ()
    each: int = 1
    _waiting: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)
    _shown: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)

    def missing(self, batch_size: int) -> list[int]:
        """The first index of every batch still to be generated."""
        complete = [self.layout.is_written(self.path, p, self.each) for p in self.prompts]
        batches = range(0, self.count, batch_size)
        return [
            start
            for start in batches
            if not all(complete[i // self.each] for i in range(*self._span(start, batch_size)))
        ]

    def write(self, start: int, images: np.ndarray) -> None:
        """Take images uint8 (n, H, W, 3) from the index `start` on; write complete prompts."""
        first, last = self._span(start, len(images))
        for index in range(first, last):
            self._waiting[index] = images[index - start]
            if index < SHOWN:
                self._shown[index] = images[index - start]
        for number in range(first // self.each, (last - 1) // self.each + 1):
            own = range(number * self.each, (number + 1) * self.each)
            if all(index in self._waiting for index in own):
                made = np.stack([self._waiting.pop(index) for index in own])
                with self._writing(self.path):
                    self.layout.write(self.path, self.prompts[number], made)

    def is_finished(self) -> bool:
        """Whether the files that list all prompts exist."""
        listing = self.layout.listing(self.prompts)
        return all((self.path / path).is_file() for path in listing)

    def show(self, done: int) -> None:
        """Write the preview once the first images are there, if it is missing."""
        shown = min(SHOWN, self.count)
        if all(index in self._shown for index in range(shown)) and not self.preview.exists():
            images = np.stack([self._shown[index] for index in range(shown)])
            save_png(self.preview, image_grid(images, min(8, shown)))

    def finish(self, labels: np.ndarray | None = None) -> None:
        """Write the files that list all prompts."""
        for path, content in self.layout.listing(self.prompts).items():
            with self._writing(self.path):
                write_atomically(self.path / path, content)

    def _span(self, start, size):
        return start, min(start + size, self.count)

    def _check_free_of_others(self):
        paths = [path for p in self.prompts for path in self.layout.paths(p, self.each)]
        paths += self.layout.listing(self.prompts)
        names = collections.defaultdict(set)  # by folder
        for path in map(pathlib.PurePosixPath, paths):
            names[path.parent].add(path.name)
        for folder, own in names.items():
            remove_temporaries(self.path / folder, own.__contains__)
        self._refuse_others({path.partition("/")[0] for path in paths})


def make_prompt_folder(
    path: pathlib.Path,
    layout: str,
    prompts: Sequence[Prompt],
    each: int | None,
    shape: tuple[int, int, int],
) -> PromptFolder:
    """Make the folder at `path` for the images of prompts.

    Args:
      path: the folder.
      layout: a key of `LAYOUTS`.
      prompts: from `layouts.read_prompts`.
      each: images of a prompt; None for the layout's own number.
      shape: (H, W, 3) of an image.

    Raises:
      UserError: `path` is a file, or the layout has another number of images.
    """
    row = LAYOUTS[layout]
    each = row.images if each is None else each
    if not 1 <= each <= _MOST_EACH:
        raise UserError(f"--images-per-prompt is {each}: give 1 to {_MOST_EACH}")
    if path.suffix == ".npz":
        raise UserError(f"--output {path}: prompts take a folder, not a file")
    path = check_folder(path)
    row.paths(prompts[0], each)  # refuses a number of images
    return PromptFolder(path, each * len(prompts), shape, row, tuple(prompts), each)


def describe_prompts(layout: str, prompts: Sequence[Prompt], each: int) -> dict[str, Any]:
    """What determines the images of prompts, for the file beside them."""
    import hashlib
    import json

    content = json.dumps([[prompt.name, prompt.text, prompt.entry] for prompt in prompts]).encode()
    return {
        "layout": layout,
        "prompts": f"{len(prompts)} prompts, {hashlib.sha256(content).hexdigest()}",
        "images_per_prompt": each,
    }


def spread(inputs: Mapping[str, np.ndarray], each: int) -> dict[str, np.ndarray]:
    """The inputs of N prompts, `each` times: (N, ...) -> (N * each, ...)."""
    return {name: np.repeat(values, each, axis=0) for name, values in inputs.items()}
