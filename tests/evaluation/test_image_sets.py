"""Images to be measured: the same from every kind of file, and clear words about what is none."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from repae_jax.data.prepare import prepare
from repae_jax.errors import UserError
from repae_jax.evaluation.image_sets import has_images, open_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)


def write_pictures(folder, images=IMAGES):
    for number, image in enumerate(images):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return folder


def everything(images, size=3):
    batches = list(images.batches(size))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    return np.concatenate(batches)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_as_numpy_reads_it(save, tmp_path):
    save(tmp_path / "samples.npz", arr_0=IMAGES, arr_1=np.arange(7))
    images = open_images(tmp_path / "samples.npz")
    assert (images.count, images.resolution) == (7, 16)
    np.testing.assert_array_equal(everything(images), IMAGES)
    np.testing.assert_array_equal(everything(images), IMAGES)  # again from the beginning


def test_a_folder_of_pictures_is_read_in_the_order_of_its_names(tmp_path):
    images = open_images(write_pictures(tmp_path / "pictures"))
    assert (images.count, images.resolution) == (7, 16)
    np.testing.assert_array_equal(everything(images), IMAGES[[0, 2, 4, 6, 1, 3, 5]])


def test_packed_images_are_read(tmp_path):
    write_pictures(tmp_path / "pictures")
    prepare(str(tmp_path / "pictures"), tmp_path / "packed", resolution=16, per_shard=3)
    images = open_images(tmp_path / "packed")
    np.testing.assert_array_equal(everything(images), IMAGES[[0, 2, 4, 6, 1, 3, 5]])


def test_pictures_are_cropped_to_a_resolution(tmp_path):
    write_pictures(tmp_path / "pictures")
    (batch,) = open_images(tmp_path / "pictures", 8).batches(10)
    assert batch.shape == (7, 8, 8, 3)


def test_pictures_of_two_sizes_are_refused(tmp_path):
    write_pictures(tmp_path / "pictures")
    Image.fromarray(IMAGES[0, :8, :8]).save(tmp_path / "pictures" / "z.png")
    with pytest.raises(UserError, match=r"z\.png: 8 x 8 pixels, .* give --resolution"):
        list(open_images(tmp_path / "pictures").batches(4))


def test_folders_of_pictures_may_be_links_and_hidden_ones_are_left_out(tmp_path):
    write_pictures(tmp_path / "elsewhere")
    write_pictures(tmp_path / "pictures" / ".ipynb_checkpoints")
    (tmp_path / "pictures" / "linked").symlink_to(tmp_path / "elsewhere")
    assert open_images(tmp_path / "pictures").count == 7


def test_a_link_to_a_folder_above_does_not_lead_in_a_circle(tmp_path):
    pictures = tmp_path / "pictures"
    write_pictures(pictures / "a")
    (pictures / "a" / "again").symlink_to(pictures)
    (pictures / "a" / "itself").symlink_to(pictures / "a")
    (pictures / "b").symlink_to(pictures / "a")  # the same pictures twice, as is asked for
    assert open_images(pictures).count == 2 * 7


def test_pictures_that_are_no_squares_or_grey_are_cropped_to_rgb(tmp_path):
    Image.fromarray(IMAGES[0, :8]).save(tmp_path / "flat.PNG")
    Image.fromarray(IMAGES[1, ..., 0]).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"flat\.PNG: 16 x 8 pixels, .* give --resolution"):
        list(open_images(tmp_path).batches(2))
    (batch,) = open_images(tmp_path, 8).batches(2)
    assert batch.shape == (2, 8, 8, 3)
    with pytest.raises(UserError, match="--resolution is -8"):
        open_images(tmp_path, -8)


def test_an_npz_may_have_another_suffix(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    for name in ("x.NPZ", "x.npz.1"):
        (tmp_path / "x.npz").replace(tmp_path / "y.npz").replace(tmp_path / name)
        assert open_images(tmp_path / name).count == 7
        (tmp_path / name).replace(tmp_path / "x.npz")


def test_a_damaged_table_of_contents_is_said(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data.replace(b"PK\1\2", b"XX\1\2"))
    with pytest.raises(UserError, match=r"x\.npz: cannot be read as \.npz"):
        has_images(tmp_path / "x.npz")


def test_another_resolution_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    with pytest.raises(UserError, match="16 x 16 pixels, not 32"):
        open_images(tmp_path / "x.npz", 32)


@pytest.mark.parametrize("name", ["none", "none.npz", "empty", "text.npz"])
def test_no_images_are_said(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("nothing")
    with pytest.raises(UserError, match=name):
        open_images(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [IMAGES.astype(np.float32), IMAGES[..., :1], IMAGES[0], IMAGES[:, :8], IMAGES[:0],
     np.array([{}])],
)  # fmt: skip
def test_other_arrays_are_refused(array, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(UserError, match=r"x\.npz"):
        open_images(tmp_path / "x.npz")


def test_an_npz_in_fortrans_order_is_named_with_the_way_out(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.asfortranarray(IMAGES))
    with pytest.raises(UserError, match=r"x\.npz: .*Fortran.* save numpy\.ascontiguousarray of it"):
        open_images(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", IMAGES)
    with pytest.raises(UserError, match=r"x\.npy: there are no images; name an \.npz"):
        open_images(tmp_path / "x.npy")


def test_a_picture_that_numpy_wrote_is_none(tmp_path):
    """Floats would go on as pixels."""
    np.save(tmp_path / "x.npy", IMAGES[0].astype(np.float32))
    (tmp_path / "x.npy").rename(tmp_path / "x.png")
    for resolution in (None, 16):
        with pytest.raises(UserError, match=r"x\.png: not a readable image \(it is none of JPEG"):
            list(open_images(tmp_path, resolution).batches(1))


def test_a_damaged_npz_is_said(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    with zipfile.ZipFile(tmp_path / "cut.npz", "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-100])
    with pytest.raises(UserError, match="it ends at image 6 of 7"):
        list(open_images(tmp_path / "cut.npz").batches(2))
    np.savez(tmp_path / "flipped.npz", arr_0=IMAGES)
    data = bytearray((tmp_path / "flipped.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        list(open_images(tmp_path / "flipped.npz").batches(2))
