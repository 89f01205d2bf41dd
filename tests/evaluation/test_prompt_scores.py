"""Scores of prompts: true boxes score 1, what does not fit scores 0, floor and ceiling."""

import math

import pytest

from repae_jax.data.described_prompts import is_unseen, make_prompts, render_prompt
from repae_jax.data.geneval_metadata import TAGS
from repae_jax.evaluation.geneval import Detection, fits
from repae_jax.evaluation.prompt_scores import mean_over_tags, score_by_tag

PROMPTS = make_prompts(12)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def true_objects(made):
    """The objects of a render as a detector without fault would find them."""
    things = [thing for thing in made.scene.things for _ in range(thing.count)]
    return [
        Detection(thing.shape, box, thing.color)
        for thing, box in zip(things, made.boxes, strict=True)
    ]


@pytest.fixture(scope="module")
def true():
    return [
        [true_objects(render_prompt(prompt["prompt"], number, copy)) for copy in range(2)]
        for number, prompt in enumerate(PROMPTS)
    ]


def scores_of(found, true, prompts=PROMPTS):
    return score_by_tag(prompts, found, true, lambda prompt: is_unseen(prompt["prompt"]))


def test_true_boxes_score_one_in_every_tag(true):
    scores = scores_of(true, true)
    assert tuple(scores) == TAGS
    for tag, found in scores.items():
        assert found.all.share == found.ceiling.share == found.seen.share == 1
        assert found.all.count == found.seen.count + found.unseen.count == 24
        assert bool(found.unseen.count) == (tag in ("colors", "position", "color_attr"))
        assert found.floor < 0.25
    means = mean_over_tags(scores)
    assert (means["all"], means["seen"], means["unseen"], means["ceiling"]) == (1, 1, 1, 1)


def test_the_opposite_relation_turns_every_verdict(true):
    for prompt, images in zip(PROMPTS, true, strict=True):
        if prompt["tag"] != "position":
            continue
        first, second = prompt["include"]
        relation, target = second["position"]
        turned = [first, second | {"position": [OPPOSITE[relation], target]}]
        for found in images:
            assert fits(prompt, found)[0]
            assert not fits(prompt | {"include": turned}, found)[0]


def test_blank_images_score_zero(true):
    blank = [[[], []] for _ in PROMPTS]
    scores = scores_of(blank, true)
    assert [found.all.share for found in scores.values()] == [0] * 6
    assert [found.floor for found in scores.values()] == [0] * 6
    assert mean_over_tags(scores)["all"] == 0
    assert mean_over_tags(scores)["ceiling"] == 1


def test_swapped_colors_score_zero(true):
    """The colors of two objects exchanged: color_attr fails, two_object does not see it."""

    def swapped(found):
        if len(found) != 2 or found[0].kind == found[1].kind:
            return found
        return [
            it._replace(color=other.color) for it, other in zip(found, found[::-1], strict=True)
        ]

    scores = scores_of([[swapped(it) for it in images] for images in true], true)
    assert scores["color_attr"].all.share == 0
    assert scores["two_object"].all.share == scores["position"].all.share == 1


def test_the_floor_is_the_share_over_all_other_prompts():
    prompts = [
        {"tag": "single_object", "prompt": "it", "include": [{"class": name, "count": 1}]}
        for name in ("disc", "star", "star")
    ]
    disc, star = (Detection(name, (0, 0, 1, 1)) for name in ("disc", "star"))
    found = [[[disc]], [[star]], [[disc, star]]]
    scores = score_by_tag(prompts, found, found, lambda prompt: False)["single_object"]
    # images against others' prompts: disc - star, star; star - disc, star; both - disc, star
    assert scores.floor == pytest.approx((0 + 0 + 0 + 1 + 1 + 1) / 6)
    assert scores.all.share == 1
    alone = score_by_tag(prompts[:1], found[:1], found[:1], lambda prompt: False)["single_object"]
    assert math.isnan(alone.floor)
    assert math.isnan(alone.unseen.share)


def test_the_mean_is_over_the_tags_that_a_column_has():
    prompts = [dict(prompt) for prompt in PROMPTS if prompt["tag"] in ("counting", "colors")]
    found = [[[]] for _ in prompts]
    means = mean_over_tags(scores_of(found, found, prompts))
    assert means["unseen"] == means["all"] == 0
    seen = [prompt for prompt in prompts if prompt["tag"] == "counting"]
    means = mean_over_tags(scores_of(found[: len(seen)], found[: len(seen)], seen))
    assert math.isnan(means["unseen"])
