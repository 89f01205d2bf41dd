"""The `inspect` command: what a file or folder holds, in a few lines."""

import collections
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import pretrained, sit, vit
from repae_jax.interop.latent_statistics import Statistics
from repae_jax.interop.recognise import CHECKPOINTS, DIFFUSERS, FORMATS, RUN, Found, find
from repae_jax.models.sit import SIT_CONFIGS
from repae_jax.models.vae import VAE_PRESETS


def describe(name: str | pathlib.Path) -> str:
    """Several lines: the format, the networks and their sizes, statistics, steps.

    Raises:
      UserError: nothing is there, it is damaged, or nobody knows it.
    """
    found = find(name)
    lines = [("path", str(found.path)), ("format", FORMATS[found.format]), *_lines(found)]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def _lines(found: Found) -> Iterator[tuple[str, str]]:
    if found.format == RUN:
        yield from _run_lines(found.path)
    elif found.format in CHECKPOINTS:
        yield from _checkpoint_lines(found)
    elif found.format in (DIFFUSERS, "vae", "vae-tensors"):
        vae = pretrained.read_vae(found.path)
        yield "VAE", vae_text(vae)
        yield "weights", weights_text(vae.params)
        if vae.statistics is not None:
            yield "latents", statistics_text(vae.statistics)
    elif found.format == "sit":
        yield "SiT", _sit_text(found.content, str(found.path))
        yield "weights", weights_text(found.content)
    elif found.format == "vit":
        yield "teacher", vit.describe(found.content)
        yield "weights", weights_text(found.content)
    else:
        yield "weights", weights_text(found.content)


def _run_lines(path):
    from repae_jax.training.checkpoints import Checkpoints
    from repae_jax.training.workdir import load_config

    config = load_config(path)
    checkpoints = Checkpoints(path, read_only=True)
    step = checkpoints.latest_step()
    checkpoints.close()
    yield "name", config.name
    yield "trains", ", ".join(config.train)
    yield "step", f"{step} of {config.run.steps}" if step is not None else "no checkpoint yet"


def _checkpoint_lines(found):
    content, source = found.content, str(found.path)
    yield "step", str(content["steps"])
    yield "SiT", _sit_text(content["model"], source)
    if "vae" in content:
        vae = pretrained.read_vae(found.path)
        yield "VAE", vae_text(vae)
        if vae.statistics is not None:
            yield "latents", statistics_text(vae.statistics)
    for key, part in content.items():
        if isinstance(part, Mapping):
            yield key, weights_text(part)


def vae_text(vae: pretrained.PretrainedVAE) -> str:
    """One line on a VAE's architecture."""
    module = vae.module
    fields = {name: getattr(module, name) for name in module.__dataclass_fields__}
    published = [
        name
        for name, (_, preset) in VAE_PRESETS.items()
        if all(fields.get(key) == value for key, value in preset.items())
        and fields.get("quant_conv", True) == preset.get("quant_conv", True)
        and tuple(fields.get("attention_levels", ())) == preset.get("attention_levels", ())
    ]
    name = f"{published[0]}, " if published else ""
    return (
        f"{type(module).__name__}, {name}{module.factor} x {module.factor} pixels -> "
        f"{module.latent_channels} channels, widths {_widths(module)}"
    )


def weights_text(tensors: Mapping[str, Any]) -> str:
    """How many tensors and values there are in nested dicts, and of which types."""
    arrays = list(_arrays(tensors))
    values = collections.Counter()
    for array in arrays:
        values[array.dtype.name] += array.size
    types = ", ".join(f"{count / 1e6:.2f} M {name}" for name, count in values.most_common())
    return f"{len(arrays)} tensors, {types or 'no values'}"


def statistics_text(statistics: Statistics) -> str:
    """The range of the latents' mean and standard deviation over the channels."""
    mean, std = np.asarray(statistics["mean"]), np.sqrt(np.asarray(statistics["var"]))
    return (
        f"{mean.size} channels, mean {mean.min():.3g} to {mean.max():.3g}, "
        f"standard deviation {std.min():.3g} to {std.max():.3g}"
    )


def _widths(module):
    base = getattr(module, "channels", None) or module.base_dim
    return "-".join(str(base * multiplier) for multiplier in module.multipliers)


def _sit_text(tensors, source):
    try:
        d = sit.infer_dimensions(tensors, source=source)
    except UserError as error:
        return str(error).removeprefix(f"{source}: ")
    shape = {key: d[key] for key in ("hidden_size", "depth", "num_heads", "patch_size")}
    name = next((name for name, preset in SIT_CONFIGS.items() if preset == shape), "own size")
    teachers = ", ".join(map(str, d["teacher_dims"])) or "none"
    return (
        f"{name}: width {d['hidden_size']}, depth {d['depth']}, {d['num_heads']} heads, patch "
        f"{d['patch_size']}, latents {d['latent_size']} x {d['latent_size']} x "
        f"{d['latent_channels']}, {d['num_classes']} labels, teachers' widths {teachers}"
    )


def _arrays(node):
    for value in node.values():
        if isinstance(value, Mapping):
            yield from _arrays(value)
        elif isinstance(value, np.ndarray):
            yield value
