"""Checks for the files and packages that a configuration needs, before anything is loaded."""

import importlib.util
import pathlib
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from repae_jax.config.measured import measuring_teacher
from repae_jax.config.missing import describe, describe_hub
from repae_jax.data import latents
from repae_jax.data.caption_states import missing_captions
from repae_jax.data.packed import packed_folder
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError, not_installed
from repae_jax.interop import hub
from repae_jax.interop.downloads import HUB, WEIGHTS, weights_named
from repae_jax.interop.files import TORCH_SUFFIXES
from repae_jax.models.text_encoders.families import NONE as NO_TEXT

_READ_WITH = {  # source of data -> package that reads it
    "digits": "sklearn",
    "hdf5": "h5py",
    "latents": "array_record",
    "packed": "array_record",
    "tfds": "tensorflow_datasets",
}


def check_files(config: ConfigDict, *, loads: bool = True) -> None:
    """Raise UserError that lists every missing file and package the configuration needs.

    Each is listed with what it is, where it is published or how it is made, and the key that sets
    it.

    Args:
      config: the configuration.
      loads: whether weights will be read, so that those on the hub must be within reach. A run that
        resumes reads none.
    """
    missing = [*missing_files(config), *(missing_on_hub(config) if loads else ())]
    check_nothing_missing([*missing, *missing_for_loading(config)] if missing else [])


def check_nothing_missing(missing: Iterable[str]) -> None:
    """Raise one UserError that lists all of `missing`, each a clause; return if it is empty."""
    different = list(dict.fromkeys(missing))
    if len(different) == 1:
        raise UserError(different[0])
    if different:
        said = "; ".join(f"({number}) {what}" for number, what in enumerate(different, 1))
        raise UserError(f"{len(different)} things are missing: {said}")


def missing_files(config: ConfigDict) -> list[str]:
    """List the missing files and packages, each as a clause that says how to get it.

    Files on the hub are not among them: see `missing_on_hub`.
    """
    missing = list(_files(config))
    module = _READ_WITH.get(config.data.source)
    if module and not _is_installed(module):
        missing.append(f"{not_installed(module)} (config.data.source is {config.data.source!r})")
    if config.run.wandb and not _is_installed("wandb"):
        missing.append(
            f"{not_installed('wandb')} (config.run.wandb is {config.run.wandb!r}; "
            "--config.run.wandb= logs to TensorBoard alone)"
        )
    try:
        missing += _cache(config)
    except UserError as error:
        missing.append(str(error))
    return missing


def missing_on_hub(config: ConfigDict) -> list[str]:
    """List the weights on the hub (hf://...) that are neither here nor given by it, as clauses."""
    missing, named = [], {k: str(v) for k, v in _named(config).items()}
    for key, name in named.items():
        if name.startswith(hub.PREFIX) and (reason := hub.obstacle(name)):
            missing.append(
                f"config.{key} is {name!r}, {describe_hub(name, reason)} "
                f"(--config.{key}=PATH sets it): {describe(config, key)}"
            )
    encoder = _encoder_beside(config)
    if encoder and (reason := hub.obstacle(encoder)):
        found = weights_named(encoder)
        note = f"; {found.note}" if found and found.note else ""
        missing.append(
            f"config.tokenizer.weights, {config.tokenizer.weights}, needs its frozen encoder "
            f"{encoder}, {describe_hub(encoder, reason)} (or put it beside as encoder.safetensors; "
            f"--config.tokenizer.weights=PATH sets the folder): {found.what if found else 'it'}, "
            f"published at {HUB}{encoder.removeprefix(hub.PREFIX)}{note}"
        )
    return missing


def _encoder_beside(config):
    """The hub's name of the encoder that the tokenizer's file needs and lacks, if it is a RAE's."""
    if config.tokenizer.family != "rae" or not config.tokenizer.weights:
        return None
    from repae_jax.config.modules import build_tokenizer
    from repae_jax.interop.rae_files import encoder_beside

    return encoder_beside(str(config.tokenizer.weights), build_tokenizer(config))


def missing_for_loading(config: ConfigDict) -> list[str]:
    """List, each as a clause, what opening the data and reading the weights would find missing.

    It completes an error that already lists other missing files. Runs without such an error skip
    it: opening the data takes a while, and a run that resumes reads no weights.
    """
    missing = []
    named = {key: str(path) for key, path in _named(config).items()}
    by_torch = [f"config.{key}" for key, path in named.items() if path.endswith(TORCH_SUFFIXES)]
    if by_torch and not _is_installed("torch"):
        missing.append(f"{not_installed('torch')} (to read {', '.join(by_torch)})")
    data, measured = config.data, config.evaluation
    if (data.path and not _exists(data.path)) or not _is_installed(_READ_WITH.get(data.source)):
        return missing
    try:
        open_source(data, "train", any_classes=True)
        if measured.every and measured.cknna_images:
            open_source(data, "heldout", any_classes=True)
    except UserError as error:
        missing.append(str(error))
    return missing


def _is_installed(module):
    return not module or importlib.util.find_spec(module) is not None


def missing_paths(named: dict[str, object]) -> list[str]:
    """List the files and folders that do not exist, each as a clause.

    Args:
      named: configuration key or option -> path; "" is skipped.
    """
    return [
        f"{key} is {str(path)!r}, which does not exist"
        for key, path in named.items()
        if path and not _exists(str(path))
    ]


def missing_vaes(*names: str) -> list[str]:
    """List the VAEs that `PretrainedVAE.from_pretrained` cannot find, each as a clause.

    Names on the Hugging Face hub are downloaded to its cache.
    """
    from repae_jax.interop.vae_files import CONFIG, WEIGHTS

    missing = []
    for name in names:
        try:
            hub.locate(name, (CONFIG, WEIGHTS), bare=True)
        except UserError as error:
            missing.append(str(error))
    return missing


def needs_lpips(config: ConfigDict) -> bool:
    """Whether the loss has a perceptual term."""
    return "tokenizer" in config.train and config.objective.perceptual_weight > 0


def needs_foundation(config: ConfigDict) -> bool:
    """Whether the tokenizer's loss has VF loss."""
    return "tokenizer" in config.train and config.objective.vf_weight > 0


def needs_teachers(config: ConfigDict) -> bool:
    """Whether the run reads the teachers: the backbone aligns with them, or VF loss the latents."""
    return "backbone" in config.train or needs_foundation(config)


def needs_text_encoder(config: ConfigDict) -> bool:
    """Whether the run reads a text encoder, whose states the backbone takes."""
    return "backbone" in config.train and config.text_encoder.family != NO_TEXT


def needs_discriminator_encoder(config: ConfigDict) -> bool:
    """Whether the discriminator has a frozen encoder."""
    return "discriminator" in config.train and config.discriminator.family == "dino"


def _exists(path):
    return path.startswith(hub.PREFIX) or pathlib.Path(path).exists()


def _named(config: ConfigDict) -> dict[str, str]:
    """Configuration key -> file or folder that a run reads."""
    named = {
        "tokenizer.weights": config.tokenizer.weights,
        "tokenizer.statistics": config.tokenizer.statistics,
        "data.path": config.data.path,
    }
    if "backbone" in config.train:
        named["text_encoder.weights"] = config.text_encoder.weights
        named["text_encoder.tokenizer"] = config.text_encoder.tokenizer
    if "discriminator" in config.train:
        named["discriminator.weights"] = config.discriminator.weights
    if needs_discriminator_encoder(config):
        named["discriminator.encoder_weights"] = config.discriminator.encoder_weights
    if needs_lpips(config):
        named["lpips.weights"] = config.lpips.weights
        named["lpips.vgg_weights"] = config.lpips.vgg_weights
    measured = config.evaluation
    if measured.every and measured.samples:
        named["evaluation.reference"] = measured.reference
        if measuring_teacher(config) is None:
            named["evaluation.weights"] = measured.weights
    return named | {f"teachers.{k}.weights": entry.weights for k, entry in _teachers(config)}


def _teachers(config):
    """(name, section) of the teachers that the run reads."""
    return config.teachers.items() if needs_teachers(config) else ()


def _files(config: ConfigDict) -> Iterator[str]:
    hints = {
        "evaluation.weights": "; or take a teacher: --config.evaluation.network=teachers.NAME",
    }
    empty = [f"teachers.{name}.weights" for name, entry in _teachers(config) if not entry.weights]
    if needs_discriminator_encoder(config) and not config.discriminator.encoder_weights:
        empty.append("discriminator.encoder_weights")
    if needs_text_encoder(config) and not config.text_encoder.weights:
        empty.append("text_encoder.weights")
    for key in empty:
        yield (
            f"config.{key} is empty: name the file or folder (--config.{key}=PATH): "
            f"{describe(config, key)}"
        )
    for key, path in _named(config).items():
        for what in missing_paths({f"config.{key}": path}):
            yield (
                f"{what} (--config.{key}=PATH sets it): {describe(config, key)}{hints.get(key, '')}"
            )
    if needs_lpips(config) and not (config.lpips.weights and config.lpips.vgg_weights):
        heads, vgg = (WEIGHTS[f"lpips/{file}"] for file in ("vgg.pth", "vgg16-397923af.pth"))
        yield (
            f"config.objective.perceptual_weight is {config.objective.perceptual_weight}, but "
            f"config.lpips.weights ({heads.what}, {heads.published}) or "
            f"config.lpips.vgg_weights ({vgg.what}, {vgg.published}) is empty: name both "
            "(--config.lpips.weights=PATH --config.lpips.vgg_weights=PATH), or set "
            "--config.objective.perceptual_weight=0.0"
        )


def _cache(config: ConfigDict) -> Iterator[str]:
    """List what the teachers and the evaluation need and the cached latents lack."""
    if config.data.source != latents.KIND or not pathlib.Path(config.data.path).exists():
        return
    folder, made = _made(config, "train")
    teachers = list(config.teachers) if "backbone" in config.train else []
    class_token = bool(config.backbone.get("class_token_dim"))
    yield from latents.missing_for_teachers(folder, made, teachers, class_token=class_token)
    if config.text_encoder.family != NO_TEXT:
        yield from missing_captions(folder, made)
    measured = config.evaluation
    if not measured.every:
        return
    if measured.samples and not measured.reference and not made["images"]:
        yield (
            f"config.evaluation.every is {measured.every}, and samples are compared with training "
            f"images, but {folder} keeps none: name images or their statistics as "
            "--config.evaluation.reference=PATH, set --config.evaluation.samples=0, or encode with "
            "--images"
        )
    if not measured.cknna_images:
        return
    out = "set --config.evaluation.cknna_images=0"
    needed = f"config.evaluation.cknna_images is {measured.cknna_images}"
    try:
        folder, made = _made(config, "heldout")
    except UserError as error:
        yield f"{needed}, but {error}; or {out}"
        return
    if not made["images"]:
        yield f"{needed}, but {folder} keeps no images: {out}, or encode with --images"


def _made(config, split):
    """A cache's folder, and the "made" section of its manifest, which says how it was encoded."""
    folder = packed_folder(config.data, split, latents.KIND)
    return folder, latents.read_cache(folder)["made"]
