"""GenEval's rules: whether detected objects fit a prompt (arXiv 2310.11513, section 3).

A prompt's metadata has its tag, the objects that it includes (class, count, color, and position
relative to an earlier entry), and those that it excludes. The published score is the mean over tags
of each tag's mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from repae_jax.data.described import Box

_SHRINK = 0.1  # share of the two sizes by which an offset is shortened
_ALONG = 0.5  # share of the offset's length above which a relation holds


class Detection(NamedTuple):
    """A detected object."""

    kind: str  # its class
    box: Box
    color: str = ""
    confidence: float = 1.0


def fits(metadata: Mapping, detections: Sequence[Detection]) -> tuple[bool, str]:
    """Whether detections fit a prompt, and if not, the reason in words.

    Of each class, the `count` most confident objects are looked at; one more of the class is no
    fault unless the prompt excludes it.
    """
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda it: -it.confidence):
        found.setdefault(detection.kind, []).append(detection)
    groups: list[list[Detection] | None] = []
    reasons = []
    for wanted in metadata["include"]:
        group, reason = _matched(wanted, found.get(wanted["class"], []), groups)
        groups.append(group)
        if reason:
            reasons.append(reason)
    for barred in metadata.get("exclude", ()):
        number = len(found.get(barred["class"], []))
        if number >= barred["count"]:
            reasons.append(f"expected {barred['class']} < {barred['count']}, found {number}")
    return not reasons, "; ".join(reasons)


def relations(first: Box, second: Box) -> set[str]:
    """How the first box lies to the second: of "left of", "right of", "above", "below"."""
    boxes = np.array([first, second])
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offset = centers[0] - centers[1]
    shortened = np.maximum(np.abs(offset) - _SHRINK * sizes.sum(0), 0) * np.sign(offset)
    if (np.abs(shortened) < 1e-3).all():
        return set()
    x, y = shortened / np.linalg.norm(offset)
    held = {
        "left of": x < -_ALONG,
        "right of": x > _ALONG,
        "above": y < -_ALONG,
        "below": y > _ALONG,
    }
    return {name for name, holds in held.items() if holds}


class Score(NamedTuple):
    """The share of images that fit their prompts, with Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    count: int


def score_of(fitting: Sequence[bool]) -> Score:
    """The score of images; NaN without any."""
    count = len(fitting)
    if not count:
        return Score(math.nan, math.nan, math.nan, 0)
    from scipy.stats import binomtest

    passed = int(sum(fitting))
    interval = binomtest(passed, count).proportion_ci(method="wilson")
    return Score(passed / count, float(interval.low), float(interval.high), count)


def overall(by_tag: Mapping[str, Score]) -> float:
    """GenEval's published score: the mean over tags of each tag's share."""
    return float(np.mean([score.share for score in by_tag.values()]))


def _matched(wanted, objects, groups):
    """(the objects that fit an entry of "include", or None; the reason if it does not hold)."""
    kind, count = wanted["class"], wanted["count"]
    objects = objects[:count]
    if len(objects) < count:
        return None, f"expected {kind} >= {count}, found {len(objects)}"
    if "color" in wanted:
        matching = [it for it in objects if it.color == wanted["color"]]
        if len(matching) < count:
            return None, (
                f"expected {wanted['color']} {kind} >= {count}, found {len(matching)} of the "
                f"color and {len(objects) - len(matching)} of others"
            )
    if "position" in wanted:
        relation, number = wanted["position"]
        others = groups[number]
        if others is None:
            return objects, f"no target for {kind} to be {relation}"
        for one in objects:
            for other in others:
                held = relations(one.box, other.box)
                if relation not in held:
                    lies = " and ".join(sorted(held)) or "neither beside nor above"
                    return objects, f"expected {kind} {relation} target, found {lies} target"
    return objects, ""
