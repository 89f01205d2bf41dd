"""Checks of a configuration, before anything is allocated or written."""

import re

from ml_collections import ConfigDict

from repae_jax.config.defaults import NETWORKS
from repae_jax.config.measured import measuring_teacher
from repae_jax.config.schema import check_values
from repae_jax.data.sources import check_random_crop
from repae_jax.errors import UserError
from repae_jax.models.text_encoders.families import NONE as NO_TEXT
from repae_jax.parallel.mesh import axis_sizes

_ON_COLLAPSE = ("warn", "stop")
_PROJECT = re.compile(r"[\w.-]{1,128}")


def validate(config: ConfigDict) -> None:
    """Raise UserError for an invalid value or combination; it names the key and the way out."""
    from repae_jax.config.modules import build_tokenizer

    check_values(config)
    _check_train(config)
    check_random_crop(config.data)
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype is {config.dtype!r}: use 'float32' or 'bfloat16'")
    for name in config.train:
        _check_optimizer(name, config.optimizer[name])
    _check_decay(config)
    tokenizer = build_tokenizer(config)
    _check_tokenizer(config, tokenizer)
    if "discriminator" in config.train:
        _check_discriminator(config, tokenizer)
    _check_foundation(config, tokenizer)
    if "backbone" in config.train:
        _check_captions(config)
        _check_backbone(config, tokenizer)
    _check_objective(config)
    _check_sampling(config, tokenizer)
    _check_evaluation(config)
    _check_compute(config)


def check_devices(config: ConfigDict, device_count: int) -> None:
    """Raise UserError unless the mesh fits the devices, and the batch divides evenly over them."""
    axis_sizes(config.mesh.data, config.mesh.fsdp, device_count)
    parts = config.compute.micro_batches
    unit = device_count * parts
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        fitting = f"{below} or {below + unit}" if below else str(unit)
        what = f"the {device_count} devices"
        what += f" times config.compute.micro_batches {parts}" if parts > 1 else ""
        raise UserError(
            f"config.batch_size is {config.batch_size}, not divisible by {what}: use {fitting}"
        )


def _check_train(config):
    train = tuple(config.train)
    for name in train:
        if name not in NETWORKS:
            raise UserError(f"config.train has {name!r}: it takes {', '.join(NETWORKS)}")
    if not {"backbone", "tokenizer"} & set(train):
        raise UserError(
            f"config.train is {train}: nothing to train without 'backbone' or 'tokenizer'"
        )
    if "discriminator" in train and "tokenizer" not in train:
        raise UserError("config.train has 'discriminator' without 'tokenizer', which it judges")
    if config.data.source == "latents" and "tokenizer" in train:
        raise UserError(
            "config.data.source is 'latents', of a frozen tokenizer, but config.train has "
            "'tokenizer': choose the recipe repa or vanilla, or train on images"
        )
    adversarial = config.objective.adversarial_weight > 0
    if "tokenizer" in train and adversarial and "discriminator" not in train:
        raise UserError(
            "config.objective.adversarial_weight is "
            f"{config.objective.adversarial_weight} without a discriminator: "
            "add 'discriminator' to config.train, or set --config.objective.adversarial_weight=0.0"
        )


def _check_tokenizer(config, tokenizer):
    from repae_jax.models.tokenizers.base import is_identity

    if is_identity(tokenizer):
        _check_identity(config)
    elif "tokenizer" not in config.train and not config.tokenizer.weights:
        raise UserError(
            "the tokenizer is frozen (config.train has no 'tokenizer') and "
            "config.tokenizer.weights is empty: name its file or the work directory that trained "
            "it (--config.tokenizer.weights=PATH)"
        )
    if config.tokenizer_ema_decay and "tokenizer" not in config.train:
        raise UserError(
            f"config.tokenizer_ema_decay is {config.tokenizer_ema_decay}, but config.train has no "
            "'tokenizer' to average: set --config.tokenizer_ema_decay=0.0"
        )
    weight = config.objective.prior_weight
    if weight and "tokenizer" in config.train and getattr(tokenizer, "deterministic", False):
        raise UserError(
            f"config.objective.prior_weight is {weight}, but a tokenizer of the family "
            f"{config.tokenizer.family!r} is deterministic, so its latents have no entropy to "
            "weigh: choose a VAE, or another recipe than lsgm"
        )


def _check_discriminator(config, tokenizer):
    from repae_jax.config.modules import build_discriminator

    build_discriminator(config)
    objective = config.objective
    if objective.adaptive_weight and getattr(tokenizer, "last_layer", None) is None:
        raise UserError(
            "config.objective.adaptive_weight is True, but a tokenizer of the family "
            f"{config.tokenizer.family!r} names no last layer: set "
            "--config.objective.adaptive_weight=False"
        )


def _check_foundation(config, tokenizer):
    from repae_jax.config.needs import needs_foundation

    if not needs_foundation(config):
        return
    objective = config.objective
    given = f"config.objective.vf_weight is {objective.vf_weight}"
    off = "set --config.objective.vf_weight=0.0"
    if not config.teachers:
        raise UserError(
            f"{given}, but config.teachers, whose first entry the latents are aligned with, is "
            f"empty: name a teacher, or {off}"
        )
    if objective.spatial_norm:
        raise UserError(
            f"{given}, which compares with a teacher's own tokens, but "
            f"config.objective.spatial_norm is {objective.spatial_norm}: set one of them to 0.0"
        )
    if objective.vf_adaptive and getattr(tokenizer, "last_encoder_layer", None) is None:
        raise UserError(
            f"{given}, but a tokenizer of the family {config.tokenizer.family!r} names no last "
            f"layer of its encoder: set --config.objective.vf_adaptive=False, or {off}"
        )
    name, entry = next(iter(config.teachers.items()))
    grid = config.data.resolution // tokenizer.factor
    _, teacher_grid = _teacher_and_grid(config, name, entry)
    if teacher_grid != grid:
        raise UserError(
            f"{given}, but the teacher {name!r} gives {teacher_grid} x {teacher_grid} tokens and "
            f"the tokenizer {grid} x {grid} latents: they must match"
        )


def _check_identity(config):
    """Check a configuration whose latents are the images."""
    given = f"config.tokenizer.family is {config.tokenizer.family!r}"
    if "tokenizer" in config.train:
        raise UserError(
            f"{given}, which has nothing to train, but config.train has 'tokenizer': choose the "
            "recipe repa or vanilla"
        )
    for key in ("weights", "statistics"):
        if config.tokenizer[key]:
            raise UserError(
                f"{given}, which has no {key}, but config.tokenizer.{key} is "
                f"{config.tokenizer[key]!r}: leave it empty"
            )
    if config.data.source == "latents":
        raise UserError(
            f"{given}, whose latents are the images, but config.data.source is 'latents': name the "
            "images' source"
        )
    if config.objective.latent_norm != "fixed":
        raise UserError(
            f"{given}, whose latents are not normalized, but config.objective.latent_norm is "
            f"{config.objective.latent_norm!r}: set --config.objective.latent_norm=fixed"
        )


def _check_optimizer(name, optimizer):
    """Check the optimizer of one trained network."""
    key = f"config.optimizer.{name}"
    for field in ("learning_rate", "max_grad_norm"):
        if not optimizer[field] > 0:
            raise UserError(f"{key}.{field} is {optimizer[field]}: it must be positive")
    if not 0 <= optimizer.final_rate <= optimizer.learning_rate:
        raise UserError(
            f"{key}.final_rate is {optimizer.final_rate}: give 0 to the learning rate "
            f"{optimizer.learning_rate}"
        )
    decay = optimizer.decay_steps
    for field in ("warmup_steps", "decay_start"):
        if 0 < decay <= optimizer[field]:
            raise UserError(
                f"{key}.decay_steps is {decay}: it must be 0 (a constant rate) or lie beyond "
                f"{field} {optimizer[field]}"
            )
    for field, unused in (("decay", "cosine"), ("decay_start", 0), ("final_rate", 0.0)):
        if not decay and optimizer[field] != unused:
            raise UserError(
                f"{key}.{field} is {optimizer[field]!r}, but without a decay nothing reads it: set "
                f"{key}.decay_steps, or leave it at {unused!r}"
            )


def _check_decay(config):
    """Check that every learning rate stays positive until the last step."""
    steps = config.run.steps
    ends = {name: config.optimizer[name].decay_steps for name in config.train}
    ends = {
        name: end
        for name, end in ends.items()
        if 0 < end < steps and not config.optimizer[name].final_rate
    }
    if not ends:
        return
    rates = ", ".join(f"the {name}'s at step {end}" for name, end in ends.items())
    longer = " ".join(f"--config.optimizer.{name}.decay_steps={steps}" for name in ends)
    raise UserError(
        f"the run ends at step {steps}, but its learning rates reach zero before it, {rates}, and "
        f"nothing is learned from there on: train fewer steps (--config.run.steps="
        f"{min(ends.values())}), or let the rates fall more slowly ({longer})"
    )


def _check_backbone(config, tokenizer):
    from repae_jax.config.modules import build_backbone
    from repae_jax.models.backbones.base import class_token_dim
    from repae_jax.objectives.paths import PATHS

    backbone = build_backbone(config, tokenizer)
    path = PATHS.get(config.objective.interpolant)
    if path is not None and path.predicts != backbone.predicts:
        fitting = " or ".join(repr(k) for k, p in PATHS.items() if p.predicts == backbone.predicts)
        raise UserError(
            f"config.backbone.family is {config.backbone.family!r}, which predicts the "
            f"{backbone.predicts}, but config.objective.interpolant {path.name!r} has the "
            f"{path.predicts} as its target: use {fitting}"
        )
    predicts_data = getattr(backbone, "predicts_data", False)
    if predicts_data and config.objective.least_time != (least := backbone.least_time):
        raise UserError(
            f"config.objective.least_time is {config.objective.least_time}, but config.backbone of "
            f"the family {config.backbone.family!r} divides by max(t, {least}), and the target of "
            f"its loss must too: set --config.objective.least_time={least}"
        )
    grid, encoders = backbone.grid, {}
    for name, entry in config.teachers.items():
        encoders[name], teacher_grid = _teacher_and_grid(config, name, entry)
        if teacher_grid != grid:
            raise UserError(
                f"teacher {name!r} gives {teacher_grid} x {teacher_grid} tokens, the backbone "
                f"{grid} x {grid}: they must match, so change the patch size of one of them"
            )

    if dim := class_token_dim(backbone):
        _check_class_token(dim, encoders)


def _check_captions(config):
    """Check that a text encoder and the condition on its states come together."""
    encoder, condition = config.text_encoder.family, config.condition.family
    if encoder != NO_TEXT and condition != "text":
        raise UserError(
            f"config.text_encoder.family is {encoder!r}, but config.condition.family {condition!r} "
            "reads no captions: set --config.condition.family=text, or "
            f"--config.text_encoder.family={NO_TEXT}"
        )
    if condition == "text" and config.data.flip:
        raise UserError(
            "config.data.flip is True, but a mirrored image no longer fits a caption that says "
            "left or right: set --config.data.flip=False"
        )


def _check_class_token(dim, teachers):
    """Check that the teachers give the class token that the backbone denoises."""
    given = f"config.backbone.class_token_dim is {dim}"
    if not teachers:
        raise UserError(
            f"{given}, the width of a teacher's class token, but config.teachers is empty: choose "
            "the recipe repa or repae, or set --config.backbone.class_token_dim=0"
        )
    name, first = next(iter(teachers.items()))
    if first.dim != dim:
        raise UserError(
            f"{given}, but the class token of the teacher {name!r} has width {first.dim}: set "
            f"--config.backbone.class_token_dim={first.dim}"
        )
    for name, teacher in teachers.items():
        if not teacher.class_token:
            raise UserError(
                f"{given}, but the teacher {name!r} has no class token: choose another teacher, or "
                "set --config.backbone.class_token_dim=0"
            )


def _teacher_and_grid(config, name, entry):
    """Check one teacher; returns it, and the side of its grid of tokens."""
    from repae_jax.config.modules import build_encoder

    path, resolution = f"config.teachers.{name}", config.data.resolution
    encoder = build_encoder(entry, resolution, path=path)
    try:
        return encoder, encoder.grid(resolution)
    except UserError as error:
        raise UserError(f"config.data.resolution is {resolution}, {path}: {error}") from error


def _check_objective(config):
    from repae_jax.objectives.objective import Objective
    from repae_jax.objectives.times import Times, check_times

    Objective(**config.objective)
    at_once = config.batch_size // config.compute.micro_batches
    if config.objective.dispersive_weight and at_once < 2:
        raise UserError(
            f"config.objective.dispersive_weight is {config.objective.dispersive_weight}, but a "
            f"micro-batch has {at_once} image, which has no other to differ from: take fewer "
            "with --config.compute.micro_batches"
        )
    check_times(Times(**config.time), config.objective.interpolant)


def _check_sampling(config, tokenizer):
    from repae_jax.config.modules import build_sampler
    from repae_jax.sampling.sampler import (
        check_class_token_guidance,
        check_guidance_channels,
        check_null_class,
    )

    sampler = build_sampler(config)
    check_null_class(sampler, config.condition.drop)
    check_guidance_channels(sampler, tokenizer.latent_channels)
    check_class_token_guidance(sampler, bool(config.backbone.get("class_token_dim")))


def _check_evaluation(config):
    wanted = config.evaluation
    if not wanted.every:
        return
    if "backbone" not in config.train:
        raise UserError(
            f"config.evaluation.every is {wanted.every}, but config.train has no 'backbone', which "
            "is measured: set --config.evaluation.every=0"
        )
    # CKNNA's neighborhoods have ten images; a covariance needs two.
    for key, least in (("samples", 2), ("cknna_images", 12)):
        if wanted[key] and wanted[key] < least:
            raise UserError(
                f"config.evaluation.{key} is {wanted[key]}: give at least {least}, or 0 for none"
            )
    measuring_teacher(config)
    if wanted.cknna_images and not config.teachers:
        raise UserError(
            f"config.evaluation.cknna_images is {wanted.cknna_images}, but config.teachers, which "
            "the backbone is compared with, is empty: set --config.evaluation.cknna_images=0"
        )


def _check_compute(config):
    stripes = config.compute.stripes
    if stripes & (stripes - 1):
        raise UserError(
            f"config.compute.stripes is {stripes}: give a power of two, or 0 to choose by the "
            "device and the batch"
        )
    from repae_jax.models.remat import POLICIES
    from repae_jax.parallel.sharding import check_rules

    check_rules(config.mesh)
    for key in ("backbone_remat", "tokenizer_remat"):
        if config.compute[key] not in POLICIES:
            choices = "; ".join(f"{name}: keep {what}" for name, what in POLICIES.items())
            raise UserError(f"config.compute.{key} is {config.compute[key]!r}: use {choices}")
    named = config.run.wandb.split("/")
    if config.run.wandb and (len(named) > 2 or not all(map(_PROJECT.fullmatch, named))):
        raise UserError(
            f"config.run.wandb is {config.run.wandb!r}: name a project of Weights & Biases as "
            "PROJECT or ENTITY/PROJECT, of letters, digits, '-', '_' and '.'"
        )
    if config.run.on_collapse not in _ON_COLLAPSE:
        choices = " or ".join(map(repr, _ON_COLLAPSE))
        raise UserError(f"config.run.on_collapse is {config.run.on_collapse!r}: use {choices}")
