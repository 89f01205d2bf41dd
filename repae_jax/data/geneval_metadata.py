"""The metadata of GenEval's prompts (arXiv 2310.11513): what images include and exclude."""

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from repae_jax.data.descriptions import RELATIONS
from repae_jax.errors import UserError
from repae_jax.utils.schema import Text, check_schema, each, whole

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class _Wanted(TypedDict):
    count: whole(1, 64)
    color: NotRequired[Text]
    position: NotRequired[each(Any, 2, 2)]  # relation, number of an earlier entry


class _Metadata(TypedDict):
    tag: Text
    prompt: Text
    include: each(dict[str, Any], 1, 64)
    exclude: NotRequired[each(dict[str, Any], 0, 64)]


def check_metadata(metadata: object, *, source: str) -> None:
    """Raise UserError unless a prompt's metadata is as GenEval's files have it."""
    check_schema(metadata, _Metadata, source=f"{source}: ")
    for key in ("include", "exclude"):
        for number, entry in enumerate(metadata.get(key, ())):
            where = f"{source}: {key}.{number}."
            if not isinstance(entry.get("class"), str):
                raise UserError(f"{where}class is {entry.get('class')!r}: name a class of objects")
            if unknown := sorted(entry.keys() - {"class", "count", "color", "position"}):
                raise UserError(f"{where}{unknown[0]}: an entry has no such key")
            rest = {name: value for name, value in entry.items() if name != "class"}
            check_schema(rest, _Wanted, source=where)
            if "position" in entry:
                _check_position(*entry["position"], number, where)


def _check_position(relation, target, number, where):
    if relation not in RELATIONS:
        raise UserError(f"{where}position is {relation!r}: use one of {', '.join(RELATIONS)}")
    if type(target) is not int or target not in range(number):
        raise UserError(f"{where}position refers to entry {target!r}, which is not before it")
