"""Export of runs as the originals' training checkpoints."""

import argparse
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optax

from repae_jax.errors import UserError, warn
from repae_jax.interop import files, original
from repae_jax.interop.dino_discriminator import export_discriminator
from repae_jax.interop.original import OPTIMIZERS, Part
from repae_jax.interop.tables import require_finite
from repae_jax.models.dino_discriminator import DinoDiscriminator
from repae_jax.runs.build import build_models
from repae_jax.runs.foreign_backbones import FOREIGN, foreign_of
from repae_jax.runs.jit_args import IMAGES
from repae_jax.runs.open_run import open_on_host
from repae_jax.runs.optimizers import MUON, steps_of
from repae_jax.runs.original_parts import new_provenance, trained_parts
from repae_jax.runs.provenance import Provenance, blank_provenance, read_provenance
from repae_jax.runs.state import TrainState, discriminator_variables, without_heads
from repae_jax.runs.workdir import load_config
from repae_jax.utils.atomic_files import write_atomically


def export_run(
    workdir: pathlib.Path,
    path: pathlib.Path,
    *,
    folder: bool = False,
    step: int | None = None,
    progress: bool = True,
) -> None:
    """Write the newest checkpoint of a run in the original's format; a SiT's gets an args.json.

    Args:
      workdir: the run's folder.
      path: the file to write.
      folder: `path` is a folder, of fuse-dit's form.
      step: export only the checkpoint at this step.
      progress: show a bar.

    Raises:
      UserError: there is no run, no original has its backbone or its trained VAE,
        the original's checkpoint is a folder where a file is asked for, or the reverse, or it
        cannot be written.
    """
    _check_folder(build_models(load_config(workdir)).backbone, workdir, folder)
    run = open_on_host(workdir, step, optimizers=True)
    config, models = run.config, run.models
    parts = trained_parts(models, config, str(workdir), statistics=True)
    origin = read_provenance(workdir) or new_provenance(config, models, parts)
    if origin.kind == "repa":
        parts["backbone"] = original.sit_part(models.backbone, statistics=False)
    content = _export(run.state, parts, origin, config)
    for key in ("model", "ema", *OPTIMIZERS.keys() & content.keys()):
        require_finite(content[key], path)
    steps = int(run.state.step)
    del run  # so that `_make_contiguous` frees each array once its contiguous copy exists
    _make_contiguous(content, progress)
    if foreign := FOREIGN.get(origin.kind):
        names = content["model"].items()
        content["model"] = {foreign.prefix + name: array for name, array in names}
        content = foreign.arrange(content, config, steps, _epochs(origin, steps, config))
        foreign.write(path, content, origin.args, steps)
        return
    files.write_torch(path, content | {"args": argparse.Namespace(**origin.args)})
    # the original keeps args.json beside the folder checkpoints/
    beside = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    text = json.dumps(origin.args, indent=4) + "\n"
    write_atomically(beside / "args.json", text.encode())


def run_discriminator(
    workdir: pathlib.Path, step: int | None = None
) -> dict[str, np.ndarray] | None:
    """The discriminator of a run under its authors' names; None if the run trains none.

    Args:
      workdir: the run's folder.
      step: read only the checkpoint at this step.

    Raises:
      UserError: there is no run, or its checkpoint is damaged.
    """
    run = open_on_host(workdir, step)
    if run.models.discriminator is None:
        return None
    if isinstance(run.models.discriminator, DinoDiscriminator):
        return export_discriminator(discriminator_variables(run.state), run.models.discriminator)
    part = original.discriminator_part(run.models.discriminator)
    origin = read_provenance(workdir) or blank_provenance("repae")
    counters = _counters(origin, "discriminator", part, int(run.state.step), run.config)
    return original.export_part(discriminator_variables(run.state), part, counters)


def _export(
    state: TrainState, parts: Mapping[str, Part], origin: Provenance, config
) -> dict[str, Any]:
    """The checkpoint as a nested dict; its arrays are views of the state's."""
    if "tokenizer" in state.ema and "tokenizer" in parts:
        raise UserError(
            "the run averages its tokenizer (config.tokenizer_ema_decay), for which such a "
            "checkpoint has no place: write the tokenizer alone, with --to diffusers or --to vae"
        )
    steps = int(state.step)
    statistics, averaged = {}, {}
    if origin.kind in ("repae", "ldm"):
        statistics = {"batch_stats": state.batch_stats["latent_norm"]}
        averaged = {"batch_stats": state.ema["latent_norm"]}
    variables = {
        "model": {
            "params": state.params["backbone"], **state.frozen.get("backbone", {}), **statistics
        },
        "ema": {
            "params": state.ema["params"],
            **{k: v for k, v in state.ema.items() if k == "constants"},
            **averaged,
        },
        "vae": state.params["tokenizer"],
    }  # fmt: skip
    if "discriminator" in parts:
        variables["discriminator"] = discriminator_variables(state)
    foreign = FOREIGN.get(origin.kind)
    headless = foreign is not None and not foreign.heads
    if headless:
        for key in ("model", "ema"):
            variables[key] = {**variables[key], "params": without_heads(variables[key]["params"])}
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
        if config.optimizer[network].name == MUON:
            warn(
                f"the {network}'s optimizer is Muon, whose momentum PyTorch's AdamW cannot "
                "continue: its state in the file is that before the first step"
            )
            content[key] = {"state": {}, "param_groups": list(map(dict, origin.groups[key]))}
            continue
        first, second = (optax.tree_utils.tree_get(adam, name) for name in ("mu", "nu"))
        if headless:
            first, second = without_heads(first), without_heads(second)
        content[key] = original.export_moments(
            int(steps_of(adam)), first, second, part, origin.groups[key], origin.slots.get(key, {})
        )
    return content if foreign else content | {"steps": steps}


def _check_folder(backbone, workdir, folder):
    kind = foreign_of(backbone)
    if folder != (kind is not None and FOREIGN[kind].folder):
        what, to = ("a file", "checkpoint") if folder else ("a folder", "fuse-dit")
        raise UserError(
            f"{workdir}: its backbone is a {type(backbone).__name__}, whose checkpoint for the "
            f"original is {what}: give --to {to}"
        )


def _counters(origin, key, part, steps, config):
    """PyTorch's counters of BatchNorm updates: the imported ones plus our steps since."""
    objective, since = config.objective, steps - origin.steps
    if key == "discriminator":
        updates = 2 * since
        if objective.adversarial_weight * objective.discriminator_factor:
            start = max(objective.discriminator_start, objective.generator_start)
            updates += max(0, steps - max(origin.steps, start))
    else:
        updates = since if objective.latent_norm == "batch" else 0
    zero = np.zeros((), np.int64)
    return {
        name: np.asarray(origin.counters.get(f"{key}/{name}", zero) + updates, np.int64)
        for name in part.counters
    }


def _epochs(origin, steps, config):
    """Finished epochs: the imported ones in proportion to the steps, or else those of ImageNet."""
    if "epoch" in origin.counters and origin.steps:
        return round(int(origin.counters["epoch"]) * steps / origin.steps)
    return round(steps * config.batch_size / IMAGES)


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
