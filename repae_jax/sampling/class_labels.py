"""Which class every image is of."""

import hashlib
import pathlib

import jax
import numpy as np

from repae_jax.errors import UserError, first_line

BALANCED, RANDOM, NONE = "balanced", "random", "none"
NO_CLASS = -1  # the label of an image of no class, which the model's null class makes
# Images draw their noise from their index folded into the seed's key; labels from beside them.
_LABELS = 2**32 - 1


def choose_labels(text: str, count: int, num_classes: int, seed: int) -> tuple[np.ndarray, str]:
    """The labels of `count` images, and a word that tells one choice from another.

    Args:
      text: "balanced": all classes in turn, so that no two differ by more than one image;
        "random": uniform, label i from (seed, i) alone; "none": `NO_CLASS`; classes such as
        "3,1,4"; or the name of a text file of them, divided by commas or white space. The last two
        are repeated.
      count: how many labels.
      num_classes: classes are 0 to num_classes - 1.
      seed: of the random ones.

    Returns:
      (count,) int32, and `text` itself, or for a file the checksum of its numbers.

    Raises:
      UserError: not numbers, or a class that does not exist.
    """
    if text == BALANCED:
        return balanced(count, num_classes), text
    if text == RANDOM:
        return _random(count, num_classes, seed), text
    if text == NONE:
        return unconditional(count), text
    path = pathlib.Path(text)
    if not _is_file(path):
        given = class_numbers(text, num_classes)
        return np.resize(given, count), ",".join(map(str, given))
    given = class_numbers(_content(path), num_classes, f"{text} (--labels)")
    return np.resize(given, count), f"{len(given)} numbers, {hashlib.sha256(given).hexdigest()}"


def balanced(count: int, num_classes: int) -> np.ndarray:
    """Labels (count,) int32: all classes in turn."""
    return (np.arange(count) % num_classes).astype(np.int32)


def unconditional(count: int) -> np.ndarray:
    """Labels (count,) int32 of images of no class."""
    return np.full(count, NO_CLASS, np.int32)


def class_numbers(text: str, num_classes: int, source: str = "--labels") -> np.ndarray:
    """Labels (N,) int32 from numbers with commas or white space between them; N > 0.

    Raises:
      UserError: not numbers, or a class that does not exist.
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
    except OSError:  # a long list of numbers is longer than a name may be
        return False


def _content(path):
    try:
        return path.read_text("utf-8-sig")  # editors on Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels: {path} cannot be read as text ({first_line(error)})") from error


def _random(count, num_classes, seed):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _LABELS)

    def one(index):
        return jax.random.randint(jax.random.fold_in(key, index), (), 0, num_classes)

    return np.asarray(jax.vmap(one)(np.arange(count, dtype=np.uint32)))
