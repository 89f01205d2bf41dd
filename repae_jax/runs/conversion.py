"""The `convert` command: conversion from any known format to any format with the same content."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import (
    checkpoint_parts,
    dit_folder,
    files,
    latent_statistics,
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
from repae_jax.interop.formats import FORMATS, TARGETS
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.rae import RAE
from repae_jax.utils.lock import writing

_VAES = (DIFFUSERS, "vae", "vae-tensors")
FUSE_DIT, DIT_PIPELINE = "fuse-dit", "dit-pipeline"  # as targets
FLOAT32 = "float32"
_BARE = (  # a backbone alone
    "sit", "lightningdit-tensors", "ddt-tensors", "jit-tensors", "fuse-dit-tensors",
    "mmdit-tensors",
)  # fmt: skip


# (function that derives the configuration from the source) -> the configuration to use
MakeConfig = Callable[[Callable[[], ConfigDict]], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Job:
    """One conversion.

    Attributes:
      found: the source and its format.
      target: the file or folder to write.
      make_config, progress: see `convert`.
      step: for a run, the step of the checkpoint; None: the newest.
      vae: the source's VAE, if the conversion writes one.
      seed, multiplier, dtype: see `convert`.
    """

    found: Detected
    target: pathlib.Path
    make_config: MakeConfig
    progress: bool
    step: int | None
    vae: StoredVAE | None = None
    seed: int = 0
    multiplier: float = 1.0
    dtype: str = FLOAT32


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
        job = Job(found, target, make_config, progress, step, None, seed, multiplier, dtype)
        if to in ("diffusers", "vae", DIT_PIPELINE):
            job = dataclasses.replace(job, vae=_vae(found, step))
        lines = [f"{target}: {_WRITERS[to](job)}"]
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
    if found.format in _VAES:
        return ("diffusers", "vae")
    return ("run", "file") if found.format in _BARE else ("file",)


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


def checkpoint_in(
    found: Detected, make_config: MakeConfig
) -> tuple[Mapping[str, Any], ConfigDict] | None:
    """The checkpoint for `import_run` that a source holds, and the configuration that continues it.

    None for a source that is no checkpoint and no backbone.

    Args:
      found: the source.
      make_config: see `convert`.

    Raises:
      UserError: the source is damaged, or its model is of no published size.
    """
    from repae_jax.runs import dit_conversion
    from repae_jax.runs.original_import import bare_checkpoint, config_of

    content, source = found.content, str(found.path)
    if found.format == DIT_FOLDER:
        dit = dit_folder.read_dit(found.path)
        config = make_config(lambda: dit_conversion.config_of(dit, found.path))
        dit_conversion.check_same(dit, config)
        return bare_checkpoint(dit.tensors), config
    if found.format in _BARE:
        content = bare_checkpoint(content)
    elif found.format not in CHECKPOINTS:
        return None
    return content, make_config(lambda: config_of(content, source=source))


def _to_run(job: Job) -> str:
    from repae_jax.runs.original_import import import_run
    from repae_jax.runs.pipeline_conversion import import_pipeline

    if job.found.format == PIPELINE:
        import_pipeline(job.found.path, job.target, job.make_config)
        return TARGETS["run"]
    content, config = checkpoint_in(job.found, job.make_config)
    source = str(job.found.path)
    import_run(content, job.target, config, source=source, progress=job.progress)
    return TARGETS["run"]


def _to_checkpoint(job: Job) -> str:
    from repae_jax.runs.original_export import export_run

    export_run(job.found.path, job.target, step=job.step, progress=job.progress)
    return TARGETS["checkpoint"]


def _to_fuse_dit(job: Job) -> str:
    from repae_jax.runs.original_export import export_run
    from repae_jax.runs.workdir import load_config

    source = job.found.path
    export_run(source, job.target, folder=True, step=job.step, progress=job.progress)
    tuned = "tokenizer" in load_config(source).train
    return TARGETS[FUSE_DIT] + ("; its VAE is written by --to diffusers" if tuned else "")


def _to_diffusers(job: Job) -> str:
    vae_files.write_diffusers(job.target, job.vae)
    return TARGETS["diffusers"]


def _to_transformer(job: Job) -> str:
    from repae_jax.runs import dit_conversion

    dit_folder.write_dit(job.target, dit_conversion.dit_of(job.found, job.step))
    return f"{TARGETS['transformer']}; {dit_folder.FREQUENCIES}"


def _to_pipeline(job: Job) -> str:
    from repae_jax.interop.pipeline_folder import write_pipeline
    from repae_jax.runs.pipeline_conversion import generator_of

    write_pipeline(job.target, generator_of(job.found.path, job.step), job.dtype)
    return TARGETS[PIPELINE]


def _to_dit_pipeline(job: Job) -> str:
    from repae_jax.runs import dit_conversion

    dit = dit_conversion.dit_of(job.found, job.step)
    dit_folder.write_pipeline(job.target, dit, job.vae)
    null = dit.dimensions["num_classes"] - 1
    apart = f"; its null class is {null}, DiTPipeline guides by 1000: use guidance_scale=1"
    return f"{TARGETS[DIT_PIPELINE]}; {dit_folder.FREQUENCIES}{apart if null != 1000 else ''}"


def _to_vae(job: Job) -> str:
    vae, discriminator = job.vae, _discriminator(job.found, job.step)
    _check_groups(vae.module, job.target)
    of_rae, statistics = isinstance(vae.module, RAE), latent_statistics.beside(job.target)
    if of_rae:
        statistics = rae_files.statistics_path(job.target, vae.module)
    beside = [statistics] if vae.statistics is not None else []
    if discriminator is not None:
        beside.append(job.target.with_name(f"{job.target.stem}-discriminator-ckpt.pt"))
    own = latent_statistics.beside(job.found.path).resolve()  # it would be written unchanged
    for path in beside:
        if path.exists() and path.resolve() != own:
            raise UserError(f"{path} exists already: choose another name than {job.target}")
    if of_rae:
        rae_files.write_decoder(job.target, vae.module, vae.variables, vae.statistics)
    else:
        vae_files.write_ldm(job.target, vae)
    if discriminator is not None:
        files.write_torch(beside[-1], discriminator)
    names = " and ".join(path.name for path in beside)
    what = "RAE's decoder under its authors' names" if of_rae else "the VAE under LDM's names"
    return what + (f", beside it {names}" if names else "")


def _to_latents(job: Job) -> str:
    from repae_jax.runs.latent_conversion import import_latents

    def no_config():
        raise UserError(
            f"{job.found.path}: nothing in cached latents names the VAE that made them: give a "
            "configuration with it, such as --config imagenet256_lightningdit_vavae"
        )

    manifest = import_latents(
        job.found.path,
        job.target,
        job.make_config(no_config),
        multiplier=job.multiplier,
        progress=job.progress,
    )
    return f"{manifest['count']} latents, train with --config.data.source=latents"


def _to_latent_shards(job: Job) -> str:
    from repae_jax.runs.latent_conversion import export_latents

    count = export_latents(job.found.path, job.target, seed=job.seed, progress=job.progress)
    return f"{count} latents and their mirror images, a sample of each"


def _to_file(job: Job) -> str:
    source, tensors = job.found.path, job.found.content
    if job.found.format == DIT_FOLDER:
        files.write_flat(job.target, dit_folder.read_dit(source).tensors, {"format": "pt"})
        return "the DiT under its authors' names"
    in_safetensors = source.suffix == ".safetensors"
    # transformers reads only files whose metadata name the framework
    metadata = files.read_metadata(source) if in_safetensors else {"format": "pt"}
    files.write_flat(job.target, tensors, metadata)
    return f"{len(tensors)} tensors, the same as in {source}"


def _vae(found, step):
    if found.format == RUN:
        from repae_jax.runs.open_run import run_vae

        return run_vae(found.path, step)
    return vae_files.read_vae(found.path)


def _discriminator(found, step):
    """The discriminator's tensors under the original's names; None without a discriminator."""
    if found.format == RUN:
        from repae_jax.runs.original_export import run_discriminator

        return run_discriminator(found.path, step)
    if found.discriminator is not None:
        return found.discriminator.tensors
    return found.content.get("discriminator")


def _check_groups(module, target):
    """Raise UserError for a number of groups that the target's format cannot store.

    Only a .safetensors file can store another number than the published 32.
    """
    usual = AutoencoderKL.groups
    if target.suffix != ".safetensors" and getattr(module, "groups", usual) != usual:
        raise UserError(
            f"{target}: this VAE's norms have {module.groups} groups and not the usual {usual}, "
            "which such a file cannot store: write .safetensors, or a diffusers folder"
        )


_WRITERS = {
    "run": _to_run,
    "checkpoint": _to_checkpoint,
    FUSE_DIT: _to_fuse_dit,
    "diffusers": _to_diffusers,
    "transformer": _to_transformer,
    PIPELINE: _to_pipeline,
    DIT_PIPELINE: _to_dit_pipeline,
    "vae": _to_vae,
    LATENTS: _to_latents,
    LATENT_SHARDS: _to_latent_shards,
    "file": _to_file,
}
