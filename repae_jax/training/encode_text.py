"""The states of a run's text encoder for the captions of a cache of latents."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from repae_jax.data.caption_states import CaptionStates
from repae_jax.data.caption_texts import Captions, as_tuple
from repae_jax.evaluation.image_sets import pad_batch
from repae_jax.interop.text_encoder import read_text_encoder
from repae_jax.models.networks import Models
from repae_jax.models.text_encoders.base import encode_captions
from repae_jax.parallel.mesh import batch_sharding, place_batch, replicated
from repae_jax.runs.captions import made_states, make_tokenize, tokenized
from repae_jax.utils.finite import NotFinite


class CaptionEncoder:
    """Computes the states of captions on all devices of a mesh.

    Attributes:
      made: the entry of the cache's manifest that describes the states.
    """

    def __init__(self, config: ConfigDict, models: Models, mesh: Mesh, batch_size: int):
        """Load the text encoder and its tokenizer.

        Raises:
          UserError: a file is missing or damaged, or holds another network.
        """
        encoder = models.text_encoder
        self._tokenize, self._batch_size, self._mesh = make_tokenize(config), batch_size, mesh
        variables = read_text_encoder(config.text_encoder.weights, encoder)
        self.made = made_states(encoder, variables, self._tokenize)
        self._variables = jax.device_put(variables, replicated(mesh))
        self._crops = encoder.crops

        def run(variables, inputs):
            ids, length = inputs["caption_ids"], inputs["caption_length"]
            return encode_captions(encoder, variables, ids, length)["tokens"]

        self._run = jax.jit(run, out_shardings=batch_sharding(mesh))

    def __call__(
        self, captions: Sequence[Captions], names: Sequence[str], dtype: np.dtype
    ) -> list[list[CaptionStates]]:
        """The states of all captions of each image, in the type `dtype`.

        The result depends on `captions` alone: they are encoded in their order, in batches.

        Args:
          captions: those of each image.
          names: the images' names in messages.
          dtype: the stored type.

        Raises:
          NotFinite: a state is NaN or infinite in that type.
        """
        texts = [as_tuple(own) for own in captions]
        flat = [text for own in texts for text in own]
        of_image = [name for name, own in zip(names, texts, strict=True) for _ in own]
        states = []
        for start in range(0, len(flat), self._batch_size):
            part = slice(start, start + self._batch_size)
            states += self._batch(flat[part], of_image[part], dtype)
        remaining = iter(states)
        return [list(itertools.islice(remaining, len(own))) for own in texts]

    def _batch(self, texts, names, dtype):
        inputs = tokenized(self._tokenize, texts)
        padded = {key: pad_batch(array, self._batch_size) for key, array in inputs.items()}
        found = jax.device_get(self._run(self._variables, place_batch(self._mesh, padded)))
        rows = zip(names, found, inputs["caption_length"].tolist(), strict=False)
        return [self._states(name, row, length, dtype) for name, row, length in rows]

    def _states(self, name, row, length, dtype):
        kept = row[:length] if self._crops else row
        states = kept.astype(dtype)
        if not np.isfinite(states.astype(np.float32)).all():
            raise NotFinite(
                f"{name}: the states of its caption are NaN or infinite as {dtype.name}: the "
                "weights of the text encoder are damaged, or that type is too narrow (--dtype)"
            )
        return CaptionStates(states, length)
