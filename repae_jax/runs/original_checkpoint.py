"""Import of the originals' training checkpoints as runs, and export of runs as such checkpoints."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.config.defaults import NETWORKS
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop import checkpoint_parts, files, latent_statistics, original
from repae_jax.interop.adamw import parameter_groups
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.original import OPTIMIZERS, WEIGHTS, Part
from repae_jax.interop.sit import unify_names
from repae_jax.interop.tables import require_finite
from repae_jax.interop.vae_files import StoredVAE
from repae_jax.models.backbones.sit import SiT
from repae_jax.models.conditioning.class_label import ClassLabel
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.autoencoder_kl import AutoencoderKL
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, build_optimizers, fresh_state
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.foreign_backbones import FOREIGN, foreign_of, scaled
from repae_jax.runs.open_run import load_state
from repae_jax.runs.original_args import args_from_config, args_from_weights, config_from_args
from repae_jax.runs.provenance import (
    Provenance,
    blank_provenance,
    read_provenance,
    write_provenance,
)
from repae_jax.runs.state import TrainState
from repae_jax.runs.weights import read_vae, statistics_of
from repae_jax.utils.atomic_files import replacing, write_atomically


def config_of(content: Mapping[str, Any], *, source: str) -> ConfigDict:
    """Make the configuration that continues a checkpoint; see `config_from_args`.

    Values without an argument are inferred from the weights, or take the published value.

    Args:
      content: the checkpoint, as `files.read_stored` returns it.
      source: the checkpoint's name, for errors.

    Raises:
      UserError: it is no training checkpoint, or has no published architecture.
    """
    content = _checkpoint(content, source)
    if foreign := FOREIGN.get(checkpoint_parts.kind_of(content)):
        return foreign.config_of(content, source=source)
    args = arguments_of(content, source)
    if "model" not in args:
        args = args_from_weights(content["ema"], source=source) | args
    return config_from_args(args, checkpoint_parts.kind_of(content), source=source)


def bare_checkpoint(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Wrap a backbone's bare state dict, such as REPA's published one, as a step-0 checkpoint."""
    return {"model": tensors, "ema": tensors, "steps": 0}


def import_run(
    content: Mapping[str, Any],
    workdir: pathlib.Path,
    config: ConfigDict,
    *,
    source: str,
    progress: bool = True,
) -> TrainState:
    """Turn one of the originals' checkpoints into a work directory; returns the state.

    The run continues where the checkpoint ends: it takes over parameters, moving averages,
    statistics, optimizer moments and counters, and its data order continues after `steps` batches.
    The checkpoint lacks teachers and LPIPS; they are read when the training continues.

    Args:
      content: the checkpoint, as `files.read_stored` returns it.
      workdir: a new or empty folder.
      config: a configuration with the checkpoint's networks.
      source: the checkpoint's name, for errors.
      progress: show a bar.

    Raises:
      UserError: the checkpoint is damaged or its model differs from the configuration's, or
        `workdir` has content.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir} exists already: choose a new folder")
    validate(config)
    state, origin = _import(content, config, build_models(config), source, progress)
    with replacing(workdir) as temporary:
        temporary.mkdir()
        work_directory.claim(temporary, config)
        write_provenance(temporary, origin)
        checkpoints = Checkpoints(temporary)
        step = int(state.step)
        checkpoints.save(step, state, {"global_next_index": step * config.batch_size})
        if progress:
            print("writing ...", flush=True)
        checkpoints.close()
    return state


def run_vae(workdir: pathlib.Path, step: int | None = None) -> StoredVAE:
    """The VAE of a run's newest checkpoint, with the final statistics of its LatentNorm.

    Args:
      workdir: the run's folder.
      step: read only the checkpoint at this step.

    Raises:
      UserError: there is no run, or its checkpoint is damaged.
    """
    _, models, state = _open_on_host(workdir, step, optimizers=False)
    channels = models.tokenizer.latent_channels
    statistics = statistics_of(state.ema, channels, source=str(workdir))
    return StoredVAE(
        models.tokenizer,
        state.params["tokenizer"],
        {},
        statistics,
        constants=state.frozen.get("tokenizer", {}),
    )


def run_discriminator(
    workdir: pathlib.Path, step: int | None = None
) -> dict[str, np.ndarray] | None:
    """The discriminator of a run under the original's names; None if the run trains none.

    Args:
      workdir: the run's folder.
      step: read only the checkpoint at this step.

    Raises:
      UserError: there is no run, or its checkpoint is damaged.
    """
    config, models, state = _open_on_host(workdir, step, optimizers=False)
    if models.discriminator is None:
        return None
    part = original.discriminator_part(models.discriminator)
    origin = read_provenance(workdir) or blank_provenance("repae")
    counters = _counters(origin, "discriminator", part, int(state.step), config)
    return original.export_part(_discriminator_variables(state), part, counters)


def export_run(
    workdir: pathlib.Path, path: pathlib.Path, *, step: int | None = None, progress: bool = True
) -> None:
    """Write the newest checkpoint of a run in the original's format; a SiT's gets an args.json.

    Args:
      workdir: the run's folder.
      path: the file to write.
      step: export only the checkpoint at this step.
      progress: show a bar.

    Raises:
      UserError: there is no run, no original has its backbone or its trained VAE,
        or the file cannot be written.
    """
    config, models, state = _open_on_host(workdir, step, optimizers=True)
    parts = _parts(models, config, str(workdir), statistics=True)
    origin = read_provenance(workdir) or _new_provenance(config, models, parts)
    if origin.kind == "repa":
        parts["backbone"] = original.sit_part(models.backbone, statistics=False)
    content = _export(state, parts, origin, config)
    for key in ("model", "ema", *OPTIMIZERS.keys() & content.keys()):
        require_finite(content[key], path)
    del state  # so that `_make_contiguous` frees each array once its contiguous copy exists
    _make_contiguous(content, progress)
    if foreign := FOREIGN.get(origin.kind):
        names = content["model"].items()
        content["model"] = {foreign.prefix + name: array for name, array in names}
        settings = dict(origin.args)
        if foreign.settings == "args":
            settings = argparse.Namespace(**settings)
        files.write_torch(path, {**content, foreign.settings: settings})
        return
    files.write_torch(path, content | {"args": argparse.Namespace(**origin.args)})
    # the original keeps args.json beside the folder checkpoints/
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    text = json.dumps(origin.args, indent=4) + "\n"
    write_atomically(folder / "args.json", text.encode())


def _open_on_host(workdir, step, *, optimizers):
    """(configuration, models, state as numpy arrays) of a checkpoint; step None: the newest."""
    config = work_directory.load_config(workdir)
    models = build_models(config)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    state = load_state(workdir, config, models, host, optimizers=optimizers, step=step)
    return config, models, jax.tree.map(np.asarray, state)


def _import(content, config, models, source, progress):
    from tqdm import tqdm

    content = _checkpoint(content, source, dit=foreign_of(models.backbone) == "dit")
    kind = checkpoint_parts.kind_of(content)
    foreign = FOREIGN.get(kind)
    _check_trained(config, kind, source)
    if foreign and config.teachers:
        raise UserError(
            f"{source}: holds no projection heads, but config.teachers has "
            f"{', '.join(config.teachers)}: choose the recipe vanilla"
        )
    parts = _parts(models, config, source, statistics=kind in ("repae", "ldm"))
    steps = int(content["steps"])
    keys = {network: key for network, key in (WEIGHTS | {"ema": "ema"}).items() if key in content}
    trained = {network: part for network, part in parts.items() if OPTIMIZERS[network] in content}
    loaded, moments, slots, counters = {}, {}, {}, {}
    groups = {}
    if len(trained) < len(parts):
        groups = dict(_new_provenance(config, models, parts).groups)
    with tqdm(total=len(keys) + len(trained), unit="part", disable=not progress) as bar:
        for network, key in keys.items():
            bar.set_description(key)
            part = parts["backbone" if network == "ema" else network]
            tensors = content[key]
            if isinstance(models.backbone, SiT) and part is parts["backbone"]:
                tensors = unify_names(tensors, config.backbone.encoder_depth)
            loaded[network] = original.import_part(tensors, part, source=f"{source}: {key}")
            _check_statistics(loaded[network], f"{source}: {key}")
            found = [name for name in part.counters if name in tensors]
            counters |= {f"{key}/{name}": tensors[name] for name in found}
            bar.update()
        for network, part in trained.items():
            key = OPTIMIZERS[network]
            bar.set_description(key)
            moments[network] = original.import_moments(
                content[key], part, source=f"{source}: {key}"
            )
            slots[key] = _frozen_slots(content[key], part)
            groups[key] = content[key]["param_groups"]
            bar.update()
    state = _assemble(config, models, steps, loaded, moments, foreign, content, source)
    if foreign:
        args = foreign.settings_of(content, source) or foreign.make_settings(config)
    else:
        args = arguments_of(content, source)
        if "model" not in args:
            args = args_from_config(config) | args
    return state, Provenance(kind, steps, args, groups, counters, slots)


def _checkpoint(content, source, *, dit=False):
    parts = checkpoint_parts.parts_of(content, source=source, dit=dit)
    if parts is None:
        raise UserError(f"{source}: not a training checkpoint: it holds no backbone known here")
    return parts


def _check_statistics(variables, source):
    if "mean" in variables.get("batch_stats", {}):  # latent statistics, which divide latents
        mean, var = (variables["batch_stats"][name] for name in ("mean", "var"))
        keys = ("bn.running_mean", "bn.running_var")
        latent_statistics.as_statistics(mean, var, source=source, keys=keys)


def _assemble(config, models, steps, loaded, moments, foreign, content, source):
    """Assemble the TrainState from the loaded networks; its arrays remain views of the file."""
    constants, statistics = {}, None
    if "tokenizer" not in loaded:
        constants, statistics = read_vae(config, models.tokenizer)
        loaded["tokenizer"] = constants.pop("params")
    channels = models.tokenizer.latent_channels
    fixed = scaled(channels)
    if foreign:
        fixed = foreign.statistics(content, statistics, channels, source)
    fixed = {name: array.astype(np.float32) for name, array in fixed.items()}
    params = {"tokenizer": loaded["tokenizer"], "backbone": loaded["backbone"]["params"]}
    batch_stats = {"latent_norm": loaded["backbone"].get("batch_stats", fixed)}
    if models.discriminator is not None and "discriminator" not in loaded:
        loaded["discriminator"] = _fresh_discriminator(config, models)
    if "discriminator" in loaded:
        params["discriminator"] = loaded["discriminator"]["params"]
        batch_stats["discriminator"] = loaded["discriminator"]["batch_stats"]
        if config.objective.lecam_weight:  # the original does not save LeCam's averages
            batch_stats["lecam"] = {"real": np.float32(0), "fake": np.float32(0)}
    opt_state = {}
    for network, optimizer in build_optimizers(config).items():
        blank = jax.eval_shape(optimizer.init, params[network])
        if network in moments:
            count, first, second = moments[network]
        else:
            count, first, second = 0, *[jax.tree.map(np.zeros_like, params[network])] * 2
        opt_state[network] = optax.tree_utils.tree_set(
            blank, count=np.asarray(count, np.int32), mu=first, nu=second
        )
    ema = loaded["ema"]
    return TrainState(
        step=np.asarray(steps, np.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema={
            "params": ema["params"],
            "constants": ema["constants"],
            "latent_norm": ema.get("batch_stats", fixed),
        },
        frozen={
            "backbone": {"constants": loaded["backbone"]["constants"]},
            **({"tokenizer": constants} if constants else {}),
        },
    )


def _fresh_discriminator(config, models):
    """The discriminator's variables at step 0 of a run of this configuration."""

    def make():
        state = fresh_state(config, models, jax.random.key(config.seed))
        return _discriminator_variables(state)

    return jax.tree.map(np.asarray, jax.jit(make)())


def _export(
    state: TrainState, parts: Mapping[str, Part], origin: Provenance, config
) -> dict[str, Any]:
    """The checkpoint as a nested dict; its arrays are views of the state's."""
    steps = int(state.step)
    statistics, averaged = {}, {}
    if origin.kind in ("repae", "ldm"):
        statistics = {"batch_stats": state.batch_stats["latent_norm"]}
        averaged = {"batch_stats": state.ema["latent_norm"]}
    variables = {
        "model": {"params": state.params["backbone"], **state.frozen["backbone"], **statistics},
        "ema": {
            "params": state.ema["params"], "constants": state.ema["constants"], **averaged
        },
        "vae": state.params["tokenizer"],
    }  # fmt: skip
    if "discriminator" in parts:
        variables["discriminator"] = _discriminator_variables(state)
    if origin.kind in FOREIGN:  # whose code has no projection heads
        for key in ("model", "ema"):
            variables[key] = {**variables[key], "params": _without_heads(variables[key]["params"])}
    content = {}
    keys = {
        "model": "backbone",
        "ema": "backbone",
        "vae": "tokenizer",
        "discriminator": "discriminator",
    }
    for key, network in keys.items():
        if network in parts:
            counters = _counters(origin, key, parts[network], steps, config)
            content[key] = original.export_part(variables[key], parts[network], counters)
    for network, part in parts.items():
        key, adam = OPTIMIZERS[network], state.opt_state[network]
        count = optax.tree_utils.tree_get_all_with_path(adam, "count")[0][1]
        first, second = (optax.tree_utils.tree_get(adam, name) for name in ("mu", "nu"))
        if origin.kind in FOREIGN:
            first, second = _without_heads(first), _without_heads(second)
        content[key] = original.export_moments(
            int(count), first, second, part, origin.groups[key], origin.slots.get(key, {})
        )
    return content if origin.kind in FOREIGN else content | {"steps": steps}


def _without_heads(params):
    return {name: part for name, part in params.items() if not name.startswith("projectors_")}


def _discriminator_variables(state):
    name = "discriminator"
    return {"params": state.params[name], "batch_stats": state.batch_stats[name]}


def _counters(origin, key, part, steps, config):
    """PyTorch's counters of BatchNorm updates: the imported ones plus our steps since."""
    objective, since = config.objective, steps - origin.steps
    if key == "discriminator":
        updates = 2 * since
        if objective.adversarial_weight * objective.discriminator_factor:
            updates += max(0, steps - max(origin.steps, objective.discriminator_start))
    else:
        updates = since if objective.latent_norm == "batch" else 0
    zero = np.zeros((), np.int64)
    return {
        name: np.asarray(origin.counters.get(f"{key}/{name}", zero) + updates, np.int64)
        for name in part.counters
    }


def _parts(models: Models, config: ConfigDict, source: str, *, statistics: bool) -> dict[str, Part]:
    """The trained networks as parts of the original's checkpoint, in its order."""
    if models.backbone is None:
        raise UserError(
            f"{source}: trains no backbone, so it cannot become an original's checkpoint"
        )
    backbone, conditioner = models.backbone, models.backbone.conditioner
    kind = foreign_of(backbone)
    if (kind is None and type(backbone) is not SiT) or not isinstance(conditioner, ClassLabel):
        known = ", ".join(["SiT", *(row.network.__name__ for row in FOREIGN.values())])
        raise UserError(
            f"{source}: an original's checkpoint holds one of {known} with class labels, this run "
            f"a {type(backbone).__name__} with a {type(conditioner).__name__}: convert its "
            "tokenizer alone (--to diffusers)"
        )
    if kind:
        parts = {"backbone": FOREIGN[kind].part(backbone)}
    else:
        parts = {"backbone": original.sit_part(backbone, statistics=statistics)}
    if "tokenizer" not in config.train:
        return parts
    if kind:
        raise UserError(
            f"{source}: a checkpoint of {type(backbone).__name__} holds no VAE, but this run "
            "trains one: convert the VAE alone (--to diffusers)"
        )
    if not isinstance(models.tokenizer, AutoencoderKL) or models.discriminator is None:
        raise UserError(
            f"{source}: the original's checkpoint holds an AutoencoderKL and its discriminator, "
            f"this run trains a {type(models.tokenizer).__name__} "
            f"{'without one' if models.discriminator is None else 'and its discriminator'}: "
            "convert a VAE that diffusers supports alone (--to diffusers)"
        )
    parts["tokenizer"] = original.vae_part(models.tokenizer)
    parts["discriminator"] = original.discriminator_part(models.discriminator)
    return parts


def _check_trained(config, kind, source):
    expected = NETWORKS if kind == "repae" else ("backbone",)
    if set(config.train) != set(expected):
        raise UserError(
            f"{source}: a checkpoint that trains {', '.join(expected)}, but config.train is "
            f"{tuple(config.train)}: choose the recipe {'repae' if kind == 'repae' else 'repa'}"
        )


def _frozen_slots(state_dict, part):
    """The optimizer state of parameters that are frozen here: the position table."""
    return {
        number: dict(entry)
        for number, entry in state_dict["state"].items()
        if part.slots[number] not in part.trained
    }


def _new_provenance(config, models, parts):
    """The provenance for the export of a run that was not imported."""
    groups = {}
    for network, part in parts.items():
        options = config.optimizer[network]
        groups[OPTIMIZERS[network]] = parameter_groups(
            len(part.slots),
            lr=options.learning_rate,
            betas=(options.b1, options.b2),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
    if kind := foreign_of(models.backbone):
        args = FOREIGN[kind].make_settings(config)
        return dataclasses.replace(blank_provenance(kind), args=args, groups=groups)
    blank = blank_provenance("repae" if "tokenizer" in parts else "ldm")
    return dataclasses.replace(blank, args=args_from_config(config), groups=groups)


def _make_contiguous(content: dict[str, Any], progress: bool) -> None:
    """Make every array contiguous in place, one by one, so that each source is freed at once."""
    from tqdm import tqdm

    leaves = list(_leaves(content))
    for node, key in tqdm(leaves, desc="tensors", unit="tensor", disable=not progress):
        node[key] = np.asarray(node[key], order="C")


def _leaves(node: dict[str, Any]) -> Iterator[tuple[dict, Any]]:
    """(dict, key) of every array in nested dicts."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif isinstance(value, np.ndarray):
            yield node, key
