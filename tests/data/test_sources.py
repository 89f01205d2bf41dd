import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from repae_jax.data.crop import rgb_square
from repae_jax.data.digits import load_digits_split
from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError


def config(source, **values):
    fields = {"path": None, "name": None, "resolution": 32, "num_classes": 10}
    return types.SimpleNamespace(source=source, **{**fields, **values})


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = ["grain", "PIL", "sklearn", "tensorflow_datasets", "tensorflow", "torch"]
    script = (
        "import sys, repae_jax.data.sources, repae_jax.data.pipeline, repae_jax.data.crop; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_an_unknown_source_is_named():
    with pytest.raises(UserError, match=r"'hdf5'.*digits, folder, tfds"):
        open_source(config("hdf5"), "train")


# --- digits ---


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_digits_are_the_split(split):
    source = open_source(config("digits"), split)
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
    source = open_source(config("digits"), "heldout")
    batches = train_batches(source, batch_size=71, seed=0)
    labels = np.concatenate([next(batches)["label"] for _ in range(5)])  # 355 = 5 x 71
    batches.close()
    part = load_digits_split("heldout")
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(part.labels))
    in_order = np.concatenate([batch["image"] for batch in eval_batches(source, 100)])
    np.testing.assert_array_equal(in_order, part.images)


def test_digits_have_one_resolution_and_two_splits():
    with pytest.raises(UserError, match=r"resolution = 64.*32 x 32"):
        open_source(config("digits", resolution=64), "train")
    with pytest.raises(UserError, match="'test'"):
        open_source(config("digits"), "test")


@pytest.mark.parametrize("source", ["digits", "folder"])
@pytest.mark.parametrize(("extra", "trouble"), [(-1, "more labels"), (1, "unused classes")])
def test_another_number_of_classes_is_named(source, extra, trouble, folder):
    right = {"digits": 10, "folder": 3}[source]
    wrong = config(source, path=folder, num_classes=right + extra)
    with pytest.raises(UserError, match=rf"= {right + extra}, .*{trouble}.*= {right}"):
        open_source(wrong, "train")


# --- folders ---

FILES = {
    "bird/b.PNG": (40, 50, "RGB"),
    "bird/a.jpg": (70, 33, "RGB"),
    "ant/only.webp": (20, 9, "RGB"),
    "cat/1.jpeg": (90, 64, "CMYK"),
    "cat/2.png": (32, 32, "P"),
}


def write(root, files, seed=0):
    rng = np.random.default_rng(seed)
    for name, (width, height, mode) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / name)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    write(root, FILES)
    (root / "bird" / "notes.txt").write_text("not a picture")
    (root / "bird" / ".hidden.png").write_text("not a picture")
    (root / "readme.txt").write_text("not a class")
    (root / ".cache").mkdir()
    return root


def test_class_folders_are_labels_in_alphabetical_order(folder):
    source = open_source(config("folder", path=str(folder), num_classes=3), "train")
    expected = [("ant/only.webp", 0), ("bird/a.jpg", 1), ("bird/b.PNG", 1)]
    expected += [("cat/1.jpeg", 2), ("cat/2.png", 2)]
    assert len(source) == len(expected)
    assert source.num_classes == 3
    for index, (file, label) in enumerate(expected):
        element = source[index]
        with Image.open(folder / file) as image:
            np.testing.assert_array_equal(element["image"], rgb_square(image, 32))
        assert element["label"] == label
        assert element["label"].dtype == np.int32


def test_a_folder_feeds_worker_processes(folder):
    source = open_source(config("folder", path=folder, num_classes=3, resolution=8), "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    batches = train_batches(source, batch_size=5, seed=0)
    assert sorted(next(batches)["label"]) == [0, 1, 1, 2, 2]
    batches.close()


@pytest.mark.parametrize("called", ["heldout", "validation", "val", "test"])
def test_train_and_held_out_images_in_folders_of_their_own(tmp_path, called):
    write(tmp_path / "train", FILES)
    write(tmp_path / called, {"ant/x.png": (9, 9, "RGB"), "cat/y.png": (9, 9, "RGB")})
    assert len(open_source(config("folder", path=tmp_path, num_classes=3), "train")) == 5
    heldout = config("folder", path=tmp_path, num_classes=2)
    assert len(open_source(heldout, "heldout")) == 2
    assert len(open_source(heldout, called)) == 2


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, {"train/1.png": (9, 9, "RGB"), "tree/1.png": (9, 9, "RGB")})
    source = open_source(config("folder", path=tmp_path, num_classes=2), "train")
    assert [source[i]["label"] for i in range(2)] == [0, 1]


def test_missing_and_empty_folders_are_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"data.path = None"):
        open_source(config("folder"), "train")
    with pytest.raises(UserError, match="nowhere"):
        open_source(config("folder", path=tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no class folders"):
        open_source(config("folder", path=tmp_path / "empty"), "train")
    with pytest.raises(UserError, match="no heldout or validation or val or test folder"):
        open_source(config("folder", path=folder, num_classes=3), "heldout")
    (folder / "dog").mkdir()
    (folder / "dog" / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match=r"dog has no images"):
        open_source(config("folder", path=folder, num_classes=4), "train")


def break_header(path):
    path.write_text("this is no JPEG")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("damage", [break_header, cut_short, lambda path: path.unlink()])
def test_a_damaged_file_is_named(folder, damage):
    source = open_source(config("folder", path=folder, num_classes=3), "train")
    damage(folder / "bird" / "a.jpg")
    source[0]  # the others can still be read
    with pytest.raises(UserError, match=r"bird.a\.jpg: not a readable image"):
        source[1]
    with pytest.raises(UserError, match=r"bird.a\.jpg"):  # also through the pipeline's threads
        list(eval_batches(source, 2))


# --- TensorFlow Datasets ---


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
                    tfds.features.ClassLabel(num_classes=3) if with_labels else np.int64
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
    return config("tfds", **{"path": folder, "name": "tiny", "num_classes": 3, **values})


@pytest.mark.parametrize(
    ("split", "count"), [("train", 7), ("validation", 4), ("heldout", 4), ("train[:3]", 3)]
)
def test_tfds_images_are_cropped_like_files(tfds_folder, split, count):
    source = open_source(tiny(tfds_folder), split)
    assert len(source) == count
    assert (source.name, source.num_classes) == ("tiny", 3)
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
    with pytest.raises(UserError, match=r"num_classes = 2, .*more labels than classes"):
        open_source(tiny(tfds_folder, num_classes=2), "train")
    with pytest.raises(UserError, match=r"'huge' is neither"):
        open_source(tiny(tfds_folder, name="huge"), "train")
    with pytest.raises(UserError, match=r"name = None is neither"):
        open_source(tiny(tfds_folder, name=None), "train")
    # known to TFDS, but not prepared: which folder, and the command
    missing = tiny(str(tmp_path), name="mnist")
    with pytest.raises(UserError, match=rf"not in {tmp_path}/mnist.*run: .*'mnist'.*prepare"):
        open_source(missing, "train")


def test_tfds_files_without_random_access_are_named(tmp_path):
    prepare_tiny(tmp_path, "tfrecord")
    with pytest.raises(UserError, match=r"stored as tfrecord.*_array_record' and run: python -c"):
        open_source(tiny(str(tmp_path)), "train")


def test_tfds_data_sets_without_labels_are_named(tmp_path):
    prepare_tiny(tmp_path, "array_record", with_labels=False)
    with pytest.raises(UserError, match="'tiny' has no image and label"):
        open_source(tiny(str(tmp_path)), "train")
