"""Class fidelity of generated digits, judged by a support vector classifier."""

import dataclasses

import numpy as np

# Chosen once by 10-fold stratified cross-validation on 1,500 of the 1,797 scans of
# sklearn.datasets.load_digits: gamma in {2e-4, 5e-4, 1e-3, 2e-3, 4e-3, scale} and C in
# {1, 3, 10, 30}, three shufflings of the folds. These two won each time (99.0, 99.1 and 99.1 %);
# most of the grid lies within 0.3 points of them, so the result hardly depends on the choice.
GAMMA = 5e-4
C = 3.0

SCAN_MAX = 16.0


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of a classifier's predictions with the requested classes.

    Attributes:
      accuracy: fraction of all images, in [0, 1].
      per_class: (classes,) fraction among the images of each requested class, in the order of the
        classifier's `classes_`; NaN for a class that was never requested.
      count: number of images.
    """

    accuracy: float
    per_class: np.ndarray
    count: int


def fit_digit_svm(features: np.ndarray, labels: np.ndarray):
    """Fit an RBF support vector classifier (sklearn's `SVC`) to 8 x 8 digit scans.

    Args:
      features: (N, 64) flattened scans, ink in [0, 16] as in sklearn's `load_digits`.
      labels: (N,) integers.

    Raises:
      ValueError: wrong shapes, or values outside [0, 16] (gamma fits only this range).
    """
    from sklearn.svm import SVC

    features, labels = _checked(features, labels)
    return SVC(kernel="rbf", gamma=GAMMA, C=C).fit(features, labels)


def agreement(classifier, features: np.ndarray, labels: np.ndarray) -> Agreement:
    """Compare a classifier's predictions for scans with the requested labels.

    For generated digits and the classes of their conditions, this measures class fidelity. For
    held-out scans and their true labels, it measures the classifier's own accuracy.

    Args:
      classifier: from `fit_digit_svm`.
      features: (N, 64) flattened scans, ink in [0, 16].
      labels: (N,) requested classes.

    Raises:
      ValueError: no scans, wrong shapes or range, or a label unknown to the classifier.
    """
    features, labels = _checked(features, labels)
    unknown = np.setdiff1d(labels, classifier.classes_)
    if unknown.size:
        raise ValueError(f"labels {unknown.tolist()} are not among the classifier's classes")
    agrees = classifier.predict(features) == labels
    asked = [labels == name for name in classifier.classes_]
    per_class = [agrees[mask].mean() if mask.any() else np.nan for mask in asked]
    return Agreement(float(agrees.mean()), np.array(per_class), len(labels))


def _checked(features, labels):
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or features.shape[1] != 64 or not len(features):
        raise ValueError(f"scans must be (N, 64) with N > 0, got {features.shape}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} scans need as many labels, got shape {labels.shape}")
    low, high = features.min(), features.max()
    if not (low >= 0 and high <= SCAN_MAX):  # this form also rejects NaN
        raise ValueError(f"scans must lie in [0, 16], got [{low:g}, {high:g}]")
    return features, labels
