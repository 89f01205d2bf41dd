"""DiTs in diffusers' form: the folder of a DiTTransformer2DModel, and that of a DiTPipeline.

diffusers keeps queries, keys and values apart, and a copy of the embeddings of time and label in
every block. Its files have no position table. Here a DiT is under its authors' names.

With the same weights diffusers predicts something else: the frequencies of its time features are
1e4 ** (-k / 127), those of DiT's authors, with which the published weights were trained, and ours
1e4 ** (-k / 128). See docs/weights.md.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files, hub, tables, vae_files, weight_files
from repae_jax.models.backbones.dit import PRESETS, STEPS
from repae_jax.models.backbones.transformer import preset_of
from repae_jax.models.layers import sincos_position_table
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import read_json

CLASS = "DiTTransformer2DModel"
CLASSES = (CLASS, "Transformer2DModel")  # the second one is what facebook/DiT-XL-2-256 names
PIPELINE = hub.PIPELINE
TRANSFORMER, VAE = "transformer", "vae"  # folders in it

FREQUENCIES = (
    "diffusers takes other frequencies of time than DiT's authors, until each block's "
    "norm1.emb.time_proj.downscale_freq_shift is set to 0"
)

# diffusers' layer -> the authors'
_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_IN_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_EMBEDDINGS = {
    "timestep_embedder.linear_1.weight": "t_embedder.mlp.0.weight",
    "timestep_embedder.linear_1.bias": "t_embedder.mlp.0.bias",
    "timestep_embedder.linear_2.weight": "t_embedder.mlp.2.weight",
    "timestep_embedder.linear_2.bias": "t_embedder.mlp.2.bias",
    "class_embedder.embedding_table.weight": "y_embedder.embedding_table.weight",
}
_QKV = ("to_q", "to_k", "to_v")
_TIME_FEATURES = 256
_LARGEST_TABLE = 2**26  # values of the position table, as models/backbones/transformer.py has it

# DiTTransformer2DModel's values of absent keys
_DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
# key -> the values that DiT's architecture has. diffusers' converter left norm_eps at its default,
# 1e-5, where DiT was trained with 1e-6.
_FIXED = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-5, 1e-6),
}


@dataclasses.dataclass(frozen=True)
class StoredDiT:
    """A DiT's weights, and the one size that they do not determine.

    Attributes:
      tensors: its authors' names -> arrays.
      num_heads: the heads of its attention.
      source: the name of its file in errors.
    """

    tensors: Mapping[str, np.ndarray]
    num_heads: int
    source: str

    @property
    def dimensions(self) -> dict[str, int]:
        """The sizes, under the names of `DiT`'s fields; `num_classes` counts all rows of labels."""
        hidden, channels, patch, _ = self.tensors["x_embedder.proj.weight"].shape
        return {
            "latent_size": round(self.tensors["pos_embed"].shape[1] ** 0.5) * patch,
            "latent_channels": channels,
            "output_channels": len(self.tensors["final_layer.linear.weight"]) // patch**2,
            "patch_size": patch,
            "hidden_size": hidden,
            "depth": len({name.split(".")[1] for name in self.tensors if name[:6] == "blocks"}),
            "num_heads": self.num_heads,
            "num_classes": len(self.tensors["y_embedder.embedding_table.weight"]),
        }

    def describe(self) -> str:
        """The sizes in words."""
        d = self.dimensions
        side = d["latent_size"]
        return (
            f"{preset_of(d, PRESETS) or 'own size'}: width {d['hidden_size']}, depth {d['depth']}, "
            f"{d['num_heads']} heads, patch {d['patch_size']}, latents {side} x {side} x "
            f"{d['latent_channels']}, {d['num_classes']} rows of labels"
        )


def is_dit_folder(folder: pathlib.Path) -> bool:
    """Whether the config.json of a folder names diffusers' class of a DiT.

    Raises:
      UserError: the file is missing or damaged, or a key has an invalid value.
    """
    return vae_files.read_config(folder).get("_class_name") in CLASSES


def transformer_in(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the DiT in a DiTPipeline's folder.

    Raises:
      UserError: the folder is of another pipeline, damaged, or lacks its transformer.
    """
    check_pipeline(folder / PIPELINE)
    if not (folder / TRANSFORMER / vae_files.CONFIG).is_file():
        raise UserError(f"{folder}: {TRANSFORMER}/{vae_files.CONFIG} is missing: get all of it")
    return folder / TRANSFORMER


def check_pipeline(file: pathlib.Path) -> None:
    """Raise UserError unless a `PIPELINE` names the class of a pipeline that is read."""
    name = read_json(file, dict[str, Any]).get("_class_name")
    if name != "DiTPipeline":
        raise UserError(
            f"{file}: _class_name is {name!r}, and of pipelines only a DiTPipeline is read: name "
            f"one of its folders, such as {file.parent / VAE}"
        )


def vae_beside(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the VAE in the pipeline that a DiT's folder is part of; None without one."""
    folder = path if path.is_dir() else path.parent
    pipeline = folder.absolute().parent
    there = (pipeline / PIPELINE).is_file() and (pipeline / VAE / vae_files.CONFIG).is_file()
    return folder.parent / VAE if there else None


def read_dit(path: pathlib.Path) -> StoredDiT:
    """Read diffusers' folder of a DiT, or the file of weights in such a folder.

    Raises:
      UserError: a file is missing or damaged, the configuration is of another model, a tensor is
        missing, unexpected or misshapen, or blocks have different embeddings.
    """
    folder = path if path.is_dir() else path.parent
    config = _dit_config(vae_files.read_config(folder), str(folder / vae_files.CONFIG))
    file = weight_files.find_weights(path, weight_files.DIFFUSERS) if path == folder else path
    if file is None:
        raise UserError(f"{folder}: {vae_files.WEIGHTS} is missing beside {vae_files.CONFIG}")
    shapes = _shapes(config)
    tensors = files.read_stored(file)
    tables.check(tensors, _diffusers_shapes(shapes), source=str(file))
    own = _from_diffusers(tensors, config["num_layers"], str(file))
    width, grid = shapes["x_embedder.proj.bias"][0], config["sample_size"] // config["patch_size"]
    own["pos_embed"] = sincos_position_table(width, grid)[None].astype(np.float32)
    return StoredDiT(own, config["num_attention_heads"], str(path))


def write_dit(folder: pathlib.Path, dit: StoredDiT) -> None:
    """Write a DiT as a folder that diffusers' DiTTransformer2DModel opens.

    Raises:
      UserError: the DiT has parts that diffusers' lacks, or the folder cannot be written.
    """
    d = dit.dimensions
    if "blocks.0.attn.q_norm.weight" in dit.tensors:
        raise UserError(
            f"{dit.source}: its attention has a qk-norm, which diffusers' {CLASS} lacks: keep it "
            "as a work directory"
        )
    config = _DEFAULTS | {
        "_class_name": CLASS,
        "num_attention_heads": d["num_heads"],
        "attention_head_dim": d["hidden_size"] // d["num_heads"],
        "in_channels": d["latent_channels"],
        "out_channels": d["output_channels"],
        "num_layers": d["depth"],
        "sample_size": d["latent_size"],
        "patch_size": d["patch_size"],
        "num_embeds_ada_norm": d["num_classes"] - 1,
        "norm_eps": 1e-6,
    }
    tensors = dict(dit.tensors)
    table = tensors.pop("pos_embed")
    own = sincos_position_table(d["hidden_size"], d["latent_size"] // d["patch_size"])[None]
    if table.shape != own.shape or not np.allclose(table, own, atol=1e-5):
        raise UserError(
            f"{dit.source}: its 'pos_embed' is not the table of sines and cosines, which diffusers "
            "computes itself: keep it as a work directory"
        )
    tables.check(tensors, _shapes(config), source=dit.source)
    tables.require_finite(tensors, folder)
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write_json(temporary / vae_files.CONFIG, config)
        theirs = _to_diffusers(tensors, d["depth"])
        files.write_safetensors(temporary / vae_files.WEIGHTS, theirs, {"format": "pt"})


def write_pipeline(folder: pathlib.Path, dit: StoredDiT, vae: vae_files.StoredVAE) -> None:
    """Write a DiT and its VAE as a folder that diffusers' DiTPipeline opens.

    Raises:
      UserError: the latents are not normalized by one factor, which is all that DiTPipeline knows,
        the VAE is no AutoencoderKL, or the folder cannot be written.
    """
    name = type(vae.module).__name__
    if name != "AutoencoderKL":
        raise UserError(
            f"{dit.source}: its VAE is of {name}, and DiTPipeline takes an AutoencoderKL: write "
            "the DiT alone (--to transformer)"
        )
    unscaled = {"mean": [0], "var": [1]}
    mean, var = (np.asarray((vae.statistics or unscaled)[key]) for key in ("mean", "var"))
    if mean.any() or (var != var[0]).any():
        raise UserError(
            f"{dit.source}: its latents are normalized by channel, and DiTPipeline knows one "
            "factor for all: write the DiT alone (--to transformer)"
        )
    vae = dataclasses.replace(vae, config={**vae.config, "scaling_factor": float(var[0] ** -0.5)})
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": STEPS,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "trained_betas": None,
    }
    parts = {"scheduler": scheduler["_class_name"], TRANSFORMER: CLASS, VAE: name}
    index = {part: ["diffusers", what] for part, what in parts.items()}
    with replacing(folder) as temporary:
        (temporary / "scheduler").mkdir(parents=True)
        _write_json(temporary / PIPELINE, {"_class_name": "DiTPipeline", **index})
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        write_dit(temporary / TRANSFORMER, dit)
        vae_files.write_diffusers(temporary / VAE, vae)


def _dit_config(config, source):
    """config.json with the values of absent keys, checked to be that of a DiT."""
    name = config["_class_name"]
    absent = [key for key in _DEFAULTS if key not in config]
    if name != CLASS and absent:  # whose own defaults are those of other models
        raise UserError(
            f"{source}: a {name!r} without the key {absent[0]!r} is no DiT: take one with "
            f'"_class_name": "{CLASS}", or one that DiTPipeline published'
        )
    full = {**_DEFAULTS, "norm_eps": 1e-5, **config}
    for key, values in _FIXED.items():
        if full[key] not in values:
            known = " or ".join(map(repr, values))
            raise UserError(f"{source}: {key} is {full[key]!r}, and a DiT's is {known}")
    channels, patch, side = (full[key] for key in ("in_channels", "patch_size", "sample_size"))
    full["out_channels"] = full["out_channels"] or channels
    if full["out_channels"] not in (channels, 2 * channels):
        raise UserError(
            f"{source}: out_channels is {full['out_channels']}, and a DiT's are {channels}, or "
            f"{2 * channels} with a variance"
        )
    width = full["num_attention_heads"] * full["attention_head_dim"]
    if side % patch or width % 4 or (side // patch) ** 2 * width > _LARGEST_TABLE:
        raise UserError(
            f"{source}: sample_size {side}, patch_size {patch} and a width of {width} (heads times "
            "attention_head_dim) do not fit together"
        )
    return full


def _shapes(config):
    """{the authors' name: shape} for a config.json, without the position table."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels, patch = config["in_channels"], config["patch_size"]
    layers = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, _TIME_FEATURES),
        "t_embedder.mlp.2": (width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "final_layer.linear": (patch**2 * config["out_channels"], width),
    }
    block = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
        "adaLN_modulation.1": (6 * width, width),
    }
    for number in range(config["num_layers"]):
        layers |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return shapes | {
        "y_embedder.embedding_table.weight": (config["num_embeds_ada_norm"] + 1, width)
    }


def _diffusers_shapes(shapes):
    """{diffusers' name: shape} from the authors', computed without arrays of that size."""
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    depth = sum(name.endswith(".attn.qkv.bias") for name in shapes)
    return {name: array.shape for name, array in _to_diffusers(blank, depth).items()}


def _to_diffusers(tensors, depth):
    """Rename the authors' tensors to diffusers', in the order of its modules."""
    renamed = {}
    for kind in ("weight", "bias"):
        for theirs, own in _OUTSIDE.items():
            renamed[f"{theirs}.{kind}"] = tensors[f"{own}.{kind}"]
    for number in range(depth):
        block, own_block = f"transformer_blocks.{number}", f"blocks.{number}"
        for theirs, own in _EMBEDDINGS.items():
            renamed[f"{block}.norm1.emb.{theirs}"] = tensors[own]
        for kind in ("weight", "bias"):
            parts = np.split(tensors[f"{own_block}.attn.qkv.{kind}"], 3)
            for name, part in zip(_QKV, parts, strict=True):
                renamed[f"{block}.attn1.{name}.{kind}"] = part
            for theirs, own in _IN_BLOCK.items():
                renamed[f"{block}.{theirs}.{kind}"] = tensors[f"{own_block}.{own}.{kind}"]
    return renamed


def _from_diffusers(tensors, depth, source):
    """The inverse of `_to_diffusers`; raises UserError if blocks have different embeddings."""
    renamed = {}
    for kind in ("weight", "bias"):
        for theirs, own in _OUTSIDE.items():
            renamed[f"{own}.{kind}"] = tensors[f"{theirs}.{kind}"]
    for theirs, own in _EMBEDDINGS.items():
        first, *others = (f"transformer_blocks.{i}.norm1.emb.{theirs}" for i in range(depth))
        renamed[own] = tensors[first]
        for name in others:
            if not np.array_equal(tensors[name], tensors[first]):
                raise UserError(
                    f"{source}: tensor {name!r} differs from {first!r}, and a DiT has one "
                    "embedding for all blocks: diffusers has trained its copies apart; take "
                    "weights that it has not trained"
                )
    for number in range(depth):
        block, own_block = f"transformer_blocks.{number}", f"blocks.{number}"
        for kind in ("weight", "bias"):
            parts = [tensors[f"{block}.attn1.{name}.{kind}"] for name in _QKV]
            renamed[f"{own_block}.attn.qkv.{kind}"] = np.concatenate(parts)
            for theirs, own in _IN_BLOCK.items():
                renamed[f"{own_block}.{own}.{kind}"] = tensors[f"{block}.{theirs}.{kind}"]
    return renamed


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
