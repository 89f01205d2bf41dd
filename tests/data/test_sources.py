import subprocess
import sys

import numpy as np
import pytest
from pictures import data_config, write_pictures

from repae_jax.data.digits import load_digits_split
from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = ["grain", "PIL", "sklearn", "tensorflow_datasets", "tensorflow", "torch"]
    heavy += ["h5py", "array_record", "msgpack"]
    script = (
        "import sys, repae_jax.data.sources, repae_jax.data.pipeline, repae_jax.data.crop; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_an_unknown_source_is_named():
    kinds = "digits, scenes, described, captions, tars, folder, tfds, packed, hdf5, latents"
    with pytest.raises(UserError, match=rf"'zip': use one of {kinds}"):
        open_source(data_config("zip"), "train")


def test_an_unknown_way_with_bad_images_is_named():
    with pytest.raises(UserError, match=r"on_bad_image is 'ignore': use one of error, skip"):
        open_source(data_config("digits", on_bad_image="ignore"), "train")


# --- digits ---


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_digits_are_the_split(split):
    source = open_source(data_config("digits"), split)
    part = load_digits_split(split)
    assert len(source) == len(part.labels)
    assert source.name == "digits"
    assert source.num_classes == 10
    for index in (0, 7, len(source) - 1):
        element = source[index]
        np.testing.assert_array_equal(element["image"], part.images[index])
        assert element["label"] == part.labels[index]
        assert element["label"].dtype == np.int32


def test_an_epoch_of_digits_is_the_split():
    source = open_source(data_config("digits"), "heldout")
    batches = train_batches(source, batch_size=71, seed=0)
    labels = np.concatenate([next(batches)["label"] for _ in range(5)])  # 355 = 5 x 71
    batches.close()
    part = load_digits_split("heldout")
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(part.labels))
    in_order = np.concatenate([batch["image"] for batch in eval_batches(source, 100)])
    np.testing.assert_array_equal(in_order, part.images)


def test_digits_have_one_resolution_and_two_splits():
    with pytest.raises(
        UserError, match=r"resolution is 64.*32 x 32.*set --config.data.resolution=32"
    ):
        open_source(data_config("digits", resolution=64), "train")
    with pytest.raises(UserError, match="'test'"):
        open_source(data_config("digits"), "test")


# --- the number of classes ---


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path, {f"{name}/1.png": (9, 9, "RGB") for name in ("ant", "bird", "cat")})
    return tmp_path


@pytest.mark.parametrize("source", ["digits", "folder"])
@pytest.mark.parametrize(("extra", "trouble"), [(-1, "more labels"), (1, "unused classes")])
def test_another_number_of_classes_is_named(source, extra, trouble, folder):
    right = {"digits": 10, "folder": 3}[source]
    wrong = data_config(source, path=folder, num_classes=right + extra)
    with pytest.raises(
        UserError, match=rf"is {right + extra}, .*{trouble}.*--config.data.num_classes={right}"
    ):
        open_source(wrong, "train")


def test_the_number_of_classes_can_be_the_sources():
    assert open_source(data_config("digits", num_classes=None), "train").num_classes == 10
