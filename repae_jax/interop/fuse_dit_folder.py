"""fuse-dit's training checkpoints: folders, as DeepSpeed writes them.

FOLDER/latest                              the newest step
FOLDER/config.json                         the network, see `fuse_dit_config`
FOLDER/STEP/mp_rank_00_model_states.pt     module, ema, optimizer, and DeepSpeed's own entries

Names may contain "_orig_mod.", which torch.compile adds.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from repae_jax.errors import UserError
from repae_jax.interop import files
from repae_jax.interop.adamw import steps_taken
from repae_jax.interop.checkpoint_schema import check_parts
from repae_jax.interop.fuse_dit import infer_dimensions, is_fuse_dit
from repae_jax.interop.fuse_dit_config import check_network, check_sizes
from repae_jax.utils.atomic_files import replacing
from repae_jax.utils.schema import as_whole, read_json, short_repr

LATEST, CONFIG, STATES = "latest", "config.json", "mp_rank_00_model_states.pt"
_COMPILED = "_orig_mod."
_PARTS = {"module": "model", "ema": "ema"}  # theirs -> as other checkpoints have it


def is_folder(path: pathlib.Path) -> bool:
    """Whether a folder is one of these."""
    return (path / LATEST).is_file() or any(path.glob(f"*/{STATES}"))


def states_in(folder: pathlib.Path) -> pathlib.Path:
    """The file of the newest step, as `latest` names it.

    Raises:
      UserError: `latest` or the file is missing, or `latest` names no step.
    """
    latest = folder / LATEST
    if not latest.is_file():
        raise UserError(f"{latest} is missing: name the file to read, {folder}/STEP/{STATES}")
    try:
        with open(latest, "rb") as file:
            name = file.read(64).decode(errors="replace").strip()
    except OSError as error:
        raise UserError(f"{latest}: cannot be read ({error.strerror}); permit it") from error
    if as_whole(name) is None:
        raise UserError(
            f"{latest}: holds {short_repr(name)}, not a step such as 50000: name the file to read, "
            f"{folder}/STEP/{STATES}"
        )
    file = folder / name / STATES
    if not file.is_file():
        raise UserError(f"{latest}: names step {name}, but {file} is missing: restore it")
    return file


def read(states: pathlib.Path) -> dict[str, Any]:
    """A checkpoint as parts: "model", "ema", "opt", "steps" and "config", as far as it has them.

    Args:
      states: the file of a step, in its folder.

    Raises:
      UserError: a file is missing or damaged, the folder's name is not its step, or the network is
        another.
    """
    step = as_whole(states.parent.name)
    if step is None:
        raise UserError(
            f"{states}: lies in the folder {states.parent.name!r}, not in one that is named by its "
            "step, such as 50000: rename it"
        )
    file = states.parent.parent / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing, which fuse-dit writes beside the steps' folders")
    config = check_network(read_json(file), str(file))
    content = files.read_stored(states)
    stated = content.get("global_steps", step)
    if type(stated) is not int or stated != step:
        raise UserError(
            f"{states}: its global_steps are {short_repr(stated)}, but its folder is named {step}: "
            "rename it"
        )
    source = str(states)
    parts = {
        ours: _own_names(content[theirs], f"{source}: {theirs}")
        for theirs, ours in _PARTS.items()
        if isinstance(content.get(theirs), Mapping)
    }
    held = [key for key, tensors in parts.items() if is_fuse_dit(tensors)]
    if not held:
        raise UserError(f"{source}: holds no DiT of fuse-dit, neither as 'module' nor as 'ema'")
    check_sizes(config, infer_dimensions(parts[held[-1]], source=source), str(file))
    parts = {key: parts[key] for key in held}
    if content.get("optimizer") is not None:
        parts["opt"] = _same_count(content["optimizer"], source)
    return {**parts, "steps": step, "config": config}


def write(
    folder: pathlib.Path, content: Mapping[str, Any], config: Mapping[str, Any], step: int
) -> None:
    """Write a checkpoint; the folder appears when it is complete.

    Args:
      folder: a new or empty folder.
      content: the entries of the file of states.
      config: the content of config.json.
      step: the step.

    Raises:
      UserError: the folder cannot be written.
    """
    with replacing(folder) as temporary:
        (temporary / str(step)).mkdir(parents=True)
        files.write_torch(temporary / str(step) / STATES, content)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (temporary / LATEST).write_text(str(step))


def as_theirs(
    content: Mapping[str, Any], buffers: list[str], step: int, batch_size: int
) -> dict[str, Any]:
    """The entries of the file of states.

    Args:
      content: "model", "ema" and "opt".
      buffers: the names in "model" that are no parameters.
      step: steps taken.
      batch_size: images a step.
    """
    optimizer = content["opt"]
    states = {
        number: {**entry, "step": int(entry["step"])}  # DeepSpeed's own AdamW counts in integers
        for number, entry in optimizer["state"].items()
    }
    groups = [{"bias_correction": True, **group} for group in optimizer["param_groups"]]
    return {
        "module": content["model"],
        "buffer_names": buffers,
        "optimizer": {"state": states, "param_groups": groups},
        "lr_scheduler": {"last_batch_iteration": step - 1},
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": step * batch_size,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ema": content["ema"],
    }


def _own_names(tensors, source):
    """The tensors under names without what torch.compile adds, anywhere in them."""
    files.check_names(tensors, source)
    arrays = {name: array for name, array in tensors.items() if isinstance(array, np.ndarray)}
    named = {name.replace(_COMPILED, ""): array for name, array in arrays.items()}
    if len(named) < len(arrays):
        raise UserError(f"{source}: holds tensors under one name with and without {_COMPILED!r}")
    return named


def _same_count(optimizer, source):
    """An optimizer's state in which every parameter has taken the same number of steps.

    DeepSpeed's AdamW takes the steps of all from the last parameter, and counts there alone.
    """
    check_parts({"opt": optimizer}, source)
    count = np.asarray(steps_taken(optimizer), np.float32)
    states = {number: {**entry, "step": count} for number, entry in optimizer["state"].items()}
    return {**optimizer, "state": states}
