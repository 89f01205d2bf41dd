"""The `convert` command: conversion from any known format to any format with the same content."""

import dataclasses
import pathlib
from collections.abc import Sequence

from repae_jax.errors import UserError
from repae_jax.interop import (
    checkpoint_parts,
    sit,
    vae_files,
)
from repae_jax.interop.detect_format import (
    CHECKPOINTS,
    DIT_FOLDER,
    LATENT_SHARDS,
    LATENTS,
    PIPELINE,
    RUN,
    Detected,
    detect,
)
from repae_jax.interop.formats import FORMATS
from repae_jax.runs.conversion_targets import (
    BARE,
    DIT_PIPELINE,
    FLOAT32,
    FUSE_DIT,
    VAES,
    WRITERS,
    Job,
    MakeConfig,
    vae_in,
)
from repae_jax.utils.lock import writing


def convert(
    source: str,
    target: pathlib.Path,
    to: str | None,
    make_config: MakeConfig,
    *,
    step: int | None = None,
    seed: int = 0,
    multiplier: float = 1.0,
    dtype: str = FLOAT32,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
) -> str:
    """Convert `source` to `target`.

    Args:
      source: a file, a folder, or a repository on the hub.
      target: a file or folder that does not exist.
      to: a key of `TARGETS`, or None to infer it from the target's name.
      make_config: for the targets "run" and "latents": takes a function that derives the
        configuration from the source, and returns the configuration to use.
      step: for a run, the step of the checkpoint to convert; None: the newest.
      seed: of the samples of cached latents that "lightningdit-latents" draws.
      multiplier: for "latents", `data.latent_multiplier` of LightningDiT's configuration.
      dtype: for "pipeline", the type of the stored weights.
      class_names: for "pipeline", the classes' names; None: those of the run's data.
      progress: show a bar.

    Returns:
      A line that says what was written, followed by a line for each part that was left out.

    Raises:
      UserError: the source is unknown or damaged, cannot be converted to the requested format, or
        the target exists.
    """
    found = detect(source)
    if step is not None and found.format != RUN:
        raise UserError(
            f"--step is {step}, but {found.path} ({FORMATS[found.format]}) is no work directory: "
            "leave it out"
        )
    to = to or _infer_format(found, target)
    if to not in possible_targets(found):
        choices = ", ".join(possible_targets(found))
        raise UserError(
            f"{found.path} ({FORMATS[found.format]}) cannot be converted to {to!r}: choose one of "
            f"{choices}"
        )
    for option, value, default, wanted in (
        ("--seed", seed, 0, LATENT_SHARDS),
        ("--multiplier", multiplier, 1.0, LATENTS),
        ("--dtype", dtype, FLOAT32, PIPELINE),
    ):
        if value != default and to != wanted:
            raise UserError(f"{option} is {value}, but {to!r} takes none: leave it out")
    _check_suffix(target, to)
    with writing(target):
        begun = to == LATENTS and target.is_dir()  # which checks its content, and resumes
        if target.is_file() or (target.is_dir() and not begun and any(target.iterdir())):
            raise UserError(f"{target} exists already: choose another name, or remove it")
        job = Job(
            found, target, make_config, progress, step, None, seed, multiplier, dtype, class_names
        )
        if to in ("diffusers", "vae", DIT_PIPELINE):
            job = dataclasses.replace(job, vae=vae_in(found, step))
        lines = [f"{target}: {WRITERS[to](job)}"]
    return "\n".join([*lines, *(f"{found.path}: {note}" for note in _notes(job, to))])


def _notes(job, to):
    """Notes on the parts of the source that were left out."""
    found, vae = job.found, job.vae
    if vae is not None:
        if to == "vae" and found.discriminator is not None:  # which was written, too
            return vae_files.notes_on(found.extract.without(found.discriminator), vae.params)
        return vae.notes
    notes = found.notes
    if to == "run" and found.format == "sit" and sit.has_second_half(found.content):
        notes.append(checkpoint_parts.SECOND_HALF)
    return notes


def possible_targets(found: Detected) -> tuple[str, ...]:
    """The keys of `TARGETS` to which a source can be converted."""
    if found.format == RUN:
        own = ("checkpoint", FUSE_DIT, "diffusers", "vae", PIPELINE)
        return (*own, "transformer", DIT_PIPELINE)
    if found.format in CHECKPOINTS:
        if found.format == "dit":
            return ("run", "transformer")
        return ("run", "diffusers", "vae") if "vae" in found.content else ("run",)
    if found.format == DIT_FOLDER:
        return ("run", "file")
    if found.format == PIPELINE:
        return ("run",)
    if found.format in (LATENTS, LATENT_SHARDS):
        return (LATENT_SHARDS,) if found.format == LATENTS else (LATENTS,)
    if found.format == "sit" and sit.has_second_half(found.content):
        return ("run", "file", "transformer")
    if found.format == "dcae":
        return ("diffusers",)
    if found.format == "rae-decoder":
        return ("diffusers", "file")
    if found.format in VAES:
        return ("diffusers", "vae")
    return ("run", "file") if found.format in BARE else ("file",)


def _infer_format(found, target):
    """Infer the target format from the name: a file has a suffix, a folder has none."""
    possible = possible_targets(found)
    if not _suffix(target):
        folders = ("run", "diffusers", LATENTS, LATENT_SHARDS)
        return next((to for to in folders if to in possible), "diffusers")
    return next((to for to in ("checkpoint", "vae", "file") if to in possible), "checkpoint")


def _suffix(target):
    """The target's suffix; a number after the dot belongs to the name, as in e2e-sd3.5-vae."""
    return "" if target.suffix[1:2].isdecimal() else target.suffix


def _check_suffix(target, to):
    suffixes = {
        "run": (),
        FUSE_DIT: (),
        "diffusers": (),
        "transformer": (),
        PIPELINE: (),
        DIT_PIPELINE: (),
        LATENTS: (),
        LATENT_SHARDS: (),
        "checkpoint": (".pt", ".pth"),
        "vae": (".pt", ".pth", ".safetensors"),
        "file": (".pt", ".pth", ".safetensors"),
    }[to]
    if not suffixes and _suffix(target):
        raise UserError(
            f"{target}: {to!r} writes a folder, whose name does not end in {target.suffix!r}"
        )
    if suffixes and target.suffix not in suffixes:
        names = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UserError(
            f"{target}: {to!r} writes a file whose name ends in {names} (--to asks for another)"
        )
