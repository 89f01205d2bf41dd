import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from repae_jax.data.digits import load_digits_split, to_scan
from repae_jax.errors import UserError


@pytest.fixture(scope="module")
def parts():
    return {name: load_digits_split(name) for name in ("train", "heldout")}


def test_the_parts_share_nothing_and_are_all_of_the_digits(parts):
    rows = [part.raw.reshape(len(part.raw), 64) for part in parts.values()]
    everything = np.concatenate(rows)
    assert len(everything) == 1797
    original = load_digits().data
    assert sorted(map(tuple, everything)) == sorted(map(tuple, original))


def test_every_fifth_image_of_each_class_is_held_out(parts):
    # an independent walk through the data set, counting how often each class was met
    digits = load_digits()
    met, scans, labels = [0] * 10, [], []
    for scan, label in zip(digits.images, digits.target, strict=True):
        met[label] += 1
        if met[label] % 5 == 0:
            scans.append(scan)
            labels.append(label)
    np.testing.assert_array_equal(parts["heldout"].raw, np.stack(scans))
    np.testing.assert_array_equal(parts["heldout"].labels, labels)
    assert len(labels) == pytest.approx(1797 / 5, abs=10)


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_images_are_grey_rgb_with_the_scans_ink(parts, name):
    part = parts[name]
    assert part.images.shape == (len(part.labels), 32, 32, 3)
    assert part.images.dtype == np.uint8
    assert part.labels.dtype == np.int32
    assert part.raw.dtype == np.float32
    assert (part.images == part.images[..., :1]).all()
    # brightness survives the enlargement: an image's mean is its scan's
    brightness = part.images.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(brightness, part.raw.mean(axis=(1, 2)) / 16, atol=0.03)


def test_images_are_what_bicubic_interpolation_of_each_scan_gives(parts):
    from PIL import Image

    for scan, image in zip(parts["heldout"].raw[:20], parts["heldout"].images[:20], strict=True):
        resized = Image.fromarray(scan * (255 / 16)).resize((32, 32), Image.Resampling.BICUBIC)
        expected = np.clip(np.asarray(resized), 0, 255)
        np.testing.assert_allclose(image[..., 0], expected, atol=0.51)


def test_scans_survive_the_round_trip(parts):
    for part in parts.values():
        error = np.abs(to_scan(part.images) - part.raw.reshape(-1, 64))
        assert error.mean() < 0.15  # of 16; what is left is overshoot that was clipped
        assert error.max() < 1.2


def test_smooth_scans_survive_the_round_trip_but_for_rounding():
    # Where nothing overshoots there is nothing to clip: the inverse is exact then. Rounding
    # moves a pixel by at most 0.5 of 255, and the inverse averages over pixels.
    from repae_jax.data import digits

    scans = 8 + np.random.default_rng(0).uniform(-4, 4, (20, 8, 8))
    images = digits._to_images(scans)
    np.testing.assert_allclose(to_scan(images), scans.reshape(-1, 64), atol=16 / 255)


def test_scans_stay_in_range_for_any_image():
    # edges sharper than any enlarged scan's: the nearest scan would go beyond the range
    blocks = np.random.default_rng(0).integers(0, 2, (8, 8, 8), np.uint8) * 255
    sharp = np.repeat(np.repeat(blocks, 4, axis=1), 4, axis=2)
    scans = to_scan(np.repeat(sharp[..., None], 3, axis=-1))
    assert scans.shape == (8, 64)
    assert scans.dtype == np.float32
    assert scans.min() >= 0
    assert scans.max() <= 16
    assert to_scan(np.full((1, 32, 32, 3), 255, np.uint8)) == pytest.approx(16, abs=1e-4)


def test_a_classifier_of_scans_reads_images_as_well_as_scans(parts):
    train, heldout = parts["train"], parts["heldout"]
    classifier = SVC(gamma=0.001, C=10).fit(train.raw.reshape(-1, 64), train.labels)
    of_scans = classifier.predict(heldout.raw.reshape(-1, 64))
    of_images = classifier.predict(to_scan(heldout.images))
    assert (of_scans == heldout.labels).mean() > 0.97
    assert (of_images == of_scans).mean() > 0.99


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match=r"'test'.*train, heldout"):
        load_digits_split("test")
