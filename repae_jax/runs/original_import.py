"""Import of the originals' training checkpoints as runs."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from repae_jax.config.defaults import NETWORKS
from repae_jax.config.validate import validate
from repae_jax.errors import UserError
from repae_jax.interop import checkpoint_parts, latent_statistics, original
from repae_jax.interop.checkpoint_schema import arguments_of
from repae_jax.interop.original import OPTIMIZERS, WEIGHTS
from repae_jax.interop.sit import unify_names
from repae_jax.models.backbones.sit import SiT
from repae_jax.models.networks import Models
from repae_jax.models.tokenizers.base import is_identity, statistics_shape
from repae_jax.runs import workdir as work_directory
from repae_jax.runs.build import build_models, build_optimizers, fresh_state, latent_shape
from repae_jax.runs.checkpoints import Checkpoints
from repae_jax.runs.foreign_backbones import FOREIGN, foreign_of, scaled
from repae_jax.runs.optimizers import MUON
from repae_jax.runs.original_args import args_from_config, args_from_weights, config_from_args
from repae_jax.runs.original_parts import new_provenance, trained_parts
from repae_jax.runs.provenance import Provenance, write_provenance
from repae_jax.runs.state import TrainState, discriminator_variables
from repae_jax.runs.weights import read_vae
from repae_jax.utils.atomic_files import replacing


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
    The checkpoint lacks teachers, LPIPS and the text encoder; they are read when they are needed.

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
    state, origin = import_state(content, config, build_models(config), source, progress)
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


def import_state(
    content: Mapping[str, Any],
    config: ConfigDict,
    models: Models,
    source: str,
    progress: bool,
) -> tuple[TrainState, Provenance]:
    """The state that one of the originals' checkpoints gives a run, and where it comes from.

    Args:
      content: the checkpoint, as `files.read_stored` returns it.
      config: a validated configuration with the checkpoint's networks.
      models: its networks.
      source: the checkpoint's name, for errors.
      progress: show a bar.

    Raises:
      UserError: the checkpoint is damaged, or its model differs from the configuration's.
    """
    from tqdm import tqdm

    content = _checkpoint(content, source, dit=foreign_of(models.backbone) == "dit")
    kind = checkpoint_parts.kind_of(content)
    foreign = FOREIGN.get(kind)
    _check_trained(config, kind, source)
    if foreign and config.teachers and not foreign.heads:
        raise UserError(
            f"{source}: holds no projection heads, but config.teachers has "
            f"{', '.join(config.teachers)}: choose the recipe vanilla"
        )
    parts = trained_parts(models, config, source, statistics=kind in ("repae", "ldm"))
    steps = int(content["steps"])
    keys = {network: key for network, key in (WEIGHTS | {"ema": "ema"}).items() if key in content}
    trained = {network: part for network, part in parts.items() if OPTIMIZERS[network] in content}
    loaded, moments, slots, counters = {}, {}, {}, {}
    groups = {}
    if len(trained) < len(parts):
        groups = dict(new_provenance(config, models, parts).groups)
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
        if "epoch" in content:
            counters["epoch"] = np.asarray(content["epoch"], np.int64)
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


def _check_trained(config, kind, source):
    expected = NETWORKS if kind == "repae" else ("backbone",)
    if set(config.train) != set(expected):
        raise UserError(
            f"{source}: a checkpoint that trains {', '.join(expected)}, but config.train is "
            f"{tuple(config.train)}: choose the recipe {'repae' if kind == 'repae' else 'repa'}"
        )


def _check_statistics(variables, source):
    if "mean" in variables.get("batch_stats", {}):  # latent statistics, which divide latents
        mean, var = (variables["batch_stats"][name] for name in ("mean", "var"))
        keys = ("bn.running_mean", "bn.running_var")
        latent_statistics.as_statistics(mean, var, source=source, keys=keys)


def _frozen_slots(state_dict, part):
    """The optimizer state of parameters that are frozen here: the position table."""
    return {
        number: dict(entry)
        for number, entry in state_dict["state"].items()
        if part.slots[number] not in part.trained
    }


def _assemble(config, models, steps, loaded, moments, foreign, content, source):
    """Assemble the TrainState from the loaded networks; its arrays remain views of the file."""
    constants, statistics = {}, None
    if is_identity(models.tokenizer):
        loaded["tokenizer"] = {}
    elif "tokenizer" not in loaded:
        constants, statistics = read_vae(config, models.tokenizer)
        loaded["tokenizer"] = constants.pop("params")
    channels = models.tokenizer.latent_channels
    fixed = scaled(channels)
    if foreign:
        fixed = foreign.statistics(content, statistics, channels, source)
    shape = statistics_shape(models.tokenizer, latent_shape(config, models))
    fixed = latent_statistics.fitted(fixed, shape, source=source)
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
        if config.optimizer[network].name == MUON:  # it begins anew, its schedule does not
            opt_state[network] = optax.tree_utils.tree_set(
                jax.device_get(optimizer.init(params[network])), count=np.asarray(steps, np.int32)
            )
            continue
        blank = jax.eval_shape(optimizer.init, params[network])
        if network in moments:
            count, first, second = moments[network]
        else:
            count, first, second = 0, *[jax.tree.map(np.zeros_like, params[network])] * 2
        opt_state[network] = optax.tree_utils.tree_set(
            blank, count=np.asarray(count, np.int32), mu=first, nu=second
        )
    ema = loaded["ema"]
    tables = {k: v for k, v in _weights(loaded["backbone"]).items() if k != "params"}
    averaged = {"tokenizer": params["tokenizer"]} if config.tokenizer_ema_decay else {}
    return TrainState(
        step=np.asarray(steps, np.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema={**_weights(ema), "latent_norm": ema.get("batch_stats", fixed), **averaged},
        frozen={
            **({"backbone": tables} if tables else {}),
            **({"tokenizer": constants} if constants else {}),
        },
    )


def _weights(variables):
    """The collections of a backbone without its latent statistics."""
    return {name: part for name, part in variables.items() if name != "batch_stats"}


def _fresh_discriminator(config, models):
    """The discriminator's variables at step 0 of a run of this configuration."""

    def make():
        state = fresh_state(config, models, jax.random.key(config.seed))
        return discriminator_variables(state)

    return jax.tree.map(np.asarray, jax.jit(make)())
