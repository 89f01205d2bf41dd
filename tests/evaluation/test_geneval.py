"""GenEval's rules on boxes: counts, colors, positions, exclusions, and the score."""

import math

import pytest

from repae_jax.data.described import Box
from repae_jax.data.geneval_metadata import check_metadata
from repae_jax.errors import UserError
from repae_jax.evaluation.geneval import (
    Detection,
    Score,
    fits,
    overall,
    relations,
    score_of,
)


def at(kind, x, y, size=0.2, **rest):
    return Detection(kind, Box(x - size, y - size, x + size, y + size), **rest)


def prompt(*include, exclude=()):
    return dict(tag="position", prompt="it", include=list(include), exclude=list(exclude))


@pytest.mark.parametrize(
    ("x", "y", "held"),
    [
        (-0.6, 0.0, {"left of"}),
        (0.6, 0.1, {"right of"}),
        (0.0, -0.6, {"above"}),
        (0.1, 0.6, {"below"}),
        (0.6, 0.6, {"right of", "below"}),  # 0.6 - 0.08 over 0.85 is 0.61 on both axes
        (0.05, 0.0, set()),  # closer than a tenth of both sizes
        (0.3, 0.13, {"right of"}),
    ],
)
def test_relations_are_of_the_shortened_offset(x, y, held):
    first, second = at("disc", x, y).box, at("star", 0.0, 0.0).box
    assert relations(first, second) == held


def test_a_count_is_at_least_and_an_exclusion_is_a_limit():
    two = dict(include=[{"class": "disc", "count": 2}], exclude=[{"class": "disc", "count": 3}])
    discs = [at("disc", x, 0.0) for x in (-0.6, 0.0, 0.6)]
    assert not fits(two, discs[:1])[0]
    assert fits(two, discs[:2]) == (True, "")
    assert fits(two, discs) == (False, "expected disc < 3, found 3")
    assert fits({"include": two["include"]}, discs)[0]


def test_the_most_confident_objects_are_looked_at():
    red = {"include": [{"class": "disc", "count": 1, "color": "red"}]}
    sure = at("disc", 0.0, 0.0, color="red", confidence=0.9)
    unsure = at("disc", 0.5, 0.0, color="blue", confidence=0.4)
    assert fits(red, [unsure, sure])[0]
    assert not fits(red, [unsure._replace(confidence=0.95), sure])[0]


def test_a_color_belongs_to_its_object():
    both = prompt(
        {"class": "disc", "count": 1, "color": "red"},
        {"class": "star", "count": 1, "color": "blue"},
    )
    right = [at("disc", -0.5, 0.0, color="red"), at("star", 0.5, 0.0, color="blue")]
    swapped = [at("disc", -0.5, 0.0, color="blue"), at("star", 0.5, 0.0, color="red")]
    assert fits(both, right)[0]
    assert not fits(both, swapped)[0]


def test_turning_a_relation_turns_the_verdict():
    objects = [at("disc", -0.5, 0.0), at("star", 0.5, 0.0)]
    for relation, holds in (("right of", True), ("left of", False), ("above", False)):
        metadata = prompt(
            {"class": "disc", "count": 1},
            {"class": "star", "count": 1, "position": [relation, 0]},
        )
        assert fits(metadata, objects)[0] == holds


def test_a_missing_target_is_a_fault():
    metadata = prompt(
        {"class": "disc", "count": 1}, {"class": "star", "count": 1, "position": ["above", 0]}
    )
    fitting, reason = fits(metadata, [at("star", 0.0, 0.0)])
    assert not fitting
    assert reason == "expected disc >= 1, found 0; no target for star to be above"


def test_nothing_fits_a_blank_image():
    assert not fits(prompt({"class": "disc", "count": 1}), [])[0]


def test_scores_have_wilsons_interval_and_the_mean_is_over_tags():
    score = score_of([True] * 8 + [False] * 2)
    assert score.share == 0.8
    assert (round(score.low, 3), round(score.high, 3)) == (0.490, 0.943)
    assert math.isnan(score_of([]).share)
    assert overall({"a": Score(1.0, 0, 1, 400), "b": Score(0.0, 0, 1, 4)}) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tag=3), "tag"),
        (dict(include=[]), "include"),
        (dict(include=[{"count": 1}]), "include.0.class is None"),
        (dict(include=[{"class": "disc", "count": 0}]), "include.0.count"),
        (dict(include=[{"class": "disc", "count": 1, "colour": "red"}]), "colour"),
        (
            dict(include=[{"class": "disc", "count": 1, "position": ["above", 0]}]),
            "position refers to entry 0",
        ),
        (
            dict(
                include=[
                    {"class": "disc", "count": 1},
                    {"class": "star", "count": 1, "position": ["above", 0.0]},
                ]
            ),
            "position refers to entry 0.0",
        ),
    ],
)
def test_other_metadata_is_named(change, message):
    metadata = prompt({"class": "disc", "count": 1})
    check_metadata(metadata, source="line 1")
    with pytest.raises(UserError, match=message):
        check_metadata(metadata | change, source="line 1")
