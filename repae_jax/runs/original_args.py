"""Conversion between the original's command-line arguments and configurations.

The original keeps the arguments in its checkpoints and in args.json.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config.defaults import NETWORKS, backbone, teacher
from repae_jax.config.published import imagenet256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.original import Kind
from repae_jax.interop.sit import infer_dimensions
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.backbones.sit import SIT_CONFIGS
from repae_jax.models.backbones.transformer import SIZES, preset_of
from repae_jax.models.encoders.vit_presets import VIT_CONFIGS
from repae_jax.models.tokenizers.autoencoder_kl import VAE_CONFIGS
from repae_jax.utils.schema import Text, check_schema, real

# the original's argument -> our keys with the same value
SAME = {
    "seed": ("seed",),
    "batch_size": ("batch_size",),
    "num_classes": ("data.num_classes",),
    "resolution": ("data.resolution",),
    "encoder_depth": ("backbone.encoder_depth",),
    "qk_norm": ("backbone.qk_norm",),
    "cfg_prob": ("condition.drop",),
    "bn_momentum": ("latent_norm.momentum",),
    "path_type": ("objective.interpolant",),
    "proj_coeff": ("objective.backbone_alignment",),
    "vae_align_proj_coeff": ("objective.tokenizer_alignment",),
    "weighting": ("time.weighting",),
    "learning_rate": ("optimizer.backbone.learning_rate",),
    "vae_learning_rate": ("optimizer.tokenizer.learning_rate",),
    "disc_learning_rate": ("optimizer.discriminator.learning_rate",),
    "max_train_steps": ("run.steps",),
    "checkpointing_steps": ("run.checkpoint_every",),
    "sampling_steps": ("run.sample_every",),
}
# the original's argument -> our key, in the sections of all optimizers
_OPTIMIZER = {
    "adam_beta1": "b1",
    "adam_beta2": "b2",
    "adam_epsilon": "eps",
    "adam_weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
}
SAME |= {
    theirs: tuple(f"optimizer.{network}.{ours}" for network in NETWORKS)
    for theirs, ours in _OPTIMIZER.items()
}
# the original's name of a teacher's family -> our preset; "-vit-" and the size follow the former
_TEACHERS = {
    "dinov2": "dinov2-{}",
    "dinov2reg": "dinov2-{}-reg",
    "dinov1": "dino-{}",
    "mocov3": "mocov3-{}",
    "mae": "mae-{}",
    "jepa": "ijepa-{}",
    "clip": "clip-{}",
}
CLASS_TOKEN_WEIGHT = 0.03  # REG's published one
OURS = "repae_jax"  # the argument that holds the complete configuration of our own runs


def backbone_of(found: Mapping[str, Any], family: str, options: Iterable[str]) -> ConfigDict:
    """Make `config.backbone` of the dimensions of another code's weights.

    Args:
      found: the family's fields.
      family: the backbone's family.
      options: the keys to set besides a preset's sizes.
    """
    changes = {name: found[name] for name in options}
    arch = preset_of(found, BACKBONES[family].presets) or ""
    if not arch:
        changes |= {name: found[name] for name in SIZES}
        changes["encoder_depth"] = min(8, found["depth"])
    return backbone(arch, family="" if arch else family, **changes)


class Arguments(TypedDict, total=False):
    """The arguments that are read. The configuration keys they set define their ranges."""

    seed: int | None
    batch_size: int | None
    num_classes: int | None
    resolution: int | None
    encoder_depth: int | None
    qk_norm: bool | None
    cfg_prob: real() | None
    bn_momentum: real() | None
    path_type: Text | None
    proj_coeff: real() | None
    vae_align_proj_coeff: real() | None
    weighting: Text | None
    learning_rate: real() | None
    vae_learning_rate: real() | None
    disc_learning_rate: real() | None
    max_train_steps: int | None
    checkpointing_steps: int | None
    sampling_steps: int | None
    adam_beta1: real() | None
    adam_beta2: real() | None
    adam_epsilon: real() | None
    adam_weight_decay: real() | None
    max_grad_norm: real(0, finite=False) | None  # infinity: no clipping
    mixed_precision: Literal["no", "fp16", "bf16"] | None  # accelerate's argument
    vae_ckpt: Text | None
    model: Text | None
    vae: Text | None
    enc_type: Text | None
    cls: real() | None  # of REG alone: the weight of the class token's loss
    exp_name: Text | None
    repae_jax: str


def config_from_args(args: Mapping[str, Any], kind: Kind, *, source: str) -> ConfigDict:
    """Make the configuration that continues the original's run.

    The arguments lack the locations of the data and of the teachers' files: these keys are set as
    in configs/. The original keeps the coefficients of the VAE's loss in a separate file
    (`loss_cfg_path`); here they take the published values.

    Args:
      args: the arguments by name.
      kind: the kind of the checkpoint.
      source: the checkpoint, for errors.

    Raises:
      UserError: a model or teacher has no published name, or an argument has a wrong type.
    """
    check_schema(args, Arguments, source=f"{source}: its argument ")
    if OURS in args:
        return from_json(args[OURS], source=source)
    config = imagenet256()
    config.dtype = "float32" if args.get("mixed_precision") == "no" else "bfloat16"
    for theirs, ours in SAME.items():
        if args.get(theirs) is not None:
            assign(config, ours, args[theirs])
    if kind == "repa":  # REPA's train.py never passes --cfg-prob to the SiT
        config.condition.drop = 0.1
    if kind != "repae":
        config.tokenizer.weights = args.get("vae_ckpt") or ""
    config.backbone.arch = _known(args.get("model"), SIT_CONFIGS, "model", source)
    vae = "f8d4" if kind == "repa" else args.get("vae")
    config.tokenizer.arch = _known(vae, VAE_CONFIGS, "vae", source)
    config.teachers = teachers_of(args.get("enc_type", "None"), source)
    if args.get("cls") is not None:
        _denoise_class_token(config, args["cls"], source)
    config = apply_recipe(config, "repae" if kind == "repae" else "repa")
    config.name = str(args.get("exp_name", ""))
    return config


def _denoise_class_token(config, weight, source):
    """Set the keys of REG: the width is that of the first teacher's class token."""
    if not config.teachers:
        raise UserError(
            f"{source}: its argument 'cls' is of REG, but 'enc_type' names no teacher, whose class "
            "token REG denoises: give the configuration with --config"
        )
    first = next(iter(config.teachers.values()))
    config.backbone.class_token_dim = VIT_CONFIGS[first.arch]["dim"]
    config.objective.class_token_weight = weight


def args_from_weights(tensors: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Infer the original's arguments from a bare state dict of a published SiT.

    Arguments that the weights do not determine are left out, which stands for their defaults.

    Raises:
      UserError: the tensors have no published size.
    """
    found = infer_dimensions(tensors, source=source)
    vaes = {4: ("f8d4", 8), 32: ("f16d32", 16)}
    vae, factor = vaes.get(found["latent_channels"], (None, 1))
    return {
        "model": preset_of(found, SIT_CONFIGS),
        "vae": vae,
        "resolution": found["latent_size"] * factor,
        "num_classes": found["num_classes"] - 1,
        "qk_norm": found["qk_norm"],
        "enc_type": teachers_from_widths(found["teacher_dims"]),
        **({"cls": CLASS_TOKEN_WEIGHT} if found["class_token_dim"] else {}),
    }


def teachers_from_widths(widths: Iterable[int]) -> str:
    """The original's --enc-type of heads for teachers of these widths, taken for DINOv2's."""
    sizes = {384: "s", 768: "b", 1024: "l", 1536: "g"}
    names = (f"dinov2-vit-{sizes[w]}" if w in sizes else f"of width {w}" for w in widths)
    return ",".join(names) or "None"


def args_from_config(config: ConfigDict) -> dict[str, Any]:
    """The original's arguments for training this configuration, as far as the original supports it.

    The argument "repae_jax" holds the complete configuration as JSON.
    """
    args = {theirs: look_up(config, ours[0]) for theirs, ours in SAME.items()}
    names = [original_teacher(entry.arch) or name for name, entry in config.teachers.items()]
    if config.backbone.class_token_dim:
        args["cls"] = config.objective.class_token_weight
    return args | {
        "exp_name": config.name,
        "model": config.backbone.arch,
        "vae": config.tokenizer.arch,
        "vae_ckpt": config.tokenizer.weights,
        "enc_type": ",".join(names) or "None",
        "mixed_precision": "no" if config.dtype == "float32" else "bf16",
        "prediction": "v",
        OURS: to_json(config),
    }


def teachers_of(enc_type: Any, source: str) -> ConfigDict:
    """Make `config.teachers` from the original's --enc-type.

    Configurations sort their keys, but the heads follow the order of the arguments: with several
    teachers, each name starts with its number.
    """
    teachers = ConfigDict()
    names = [name for name in str(enc_type).split(",") if name != "None"]
    for number, name in enumerate(names):
        family, _, size = name.split("-") if name.count("-") == 2 else (None, None, None)
        arch = _TEACHERS.get(family, "").format((size or "").lower())
        if arch not in VIT_CONFIGS:
            raise UserError(f"{source}: unknown teacher {name!r}; known are {_choices()}")
        prefix = f"t{number}_" if len(names) > 1 else ""
        teachers[prefix + arch.replace("-", "_")] = teacher(arch, weights=f"pretrained/{arch}.pth")
    return teachers


def _choices():
    return ", ".join(original_teacher(arch) for arch in VIT_CONFIGS)


def original_teacher(arch: str) -> str:
    """dinov2-b-reg -> dinov2reg-vit-b; a name unknown to the original stays as it is."""
    for theirs, ours in _TEACHERS.items():
        head, tail = ours.split("{}")
        size = arch.removeprefix(head).removesuffix(tail)
        if arch == ours.format(size) and "-" not in size:
            return f"{theirs}-vit-{size.upper() if theirs == 'clip' else size}"
    return arch


def _known(name, presets, argument, source):
    if name not in presets:
        raise UserError(
            f"{source}: its argument {argument!r} is {name!r}, which is no published "
            "architecture: give the configuration with --config"
        )
    return name


def assign(config: ConfigDict, keys: Iterable[str], value: Any) -> None:
    """Set keys such as "data.resolution" to a value, in place."""
    for key in keys:
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = type(node[last])(value) if isinstance(node[last], float) else value


def look_up(config: ConfigDict, key: str) -> Any:
    """The value of a key such as "data.resolution"."""
    for part in key.split("."):
        config = config[part]
    return config
