"""Generated images against real ones: on features that are quick to compute, once on Inception."""

import json

import numpy as np
import pytest
import torch
import torch_inception
from parity import state_of
from PIL import Image
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from repae_jax.cli import main
from repae_jax.errors import UserError
from repae_jax.evaluation import reference as adm
from repae_jax.evaluation.fid_metrics import compare, measure, read_reference
from repae_jax.evaluation.image_sets import open_images

SIZE = 8
RNG = np.random.default_rng(0)
WIDTHS = {"pool": 2048, "spatial": 2023, "logits": 1008}
MAPS = {name: RNG.normal(size=(SIZE * SIZE * 3, width)) / 40 for name, width in WIDTHS.items()}


def features(images):
    """Stands for Inception: a random linear map of the pixels."""
    assert images.shape == (16, SIZE, SIZE, 3)  # every batch has the compiled shape
    flat = images.reshape(len(images), -1) / 64 - 2
    return {name: (flat @ matrix).astype(np.float32) for name, matrix in MAPS.items()}


def make_images(count, brightest, seed):
    return np.random.default_rng(seed).integers(0, brightest, (count, SIZE, SIZE, 3), np.uint8)


REAL, MADE = make_images(60, 256, 1), make_images(50, 200, 2)


def write(path, images):
    np.savez(path, arr_0=images)
    return path


@pytest.fixture
def samples(tmp_path):
    images = open_images(write(tmp_path / "samples.npz", MADE))
    return measure(images, features, batch_size=16)


def exact(images):
    flat = images.reshape(len(images), -1) / 64 - 2
    return {name: torch.tensor(flat @ matrix) for name, matrix in MAPS.items()}


def frechet(a, b):
    """Of few samples, without a matrix root: tr (S T)^(1/2) is the nuclear norm of A' B."""
    a, b = a.numpy(), b.numpy()
    rows = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    shared = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return apart + sum(np.square(x).sum() for x in rows) - 2 * shared


def test_figures_are_those_of_others_on_the_same_features(samples, tmp_path):
    reference = read_reference(write(tmp_path / "real.npz", REAL), features, batch_size=16)
    scores = compare(samples, reference)
    made, real = exact(MADE), exact(REAL)
    assert scores.fid == pytest.approx(frechet(made["pool"], real["pool"]), rel=1e-5)
    assert scores.sfid == pytest.approx(frechet(made["spatial"], real["spatial"]), rel=1e-5)
    expected = isc_features_to_metric(made["logits"], splits=1, shuffle=False)
    assert scores.inception_score == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    expected = prc_features_to_metric(made["pool"], real["pool"], save_cpu_ram=False, verbose=False)
    assert scores.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert scores.recall == pytest.approx(expected["recall"], abs=1e-6)
    assert scores.count == 50


def test_equal_sets_are_at_no_distance(samples, tmp_path):
    reference = read_reference(tmp_path / "samples.npz", features, batch_size=16)
    scores = compare(samples, reference)
    assert scores.fid == pytest.approx(0, abs=1e-6)
    assert (scores.precision, scores.recall) == (1, 1)


def test_adms_statistics_take_the_place_of_images(samples, tmp_path):
    images = read_reference(write(tmp_path / "real.npz", REAL), features, batch_size=16)
    expected = compare(samples, images)
    path = tmp_path / "statistics.npz"
    adm.write_statistics(path, images.pooled, images.spatial)
    scores = compare(samples, read_reference(path, features, batch_size=16))
    assert (scores.fid, scores.sfid) == (expected.fid, expected.sfid)
    assert (scores.precision, scores.recall) == (None, None)
    adm.write_statistics(path, images.pooled)  # as pytorch-fid's
    scores = compare(samples, read_reference(path, features, batch_size=16))
    assert (scores.fid, scores.sfid) == (expected.fid, None)
    # ADM's files have both: distances are taken from the statistics, the rest from the images
    adm.write_statistics(path, images.pooled, images.spatial, REAL[:30])
    scores = compare(samples, read_reference(path, features, batch_size=16))
    assert scores.fid == expected.fid
    assert scores.recall is not None


def test_only_so_many_are_measured(tmp_path):
    images = open_images(write(tmp_path / "samples.npz", MADE))
    some = measure(images.first(20), features, batch_size=16)
    assert (some.count, len(some.features)) == (20, 20)
    np.testing.assert_allclose(some.pooled.mean, exact(MADE[:20])["pool"].mean(0), atol=1e-5)
    with pytest.raises(UserError, match="holds 50 images, 51 are requested"):
        images.first(51)


def test_images_that_are_all_the_same_are_said(tmp_path):
    images = open_images(write(tmp_path / "collapsed.npz", MADE[:1].repeat(40, 0)))
    with pytest.raises(UserError, match=r"collapsed\.npz: all 40 images are the same"):
        measure(images, features, batch_size=16)


def test_another_resolution_is_said(samples, tmp_path):
    def smaller(images):
        return features(images.repeat(2, 1).repeat(2, 2))

    path = write(tmp_path / "real.npz", REAL[:, :4, :4])
    reference = read_reference(path, smaller, batch_size=16)
    with pytest.raises(UserError, match=r"samples.npz has images of 8 x 8 .* of 4 x 4"):
        compare(samples, reference)


def test_a_reference_is_not_replaced_by_its_statistics(tmp_path, capsys):
    path = str(write(tmp_path / "real.npz", REAL))
    words = ["evaluate", path, "--reference", path, "--save-reference", path]
    assert main(words) == 2
    assert "would replace what is read" in capsys.readouterr().err


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    state = state_of(torch_inception.random_inception())
    torch.save({name: torch.tensor(np.array(value)) for name, value in state.items()}, path)
    return path


@pytest.mark.slow  # compiles InceptionV3
def test_the_command(inception, tmp_path, capsys):
    write(tmp_path / "samples.npz", MADE[:6])
    (tmp_path / "real").mkdir()
    for number, image in enumerate(REAL[:5]):
        Image.fromarray(image).save(tmp_path / "real" / f"{number}.png")
    words = [str(tmp_path / "samples.npz"), "--inception", str(inception), "--batch-size", "6"]
    more = ["--output", str(tmp_path / "figures.json"), "--save-reference"]
    more += [str(tmp_path / "statistics.npz"), "--quiet"]
    assert main(["evaluate", *words, "--reference", str(tmp_path / "real"), *more]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"{figures['fid']:.4f}" in printed
    assert set(figures) >= {"sfid", "inception_score", "precision", "recall"}
    statistics = str(tmp_path / "statistics.npz")
    assert main(["evaluate", *words, "--reference", statistics, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"{figures['fid']:.4f}" in printed
    assert "no precision and recall" in printed


def test_the_command_refuses(inception, tmp_path, capsys):
    write(tmp_path / "samples.npz", MADE[:6])
    words = ["evaluate", str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "none.npz")]
    assert main([*words, "--inception", str(tmp_path / "none.pth")]) == 2
    assert "none.npz does not exist" in capsys.readouterr().err  # before the weights are missed
    write(tmp_path / "none.npz", MADE[:6])
    assert main([*words, "--inception", str(tmp_path / "none.pth")]) == 2
    assert "no InceptionV3 weights at" in capsys.readouterr().err
    assert main([*words, "--inception", str(inception), "--count", "7"]) == 2
    assert "holds 6 images, 7 are requested" in capsys.readouterr().err
