"""Which files are pictures: the same for training and for measuring, and what is left out."""

import logging
import os
import pathlib

import pytest
from pictures import data_config, write_pictures

from repae_jax.data.sources import open_source
from repae_jax.data.walk import SUFFIXES, Walk
from repae_jax.errors import UserError
from repae_jax.evaluation.image_sets import open_images

NESTED = [
    "ant/1.png",
    "ant/2020/2.jpg",
    "ant/2020/north/3.png",
    "ant/2020.png",
    "ant/zoo/4.bmp",
    "bee/5.tif",
    "bee/6.TIFF",
    "bee/7.pgm",
    "bee/8.ppm",
    "bee/x/9.webp",
    "bee/x/10.jpeg",
]


@pytest.fixture
def nested(tmp_path):
    root = tmp_path / "pictures"
    write_pictures(root, {name: (16, 16, "L" if "pgm" in name else "RGB") for name in NESTED})
    return root


def opened(root, **values):
    return open_source(data_config("folder", path=root, num_classes=None, **values), "train")


def test_pictures_in_folders_of_a_class_folder_are_of_that_class(nested):
    source = opened(nested)
    assert source.classes == ("ant", "bee")
    assert source.files == tuple(sorted(NESTED))
    assert [source.classes[label] for label in source.labels] == ["ant"] * 5 + ["bee"] * 6
    for index in range(len(source)):
        assert source[index]["image"].shape == (32, 32, 3)


def test_they_are_those_that_torchvision_finds(nested):
    import parity  # noqa: F401  it makes a torchvision importable that was built for another torch

    datasets = pytest.importorskip("torchvision.datasets")
    assert set(SUFFIXES) == set(datasets.folder.IMG_EXTENSIONS)
    theirs = datasets.ImageFolder(str(nested))
    source = opened(nested)
    ours = [(source.image_name(i), source.labels[i]) for i in range(len(source))]
    assert sorted(ours) == sorted(theirs.samples)


def test_measuring_takes_what_training_takes(nested):
    images = open_images(nested)
    assert images.count == len(opened(nested))
    batches = zip(images.batches(1), range(images.count), strict=True)
    source = opened(nested, resolution=16)
    assert all((batch[0] == source[index]["image"]).all() for batch, index in batches)


def test_what_is_left_out_is_counted_by_kind_and_said_once(nested, caplog):
    others = ["readme.txt", "loose.png", ".cache/x.png", "ant/.hidden.png", "ant/zoo/.DS_Store"]
    others += ["bee/x/a.gif", "bee/b.gif", "bee/C.GIF", "bee/notes"]
    for name in others:
        (nested / name).parent.mkdir(exist_ok=True)
        (nested / name).write_text("no picture")
    with caplog.at_level(logging.WARNING):
        assert opened(nested).files == tuple(sorted(NESTED))
        opened(nested)
        opened(nested)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{nested}: 9 left out: ")
    for kinds in (
        "3 .gif (bee/C.GIF), 3 hidden (.cache), 2 outside of the class folders (loose.png)",
        "1 without a suffix (bee/notes)",
    ):
        assert kinds in line
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        images = open_images(nested)
    assert images.count == len(NESTED) + 1  # loose.png, where there are no classes
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{nested}: 8 left out: 3 .gif (")


def test_nothing_is_said_where_all_files_are_taken(nested, caplog):
    with caplog.at_level(logging.WARNING):
        opened(nested)
        open_images(nested)
    assert not caplog.records


def test_names_that_are_not_unicode_are_said_too(tmp_path, caplog):
    write_pictures(tmp_path, {"ant/1.png": (9, 9, "RGB")})
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/ant/\xff.gif")).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        opened(tmp_path)
    assert r"1 .gif (ant/\udcff.gif)" in caplog.text


def test_folders_one_level_too_high_are_noticed(tmp_path, caplog):
    write_pictures(
        tmp_path, {f"{a}/{b}/1.png": (9, 9, "RGB") for a in ("fit", "rest") for b in "xy"}
    )
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path).classes == ("fit", "rest")
    assert "if the subfolders are the classes" in caplog.text


# --- links, and what else a file system has ---


def test_links_to_folders_above_are_left_out(nested, tmp_path, caplog):
    (nested / "ant" / "again").symlink_to(nested)
    (nested / "ant" / "2020" / "up").symlink_to(tmp_path)
    (nested / "ant" / "itself").symlink_to(nested / "ant" / "itself")
    (nested / "cat").symlink_to(tmp_path)  # not a class: it would hold all the others
    with caplog.at_level(logging.WARNING):
        assert opened(nested).files == tuple(sorted(NESTED))
        assert open_images(nested).count == len(NESTED)
    assert "3 links to a folder above (" in caplog.text


def test_links_across_lead_no_walk_in_circles(tmp_path):
    write_pictures(tmp_path / "root", {f"{name}/1.png": (9, 9, "RGB") for name in "ab"})
    (tmp_path / "root" / "a" / "b").symlink_to(tmp_path / "root" / "b")
    (tmp_path / "root" / "b" / "a").symlink_to(tmp_path / "root" / "a")
    assert Walk(tmp_path / "root").pictures() == ["a/1.png", "a/b/1.png", "b/1.png", "b/a/1.png"]


def test_links_that_multiply_are_an_error_and_no_hang(tmp_path):
    """Thirty folders, each with two links to the next: a thousand million ways to the last."""
    for level in range(30):
        (tmp_path / f"d{level}").mkdir()
    for level in range(29):
        for name in ("left", "right"):
            (tmp_path / f"d{level}" / name).symlink_to(tmp_path / f"d{level + 1}")
    with pytest.raises(UserError, match="links lead here over and over"):
        Walk(tmp_path / "d0").pictures()


def test_a_pipe_with_a_pictures_name_is_left_out(nested, caplog):
    os.mkfifo(nested / "ant" / "pipe.png")
    (nested / "bee" / "link.png").symlink_to(nested / "ant" / "pipe.png")
    with caplog.at_level(logging.WARNING):
        assert opened(nested).files == tuple(sorted(NESTED))
    assert "2 neither files nor folders (" in caplog.text


def test_a_link_that_leads_nowhere_is_an_error_when_it_is_read(nested):
    (nested / "ant" / "gone.png").symlink_to(nested / "unmounted" / "gone.png")
    source = opened(nested, on_bad_image="skip")
    assert len(source) == len(NESTED) + 1
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        [source[index] for index in range(len(source))]


def test_a_folder_that_cannot_be_read_is_named(nested, monkeypatch):
    """Its pictures must not be missing without a word; root may read all, so the error is made."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("north"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for find in (opened, open_images):
        with pytest.raises(UserError, match=r"north: cannot be read \(Permission denied\)"):
            find(nested)
