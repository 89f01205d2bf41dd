"""A row of a table of families: a network, and the keys of its section of a configuration."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Section = Mapping[str, Any]


def open_type(option: Any) -> type | None:
    """The type of an option's values where the row has a type in place of a default; else None.

    The types are Python's and those of utils/schema.py, whose lists are tuples here.
    """
    if typing.get_origin(option) is typing.Annotated:
        option = typing.get_args(option)[0]
    if typing.get_origin(option) is list:
        return tuple
    return option if isinstance(option, type) else None


class Family(NamedTuple):
    """A family of backbones, tokenizers, encoders, projection heads or conditions.

    Attributes:
      build: makes the network: a flax module, or for heads and conditions a frozen dataclass. Its
        arguments are those of the role, and by keyword the fields of the options.
      options: the keys of the section, each with its default. A type in place of a default leaves
        the key open: the preset sets its field, or else `build` has a default.
      fields: key -> field of `build`, where the two have different names.
      presets: `arch` of the section -> fields.
      custom: (fields, side of the images in pixels) -> further fields where `arch` is "".
      check: (network, section, path such as "config.backbone") raises UserError for values that
        do not go together, naming the key and the way out.
      describe: (network) -> its sizes in words.
    """

    build: Callable[..., Any]
    options: Mapping[str, Any] = {}
    fields: Mapping[str, str] = {}
    presets: Mapping[str, Mapping[str, Any]] = {}
    custom: Callable[[Mapping[str, Any], int], Mapping[str, Any]] = lambda fields, side: {}
    check: Callable[[Any, Section, str], None] = lambda network, section, path: None
    describe: Callable[[Any], str] = repr

    def field(self, key: str) -> str:
        """The field of `build` that an option sets."""
        return self.fields.get(key, key)

    def settings(self, section: Section) -> dict[str, Any]:
        """The fields that the section or its preset sets; the section goes before the preset."""
        explicit = {
            self.field(key): tuple(section[key]) if isinstance(section[key], list) else section[key]
            for key in self.options
            if section[key] is not None
        }
        return {**self.presets.get(section.get("arch", ""), {}), **explicit}

    def missing(self, section: Section) -> list[str]:
        """The options that neither the section, nor its preset, nor `build` has a value of."""
        known = self.settings(section).keys() | _defaults(self.build)
        return [key for key in self.options if self.field(key) not in known]

    def brought(self, arch: str) -> dict[str, Any]:
        """The options with a default in the row for which a preset has a value of its own."""
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
