"""From a source to batches: shuffling, sharding over processes, prefetching (Grain)."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping

import numpy as np

from repae_jax.data.caption_texts import choose_caption
from repae_jax.data.crop import RandomWindow
from repae_jax.errors import UserError

if typing.TYPE_CHECKING:
    import grain

    from repae_jax.data.caption_states import PadStates
    from repae_jax.data.source import Source

    Tokenize = typing.Callable[[str], Mapping[str, np.ndarray]]

# Grain prefetches batches here. Its defaults (16 threads, 500 elements) would hold 25 GB at batches
# of 256 images of 256 x 256.
_THREADS = 4
_BATCHES_AHEAD = 4
_OF_CAPTIONS = ("caption", "caption_states")  # entries of an element that are no arrays


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    rows: tuple[int, ...] | None = None,
    workers: int = 0,
    flip: bool = False,
    random_crop: int = 0,
    tokenize: Tokenize | None = None,
    pad_states: PadStates | None = None,
) -> grain.DatasetIterator:
    """Endless batches of shuffled images: {"image": uint8 (b, H, W, 3), "label": int32 (b,)}.

    For cached latents, a batch has the keys of `data.latents`, with a leading dimension b.

    The images form one endless stream, one freshly shuffled epoch after another; a batch is the
    stream's next `batch_size` images. No image is dropped at the end of an epoch: the last batch
    takes its remaining images from the next epoch. The stream depends on the source and `seed`
    only. Each process receives its b images of every batch; all processes together receive the
    batch of a single process.

    The iterator's `get_state()` is a small dict that JSON can hold: the number of images that all
    processes together have consumed. It is the same in every process, and `set_state()` continues
    exactly there, also with other `workers` or `rows`. It does not include source, `seed`, `flip`
    and `random_crop`. `close()` ends the threads and processes that prefetch. If one of these
    processes dies, the next batch raises TryAgain within seconds.

    Of several captions of an image one is chosen at random, anew in every epoch.

    Args:
      source: the source of the images; it must be picklable if `workers` > 0.
      batch_size: images in a batch, of all processes together.
      seed: a non-negative seed of order, crops, flips and choices of captions.
      rows: the rows of every batch that this process yields; all by default.
      workers: number of processes that prefetch; with 0, threads of this process do. Processes
        are spawned: a script's own code must stand under `if __name__ == "__main__"`.
      flip: mirror every image with probability 1/2, decided anew in every epoch.
      random_crop: pixels to which a picture's shorter side is resized; a random square of the
        result is cut out, anew in every epoch (see `crop.random_crop`). 0 crops the center. The
        source must have the method `read` (see `Source`).
      tokenize: a caption -> the arrays that take its place in a batch, such as {"ids": int32 (L,)};
        None leaves captions out. It must be picklable if `workers` > 0.
      pad_states: the states of a caption that cached latents keep -> the arrays that take its
        place, instead of `tokenize`'s.

    Raises:
      UserError: the batch is larger than the source, or a number is out of range.
    """
    _check(source, batch_size, seed, workers)
    captioned = tokenize is not None or pad_states is not None
    if flip and captioned:
        raise UserError(
            "config.data.flip is True, but a mirrored image no longer fits a caption that says "
            "left or right: set --config.data.flip=False"
        )
    import grain

    from repae_jax.data.batches import Batches

    images = grain.MapDataset.source(range(len(source)) if random_crop else source)
    images = images.seed(seed).shuffle()
    # before the sharding, so that the number of processes does not change what is drawn
    if random_crop:
        read = functools.partial(_read_random_crop, source=source, shorter=random_crop)
        images = images.random_map(read)
    if flip:
        images = images.random_map(_mirror_half)
    if captioned:
        images = images.random_map(_random_caption)
    images = images.map(
        functools.partial(_replace_caption, tokenize=tokenize, pad_states=pad_states)
    )
    if workers:
        _allow_grain_flags()
    rows = tuple(range(batch_size)) if rows is None else rows
    return Batches(images.repeat(), batch_size, rows, _read_options(workers), workers)


def eval_batches(
    source: Source,
    batch_size: int,
    *,
    tokenize: Tokenize | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in the source's order; the last batch may be smaller.

    Args:
      source: the source of the images.
      batch_size: images in a batch.
      tokenize: see `train_batches`; of several captions of an image the first is taken.

    Yields:
      {"image": uint8 (b, H, W, 3), "label": int32 (b,)}.

    Raises:
      UserError: the batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: give at least 1")
    import grain

    images = grain.MapDataset.source(source)
    if tokenize is not None:
        images = images.map(_first_caption)
    images = images.map(functools.partial(_replace_caption, tokenize=tokenize))
    batches = images.batch(batch_size)
    return iter(batches.to_iter_dataset(_read_options(workers=0)))


def _check(source, batch_size, seed, workers):
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: give at least 1")
    if len(source) < batch_size:
        raise UserError(
            f"{source.name} has {len(source)} images, fewer than one batch of {batch_size}: lower "
            "the batch size (of a run --config.batch_size)"
        )
    if seed < 0:
        raise UserError(f"seed = {seed}: must not be negative")
    if workers < 0:
        raise UserError(f"workers = {workers}: give 0 for threads, or a number of processes")


def _read_options(workers):
    import grain

    if workers:  # each process reads one batch while the previous one waits in its queue
        return grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)


def _read_random_crop(index, rng, source, shorter):
    window = RandomWindow(shorter, draw=lambda most: int(rng.integers(most, endpoint=True)))
    return source.read(index, window)


def _random_caption(element, rng):
    return choose_caption(element, lambda count: int(rng.integers(count)))


def _first_caption(element):
    return choose_caption(element, lambda count: 0)


def _replace_caption(element, tokenize=None, pad_states=None):
    """The element with the arrays of its one caption in the caption's place."""
    rest = {key: value for key, value in element.items() if key not in _OF_CAPTIONS}
    if pad_states is not None:
        return {**rest, **pad_states(element["caption_states"])}
    return rest if tokenize is None else {**rest, **tokenize(element["caption"])}


def _mirror_half(element, rng):
    mirrored = rng.random() >= 0.5
    if "mirrored" in element:  # latents: the VAE has seen both images
        from repae_jax.data.latents import choose_mirrored

        return choose_mirrored(element, mirrored)
    if not mirrored:
        return element
    return {**element, "image": element["image"][:, ::-1]}


def _allow_grain_flags():
    """Let Grain read the defaults of its absl flags in programs that do not parse flags."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
