"""Classes by number or name, and what is said of those that do not exist."""

import numpy as np
import pytest

from repae_jax.config import base
from repae_jax.data import scenes
from repae_jax.data.identity import FILE, write_fingerprints
from repae_jax.errors import UserError
from repae_jax.runs.class_names import recorded_class_names
from repae_jax.sampling.class_names import class_numbers

NAMES = ("tench, Tinca tinca", "crane", "crane, tower crane", "7", "Golden  Retriever")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([4, np.int64(0)], [4, 0]),
        (["Tench", "tinca TINCA", "tench, tinca tinca"], [0, 0, 0]),
        (["crane", "tower crane", "crane, tower crane"], [1, 2, 2]),  # a whole name comes first
        (["7", " 2 "], [3, 2]),  # a name that is a number stands for its class
        (["golden retriever"], [4]),
        ([None, 1], [-1, 1]),
    ],
)
def test_numbers_and_names(given, expected):
    found = class_numbers(given, NAMES, 5)
    assert found.dtype == np.int32
    assert found.tolist() == expected


def test_without_names_numbers_serve():
    assert class_numbers(["3", 1], None, 10).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        (["golden retreiver"], NAMES, "similar names are 'Golden  Retriever'"),
        (["tower crain"], NAMES, "similar names are 'crane, tower crane'"),
        (["zebra"], NAMES, "its classes are 'tench, Tinca tinca', 'crane', 'crane, tower crane' "
                           "and 2 more, or numbers from 0 to 4"),
        (["cat"], None, "no class 'cat', and no names of classes: give a number from 0 to 9"),
        ([5], NAMES, "the class is 5: the model's classes are 0 to 4"),
        (["8"], NAMES, "the class is 8: "),
        ([-1], NAMES, "the class is -1: "),
        ([True], NAMES, "a class is True: give its number or its name"),
        ([1.0], NAMES, "a class is 1.0: give"),
        ([], NAMES, "the list of classes is empty"),
    ],
)  # fmt: skip
def test_other_classes_are_refused(given, names, message):
    with pytest.raises(UserError) as caught:
        class_numbers(given, names, 10 if names is None else len(names))
    assert message in str(caught.value)


def test_the_names_of_a_runs_classes(tmp_path):
    """Those that the data have, if each class has one."""
    config = base()
    config.data.update(source="scenes", num_classes=len(scenes.CLASSES))
    assert recorded_class_names(tmp_path, config) == tuple(scenes.CLASSES)
    config.data.update(source="folder", num_classes=2)
    assert recorded_class_names(tmp_path, config) is None
    for classes, expected in (
        ([["cat", 3, "x"], ["dog", 3, "y"]], ("cat", "dog")), ([["cat", 3, "x"]], None),
    ):  # fmt: skip
        record = {"train": {"source": "folder", "count": 6, "classes": classes}}
        write_fingerprints(tmp_path / FILE, record)
        assert recorded_class_names(tmp_path, config) == expected
