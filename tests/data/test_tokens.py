"""Captions as ids: beside transformers, padding and truncation, and tokenizers that do not fit."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from repae_jax.data.described import describe
from repae_jax.data.descriptions import words
from repae_jax.data.tokens import Tokenize, grammar_tokenizer
from repae_jax.errors import UserError

CAPTIONS = [
    "",
    "a red disc",
    "a photo of an orange L above two Ts",
    "Gr\u00fc\u00df, 3 bored reds \U0001f600",
]


@pytest.fixture
def path(tmp_path):
    grammar_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_ids_are_those_of_transformers(path):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=path)
    for caption in CAPTIONS:
        assert Tokenize(path, 64, 0).ids(caption) == theirs(caption)["input_ids"]


def test_every_word_is_a_token_and_every_text_has_some(path):
    tokenize, decode = Tokenize(path, 64, 0), grammar_tokenizer().decode
    assert tokenize.ids("") == [0]
    for index in range(100):
        caption = describe(0, index).caption
        assert len(tokenize.ids(caption)) == 1 + len(caption.split())
    assert len({tokenize.ids(word)[-1] for word in words()}) == len(list(words()))
    strange = tokenize.ids("bored")  # holds "red", which is no word there
    assert len(strange) == 1 + len("bored")
    assert decode(tokenize.ids("bored")[1:]).replace(" ", "") == "bored"


def test_captions_are_padded_and_truncated(path):
    made = Tokenize(path, 6, 7)("a red disc")
    ids = Tokenize(path, 64, 0).ids("a red disc")
    np.testing.assert_array_equal(made["caption_ids"], [*ids, 7, 7])
    assert made["caption_length"] == 4
    long = Tokenize(path, 3, 7)("a red disc left of a star")
    np.testing.assert_array_equal(long["caption_ids"], ids[:3])
    assert long["caption_length"] == 3
    assert Tokenize(path, 5, 7)("word " * 10_000)["caption_length"] == 5


def test_the_end_keeps_its_special_token(tmp_path):
    from tokenizers import processors

    tokenizer = grammar_tokenizer()
    tokenizer.add_special_tokens(["<eos>"])
    last = tokenizer.token_to_id("<eos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", last)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = Tokenize(str(tmp_path / "tokenizer.json"), 4, 0).ids("a red disc left of a star")
    assert (len(ids), ids[-1]) == (4, last)


def test_another_process_makes_the_same(path):
    tokenize = pickle.loads(pickle.dumps(Tokenize(path, 8, 0)))
    assert tokenize.ids("a red disc") == Tokenize(path, 8, 0).ids("a red disc")


def test_a_tokenizer_of_another_encoder_is_named(path):
    tokenize = Tokenize(path, 8, 0)
    count = grammar_tokenizer().get_vocab_size()
    tokenize.check(count, (0,))
    with pytest.raises(UserError, match=f"ids up to {count - 1}, but .* has {count - 1} rows"):
        tokenize.check(count - 1, (0,))
    with pytest.raises(UserError, match=r"the empty caption into \[0\], but .*\[2\]"):
        tokenize.check(count, (2,))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"model": {"type": "BPE"}}', b"\xff"])
def test_another_file_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        Tokenize(str(tmp_path / "tokenizer.json"), 8, 0).ids("x")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenize(str(tmp_path / "missing.json"), 8, 0).ids("x")


def changed(path, change):
    content = json.loads(pathlib.Path(path).read_text())
    change(content)
    pathlib.Path(path).write_text(json.dumps(content))
    return Tokenize(path, 8, 0)


def test_ids_with_gaps_are_compared_with_the_table(path):
    vocabulary = grammar_tokenizer().get_vocab_size() + 10
    tokenize = changed(path, lambda it: it["model"]["vocab"].update(rare=100_000))
    with pytest.raises(UserError, match=f"ids up to 100000, but .* has {vocabulary} rows"):
        tokenize.check(vocabulary, (0,))


def test_a_length_that_special_tokens_exceed_is_named(path):
    piece = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    changed(path, lambda it: it["post_processor"]["single"].append(piece))
    assert Tokenize(path, 2, 0).ids("a red disc") == [0, 0]
    for length in (0, 1):
        with pytest.raises(UserError, match=f"2 special tokens .* length of {length}: raise"):
            Tokenize(path, length, 0).ids("a red disc")


PANICS = {
    "when it is read": lambda it: it.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "when it is used": lambda it: it["post_processor"]["single"].append(
        {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    ),
}


@pytest.mark.parametrize("when", PANICS)
def test_a_file_that_lets_rust_panic_is_named(when, path):
    tokenize = changed(path, PANICS[when])
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        tokenize.ids("x")
