"""The type and range of every key of a configuration; `defaults.base` has the defaults.

The upper bounds keep the memory and time that a configuration claims within a machine's reach, far
above all published values. `validate` checks how values combine.
"""

import functools
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict
from pydantic import Field
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.config.sections import SECTIONS, families_of
from repae_jax.models.family import open_type
from repae_jax.utils.schema import Key, Side, Text, Width, check_schema, each, real, whole

SEED = whole(0, 2**32 - 1)  # the range that all random generators in use accept
_COUNT = whole(1, 2**31 - 1)  # steps and images; a state counts them in int32
_FROM_ZERO = whole(0, 2**31 - 1)
_FRACTION, _FINITE = real(0, 1), real(0)
_DECAY = Annotated[float, Field(ge=0, lt=1)]
_DEPTH = whole(1, 256)


class _Data(TypedDict):
    source: Text
    path: Text
    name: Text
    resolution: Side
    num_classes: whole(1, 2**20)
    flip: bool
    exif: bool
    crop: Text
    random_crop: whole(0, 16_384)
    on_bad_image: Text
    accept: Text
    workers: whole(0, 1024)


class _LatentNorm(TypedDict):
    momentum: _FRACTION


class _LPIPS(TypedDict):
    weights: Text
    vgg_weights: Text
    rescale_inputs: bool


class _Pretraining(TypedDict):
    steps: _FROM_ZERO
    batch_size: _COUNT
    learning_rate: _FINITE
    weight_decay: _FINITE
    shift: whole(0, 1024)


class _LanguageModeling(TypedDict):
    steps: _FROM_ZERO
    batch_size: _COUNT
    learning_rate: _FINITE
    weight_decay: _FINITE


class _Objective(TypedDict):
    interpolant: Text
    least_time: _FRACTION
    noise_scale: _FINITE
    backbone_alignment: _FINITE
    tokenizer_alignment: _FINITE
    alignment_end: _FROM_ZERO
    spatial_norm: _FRACTION
    stop_gradient: bool
    posterior: Text
    latent_norm: Text
    latent_noise: _FINITE
    reconstruction: Text
    reconstruction_weight: _FINITE
    perceptual_weight: _FINITE
    kl_weight: _FINITE
    prior_weight: _FINITE
    prior_weighting: Text
    prior_least_time: _FRACTION
    adversarial_weight: _FINITE
    perceptual_start: _FROM_ZERO
    discriminator_start: _FROM_ZERO
    discriminator_factor: _FINITE
    generator_start: _FROM_ZERO
    adaptive_weight: bool
    adaptive_epsilon: _FINITE
    adaptive_limit: _FINITE
    augmentation: Text
    fake_latents: Text
    fake_bytes: bool
    vf_weight: _FINITE
    vf_adaptive: bool
    vf_distance_margin: _FINITE
    vf_cosine_margin: _FINITE
    lecam_weight: _FINITE
    lecam_decay: _FRACTION
    cosine_weight: _FINITE
    dispersive_weight: _FINITE
    class_token_weight: _FINITE


class _Time(TypedDict):
    weighting: Text
    mean: real()
    scale: _FINITE
    highest: _FRACTION
    grid: _FROM_ZERO
    shift: _FINITE


class _Optimizer(TypedDict):
    name: Literal["adamw", "muon"]
    learning_rate: _FINITE
    b1: _FRACTION
    b2: _FRACTION
    eps: _FINITE
    weight_decay: _FINITE
    max_grad_norm: real(0, finite=False)  # infinity: no clipping
    warmup_steps: _FROM_ZERO
    decay: Literal["cosine", "linear"]
    decay_start: _FROM_ZERO
    decay_steps: _FROM_ZERO
    final_rate: _FINITE


class _Optimizers(TypedDict):
    backbone: _Optimizer
    tokenizer: _Optimizer
    discriminator: _Optimizer


class _Mesh(TypedDict):
    data: whole(-1, 2**20)
    fsdp: whole(1, 2**20)
    trained: Text
    frozen: Text
    smallest: _FROM_ZERO


class _Compute(TypedDict):
    micro_batches: whole(1, 2**20)
    scan_blocks: bool
    backbone_remat: Text
    tokenizer_remat: Text
    stripes: whole(0, 64)


class _Sampling(TypedDict):
    method: Text
    steps: _COUNT
    guidance_scale: _FINITE
    guidance_low: _FRACTION
    guidance_high: _FRACTION
    guidance_channels: whole(0, 4096)
    class_token_guidance: _FINITE
    guidance_rule: Text
    shift: _FINITE
    last_time: _FRACTION
    smallest_time: _FRACTION


class _Evaluation(TypedDict):
    every: _FROM_ZERO
    samples: _FROM_ZERO
    network: Text
    weights: Text
    reference: Text
    cknna_images: _FROM_ZERO
    cknna_time: _FRACTION


class _Run(TypedDict):
    steps: _COUNT
    log_every: _COUNT
    sample_every: _COUNT
    sample_steps: _COUNT
    checkpoint_every: _COUNT
    keep_checkpoints: _COUNT
    keep_every: _FROM_ZERO
    max_skipped: _COUNT
    data_timeout: Annotated[float, Field(gt=0, le=1e9)]  # Python's locks accept at most 292 years
    on_collapse: Text
    wandb: Text


class Config(TypedDict):
    """A complete configuration in its JSON form, with lists for tuples."""

    name: Text
    seed: SEED
    train: each(Text, 1, 3)
    batch_size: whole(1, 2**20)
    ema_decay: _DECAY
    tokenizer_ema_decay: _DECAY
    dtype: Text
    data: _Data
    tokenizer: dict[str, Any]
    backbone: dict[str, Any]
    condition: dict[str, Any]
    projector: dict[str, Any]
    text_encoder: dict[str, Any]
    latent_norm: _LatentNorm
    discriminator: dict[str, Any]
    lpips: _LPIPS
    teachers: Annotated[dict[Key, dict[str, Any]], Field(max_length=16)]
    objective: _Objective
    time: _Time
    optimizer: _Optimizers
    mesh: _Mesh
    compute: _Compute
    sampling: _Sampling
    evaluation: _Evaluation
    run: _Run


def check_values(config: Mapping[str, Any] | ConfigDict, *, source: str = "config.") -> None:
    """Raise UserError for a key whose value has the wrong type or is out of its range.

    Args:
      config: a configuration with every key.
      source: the text before the key in an error.
    """
    plain = _plain(config)
    check_schema(plain, Config, source=source)
    for section in SECTIONS:
        check_schema(
            plain[section], _of_family(section, plain[section]), source=f"{source}{section}."
        )
    for name, entry in plain["teachers"].items():
        check_schema(entry, _of_family("teacher", entry), source=f"{source}teachers.{name}.")


# Bounds of options with these names in every family. Other options take the bounds of their row in
# the family's table, or of their type.
_OPTIONS = {
    "arch": Text,
    "family": Text,
    "drop": _FRACTION,
    "patch_size": whole(1, 256),
    "depth": _DEPTH,
    "encoder_depth": _DEPTH,
    "class_token_dim": whole(0, 2**16),
    "mlp_ratio": real(1 / 64, 64),
    "stem": each(Width, 0, 8),
    "pretrain": _Pretraining,
    "vocabulary": whole(1, 2**24),
    "length": whole(1, 2**16),
    "filters": whole(1, 4096),
    "layers": whole(1, 8),
}
_OF_SECTION = {("text_encoder", "pretrain"): _LanguageModeling}
_TYPES = {bool: bool, int: Width, float: _FINITE, str: Text, tuple: each(Width, 0, 64)}


def _of_family(section, values):
    """The schema of a section whose keys depend on its family."""
    families, _ = families_of(section)
    name = values.get("family")
    if not isinstance(name, str) or name not in families:
        return TypedDict("Section", {"family": Literal[tuple(families)]})
    return _schema(section, name)


@functools.cache
def _schema(section, family):
    families, shared = families_of(section)
    fields = {"family": Text}
    for key, default in {**shared, **families[family].options}.items():
        kind = open_type(default)
        field = _OF_SECTION.get((section, key)) or _OPTIONS.get(key)
        field = field or _TYPES[kind or type(default)]
        if typing.get_origin(default) is Annotated:
            field = default
        fields[key] = field if kind is None else field | None
    return TypedDict("Section", fields, total=False)  # `check_family` reports missing keys


def _plain(value):
    """Convert to the JSON form: dicts, and lists for tuples."""
    if isinstance(value, ConfigDict | dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
