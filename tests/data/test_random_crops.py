"""Random crops: the windows beside torchvision's, and their stream in training."""

import json

import numpy as np
import parity  # lets torchvision be imported
import pytest
from captioned import write_tar
from pictures import data_config, encoded
from PIL import Image
from scipy.stats import chisquare
from test_crop import SHAPES, box, cubic, picture, resampled

from repae_jax.data.crop import RandomWindow, random_crop, rgb_square
from repae_jax.data.decode import decode_cropped
from repae_jax.data.pipeline import eval_batches, train_batches
from repae_jax.data.prepare import prepare
from repae_jax.data.skip_bad_images import SkippingSource
from repae_jax.data.sources import open_source
from repae_jax.data.tfds_source import TfdsSource
from repae_jax.errors import UserError

assert parity
SIZE, SHORTER = 32, 48
SIZES = {**SHAPES, "as resized": (48, 48), "one longer": (49, 48), "64 to 1": (1280, 20)}


class Places:
    """Draws given places, top then left, and notes their largest values."""

    def __init__(self, *places):
        self.left, self.most = list(places), []

    def __call__(self, most):
        self.most.append(most)
        return self.left.pop(0)


# --- the window in a picture ---


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
def test_torchvision_with_the_places_that_it_drew(name, filter, monkeypatch):
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    image, drawn, original = picture(*SIZES[name]), [], transforms.RandomCrop.get_params

    def get_params(resized, output_size):
        drawn.append((*original(resized, output_size)[:2], *reversed(resized.size)))
        return *drawn[-1][:2], *output_size

    monkeypatch.setattr(transforms.RandomCrop, "get_params", staticmethod(get_params))
    mode = transforms.InterpolationMode[filter.upper()]
    theirs = transforms.Compose([transforms.Resize(SHORTER, mode), transforms.RandomCrop(SIZE)])
    torch.manual_seed(0)
    for _ in range(5):
        expected = np.asarray(theirs(image))
        top, left, height, width = drawn[-1]
        draw = Places(top, left)
        ours = rgb_square(image, SIZE, crop=filter, window=RandomWindow(SHORTER, draw))
        np.testing.assert_array_equal(ours, expected)
        assert draw.most == [height - SIZE, width - SIZE]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("corner", [(0, 0), (1, 1), (0, 1), (0.37, 0.6)])
def test_adms_resizing_stated_in_numpy(name, corner):
    image = picture(*SIZES[name])
    pixels = np.asarray(image).astype(float)
    while min(pixels.shape[:2]) // 2 >= SHORTER:
        pixels = resampled(pixels, pixels.shape[1] // 2, pixels.shape[0] // 2, box, 0.5)
    scale = SHORTER / min(pixels.shape[:2])
    height, width = (round(side * scale) for side in pixels.shape[:2])
    pixels = resampled(pixels, width, height, cubic, 2.0)
    top, left = round(corner[0] * (height - SIZE)), round(corner[1] * (width - SIZE))
    ours = rgb_square(image, SIZE, window=RandomWindow(SHORTER, Places(top, left)))
    expected = pixels[top : top + SIZE, left : left + SIZE]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1)


@pytest.mark.parametrize("shape", [(1300, 20), (3, 200), (70, 4600), (1, 65), (100, 1)])
@pytest.mark.parametrize("crop", ["adm", "bicubic", "bilinear", "lanczos"])
def test_a_line_is_cut_at_the_same_place_before_it_is_resized(shape, crop):
    image, filter = picture(*shape), "bicubic" if crop == "adm" else crop
    scale = SHORTER / min(shape)  # of pictures that ADM's rule does not halve
    sides = [round(side * scale) for side in shape]
    resized = image.resize(sides, Image.Resampling[filter.upper()])
    for at in (0.0, 0.3, 1.0):
        place = [round(at * (side - SIZE)) for side in reversed(resized.size)]
        window = RandomWindow(SHORTER, Places(*place))
        ours = np.asarray(random_crop(image, SIZE, window, crop), int)
        expected = np.asarray(resized, int)[place[0] :, place[1] :][:SIZE, :SIZE]
        assert np.abs(ours - expected).max() <= 4  # another axis first, rounded in between


def test_a_line_costs_no_more_than_its_window():
    """Resized as a whole it would have 800,000,000 x 384 pixels."""
    pixels = np.arange(2_000_000, dtype=np.uint32)[:, None, None].repeat(3, 2) // 40_000 * 5
    image = Image.fromarray(pixels.astype(np.uint8))  # 50 levels, of 15,360,000 resized pixels each
    for crop in ("adm", "bicubic", "bilinear", "lanczos"):
        for level in (0, 17, 49):
            draw = Places(15_360_000 * level + 7_000_000, 100)
            cut = rgb_square(image, 256, crop=crop, window=RandomWindow(384, draw))
            assert draw.most == [2_000_000 * 384 - 256, 384 - 256]
            assert (cut == 5 * level).all()


def test_exif_turns_before_the_window():
    stored = picture(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    data = encoded(stored, "PNG", exif=exif)
    turned = encoded(stored.transpose(Image.Transpose.ROTATE_270), "PNG")
    cut = [
        decode_cropped(content, SIZE, "x", exif=True, window=RandomWindow(SHORTER, Places(9, 3)))
        for content in (data, turned)
    ]
    np.testing.assert_array_equal(*cut)


# --- every source that holds pictures ---


def source_of(kind, root, **values):
    """A source of one picture, and the picture."""
    image, config = picture(90, 61), dict(num_classes=1, crop="bicubic", random_crop=SHORTER)
    config |= values
    data = encoded(image, "PNG")
    if kind == "tfds":
        records = [{"image": data, "label": 0}]
        return TfdsSource("tiny", 1, records, SIZE, crop=config["crop"]), image
    if kind == "tars":
        write_tar(root / "a.tar", {"x.png": data, "x.txt": b"a picture"})
    else:
        (root / "a").mkdir()
        (root / "a" / "x.png").write_bytes(data)
        (root / "a" / "x.txt").write_text("a picture")
    section = data_config(kind, path=str(root), on_bad_image="error", **config)
    return open_source(section, "train"), image


@pytest.mark.parametrize("kind", ["folder", "captions", "tars", "tfds"])
def test_a_source_reads_windows_and_keeps_its_center(kind, tmp_path):
    source, image = source_of(kind, tmp_path)
    for place in ((0, 0), (16, 38), (5, 20)):
        element = source.read(0, RandomWindow(SHORTER, Places(*place)))
        expected = random_crop(image, SIZE, RandomWindow(SHORTER, Places(*place)), "bicubic")
        np.testing.assert_array_equal(element["image"], np.asarray(expected))
        assert element["label"] == 0
        assert element.get("caption") == source[0].get("caption")
    center = rgb_square(image, SIZE, crop="bicubic")
    for element in (source[0], source.read(0), SkippingSource(source)[0]):
        np.testing.assert_array_equal(element["image"], center)
    (batch,) = eval_batches(source, 1)
    np.testing.assert_array_equal(batch["image"][0], center)


# --- the stream ---

PICTURES, HEIGHT, WIDTH = 7, 35, 40  # of which a window of 32 has 4 x 9 places


def coded(number):
    """A picture whose pixels say which it is, and where they lie in it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coded")
    (root / "a").mkdir()
    for number in range(PICTURES):
        Image.fromarray(coded(number)).save(root / "a" / f"{number}.png")
    return root


def open_coded(root, **values):
    fields = dict(path=str(root), num_classes=1, random_crop=HEIGHT) | values
    return open_source(data_config("folder", **fields), "train")


def open_stream(root, *, batch_size=4, seed=3, **options):
    options = {"flip": True, "random_crop": HEIGHT, **options}
    return train_batches(open_coded(root), batch_size=batch_size, seed=seed, **options)


def seen(iterators, count):
    """(picture, top, left, mirrored) of `count` batches, divided over the iterators."""
    found = []
    for _ in range(count):
        for image in np.concatenate([next(iterator)["image"] for iterator in iterators]):
            assert image.shape == (SIZE, SIZE, 3)
            top, left, number = image.min((0, 1)).tolist()
            mirrored = bool(image[0, 0, 1] > image[0, -1, 1])
            expected = coded(number)[top : top + SIZE, left : left + SIZE]
            np.testing.assert_array_equal(image[:, ::-1] if mirrored else image, expected)
            found.append((number, top, left, mirrored))
    return found


def close(*iterators):
    for iterator in iterators:
        iterator.close()


def test_all_places_are_equally_likely_and_new_in_every_epoch(root):
    epochs = 60
    iterator = open_stream(root, batch_size=PICTURES)
    found = np.array(seen([iterator], epochs))
    iterator.close()
    counts = np.zeros((HEIGHT - SIZE + 1, WIDTH - SIZE + 1), int)
    np.add.at(counts, (found[:, 1], found[:, 2]), 1)  # an error beyond either end
    assert counts.min() > 0
    assert chisquare(counts.ravel()).pvalue > 0.001  # 420 draws of 36 places; the seed is fixed
    by_epoch = found.reshape(epochs, PICTURES, 4)
    assert all(sorted(epoch[:, 0]) == list(range(PICTURES)) for epoch in by_epoch)
    places = {tuple(map(tuple, epoch[np.argsort(epoch[:, 0]), 1:3])) for epoch in by_epoch}
    assert len(places) == epochs
    assert 0.4 < found[:, 3].mean() < 0.6  # 420 coins: four standard deviations
    # the place says nothing of the flip
    assert abs(np.corrcoef(found[:, 2], found[:, 3])[0, 1]) < 0.2


def test_the_stream_is_one_whoever_reads_it_and_wherever_it_is_taken_up(root):
    count = 9  # batches of 4 of 7 pictures: five epochs
    alone = open_stream(root)
    expected = seen([alone], count)
    pair = [open_stream(root, rows=rows) for rows in ((0, 1), (2, 3))]
    assert seen(pair, count) == expected
    for start in (0, 1, 5):
        state = json.loads(json.dumps({"global_next_index": 4 * start}))
        for readers in ([alone], pair):
            for iterator in readers:
                iterator.set_state(state)
            assert seen(readers, count - start) == expected[4 * start :]
    other = open_stream(root, seed=4)
    assert seen([other], count) != expected
    close(alone, *pair, other)


def test_worker_processes_change_nothing(root):
    threads, workers = open_stream(root), open_stream(root, workers=2)
    expected = seen([threads], 6)
    assert seen([workers], 3) == expected[:12]
    threads.set_state(json.loads(json.dumps(workers.get_state())))
    assert seen([threads], 3) == seen([workers], 3) == expected[12:]
    close(threads, workers)


def test_the_order_is_that_of_center_crops(root):
    random, center = open_stream(root), open_stream(root, random_crop=0, flip=False)
    for _ in range(9):
        numbers = [next(iterator)["image"][:, 0, 0, 2] for iterator in (random, center)]
        np.testing.assert_array_equal(*numbers)
    close(random, center)


def test_flips_are_left_out_unless_asked_for(root):
    plain = open_stream(root, flip=False)
    assert not any(mirrored for *_, mirrored in seen([plain], 9))
    plain.close()


def test_another_picture_takes_the_place_of_a_bad_one(root, tmp_path):
    (tmp_path / "a").mkdir()
    for path in (root / "a").iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    for skip in (False, True):
        source = open_coded(tmp_path, on_bad_image="skip" if skip else "error")
        iterator = train_batches(source, batch_size=PICTURES, seed=0, random_crop=HEIGHT)
        if not skip:
            with pytest.raises(UserError, match=r"2\.png: not a readable image"):
                next(iterator)
            iterator.close()
            continue
        found = seen([iterator], 3)
        assert [number for number, *_ in found].count(3) == 6
        assert 2 not in {number for number, *_ in found}
        iterator.close()


# --- packed squares ---


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory):
    """The pictures prepared at their height as train, and at the windows' size as heldout."""
    folder = tmp_path_factory.mktemp("packed")
    for split, side in (("train", HEIGHT), ("heldout", SIZE)):
        prepare(str(root), folder / split, resolution=side, format="png")
    return folder


def packed_config(folder, **values):
    fields = dict(path=str(folder), num_classes=1, random_crop=HEIGHT) | values
    return data_config("packed", **fields)


def test_larger_packed_squares_give_windows_of_the_square(packed):
    source = open_source(packed_config(packed), "train")
    square = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
    for place in ((0, 0), (3, 3), (1, 2)):
        image = source.read(4, RandomWindow(HEIGHT, Places(*place)))["image"]
        top, left = place
        expected = coded(4)[:, square][top : top + SIZE, left : left + SIZE]
        np.testing.assert_array_equal(image, expected)
    whole = Image.fromarray(coded(4)[:, square].copy())
    np.testing.assert_array_equal(source[4]["image"], rgb_square(whole, SIZE))
    batches = train_batches(source, batch_size=7, seed=0, random_crop=HEIGHT)
    found = np.array(seen([batches], 40))
    batches.close()
    assert {tuple(place) for place in found[:, 1:3] - [0, square.start]} == {
        (top, left) for top in range(4) for left in range(4)
    }


def test_held_out_squares_have_either_side(packed, tmp_path):
    center = rgb_square(Image.fromarray(coded(4)), SIZE)
    for split, side in (("heldout", SIZE), ("train", HEIGHT)):
        folder = tmp_path / split
        (folder / "heldout").parent.mkdir()
        (folder / "heldout").symlink_to(packed / split)
        image = open_source(packed_config(folder), "heldout")[4]["image"]
        assert image.shape == (SIZE, SIZE, 3)
        # resized once or twice
        assert np.abs(image.astype(int) - center).max() <= (0 if side == SIZE else 1)


# --- refusals ---

OFF = "--config.data.random_crop=0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "digits"}, r"random_crop is 48, but config.data.source 'digits' has nothing"),
        ({"source": "scenes"}, r"'scenes' has nothing outside of its images to crop: set " + OFF),
        ({"source": "described"}, r"'described' has nothing"),
        ({"source": "hdf5"}, r"'hdf5' has nothing outside .*\(folder, tfds, captions, tars, pack"),
        ({"source": "latents"}, r"'latents' has nothing"),
        ({"source": "folder", "random_crop": 31}, r"is 31, smaller than config.data.resolution 32"),
        ({"source": "packed", "random_crop": 32}, r"'packed' holds squares, .*: set " + OFF),
    ],
)
def test_what_cannot_be_cropped_at_random_is_refused(values, message):
    config = data_config(**{"source": "", "random_crop": SHORTER, **values})
    with pytest.raises(UserError, match=message) as error:
        open_source(config, "train")
    assert OFF in str(error.value)


@pytest.mark.parametrize(
    ("side", "asked", "message"),
    [
        (SIZE, HEIGHT, rf"prepared with resolution 32: set {OFF} .* anew with --resolution 35"),
        (HEIGHT, 48, rf"resolution 35: set --config.data.random_crop=35, {OFF} .* --resolution 48"),
    ],
)
def test_squares_of_another_side_are_refused(packed, side, asked, message):
    folder = packed / ("train" if side == HEIGHT else "heldout")
    with pytest.raises(UserError, match=message):
        open_source(packed_config(folder, random_crop=asked), "train")


def test_squares_of_another_rule_are_refused(packed):
    with pytest.raises(UserError, match="config.data.crop is bicubic, but .* prepared with adm"):
        open_source(packed_config(packed, crop="bicubic"), "train")
