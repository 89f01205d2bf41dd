"""Stored configurations of earlier versions, brought into today's names."""

from collections.abc import Mapping
from typing import Any

from repae_jax.errors import UserError

VERSION = 2
KEY = "version"

# Version 1 (no key "version") knew one backbone and one tokenizer by their own names.
_NETWORKS = {"sit": "backbone", "vae": "tokenizer"}
RENAMED = {
    **_NETWORKS,
    **{f"optimizer.{old}": f"optimizer.{new}" for old, new in _NETWORKS.items()},
    **{
        f"objective.{old}_alignment": f"objective.{new}_alignment" for old, new in _NETWORKS.items()
    },
    **{f"compute.{old}_remat": f"compute.{new}_remat" for old, new in _NETWORKS.items()},
}
# The first configurations showed the keys of both families of tokenizers, and took no notice of the
# other's; a preset's family was not in "family".
_UNREAD = {
    "kl": ("temporal_downsample",),
    "qwenimage": ("attention_levels", "middle_attention", "quant_conv", "groups"),
}
_LABEL_DROP = "label_drop"  # of "sit", now "drop" of "condition"
_PROJECTOR_DIM = "projector_dim"  # of "sit" and of "backbone", now "hidden" of "projector"
RENAMED_RECIPES = {"sit": "vanilla"}


def versioned(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain values, with the version that its names are of."""
    return {**config, KEY: VERSION}


def upgraded(stored: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """A stored configuration in today's names, without its version; nothing else changes.

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
    """With what was in another place, or went without saying, before families had names."""
    backbone, teachers = stored.get("backbone"), stored.get("teachers")
    if isinstance(tokenizer := stored.get("tokenizer"), Mapping):
        stored["tokenizer"] = _of_one_family(tokenizer)
    if isinstance(backbone, Mapping) and _PROJECTOR_DIM in backbone:
        stored["backbone"] = {k: v for k, v in backbone.items() if k != _PROJECTOR_DIM}
        stored["projector"] = {"family": "mlp", "hidden": backbone[_PROJECTOR_DIM]}
    if isinstance(teachers, Mapping):
        stored["teachers"] = {name: completed_teacher(entry) for name, entry in teachers.items()}
    return stored


def completed_teacher(entry: Any) -> Any:
    """A stored entry of `config.teachers` with its family: there was one, before they had names."""
    if not isinstance(entry, Mapping) or "family" in entry:
        return entry
    stem = entry.get("stem", ())
    return {**entry, "family": "vit", "stem": [] if stem is None else stem}


def _of_one_family(tokenizer):
    """A section that may show the keys of both first families, with those of its own."""
    if not tokenizer.keys() >= {"temporal_downsample", "groups"}:
        return tokenizer
    family = tokenizer.get("family")
    if arch := tokenizer.get("arch"):
        family = "qwenimage" if arch == "qwenimage" else "kl"
    unread = _UNREAD.get(str(family), ())
    own = {key: value for key, value in tokenizer.items() if key not in unread}
    return {**own, "family": family}


def present_name(key: str) -> str | None:
    """Today's name of a key such as "sit.depth" of an earlier version, or None."""
    if key == f"sit.{_LABEL_DROP}":
        return "condition.drop"
    if key in (f"sit.{_PROJECTOR_DIM}", f"backbone.{_PROJECTOR_DIM}"):
        return "projector.hidden"
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return None
