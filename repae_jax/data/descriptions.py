"""What `described` images show, and the captions that describe it: a small grammar, read both ways.

    caption  = ["a photo of "] phrase [relation phrase] [" on a COLOR background"]
    phrase   = ("a" | "an") [size] [color] shape  |  ("two" | "three") [color] shapes
    relation = "left of" | "right of" | "above" | "below" | "and"

A caption may leave attributes out, as captions of photographs do. A tenth of all pairs of color and
shape, and of all triples (shape, relation, shape), never occur in the training split.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from repae_jax.errors import UserError
from repae_jax.utils.schema import short_repr

# Each shape and its plural. These shapes of `outlines.SHAPES` differ visibly at 32 x 32 pixels.
PLURALS = {
    "disc": "discs", "ring": "rings", "square": "squares", "frame": "frames",
    "triangle": "triangles", "star": "stars", "cross": "crosses", "heart": "hearts",
    "crescent": "crescents", "arrow": "arrows", "L": "Ls", "T": "Ts",
}  # fmt: skip
SHAPES = tuple(PLURALS)
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
# size -> the range of its radius; an image is 2 wide. Sizes between the two have no name.
SIZES = {"small": (0.33, 0.36), "": (0.385, 0.415), "large": (0.44, 0.47)}
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three"}  # the words for several objects
_OPPOSITE = {"right of": "left of", "below": "above"}
_NAMED = 0.7  # probability that a caption names an attribute
_VOWELS = "aeiouL"  # "an L"


@dataclasses.dataclass(frozen=True)
class Thing:
    """Objects of one kind in an image or a caption; "" for attributes that a caption leaves out."""

    shape: str
    color: str = ""
    size: str = ""
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Scene:
    """One kind of objects, or two single objects and how the first lies to the second.

    Attributes:
      things: one or two.
      relation: one of `RELATIONS`, or "" for one thing and for captions that only say "and".
      background: one of `COLORS`, or "" in captions that leave it out.
    """

    things: tuple[Thing, ...]
    relation: str = ""
    background: str = ""


def is_held_out(*words: str) -> bool:
    """Whether the training split lacks this pair (color, shape) or triple (shape, rel, shape).

    A triple and its opposite ("A left of B", "B right of A") are one.
    """
    if len(words) == 3 and words[1] in _OPPOSITE:
        words = (words[2], _OPPOSITE[words[1]], words[0])
    return zlib.crc32(" ".join(words).encode()) % 10 == 3


def holds_unseen(scene: Scene) -> bool:
    """Whether a scene has a pair or a triple that the training split lacks."""
    pairs = any(is_held_out(thing.color, thing.shape) for thing in scene.things if thing.color)
    if pairs or not scene.relation:
        return pairs
    first, second = scene.things
    return is_held_out(first.shape, scene.relation, second.shape)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene of the training split, every attribute set."""
    while True:
        background = _pick(rng, COLORS)
        kind = rng.random()
        if kind < 0.2:
            count = int(rng.integers(2, 4))
            things = (Thing(_pick(rng, SHAPES), _pick(rng, COLORS), "small", count),)
            scene = Scene(things, "", background)
        else:
            number = 1 if kind < 0.5 else 2
            sizes = tuple(SIZES) if number == 2 else ("small", "", "large")
            things = tuple(
                Thing(_pick(rng, SHAPES), _pick(rng, COLORS), _pick(rng, sizes))
                for _ in range(number)
            )
            scene = Scene(things, _pick(rng, RELATIONS) if number == 2 else "", background)
        shapes, colors = ({getattr(t, key) for t in things} for key in ("shape", "color"))
        clear = len(shapes) == len(things) and background not in colors
        if clear and not holds_unseen(scene):
            return scene


def leave_out(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with a random part of its attributes, as a caption names them."""

    def kept(value):
        return value if rng.random() < _NAMED else ""

    things = tuple(
        dataclasses.replace(
            thing, color=kept(thing.color), size=kept(thing.size) if thing.count == 1 else ""
        )
        for thing in scene.things
    )
    background = scene.background if rng.random() < 0.3 else ""
    return Scene(things, kept(scene.relation), background)


def caption_of(scene: Scene, *, photo: bool = True) -> str:
    """The caption that names exactly the attributes that a scene has set."""
    text = _phrase(scene.things[0])
    if len(scene.things) == 2:
        text += f" {scene.relation or 'and'} {_phrase(scene.things[1])}"
    if scene.background:
        text += f" on {_article(scene.background)} {scene.background} background"
    return f"a photo of {text}" if photo else text


def scene_of(caption: str) -> Scene:
    """The attributes that a caption names, the inverse of `caption_of`.

    Raises:
      UserError: the caption is none of the grammar.
    """
    text, background = caption.removeprefix("a photo of "), ""
    if text.endswith(" background"):
        text, _, background = text.removesuffix(" background").rpartition(" on ")
        background = background.partition(" ")[2]
        _require(background in COLORS, caption)
    for relation in ("and", *RELATIONS):
        first, found, second = text.partition(f" {relation} ")
        if found:
            things = (_thing(first, caption), _thing(second, caption))
            return Scene(things, "" if relation == "and" else relation, background)
    return Scene((_thing(text, caption),), "", background)


def words() -> Iterator[str]:
    """Every word of the grammar, in a fixed order."""
    yield from ("a", "an", "photo", "of", "on", "background", "and", "left", "right", "above")
    yield from ("below", *NUMBERS.values(), "small", "large", *COLORS, *SHAPES, *PLURALS.values())


def _phrase(thing):
    if thing.count > 1:
        return _joined([NUMBERS[thing.count], thing.color, PLURALS[thing.shape]])
    named = _joined([thing.size, thing.color, thing.shape])
    return f"{_article(named)} {named}"


def _thing(text, caption):
    first, *rest = text.split(" ")
    count = {word: number for number, word in NUMBERS.items()}.get(first, 1)
    names = {plural: shape for shape, plural in PLURALS.items()} if count > 1 else None
    _require(bool(rest) and (count > 1 or first in ("a", "an")), caption)
    shape = names.get(rest[-1], "") if names else rest[-1]
    size, color = "", ""
    for word in rest[:-1]:
        if word in ("small", "large") and not size and not color and count == 1:
            size = word
        else:
            _require(word in COLORS and not color, caption)
            color = word
    _require(shape in SHAPES, caption)
    return Thing(shape, color, size, count)


def _article(words_after):
    return "an" if words_after[0] in _VOWELS else "a"


def _joined(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def _pick(rng, values):
    return values[rng.integers(len(values))]


def _require(holds, caption):
    if not holds:
        raise UserError(
            f"the caption {short_repr(caption)} is none of the grammar of described images, such "
            "as 'a photo of a red disc left of a small star on a blue background'"
        )
