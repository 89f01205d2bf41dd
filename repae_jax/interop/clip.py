"""CLIP's two towers from a folder that transformers' `CLIPModel` writes."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.interop import files, hub, tables, weight_files
from repae_jax.interop.tables import LINEAR, Rule
from repae_jax.interop.text_encoder import load_text_encoder
from repae_jax.interop.text_encoder_configs import class_and_fields
from repae_jax.interop.vit import load_vit
from repae_jax.models.clip import CLIP
from repae_jax.models.encoders.vit import ViT
from repae_jax.models.text_encoders.clip_text import CLIPText
from repae_jax.utils.schema import (
    Side,
    Text,
    Width,
    check_schema,
    read_json,
    real,
    short_repr,
    whole,
)

CONFIG = "config.json"
_ADVICE = "name a folder of transformers' CLIPModel, such as hf://openai/clip-vit-large-patch14"
# a tensor of each part that the file must hold -> the part
_PARTS = {
    "vision_model.embeddings.class_embedding": "image tower",
    "visual_projection.weight": "projection of images",
    "text_model.embeddings.token_embedding.weight": "text tower",
    "text_projection.weight": "projection of texts",
}
# What transformers takes for a key that config.json leaves out.
_VISION = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    image_size=224, patch_size=32, num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)  # fmt: skip
_TEXT = dict(
    vocab_size=49_408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
    num_attention_heads=8, max_position_embeddings=77, hidden_act="quick_gelu",
    layer_norm_eps=1e-5, bos_token_id=49_406, eos_token_id=49_407,
)  # fmt: skip
_OLD_EOS = 2  # stands for the highest id in config.json files of before July 2023
_ACTIVATIONS = ("quick_gelu", "gelu")

_Layers = whole(1, 256)
_Heads = whole(1, 1024)
_Id = whole(0, 2**24)


class _Vision(TypedDict):
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: _Layers
    num_attention_heads: _Heads
    image_size: Side
    patch_size: Side
    num_channels: whole(3, 3)
    hidden_act: Text
    layer_norm_eps: real(0, 1)


class _Ids(TypedDict):
    bos_token_id: _Id
    eos_token_id: _Id


class _Header(TypedDict, total=False):
    model_type: Text | None
    vision_config: dict[str, Any] | None
    text_config: dict[str, Any] | None


class ReadCLIP(NamedTuple):
    """CLIP from a folder.

    Attributes:
      model: the module.
      variables: its variables.
      folder: the folder, which holds the files `beside` as well.
    """

    model: CLIP
    variables: dict[str, Any]
    folder: pathlib.Path


def read_clip(name: str | pathlib.Path, beside: Sequence[str] = ()) -> ReadCLIP:
    """Read both towers of CLIP.

    Args:
      name: a folder with config.json and model.safetensors (or its shards), or "hf://" and a
        repository on the Hugging Face hub.
      beside: names of further files that the folder must hold.

    Raises:
      UserError: a file or a tower is missing, damaged, or of another network.
    """
    folder = hub.locate(name, (CONFIG, *beside), weight_files.TRANSFORMERS)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: name its folder, which holds {CONFIG} as well")
    file = weight_files.find_weights(folder, weight_files.TRANSFORMERS)
    missing = [other for other in (CONFIG, *beside) if not (folder / other).is_file()]
    missing += [] if file else ["model.safetensors"]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} not found; {_ADVICE}")
    image, text = _towers(read_json(folder / CONFIG), str(folder / CONFIG))
    tensors = files.read_tensors(file)
    source = str(file)
    absent = [what for tensor, what in _PARTS.items() if tensor not in tensors]
    if absent:
        raise UserError(f"{source} holds no {', no '.join(absent)}; {_ADVICE}")
    model = _with_projection(image, text, tensors, source)
    _check_widths(model, tensors, source)
    return ReadCLIP(model, _variables(model, tensors, source), folder)


def _towers(config, source):
    check_schema(config, _Header, source=f"{source}: ")
    if config.get("model_type") != "clip":
        found = short_repr(config.get("model_type"))
        raise UserError(f"{source}: model_type is {found}, not 'clip'; {_ADVICE}")
    vision, text = (
        defaults | {k: v for k, v in (config.get(key) or {}).items() if v is not None}
        for key, defaults in (("vision_config", _VISION), ("text_config", _TEXT))
    )
    return _image_tower(vision, f"{source}: vision_config"), _text_tower(text, source)


def _image_tower(config, source):
    check_schema(config, _Vision, source=f"{source}.")
    dim, heads, patch = (
        config[key] for key in ("hidden_size", "num_attention_heads", "patch_size")
    )
    for key, whole_, part in (
        ("hidden_size", dim, heads),
        ("image_size", config["image_size"], patch),
    ):
        if whole_ % part:
            raise UserError(f"{source}.{key} is {whole_}, which is no multiple of {part}")
    act = config["hidden_act"]
    if act not in _ACTIVATIONS:
        raise UserError(f"{source}.hidden_act is {act!r}, and read are {', '.join(_ACTIVATIONS)}")
    return ViT(
        patch_size=patch,
        native_grid=config["image_size"] // patch,
        dim=dim,
        depth=config["num_hidden_layers"],
        num_heads=heads,
        # above the quotient, because the product is rounded down
        mlp_ratio=math.nextafter(config["intermediate_size"] / dim, math.inf),
        activation=act,
        layer_scale=None,
        patch_bias=False,
        pre_norm=True,
        norm_epsilon=config["layer_norm_eps"],
        family="clip",
    )


def _text_tower(config, source):
    """The text tower of a configuration that has all keys, without its projection."""
    _, fields = class_and_fields({"model_type": "clip", "text_config": config}, source=source)
    source = f"{source}: text_config."
    check_schema(config, _Ids, source=source)
    if fields["dim"] % fields["num_heads"]:
        raise UserError(
            f"{source}hidden_size is {fields['dim']}, which is no multiple of {fields['num_heads']}"
        )
    highest = fields["vocabulary"] - 1
    ids = config["bos_token_id"], config["eos_token_id"]
    old = ids[1] == _OLD_EOS
    if old:  # the first id of such files does not hold either
        ids = highest - 1, highest
    return CLIPText(**fields, pad_id=ids[1], null_ids=ids, eos_id=None if old else ids[1])


def _with_projection(image, text, tensors, source):
    """The module, whose embeddings are as wide as the projections of the file."""
    widths = {
        name: tables.shape_of(tensors, name, 2, what="CLIP", source=source)[0]
        for name in ("visual_projection.weight", "text_projection.weight")
    }
    if len(set(widths.values())) > 1:
        found = " and ".join(f"{name} to {width}" for name, width in widths.items())
        raise UserError(f"{source}: {found} dimensions, which cannot be compared; {_ADVICE}")
    width = widths["text_projection.weight"]
    return CLIP(image, text.clone(projection=width), width)


def _check_widths(model, tensors, source):
    """Raise UserError if config.json is of a model of another width."""
    image, _, text, _ = _PARTS
    for name, rank, width in ((image, 1, model.image.dim), (text, 2, model.text.dim)):
        found = tables.shape_of(tensors, name, rank, what="CLIP", source=source)[-1]
        if found != width:
            raise UserError(
                f"{source}: the {_PARTS[name]} is {found} wide, but {CONFIG} says {width}: take "
                "both files from one model"
            )


def _variables(model: CLIP, tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    image = load_vit(tensors, model.image, source)["params"]
    text = load_text_encoder(tensors, model.text, source=source)["params"]
    name = "visual_projection.weight"
    shape = (model.projection, model.image.dim)
    tables.check({name: tensors[name]}, {name: shape}, source=source)
    rule = Rule(name, "image_projection/kernel", LINEAR)
    own = tables.unflatten(tables.to_ours([rule], {name: tensors[name]}, source=source))
    return {"params": {"image": image, "text": text, **own}}
