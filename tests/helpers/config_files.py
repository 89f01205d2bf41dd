"""Configurations as files of `--config`."""

import pathlib

from repae_jax.config.storage import to_json


def write_config(path: pathlib.Path, config) -> pathlib.Path:
    """Writes a file that gives the configuration; returns its path."""
    path.write_text(
        "from repae_jax.config.storage import from_json\n\n\n"
        f"def get_config():\n    return from_json({to_json(config)!r}, source='it')\n"
    )
    return path
