"""The folder of a pipeline: a whole generator for diffusers, with the PyTorch code that it needs.

    README.md             the model card
    model_index.json      the components' classes, the classes' names, the tokens of a prompt
    repae_pipeline.py     the pipeline
    run.json              the run's configuration and step
    transformer/          config.json, safetensors, code
    scheduler/            the sampler's settings, code
    vae/                  as diffusers writes it; none for a model of pixels
    text_encoder/, tokenizer/   as transformers writes them; only of a model of prompts

Code is written, and never read: a folder's own code runs in diffusers alone.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.errors import UserError
from repae_jax.interop import files, hub, pipeline_rae, vae_files, weight_files
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.pipeline_code import PREFIX, write_code
from repae_jax.interop.pipeline_names import WIDE, transformer_of
from repae_jax.interop.text_encoder import base_text_encoder
from repae_jax.interop.text_encoder_folder import (
    TOKENIZER,
    TOKENIZER_CLASS,
    describe,
    write_text_encoder,
    write_tokenizer,
)
from repae_jax.interop.vae_families import family_of
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.backbones.base import Backbone
from repae_jax.models.text_encoders.base import TextEncoder
from repae_jax.models.tokenizers.rae import RAE
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import Text, check_schema, read_json, short_repr, whole

INDEX, RUN_FILE, CARD = hub.PIPELINE, "run.json", "README.md"
CLASS_NAME = "RepaePipeline"
TRANSFORMER, VAE, TEXT_ENCODER, TOKENIZER_FOLDER = "transformer", "vae", "text_encoder", "tokenizer"
DTYPES = ("float32", "float16", "bfloat16")
_SCHEDULER = "RepaeScheduler"
_POSITIONS = (("periods",), ("decoder", "position_table"))  # constants of a RAE
_NONE = [None, None]  # a part that a pipeline lacks


class _Run(TypedDict):
    step: whole(0, 2**31 - 1)
    config: dict[str, Any]


class _Config(TypedDict):
    _class_name: Text
    statistics_by_position: bool


@dataclasses.dataclass(frozen=True)
class Captions:
    """What a model of prompts needs.

    Attributes:
      encoder: the text encoder.
      variables: its variables.
      tokenizer: the content of its tokenizer.json.
    """

    encoder: TextEncoder
    variables: Mapping[str, Any]
    tokenizer: bytes


@dataclasses.dataclass(frozen=True)
class Generator:
    """A whole generator.

    Attributes:
      backbone: the network.
      variables: its variables without projection heads.
      statistics: the latents' {"mean", "var"}, by which samples are denormalized.
      vae: the VAE; None for a model of pixels.
      captions: of a model of prompts; None for one of classes.
      sampler: the settings of the run's sampler, under the names of `Sampler`.
      class_names: the names of the classes; None without names.
      run: the content of `RUN_FILE`.
      card: the text of the model card.
    """

    backbone: Backbone
    variables: Mapping[str, Any]
    statistics: Statistics
    vae: StoredVAE | None
    captions: Captions | None
    sampler: Mapping[str, Any]
    class_names: tuple[str, ...] | None
    run: Mapping[str, Any]
    card: str


def is_pipeline(folder: pathlib.Path) -> bool:
    """Whether a folder is one of these pipelines."""
    if not (folder / INDEX).is_file():
        return False
    name = read_json(folder / INDEX, dict[str, Any]).get("_class_name")
    return isinstance(name, list) and name[-1:] == [CLASS_NAME]


def write_pipeline(folder: pathlib.Path, made: Generator, dtype: str = "float32") -> None:
    """Write a generator as a folder that diffusers opens with `trust_remote_code=True`.

    Args:
      folder: a new folder.
      made: the generator.
      dtype: one of `DTYPES`, the type of the stored weights; statistics, tables of positions and
        the frequencies of the time stay float32.

    Raises:
      UserError: diffusers has no class for a part, a weight is not finite in `dtype`, or the folder
        cannot be written.
    """
    kind = transformer_of(made.backbone)
    by_position = np.ndim(made.statistics["var"]) > 1
    config = kind.config(made.backbone, by_position=by_position)
    tensors = kind.export(made.backbone, made.variables, made.statistics)
    index = {
        "_class_name": [f"{PREFIX}pipeline", CLASS_NAME],
        TRANSFORMER: [PREFIX + kind.code, kind.class_name],
        "scheduler": [f"{PREFIX}scheduler", _SCHEDULER],
        **dict.fromkeys((VAE, TEXT_ENCODER, TOKENIZER_FOLDER), _NONE),
        "id2label": _id2label(made.class_names),
    }
    vae = None
    if made.vae is not None:
        vae, index[VAE] = _in_torch(made.vae)
    described = None
    if made.captions is not None:
        encoder = made.captions.encoder
        described = describe(encoder, f"{PREFIX}text_encoder")
        index[TEXT_ENCODER] = [described.module, described.class_name]
        index[TOKENIZER_FOLDER] = ["transformers", TOKENIZER_CLASS]
        index |= {
            "text_length": encoder.length,
            "pad_token_id": encoder.pad_id,
            "mask_padding": encoder.crops,
        }
    with replacing(folder) as temporary:
        temporary.mkdir()
        part = temporary / TRANSFORMER
        part.mkdir()
        _write_json(part / vae_files.CONFIG, config)
        write_code(part, kind.code)
        stored = _cast(tensors, dtype, f"{folder / TRANSFORMER}")
        files.write_safetensors(part / vae_files.WEIGHTS, stored, {"format": "pt"})
        (temporary / "scheduler").mkdir()
        sampler = {"_class_name": _SCHEDULER, **made.sampler}
        _write_json(temporary / "scheduler" / "scheduler_config.json", sampler)
        write_code(temporary / "scheduler", "scheduler")
        if vae is not None:
            vae_files.write_diffusers(temporary / VAE, _cast_vae(vae, dtype, folder / VAE))
        if described is not None:
            captions, target = made.captions, temporary / TEXT_ENCODER
            found = base_text_encoder(captions.variables, captions.encoder)
            found = _cast(found, dtype, f"{folder / TEXT_ENCODER}")
            write_text_encoder(target, found, described.config)
            if described.module != "transformers":
                write_code(target, "text_encoder")
            length = captions.encoder.length
            write_tokenizer(temporary / TOKENIZER_FOLDER, captions.tokenizer, length)
        write_code(temporary, "pipeline")
        _write_json(temporary / RUN_FILE, made.run)
        (temporary / CARD).write_text(made.card)
        _write_json(temporary / INDEX, index)


def read_run(folder: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The step and the stored configuration of the run that a folder was made of.

    Raises:
      UserError: a part of the folder is missing, or the file is damaged.
    """
    index = read_json(folder / INDEX, dict[str, Any])
    for part in (TRANSFORMER, VAE, TEXT_ENCODER, TOKENIZER_FOLDER):
        if index.get(part) not in (None, _NONE) and not (folder / part).is_dir():
            raise UserError(f"{folder}: the folder {part} is missing: get all of it")
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder}: {RUN_FILE}, the run's configuration, is missing: get all of it")
    content = read_json(folder / RUN_FILE, _Run)
    return content["step"], content["config"]


def read_transformer(
    folder: pathlib.Path, backbone: Backbone
) -> tuple[dict[str, np.ndarray], dict[str, Any], Statistics]:
    """The transformer of a folder.

    Args:
      folder: the pipeline's folder.
      backbone: the network of its configuration.

    Returns:
      Its tensors as they are stored; the backbone's variables; the latents' statistics. The two
      latter are float32.

    Raises:
      UserError: a file is missing or damaged, it is of another network, or a tensor is missing,
        unexpected, misshapen or not finite.
    """
    kind, part = transformer_of(backbone), folder / TRANSFORMER
    file = part / vae_files.CONFIG
    if not file.is_file():
        raise UserError(f"{part}: {vae_files.CONFIG} is missing: get all of {folder}")
    config = read_json(file, dict[str, Any])
    check_schema({k: config.get(k) for k in _Config.__annotations__}, _Config, source=f"{file}: ")
    by_position = config["statistics_by_position"]
    expected = kind.config(backbone, by_position=by_position)
    for key in sorted(expected.keys() | config.keys()):
        if key.startswith("_") and key != "_class_name":  # of diffusers
            continue
        if config.get(key) != expected.get(key):
            raise UserError(
                f"{file}: {key} is {short_repr(config.get(key))}, but the configuration in "
                f"{RUN_FILE} has {expected.get(key)!r}: the folder's parts are of different models"
            )
    weights = weight_files.find_weights(part, weight_files.DIFFUSERS)
    if weights is None:
        raise UserError(f"{part}: {vae_files.WEIGHTS} is missing: get all of {folder}")
    tensors = files.read_stored(weights)
    return tensors, *kind.load(backbone, tensors, by_position, source=str(weights))


def _id2label(names):
    return None if names is None else {str(number): name for number, name in enumerate(names)}


def _in_torch(vae):
    """A VAE for a class that computes its images, and the [module, name] of that class."""
    if isinstance(vae.module, RAE) and pipeline_rae.is_needed(vae.module, vae.statistics):
        vae = dataclasses.replace(vae, config={"_class_name": pipeline_rae.CLASS_NAME})
    family = family_of(vae.module, vae.config.get("_class_name"))
    name = family.config_from_dimensions(vae.module)["_class_name"]
    return vae, [PREFIX + family.code if family.code else "diffusers", name]


def _cast(tensors, dtype, source):
    """The tensors in another type, but those that stay float32."""
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)

    stored = {}
    for name, array in tensors.items():
        keep = name.endswith(WIDE) or np.asarray(array).dtype.kind not in "fV"
        stored[name] = np.asarray(array) if keep else _to(array, dtype)
        if not np.isfinite(np.asarray(stored[name], np.float32)).all():
            raise UserError(
                f"{source}: tensor {name!r} has values that are not finite in {dtype}: give "
                "--dtype float32 or bfloat16, or take an earlier checkpoint (--step N)"
            )
    return stored


def _cast_vae(vae, dtype, source):
    """A VAE in another type, but its positions, which stay float32."""

    def cast(path, array):
        array, names = np.asarray(array), tuple(entry.key for entry in path)
        wide = any(names[-len(end) :] == end for end in _POSITIONS)
        if array.dtype.kind not in "fV" or wide:
            return array
        found = _to(array, dtype)
        if not np.isfinite(np.asarray(found, np.float32)).all():
            raise UserError(
                f"{source}: a weight is not finite in {dtype}: give --dtype float32 or bfloat16"
            )
        return found

    cast_all = functools.partial(jax.tree_util.tree_map_with_path, cast)
    return dataclasses.replace(vae, params=cast_all(vae.params), constants=cast_all(vae.constants))


def _to(array, dtype):
    with np.errstate(over="ignore"):  # values that are too large are refused by name
        return np.asarray(array).astype(np.dtype(dtype))


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n")


def tokenizer_file(folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer.json of a folder of a model of prompts."""
    return folder / TOKENIZER_FOLDER / TOKENIZER
