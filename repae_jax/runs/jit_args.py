"""Conversion between the command-line arguments of JiT's training and configurations."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config.defaults import backbone
from repae_jax.config.published import jit256
from repae_jax.config.recipes import apply_recipe
from repae_jax.config.storage import from_json, to_json
from repae_jax.errors import UserError
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.jit import PREFIX, infer_dimensions, published
from repae_jax.runs.original_args import OURS, assign, look_up
from repae_jax.utils.schema import check_schema, real, whole

IMAGES = 1_281_167  # of ImageNet's training set, whose epochs their arguments count
# their argument -> our key with the same value
_SAME = {
    "seed": "seed",
    "ema_decay1": "ema_decay",
    "label_drop_prob": "condition.drop",
    "P_std": "time.scale",
    "t_eps": "objective.least_time",
    "noise_scale": "objective.noise_scale",
    "weight_decay": "optimizer.backbone.weight_decay",
    "sampling_method": "sampling.method",
    "num_sampling_steps": "sampling.steps",
    "cfg": "sampling.guidance_scale",
}


class _Arguments(TypedDict, total=False):
    seed: whole(0, 2**32 - 1)
    ema_decay1: real(0, 1)
    label_drop_prob: real(0, 1)
    P_mean: real()
    P_std: real(0)
    t_eps: real(0, 1)
    noise_scale: real(0)
    lr: real(0) | None
    blr: real(0)
    min_lr: real(0)
    weight_decay: real(0)
    lr_schedule: str
    batch_size: whole(1, 2**20)
    world_size: whole(-1, 2**20)
    epochs: whole(1, 2**20)
    warmup_epochs: whole(0, 2**20)
    sampling_method: str
    num_sampling_steps: whole(1, 100_000)
    cfg: real(0)
    interval_min: real(0, 1)
    interval_max: real(0, 1)
    repae_jax: str


def config_of_jit(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a JiT's training.

    Its network follows from the weights, its training from the arguments, where they are there.

    Args:
      content: the parts of the checkpoint.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: the weights are of no published JiT, or an argument has a wrong type.
    """
    args = arguments_of(content, source)
    check_schema(args, _Arguments, source=f"{source}: its argument ")
    if OURS in args:
        return from_json(args[OURS], source=source)
    found = infer_dimensions(content["ema"], source=source)
    if (arch := published(found)) is None or found["latent_channels"] != 3:
        sizes = ("hidden_size", "depth", "num_heads", "patch_size", "latent_channels")
        raise UserError(
            f"{source}: a JiT of { {key: found[key] for key in sizes} } is none of the published, "
            "and its weights do not determine where the context tokens join: give a configuration "
            "with --config"
        )
    config = jit256()
    config.name = "jit"
    config.backbone = backbone(arch)
    config.data.resolution = found["latent_size"]
    config.data.num_classes = found["num_classes"] - 1
    for theirs, ours in _SAME.items():
        if theirs in args:
            assign(config, (ours,), args[theirs])
    if "noise_scale" not in args:  # published are 1 at 256 pixels and 2 at 512
        config.objective.noise_scale = max(1.0, found["latent_size"] / 256)
    if args.get("weight_decay"):
        raise UserError(
            f"{source}: its argument 'weight_decay' is {args['weight_decay']}, which its authors' "
            "code applies to matrices alone: give a configuration with --config, whose optimizer "
            "decays all parameters or none"
        )
    config.backbone.least_time = config.objective.least_time
    if "P_mean" in args:
        config.time.mean = -float(args["P_mean"])
    if "interval_max" in args:
        config.sampling.guidance_low = 1.0 - args["interval_max"]
    if "interval_min" in args:
        config.sampling.guidance_high = 1.0 - args["interval_min"]
    _set_length(config, args, content)
    return apply_recipe(config, "vanilla")


def _set_length(config, args, content):
    """The batch, the learning rate and its schedule, whose steps are counted in epochs."""
    adamw = config.optimizer.backbone
    if "batch_size" in args:
        config.batch_size = args["batch_size"] * max(1, args.get("world_size", 1))
    rate = args.get("blr", 5e-5) * config.batch_size / 256
    adamw.learning_rate = float(args.get("lr") or rate)
    steps, epochs = content.get("steps", 0), content.get("epoch", 0)
    each = steps / epochs if steps and epochs else max(1, IMAGES // config.batch_size)
    if "epochs" in args:
        config.run.steps = round(args["epochs"] * each)
    if "warmup_epochs" in args:
        adamw.warmup_steps = round(args["warmup_epochs"] * each)
    if args.get("lr_schedule") == "cosine":
        adamw.update(decay_steps=config.run.steps, final_rate=float(args.get("min_lr", 0.0)))


def jit_args(config: ConfigDict) -> dict[str, Any]:
    """JiT's arguments for this configuration; "repae_jax" holds all of it as JSON."""
    adamw = config.optimizer.backbone
    each = max(1, IMAGES // config.batch_size)
    return {
        "model": config.backbone.arch,
        "img_size": config.data.resolution,
        "class_num": config.data.num_classes,
        **{theirs: look_up(config, ours) for theirs, ours in _SAME.items()},
        "P_mean": -config.time.mean,
        "interval_min": 1.0 - config.sampling.guidance_high,
        "interval_max": 1.0 - config.sampling.guidance_low,
        "lr": adamw.learning_rate,
        "lr_schedule": "cosine" if adamw.decay_steps else "constant",
        "min_lr": adamw.final_rate,
        "batch_size": config.batch_size,
        "world_size": 1,
        "epochs": max(1, round(config.run.steps / each)),
        "warmup_epochs": round(adamw.warmup_steps / each),
        "attn_dropout": 0.0,
        "proj_dropout": 0.0,
        OURS: to_json(config),
    }


def as_theirs(
    content: Mapping[str, Any], config: ConfigDict, step: int, epoch: int
) -> dict[str, Any]:
    """A checkpoint under JiT's names. Its second moving average, which no run has, is the first."""
    model, ema = (
        {PREFIX + name: array for name, array in content[key].items()} for key in ("model", "ema")
    )
    return {
        "model": model,
        "optimizer": content["opt"],
        "epoch": epoch,
        "model_ema1": ema,
        "model_ema2": ema,
    }
