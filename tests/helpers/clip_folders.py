"""Folders of small CLIPs with random weights, as transformers writes them, with a tokenizer."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import parity
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = len(ALPHABET) + 3
SIDE, LENGTH = 20, 16
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=VOCABULARY - 2,
    eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
)  # fmt: skip
VISION = dict(
    hidden_size=24, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3,
    image_size=SIDE, patch_size=5,
)  # fmt: skip


def clip_tokenizer() -> Tokenizer:
    """CLIP's kind of tokenizer: lower case, a token a byte and one pair, begin and end of text."""
    words = {symbol: number for number, symbol in enumerate([*ALPHABET, "ab", BEGIN, END])}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([BEGIN, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(word, words[word]) for word in (BEGIN, END)]
    )
    return tokenizer


def write_clip(
    folder: pathlib.Path,
    *,
    text: Mapping[str, Any] = {},
    vision: Mapping[str, Any] = {},
) -> transformers.CLIPModel:
    """Write config.json, model.safetensors and tokenizer.json; returns transformers' model."""
    config = transformers.CLIPConfig(
        text_config=TEXT | text, vision_config=VISION | vision, projection_dim=28
    )
    model = parity.randomise(transformers.CLIPModel(config)).eval()
    model.save_pretrained(folder)
    clip_tokenizer().save(str(folder / "tokenizer.json"))
    return model


def reconfigure(folder: pathlib.Path, **sections: Mapping[str, Any]) -> None:
    """Change keys of the sections of config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, keys in sections.items():
        merged = config[name] | keys
        config[name] = {key: value for key, value in merged.items() if value is not None}
    file.write_text(json.dumps(config))
