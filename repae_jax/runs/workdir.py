"""The work directory: a run's configuration, checkpoints, events, samples and report."""

import datetime
import functools
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.storage import absent_keys, differences, from_stored, to_json
from repae_jax.config.validate import validate
from repae_jax.data.tokens import FILE as TOKENIZER
from repae_jax.errors import UserError, warn
from repae_jax.models.text_encoders.families import NONE as NO_TEXT
from repae_jax.runs.checkpoints import FOLDER, saved_steps
from repae_jax.utils.atomic_files import write_atomically
from repae_jax.utils.schema import read_json

CONFIG = "config.json"
HISTORY = "config_history.jsonl"  # the changes of the configuration, with their times
# Keys that may change between starts of a run. A run that has begun reads its weights from its
# checkpoints, so the locations of files may change. So may the keys that rescue a run that diverges
# (the size of an optimizer's steps, the type of the computation) or that meets a bad image.
FREE_KEYS = (
    r"config\.(run|sampling|evaluation|mesh)\..*|config\.data\.(workers|path|accept|on_bad_image)|config\.dtype"
    r"|config\.optimizer\.[^.]+\."
    r"(learning_rate|warmup_steps|decay|decay_start|decay_steps|final_rate|weight_decay|max_grad_norm)"
    r"|config\.compute\.(scan_blocks|backbone_remat|tokenizer_remat|stripes)"
    r"|config\.teachers\.[^.]+\.(weights|pretrain\..*)"
    r"|config\.(tokenizer|discriminator|lpips)\.(weights|vgg_weights|encoder_weights|statistics)"
)


def claim(
    workdir: pathlib.Path, config: ConfigDict, *, step: int = 0, **notes: object
) -> list[str]:
    """Write the configuration to a new work directory, or check it against an existing run's.

    Only `FREE_KEYS` may differ when a run continues: length, intervals, measures, devices, memory,
    locations of files, learning rates and their schedules, weight decay, clipping, the type of the
    computation. The file then takes the new values, and `HISTORY` records the changes.

    Args:
      workdir: the run's folder.
      config: the configuration.
      step: the step at which the run continues, for the history.
      notes: further entries for the history.

    Returns:
      The changes, as `key: old -> new`.

    Raises:
      UserError: the directory holds another configuration, or cannot be written.
    """
    changed = check(workdir, config)
    if changed or notes:
        what = {"changed": changed} if changed else {}
        _add_to_history(workdir, {"step": step, **what, **notes})
    write_atomically(workdir / CONFIG, to_json(config, sealed=True).encode())
    return changed


def check(workdir: pathlib.Path, config: ConfigDict) -> list[str]:
    """List the differences from the configuration of `workdir` as `key: old -> new`; reads only.

    Raises:
      UserError: the directory holds another run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"the work directory {workdir} is a file")
    path = workdir / CONFIG
    if not path.exists():
        if saved_steps(workdir):
            raise _lost_config(workdir)
        return []
    changed = differences(load_config(workdir).to_dict(), config.to_dict())
    bound = [line for line in changed if not re.fullmatch(FREE_KEYS, line.partition(":")[0])]
    if bound:
        more = f" (and {len(bound) - 1} more)" if len(bound) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with another config: {bound[0]}{more}; "
            "choose another --workdir, or the config of that run"
        )
    return changed


def last_history_entry(workdir: pathlib.Path) -> dict[str, Any]:
    """The last line of `HISTORY`; {} without one."""
    try:
        entry = json.loads((workdir / HISTORY).read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _add_to_history(workdir, entry):
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = workdir / HISTORY
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + json.dumps({"time": time, **entry}).encode() + b"\n")


def load_config(workdir: pathlib.Path) -> ConfigDict:
    """Load and validate the configuration of the run in `workdir`.

    Raises:
      UserError: there is no run, or its configuration is damaged, of a later version, or invalid.
    """
    path = workdir / CONFIG
    if not path.is_file():
        if saved_steps(workdir):
            raise _lost_config(workdir)
        raise UserError(f"{workdir} holds no run: {CONFIG} is missing")
    stored = read_json(path, dict[str, Any])
    config = from_stored(stored, source=str(path))
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if absent := absent_keys(stored):
        more = f" and {len(absent) - 1} more keys" if len(absent) > 1 else ""
        _warn_once(f"{path} lacks {absent[0]}{more}: their defaults are taken")
    return config


def opened_config(workdir: pathlib.Path) -> ConfigDict:
    """Load a run's configuration as `load_config`, with its own copy of the tokenizer."""
    config = load_config(workdir)
    if (workdir / TOKENIZER).is_file() and config.text_encoder.family != NO_TEXT:
        config.text_encoder.tokenizer = str(workdir / TOKENIZER)
    return config


def _lost_config(workdir):
    """Make the error for a work directory with checkpoints but without a configuration."""
    kept = sorted(workdir.glob(f"aside-*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    source = (
        f"{kept[-1]} is of the same run, from before it went back"
        if kept
        else f"take it from a backup, or copy the {CONFIG} of a run with the same configuration"
    )
    changes = f"; {HISTORY} lists what has changed" if (workdir / HISTORY).is_file() else ""
    return UserError(
        f"{workdir} has lost {CONFIG}, without which its checkpoints cannot be read: restore it "
        f"({source}{changes})"
    )


_warn_once = functools.cache(warn)  # a command may read the file more than once


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a path is a work directory (a folder with checkpoints, for example)."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return False
    return bool(saved_steps(path)) or ((path / CONFIG).is_file() and (path / FOLDER).is_dir())
