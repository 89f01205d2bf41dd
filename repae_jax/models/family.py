"""The rows of the tables of families: a network, and the keys of its configuration section."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Section = Mapping[str, Any]


def open_type(option: Any) -> type | None:
    """The type of an option's values if the row gives a type in place of a default; else None.

    Types are Python's or those of utils/schema.py; a list type of the schema gives `tuple`.
    """
    if typing.get_origin(option) is typing.Annotated:
        option = typing.get_args(option)[0]
    if typing.get_origin(option) is list:
        return tuple
    return option if isinstance(option, type) else None


class Family(NamedTuple):
    """A family of backbones, tokenizers, encoders, projection heads or conditions.

    Attributes:
      build: makes the network: a Flax module, or for heads and conditions a frozen dataclass. It
        takes the arguments of its role, and by keyword the fields of the options.
      options: the keys of the section besides `arch` and `family`, each with its default. A type in
        place of a default leaves the key open: its field takes the preset's value, or else the
        default of `build`.
        With {"width": int, "qk_norm": False} and the preset {"tiny/2": {"width": 64}}, a section
        without a preset has to set the width.
      fields: key -> field of `build`, where the two have different names.
      presets: `arch` of the section -> fields.
      custom: (fields, side of the images in pixels) -> further fields where `arch` is "".
      check: (network, section, path such as "config.backbone") raises UserError, naming the key
        and the way out, for values that do not fit together.
      describe: (network) -> its sizes in words, one line; by default its options and values.
    """

    build: Callable[..., Any]
    options: Mapping[str, Any] = {}
    fields: Mapping[str, str] = {}
    presets: Mapping[str, Mapping[str, Any]] = {}
    custom: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda fields, side: {}
    check: Callable[[Any, Section, str], None] = lambda network, section, path: None
    describe: Callable[[Any], str] | None = None

    def field(self, key: str) -> str:
        """The field of `build` that an option sets."""
        return self.fields.get(key, key)

    def settings(self, section: Section) -> dict[str, Any]:
        """The fields that the section or its preset sets; the section takes precedence."""
        explicit = {
            self.field(key): tuple(section[key]) if isinstance(section[key], list) else section[key]
            for key in self.options
            if section[key] is not None
        }
        return {**self.presets.get(section.get("arch", ""), {}), **explicit}

    def text(self, network: Any) -> str:
        """A network's sizes in words, one line."""
        if self.describe is not None:
            return self.describe(network)
        return ", ".join(f"{key} {getattr(network, self.field(key))}" for key in self.options)

    def missing(self, section: Section) -> list[str]:
        """The keys of the options without a value in the section, its preset, and `build`."""
        known = self.settings(section).keys() | _defaults(self.build)
        return [key for key in self.options if self.field(key) not in known]

    def brought(self, arch: str) -> dict[str, Any]:
        """The options that a preset sets, of those with a default: key -> the preset's value."""
        preset = self.presets.get(arch, {})
        return {
            key: preset[self.field(key)]
            for key, default in self.options.items()
            if self.field(key) in preset and open_type(default) is None
        }


def _defaults(build):
    """The fields of a dataclass that have a default."""
    if not dataclasses.is_dataclass(build):
        return set()
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(build)
        if field.default is not missing or field.default_factory is not missing
    }
