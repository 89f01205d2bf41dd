"""Images resized one by one: as clean-fid resizes for FID, and from pictures of any sizes."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch_inception
from cleanfid.fid import get_folder_features
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from parity import assert_close, relative_error, state_of
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as published

from repae_jax.data.prepare import prepare
from repae_jax.errors import UserError
from repae_jax.evaluation.frechet import Gaussian
from repae_jax.evaluation.image_sets import open_images
from repae_jax.evaluation.inception_features import make_features
from repae_jax.evaluation.reference import CLEAN, read_statistics, write_statistics
from repae_jax.evaluation.resized_images import open_clean, resize_clean
from repae_jax.interop.inception import load_inception
from repae_jax.models.inception import normalize
from repae_jax.models.resize import resize_bicubic

SIZES = [(8, 8), (299, 299), (256, 341), (640, 427), (1, 500), (700, 31)]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def folder_of(path, *sizes):
    path.mkdir()
    for number, size in enumerate(sizes):
        Image.fromarray(picture(*size, number)).save(path / f"{number}.png")
    return path


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_clean_fids(size):
    pixels = picture(*size)
    ours = resize_clean(pixels)
    assert (ours.dtype, ours.shape) == (np.float32, (299, 299, 3))
    assert_close(ours, build_resizer("clean")(pixels), str(size), 1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_bicubic_with_antialias_clipped_and_not_rounded(size):
    pixels = picture(*size)
    expected = np.clip(resize_bicubic(pixels[None], 299, 299, antialias=True)[0], 0, 255)
    ours = resize_clean(pixels)
    assert_close(ours, expected, str(size), 1e-5)
    if size != (299, 299):
        assert relative_error(ours.round(), ours) > 1e-4
    if size == (8, 8):  # the filter overshoots
        assert (ours.min(), ours.max()) == (0, 255)


class CleanInception(InceptionV3W):
    """clean-fid's wrapper, which normalizes images, around other layers."""

    def __init__(self, layers):
        torch.nn.Module.__init__(self)
        self.resize_inside = False
        self.layers = mock.Mock(forward=layers)


def clean_features(folder, layers):
    """clean-fid's features of a folder's pictures, in the order of their names."""
    device = torch.device("cpu")
    return get_folder_features(
        str(folder), CleanInception(layers), num_workers=0, device=device, mode="clean",
        verbose=False,
    )  # fmt: skip


def test_the_networks_input_is_clean_fids(tmp_path):
    folder = folder_of(tmp_path / "real", (256, 256), (90, 120), (427, 300))
    some = np.random.default_rng(0).integers(0, 299 * 299 * 3, 2048)
    expected = clean_features(folder, lambda x: x.permute(0, 2, 3, 1).flatten(1)[:, some])
    (batch,) = open_clean(folder).batches(3)
    assert_close(normalize(batch).reshape(3, -1)[:, some], expected, "input", 1e-5)


@pytest.mark.slow  # compiles InceptionV3
def test_features_of_a_folder_are_clean_fids(tmp_path):
    folder = folder_of(tmp_path / "real", (256, 256), (90, 120))
    network = torch_inception.random_inception()

    def layers(x):  # of torch-fidelity's network, which would resize and normalize
        resized, blank = x * 128 + 128, torch.zeros(x.shape, dtype=torch.uint8)
        name = "interpolate_bilinear_2d_like_tensorflow1x"
        with mock.patch.object(published, name, return_value=resized):
            return network(blank)[0]

    features = make_features(load_inception(state_of(network)), resized=True)
    (batch,) = open_clean(folder).batches(2)
    assert_close(features(batch)["pool"], clean_features(folder, layers), "pool")


def test_all_kinds_of_images_are_resized_alike(tmp_path):
    (tmp_path / "pictures").mkdir()
    folder_of(tmp_path / "pictures" / "class", *[(20, 20)] * 3)
    folder = tmp_path / "pictures"
    images = np.stack([picture(20, 20, number) for number in range(3)])
    np.savez(tmp_path / "images.npz", arr_0=images)
    prepare(str(folder), tmp_path / "packed", resolution=20)
    expected = np.stack([resize_clean(image) for image in images])
    for path in (folder, tmp_path / "images.npz", tmp_path / "packed"):
        found = open_clean(path)
        assert (found.count, found.resolution) == (3, 299)
        np.testing.assert_array_equal(np.concatenate(list(found.batches(2))), expected)


def test_pictures_keep_their_own_sizes_unless_a_resolution_crops_them(tmp_path):
    sizes = [(30, 40), (50, 20)]
    folder = folder_of(tmp_path / "pictures", *sizes)
    (batch,) = open_clean(folder).batches(4)
    for number, (size, found) in enumerate(zip(sizes, batch, strict=True)):
        np.testing.assert_array_equal(found, resize_clean(picture(*size, number)))
    (cropped,) = open_images(folder, 20).batches(4)
    (batch,) = open_clean(folder, 20).batches(4)
    np.testing.assert_array_equal(batch, np.stack([resize_clean(image) for image in cropped]))


def test_a_damaged_picture_is_named(tmp_path):
    folder = folder_of(tmp_path / "pictures", (8, 8))
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png: not a readable image"):
        list(open_clean(folder).batches(2))


GAUSSIAN = Gaussian(np.zeros(3), np.eye(3))


def test_statistics_of_another_resizing_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    write_statistics(path, GAUSSIAN, GAUSSIAN, resizing=CLEAN)
    for spatial in (False, True):
        assert read_statistics(path, spatial=spatial, resizing=CLEAN).mean.shape == (3,)
        with pytest.raises(UserError, match=r"reference\.npz .*'clean'.*'adm': choose the same"):
            read_statistics(path, spatial=spatial)
    write_statistics(path, GAUSSIAN)
    assert read_statistics(path).mean.shape == (3,)
    with pytest.raises(UserError, match=r"resized by 'adm', but .* 'clean': choose"):
        read_statistics(path, resizing=CLEAN)


def test_statistics_without_a_resizing_count_as_adms_until_it_is_added(tmp_path):
    path = tmp_path / "published.npz"
    arrays = {"mu": GAUSSIAN.mean, "sigma": GAUSSIAN.covariance}
    np.savez(path, **arrays)
    assert read_statistics(path).mean.shape == (3,)
    with pytest.raises(UserError, match=r"does not record .* add the array resizing='clean'"):
        read_statistics(path, resizing=CLEAN)
    np.savez(path, **arrays, resizing=CLEAN)  # as the error says
    assert read_statistics(path, resizing=CLEAN).mean.shape == (3,)
    np.savez(path, **arrays, resizing=np.zeros((1 << 18,)))
    with pytest.raises(UserError, match="cannot be read as .npz"):
        read_statistics(path)
