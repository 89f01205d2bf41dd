"""Upgrade of stored configurations from earlier versions to the current names."""

from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError

VERSION = 2
KEY = "version"

# Version 1 (no key "version") had one backbone and one tokenizer, under their own names.
_NETWORKS = {"sit": "backbone", "vae": "tokenizer"}
RENAMED = {
    **_NETWORKS,
    **{f"optimizer.{old}": f"optimizer.{new}" for old, new in _NETWORKS.items()},
    **{
        f"objective.{old}_alignment": f"objective.{new}_alignment" for old, new in _NETWORKS.items()
    },
    **{f"compute.{old}_remat": f"compute.{new}_remat" for old, new in _NETWORKS.items()},
}
# The first configurations held the keys of both tokenizer families and ignored the other family's;
# a preset's family was absent from "family".
_UNREAD = {
    "kl": ("temporal_downsample",),
    "qwenimage": ("attention_levels", "middle_attention", "quant_conv", "groups"),
}
_LABEL_DROP = "label_drop"  # key of "sit", now "condition.drop"
_PROJECTOR_DIM = "projector_dim"  # key of "sit" and of "backbone", now "projector.hidden"
RENAMED_RECIPES = {"sit": "vanilla"}


def add_version(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the current version to a configuration of plain values."""
    return {**config, KEY: VERSION}


def upgrade(stored: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Rename the keys of a stored configuration to the current ones, and drop its version.

    Values stay as they are.

    Args:
      stored: the parsed JSON.
      source: its file, for errors.

    Raises:
      UserError: a later version wrote it.
    """
    stored = dict(stored)
    version = stored.pop(KEY, 1)
    if version not in range(1, VERSION + 1):
        raise UserError(
            f"{source} is of version {version!r}, and this program knows 1 to {VERSION}: "
            "update repae_jax"
        )
    return _completed(_from_first(stored) if version == 1 else stored)


def _from_first(stored):
    for old, new in RENAMED.items():
        *path, name = old.split(".")
        section = stored
        for key in path:
            section[key] = dict(section[key]) if isinstance(section.get(key), Mapping) else {}
            section = section[key]
        if name in section:
            section[new.split(".")[-1]] = section.pop(name)
    if isinstance(backbone := stored.get("backbone"), Mapping):
        backbone = {"family": "sit", **backbone}
        if _LABEL_DROP in backbone:
            stored["condition"] = {"family": "class", "drop": backbone.pop(_LABEL_DROP)}
        stored["backbone"] = backbone
    if isinstance(train := stored.get("train"), list | tuple):
        stored["train"] = [_NETWORKS.get(name, name) for name in train if isinstance(name, str)]
    return stored


def _completed(stored):
    """Move keys that were in other sections and add the families that were implicit before."""
    backbone, teachers = stored.get("backbone"), stored.get("teachers")
    if isinstance(tokenizer := stored.get("tokenizer"), Mapping):
        stored["tokenizer"] = _of_one_family(tokenizer)
    if isinstance(discriminator := stored.get("discriminator"), Mapping):
        stored["discriminator"] = {"family": "patchgan", **discriminator}
    if isinstance(backbone, Mapping) and _PROJECTOR_DIM in backbone:
        stored["backbone"] = {k: v for k, v in backbone.items() if k != _PROJECTOR_DIM}
        stored["projector"] = {"family": "mlp", "hidden": backbone[_PROJECTOR_DIM]}
    if isinstance(teachers, Mapping):
        stored["teachers"] = {name: complete_teacher(entry) for name, entry in teachers.items()}
    return stored


def complete_teacher(entry: Any) -> Any:
    """Add the family to a stored entry of `config.teachers`: earlier versions had only ViTs."""
    if not isinstance(entry, Mapping) or "family" in entry:
        return entry
    stem = entry.get("stem", ())
    return {**entry, "family": "vit", "stem": [] if stem is None else stem}


def _of_one_family(tokenizer):
    """Drop the other family's keys from a section that may hold those of both first families."""
    if not tokenizer.keys() >= {"temporal_downsample", "groups"}:
        return tokenizer
    family = tokenizer.get("family")
    if arch := tokenizer.get("arch"):
        family = "qwenimage" if arch == "qwenimage" else "kl"
    unread = _UNREAD.get(str(family), ())
    own = {key: value for key, value in tokenizer.items() if key not in unread}
    return {**own, "family": family}


def current_name(key: str) -> str | None:
    """The current name of a key of an earlier version, such as "sit.depth"; None if unchanged."""
    if key == f"sit.{_LABEL_DROP}":
        return "condition.drop"
    if key in (f"sit.{_PROJECTOR_DIM}", f"backbone.{_PROJECTOR_DIM}"):
        return "projector.hidden"
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return None
