"""The Inception Score: a classifier's certainty per image and its variety of classes."""

import numpy as np
from scipy.special import xlogy

from repae_jax.errors import UserError
from repae_jax.evaluation.features import check_features, check_same_dimension

SPLIT_SIZE = 5000


class InceptionScore:
    """exp(mean KL(p(y|x) || p(y))), streamed (Salimans et al. 2016, arXiv 1606.03498, section 4).

    As in ADM's evaluator, each consecutive split of 5000 images has its own p(y) and score, a
    smaller last split has the same weight as the others, and the result is the mean over splits. So
    the order of images matters. 50,000 images make 10 splits, as is usual elsewhere.

    The result equals ADM's if the probabilities are the softmax of all 1008 outputs of its
    Inception without the last layer's bias. Each split's score, and so the result, is in [1, C].
    """

    def __init__(self, split_size: int = SPLIT_SIZE):
        if split_size < 1:
            raise ValueError(f"split_size is {split_size}: give at least 1")
        self._split_size = split_size
        self._scores = []
        self._classes = None
        self._begin_split()

    def update(self, probabilities: np.ndarray) -> None:
        """Add a batch (B, C) of class probabilities, in the order of the images.

        Zeros are allowed (0 log 0 = 0; ADM's evaluator gives NaN there).

        Raises:
          UserError: NaN, values below 0, rows that do not sum to 1 within 1e-3, or another C.
        """
        probabilities = _checked(probabilities)
        self._classes = self._classes or probabilities.shape[1]
        check_same_dimension(probabilities.shape[1], self._classes)
        while len(probabilities):
            room = self._split_size - self._count
            self._add(probabilities[:room])
            probabilities = probabilities[room:]
            if self._count == self._split_size:
                self._scores.append(self._split_score())
                self._begin_split()

    def scores(self) -> np.ndarray:
        """The score of each split so far, (splits,), including an incomplete last split."""
        return np.array([*self._scores, *([self._split_score()] if self._count else [])])

    def result(self) -> float:
        """The mean of all splits' scores, in [1, C].

        Raises:
          UserError: there are no images.
        """
        scores = self.scores()
        if not scores.size:
            raise UserError("the Inception Score of no images is not defined")
        return float(scores.mean())

    def _begin_split(self):
        self._count, self._sum, self._negative_entropy = 0, 0.0, 0.0

    def _add(self, probabilities):
        self._count += len(probabilities)
        self._sum = self._sum + probabilities.sum(0)
        self._negative_entropy += xlogy(probabilities, probabilities).sum()

    def _split_score(self):
        # The mean over images of KL(p || q), with q the mean of p: mean sum p log p - sum q log q.
        marginal = self._sum / self._count
        divergence = self._negative_entropy / self._count - xlogy(marginal, marginal).sum()
        return np.exp(divergence)


def _checked(probabilities):
    probabilities = check_features(probabilities, "probabilities")
    if not len(probabilities):
        return probabilities
    if probabilities.min() < 0 or np.abs(probabilities.sum(1) - 1).max() > 1e-3:
        raise UserError(
            "probabilities must be at least 0 and sum to 1 in each row (got a minimum of "
            f"{probabilities.min():g}, sums in [{probabilities.sum(1).min():g}, "
            f"{probabilities.sum(1).max():g}]): give the softmax of the logits"
        )
    return probabilities
