"""The classes of a generated set: balanced, random or given."""

import numpy as np
import pytest

from repae_jax.errors import UserError
from repae_jax.sampling.class_labels import choose_labels


def test_balanced_labels_differ_by_one_image_at_most():
    for count in (1, 9, 10, 1000, 1003):
        labels, _ = choose_labels("balanced", count, 10, 0)
        assert labels.shape == (count,)
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 1


def test_random_labels_follow_from_seed_and_index():
    labels, _ = choose_labels("random", 5000, 10, 7)
    np.testing.assert_array_equal(choose_labels("random", 33, 10, 7)[0], labels[:33])
    assert (choose_labels("random", 5000, 10, 8)[0] != labels).mean() > 0.8
    counts = np.bincount(labels, minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi squared of 9: one in a thousand


def test_given_labels_are_repeated(tmp_path):
    labels, told = choose_labels("3,1,4", 7, 10, 0)
    assert labels.tolist() == [3, 1, 4, 3, 1, 4, 3]
    assert told == "3,1,4"
    many = ",".join(map(str, range(200)))  # longer than a file's name may be
    assert choose_labels(many, 200, 200, 0)[0].tolist() == list(range(200))
    (tmp_path / "classes.txt").write_text("3\n1, 4\n\n9\n")
    labels, told = choose_labels(str(tmp_path / "classes.txt"), 6, 10, 0)
    assert labels.tolist() == [3, 1, 4, 9, 3, 1]
    (tmp_path / "other.txt").write_text("3 1 4 8")
    assert choose_labels(str(tmp_path / "other.txt"), 6, 10, 0)[1] != told
    (tmp_path / "marked.txt").write_text("3\r\n1\r\n", "utf-8-sig")  # as editors on Windows save
    assert choose_labels(str(tmp_path / "marked.txt"), 3, 10, 0)[0].tolist() == [3, 1, 3]
    (tmp_path / "wide.txt").write_text("3 1", "utf-16")
    with pytest.raises(UserError, match=r"wide.txt cannot be read as text"):
        choose_labels(str(tmp_path / "wide.txt"), 3, 10, 0)
    (tmp_path / "classes.txt").write_text("3 1 12")
    with pytest.raises(UserError, match="classes.txt .*has 12: the run's classes are 0 to 9"):
        choose_labels(str(tmp_path / "classes.txt"), 6, 10, 0)
