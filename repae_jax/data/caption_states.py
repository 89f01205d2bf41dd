"""The states of a text encoder that a cache of latents keeps for its captions.

A record has, for the caption of number k from 0, "text/k", the states (n, C) in the cache's type,
and "text_length/k", the tokens of the caption. n is that length, so that padding takes no room; for
an encoder whose states of padding are part of the condition, n is the encoder's length L.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data.caption_texts import KEPT
from repae_jax.errors import UserError
from repae_jax.utils.schema import Text, Width, whole

STATES = "text"  # the entry of a manifest's "made" that describes the states


class Made(TypedDict):
    """The entry `STATES`: which network made the states.

    Attributes:
      encoder, tokenizer: fingerprints.
      length, width: L and C.
    """

    encoder: Text
    tokenizer: Text
    length: whole(1, 65_536)
    width: Width


@dataclasses.dataclass(frozen=True)
class CaptionStates:
    """The states of one caption: (n, C), and the number of its tokens."""

    states: np.ndarray
    length: int


@dataclasses.dataclass(frozen=True)
class PadStates:
    """Pads states to the arrays of a condition; picklable, for processes that read ahead.

    Attributes:
      length: L.
    """

    length: int

    def __call__(self, caption: CaptionStates) -> dict[str, np.ndarray]:
        """{"tokens": float32 (L, C), "mask": bool (L,)}, as `encode_captions` gives them."""
        states = caption.states
        tokens = np.zeros((self.length, states.shape[1]), np.float32)
        tokens[: len(states)] = states
        return {"tokens": tokens, "mask": np.arange(self.length) < caption.length}


def states_entries(captions: Sequence[CaptionStates]) -> dict[str, Any]:
    """The entries of a record that keep the states of an image's captions."""
    entries: dict[str, Any] = {}
    for number, caption in enumerate(captions):
        entries[f"text/{number}"] = caption.states
        entries[f"text_length/{number}"] = caption.length
    return entries


def states_in(
    record: Mapping[str, Any], count: int, made: Mapping[str, Any], name: str
) -> tuple[CaptionStates, ...]:
    """The states of an image's captions, the inverse of `states_entries`.

    Args:
      record: the record.
      count: the number of captions.
      made: the entry `STATES` of the cache.
      name: the record's name in messages.

    Raises:
      UserError: the record does not hold them.
    """
    found = []
    for number in range(count):
        states, length = record.get(f"text/{number}"), record.get(f"text_length/{number}")
        if not (
            isinstance(states, np.ndarray)
            and states.shape[1:] == (made["width"],)
            and type(length) is int
            and 0 <= length <= len(states) <= made["length"]
        ):
            raise UserError(f"{name}: damaged, it lacks the states of a caption; encode anew")
        found.append(CaptionStates(states, length))
    return tuple(found)


def missing_captions(folder: Any, made: Mapping[str, Any]) -> list[str]:
    """[] if a cache, whose manifest has the entry "made", keeps captions; else [the message]."""
    if made.get(KEPT):
        return []
    return [
        f"{folder} keeps no captions, which config.condition.family 'text' takes: encode anew with "
        "this configuration, or set --config.condition.family=class"
    ]


def check_states(folder: str, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError if a cache keeps states of another text encoder or tokenizer.

    Args:
      folder: the cache.
      made: the entry "made" of its manifest.
      wanted: what a `Made` of the configuration's text encoder would be.
    """
    if STATES not in made:
        return
    found = made[STATES]
    for key, what, where in (
        ("encoder", "text encoder", "weights"),
        ("tokenizer", "tokenizer", "tokenizer"),
    ):
        if found[key] != wanted[key]:
            raise UserError(
                f"{folder} keeps the states of captions by another {what} ({found[key][:12]}...) "
                f"than config.text_encoder.{where} ({wanted[key][:12]}...): encode anew, or name "
                f"the {what} that made them"
            )
    if found["width"] != wanted["width"]:
        raise UserError(
            f"{folder} keeps states of captions of width {found['width']}, the configuration's "
            f"text encoder gives {wanted['width']}: encode anew"
        )
    if found["length"] != wanted["length"]:
        raise UserError(
            f"{folder} keeps the states of at most {found['length']} tokens a caption, but "
            f"config.text_encoder.length is {wanted['length']}: encode anew, or set "
            f"--config.text_encoder.length={found['length']}"
        )
