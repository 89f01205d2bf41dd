import json
import pickle
import shutil

import numpy as np
import pytest
from pictures import data_config, encoded, random_picture
from PIL import Image

from repae_jax.cli import main
from repae_jax.data import tfds_source
from repae_jax.data.crop import rgb_square
from repae_jax.data.identity import changes
from repae_jax.data.pipeline import train_batches
from repae_jax.data.sources import open_source
from repae_jax.data.tfds_source import TfdsSource
from repae_jax.errors import UserError

CLASSES = ("ant", "bee", "cat")


def tiny_records(count):
    rng = np.random.default_rng(count)
    for index in range(count):
        image = rng.integers(0, 256, (40 + index, 61, 3), np.uint8)
        yield index, {"image": image, "label": index % 3}


def prepare_tiny(folder, file_format, with_labels=True):
    """Writes a data set that the reader does not have the code of."""
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"image": tfds.features.Image(shape=(None, None, 3))}
                features["label"] = (
                    tfds.features.ClassLabel(names=CLASSES) if with_labels else np.int64
                )
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, _):
                return {"train": tiny_records(7), "validation": tiny_records(4)}

            def _generate_examples(self):
                raise NotImplementedError

    Tiny(data_dir=folder, file_format=file_format).download_and_prepare()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare_tiny(folder, "array_record")
    return str(folder)


def tiny(folder, **values):
    return data_config("tfds", **{"path": folder, "name": "tiny", "num_classes": 3, **values})


@pytest.mark.parametrize(
    ("split", "count"), [("train", 7), ("validation", 4), ("heldout", 4), ("train[:3]", 3)]
)
def test_tfds_images_are_cropped_like_files(tfds_folder, split, count):
    source = open_source(tiny(tfds_folder), split)
    assert len(source) == count
    assert (source.name, source.num_classes, source.classes) == ("tiny", 3, CLASSES)
    written = {}
    for _, record in tiny_records(7 if "train" in split else 4):
        cropped = rgb_square(Image.fromarray(record["image"]), 32)
        written[cropped.tobytes()] = record["label"]
    read = {source[i]["image"].tobytes(): source[i]["label"] for i in range(count)}
    assert len(read) == count
    assert read.items() <= written.items()
    assert all(label.dtype == np.int32 for label in read.values())


def test_tfds_feeds_worker_processes(tfds_folder):
    source = open_source(tiny(tfds_folder), "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    batches = train_batches(source, batch_size=7, seed=0)
    assert sorted(next(batches)["label"]) == [0, 0, 0, 1, 1, 2, 2]
    batches.close()


def test_tfds_troubles_are_named(tfds_folder, tmp_path):
    with pytest.raises(UserError, match=r"no split 'dev'.*train, validation"):
        open_source(tiny(tfds_folder), "dev")
    with pytest.raises(UserError, match=r"num_classes is 2, .*more labels than classes"):
        open_source(tiny(tfds_folder, num_classes=2), "train")
    with pytest.raises(UserError, match=r"'huge', which is neither"):
        open_source(tiny(tfds_folder, name="huge"), "train")
    with pytest.raises(UserError, match=r"name is '', which is neither"):
        open_source(tiny(tfds_folder, name=None), "train")
    # known to TFDS, but not prepared: which folder, and the command
    missing = tiny(str(tmp_path), name="mnist")
    with pytest.raises(UserError, match=rf"not in {tmp_path}/mnist.*run: .*'mnist'.*prepare"):
        open_source(missing, "train")


def test_tfds_files_without_random_access_are_named(tmp_path):
    prepare_tiny(tmp_path, "tfrecord")
    with pytest.raises(UserError, match=r"stored as tfrecord.*_array_record and run: python -c"):
        open_source(tiny(str(tmp_path)), "train")


def test_tfds_data_sets_without_labels_are_named(tmp_path):
    prepare_tiny(tmp_path, "array_record", with_labels=False)
    with pytest.raises(UserError, match="'tiny', which has no image and label"):
        open_source(tiny(str(tmp_path)), "train")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_code_beside_the_data_is_not_imported(tfds_folder, tmp_path, monkeypatch, key):
    shutil.copytree(tfds_folder, tmp_path / "data")
    (tmp_path / "data" / "evil.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(str(tmp_path))  # as the current folder is for `python -m`
    (path,) = (tmp_path / "data").rglob("features.json")
    old = {"content": {}} if key == "type" else {}
    path.write_text(json.dumps({key: "data.evil.Feature", **old}))
    with pytest.raises(UserError, match=r"features\.json: names data\.evil\.Feature, a class"):
        open_source(tiny(str(tmp_path / "data")), "train")
    monkeypatch.setattr(tfds_source, "_check_features", lambda *_: None)
    with pytest.raises(SystemExit, match="it was run"):  # as TFDS itself would have
        open_source(tiny(str(tmp_path / "data")), "train")


def test_a_label_out_of_range_is_named():
    # as the test split of ImageNet has them
    record = {"image": encoded(random_picture(9, 9), "PNG"), "label": -1}
    source = TfdsSource("tiny", 3, [record], resolution=8)
    with pytest.raises(UserError, match=r"tiny, image 0: label -1 is not in 0..2"):
        source[0]


def test_a_tfds_data_set_is_prepared_and_read(tfds_folder, tmp_path):
    words = ["prepare", "tfds:tiny", str(tmp_path / "packed"), "--path", tfds_folder]
    words += ["--resolution", "16", "--per-shard", "3", "--workers", "2", "--quiet"]
    assert main(words) == 0
    source = open_source(tiny(tfds_folder, resolution=16), "train")
    packed = open_source(
        data_config("packed", path=str(tmp_path / "packed"), resolution=16, num_classes=3), "train"
    )
    assert len(packed) == len(source) == 7
    for index in range(len(source)):
        np.testing.assert_array_equal(packed[index]["image"], source[index]["image"])
        assert packed[index]["label"] == source[index]["label"]


def test_a_fingerprint_names_the_release_and_no_path(tfds_folder):
    found = open_source(tiny(tfds_folder), "heldout").fingerprint()
    assert len(found.pop("content")) == 16
    assert found == {
        "source": "tfds", "name": "tiny/1.0.0", "count": 4, "classes": list(CLASSES),
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"label": 1}, {"image": encoded(random_picture(9, 9), "PNG")}])
def test_a_release_prepared_anew_with_other_images_or_labels_is_other_data(change):
    record = {"image": encoded(random_picture(8, 8), "PNG"), "label": 0}
    before, after = (
        TfdsSource("tiny", 3, records, resolution=8).fingerprint()
        for records in ([record] * 5, [*[record] * 4, {**record, **change}])
    )
    assert [line.partition(":")[0] for line in changes(before, after)] == ["content"]
    del before["content"]  # as versions before noted it
    assert changes(before, after) == []
