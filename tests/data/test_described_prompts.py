"""Prompts for described images: GenEval's metadata, seen and unseen, and renders that fit them."""

import collections

import numpy as np
import pytest

from repae_jax.data.described_objects import MOST, draw_objects, render_objects
from repae_jax.data.described_prompts import (
    check_known,
    fill_in,
    is_unseen,
    make_prompts,
    metadata_of,
    render_prompt,
)
from repae_jax.data.descriptions import COLORS, SHAPES, Scene, Thing, is_held_out, scene_of
from repae_jax.data.geneval_metadata import TAGS, check_metadata
from repae_jax.errors import UserError


def test_metadata_is_as_geneval_writes_it():
    """Compared with lines of GenEval's own evaluation_metadata.jsonl, with other nouns."""
    scene = Scene((Thing("disc"), Thing("arrow")), "right of")
    assert metadata_of("position", scene) == {
        "tag": "position",
        "include": [
            {"class": "arrow", "count": 1},
            {"class": "disc", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a disc right of an arrow",
    }
    assert metadata_of("counting", Scene((Thing("star", count=3),))) == {
        "tag": "counting",
        "include": [{"class": "star", "count": 3}],
        "exclude": [{"class": "star", "count": 4}],
        "prompt": "a photo of three stars",
    }
    both = metadata_of("color_attr", Scene((Thing("L", "red"), Thing("T", "blue"))))
    assert both["include"] == [
        {"class": "L", "count": 1, "color": "red"},
        {"class": "T", "count": 1, "color": "blue"},
    ]


def test_prompts_are_valid_and_evenly_spread():
    prompts = make_prompts(50)
    assert collections.Counter(prompt["tag"] for prompt in prompts) == dict.fromkeys(TAGS, 50)
    for prompt in prompts:
        check_metadata(prompt, source="it")
        check_known(prompt, source="it")
    unseen = collections.Counter(p["tag"] for p in prompts if is_unseen(p["prompt"]))
    assert unseen == {"colors": 25, "position": 25, "color_attr": 25}
    shapes = collections.Counter(p["include"][0]["class"] for p in prompts[:50])
    assert set(shapes) == set(SHAPES)
    assert max(shapes.values()) - min(shapes.values()) <= 1
    for tag in ("two_object", "position", "color_attr"):  # these have combinations enough
        texts = [prompt["prompt"] for prompt in prompts if prompt["tag"] == tag]
        assert len(set(texts)) == 50


def test_the_training_split_lacks_what_is_unseen():
    for prompt in make_prompts(40):
        include = prompt["include"]
        pairs = [is_held_out(it["color"], it["class"]) for it in include if "color" in it]
        if "position" in include[-1]:
            relation, target = include[1]["position"]
            words = (include[1]["class"], relation, include[target]["class"])
            pairs.append(is_held_out(*words))
        assert is_unseen(prompt["prompt"]) == any(pairs)


def test_prompts_depend_on_their_seed_alone():
    assert make_prompts(7, 3) == make_prompts(7, 3)
    assert make_prompts(7, 3) != make_prompts(7, 4)


def test_renders_show_what_their_prompts_name():
    for number, metadata in enumerate(make_prompts(8)):
        made = render_prompt(metadata["prompt"], number)
        named = scene_of(metadata["prompt"])
        for thing, said in zip(made.scene.things, named.things, strict=True):
            assert (thing.shape, thing.count) == (said.shape, said.count)
            assert said.color in ("", thing.color)
        assert named.relation in ("", made.scene.relation)
        assert made.scene.background not in {thing.color for thing in made.scene.things}
    again = render_prompt(metadata["prompt"], number)
    np.testing.assert_array_equal(again.image, made.image)
    others = [render_prompt(metadata["prompt"], number, 1), render_prompt(metadata["prompt"], 0)]
    assert not any(np.array_equal(other.image, made.image) for other in others)


def test_filling_in_sets_every_attribute_and_changes_none():
    named = Scene((Thing("disc", "", "large"), Thing("L", "red")), "", "blue")
    for seed in range(20):
        scene = fill_in(np.random.default_rng(seed), named)
        assert scene.things[0].size == "large"
        assert scene.things[1].color == "red"
        assert scene.background == "blue"
        assert scene.relation
        assert all(thing.color for thing in scene.things)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tag="style"), "tag 'style' is none of single_object"),
        (dict(include=[{"class": "dog", "count": 1}]), "class 'dog' is none of described images"),
        (dict(exclude=[{"class": "dog", "count": 1}]), "class 'dog'"),
        (dict(include=[{"class": "disc", "count": 1, "color": "gray"}]), "color 'gray'"),
        (dict(prompt="a photo of a dog"), "line 1: the caption 'a photo of a dog' is none"),
    ],
)
def test_prompts_of_other_images_are_named(change, message):
    metadata = metadata_of("single_object", Scene((Thing("disc"),)))
    check_known(metadata, source="line 1")
    with pytest.raises(UserError, match=message):
        check_known(metadata | change, source="line 1")


def test_objects_of_renders_are_where_their_boxes_say():
    renders = render_objects(40, progress=False)
    assert renders["image"].shape == (40, 32, 32, 3)
    assert renders["box"].shape == (40, MOST, 4)
    for image, box, valid in zip(*(renders[k] for k in ("image", "box", "valid")), strict=True):
        assert valid.any()
        contrast = np.abs(image - np.median(image.reshape(-1, 3), axis=0)).max(-1)
        for left, top, right, bottom in np.rint((box[valid] + 1) * 16).astype(int):
            inside = contrast[max(top, 0) : bottom, max(left, 0) : right]
            assert (inside > 40).mean() > 0.1
    later = render_objects(2, first=3, progress=False)
    np.testing.assert_array_equal(later["image"], renders["image"][3:5])


def test_objects_have_any_color_that_is_not_the_background():
    scenes = [draw_objects(np.random.default_rng(seed)) for seed in range(800)]
    pairs = {(thing.color, thing.shape) for scene in scenes for thing in scene.things}
    assert any(is_held_out(*pair) for pair in pairs)
    assert {color for color, _ in pairs} == set(COLORS)
    counts = collections.Counter(sum(t.count for t in scene.things) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    for scene in scenes:
        assert scene.background not in {thing.color for thing in scene.things}
