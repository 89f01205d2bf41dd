"""The work directory: a run's configuration, checkpoints, events, samples and report."""

import json
import pathlib

from ml_collections import ConfigDict

from repae_jax.config import base, differences, teacher, to_json
from repae_jax.errors import UserError
from repae_jax.evaluation.figures import write_atomically

CONFIG = "config.json"
FREE_KEYS = ("config.run.", "config.sampling.", "config.data.workers", "config.data.path")


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Make `workdir` this configuration's, or check that it already is.

    Only the keys that do not change the mathematics may differ when a run is continued:
    `run.*`, `sampling.*`, `data.workers` and `data.path`; the file then takes the new values.

    Raises:
      UserError: the directory holds another configuration, or other files, or is unwritable.
    """
    check(workdir, config)
    try:
        write_atomically(workdir / CONFIG, to_json(config).encode())
    except OSError as error:
        raise UserError(f"cannot write to the work directory {workdir}: {error}") from error


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
        for line in differences(_read(path), json.loads(to_json(config)))
        if not line.startswith(FREE_KEYS)
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with another config: {changed[0]}{more}; "
            "choose another --workdir, or the config of that run"
        )


def load_config(workdir: pathlib.Path) -> ConfigDict:
    """The configuration of the run in `workdir`.

    Raises:
      UserError: there is no run, or its configuration is damaged or of another version.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} holds no run: {CONFIG} is missing")
    stored = _read(path)
    config = base()
    try:
        for name, entry in stored.get("teachers", {}).items():
            config.teachers[name] = teacher(**_tuples(entry))
        config.update(_tuples({k: v for k, v in stored.items() if k != "teachers"}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a configuration of this version: {error}") from error
    return config


def _read(path):
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _tuples(value):
    """JSON has lists where configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
