"""The sections of a configuration whose keys depend on their family."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from repae_jax.config.versions import current_name
from repae_jax.errors import UserError
from repae_jax.models.family import Family, open_type

SECTIONS = ("backbone", "condition", "tokenizer", "discriminator", "projector", "text_encoder")
# Options of `pretrain-teacher`; published weights do not use them.
_PRETRAINING = dict(steps=0, batch_size=128, learning_rate=1e-3, weight_decay=0.05, shift=2)
# Those of `pretrain-text-encoder`.
_LANGUAGE_MODELING = dict(steps=0, batch_size=128, learning_rate=1e-3, weight_decay=0.05)


def families_of(section: str) -> tuple[Mapping[str, Family], Mapping[str, Any]]:
    """The table of a section's families, and the keys and defaults that all families share.

    Args:
      section: one of `SECTIONS`, or "teacher" for an entry of `config.teachers`.
    """
    from repae_jax.models.backbones.families import BACKBONES
    from repae_jax.models.conditioning.families import CONDITIONERS
    from repae_jax.models.discriminators import DISCRIMINATORS
    from repae_jax.models.encoders.families import ENCODERS
    from repae_jax.models.projectors import PROJECTORS
    from repae_jax.models.text_encoders.families import TEXT_ENCODERS
    from repae_jax.models.tokenizers.families import TOKENIZERS

    return {
        "backbone": (BACKBONES, {"arch": ""}),
        "condition": (CONDITIONERS, {"drop": 0.1}),  # probability; 0: no null condition
        "tokenizer": (TOKENIZERS, {"arch": "", "weights": "", "statistics": ""}),
        "discriminator": (DISCRIMINATORS, {"arch": "", "weights": "", "encoder_weights": ""}),
        "projector": (PROJECTORS, {}),
        "teacher": (ENCODERS, {"arch": "", "weights": "", "pretrain": _PRETRAINING}),
        "text_encoder": (
            TEXT_ENCODERS,
            {"arch": "", "weights": "", "tokenizer": "", "pretrain": _LANGUAGE_MODELING},
        ),
    }[section]


def section_of(name: str, family: str = "", arch: str = "", **changes: Any) -> ConfigDict:
    """Make a section of the configuration with the options of a family, updated by `changes`.

    Args:
      name: the section's name.
      family: the family; "": the preset's family, or without a preset the first in the table.
      arch: a preset, or "".
      changes: values of the section's keys.

    Raises:
      UserError: there is no such family or key.
    """
    families, shared = families_of(name)
    family = family or presets_of(name).get(arch) or next(iter(families))
    if family not in families:
        raise UserError(f"no {name} of the family {family!r}: use {' or '.join(families)}")
    options = {
        key: default if (kind := open_type(default)) is None else placeholder(kind)
        for key, default in families[family].options.items()
    }
    section = ConfigDict({"family": family, **shared, **options})
    if "arch" in shared:
        changes = {"arch": arch, **families[family].brought(arch), **changes}
    if unknown := [key for key in changes if key not in section]:
        raise UserError(
            f"{name} of the family {family!r} has no option {unknown[0]!r}: it has "
            f"{', '.join(section)}"
        )
    section.update(changes)
    return section


def presets_of(section: str) -> dict[str, str]:
    """Preset -> family, for all families of a section; {} for a section without the key `arch`."""
    families, shared = families_of(section)
    if "arch" not in shared:
        return {}
    return {preset: name for name, row in families.items() for preset in row.presets}


def match_family(name: str, section: ConfigDict, made_for: str = "") -> ConfigDict:
    """Give a section the keys of the family that it now names.

    After the section was made, `arch` may have been set to a preset of another family, or `family`
    to another family. Keys that both families share keep their values.

    Args:
      name: the section's name.
      section: the section.
      made_for: the family that it was made for, if known.

    Raises:
      UserError: a key is set that the family lacks, or `family` contradicts the preset's.
    """
    families, _ = families_of(name)
    family, preset = str(section.family), presets_of(name).get(str(section.get("arch")))
    candidates = [made_for] if made_for else [family, *families]
    of = next((f for f in candidates if f in families and _keys(name, f) == set(section)), None)
    if of is None or family not in families:
        return section  # `check_family` rejects it
    if preset not in (None, family):
        if family != of:
            raise UserError(
                f"config.{name}.family is {family!r}, but config.{name}.arch is {section.arch!r}, "
                f"a preset of the family {preset!r}: set --config.{name}.arch as well"
            )
        family = preset
    if family == of:
        return section
    defaults = section_of(name, of)
    changes = {key: section[key] for key in section if section[key] != defaults[key]}
    if foreign := sorted(changes.keys() - _keys(name, family)):
        raise UserError(
            f"config.{name}.family is {family!r}, but config.{name}.{foreign[0]} is set to "
            f"{section[foreign[0]]!r}, a key of the family {of!r}: set the whole section in the "
            f"configuration file, config.{name} = {name}({str(section.get('arch', ''))!r}, ...)"
        )
    return section_of(name, **{**changes, "family": family})


def check_family(section: str, values: ConfigDict, path: str = "") -> str:
    """Check that a section has exactly the keys of its family; returns the family.

    Args:
      section: the section's name.
      values: the section.
      path: the section's key, for errors; "" is `config.<section>`.

    Raises:
      UserError: there is no such family, or the keys belong to another one.
    """
    families, _ = families_of(section)
    path = path or f"config.{section}"
    if values.family not in families:
        raise UserError(f"{path}.family is {values.family!r}: use {' or '.join(families)}")
    if wrong := sorted(_keys(section, values.family) ^ set(values.keys())):
        if renamed := current_name(f"{section}.{wrong[0]}"):
            raise UserError(f"{path}.{wrong[0]} is now config.{renamed}")
        raise UserError(
            f"{path}.family is {values.family!r}, but {wrong[0]!r} is a key of another "
            f"family: make the section by {path} = {section}(family={values.family!r})"
        )
    return values.family


def settings_of(
    name: str, section: ConfigDict, resolution: int, path: str = ""
) -> tuple[Family, dict[str, Any]]:
    """The row of a section's family, and the fields of its network.

    The section's own keys override its preset's values.

    Args:
      name: the section's name, see `families_of`.
      section: the section.
      resolution: the side of the images in pixels.
      path: the section's key, for errors; "" is `config.<name>`.

    Raises:
      UserError: there is no such family or preset, or a key is not set.
    """
    path = path or f"config.{name}"
    row = families_of(name)[0][check_family(name, section, path)]
    _check_preset(name, section.get("arch", ""), row, path)
    if missing := row.missing(section):
        keys = ", ".join(f"{path}.{key}" for key in missing)
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{keys} {are} not set, and {path}.arch names no preset: set "
            f"{'it' if len(missing) == 1 else 'them'}"
            + (f", or {path}.arch to one of {', '.join(row.presets)}" if row.presets else "")
        )
    fields = row.settings(section)
    if not section.get("arch"):
        fields |= row.custom(fields, resolution)
    return row, fields


def _check_preset(name, arch, row, path):
    """Raise UserError unless `arch` is "" or one of the row's presets."""
    if not arch or arch in row.presets:
        return
    presets = presets_of(name)
    if family := presets.get(arch):
        raise UserError(
            f"{path}.arch is {arch!r}, a preset of the family {family!r}: make the section by "
            f"{path} = {name}({arch!r})"
        )
    known = [*row.presets, *(preset for preset in presets if preset not in row.presets)]
    way_out = f"use one of {', '.join(known)}, or '' and give every dimension"
    raise UserError(f"{path}.arch is {arch!r}: {way_out if row.presets else 'leave it empty'}")


def _keys(section, family):
    families, shared = families_of(section)
    return {"family", *shared, *families[family].options}
