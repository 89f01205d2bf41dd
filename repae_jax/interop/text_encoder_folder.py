"""Writes text encoders and their tokenizers as folders that transformers opens."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.text_encoder import CONFIG, WEIGHTS
from repae_jax.models.text_encoders.base import TextEncoder
from repae_jax.models.text_encoders.causal_lm import GEMMA, QWEN3, CausalLM
from repae_jax.models.text_encoders.clip_text import CLIPText

TOKENIZER = "tokenizer.json"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


class Described(NamedTuple):
    """A text encoder for transformers.

    Attributes:
      module: "transformers", or the name of a file of code that the folder needs.
      class_name: its class.
      config: the content of config.json.
    """

    module: str
    class_name: str
    config: dict[str, Any]


def describe(encoder: TextEncoder, code: str) -> Described:
    """The class and the config.json of a text encoder.

    Args:
      encoder: the module.
      code: the name of the file of code with the class of whitened language models.

    Raises:
      UserError: transformers has no class for it.
    """
    if isinstance(encoder, CLIPText):
        return _clip(encoder)
    if isinstance(encoder, CausalLM):
        return _causal_lm(encoder, code)
    raise UserError(
        f"the text encoder is a {type(encoder).__name__}, for which transformers has no class: "
        "keep the run's work directory"
    )


def write_text_encoder(
    folder: pathlib.Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> None:
    """Write config.json and model.safetensors into a new folder.

    Args:
      folder: the folder.
      tensors: from `text_encoder.base_text_encoder`.
      config: the content of config.json, from `describe`.
    """
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    files.write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})


def write_tokenizer(folder: pathlib.Path, content: bytes, length: int) -> None:
    """Write a tokenizer.json as a folder of transformers' tokenizer.

    Args:
      folder: a new folder.
      content: of the tokenizer.json.
      length: the most tokens of a prompt.
    """
    folder.mkdir()
    (folder / TOKENIZER).write_bytes(content)
    config = {
        "tokenizer_class": TOKENIZER_CLASS,
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text)


def _sizes(encoder):
    return {
        "vocab_size": encoder.vocabulary,
        "hidden_size": encoder.dim,
        "intermediate_size": encoder.mlp_hidden,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
    }


def _clip(encoder):
    class_name = "CLIPTextModelWithProjection" if encoder.projection else "CLIPTextModel"
    config = {
        "model_type": "clip_text_model",
        "architectures": [class_name],
        **_sizes(encoder),
        "max_position_embeddings": encoder.length,
        "hidden_act": "quick_gelu" if encoder.quick_gelu else "gelu",
        "layer_norm_eps": encoder.norm_epsilon,
        "pad_token_id": encoder.pad_id,
        "eos_token_id": 2 if encoder.eos_id is None else encoder.eos_id,
    }
    if encoder.projection:
        config["projection_dim"] = encoder.projection
    return Described("transformers", class_name, config)


def _causal_lm(encoder, code):
    styles = {"gemma": GEMMA, "qwen3": QWEN3}
    fixed = ("norm_offset", "scale_embedding", "qk_norm", "activation")
    kind = next(
        (
            kind
            for kind, style in styles.items()
            if all(getattr(encoder, name) == style[name] for name in fixed)
        ),
        None,
    )
    if kind is None or (encoder.whitened and kind != "qwen3"):
        raise UserError(
            "the text encoder is neither a Gemma nor a Qwen3, or a Gemma with whitened states, for "
            "which transformers has no class: keep the run's work directory"
        )
    class_name = "RepaeTextEncoder" if encoder.whitened else f"{kind.title()}Model"
    config = {
        "model_type": kind,
        "architectures": [class_name],
        **_sizes(encoder),
        "num_key_value_heads": encoder.num_kv_heads,
        "head_dim": encoder.head_dim,
        "hidden_act": {"gemma": "gelu_pytorch_tanh", "qwen3": "silu"}[kind],
        "rms_norm_eps": encoder.norm_epsilon,
        "rope_theta": encoder.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": encoder.rope_base},
        "max_position_embeddings": max(encoder.length, 8192),
        "tie_word_embeddings": True,
        "attention_bias": False,
    }
    return Described(code if encoder.whitened else "transformers", class_name, config)
