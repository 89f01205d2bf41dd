"""The `inspect` command: a summary of a file's or folder's content in a few lines."""

import collections
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from repae_jax.data import latents
from repae_jax.errors import UserError
from repae_jax.interop import (
    checkpoint_parts,
    ddt,
    dit_folder,
    files,
    fuse_dit,
    fuse_dit_config,
    jit,
    latent_shards,
    latent_statistics,
    lightningdit,
    mmdit,
    rae_files,
    sit,
    vae_files,
)
from repae_jax.interop.detect_format import (
    CHECKPOINTS,
    DIFFUSERS,
    DIT_FOLDER,
    LATENT_SHARDS,
    LATENTS,
    PIPELINE,
    RUN,
    Detected,
    detect,
)
from repae_jax.interop.formats import FORMATS
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.models.backbones.families import BACKBONES
from repae_jax.models.text_encoders.families import TEXT_ENCODERS
from repae_jax.models.tokenizers.families import family_of
from repae_jax.runs.vit_inspection import count_numbers, vit_text
from repae_jax.utils.schema import Text, parse_json, real

Lines = Iterator[tuple[str, str]]


def describe(name: str | pathlib.Path) -> str:
    """Describe a file or folder in several lines: format, networks, sizes, statistics, steps.

    Raises:
      UserError: it does not exist, is damaged, or has an unknown format.
    """
    found = detect(name)
    lines = [("path", str(found.path)), ("format", FORMATS[found.format]), *_lines(found)]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def _lines(found: Detected) -> Lines:
    if found.format == RUN:
        yield from _run_lines(found.path)
    elif found.format == PIPELINE:
        yield from _pipeline_lines(found.path)
    elif found.format in CHECKPOINTS:
        yield from _checkpoint_lines(found)
    elif found.format == DIT_FOLDER:
        dit = dit_folder.read_dit(found.path)
        yield "DiT", dit.describe()
        yield "weights", weights_text(dit.tensors)
    elif found.format == LATENTS:
        source = latents.open_latents(found.path)
        yield "latents", _latents_text(len(source), source.manifest["made"]["latent_shape"])
        yield "statistics", statistics_text(latents.statistics_of(source))
        if source.caption is not None:
            yield "captions", "text and states" if source.keeps_states else "text"
    elif found.format == LATENT_SHARDS:
        shards = latent_shards.open_shards(found.path)
        yield "latents", _latents_text(len(shards), shards.shape)
        yield "files", f"{len(shards.counts)}, of {shards.dtype}"
    elif found.format in (DIFFUSERS, "vae", "vae-tensors"):
        vae = vae_files.read_vae(found.path)
        if found.extract and found.extract.where:
            yield "inside", found.extract.where
        yield from _vae_lines(vae)
        yield "weights", weights_text(vae.params)
    else:
        if found.extract and found.extract.where:
            yield "inside", found.extract.where
        yield from _OTHER_LINES[found.format](found)
        yield "weights", weights_text(found.content)
        for note in found.notes:
            yield "note", note


def _run_lines(path):
    from repae_jax.runs.build import build_models, state_shapes
    from repae_jax.runs.workdir import load_config

    config = load_config(path)
    yield "name", config.name
    yield "trains", ", ".join(config.train)
    yield from _saved_lines(path, config.run.steps)
    models = build_models(config)
    yield from _network_lines(config, models)
    for network, part in state_shapes(config, models).params.items():
        yield network, weights_text(part)


def _pipeline_lines(folder):
    """What a pipeline's folder holds; its tensors are compared with its configuration."""
    from repae_jax.runs.pipeline_conversion import open_pipeline

    opened = open_pipeline(folder)
    config, models = opened.config, opened.models
    yield "name", config.name
    yield "step", str(opened.step)
    yield from _network_lines(config, models)
    yield "weights", weights_text(opened.tensors)
    yield "statistics", statistics_text(opened.statistics)


def _network_lines(config, models):
    for row, module in (
        (BACKBONES.get(config.backbone.family), models.backbone),
        (TEXT_ENCODERS.get(config.text_encoder.family), models.text_encoder),
    ):
        if module is not None:
            yield type(module).__name__, row.text(module)
    yield "VAE", vae_text(models.tokenizer)


def _saved_lines(path, last_step):
    """The saved steps, and whether the newest checkpoint's files match their checksums.

    Checks the newest checkpoint; if it is damaged, the one before it, and so on.
    """
    from repae_jax.runs.checkpoints import FOLDER, saved_steps
    from repae_jax.runs.integrity import check_checkpoint

    steps, damage = saved_steps(path), []
    compared = whole = None
    for step in reversed(steps):
        try:
            compared = check_checkpoint(path / FOLDER / str(step))
        except UserError as error:
            damage.append(str(error))
            continue
        whole = step
        break
    if not steps:
        yield "step", "no checkpoint yet"
        return
    yield "step", f"{whole} of {last_step}" if whole is not None else "no whole checkpoint"
    yield "saved", ", ".join(map(str, steps))
    for fault in damage:
        yield "damaged", fault
    if whole is not None:
        of = f"of step {whole}: "
        yield "files", of + ("match their checksums" if compared else "have no checksums")


def _checkpoint_lines(found):
    content = found.content
    yield "step", str(content["steps"])
    yield _backbone_line(content["model"])
    if found.format == "fuse-dit":
        yield "text by", fuse_dit_config.text_encoder_of(content["config"]) or "an unnamed encoder"
    if "vae" in content:
        yield from _vae_lines(vae_files.read_vae(found.path))
    for key, part in content.items():
        if key not in ("args", "config") and isinstance(part, Mapping):
            yield key, weights_text(part)
    for note in found.notes:
        yield "note", note


def _vae_lines(vae):
    yield "VAE", vae_text(vae.module)
    if vae.statistics is not None:
        yield "latents", statistics_text(vae.statistics)
    for note in vae.notes:
        yield "note", note


def _statistics_lines(found):
    yield "latents", statistics_text(latent_statistics.read(found.path))


def _backbone_line(tensors):
    if ddt.is_ddt(tensors):
        return "DDT", ddt.text_of(tensors)
    if jit.is_jit(tensors):
        return "JiT", jit.text_of(tensors)
    if fuse_dit.is_fuse_dit(tensors):
        return "DiT", fuse_dit.text_of(tensors)
    if mmdit.is_mmdit(tensors):
        return "MMDiT", mmdit.text_of(tensors)
    if lightningdit.is_lightningdit(tensors):
        return "LightningDiT", lightningdit.text_of(tensors)
    name = "SiT or DiT" if sit.has_second_half(tensors) else "SiT"
    return name, sit.text_of(tensors)


def _backbone_lines(found):
    yield _backbone_line(found.content)
    if found.format == "sit" and sit.has_second_half(found.content):
        yield "note", checkpoint_parts.SECOND_HALF


def _discriminator_lines(found):
    layers = sum(name.endswith(".running_mean") for name in found.content)
    filters = found.content["main.0.weight"].shape[:1]
    yield "PatchGAN", f"{layers} layers, {', '.join(map(str, filters))} filters"


def _dino_discriminator_lines(found):
    heads = count_numbers(r"heads\.(\d+)\.", found.content)
    kernel = found.content.get("heads.0.1.fn.0.weight_orig")
    width = f", width {kernel.shape[0]}, kernel {kernel.shape[-1]}" if np.ndim(kernel) == 3 else ""
    yield "heads", f"{heads}{width}"


def _lpips_lines(found):
    parts = {
        "features.": "torchvision's VGG16",
        "net.slice": "VGG16 as a part of LPIPS",
        "lin": "linear heads",
    }
    held = [
        part for start, part in parts.items() if any(n.startswith(start) for n in found.content)
    ]
    yield "holds", ", ".join(held)


def _rae_decoder_lines(found):
    yield "RAE", rae_files.describe_decoder(found.content, str(found.path))


def _teacher_lines(found):
    kernel = found.content.get("params/patch_embed/kernel")
    if kernel is not None and kernel.ndim == 2:
        width, patch = kernel.shape[1], math.isqrt(len(kernel) // 3)
        depth = count_numbers(r"params/blocks_(\d+)/", found.content)
        yield "teacher", f"ViT: width {width}, depth {depth}, patch {patch}"
    notes = files.read_metadata(found.path) if found.path.suffix == ".safetensors" else {}
    if "accuracy" in notes:
        kinds = {"accuracy": real(0, 1), "data": Text | None}
        accuracy, data = (
            parse_json(notes.get(key, "null"), kind, source=f"{found.path}: {key}")
            for key, kind in kinds.items()
        )
        yield "accuracy", f"{100 * accuracy:.1f} % of held-out {data}"


def _vit_lines(found):
    yield "teacher", vit_text(found.vit)


_OTHER_LINES = {
    "statistics": _statistics_lines,
    "sit": _backbone_lines,
    "lightningdit-tensors": _backbone_lines,
    "ddt-tensors": _backbone_lines,
    "jit-tensors": _backbone_lines,
    "fuse-dit-tensors": _backbone_lines,
    "mmdit-tensors": _backbone_lines,
    "discriminator": _discriminator_lines,
    "dino-discriminator": _dino_discriminator_lines,
    "lpips": _lpips_lines,
    "rae-decoder": _rae_decoder_lines,
    "teacher": _teacher_lines,
    "vit": _vit_lines,
}


def vae_text(module: nn.Module) -> str:
    """Describe a VAE's architecture in one line."""
    family = family_of(module)
    shown = {key: getattr(module, family.fields.get(key, key)) for key in family.options}
    same = {"dtype": module.dtype, "remat": module.remat}
    published = [n for n, p in family.presets.items() if family.build(**p, **same) == module]
    name = f"{published[0]}, " if published else ""
    widths, multipliers = "", shown.get("multipliers")
    if multipliers is not None and "channels" in shown:
        widths = "-".join(str(shown["channels"] * multiplier) for multiplier in multipliers)
        widths = f", widths {widths}"
    groups = f", {shown['groups']} groups" if "groups" in shown else ""
    return (
        f"{type(module).__name__}, {name}{module.factor} x {module.factor} pixels -> "
        f"{module.latent_channels} channels{widths}{groups}"
    )


def _latents_text(count, shape):
    return f"{count} images, {shape[0]} x {shape[1]} x {shape[2]}"


def weights_text(tensors: Mapping[str, Any]) -> str:
    """The number of tensors in nested dicts, and of values by type."""
    arrays = list(_arrays(tensors))
    values = collections.Counter()
    for array in arrays:
        values[array.dtype.name] += array.size
    types = ", ".join(f"{_amount(count)} {name}" for name, count in values.most_common())
    return f"{len(arrays)} tensors: {types}" if arrays else "no tensors"


def statistics_text(statistics: Statistics) -> str:
    """The range of the latents' means and standard deviations, by channel or by position."""
    mean, std = np.asarray(statistics["mean"]), np.sqrt(np.asarray(statistics["var"]))
    grid = f" at {' x '.join(map(str, mean.shape[:-1]))} positions" if mean.ndim > 1 else ""
    return (
        f"{mean.shape[-1]} channels{grid}, mean {mean.min():.3g} to {mean.max():.3g}, "
        f"standard deviation {std.min():.3g} to {std.max():.3g}"
    )


def _fields_of(module):
    return {name: getattr(module, name) for name in module.__dataclass_fields__}


def _amount(count):
    return f"{count / 1e6:.2f} M" if count >= 1e5 else str(count)


def _arrays(node):
    for value in node.values():
        if isinstance(value, Mapping):
            yield from _arrays(value)
        elif hasattr(value, "dtype"):
            yield value
