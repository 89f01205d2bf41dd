import math

import numpy as np
import pytest
import scipy.stats
import torch

from repae_jax.evaluation.inception_score import InceptionScore


def softmax(count, classes, seed=0, scale=3.0):
    logits = np.random.default_rng(seed).normal(size=(count, classes)) * scale
    return scipy.special.softmax(logits, axis=1)


def inception_score(probabilities, split_size=5000):
    """Of all probabilities (N, C) at once."""
    score = InceptionScore(split_size)
    score.update(probabilities)
    return score.result()


def by_definition(probabilities, split_size):
    """Image by image: the Kullback-Leibler divergence from its split's marginal."""
    scores = []
    for start in range(0, len(probabilities), split_size):
        part = probabilities[start : start + split_size]
        marginal = part.mean(0)
        scores.append(math.exp(np.mean([scipy.stats.entropy(row, marginal) for row in part])))
    return math.fsum(scores) / len(scores)


@pytest.mark.parametrize("split_size", [50, 64, 5000])
@pytest.mark.parametrize("batch", [1, 17, 150])
def test_matches_the_definition_however_it_is_batched(split_size, batch):
    probabilities = softmax(150, 40)
    score = InceptionScore(split_size)
    for start in range(0, 150, batch):
        score.update(probabilities[start : start + batch])
    assert score.result() == pytest.approx(by_definition(probabilities, split_size), rel=1e-12)
    assert len(score.scores()) == math.ceil(150 / split_size)


def test_matches_torchs_divergence_in_float32():
    probabilities = softmax(500, 1008).astype(np.float32)
    rows = torch.tensor(probabilities)
    marginal = rows.mean(0, keepdim=True).expand_as(rows)
    divergence = torch.nn.functional.kl_div(marginal.log(), rows, reduction="batchmean")
    assert inception_score(probabilities) == pytest.approx(divergence.exp().item(), rel=1e-5)


def test_bounds_are_reached():
    assert inception_score(np.tile(np.eye(10), (7, 1))) == pytest.approx(10.0, rel=1e-12)
    assert inception_score(np.tile(softmax(1, 10), (7, 1))) == pytest.approx(1.0, rel=1e-12)


def test_a_result_under_way_does_not_disturb_the_sums():
    probabilities = softmax(90, 12)
    score = InceptionScore(40)
    for part in np.split(probabilities, 3):
        score.update(part)
        score.result()
    assert score.result() == inception_score(probabilities, 40)


def test_what_is_no_distribution_is_refused():
    probabilities = softmax(6, 5)
    for broken, message in [
        (probabilities * 2, "sum to 1"),
        (np.log(probabilities), "give the softmax"),
        (np.where(np.arange(6)[:, None] == 4, math.nan, probabilities), "row 4"),
        (probabilities[0], r"must be \(N, D\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            inception_score(broken)
    with pytest.raises(ValueError, match="no images"):
        InceptionScore().result()
    score = InceptionScore(6)
    score.update(probabilities)
    with pytest.raises(ValueError, match="4 and of 5"):
        score.update(softmax(2, 4))
