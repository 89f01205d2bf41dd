"""Sections of a configuration whose keys depend on the family that they name."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from repae_jax.config.versions import present_name
from repae_jax.errors import UserError

SECTIONS = ("backbone", "condition", "projector")  # whose keys depend on their family
# How `pretrain-teacher` trains a teacher; not used with published weights.
_PRETRAINING = dict(steps=0, batch_size=128, learning_rate=1e-3, weight_decay=0.05, shift=2)


def families_of(section: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The table of a section's families, and the keys with defaults that all of them have.

    An entry of `config.teachers` is a section of the name "teacher".
    """
    from repae_jax.models.backbones.families import BACKBONES
    from repae_jax.models.conditioning.families import CONDITIONERS
    from repae_jax.models.encoders.families import ENCODERS
    from repae_jax.models.projectors import PROJECTORS

    return {
        "backbone": (BACKBONES, {"arch": ""}),
        "condition": (CONDITIONERS, {"drop": 0.1}),  # probability; 0: the model knows no "none"
        "projector": (PROJECTORS, {}),
        "teacher": (ENCODERS, {"arch": "", "weights": "", "pretrain": _PRETRAINING}),
    }[section]


def section_of(name: str, family: str, **changes: Any) -> ConfigDict:
    """A section of the configuration with the options of a family, and `changes`.

    Raises:
      UserError: there is no such family or option.
    """
    families, shared = families_of(name)
    if family not in families:
        raise UserError(f"no {name} of the family {family!r}: use {' or '.join(families)}")
    options = {
        key: placeholder(default) if isinstance(default, type) else default
        for key, default in families[family].options.items()
    }
    section = ConfigDict({"family": family, **shared, **options})
    if unknown := [key for key in changes if key not in section]:
        raise UserError(
            f"{name} of the family {family!r} has no option {unknown[0]!r}: it has "
            f"{', '.join(section)}"
        )
    section.update(changes)
    return section


def check_family(section: str, values: ConfigDict, path: str = "") -> str:
    """The family that `config.<section>`, or the section at `path`, names, whose keys it has.

    Raises:
      UserError: there is no such family, or the keys are those of another one.
    """
    families, _ = families_of(section)
    path = path or f"config.{section}"
    if values.family not in families:
        raise UserError(f"{path}.family is {values.family!r}: use {' or '.join(families)}")
    expected = set(section_of(section, values.family).keys())
    if wrong := sorted(expected ^ set(values.keys())):
        if renamed := present_name(f"{section}.{wrong[0]}"):
            raise UserError(f"{path}.{wrong[0]} is now config.{renamed}")
        raise UserError(
            f"{path}.family is {values.family!r}, but {wrong[0]!r} is a key of another "
            f"family: make the section by {path} = {section}(family={values.family!r})"
        )
    return values.family
