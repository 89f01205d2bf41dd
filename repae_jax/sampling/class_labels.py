"""The class label of each generated image."""

import hashlib
import pathlib

import jax
import numpy as np

from repae_jax.errors import UserError, first_line

BALANCED, RANDOM, NONE = "balanced", "random", "none"
NO_CLASS = -1  # the label of an unconditional image, generated from the null class
# Folded into the seed's key for random labels. An image's noise has the image's index folded in
# instead, and indices stay below this number.
_LABELS = 2**32 - 1


def choose_labels(text: str, count: int, num_classes: int, seed: int) -> tuple[np.ndarray, str]:
    """Choose the labels of `count` images; returns them and a string that identifies the choice.

    Args:
      text: "balanced": all classes in turn, so that their counts differ by at most one image;
        "random": uniform, label i from (seed, i) alone; "none": `NO_CLASS`; class numbers such as
        "3,1,4"; or the name of a text file of class numbers, separated by commas or white space.
        Given class numbers repeat until there are `count`.
      count: number of labels.
      num_classes: classes are 0 to num_classes - 1.
      seed: seed of the random labels.

    Returns:
      Labels (count,) int32, and the identifying string: `text` with the numbers in a standard form,
      or for a file the SHA-256 of its numbers.

    Raises:
      UserError: `text` or the file holds something else than numbers, or a class that does not
        exist.
    """
    if text == BALANCED:
        return balanced_labels(count, num_classes), text
    if text == RANDOM:
        return _random(count, num_classes, seed), text
    if text == NONE:
        return unconditional_labels(count), text
    path = pathlib.Path(text)
    if not _is_file(path):
        given = parse_labels(text, num_classes)
        return np.resize(given, count), ",".join(map(str, given))
    given = parse_labels(_content(path), num_classes, f"{text} (--labels)")
    return np.resize(given, count), f"{len(given)} numbers, {hashlib.sha256(given).hexdigest()}"


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """Labels (count,) int32: all classes in turn."""
    return (np.arange(count) % num_classes).astype(np.int32)


def unconditional_labels(count: int) -> np.ndarray:
    """Labels (count,) int32 of unconditional images: all `NO_CLASS`."""
    return np.full(count, NO_CLASS, np.int32)


def parse_labels(text: str, num_classes: int, source: str = "--labels") -> np.ndarray:
    """Parse labels (N,) int32, N > 0, from class numbers separated by commas or white space.

    Args:
      text: the class numbers.
      num_classes: classes are 0 to num_classes - 1.
      source: origin of `text`, for errors.

    Raises:
      UserError: `text` is empty, holds a word that is no number, or a class that does not exist.
    """
    words = text.replace(",", " ").split()
    try:
        labels = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError) as error:
        labels = np.zeros(0)
        cause = error
    else:
        cause = None
    if not labels.size:
        what = repr(text) if len(text) < 60 else f"{text[:50]!r}..."
        raise UserError(f"{source} is {what}: give class numbers such as 3,1,4") from cause
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise UserError(f"{source} has {wrong[0]}: the run's classes are 0 to {num_classes - 1}")
    return labels.astype(np.int32)


def _is_file(path):
    try:
        return path.is_file()
    except OSError:  # a long list of numbers exceeds the length limit of a file name
        return False


def _content(path):
    try:
        return path.read_text("utf-8-sig")  # editors on Windows write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels: {path} cannot be read as text ({first_line(error)})") from error


def _random(count, num_classes, seed):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _LABELS)

    def one(index):
        return jax.random.randint(jax.random.fold_in(key, index), (), 0, num_classes)

    return np.asarray(jax.vmap(one)(np.arange(count, dtype=np.uint32)))
