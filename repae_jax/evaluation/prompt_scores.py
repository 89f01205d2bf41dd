"""Scores of images for GenEval's prompts, between a floor and a ceiling."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from repae_jax.data.geneval_metadata import TAGS
from repae_jax.evaluation.geneval import Detection, Score, fits, overall, score_of

Found = Sequence[Sequence[Sequence[Detection]]]  # prompt, image, object


class TagScores(NamedTuple):
    """The scores of a tag's prompts.

    Attributes:
      all: of all images.
      seen: of prompts whose combinations the training split has.
      unseen: of the others.
      floor: the share of images that fit the tag's other prompts: what images score that ignore
        their prompts. NaN for a single prompt.
      ceiling: the score of true images of the same prompts: where it is low, the judge errs.
    """

    all: Score
    seen: Score
    unseen: Score
    floor: float
    ceiling: Score


def score_by_tag(
    prompts: Sequence[Mapping],
    found: Found,
    true: Found,
    is_unseen: Callable[[Mapping], bool],
) -> dict[str, TagScores]:
    """Score the images of prompts, tag by tag in GenEval's order.

    Args:
      prompts: metadata of the prompts.
      found: what a judge detects in the images of each prompt.
      true: what it detects in true images of each prompt.
      is_unseen: whether a prompt has a combination that the training split lacks.
    """
    tags = [tag for tag in TAGS if any(prompt["tag"] == tag for prompt in prompts)]
    return {
        tag: _scores(
            [it for it in zip(prompts, found, true, strict=True) if it[0]["tag"] == tag], is_unseen
        )
        for tag in tags
    }


def _scores(rows, is_unseen):
    verdicts = {True: [], False: []}
    for prompt, found, _ in rows:
        verdicts[is_unseen(prompt)] += [fits(prompt, image)[0] for image in found]
    ceiling = [fits(prompt, image)[0] for prompt, _, true in rows for image in true]
    return TagScores(
        all=score_of(verdicts[False] + verdicts[True]),
        seen=score_of(verdicts[False]),
        unseen=score_of(verdicts[True]),
        floor=_floor([(prompt, found) for prompt, found, _ in rows]),
        ceiling=score_of(ceiling),
    )


def _floor(rows):
    """The share of pairs of an image and another prompt that fit each other."""
    fitting = [
        fits(prompt, image)[0]
        for (prompt, _), (_, found) in itertools.permutations(rows, 2)
        for image in found
    ]
    return float(np.mean(fitting)) if fitting else math.nan


def mean_over_tags(scores: Mapping[str, TagScores]) -> dict[str, float]:
    """GenEval's overall score of each column: the mean over the tags that have it."""
    columns = {}
    for name in ("all", "seen", "unseen", "ceiling"):
        by_tag = {tag: getattr(it, name) for tag, it in scores.items() if getattr(it, name).count}
        columns[name] = overall(by_tag) if by_tag else math.nan
    floors = [it.floor for it in scores.values() if not math.isnan(it.floor)]
    columns["floor"] = float(np.mean(floors)) if floors else math.nan
    return columns
