import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from repae_jax.evaluation import digit_classifier


@pytest.fixture(scope="module")
def digits():
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return features[order], labels[order]


@pytest.fixture(scope="module")
def classifier(digits):
    features, labels = digits
    return digit_classifier.fit_digit_svm(features[:1500], labels[:1500])


def test_judges_held_out_digits_at_least_as_well_as_their_nearest_neighbour(digits, classifier):
    features, labels = digits
    neighbour = KNeighborsClassifier(1).fit(features[:1500], labels[:1500])
    own = digit_classifier.agreement(classifier, features[1500:], labels[1500:])
    assert own.accuracy >= neighbour.score(features[1500:], labels[1500:]) - 0.005
    assert own.accuracy >= 0.97


def test_agreement_counts_what_was_asked_for(digits, classifier):
    features = digits[0][:300]
    seen = classifier.predict(features)
    asked = np.where(np.arange(300) % 3 == 0, (seen + 1) % 10, seen)
    result = digit_classifier.agreement(classifier, features, asked)
    assert result.count == 300
    assert result.accuracy == pytest.approx(200 / 300)
    for name in range(10):
        hits = sum(s == a == name for s, a in zip(seen, asked, strict=True))
        assert result.per_class[name] == pytest.approx(hits / list(asked).count(name))


def test_classes_never_asked_for_are_nan(digits, classifier):
    features, labels = digits
    chosen = np.isin(labels, (2, 5))
    result = digit_classifier.agreement(classifier, features[chosen], labels[chosen])
    assert np.isfinite(result.per_class).nonzero()[0].tolist() == [2, 5]


def test_refuses_another_range_or_shape(digits, classifier):
    features, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(ValueError, match=r"\[0, 16\]"):
        digit_classifier.agreement(classifier, features * 255 / 16, labels)
    with pytest.raises(ValueError, match=r"\[0, 16\]"):
        digit_classifier.fit_digit_svm(np.where(features > 15, np.nan, features), labels)
    with pytest.raises(ValueError, match=r"\(20, 8, 8\)"):
        digit_classifier.fit_digit_svm(features.reshape(20, 8, 8), labels)
    with pytest.raises(ValueError, match="as many labels"):
        digit_classifier.fit_digit_svm(features, labels[:5])
    with pytest.raises(ValueError, match=r"\[11\]"):
        digit_classifier.agreement(classifier, features, np.full(20, 11))


def test_heavy_libraries_wait_until_they_are_used():
    modules = (
        "evaluation.digit_classifier", "evaluation.reconstruction", "evaluation.latents",
        "evaluation.report", "utils.figures",
    )  # fmt: skip
    code = (
        f"import importlib, sys; [importlib.import_module('repae_jax.' + m) for m in {modules}]; "
        "print([m for m in ('sklearn', 'matplotlib', 'PIL', 'jax', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
