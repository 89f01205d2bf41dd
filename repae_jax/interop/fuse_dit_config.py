"""The config.json of fuse-dit's checkpoints: transformers' form of its class `DiTConfig`.

transformers leaves out the keys whose value is the class's default. "base_config" is a GemmaConfig
whose heads and widths are the DiT's own; its name is that of the text encoder.
"""

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.utils.schema import Text, Width, check_schema, real, whole

_Channels = whole(1, 4096)
_EPSILON = 1e-6  # of the norms


class _Base(TypedDict, total=False):
    _name_or_path: Text | None
    model_type: Text | None
    hidden_size: Width
    intermediate_size: Width
    num_attention_heads: whole(1, 1024)
    num_key_value_heads: whole(1, 1024)
    head_dim: Width
    hidden_activation: Text | None
    rms_norm_eps: real(0, 1)
    attention_bias: bool


class _Config(TypedDict, total=False):
    model_type: Text | None
    base_config: _Base
    attention: Text
    dit_hidden_size: Width
    dit_num_hidden_layers: whole(1, 256)
    in_channels: _Channels
    out_channels: _Channels
    patch_size: whole(1, 64)
    pos_embed: Text
    pos_embed_max_size: whole(1, 65_536) | None
    qk_norm: bool
    sample_size: whole(1, 4096)
    sandwich_norm: bool
    text_hidden_size: Width | None
    text_hidden_states_index: int | None
    text_modulation_embeds_dim: Width | None
    timestep_conditioning: Text | None
    repae_jax: str


# option -> (its default, its value in the network that is read here)
_OPTIONS = {
    "attention": ("self", "self"),
    "pos_embed": ("1d-rope", "ape"),
    "pos_embed_max_size": (64, 64),
    "qk_norm": (False, True),
    "sample_size": (32, 32),
    "sandwich_norm": (False, False),
    "text_hidden_states_index": (-1, -1),
    "text_modulation_embeds_dim": (None, None),
    "timestep_conditioning": ("adaln-zero", "adaln-zero"),
}
_OPTIONS_OF_BASE = {
    "model_type": (None, "gemma"),
    "hidden_activation": ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    "rms_norm_eps": (_EPSILON, _EPSILON),
    "attention_bias": (False, False),
}
# size -> (its default, the dimension of the tensors that it states)
_SIZES = {
    "dit_hidden_size": (None, "hidden_size"),
    "dit_num_hidden_layers": (18, "depth"),
    "in_channels": (16, "latent_channels"),
    "out_channels": (16, "latent_channels"),
    "patch_size": (2, "patch_size"),
    "text_hidden_size": (None, "text_width"),
}
_SIZES_OF_BASE = {
    "num_attention_heads": (16, "num_heads"),
    "num_key_value_heads": (16, "kv_heads"),
    "head_dim": (256, "head_width"),
    "intermediate_size": (24_576, "mlp_width"),
}


def check_network(config: Any, source: str) -> dict[str, Any]:
    """Return a config.json's content unchanged if it describes the network that is read here.

    Raises:
      UserError: it is of another class, a key has a wrong type, or an option another value; one
        error lists all of these.
    """
    check_schema(config, _Config, source=f"{source}: ")
    kind = config.get("model_type")
    if kind != "DiT":
        raise UserError(
            f"{source}: model_type is {kind!r}; of fuse-dit's classes DiT is read, not the FuseDiT "
            "that runs through the layers of a language model"
        )
    _refuse(source, "is read", _differences(config, _OPTIONS, _OPTIONS_OF_BASE))
    return config


def check_sizes(config: Mapping[str, Any], dimensions: Mapping[str, Any], source: str) -> None:
    """Raise UserError, which lists them, for sizes other than the tensors' `dimensions`."""

    def expected(sizes):
        return {key: (default, dimensions[name]) for key, (default, name) in sizes.items()}

    _refuse(source, "the weights have", _differences(config, *map(expected, _ALL_SIZES)))


_ALL_SIZES = (_SIZES, _SIZES_OF_BASE)


def text_encoder_of(config: Mapping[str, Any]) -> str:
    """The name of the text encoder, such as "google/gemma-2b"; "" if the file states none."""
    return config.get("base_config", {}).get("_name_or_path") or ""


def make_config(dimensions: Mapping[str, Any], text_encoder: str, **more: Any) -> dict[str, Any]:
    """The config.json of a network.

    Args:
      dimensions: as `fuse_dit.infer_dimensions` gives them.
      text_encoder: the name of the text encoder.
      more: further keys, which fuse-dit's class keeps and ignores.
    """

    def stated(options, sizes):
        found = {key: value for key, (_, value) in options.items()}
        return found | {key: dimensions[name] for key, (_, name) in sizes.items()}

    base = {
        "_name_or_path": text_encoder,
        **stated(_OPTIONS_OF_BASE, _SIZES_OF_BASE),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": dimensions["hidden_size"],
    }
    own = stated(_OPTIONS, _SIZES)
    return {"architectures": ["DiT"], "model_type": "DiT", "base_config": base, **own, **more}


def _differences(config, expected, expected_of_base):
    """(key, value, expected value) of keys with another value than expected."""
    base = config.get("base_config", {})
    # what a null stands for
    implied = {
        "dit_hidden_size": base.get("hidden_size", 3072),
        "hidden_activation": "gelu_pytorch_tanh",
    }
    for prefix, given, wanted in (("", config, expected), ("base_config.", base, expected_of_base)):
        for key, (default, value) in wanted.items():
            found = given.get(key, default)
            found = implied.get(key) if found is None else found
            if found != value:
                yield f"{prefix}{key}", found, value


def _refuse(source, verb, differences):
    listed = [f"{key} is {found!r} ({verb} {value!r})" for key, found, value in differences]
    if listed:
        raise UserError(f"{source}: another network than the one here: {', '.join(listed)}")
