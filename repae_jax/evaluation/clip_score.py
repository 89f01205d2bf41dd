"""CLIP score: how well images fit their prompts (arXiv 2104.08718, section 3)."""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from repae_jax.data.tokens import FILE, Tokenize
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.evaluation.prompted_images import PromptedImages
from repae_jax.evaluation.resized_images import resize_shorter, resized_pictures
from repae_jax.interop.clip import read_clip
from repae_jax.parallel.mesh import batch_sharding, place, replicated

SCALE = 100.0  # of torchmetrics and of published figures; the paper's w is 2.5

# (images uint8 (B, S, S, 3), ids (B, L) int32) -> cosines (B,)
Cosines = Callable[[np.ndarray, np.ndarray], jax.Array]


class CLIPScorer:
    """Computes the CLIP score of images and prompts.

    The towers run in float32. A prompt longer than the text tower loses its end, but keeps the
    token of the end of text.

    Attributes:
      name: the weights' name.
    """

    def __init__(self, name: str | os.PathLike, mesh: Mesh | None = None):
        """Read the weights and the tokenizer.

        Args:
          name: see `read_clip`; tokenizer.json must be there, too.
          mesh: devices that share a batch, whose size is a multiple of their number. All processes
            make the same calls.

        Raises:
          UserError: a file is missing, damaged, or of another network.
        """
        self.name = str(name)
        model, variables, folder = read_clip(name, (FILE,))
        text = model.text
        self._side = model.side
        self._tokenize = Tokenize(str(folder / FILE), text.length, text.pad_id)
        self._tokenize.check(text.vocabulary, text.null_ids)
        self._cosines = _make_cosines(model, variables, mesh)

    def __call__(self, images: PromptedImages, *, batch_size: int, progress: bool = False) -> float:
        """The mean over images of 100 max(cosine, 0) of an image's and its prompt's embedding.

        Args:
          images: pictures of any sizes, and their prompts.
          batch_size: images per batch; the last batch is padded.
          progress: show a bar.

        Raises:
          UserError: a picture cannot be read.
        """
        from tqdm import tqdm

        resize = functools.partial(resize_shorter, side=self._side)
        pictures = resized_pictures(images.files, images.name, resize, self._side)
        total, start, bar_name = 0.0, 0, f"{images.name}, CLIP"
        with tqdm(total=pictures.count, unit="image", desc=bar_name, disable=not progress) as bar:
            for batch in pictures.batches(batch_size):
                prompts = images.prompts[start : start + len(batch)]
                ids = np.stack([self._tokenize(text)["caption_ids"] for text in prompts])
                padded = (pad_batch(array, batch_size) for array in (batch, ids))
                cosines = np.asarray(self._cosines(*padded), np.float64)[: len(batch)]
                total += SCALE * cosines.clip(min=0).sum()
                start += len(batch)
                bar.update(len(batch))
        return total / pictures.count


def _make_cosines(model, variables, mesh) -> Cosines:
    @functools.partial(jax.jit, out_shardings=None if mesh is None else replicated(mesh))
    def cosines(variables, images, ids):
        if mesh is not None:
            images, ids = jax.lax.with_sharding_constraint((images, ids), batch_sharding(mesh))
        with jax.default_matmul_precision("highest"):
            return model.apply(variables, images, ids, method="cosine")

    variables = jax.device_put(variables) if mesh is None else place(variables, replicated(mesh))
    return functools.partial(cosines, variables)
