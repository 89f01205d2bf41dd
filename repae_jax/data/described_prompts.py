"""Prompts of GenEval's six tags for described images, and renders that fit them."""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from repae_jax.data.described import RESOLUTION, Rendered, render
from repae_jax.data.descriptions import (
    COLORS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    caption_of,
    holds_unseen,
    scene_of,
)
from repae_jax.data.geneval_metadata import TAGS
from repae_jax.errors import UserError
from repae_jax.utils.schema import short_repr

_STREAM = 3  # of renders; `described` and `described_objects` use the streams before it


def make_prompts(count: int, seed: int = 0) -> list[dict]:
    """GenEval's metadata of `count` prompts for each tag, tag by tag.

    The tags colors, position and color_attr have combinations that the training split lacks: every
    second of their prompts is such a one. Prompts repeat where a tag has fewer combinations.

    Args:
      count: prompts of a tag.
      seed: seed of the choice and order of the prompts.
    """
    prompts = []
    for number, tag in enumerate(TAGS):
        scenes = list(_scenes(tag))
        order = np.random.default_rng([seed, number]).permutation(len(scenes))
        groups: dict[bool, list[Scene]] = {}
        for index in order:
            groups.setdefault(holds_unseen(scenes[index]), []).append(scenes[index])
        sources = [itertools.cycle(groups[unseen]) for unseen in sorted(groups)]
        chosen = itertools.islice(itertools.cycle(sources), count)
        prompts += [metadata_of(tag, next(source)) for source in chosen]
    return prompts


def metadata_of(tag: str, scene: Scene) -> dict:
    """GenEval's metadata of a prompt that names what the scene has set.

    The second object stands first, as in GenEval's files: the first one's position refers to it.
    """
    include = [_entry(thing) for thing in scene.things]
    if scene.relation:
        include = [include[1], include[0] | {"position": [scene.relation, 0]}]
    metadata = {"tag": tag, "include": include}
    if tag == "counting":
        metadata["exclude"] = [it | {"count": it["count"] + 1} for it in include]
    return metadata | {"prompt": caption_of(scene)}


def is_unseen(prompt: str) -> bool:
    """Whether a prompt names a combination that the training split lacks; raises as `scene_of`."""
    return holds_unseen(scene_of(prompt))


def check_known(metadata: dict, *, source: str) -> None:
    """Raise UserError unless the prompt and its objects are those of described images."""
    for entry in [*metadata["include"], *metadata.get("exclude", ())]:
        for key, known in (("class", SHAPES), ("color", COLORS)):
            if key in entry and entry[key] not in known:
                raise UserError(
                    f"{source}: {key} {short_repr(entry[key])} is none of described images: "
                    f"{', '.join(known)}"
                )
    if metadata["tag"] not in TAGS:
        raise UserError(f"{source}: tag {short_repr(metadata['tag'])} is none of {', '.join(TAGS)}")
    try:
        scene_of(metadata["prompt"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def render_prompt(
    prompt: str, number: int, copy: int = 0, resolution: int = RESOLUTION
) -> Rendered:
    """An image that fits a prompt, a pure function of the arguments.

    What the prompt leaves open is random. Neither split of the data set has these images.

    Args:
      prompt: a caption of the grammar.
      number: the prompt's number, which selects the random numbers together with `copy`.
      copy: number of the image among those of the prompt.
      resolution: pixels along a side.

    Raises:
      UserError: the prompt is none of the grammar.
    """
    rng = np.random.default_rng([_STREAM, number, copy])
    scene = fill_in(rng, scene_of(prompt))
    image, boxes, masks = render(rng, scene, resolution)
    return Rendered(image, scene, boxes, masks, prompt)


def fill_in(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with random values for the attributes that it leaves open.

    Several objects of a kind are small, and the background has none of the objects' colors.
    """
    things = tuple(
        dataclasses.replace(
            thing,
            color=thing.color or _pick(rng, COLORS),
            size=thing.size or ("small" if thing.count > 1 else _pick(rng, tuple(SIZES))),
        )
        for thing in scene.things
    )
    relation = scene.relation or (_pick(rng, RELATIONS) if len(things) == 2 else "")
    colors = {thing.color for thing in things}
    free = [color for color in COLORS if color not in colors]
    return Scene(things, relation, scene.background or _pick(rng, free))


def _scenes(tag) -> Iterator[Scene]:
    """All that the prompts of a tag name, in a fixed order."""
    pairs = itertools.permutations(SHAPES, 2)
    if tag == "single_object":
        yield from (Scene((Thing(shape),)) for shape in SHAPES)
    elif tag == "two_object":
        yield from (Scene((Thing(a), Thing(b))) for a, b in pairs)
    elif tag == "counting":
        kinds = itertools.product(SHAPES, NUMBERS)
        yield from (Scene((Thing(shape, count=count),)) for shape, count in kinds)
    elif tag == "colors":
        kinds = itertools.product(SHAPES, COLORS)
        yield from (Scene((Thing(shape, color),)) for shape, color in kinds)
    elif tag == "position":
        both = itertools.product(pairs, RELATIONS)
        yield from (Scene((Thing(a), Thing(b)), relation) for (a, b), relation in both)
    else:
        both = itertools.product(pairs, itertools.permutations(COLORS, 2))
        yield from (Scene((Thing(a, one), Thing(b, other))) for (a, b), (one, other) in both)


def _entry(thing):
    color = {"color": thing.color} if thing.color else {}
    return {"class": thing.shape, "count": thing.count} | color


def _pick(rng, values):
    return values[rng.integers(len(values))]
