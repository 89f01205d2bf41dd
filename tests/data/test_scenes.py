import io

import numpy as np
import pytest
from pictures import data_config
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from repae_jax.data.canvas import fill_polygons
from repae_jax.data.outlines import SHAPES, outlines
from repae_jax.data.pipeline import train_batches
from repae_jax.data.scenes import CLASSES, TURN, Scenes, render
from repae_jax.data.sources import open_source
from repae_jax.errors import UserError


def test_an_image_follows_from_seed_and_index_alone():
    image, label = render(3, 41)
    render(0, 5)  # whatever was drawn between
    again, _ = render(3, 41)
    np.testing.assert_array_equal(image, again)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert label == 41 % len(CLASSES)
    for other in (render(3, 42)[0], render(4, 41)[0]):
        assert (other != image).mean() > 0.5


def test_splits_share_no_image():
    train, heldout = Scenes("train", 30), Scenes("heldout", 30)
    seen = {train[index]["image"].tobytes() for index in range(30)}
    assert len(seen) == 30
    assert not seen & {heldout[index]["image"].tobytes() for index in range(30)}


def test_there_are_at_least_twenty_classes_alike_in_number():
    source = Scenes("train", 240)
    assert source.num_classes == len(CLASSES) >= 20
    labels = [source[index]["label"] for index in range(240)]
    assert set(np.bincount(labels)) == {240 // len(CLASSES)}


def test_outlines_reach_the_unit_circle_and_holes_lie_within():
    for name in SHAPES:
        outer, *holes = outlines(name)
        assert np.hypot(*outer.T).max() == pytest.approx(1)
        np.testing.assert_allclose(outer.min(0) + outer.max(0), 0, atol=1e-9)
        for hole in holes:
            assert (np.abs(hole).max(0) < np.abs(outer).max(0)).all()


def test_classes_stay_apart_when_they_are_turned():
    """The nearest upright or turned outline of another class is far from every turned one."""

    def mask(name, degrees):
        turn = np.deg2rad(degrees)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return fill_polygons([part @ matrix.T * 0.9 for part in outlines(name)], 48)

    turns = np.linspace(-TURN, TURN, 5)
    masks = {name: np.stack([mask(name, t) for t in turns]) for name in SHAPES}
    for name in SHAPES:
        for other in SHAPES:
            if other == name:
                continue
            pairs = masks[name][:, None], masks[other][None]
            both = np.minimum(*pairs).sum((2, 3)) / np.maximum(*pairs).sum((2, 3))
            assert both.max() < 0.9, (name, other, both.max())  # intersection over union


@pytest.mark.slow
def test_pixels_do_not_give_the_class_away():
    source = Scenes("train", 1200)
    elements = [source[index] for index in range(len(source))]
    pixels = np.stack([e["image"][::4, ::4].reshape(-1) for e in elements]).astype(np.float32)
    labels = np.array([e["label"] for e in elements])
    nearest = KNeighborsClassifier(5).fit(pixels[:960], labels[:960])
    assert nearest.score(pixels[960:], labels[960:]) < 0.3


def test_images_compress_like_photographs():
    """A PNG of a photograph takes 1.5 to 2.5 bytes a pixel; a flat drawing a tenth of that."""
    sizes = []
    for index in range(24):
        file = io.BytesIO()
        Image.fromarray(render(0, index)[0]).save(file, "png")
        sizes.append(file.tell())
    assert 1.5 < np.mean(sizes) / 64**2 < 2.5


def test_a_scene_has_any_resolution():
    small, large = render(0, 7, 32)[0], render(0, 7, 128)[0]
    assert small.shape == (32, 32, 3)
    assert large.shape == (128, 128, 3)


def test_an_index_beyond_the_end_is_refused():
    with pytest.raises(IndexError, match="there are 10"):
        Scenes("train", 10)[10]


def test_a_configuration_opens_scenes():
    config = data_config("scenes", resolution=32, num_classes=24, name="48")
    source = open_source(config, "train")
    assert len(source) == 48
    batches = train_batches(source, batch_size=48, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (48, 32, 32, 3)
    assert set(np.bincount(batch["label"])) == {2}


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"name": "many"}, "train", "config.data.name is 'many'; for scenes give their number"),
        ({"name": "0"}, "train", "config.data.name is '0'"),
        ({"name": "²"}, "train", "config.data.name is '²'"),
        ({"name": "9" * 5000}, "train", "config.data.name is '999"),
        ({}, "test", "no split 'test'; choose one of train, heldout"),
        ({"num_classes": 10}, "train", "set --config.data.num_classes=24"),
    ],
)
def test_what_scenes_are_not(changes, split, message):
    config = data_config("scenes", **{"resolution": 64, "num_classes": 24, **changes})
    with pytest.raises(UserError, match=message):
        open_source(config, split)
