import pickle

import numpy as np
import pytest
from pictures import data_config, random_picture, write_pictures
from PIL import Image

from repae_jax.data.crop import rgb_square
from repae_jax.data.pipeline import train_batches
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError

FILES = {
    "bird/b.PNG": (40, 50, "RGB"),
    "bird/a.jpg": (70, 33, "RGB"),
    "ant/only.webp": (20, 9, "RGB"),
    "cat/1.jpeg": (90, 64, "CMYK"),
    "cat/2.png": (32, 32, "P"),
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    write_pictures(root, FILES)
    (root / "bird" / "notes.txt").write_text("not a picture")
    (root / "bird" / ".hidden.png").write_text("not a picture")
    (root / "readme.txt").write_text("not a class")
    (root / ".cache").mkdir()
    return root


def test_class_folders_are_labels_in_alphabetical_order(folder):
    source = open_source(data_config("folder", path=str(folder), num_classes=3), "train")
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
    source = open_source(data_config("folder", path=folder, num_classes=3, resolution=8), "train")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    batches = train_batches(source, batch_size=5, seed=0)
    assert sorted(next(batches)["label"]) == [0, 1, 1, 2, 2]
    batches.close()


@pytest.mark.parametrize("called", ["heldout", "validation", "val", "test"])
def test_train_and_held_out_images_in_folders_of_their_own(tmp_path, called):
    write_pictures(tmp_path / "train", FILES)
    write_pictures(tmp_path / called, {"ant/x.png": (9, 9, "RGB"), "cat/y.png": (9, 9, "RGB")})
    assert len(open_source(data_config("folder", path=tmp_path, num_classes=3), "train")) == 5
    heldout = data_config("folder", path=tmp_path, num_classes=2)
    assert len(open_source(heldout, "heldout")) == 2
    assert len(open_source(heldout, called)) == 2


def test_a_class_may_be_called_train(tmp_path):
    write_pictures(tmp_path, {"train/1.png": (9, 9, "RGB"), "tree/1.png": (9, 9, "RGB")})
    source = open_source(data_config("folder", path=tmp_path, num_classes=2), "train")
    assert [source[i]["label"] for i in range(2)] == [0, 1]


def test_missing_and_empty_folders_are_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"config.data.path is None"):
        open_source(data_config("folder"), "train")
    with pytest.raises(UserError, match="nowhere"):
        open_source(data_config("folder", path=tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no class folders"):
        open_source(data_config("folder", path=tmp_path / "empty"), "train")
    with pytest.raises(UserError, match="no heldout or validation or val or test folder"):
        open_source(data_config("folder", path=folder, num_classes=3), "heldout")
    (folder / "dog").mkdir()
    (folder / "dog" / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match=r"dog has no images"):
        open_source(data_config("folder", path=folder, num_classes=4), "train")


def test_the_number_of_classes_can_be_the_sources(folder):
    source = open_source(data_config("folder", path=folder, num_classes=None), "train")
    assert source.num_classes == 3
    assert source.classes == ("ant", "bird", "cat")


def test_an_image_is_called_by_its_file(folder):
    source = open_source(data_config("folder", path=folder, num_classes=3), "train")
    assert source.image_name(1) == str(folder / "bird" / "a.jpg")


@pytest.mark.parametrize("exif", [False, True])
def test_pictures_are_turned_as_their_exif_data_say_if_asked(tmp_path, exif):
    (tmp_path / "ant").mkdir()
    orientation = Image.Exif()
    orientation[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    wide = random_picture(64, 32)
    wide.save(tmp_path / "ant" / "turned.png", exif=orientation)
    config = data_config("folder", path=tmp_path, num_classes=1, resolution=32, exif=exif)
    shown = np.asarray(wide.crop((16, 0, 48, 32)))
    expected = np.rot90(shown, k=-1) if exif else shown
    np.testing.assert_array_equal(open_source(config, "train")[0]["image"], expected)


@pytest.mark.parametrize("names", [("bird/a.jpg", "bird/A.JPG"), ("ant/a.png", "ANT/b.png")])
def test_names_that_differ_in_case_only_are_a_fault(tmp_path, names):
    write_pictures(tmp_path, dict.fromkeys(names, (9, 9, "RGB")))
    with pytest.raises(UserError, match=r"holds both (bird/A.JPG|ANT) and (bird/a.jpg|ant), which"):
        open_source(data_config("folder", path=tmp_path, num_classes=None), "train")


def test_names_that_differ_in_their_suffix_are_two_images(tmp_path):
    write_pictures(tmp_path, dict.fromkeys(("bird/a.jpg", "bird/a.png"), (9, 9, "RGB")))
    source = open_source(data_config("folder", path=tmp_path, num_classes=1), "train")
    assert source.files == ("bird/a.jpg", "bird/a.png")
