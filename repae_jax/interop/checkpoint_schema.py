"""The schema of the original's training checkpoints: all parts but their tensors."""

import argparse
import json
from collections.abc import Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from repae_jax.errors import UserError
from repae_jax.utils.schema import check_schema, each, real, short_repr, whole

_MOST_PARAMETERS = 1_000_000


class _Group(TypedDict):
    params: each(whole(0, _MOST_PARAMETERS), 0, _MOST_PARAMETERS)
    lr: NotRequired[real()]
    betas: NotRequired[tuple[real(), real()]]


class _Optimizer(TypedDict):
    param_groups: each(_Group)
    state: dict[int, dict[str, Any]]


class _Parts(TypedDict, total=False):
    steps: whole(0, 2**31 - 1)
    epoch: whole(0, 2**31 - 1)  # JiT's
    model: dict[str, Any]
    ema: dict[str, Any]
    vae: dict[str, Any]
    discriminator: dict[str, Any]
    opt: dict[str, Any]
    opt_vae: dict[str, Any]
    opt_disc: dict[str, Any]


def check_parts(content: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a part of a checkpoint that does not fit the schema."""
    check_schema(content, _Parts, source=f"{source}: ")
    for key in ("opt", "opt_vae", "opt_disc"):
        if content.get(key):
            check_schema(content[key], _Optimizer, source=f"{source}: {key}.")


def notes_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The notes of an earlier step of reading; an entry of that name in a file is none."""
    notes = content.get("notes", ())
    whole = isinstance(notes, tuple) and all(isinstance(note, str) for note in notes)
    return notes if whole else ()


def arguments_of(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The arguments of a checkpoint by name, as values that JSON can hold; {} if it has none.

    Raises:
      UserError: `args` is neither a dict nor a Namespace, or JSON cannot hold a value.
    """
    args = content.get("args", {})
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise UserError(f"{source}: its 'args' are {short_repr(args)}, not arguments by name")
    for name, value in args.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"{source}: its argument {short_repr(name)} is {short_repr(value)}, which is no "
                "plain value"
            ) from error
    return dict(args)
