"""The page and its pictures: `report` and `figures`."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from repae_jax.errors import UserError
from repae_jax.evaluation import curves, report
from repae_jax.utils import figures

VOID = {"meta", "img", "link", "br"}


class Page(html.parser.HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text, self.open = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def images(count, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path):
    contents = {name: images(1, seed=seed)[0] for seed, name in enumerate(("one", "two"))}
    return {
        figures.save_png(tmp_path / f"{name}.png", image): image for name, image in contents.items()
    }


HOSTILE = "<script>alert(\"1\")</script> & </pre></style>'x'"


def test_page_embeds_its_pictures_unchanged(tmp_path, pictures):
    first, second = pictures
    sections = [
        report.Section("Digits", "As asked.", first),
        report.Section("Numbers only"),
        report.Section("Latents", picture_path=second, alt='Maps, "before" & after'),
    ]
    path = report.write_report(tmp_path / "report.html", title="Run", sections=sections)
    page = Page(path.read_text("utf-8"))
    assert [image["alt"] for image in page.images] == ["Digits", 'Maps, "before" & after']
    for attributes, expected in zip(page.images, pictures.values(), strict=True):
        kind, _, data = attributes["src"].partition(",")
        assert kind == "data:image/png;base64"
        decoded = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        decoded.load()
        assert decoded.format == "PNG"
        np.testing.assert_array_equal(np.asarray(decoded), expected)
        assert (attributes["width"], attributes["height"]) == ("4", "4")


def test_page_needs_nothing_from_outside(tmp_path, pictures):
    sections = [report.Section("Digits", picture_path=path) for path in pictures]
    path = report.write_report(tmp_path / "report.html", title="Run", sections=sections)
    page = Page(path.read_text("utf-8"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    references = [value for _, attributes in page.tags for name, value in attributes.items()
                  if name in ("src", "href", "srcset")]  # fmt: skip
    assert len(references) == 2
    assert all(value.startswith("data:image/png;base64,") for value in references)
    style = "".join(page.text["style"])
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_text_is_shown_and_never_interpreted(tmp_path, pictures):
    path = report.write_report(
        tmp_path / "report.html",
        title=HOSTILE,
        summary=[(HOSTILE, HOSTILE, HOSTILE), ("PSNR", "31 dB", "")],
        sections=[report.Section(HOSTILE, HOSTILE + "\n\nsecond {brace}", next(iter(pictures)))],
        config_text=HOSTILE + "\nwidth: 3",
    )
    page = Page(path.read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    for tag in ("title", "h1", "h2", "dt"):
        assert page.text[tag][0] == HOSTILE
    assert [text for text in page.text["dd"] if text.strip()] == [HOSTILE, HOSTILE, "31 dB"]
    assert page.text["p"] == [HOSTILE, "second {brace}"]
    assert page.text["pre"] == [HOSTILE + "\nwidth: 3"]
    assert page.images[0]["alt"] == HOSTILE


def test_page_replaces_the_old_one_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "report.html"
    for title in ("first", "second"):
        assert report.write_report(path, title=title) == path
    assert "second" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = report.write_report(tmp_path / "report.html", title="first")

    def full(self, target):
        assert self.parent == path.parent  # a rename is atomic only within one file system
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UserError, match="No space left"):
        report.write_report(path, title="second")
    assert "first" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_pictures_must_be_png_and_there(tmp_path):
    jpeg = tmp_path / "picture.png"
    Image.fromarray(images(1)[0]).save(jpeg, format="jpeg")
    for path, error in ((jpeg, ValueError), (tmp_path / "absent.png", FileNotFoundError)):
        with pytest.raises(error, match=path.name):
            report.write_report(
                tmp_path / "report.html", title="", sections=[report.Section("a", "", path)]
            )
    assert not (tmp_path / "report.html").exists()


def test_image_grid_places_every_pixel():
    tiles = images(5, size=3)
    grid = figures.image_grid(tiles, 2, pad=1, scale=2)
    assert grid.shape == (3 * 7 + 1, 2 * 7 + 1, 3)
    left_white = np.ones(grid.shape[:2], bool)
    for index, tile in enumerate(tiles):
        top, left = 7 * (index // 2) + 1, 7 * (index % 2) + 1
        cell = grid[top : top + 6, left : left + 6]
        np.testing.assert_array_equal(cell, np.kron(tile, np.ones((2, 2, 1), np.uint8)))
        left_white[top : top + 6, left : left + 6] = False
    assert (grid[left_white] == 255).all()
    assert left_white[-7:, -7:].all()


def find_tile(canvas, tile):
    """Top-left corner of the only place where `tile` lies in `canvas`."""
    height, width, _ = tile.shape
    corners = np.argwhere((canvas == tile[0, 0]).all(-1))
    places = [(y, x) for y, x in corners
              if np.array_equal(canvas[y : y + height, x : x + width], tile)]  # fmt: skip
    assert len(places) == 1
    return places[0]


def test_class_grid_has_one_row_a_class_and_names_beside_it():
    tiles, labels = images(7, size=64), np.array([1, 0, 1, 2, 1, 0, 1])
    figure = figures.class_grid(tiles, labels, ["zero", "one", "two", "three"], 3)
    places = {index: find_tile(figure, tiles[index]) for index in (0, 1, 2, 3, 4, 5)}
    rows = [{places[index][0] for index in group} for group in ((1, 5), (0, 2, 4), (3,))]
    assert [len(row) for row in rows] == [1, 1, 1]
    assert max(rows[0]) < max(rows[1]) < max(rows[2])
    assert places[0][1] < places[2][1] < places[4][1]
    margin = figure[:, : places[1][1]]
    for row in rows:
        assert margin[max(row) : max(row) + 64].min() < 100  # ink of the name
    assert (figure[max(rows[2]) + 68 :, places[1][1] :] == 255).all()  # no image of class three


def test_strips_put_kinds_under_each_other():
    tiles, small = images(5, size=64), images(5, size=8, seed=1)
    figure = figures.pca_figure(tiles, {"before": small, "after": 255 - small}, columns=3)
    for index in range(5):
        enlarged = np.kron(small[index], np.ones((8, 8, 1), np.uint8))
        image, before, after = (
            find_tile(figure, t) for t in (tiles[index], enlarged, 255 - enlarged)
        )
        assert image[1] == before[1] == after[1]
        assert image[0] < before[0] < after[0]
    assert find_tile(figure, tiles[3])[0] > find_tile(figure, tiles[2])[0]
    pairs = figures.pairs_figure(tiles, tiles[::-1].copy())
    assert pairs.shape[0] < 3 * 64  # one band
    with pytest.raises(ValueError, match="5 images need as many of 'reconstruction', got 4"):
        figures.pairs_figure(tiles, tiles[:4])


def test_figures_refuse_floats():
    for call in (lambda x: figures.image_grid(x, 2), lambda x: figures.pairs_figure(x, x)):
        with pytest.raises(ValueError, match="float64"):
            call(images(2) / 255)


def test_loss_curves_draw_what_the_history_has():
    steps = np.arange(400)
    history = {
        "denoising_loss": (steps, np.linspace(2, 1, 400)),
        "d_loss": (steps[:10], [1.0, np.nan, np.inf, *[0.5] * 7]),
        "grad_norm_sit": (steps, np.geomspace(1, 1e-4, 400)),
    }
    groups = {
        "Diffusion": ["denoising_loss", "absent"],
        "Nothing": ["absent"],
        "GAN": ["d_loss"],
        "Norm": ["grad_norm_sit"],
    }
    diffusion, gan, norm = curves.loss_curves(history, groups).axes
    assert [a.get_title(loc="left") for a in (diffusion, gan, norm)] == [
        "Diffusion", "GAN", "Norm (logarithmic)"]  # fmt: skip
    assert [a.get_yscale() for a in (diffusion, gan, norm)] == ["linear", "linear", "log"]
    raw, smooth = diffusion.lines
    np.testing.assert_array_equal(raw.get_ydata(), history["denoising_loss"][1])
    np.testing.assert_allclose(smooth.get_ydata()[8:-8], raw.get_ydata()[8:-8], atol=2e-3)
    assert smooth.get_label() == "denoising_loss"
    (line,) = gan.lines
    assert np.isnan(line.get_ydata()).nonzero()[0].tolist() == [1, 2]


def test_loss_curves_refuse_nothing_and_unequal_lengths():
    with pytest.raises(ValueError, match="no curves"):
        curves.loss_curves({"d_loss": ([0], [1.0])}, {"SiT": ["sit_loss"]})
    with pytest.raises(ValueError, match="d_loss"):
        curves.loss_curves({"d_loss": ([0, 1], [1.0])}, {"GAN": ["d_loss"]})


def test_save_png_writes_arrays_and_figures(tmp_path):
    array = images(1, size=5)[0]
    path = figures.save_png(tmp_path / "deep" / "array.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
    figure = curves.loss_curves({"d_loss": ([0, 1], [1.0, 2.0])}, {"GAN": ["d_loss"]})
    drawn = np.asarray(Image.open(figures.save_png(tmp_path / "figure.png", figure)).convert("RGB"))
    blue = np.array([0x00, 0x72, 0xB2])
    assert (np.abs(drawn.astype(int) - blue).sum(-1) < 10).sum() > 100  # the curve is on it
    with pytest.raises(ValueError, match="uint8"):
        figures.save_png(tmp_path / "float.png", array / 255)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == ["deep/array.png", "figure.png"]


def test_figures_that_are_no_numbers_are_null(tmp_path):
    path = report.write_figures(tmp_path / "x.json", {"a": np.inf, "b": [1.5, np.nan], "c": None})
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None], "c": None}
