"""The judge of described images: what its cells mean, its file, and its training."""

import dataclasses

import jax
import numpy as np
import pytest

from repae_jax.data.described import HSV_BOXES, RESOLUTION, color_of
from repae_jax.data.described_objects import render_objects
from repae_jax.data.descriptions import COLORS, SHAPES
from repae_jax.errors import UserError
from repae_jax.evaluation.described_judge import (
    NETWORK,
    DescribedJudge,
    load_judge,
    measure_accuracy,
    objects_of,
    save_judge,
)
from repae_jax.interop.small_networks import save_network
from repae_jax.models.detector import Grid, assign_cells, cell_centers
from repae_jax.training.detector import DetectorRecipe, augment, detection_loss, train_judge

SIDE = 8  # cells of the judge's grid


@pytest.fixture(scope="module")
def renders():
    return render_objects(60, progress=False)


@pytest.fixture(scope="module")
def untrained():
    sample = np.zeros((1, RESOLUTION, RESOLUTION, 3), np.float32)
    params = jax.jit(NETWORK.init)(jax.random.key(3), sample)["params"]
    return DescribedJudge(jax.device_get(params), 0.25)


def perfect_grid(objects):
    """The grid of a network without fault, of the objects as `render_objects` gives them."""
    positive, owner = (
        np.asarray(array) for array in assign_cells(objects["box"], objects["valid"], SIDE)
    )
    rows = np.arange(len(owner))[:, None, None]
    one_hot = {
        name: np.eye(len(known), dtype=np.float32)[objects[name][rows, owner]] * 20
        for name, known in (("shape", SHAPES), ("color", COLORS))
    }
    presence = np.where(positive, 10.0, -10.0).astype(np.float32)
    return Grid(presence, one_hot["shape"], one_hot["color"], objects["box"][rows, owner])


def test_cells_find_every_object_once(renders):
    """A grid of 8 x 8 cells separates all objects, those that touch included."""
    grid = perfect_grid(renders)
    for row, valid in enumerate(renders["valid"]):
        found = objects_of(jax.tree.map(lambda leaf, row=row: leaf[row], grid))
        assert len(found) == valid.sum()
        expected = zip(
            renders["shape"][row][valid], renders["color"][row][valid], renders["box"][row][valid],
            strict=True,
        )  # fmt: skip
        assert {(it.kind, it.color, it.box) for it in found} == {
            (SHAPES[shape], COLORS[color], tuple(map(float, box))) for shape, color, box in expected
        }


def test_centers_of_cells_are_those_of_their_pixels():
    centers = np.asarray(cell_centers(4))
    assert centers.shape == (4, 4, 2)
    np.testing.assert_allclose(centers[0, 3], [0.75, -0.75])
    np.testing.assert_allclose(centers[3, 0], [-0.75, 0.75])


def test_the_more_confident_of_overlapping_boxes_counts():
    grid = Grid(
        presence=np.array([[2.0, 3.0], [-1.0, 1.0]], np.float32),
        shape=np.eye(len(SHAPES), dtype=np.float32)[[[0, 1], [2, 3]]],
        color=np.eye(len(COLORS), dtype=np.float32)[[[0, 1], [2, 3]]],
        box=np.array(
            [[[0, 0, 1, 1], [0.1, 0, 1.1, 1]], [[0, 0, 1, 1], [0.5, 0.5, 1.5, 1.5]]], np.float32
        ),
    )
    found = objects_of(grid)
    assert [it.kind for it in found] == [SHAPES[1], SHAPES[3]]  # the third is below 1/2
    assert found[0].confidence == pytest.approx(1 / (1 + np.exp(-3)))


def test_the_loss_is_lowest_for_the_true_objects(renders):
    grid = perfect_grid(renders)
    objects = {name: renders[name] for name in ("box", "shape", "color", "valid")}
    assert float(detection_loss(grid, objects)) < 1e-3
    wrong = {
        "presence": -grid.presence,
        "shape": np.roll(grid.shape, 1, -1),
        "color": np.roll(grid.color, 1, -1),
        "box": grid.box + 0.2,
    }
    for name, value in wrong.items():
        assert float(detection_loss(grid.replace(**{name: value}), objects)) > 0.5


def test_boxes_move_with_their_objects():
    """A white square on black, shifted at random: its box is still around the white pixels."""
    image = np.zeros((300, 32, 32, 3), np.uint8)
    image[:, 2:14, 10:20] = 255
    boxes = np.zeros((300, 4, 4), np.float32)
    boxes[:, 0] = np.array([10, 2, 20, 14]) / 16 - 1
    valid = np.arange(4)[None].repeat(300, 0) < 1
    recipe = DetectorRecipe(noise=0.0, shift=5)
    moved, moved_boxes = augment(image, boxes, valid, recipe, jax.random.key(0))
    edges = (np.asarray(moved_boxes[:, 0]) + 1) * 16
    for x, edge in zip(np.asarray(moved), edges, strict=True):
        rows, columns = np.nonzero(x[..., 0] > 0)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, edge, atol=1e-4)
    assert set(np.rint(edges[:, 0] - 10)) == set(range(-5, 6))
    assert set(np.rint(edges[:, 1] - 2)) == set(range(-2, 6))  # it stays within the image


def test_a_judge_is_read_back_as_it_was_written(untrained, renders, tmp_path):
    path = tmp_path / "judge.safetensors"
    save_judge(path, untrained)
    again = load_judge(path)
    assert again.accuracy == 0.25
    images = renders["image"][:5]
    assert again(images) == untrained(images)
    assert len(again(images)) == 5
    assert measure_accuracy(untrained, renders) < 0.2


def test_other_files_are_named_in_one_line(untrained, tmp_path):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match="no file .*judge.safetensors"):
        load_judge(path)
    save_network(path, untrained.params, {"accuracy": 0.5})
    with pytest.raises(UserError, match="holds no judge, not one of described images"):
        load_judge(path)
    save_network(path, untrained.params, {"judges": "described images, version 0"})
    with pytest.raises(UserError, match="holds a judge of described images, version 0, not one"):
        load_judge(path)
    save_judge(
        path, dataclasses.replace(untrained, params={"level_0": untrained.params["level_0"]})
    )
    with pytest.raises(UserError, match="tensor 'box/bias' is missing"):
        load_judge(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError) as error:
        load_judge(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.slow
def test_a_short_training_finds_objects():
    """The judge beats guesses of (shape, color), 1 of 120, and sees nothing in plain images."""
    recipe = DetectorRecipe(renders=2000, steps=300)
    judge = train_judge(recipe, progress=False)
    assert judge.accuracy > 0.05
    rng = np.random.default_rng(0)
    plain = np.stack([np.full((32, 32, 3), 255 * color_of(rng, name)) for name in HSV_BOXES])
    assert sum(map(len, judge(plain.astype(np.uint8)))) <= 1
