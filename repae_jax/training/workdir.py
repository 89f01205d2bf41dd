"""The work directory: a run's configuration, checkpoints, events, samples and report."""

import functools
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from repae_jax.atomic import write_atomically
from repae_jax.config import absent_keys, differences, from_stored, to_json
from repae_jax.errors import UserError, warn
from repae_jax.schema import read_json
from repae_jax.validation import validate

CONFIG = "config.json"
# Once a run has begun, its weights come from its checkpoints: where files lie may change.
FREE_KEYS = (
    r"config\.(run|sampling|evaluation|mesh)\..*|config\.data\.(workers|path|accept)"
    r"|config\.compute\.(scan_blocks|sit_remat|vae_remat)"
    r"|config\.teachers\.[^.]+\.pretrain\..*"
    r"|config\.(.*\.)?(weights|vgg_weights|statistics)"
)


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Make `workdir` this configuration's, or check that it already is.

    Only the keys that do not change the mathematics may differ when a run is continued:
    `FREE_KEYS` (length, rhythm, measures, devices, memory, where files lie); the file then takes
    the new values.

    Raises:
      UserError: the directory holds another configuration, or is unwritable.
    """
    check(workdir, config)
    write_atomically(workdir / CONFIG, to_json(config).encode())


def check(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raise UserError unless `workdir` is new, or holds this configuration; writes nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"the work directory {workdir} is a file")
    path = workdir / CONFIG
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"{workdir} holds checkpoints but no {CONFIG}: choose another --workdir"
            )
        return
    changed = [
        line
        for line in differences(load_config(workdir).to_dict(), config.to_dict())
        if not re.fullmatch(FREE_KEYS, line.partition(":")[0])
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with another config: {changed[0]}{more}; "
            "choose another --workdir, or the config of that run"
        )


def load_config(workdir: pathlib.Path) -> ConfigDict:
    """The configuration of the run in `workdir`, which is a possible one.

    Raises:
      UserError: there is no run, or its configuration is damaged, of another version, or has been
        edited to an impossible one.
    """
    path = workdir / CONFIG
    if not path.is_file():
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


_warn_once = functools.cache(warn)  # a command may read the file more than once
