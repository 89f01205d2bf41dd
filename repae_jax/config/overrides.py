"""Configurations on the command line: `--config NAME[:ARG] --config.key=value ...`."""

import difflib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from repae_jax.config.packaged import find_file
from repae_jax.config.sections import SECTIONS, match_family
from repae_jax.config.versions import current_name
from repae_jax.errors import UserError

PREFIX = "--config."


def read_config(name: str, overrides: Sequence[str]) -> ConfigDict:
    """Read the configuration of `name[:argument]` and apply `--config.key=value` overrides.

    Args:
      name: a packaged configuration such as `digits` or `digits:repa`, or the path of a file.
      overrides: words such as `--config.run.steps=200`.

    Raises:
      UserError: there is no such configuration or file, it has an error, a key is unknown, or a
        value has the wrong type.
    """
    name, colon, argument = name.partition(":")
    config = _parse_file(f"{find_file(name)}{colon}{argument}", [])
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}: get_config() gave a {type(config).__name__}, not a ConfigDict")
    return apply_overrides(config, overrides)


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Apply `--config.key=value` overrides to `config`.

    A section whose `family` or `arch` an override sets, or the file set after making the section,
    gets the keys of that family.

    Raises:
      UserError: a key is unknown, or a value has the wrong type.
    """
    _settle(config, {})
    before = {name: section.family for name, section in _sections(config)}
    choices = [override for override in overrides if _chooses(override)]
    config = _applied(config, choices)
    _settle(config, before)
    return _applied(config, [override for override in overrides if override not in choices])


def _chooses(override):
    """Whether an override chooses the family of a section."""
    key = override.split("=")[0].removeprefix(PREFIX)
    return key in {f"{name}.{choice}" for name in SECTIONS for choice in ("family", "arch")}


def _settle(config, made_for):
    for name, section in _sections(config):
        config[name] = match_family(name, section, made_for.get(name, ""))


def _sections(config):
    """(name, section) of the sections that have a family."""
    found = {name: config.get(name) for name in SECTIONS}
    return [(k, s) for k, s in found.items() if isinstance(s, ConfigDict) and "family" in s]


def _applied(config, overrides):
    from ml_collections import config_flags

    _check_keys(config, overrides)
    words = ["repae_jax", *overrides]

    def define(values):
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)

    return _parsed(define, words, "the configuration", overrides)


def _parse_file(file, overrides):
    from ml_collections import config_flags

    words = ["repae_jax", f"--config={file}", *overrides]

    def define(values):
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)

    return _parsed(define, words, file, overrides)


def _parsed(define: Callable, words: Sequence[str], source: str, overrides: Sequence[str]):
    """Parse a configuration with ml_collections' flags, which know the type of every key."""
    from absl import flags

    values = flags.FlagValues()
    try:
        define(values)
        values(words)
        return values.config
    except Exception as error:  # the file's own code may raise any exception, and absl wraps it
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        for exception in reversed(chain):
            if isinstance(exception, UserError):
                raise exception from None
        if isinstance(error, flags.Error) and overrides:
            raise UserError(_one_line(error)) from error
        raise UserError(f"{source}: {type(chain[-1]).__name__}: {_one_line(chain[-1])}") from error


def _check_keys(config, overrides):
    """Raise UserError for an override of a key that the configuration does not have."""
    for override in overrides:
        node, path = config, "config"
        for key in override.split("=")[0].removeprefix(PREFIX).split("."):
            if not isinstance(node, ConfigDict) or key not in node:
                keys = list(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, keys, n=1)
                known = ", ".join(keys) or "no keys"
                whole = override.split("=")[0].removeprefix(PREFIX)
                if renamed := current_name(whole):
                    raise UserError(f"config.{whole} is now config.{renamed}")
                hint = f"did you mean {path}.{close[0]}?" if close else f"{path} has {known}"
                raise UserError(f"unknown key {path}.{key}: {hint}")
            node, path = node[key], f"{path}.{key}"


def _one_line(error):
    return " ".join(str(error).split())
