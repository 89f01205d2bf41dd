"""The captions of an image: decoding, the choice of one of several, and their place in records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repae_jax.errors import BadImage, UserError

MOST_BYTES = 1 << 16  # of a caption: some ten thousand words
KEPT = "captions"  # the entry of a manifest's "made" that says that its records hold captions
_KEY = "caption"

Captions = str | tuple[str, ...]  # the one caption of an image, or its several captions


def decode_caption(data: bytes, name: str) -> str:
    """The text of a caption without the white space around it.

    Args:
      data: UTF-8, at most `MOST_BYTES`.
      name: the picture's name in messages.

    Raises:
      BadImage: it is empty, longer, or no UTF-8.
    """
    if len(data) > MOST_BYTES:
        raise BadImage(
            f"{name}: its caption has {len(data):,} bytes, more than the {MOST_BYTES:,} that are "
            "read; shorten it"
        )
    try:
        text = data.decode("utf-8-sig").strip()  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        raise BadImage(
            f"{name}: its caption is no UTF-8 ({error.reason} at byte {error.start}); save it as "
            "UTF-8"
        ) from error
    if not text:
        raise BadImage(f"{name}: its caption is empty; write one, or remove the picture")
    return text


def decode_captions(parts: Sequence[bytes], name: str) -> Captions:
    """The captions of one image: a str for one, a tuple for several.

    Raises:
      BadImage: there is none, or `decode_caption` refuses one.
    """
    if not parts:
        raise BadImage(f"{name}: it has no caption; write one, or remove the picture")
    if len(parts) == 1:
        return decode_caption(parts[0], name)
    names = (f"{name} (caption {number} of {len(parts)})" for number in range(1, len(parts) + 1))
    return tuple(map(decode_caption, parts, names))


def as_tuple(captions: Captions) -> tuple[str, ...]:
    """The captions of one image as a tuple, also for one."""
    return (captions,) if isinstance(captions, str) else captions


def choose_caption(element: Mapping[str, Any], choose: Callable[[int], int]) -> dict[str, Any]:
    """The element with one of its captions, and the states of that one if it has states.

    Args:
      element: has "caption", `Captions`; of cached latents maybe "caption_states", a tuple with the
        states of each.
      choose: the number of captions -> the number of the one to take, from 0.
    """
    texts = as_tuple(element["caption"])
    number = choose(len(texts))
    chosen = {**element, "caption": texts[number]}
    if "caption_states" in element:
        chosen["caption_states"] = element["caption_states"][number]
    return chosen


def caption_entries(captions: Captions) -> dict[str, str]:
    """The entries of a record that keep captions: "caption", or "caption/0", "caption/1", ..."""
    if isinstance(captions, str):
        return {_KEY: captions}
    return {f"{_KEY}/{number}": text for number, text in enumerate(captions)}


def captions_in(record: Mapping[str, Any], name: str) -> Captions:
    """The captions of a record, the inverse of `caption_entries`.

    Raises:
      UserError: the record, called `name`, has none.
    """
    count = sum(key.startswith(f"{_KEY}/") for key in record)
    keys = [f"{_KEY}/{number}" for number in range(count)] or [_KEY]
    texts = tuple(record.get(key) for key in keys)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name}: damaged, it has no caption; make its data set anew")
    return texts if count else texts[0]
