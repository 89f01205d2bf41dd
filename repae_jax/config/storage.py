"""Configurations as JSON: written, read back, and compared."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.defaults import base, teacher
from repae_jax.config.schema import check_values
from repae_jax.config.sections import SECTIONS, families_of, section_of
from repae_jax.config.versions import add_version, upgrade
from repae_jax.errors import UserError
from repae_jax.utils.schema import parse_json
from repae_jax.utils.sealed import seal, unseal_if_sealed


def to_json(config: ConfigDict, *, sealed: bool = False) -> str:
    """The configuration as readable JSON, with a checksum if `sealed`."""
    content = add_version(config.to_dict())
    content = seal(content) if sealed else content
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def from_json(text: str, *, source: str) -> ConfigDict:
    """Read a configuration from the JSON text that `to_json` wrote.

    Raises:
      UserError: the text is damaged, or a later version wrote it.
    """
    return from_stored(parse_json(text, dict[str, Any], source=source), source=source)


def from_stored(stored: Any, *, source: str) -> ConfigDict:
    """Make a configuration from the parsed JSON of `to_json`; upgrades earlier versions.

    Raises:
      UserError: a later version wrote it, or it is damaged. (`validate` checks how values combine.)
    """
    if isinstance(stored, dict):
        way_out = "set keys on the command line"
        stored = unseal_if_sealed(stored, source=source, way_out=way_out)
    stored = upgrade(stored, source=source)
    expected = _defaults(stored)
    if unknown := _apart(expected, stored, "config"):
        raise UserError(f"{source} has the key {unknown[0]}, which this version does not know")
    check_values(_with_defaults(stored, expected), source=f"{source}: config.")
    config = base()
    for name in stored.keys() & set(SECTIONS):
        config[name] = section_of(name, expected[name]["family"])
    for name, entry in stored.get("teachers", {}).items():
        config.teachers[name] = teacher(**_tuples(entry))
    config.update(_tuples({k: v for k, v in stored.items() if k != "teachers"}))
    return config


def absent_keys(stored: Mapping[str, Any]) -> list[str]:
    """The configuration keys that are missing in `stored`, a parsed JSON configuration."""
    stored = upgrade(stored, source="config")
    return _apart(stored, _defaults(stored), "config")


def differences(old: dict, new: dict, prefix: str = "config") -> list[str]:
    """`key: old -> new` for every key in which two configurations (as plain dicts) differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        path = f"{prefix}.{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, path)
        elif _plain(a) != _plain(b):
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines


def _defaults(stored):
    names = stored.get("teachers") if isinstance(stored.get("teachers"), dict) else {}
    sections = {
        name: section_of(name, stored[name]["family"]).to_dict()
        for name in SECTIONS
        if isinstance(stored.get(name), dict)
        and str(stored[name].get("family")) in families_of(name)[0]
    }
    teachers = {name: _defaults_of_teacher(names[name]) for name in names}
    return {**base().to_dict(), **sections, "teachers": teachers}


def _defaults_of_teacher(entry):
    """The defaults of a teacher's family; `check_values` rejects an entry without a known one."""
    if not isinstance(entry, dict):
        return teacher().to_dict()
    known = str(entry.get("family")) in families_of("teacher")[0]
    return teacher(family=entry["family"]).to_dict() if known else entry


def _apart(one, other, path):
    """The keys of nested dicts that `other` has and `one` lacks."""
    lines = [f"{path}.{key}" for key in other if key not in one]
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            lines += _apart(one[key], other[key], f"{path}.{key}")
    return sorted(lines)


def _with_defaults(stored, expected):
    """Complete the nested dict `stored` with the values of `expected` for absent keys."""
    both = {
        key: _with_defaults(stored[key], value)
        for key, value in expected.items()
        if isinstance(value, dict) and isinstance(stored.get(key), dict)
    }
    return {**expected, **stored, **both}


def _tuples(value):
    """Turn the lists of JSON into the tuples of configurations, recursively."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
