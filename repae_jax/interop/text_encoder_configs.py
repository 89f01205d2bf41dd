"""The fields of text encoders that config.json files of transformers determine."""

from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.models.text_encoders.causal_lm import GEMMA, QWEN3, CausalLM
from repae_jax.models.text_encoders.clip_text import CLIPText
from repae_jax.utils.schema import Text, Width, check_schema, real, whole

_Layers = whole(1, 256)
_Heads = whole(1, 1024)
_Tokens = whole(1, 2**24)


class _Rope(TypedDict, total=False):
    rope_type: Text | None
    rope_theta: real(1)


class _LanguageModel(TypedDict, total=False):
    vocab_size: _Tokens
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: _Layers
    num_attention_heads: _Heads
    num_key_value_heads: _Heads | None
    head_dim: Width | None
    hidden_act: Text | None
    rms_norm_eps: real(0, 1)
    rope_theta: real(1) | None
    rope_parameters: _Rope | None
    rope_scaling: dict[str, Any] | None
    attention_bias: bool | None
    use_sliding_window: bool | None
    use_bidirectional_attention: bool | None


class _CLIPText(TypedDict, total=False):
    vocab_size: _Tokens
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: _Layers
    num_attention_heads: _Heads
    max_position_embeddings: _Tokens
    hidden_act: Text
    layer_norm_eps: real(0, 1)


class _Header(TypedDict, total=False):
    model_type: Text | None
    text_config: dict[str, Any] | None


_SIZES = {
    "vocab_size": "vocabulary",
    "hidden_size": "dim",
    "intermediate_size": "mlp_hidden",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
}
_OF_LANGUAGE_MODELS = {
    **_SIZES,
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_epsilon",
}
_OF_CLIP = {**_SIZES, "max_position_embeddings": "length", "layer_norm_eps": "norm_epsilon"}
# Gemma's first configurations say "gelu" and mean its tanh approximation.
_ACTIVATIONS = {
    "gemma": {"gelu": "tanh_gelu", "gelu_pytorch_tanh": "tanh_gelu"},
    "qwen3": {"silu": "silu"},
}
_QUICK = {"quick_gelu": True, "gelu": False}
# options of transformers that `CausalLM` lacks
_ABSENT = ("rope_scaling", "attention_bias", "use_sliding_window", "use_bidirectional_attention")


def class_and_fields(
    config: Any, *, source: str
) -> tuple[type[CausalLM] | type[CLIPText], dict[str, Any]]:
    """The class of a text encoder and its fields, as far as config.json states them.

    Args:
      config: the content of config.json, of Gemma, Qwen3, CLIP's text tower, or the complete CLIP.
      source: the file's name in an error.

    Raises:
      UserError: the file is of another model, or asks for an option that ours lacks.
    """
    check_schema(config, _Header, source=f"{source}: ")
    kind = config.get("model_type")
    if kind not in _READERS:
        raise UserError(
            f"{source}: model_type is {kind!r}; text encoders are read of {', '.join(_READERS)}"
        )
    return _READERS[kind](config, source)


def _causal_lm(style: Mapping[str, Any]) -> Callable:
    def read(config, source):
        check_schema(config, _LanguageModel, source=f"{source}: ")
        for key in _ABSENT:
            if config.get(key):
                raise UserError(f"{source}: {key} is {config[key]!r}, which is not implemented")
        found = {k: v for k, v in style.items() if k != "rope_base"}
        found |= _renamed(config, _OF_LANGUAGE_MODELS)
        activations = _ACTIVATIONS[config["model_type"]]
        if config.get("hidden_act") is not None:
            found["activation"] = _chosen(config, "hidden_act", activations, source)
        return CausalLM, found | _rope(config, source)

    return read


def _clip(config, source):
    if config["model_type"] == "clip":
        config, source = config.get("text_config") or {}, f"{source}: text_config"
    check_schema(config, _CLIPText, source=f"{source}: ")
    found = _renamed(config, _OF_CLIP)
    if "hidden_act" in config:
        found["quick_gelu"] = _chosen(config, "hidden_act", _QUICK, source)
    return CLIPText, found


_READERS = {
    "gemma": _causal_lm(GEMMA),
    "qwen3": _causal_lm(QWEN3),
    "clip_text_model": _clip,
    "clip": _clip,
}


def _renamed(config, names):
    return {ours: config[key] for key, ours in names.items() if config.get(key) is not None}


def _chosen(config, key, choices, source):
    value = config[key]
    if value not in choices:
        raise UserError(f"{source}: {key} is {value!r}, and read are {', '.join(choices)}")
    return choices[value]


def _rope(config, source):
    """The base of the rotary frequencies, which transformers 5 keeps in an object of its own."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") not in (None, "default"):
        raise UserError(
            f"{source}: rope_parameters.rope_type is {rope['rope_type']!r}, which is not "
            "implemented; 'default' is"
        )
    base = rope.get("rope_theta", config.get("rope_theta"))
    return {} if base is None else {"rope_base": base}
