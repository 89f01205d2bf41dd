"""What `convert` writes: a function for each format of a target."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import (
    dit_folder,
    files,
    latent_statistics,
    rae_files,
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
)
from repae_jax.interop.formats import TARGETS
from repae_jax.interop.vae_families import family_of
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.models.tokenizers.rae import RAE

VAES = (DIFFUSERS, "vae", "vae-tensors")
FUSE_DIT, DIT_PIPELINE = "fuse-dit", "dit-pipeline"  # as targets
FLOAT32 = "float32"
BARE = (  # a backbone alone
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
      seed, multiplier, dtype, class_names: see `convert`.
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
    class_names: Sequence[str] | None = None


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
    if found.format in BARE:
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
    own = family_of(job.vae.module, job.vae.config.get("_class_name")).code
    with_code = "; it has a class of its own, for AutoModel with trust_remote_code=True"
    return TARGETS["diffusers"] + (with_code if own else "")


def _to_transformer(job: Job) -> str:
    from repae_jax.runs import dit_conversion

    dit_folder.write_dit(job.target, dit_conversion.dit_of(job.found, job.step))
    return f"{TARGETS['transformer']}; {dit_folder.FREQUENCIES}"


def _to_pipeline(job: Job) -> str:
    from repae_jax.interop.pipeline_folder import write_pipeline
    from repae_jax.runs.pipeline_conversion import generator_of

    made = generator_of(job.found.path, job.step)
    if job.class_names is not None:
        made = dataclasses.replace(made, class_names=job.class_names)
    write_pipeline(job.target, made, job.dtype)
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
    of_rae, statistics = isinstance(vae.module, RAE), vae_files.ldm_statistics(job.target, vae)
    if of_rae and statistics is not None:
        statistics = rae_files.statistics_path(job.target, vae.module)
    beside = [statistics] if statistics is not None else []
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


def vae_in(found, step):
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


WRITERS = {
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
