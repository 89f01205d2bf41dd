"""The `convert` command: from any format that is known here to any that can hold the same."""

import dataclasses
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from repae_jax.errors import UserError
from repae_jax.interop import files, pretrained
from repae_jax.interop.recognise import CHECKPOINTS, DIFFUSERS, FORMATS, RUN, Found, find
from repae_jax.interop.targets import TARGETS

_VAES = (DIFFUSERS, "vae", "vae-tensors")


# (the configuration that the source tells) -> the one to use
MakeConfig = Callable[[Callable[[], ConfigDict]], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Job:
    """One conversion: `target` as on the command line, the rest as `convert` has it."""

    found: Found
    target: pathlib.Path
    make_config: MakeConfig
    progress: bool


def convert(
    source: str,
    target: pathlib.Path,
    to: str | None,
    make_config: MakeConfig,
    *,
    progress: bool = True,
) -> str:
    """Convert `source` to `target`; returns a line that says what was written.

    Args:
      source: a file, a folder, or a repository on the hub.
      target: a file or folder that does not exist.
      to: a key of `TARGETS`, or None to tell by the target's name.
      make_config: for a run: takes a function that derives the configuration from the source,
        and gives the one to use.
      progress: show a bar.

    Raises:
      UserError: the source is unknown or damaged, cannot become what is asked for, or the target
        exists.
    """
    found = find(source)
    to = to or _told_by_name(found, target)
    if to not in _possible(found):
        choices = ", ".join(_possible(found))
        raise UserError(
            f"{found.path} ({FORMATS[found.format]}) does not become {to!r}; it can: {choices}"
        )
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} exists already: choose another name, or remove it")
    _check_suffix(target, to)
    _WRITERS[to](Job(found, target, make_config, progress))
    return f"{target}: {TARGETS[to]}"


def _possible(found: Found) -> tuple[str, ...]:
    if found.format == RUN:
        return ("checkpoint", "diffusers", "vae")
    if found.format in CHECKPOINTS:
        return ("run", "diffusers", "vae") if "vae" in found.content else ("run",)
    if found.format in _VAES:
        return ("diffusers", "vae")
    return ("run", "file") if found.format == "sit" else ("file",)


def _told_by_name(found, target):
    """What a target's name asks for: a file has a suffix, a folder has none."""
    possible = _possible(found)
    if not target.suffix:
        return next((to for to in ("run", "diffusers") if to in possible), "diffusers")
    return next((to for to in ("checkpoint", "vae", "file") if to in possible), "checkpoint")


def _check_suffix(target, to):
    allowed = {
        "run": ("",),
        "diffusers": ("",),
        "checkpoint": (".pt", ".pth"),
        "vae": (".pt", ".pth", ".safetensors"),
        "file": (".pt", ".pth", ".safetensors"),
    }[to]
    if target.suffix not in allowed:
        names = " or ".join(suffix or "no suffix" for suffix in allowed)
        raise UserError(f"{target}: {TARGETS[to]} is called with {names}")


def _to_run(job: Job) -> None:
    from repae_jax.training.exchange import bare_checkpoint, config_of, import_run

    content, source = job.found.content, str(job.found.path)
    if job.found.format == "sit":
        content = bare_checkpoint(content)
    config = job.make_config(lambda: config_of(content, source=source))
    import_run(content, job.target, config, source=source, progress=job.progress)


def _to_checkpoint(job: Job) -> None:
    from repae_jax.training.exchange import export_run

    export_run(job.found.path, job.target, progress=job.progress)


def _to_diffusers(job: Job) -> None:
    pretrained.write_diffusers(job.target, _vae(job.found))


def _to_vae(job: Job) -> None:
    pretrained.write_ldm(job.target, _vae(job.found))
    if job.found.format == RUN:
        from repae_jax.training.exchange import run_discriminator

        tensors = run_discriminator(job.found.path)
    else:
        tensors = job.found.content.get("discriminator")
    if tensors is not None:
        name = f"{job.target.stem}-discriminator-ckpt.pt"
        files.write_torch(job.target.with_name(name), tensors)


def _to_file(job: Job) -> None:
    files.write_flat(job.target, _flat(job.found))


def _vae(found):
    if found.format == RUN:
        from repae_jax.training.exchange import run_vae

        return run_vae(found.path)
    return pretrained.read_vae(found.path)


def _flat(found):
    """The tensors in one flat dict, those of nested entries under joined names."""
    nested = [key for key, value in found.content.items() if hasattr(value, "items")]
    if len(nested) == 1:
        return dict(found.content[nested[0]])
    return {name: array for name, array in found.content.items() if hasattr(array, "dtype")}


_WRITERS = {
    "run": _to_run,
    "checkpoint": _to_checkpoint,
    "diffusers": _to_diffusers,
    "vae": _to_vae,
    "file": _to_file,
}
