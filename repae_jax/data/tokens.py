"""Captions as token ids, by Hugging Face's `tokenizers` and a tokenizer.json."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import typing
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from repae_jax.data.descriptions import words
from repae_jax.errors import UserError, first_line

if typing.TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
_MOST_BYTES = 1 << 28  # of a tokenizer.json
BEGIN = "<bos>"


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Turns a caption into ids; picklable, so that processes that read ahead can do it.

    Special tokens are those that the tokenizer.json adds, such as a first `<bos>`. A longer caption
    loses its end, but keeps the special tokens there.

    Attributes:
      path: the tokenizer.json.
      length: L, the ids of a caption.
      pad_id: fills the end of a shorter caption.
    """

    path: str
    length: int
    pad_id: int

    def __call__(self, caption: str) -> dict[str, np.ndarray]:
        """{"caption_ids": int32 (L,), "caption_length": int32 (), the ids without padding}."""
        ids = self.ids(caption)
        padded = np.full(self.length, self.pad_id, np.int32)
        padded[: len(ids)] = ids
        return {"caption_ids": padded, "caption_length": np.int32(len(ids))}

    def ids(self, caption: str) -> list[int]:
        """The caption's ids, at most L.

        Raises:
          UserError: the special tokens alone are more, or the tokenizer.json is damaged.
        """
        tokenizer = _tokenizer(self.path, self.length)
        with _reading(self.path):
            found = tokenizer.encode(caption).ids
        if len(found) > self.length:
            special = tokenizer.num_special_tokens_to_add(False)
            raise UserError(
                f"{self.path} adds {special} special tokens to a caption, which leave no room for "
                f"it in a length of {self.length}: raise the length"
            )
        return found

    def cuts(self, caption: str) -> bool:
        """Whether a caption has more than L ids, of which `ids` gives the first."""
        with _reading(self.path):
            return bool(_tokenizer(self.path, self.length).encode(caption).overflowing)

    def sha256(self) -> str:
        """SHA-256 of the tokenizer.json, without its layout and what a length decides.

        Raises:
          UserError: the tokenizer.json is damaged.
        """
        tokenizer = _tokenizer(self.path, self.length)
        content = {**json.loads(tokenizer.to_str()), "truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check(self, vocabulary: int, null_ids: Sequence[int]) -> None:
        """Raise UserError unless the ids are those that an encoder was trained with.

        Args:
          vocabulary: the rows of the encoder's table of embeddings.
          null_ids: its ids of the empty caption.
        """
        tokens = _tokenizer(self.path, self.length).get_vocab(with_added_tokens=True)
        highest = max(tokens.values(), default=0)  # ids may have gaps
        if highest >= vocabulary:
            raise UserError(
                f"{self.path} has ids up to {highest}, but the text encoder's table has "
                f"{vocabulary} rows: name the tokenizer that belongs to the encoder"
            )
        empty = self.ids("")
        if tuple(empty) != tuple(null_ids):
            raise UserError(
                f"{self.path} turns the empty caption into {empty}, but the text encoder was "
                f"trained with {list(null_ids)}: name the tokenizer that belongs to the encoder"
            )


def grammar_tokenizer() -> Tokenizer:
    """The tokenizer of described images: a token for every word of the grammar, bytes for others.

    The first token is `<bos>`, id 0. A word's token takes the space before it.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([BEGIN, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([BEGIN])
    tokenizer.add_tokens(
        [AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in words()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
    )
    return tokenizer


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer (arXiv 1508.07909) of at most `vocabulary` tokens for captions.

    The first token is `<bos>`, id 0, which begins every caption. Every text can be encoded.

    Raises:
      UserError: the vocabulary has no room for `<bos>` and the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary <= len(alphabet):
        raise UserError(
            f"a vocabulary of {vocabulary} has no room for the bytes: give more than "
            f"{len(alphabet)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BEGIN], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
    )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _tokenizer(path, length):
    from tokenizers import Tokenizer

    file = pathlib.Path(path)
    with _reading(path):
        size = file.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer


@contextlib.contextmanager
def _reading(path) -> Iterator[None]:
    """Turn the errors of a tokenizer.json within the block into UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a {FILE}") from error
    except BaseException as error:  # a plain Exception, or a panic of Rust's
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise UserError(f"{path} is no {FILE} ({first_line(error)}); restore it") from error
